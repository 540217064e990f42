//! References that outlive sessions (DESIGN §6): a [`LiveRef`] is made from a sturdyref and gives the capability
//! that it stands for *now*.
//!
//! Capabilities are fail-stop: when a session ends, all of its capabilities break together, and whether a call that
//! had no answer was carried out is not known. That cannot be repaired here, and is not hidden: nothing in this
//! module ever makes a call twice. What it does is to find the vat again, open a session, and restore the
//! reference, so that the *next* call finds a capability that works. Who holds one is told of every break, and of
//! every return, in that order, with a number that only grows.
//!
//! ```text
//!   LiveRefs ─── of(sturdyref) ──► LiveRef ── get() ──► Held ── capability(), call()
//!      │                              └───── events() ─► Live 1, Broken 1, Failed, Live 2, …
//!      └─ one link per vat: one session, one attempt at a time, whoever asks
//! ```
//!
//! When to try again is decided in [`crate::reconnect`]; clock, randomness and the way to a session
//! ([`LiveNetwork`]) are parameters.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    rc::{Rc, Weak},
};

use capnp::{
    capability::{Client, FromClientHook},
    private::capability::ClientHook,
};
use futures::{
    FutureExt,
    future::{LocalBoxFuture, Shared},
};
use schemas::{RemoteError, Secret, SturdyRef, VatId, vat_capnp};
use transport::{Session, SessionEnd};

use board::Reader;
pub use error::LiveError;
use link::{Interest, Link, Up, View, World};
pub use network::{Attempted, Finder, LiveNetwork};

use crate::{
    clock::{Clock, Randomness, SystemClock, SystemRandomness},
    failure::Failure,
    reconnect::ReconnectTiming,
};

mod board;
mod error;
mod link;
mod network;

/// How live references go about it. The default is right for usual networks.
#[non_exhaustive]
pub struct LiveConfig {
    /// The pace of attempts.
    pub timing: ReconnectTiming,
    /// Where the time comes from.
    pub clock: Rc<dyn Clock>,
    /// Where random numbers come from; they spread attempts.
    pub randomness: Box<dyn Randomness>,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            timing: ReconnectTiming::default(),
            clock: Rc::new(SystemClock::default()),
            randomness: Box::new(SystemRandomness),
        }
    }
}

/// Makes live references, which share one session for each vat. Clones are handles to the same table.
///
/// All of it must run inside a tokio `LocalSet`.
#[derive(Clone)]
pub struct LiveRefs {
    world: Rc<World>,
    links: Rc<RefCell<HashMap<VatId, Weak<Link>>>>,
}

impl LiveRefs {
    /// A table without any reference. Sessions come from `network`.
    #[must_use]
    pub fn new(network: impl LiveNetwork + 'static, config: LiveConfig) -> Self {
        let LiveConfig { timing, clock, randomness } = config;
        let world = World { network: Box::new(network), clock, random: RefCell::new(randomness), timing };
        Self { world: Rc::new(world), links: Rc::default() }
    }

    /// A live reference. Nothing is dialled until somebody asks it for its capability or watches it.
    #[must_use]
    pub fn of(&self, reference: &SturdyRef) -> LiveRef {
        let link = self.link(reference.id);
        link.set_hints(&reference.hints);
        let inner = Inner { link, secret: reference.secret.clone(), restoring: RefCell::new(None) };
        LiveRef { inner: Rc::new(inner) }
    }

    /// Tells that a vat has come to this epoch, as a signed record of it says, say. A session with an older copy of it
    /// is ended, and the references go on with the newer one.
    pub fn saw_epoch(&self, id: VatId, epoch: u64) {
        let link = self.links.borrow().get(&id).and_then(Weak::upgrade);
        if let Some(link) = link {
            link.saw(epoch);
        }
    }

    fn link(&self, id: VatId) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        if let Some(link) = links.get(&id).and_then(Weak::upgrade) {
            return link;
        }
        // Those that nobody holds any more go when there are as many of them as of others, at most.
        if links.len() == links.capacity() {
            links.retain(|_, link| link.strong_count() > 0);
        }
        let link = Link::new(id, self.world.clone());
        links.insert(id, Rc::downgrade(&link));
        link
    }
}

impl fmt::Debug for LiveRefs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveRefs").field("vats", &self.links.borrow().len()).finish_non_exhaustive()
    }
}

/// A reference that outlives sessions. Clones share everything.
///
/// The session with its vat is kept open as long as any reference to an object of that vat, or anything that one
/// of them gave, is held.
#[derive(Clone)]
pub struct LiveRef {
    inner: Rc<Inner>,
}

struct Inner {
    link: Rc<Link>,
    secret: Secret,
    /// The restoring of this reference in the session of a generation, under way or done.
    restoring: RefCell<Option<(u64, Restoring)>>,
}

type Restoring = Shared<LocalBoxFuture<'static, Result<Restored, LiveError>>>;

/// What a sturdyref turned out to be.
struct Restored {
    hook: Box<dyn ClientHook>,
    interface_id: u64,
}

impl Clone for Restored {
    fn clone(&self) -> Self {
        Self { hook: self.hook.add_ref(), interface_id: self.interface_id }
    }
}

impl LiveRef {
    /// The vat that it leads to.
    #[must_use]
    pub fn id(&self) -> VatId {
        self.inner.link.id()
    }

    /// The capability, over the session that is open, or over a new one.
    ///
    /// Waits for the attempt that is under way or is due next, for everybody the same one, and gives its reason if
    /// it fails. Ends within the wait between attempts and the time that one takes
    /// ([`ReconnectTiming`](crate::reconnect::ReconnectTiming)); who wants to wait for less drops it.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn get(&self) -> Result<Held, LiveError> {
        let up = self.inner.link.reach().await?;
        let restored = self.inner.restore(&up).await?;
        Ok(Held { up, restored })
    }

    /// What becomes of it from now on. As long as this is held, the vat is connected to again whenever it is lost.
    #[must_use]
    pub fn events(&self) -> LiveEvents {
        let mut view = self.inner.link.view();
        // An attempt that failed before is no news.
        let attempts = view.look().attempts;
        let interest = self.inner.link.want();
        LiveEvents { inner: self.inner.clone(), view, live: None, generation: 0, attempts, _interest: interest }
    }
}

impl Inner {
    /// Restores the reference in the session of `up`, once, however many ask.
    async fn restore(&self, up: &Rc<Up>) -> Result<Restored, LiveError> {
        let restoring = {
            let mut slot = self.restoring.borrow_mut();
            match &*slot {
                Some((generation, restoring)) if *generation == up.generation => restoring.clone(),
                _ => {
                    let restoring = restore(up.clone(), self.secret.clone()).boxed_local().shared();
                    *slot = Some((up.generation, restoring.clone()));
                    restoring
                }
            }
        };
        let result = restoring.await;
        if result.is_err() {
            // A refusal is not for ever: who asks again is answered by the vat again.
            self.restoring.borrow_mut().take_if(|(generation, _)| *generation == up.generation);
        }
        result
    }
}

async fn restore(up: Rc<Up>, secret: Secret) -> Result<Restored, LiveError> {
    let mut request = up.vat.restore_request();
    request.get().set_secret(secret.expose());
    let answer = up.session.or_ended(request.send().promise).await.map_err(LiveError::Ended)?;
    let read = answer.and_then(|answer| {
        let results = answer.get()?;
        let hook = results.get_capability().get_as_capability::<Client>()?.hook;
        Ok(Restored { hook, interface_id: results.get_interface_id() })
    });
    read.map_err(|error| match (Failure::of_call(&error), up.session.end()) {
        (_, Some(end)) => LiveError::Ended(end),
        (Failure::Ended(remote) | Failure::Remote(remote), None) => LiveError::Refused(remote),
        // `of_call` gives no other; the words are what counts.
        (other, None) => {
            LiveError::Refused(RemoteError { code: schemas::Coded::code(&other), message: other.to_string() })
        }
    })
}

impl fmt::Debug for LiveRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveRef(vat://{}#{})", self.id(), self.inner.secret.hash())
    }
}

/// What a [`LiveRef`] gave: a capability and the session that it belongs to. The session stays open as long as this is
/// held; when it ends, the capability is broken for good, and the reference gives another.
#[derive(Clone)]
pub struct Held {
    up: Rc<Up>,
    restored: Restored,
}

impl Held {
    /// The capability.
    #[must_use]
    pub fn capability<C: FromClientHook>(&self) -> C {
        C::new(self.restored.hook.add_ref())
    }

    /// The id of its interface, as the vat says.
    #[must_use]
    pub fn interface_id(&self) -> u64 {
        self.restored.interface_id
    }

    /// The vat that it belongs to.
    #[must_use]
    pub fn vat(&self) -> vat_capnp::vat::Client {
        self.up.vat.clone()
    }

    /// The session that it belongs to.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.up.session
    }

    /// Counts the sessions with this vat, from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.up.generation
    }

    /// The epoch that the vat greeted with.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.up.session.peer().epoch
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("generation", &self.generation()).field("session", self.session()).finish()
    }
}

/// What became of a live reference.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LiveEvent {
    /// Its capability works: [`LiveRef::get`] gives it at once.
    Live {
        /// Counts the sessions with this vat, from 1. Never seen twice.
        generation: u64,
        /// The epoch that the vat greeted with.
        epoch: u64,
    },
    /// The session ended, and every capability of it is broken already. Always of the generation that was told to be
    /// live last.
    Broken {
        /// Which.
        generation: u64,
        /// Why the session ended; if several have since, the last one.
        reason: SessionEnd,
    },
    /// An attempt has failed; there will be another.
    Failed(LiveError),
    /// The vat was reached and does not restore the reference: it was revoked, or has expired, say. It is not asked
    /// again in this session.
    Refused {
        /// Of which session.
        generation: u64,
        /// What the vat said.
        error: LiveError,
    },
}

/// Tells what becomes of a live reference, in order.
///
/// Who is slow is not told everything, and never anything wrong: `Live` and `Broken` alternate, beginning with
/// `Live`, generations grow, and what was told last is what holds, once [`next`](Self::next) has nothing more to say.
pub struct LiveEvents {
    inner: Rc<Inner>,
    view: Reader<View>,
    /// The generation that was told to be live, and not to be broken.
    live: Option<u64>,
    /// The last generation of which anything was told.
    generation: u64,
    /// How many attempts were over when something was told last.
    attempts: u64,
    _interest: Interest,
}

impl LiveEvents {
    /// Waits for the next event. May be dropped without losing one.
    pub async fn next(&mut self) -> LiveEvent {
        loop {
            let view = self.view.look().clone();
            if let Some(event) = self.news(view).await {
                return event;
            }
            self.view.changed().await;
        }
    }

    async fn news(&mut self, view: View) -> Option<LiveEvent> {
        match (self.live, view.up) {
            (Some(live), Some(up)) if up.generation == live => None,
            (Some(live), _) => {
                self.live = None;
                let reason = view.broken.map_or(SessionEnd::Local, |(_, reason)| reason);
                Some(LiveEvent::Broken { generation: live, reason })
            }
            (None, Some(up)) if up.generation > self.generation => {
                let restored = self.inner.restore(&up).await;
                let generation = up.generation;
                (self.generation, self.attempts) = (generation, view.attempts);
                match restored {
                    Ok(_) => {
                        self.live = Some(generation);
                        Some(LiveEvent::Live { generation, epoch: up.session.peer().epoch })
                    }
                    // The link tells of it, or has a new session already.
                    Err(LiveError::Ended(_)) => None,
                    Err(error) => Some(LiveEvent::Refused { generation, error }),
                }
            }
            (None, _) => {
                let failure = view.failure.filter(|_| view.attempts > self.attempts)?;
                self.attempts = view.attempts;
                Some(LiveEvent::Failed(failure))
            }
        }
    }
}

impl fmt::Debug for LiveEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveEvents")
            .field("generation", &self.generation)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}
