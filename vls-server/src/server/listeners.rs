//! The sockets of the carriers that the operator has named addresses for, and their tasks.
//!
//! All of them are bound before anything is answered: a server that starts has every port that it was told to have.

use std::{io, net::SocketAddr, rc::Rc};

use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinHandle,
};
use transport::datagrams::DatagramSocket;

use super::{
    ServerConfig, ServerError,
    dns::{DnsCarrier, Zone},
    http::{HttpCarrier, Tls, TrustedProxies},
    sessions::Stage,
    shared::Shared,
};
use crate::limits;

/// The carriers that the operator has named addresses for.
pub(super) struct Listeners {
    http: Option<(TcpListener, Option<Tls>)>,
    dns: Option<(DatagramSocket, TcpListener, Zone)>,
}

impl Listeners {
    pub(super) async fn bind(config: &ServerConfig) -> Result<Self, ServerError> {
        let http = match config.http {
            Some(address) => {
                // A certificate that cannot be used is said before anybody could be answered without it.
                let tls = config.certificate.clone().map(Tls::new).transpose()?;
                Some((TcpListener::bind(address).await.map_err(listen("http", address))?, tls))
            }
            None => None,
        };
        let dns = match config.dns {
            Some(address) => {
                let zone = zone(config).ok_or(ServerError::NoOrigin { address })?;
                let (datagrams, streams) = bind_both(address).await.map_err(listen("dns", address))?;
                Some((datagrams, streams, zone))
            }
            None => None,
        };
        Ok(Self { http, dns })
    }

    pub(super) fn http_address(&self) -> Result<Option<SocketAddr>, ServerError> {
        let Some((listener, _)) = &self.http else { return Ok(None) };
        Ok(Some(listener.local_addr().map_err(listen("http", SocketAddr::from(([0; 4], 0))))?))
    }

    pub(super) fn dns_address(&self) -> Result<Option<SocketAddr>, ServerError> {
        let Some((socket, ..)) = &self.dns else { return Ok(None) };
        Ok(Some(socket.local_address().map_err(listen("dns", SocketAddr::from(([0; 4], 0))))?))
    }

    pub(super) fn serve(
        self,
        shared: &Rc<Shared>,
        config: &ServerConfig,
        stage: &watch::Receiver<Stage>,
    ) -> Result<Vec<JoinHandle<()>>, ServerError> {
        let mut tasks = Vec::new();
        let seed = || getrandom::u64().map_err(ServerError::Random);
        if let Some((listener, tls)) = self.http {
            let proxies = TrustedProxies::new(&config.trusted_proxies);
            let carrier = HttpCarrier::new(Rc::clone(shared), tls, proxies, config.http_limits, seed()?);
            tasks.push(tokio::task::spawn_local(Rc::new(carrier).serve(listener, stage.clone())));
        }
        if let Some((datagrams, streams, zone)) = self.dns {
            let carrier = Rc::new(DnsCarrier::new(Rc::clone(shared), zone, config.dns_limits, seed()?));
            let serving = Rc::clone(&carrier).serve_datagrams(datagrams, stage.clone());
            tasks.push(tokio::task::spawn_local(serving));
            tasks.push(tokio::task::spawn_local(carrier.serve_streams(streams, stage.clone())));
        }
        Ok(tasks)
    }
}

/// The same port for both. One that the system chose for UDP may be taken for TCP, so another is tried then.
async fn bind_both(address: SocketAddr) -> io::Result<(DatagramSocket, TcpListener)> {
    const ATTEMPTS: usize = 16;
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let datagrams = UdpSocket::bind(address).await?;
        match TcpListener::bind(datagrams.local_addr()?).await {
            Ok(streams) => {
                let datagrams = DatagramSocket::new(datagrams.into_std()?, limits::DNS_QUERY_BYTES)?;
                return Ok((datagrams, streams));
            }
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

fn listen(what: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> ServerError {
    move |source| ServerError::Listen { what, address, source }
}

pub(super) fn zone(config: &ServerConfig) -> Option<Zone> {
    let origin = config.dns_origin.clone()?;
    let server = config.dns_server.clone().unwrap_or_else(|| origin.clone());
    // Nobody copies the zone, so its version need not tell anything.
    Some(Zone::new(origin, server, 1))
}
