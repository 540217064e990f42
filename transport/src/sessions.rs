//! All sessions of one process: the shell around [`crate::peers`], shared by vats and location servers (DESIGN §6).
//!
//! ```text
//!   Incoming ──── begin ──────► Handshake ── finish ──► Session ┐
//!   TlsIncoming ─ begin_tls ──► Handshake ── finish ──► Session ┤
//!   Session::open ──────────────────────────────────────────────┴─ admit ──► kept until it ends, or refused with a code
//! ```
//!
//! Shutdown is [`drain`](Sessions::drain), and nothing else: nobody is let in any more, calls that come are refused,
//! those under way are answered, sessions end as they become quiet, and at the deadline the rest ends too.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use futures::{channel::oneshot, future::join_all};
use schemas::{Coded, ErrorCode, Network, VatId};
use tokio::time::{Instant, timeout};

use crate::{
    AcceptError, ForeignOptions, Incoming, PeerConnection, Session, SessionError, SessionOptions, TlsIncoming,
    peers::{Arrival, Direction, PeerLimits, Peers},
};

/// All sessions of one process. Clones are handles to the same table.
///
/// Must be used on a tokio `LocalSet`, where its sessions live.
#[derive(Clone)]
pub struct Sessions {
    inner: Rc<Inner>,
}

struct Inner {
    peers: RefCell<Peers<Network>>,
    /// Handshakes under way, by their number. Dropping what is kept here drops the handshake.
    shaking: RefCell<HashMap<u64, oneshot::Sender<()>>>,
    /// Sessions over a network, by their number.
    remote: RefCell<HashMap<u64, Rc<Session>>>,
    /// Sessions with processes of this machine, which are not limited here.
    local: RefCell<HashMap<u64, Rc<Session>>>,
    next_local: Cell<u64>,
    /// Nobody is let in any more: what newcomers are told.
    stopping: Cell<Option<ErrorCode>>,
    /// The times of `peers` count from here.
    origin: Instant,
}

/// Why a connection that was let in to shake hands has become no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] AcceptError),
    /// The greeting failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The peer is not let in, and was told so.
    #[error("{}", .code.meaning())]
    Refused {
        /// Why not.
        code: ErrorCode,
    },
}

impl Coded for AdmitError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Handshake(error) => error.code(),
            Self::Session(error) => error.code(),
            Self::Refused { code } => *code,
        }
    }
}

impl Sessions {
    /// No session yet. `ours` is the id that this side proves.
    #[must_use]
    pub fn new(ours: VatId, limits: PeerLimits) -> Self {
        Self {
            inner: Rc::new(Inner {
                peers: RefCell::new(Peers::new(ours, limits)),
                shaking: RefCell::default(),
                remote: RefCell::default(),
                local: RefCell::default(),
                next_local: Cell::new(0),
                stopping: Cell::new(None),
                origin: Instant::now(),
            }),
        }
    }

    /// Takes other limits from now on. Who is there already stays; newcomers find them.
    pub fn set_limits(&self, limits: PeerLimits) {
        self.inner.peers.borrow_mut().set_limits(limits);
    }

    /// How many there are, those with processes of this machine included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inner.remote.borrow().len() + self.inner.local.borrow().len()
    }

    /// The session with a peer, if there is one that has not ended; of several, the newest.
    #[must_use]
    pub fn with(&self, peer: &VatId) -> Option<Rc<Session>> {
        let number = self.inner.peers.borrow().newest(peer)?;
        self.inner.remote.borrow().get(&number).filter(|session| session.end().is_none()).cloned()
    }

    /// Lets a connection shake hands, in the place of another one if too many do. `None` while stopping: it is refused,
    /// and told so at once.
    #[must_use]
    pub fn begin(&self, incoming: Incoming) -> Option<Handshake> {
        // Dropped is refused.
        let place = self.place(incoming.remote_address())?;
        Some(Handshake { incoming, place })
    }

    /// The same for a connection at a TLS port.
    #[must_use]
    pub fn begin_tls(&self, incoming: TlsIncoming) -> Option<Handshake<TlsIncoming>> {
        // Dropped is hung up on, before anything was spent on it.
        let place = self.place(incoming.remote_address())?;
        Some(Handshake { incoming, place })
    }

    fn place(&self, address: SocketAddr) -> Option<Place> {
        if self.inner.stopping.get().is_some() {
            return None;
        }
        let begun = self.inner.peers.borrow_mut().begin_handshake(Network::of(address.ip()));
        let (sender, dropped) = oneshot::channel();
        let mut shaking = self.inner.shaking.borrow_mut();
        shaking.insert(begun.number, sender);
        begun.drops.and_then(|number| shaking.remove(&number));
        Some(Place { sessions: self.clone(), number: begun.number, dropped })
    }

    /// Takes a session that has just begun into the table, until it ends. The peer was seen at `address`.
    ///
    /// # Errors
    /// Why it was not taken. It has ended then, and its peer was told.
    pub fn admit(&self, session: Session, direction: Direction, address: SocketAddr) -> Result<Rc<Session>, ErrorCode> {
        self.judge(&session, direction, address).inspect_err(|code| session.dismiss(*code)).map(|number| {
            let session = Rc::new(session);
            self.inner.remote.borrow_mut().insert(number, session.clone());
            let (closed, inner) = (session.when_closed(), Rc::downgrade(&self.inner));
            tokio::task::spawn_local(async move {
                closed.await;
                if let Some(inner) = inner.upgrade() {
                    inner.peers.borrow_mut().ended(number);
                    inner.remote.borrow_mut().remove(&number);
                }
            });
            session
        })
    }

    fn judge(&self, session: &Session, direction: Direction, address: SocketAddr) -> Result<u64, ErrorCode> {
        if let Some(code) = self.inner.stopping.get() {
            return Err(code);
        }
        let peer = session.peer();
        let arrival = Arrival {
            peer: peer.id,
            network: Network::of(address.ip()),
            direction,
            epoch: peer.epoch,
            incarnation: peer.incarnation,
            token: session.resume_token(),
            resumes: session.resumes(),
        };
        let remote = self.inner.remote.borrow();
        let idle_since = |number| {
            let since = remote.get(&number)?.idle_since()?;
            Some(since.saturating_duration_since(self.inner.origin))
        };
        let now = self.inner.origin.elapsed();
        let admission = self.inner.peers.borrow_mut().admit(now, arrival, idle_since)?;
        for (number, code) in admission.ends {
            if let Some(old) = remote.get(&number) {
                old.dismiss(code);
            }
        }
        Ok(admission.number)
    }

    /// Keeps a session with a process of this machine until it ends, however many there are: somebody must be able to
    /// look, and to end it.
    ///
    /// # Errors
    /// As [`admit`](Self::admit), while stopping.
    pub fn admit_local(&self, session: Session) -> Result<Rc<Session>, ErrorCode> {
        if let Some(code) = self.inner.stopping.get() {
            session.dismiss(code);
            return Err(code);
        }
        let number = self.inner.next_local.replace(self.inner.next_local.get() + 1);
        let session = Rc::new(session);
        self.inner.local.borrow_mut().insert(number, session.clone());
        let (closed, inner) = (session.when_closed(), Rc::downgrade(&self.inner));
        tokio::task::spawn_local(async move {
            closed.await;
            if let Some(inner) = inner.upgrade() {
                inner.local.borrow_mut().remove(&number);
            }
        });
        Ok(session)
    }

    /// Ends everything in good order. From now on newcomers and new calls are refused with `code`. Every session ends
    /// once what it was asked before is answered and sent; what is not within `answers` ends without, and is given
    /// `goodbyes` to take what it was sent.
    pub async fn drain(&self, code: ErrorCode, answers: Duration, goodbyes: Duration) {
        self.inner.stopping.set(Some(code));
        let all = self.all();
        all.iter().for_each(|session| session.drain(code));
        let closed = join_all(all.iter().map(|session| session.closed()));
        tokio::pin!(closed);
        if timeout(answers, &mut closed).await.is_err() {
            tracing::debug!(?answers, "some calls were not answered before the end");
            all.iter().for_each(|session| session.close());
            // Whoever is gone without a word learns of it by its own time-out.
            let _ = timeout(goodbyes, closed).await;
        }
    }

    fn all(&self) -> Vec<Rc<Session>> {
        let (remote, local) = (self.inner.remote.borrow(), self.inner.local.borrow());
        remote.values().chain(local.values()).cloned().collect()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("count", &self.count()).finish_non_exhaustive()
    }
}

/// A connection that has not proven its key yet, in a place among those. Dropping it refuses it.
pub struct Handshake<I = Incoming> {
    incoming: I,
    place: Place,
}

impl Handshake {
    /// Shakes hands, greets, and takes the session into the table. `options` says what this side brings to it.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub async fn finish(
        self,
        options: impl FnOnce(&PeerConnection) -> SessionOptions,
    ) -> Result<Rc<Session>, AdmitError> {
        let Self { incoming, mut place } = self;
        let mut shaken = None;
        // The greeting costs no more than a session does, but takes as long as the peer likes: it still counts.
        let greeted = place
            .keep(async {
                let connection = incoming.accept().await?;
                shaken = Some(connection.clone());
                let (address, options) = (connection.remote_address(), options(&connection));
                Ok((Session::accept(connection, options).await?, address))
            })
            .await;
        let (session, address) = greeted.inspect_err(|error| {
            if let (AdmitError::Refused { code }, Some(connection)) = (error, &shaken) {
                connection.close(*code);
            }
        })?;
        place.give_up_for(session, address)
    }
}

impl Handshake<TlsIncoming> {
    /// Shakes hands, and takes the session of the foreign client into the table. `options` says what this side brings
    /// to it.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub async fn finish(self, options: ForeignOptions) -> Result<Rc<Session>, AdmitError> {
        let Self { incoming, mut place } = self;
        let address = incoming.remote_address();
        let stream = place.keep(async { Ok(incoming.accept().await?) }).await?;
        place.give_up_for(Session::accept_foreign(stream, options), address)
    }
}

impl<I: fmt::Debug> fmt::Debug for Handshake<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

/// A place among the handshakes, until it is dropped, or needed for another one.
struct Place {
    sessions: Sessions,
    number: u64,
    /// Completes when another has this place.
    dropped: oneshot::Receiver<()>,
}

impl Place {
    /// Shakes hands as long as the place is kept.
    async fn keep<T>(&mut self, work: impl Future<Output = Result<T, AdmitError>>) -> Result<T, AdmitError> {
        tokio::select! {
            biased;
            _ = &mut self.dropped => Err(AdmitError::Refused { code: ErrorCode::SessionLimit }),
            done = work => done,
        }
    }

    /// Exchanges it for one among the sessions.
    fn give_up_for(self, session: Session, address: SocketAddr) -> Result<Rc<Session>, AdmitError> {
        let sessions = self.sessions.clone();
        drop(self);
        sessions.admit(session, Direction::Accepted, address).map_err(|code| AdmitError::Refused { code })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let inner = &self.sessions.inner;
        inner.peers.borrow_mut().end_handshake(self.number);
        inner.shaking.borrow_mut().remove(&self.number);
    }
}
