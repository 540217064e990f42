//! The bridge: every vat, for programs that have no QUIC and none of our code (DESIGN §6, "Foreign clients").
//!
//! A capability of a vat's session is handed on as it is in the session of a client. The RPC layer passes calls on it
//! through, copying parameters and results and the capabilities in them, in both directions; so callbacks work,
//! and come back as themselves.
//!
//! * **Order** is kept: calls are passed on in the order in which they came.
//! * **Pipelining**: what is called on the answer to `connect` goes to the vat at once, behind the restoring. What
//!   is called on the answer to any later call waits here until that answer has come.
//! * **Ends**: with the session of its vat a capability breaks, with the reason; the next `connect` dials again, also
//!   when the vat was only silent for unusually long. Nothing is ever repeated here.
//!
//! There is one session per vat, shared by all clients, and kept while one of them that has asked for that vat is
//! there. Clients are programs of one user, whom the kernel has let in; the vats see none of that, only a key
//! that is forgotten when the bridge ends.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    rc::{Rc, Weak},
    time::Duration,
};

use capnp::capability::{Client, Promise};
use futures::{
    FutureExt,
    channel::oneshot,
    future::{LocalBoxFuture, Shared},
};
use schemas::{Coded, ErrorCode, RemoteError, SturdyRef, VatAddress, VatId, bridge_capnp, vat_capnp};
use tokio::time::timeout;
use transport::Session;

use crate::{
    limits::{MAX_VATS_PER_CLIENT, SILENCE_PATIENCE},
    object::wire_error,
    service::remote_failure,
};

/// A vat that was reached, and the session below.
pub(crate) type Reached = (vat_capnp::vat::Client, Session);

/// How a vat is reached.
pub(crate) type Reach = Rc<dyn Fn(VatAddress) -> LocalBoxFuture<'static, Result<Reached, RemoteError>>>;

/// The vats that clients of this bridge use.
pub(crate) struct Vats {
    reach: Reach,
    /// How long restoring an object may take.
    deadline: Duration,
    sessions: RefCell<HashMap<VatId, Slot>>,
}

enum Slot {
    /// Everybody who asks meanwhile waits for the same dial.
    Opening(Shared<oneshot::Receiver<Result<Rc<Link>, RemoteError>>>),
    Open(Weak<Link>),
}

/// A session with a vat. It ends when nobody holds it any more.
struct Link {
    vat: vat_capnp::vat::Client,
    session: Session,
}

impl Vats {
    pub(crate) fn new(reach: Reach, deadline: Duration) -> Rc<Self> {
        Rc::new(Self { reach, deadline, sessions: RefCell::default() })
    }

    /// The session with a vat: the one that is open, or is being opened, or a new one.
    async fn link(self: &Rc<Self>, address: VatAddress) -> Result<Rc<Link>, RemoteError> {
        let id = address.id;
        let opening = match self.sessions.borrow().get(&id) {
            Some(Slot::Opening(opening)) => Some(opening.clone()),
            Some(Slot::Open(link)) => match link.upgrade().filter(|link| link.session.end().is_none()) {
                Some(link) => return Ok(link),
                None => None,
            },
            None => None,
        };
        let opening = opening.unwrap_or_else(|| self.open(address));
        // The sender goes without a word only when the runtime ends.
        opening.await.unwrap_or_else(|_| Err(ended("the bridge ends")))
    }

    fn open(self: &Rc<Self>, address: VatAddress) -> Shared<oneshot::Receiver<Result<Rc<Link>, RemoteError>>> {
        let (sender, receiver) = oneshot::channel();
        let opening = receiver.shared();
        let (vats, id) = (self.clone(), address.id);
        self.sessions.borrow_mut().insert(id, Slot::Opening(opening.clone()));
        tokio::task::spawn_local(async move {
            let reached = (vats.reach)(address).await.map(|(vat, session)| Rc::new(Link { vat, session }));
            let mut sessions = vats.sessions.borrow_mut();
            // Nobody holds these any more; a bridge that runs for years meets many vats.
            sessions.retain(|_, slot| !matches!(slot, Slot::Open(link) if link.strong_count() == 0));
            match &reached {
                Ok(link) => sessions.insert(id, Slot::Open(Rc::downgrade(link))),
                Err(_) => sessions.remove(&id),
            };
            drop(sessions);
            // Whoever asked may have gone; then the session ends here.
            let _ = sender.send(reached);
        });
        opening
    }

    /// The next one who asks gets a new session. What runs over this one may still be answered.
    fn suspect(&self, link: &Rc<Link>) {
        let is_meant = |slot: &Slot| matches!(slot, Slot::Open(open) if open.as_ptr() == Rc::as_ptr(link));
        self.sessions.borrow_mut().retain(|_, slot| !is_meant(slot));
    }
}

/// What one client of the bridge sees.
pub(crate) struct BridgeService {
    vats: Rc<Vats>,
    /// The sessions that stay open for this client.
    held: RefCell<Vec<Rc<Link>>>,
}

impl BridgeService {
    pub(crate) fn new(vats: Rc<Vats>) -> Rc<Self> {
        Rc::new(Self { vats, held: RefCell::default() })
    }

    /// The object of a sturdyref that a client names instead of asking for the bridge.
    pub(crate) fn restore(self: Rc<Self>, id: &[u8]) -> Promise<Client, capnp::Error> {
        let reference = std::str::from_utf8(id.strip_suffix(&[0]).unwrap_or(id)).unwrap_or("").parse::<SturdyRef>();
        match reference {
            Ok(reference) => Promise::from_future(async move {
                let link = self.link(reference.address()).await?;
                let (object, _) = self.answer(&link, restore_request(&link, &reference).promise).await?;
                Ok(object)
            }),
            Err(error) => Promise::err(wire_error(&error)),
        }
    }

    async fn link(&self, address: VatAddress) -> Result<Rc<Link>, capnp::Error> {
        let link = self.vats.link(address).await.map_err(|error| to_wire(&error))?;
        let held = &mut *self.held.borrow_mut();
        held.retain(|link| link.session.end().is_none());
        if held.iter().any(|held| Rc::ptr_eq(held, &link)) {
            return Ok(link);
        }
        if held.len() >= MAX_VATS_PER_CLIENT {
            let message = format!("one connection to the bridge reaches at most {MAX_VATS_PER_CLIENT} vats");
            return Err(capnp::Error::failed(ErrorCode::SessionLimit.to_wire(&message)));
        }
        held.push(link.clone());
        Ok(link)
    }

    /// The object in a vat's answer, if it comes in time.
    async fn answer(
        &self,
        link: &Rc<Link>,
        answer: impl Future<Output = Result<Restored, capnp::Error>>,
    ) -> Result<(Client, u64), capnp::Error> {
        let in_time = timeout(self.vats.deadline, link.session.or_ended(answer));
        futures::pin_mut!(in_time);
        let answer = match timeout(SILENCE_PATIENCE, &mut in_time).await {
            Ok(answer) => answer,
            Err(_) => {
                // A vat that was killed does not say goodbye, and its session ends by its idle timeout only.
                self.vats.suspect(link);
                in_time.await
            }
        };
        let answer = answer.map_err(|_| {
            let message = format!("the vat did not answer within {} s", self.vats.deadline.as_secs());
            capnp::Error::failed(ErrorCode::NetTimeout.to_wire(&message))
        })?;
        let answer = answer.map_err(|end| capnp::Error::disconnected(end.code().to_wire(&end.to_string())))?;
        let answer = answer.map_err(told)?;
        let answer = answer.get()?;
        Ok((answer.get_capability().get_as_capability()?, answer.get_interface_id()))
    }
}

type Restored = capnp::capability::Response<vat_capnp::vat::restore_results::Owned>;

fn restore_request(
    link: &Link,
    reference: &SturdyRef,
) -> capnp::capability::RemotePromise<vat_capnp::vat::restore_results::Owned> {
    let mut request = link.vat.restore_request();
    request.get().set_secret(reference.secret.expose());
    request.send()
}

impl bridge_capnp::bridge::Server for BridgeService {
    async fn connect(
        self: Rc<Self>,
        params: bridge_capnp::bridge::ConnectParams,
        mut results: bridge_capnp::bridge::ConnectResults,
    ) -> capnp::Result<()> {
        let reference: SturdyRef = params.get()?.get_uri()?.to_str()?.parse().map_err(|error| wire_error(&error))?;
        // What holds the secret now is wiped when it is dropped.
        drop(params);
        let link = self.link(reference.address()).await?;
        let restored = restore_request(&link, &reference);
        // The object that will be restored. From here on what the client calls on it goes to the vat, behind this.
        let object = restored.pipeline.get_capability().as_cap();
        results.get().init_object().set_as_capability(object);
        results.set_pipeline()?;
        let (_, interface_id) = self.answer(&link, restored.promise).await?;
        // The object stays as it is: a capability that stands in a message cannot be replaced (capnp 0.27 panics).
        results.get().set_interface_id(interface_id);
        Ok(())
    }

    async fn vat(
        self: Rc<Self>,
        params: bridge_capnp::bridge::VatParams,
        mut results: bridge_capnp::bridge::VatResults,
    ) -> capnp::Result<()> {
        let address: VatAddress = params.get()?.get_address()?.to_str()?.parse().map_err(|error| wire_error(&error))?;
        let link = self.link(address).await?;
        results.get().set_vat(link.vat.clone());
        Ok(())
    }
}

fn ended(message: &str) -> RemoteError {
    RemoteError { code: ErrorCode::SessionClosed, message: message.to_owned() }
}

fn to_wire(error: &RemoteError) -> capnp::Error {
    capnp::Error::failed(error.code.to_wire(&error.message))
}

/// What a vat said, as the bridge says it: with its code in front and of the same kind.
fn told(error: capnp::Error) -> capnp::Error {
    let (code, message) = remote_failure(&error);
    capnp::Error { kind: error.kind, extra: code.to_wire(&message) }
}

#[cfg(test)]
mod tests;
