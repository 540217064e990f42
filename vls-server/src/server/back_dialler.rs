//! Dialling callers back, so that they know whether others can reach them (DESIGN §5).
//!
//! From a socket of its own: packets from the port that a caller has just talked to get through every router, which says
//! nothing about those of others. Only the address that a caller is seen at is ever dialled, and only a handshake is
//! made, in which the caller has to prove the same key again.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use schemas::{Coded, ErrorCode, RemoteError, VatId};
use tokio::{net::TcpStream, time::timeout};
use transport::Endpoint;

use crate::limits;

/// Dials back.
pub(crate) struct BackDialler {
    /// `None` where there is no socket for it.
    endpoint: Option<Endpoint>,
    under_way: Cell<usize>,
}

impl BackDialler {
    pub(super) fn new(endpoint: Option<Endpoint>) -> Self {
        Self { endpoint, under_way: Cell::new(0) }
    }

    /// Whether somebody accepts a TCP connection at `address`; the reason if not. It is closed at once.
    pub(crate) async fn connect(self: &Rc<Self>, address: SocketAddr) -> Result<(), RemoteError> {
        let refused = |code, message: String| RemoteError { code, message };
        // A server in a simulated network has no other.
        if self.endpoint.is_none() {
            let message = "this server has no TCP to dial with".to_owned();
            return Err(refused(ErrorCode::SessionUnsupported, message));
        }
        let _place = Place::take(self)
            .ok_or_else(|| refused(ErrorCode::VlsQuota, "too many are dialled back now".to_owned()))?;
        match timeout(limits::DIAL_BACK_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refused(ErrorCode::NetUnreachable, format!("at {address}: {error}"))),
            Err(_) => Err(refused(ErrorCode::NetTimeout, format!("nobody answers at {address}"))),
        }
    }

    /// Whether whoever is at `address` has the key of `id`; the reason if not.
    pub(crate) async fn dial(self: &Rc<Self>, id: VatId, address: SocketAddr) -> Result<(), RemoteError> {
        let refused = |code, message: &str| RemoteError { code, message: message.to_owned() };
        let Some(endpoint) = &self.endpoint else {
            return Err(refused(ErrorCode::SessionUnsupported, "this server has no other port to dial from"));
        };
        let _place = Place::take(self).ok_or_else(|| refused(ErrorCode::VlsQuota, "too many are dialled back now"))?;
        match endpoint.dial(id, address, limits::DIAL_BACK_DEADLINE).await {
            Ok(connection) => {
                connection.close(ErrorCode::SessionClosed);
                Ok(())
            }
            Err(error) => Err(RemoteError { code: error.code(), message: error.to_string() }),
        }
    }

    pub(super) async fn close(&self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.close().await;
        }
    }
}

struct Place(Rc<BackDialler>);

impl Place {
    fn take(dialler: &Rc<BackDialler>) -> Option<Self> {
        let under_way = dialler.under_way.get() + 1;
        (under_way <= limits::DIALS_BACK).then(|| {
            dialler.under_way.set(under_way);
            Self(Rc::clone(dialler))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}
