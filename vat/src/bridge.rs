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
//! there; a client that has asked for many keeps those of which somebody holds something. The vats see none of that, only
//! a key that is forgotten when the bridge ends.
//!
//! A dial is shared too, as far as hints go: whoever knows another place where a vat may be has it dialled there at the
//! same time, and the first that is reached is everybody's.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    rc::{Rc, Weak},
    time::Duration,
};

use capnp::capability::{Client, Promise};
use futures::{
    FutureExt,
    channel::oneshot,
    future::{LocalBoxFuture, Shared, select_ok},
};
use schemas::{Coded, ErrorCode, Hints, RemoteError, SturdyRef, VatAddress, VatId, bridge_capnp, vat_capnp};
use tokio::time::timeout;
use transport::{BulkError, Session};

use crate::{
    limits::{MAX_DIALS_PER_VAT, MAX_VATS_PER_CLIENT, SILENCE_PATIENCE},
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
    next_dial: Cell<u64>,
}

enum Slot {
    /// At least one.
    Opening(Vec<Dial>),
    Open(Weak<Link>),
}

/// An attempt to reach a vat.
struct Dial {
    number: u64,
    hints: Hints,
    /// Told what comes of it, or of another dial of the same vat that is faster.
    sender: oneshot::Sender<Result<Rc<Link>, RemoteError>>,
    outcome: Outcome,
}

/// What comes of a dial, for everybody who waits for it.
type Outcome = Shared<LocalBoxFuture<'static, Result<Rc<Link>, RemoteError>>>;

/// A session with a vat. It ends when nobody holds it any more.
struct Link {
    vat: vat_capnp::vat::Client,
    session: Session,
}

impl Vats {
    pub(crate) fn new(reach: Reach, deadline: Duration) -> Rc<Self> {
        Rc::new(Self { reach, deadline, sessions: RefCell::default(), next_dial: Cell::new(0) })
    }

    /// The session with a vat: the one that is open, or is being opened, or a new one.
    async fn link(self: &Rc<Self>, address: VatAddress) -> Result<Rc<Link>, RemoteError> {
        loop {
            if let Some(link) = self.open_link(&address.id) {
                return Ok(link);
            }
            let (dials, are_enough) = self.dials(&address);
            match select_ok(dials).await {
                Ok((link, _)) => return Ok(link),
                Err(error) if are_enough => return Err(error),
                // The hints of this address were not tried; now there is room for them.
                Err(_) => {}
            }
        }
    }

    fn open_link(&self, id: &VatId) -> Option<Rc<Link>> {
        match self.sessions.borrow().get(id)? {
            Slot::Open(link) => link.upgrade().filter(|link| link.session.end().is_none()),
            Slot::Opening(_) => None,
        }
    }

    /// The dials by which a vat may be reached, and whether the hints of `address` are among theirs.
    fn dials(self: &Rc<Self>, address: &VatAddress) -> (Vec<Outcome>, bool) {
        let (mut outcomes, mut are_enough) = (Vec::new(), false);
        if let Some(Slot::Opening(dials)) = self.sessions.borrow().get(&address.id) {
            are_enough = dials.iter().any(|dial| covers(&dial.hints, &address.hints));
            outcomes.extend(dials.iter().map(|dial| dial.outcome.clone()));
        }
        if !are_enough && outcomes.len() < MAX_DIALS_PER_VAT {
            outcomes.push(self.dial(address.clone()));
            are_enough = true;
        }
        (outcomes, are_enough)
    }

    fn dial(self: &Rc<Self>, address: VatAddress) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        // The sender goes without a word only when the runtime ends.
        let outcome = async { receiver.await.unwrap_or_else(|_| Err(ended("the bridge ends"))) };
        let outcome = outcome.boxed_local().shared();
        let (id, number) = (address.id, self.next_dial.replace(self.next_dial.get() + 1));
        let dial = Dial { number, hints: address.hints.clone(), sender, outcome: outcome.clone() };
        match self.sessions.borrow_mut().entry(id).or_insert_with(|| Slot::Opening(Vec::new())) {
            Slot::Opening(dials) => dials.push(dial),
            // Of a session that has ended.
            slot @ Slot::Open(_) => *slot = Slot::Opening(vec![dial]),
        }
        let vats = self.clone();
        tokio::task::spawn_local(async move {
            // A panic would leave everybody waiting.
            let reached = AssertUnwindSafe((vats.reach)(address)).catch_unwind().await;
            vats.dialled(id, number, reached.unwrap_or_else(|_| Err(panicked())));
        });
        outcome
    }

    /// A dial is over. Everybody is told of a session that is used from now on, and of a failure who waits for that one.
    fn dialled(&self, id: VatId, number: u64, reached: Result<Reached, RemoteError>) {
        let sessions = &mut *self.sessions.borrow_mut();
        // Nobody holds these any more; a bridge that runs for years meets many vats.
        sessions.retain(|_, slot| !matches!(slot, Slot::Open(link) if link.strong_count() == 0));
        // If another dial was faster, everybody was told, and a session that was opened all the same ends here.
        let Some(Slot::Opening(dials)) = sessions.get_mut(&id) else { return };
        let Some(place) = dials.iter().position(|dial| dial.number == number) else { return };
        match reached {
            Ok((vat, session)) => {
                let (link, dials) = (Rc::new(Link { vat, session }), std::mem::take(dials));
                sessions.insert(id, Slot::Open(Rc::downgrade(&link)));
                for dial in dials {
                    // Whoever asked may have gone; if all have, the session ends here.
                    let _ = dial.sender.send(Ok(link.clone()));
                }
            }
            Err(error) => {
                let failed = dials.remove(place);
                if dials.is_empty() {
                    sessions.remove(&id);
                }
                let _ = failed.sender.send(Err(error));
            }
        }
    }

    /// The next one who asks gets a new session. What runs over this one may still be answered.
    fn suspect(&self, link: &Rc<Link>) {
        let is_meant = |slot: &Slot| matches!(slot, Slot::Open(open) if open.as_ptr() == Rc::as_ptr(link));
        self.sessions.borrow_mut().retain(|_, slot| !is_meant(slot));
    }

    /// The object in a vat's answer, if it comes in time.
    async fn answer(
        &self,
        link: &Rc<Link>,
        answer: impl Future<Output = Result<Restored, capnp::Error>>,
    ) -> Result<(Client, u64), capnp::Error> {
        let in_time = timeout(self.deadline, link.session.or_ended(answer));
        futures::pin_mut!(in_time);
        let answer = match timeout(SILENCE_PATIENCE, &mut in_time).await {
            Ok(answer) => answer,
            Err(_) => {
                // A vat that was killed does not say goodbye, and its session ends by its idle timeout only.
                self.suspect(link);
                in_time.await
            }
        };
        let answer = answer.map_err(|_| {
            let message = format!("the vat did not answer within {} s", self.deadline.as_secs());
            capnp::Error::failed(ErrorCode::NetTimeout.to_wire(&message))
        })?;
        let answer = answer.map_err(|end| capnp::Error::disconnected(end.code().to_wire(&end.to_string())))?;
        let answer = answer.map_err(told)?;
        let answer = answer.get()?;
        Ok((answer.get_capability().get_as_capability()?, answer.get_interface_id()))
    }
}

/// Whether a dial with the hints `tried` finds whatever one with `hints` would.
fn covers(tried: &Hints, hints: &Hints) -> bool {
    hints.addresses.iter().all(|address| tried.addresses.contains(address))
        && hints.search_path.iter().all(|entry| tried.search_path.contains(entry))
        && hints.gateways.iter().all(|gateway| tried.gateways.contains(gateway))
}

/// What one client of the bridge sees.
pub(crate) struct BridgeService {
    vats: Rc<Vats>,
    /// The sessions that stay open for this client; the one that it asked for last is the last.
    held: RefCell<Vec<Rc<Held>>>,
}

/// A session that stays open for one client. Whatever that client is about to do in it, or has of it beside objects, holds
/// this.
struct Held {
    link: Rc<Link>,
}

impl Held {
    /// Whether nobody would miss the session: nothing is under way in it, and of the vat's capabilities no other is kept
    /// than the one that stands here. Of the clients that share a session it cannot be told which one keeps what.
    fn is_unused(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 1 && self.link.session.imports_if_quiet().is_some_and(|imports| imports <= 1)
    }
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
                let held = self.hold(reference.address()).await?;
                let restored = restore_request(&held.link, reference.secret.expose());
                let (object, _) = self.vats.answer(&held.link, restored.promise).await?;
                Ok(object)
            }),
            Err(error) => Promise::err(wire_error(&error)),
        }
    }

    /// The session with a vat, which stays open for this client from now on.
    async fn hold(&self, address: VatAddress) -> Result<Rc<Held>, capnp::Error> {
        let link = self.vats.link(address).await.map_err(|error| to_wire(&error))?;
        let held = &mut *self.held.borrow_mut();
        held.retain(|held| held.link.session.end().is_none());
        let known = held.iter().position(|held| Rc::ptr_eq(&held.link, &link));
        let newest = match known {
            Some(place) => held.remove(place),
            None => {
                if held.len() >= MAX_VATS_PER_CLIENT {
                    let unused = held.iter().position(Held::is_unused).ok_or_else(too_many)?;
                    held.remove(unused);
                }
                Rc::new(Held { link })
            }
        };
        held.push(newest.clone());
        Ok(newest)
    }
}

fn too_many() -> capnp::Error {
    let message = format!(
        "one connection to the bridge holds objects of at most {MAX_VATS_PER_CLIENT} vats at once: release those of \
         one, or open another connection"
    );
    capnp::Error::failed(ErrorCode::SessionLimit.to_wire(&message))
}

type Restored = capnp::capability::Response<vat_capnp::vat::restore_results::Owned>;

fn restore_request(
    link: &Link,
    secret: &[u8],
) -> capnp::capability::RemotePromise<vat_capnp::vat::restore_results::Owned> {
    let mut request = link.vat.restore_request();
    request.get().set_secret(secret);
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
        let held = self.hold(reference.address()).await?;
        let restored = restore_request(&held.link, reference.secret.expose());
        // The object that will be restored. From here on what the client calls on it goes to the vat, behind this.
        let object = restored.pipeline.get_capability().as_cap();
        results.get().init_object().set_as_capability(object);
        results.set_pipeline()?;
        let (_, interface_id) = self.vats.answer(&held.link, restored.promise).await?;
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
        let held = self.hold(address).await?;
        results.get().set_vat(capnp_rpc::new_client(BridgedVat { vats: self.vats.clone(), held }));
        Ok(())
    }
}

/// A vat as the clients of a bridge see it: the same but for what belongs to the session below, which is not theirs.
struct BridgedVat {
    vats: Rc<Vats>,
    held: Rc<Held>,
}

impl vat_capnp::vat::Server for BridgedVat {
    async fn restore(
        self: Rc<Self>,
        params: vat_capnp::vat::RestoreParams,
        mut results: vat_capnp::vat::RestoreResults,
    ) -> capnp::Result<()> {
        let restored = restore_request(&self.held.link, params.get()?.get_secret()?);
        drop(params);
        // As in `connect`.
        results.get().init_capability().set_as_capability(restored.pipeline.get_capability().as_cap());
        results.set_pipeline()?;
        let (_, interface_id) = self.vats.answer(&self.held.link, restored.promise).await?;
        results.get().set_interface_id(interface_id);
        Ok(())
    }

    async fn schema(
        self: Rc<Self>,
        params: vat_capnp::vat::SchemaParams,
        mut results: vat_capnp::vat::SchemaResults,
    ) -> capnp::Result<()> {
        let mut request = self.held.link.vat.schema_request();
        request.get().set_interface_id(params.get()?.get_interface_id());
        let answer = request.send().promise.await.map_err(told)?;
        results.get().set_request(answer.get()?.get_request()?);
        Ok(())
    }

    /// The stream would come to the bridge. Content is read by calls, which pass through.
    async fn transfer(
        self: Rc<Self>,
        _: vat_capnp::vat::TransferParams,
        _: vat_capnp::vat::TransferResults,
    ) -> capnp::Result<()> {
        Err(wire_error(&BulkError::Unavailable))
    }
}

fn ended(message: &str) -> RemoteError {
    RemoteError { code: ErrorCode::SessionClosed, message: message.to_owned() }
}

fn panicked() -> RemoteError {
    RemoteError { code: ErrorCode::Internal, message: "the bridge failed while it looked for the vat".to_owned() }
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
