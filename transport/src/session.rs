//! A session: one Cap'n Proto connection between two peers, on a stream of QUIC or of a local socket (DESIGN §6).
//!
//! Everything of a session runs in one task on the caller's thread (`LocalSet`), so objects need no locks, and
//! a session costs nothing but what it does. A panic in that task, be it of an object or of the RPC layer, ends
//! this session and no other.

use std::{cell::RefCell, fmt, future::Future, path::Path, rc::Rc, sync::Arc};

use capnp::capability::{Client, FromClientHook};
use futures::channel::oneshot;
use schemas::{ErrorCode, Secret, VatId};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};

pub use end::{SessionEnd, SessionError, Violation};
pub use foreign::{ForeignOptions, ForeignStream, Restore};
pub use opening::Opening;

use crate::{
    OutputGate, SessionLimits,
    bulk::{BulkError, BulkReader, BulkSource, Desk},
    connection::{Connection, Explain, Wire},
    hello::{self, Greeting, HelloError, Peer},
    local::{LocalStream, dial_local},
    peer_connection::{PeerConnection, Traffic},
    resume::ResumeToken,
    rpc::System,
};
use driver::{Carrier, Driver, NextStream, Output, Progress, Rpc};
use ended::{Ended, announcement};
use steps::StepWaker;

mod driver;
mod end;
mod ended;
mod foreign;
mod opening;
pub(crate) mod steps;

/// What this side brings to a session.
pub struct SessionOptions {
    /// What we say of ourselves.
    pub greeting: Greeting,
    /// What the peer gets when it asks for our bootstrap capability; `None` if we only call.
    pub bootstrap: Option<Client>,
    /// Holds back what we say until what caused it is durable.
    pub gate: OutputGate,
    /// What the peer may cost us.
    pub limits: SessionLimits,
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionOptions")
            .field("greeting", &self.greeting)
            .field("bootstrap", &self.bootstrap.is_some())
            .field("gate", &self.gate)
            .field("limits", &self.limits)
            .finish()
    }
}

/// A running session. Dropping it closes it, and breaks every capability that came through it.
pub struct Session {
    wire: Rc<Wire>,
    rpc: Rc<Rpc>,
    peer: Peer,
    /// What it runs over; `None` on a local socket.
    connection: Option<PeerConnection>,
    /// What names this session to its peer when it is lost; `None` on a local socket.
    token: Option<ResumeToken>,
    /// The session that the dialler said it had lost.
    resumes: Option<ResumeToken>,
    /// What is offered to its peer; `None` where there is but one stream.
    desk: Option<Rc<Desk>>,
    ended: Ended,
}

impl Session {
    /// Begins the session of a connection that this side dialled.
    ///
    /// Must be called on a tokio `LocalSet`, where the session then lives.
    ///
    /// # Errors
    /// [`SessionError`]. The connection is closed then, and the peer told why.
    pub async fn open(connection: PeerConnection, options: SessionOptions) -> Result<Self, SessionError> {
        Self::open_again(connection, options, None).await
    }

    /// Begins a session in place of one with the same peer that was lost: `lost` is that session's
    /// [`resume_token`](Self::resume_token).
    ///
    /// The peer ends its half of the lost one at once, instead of keeping it until it times out. Nothing else
    /// comes back: capabilities are restored anew. If the peer does not know the token, this is a session like
    /// any other.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_again(
        connection: PeerConnection,
        options: SessionOptions,
        lost: Option<ResumeToken>,
    ) -> Result<Self, SessionError> {
        Self::begin(connection, options, lost).await?.greeted().await
    }

    /// The same without waiting for the peer's greeting: calls can be made at once, and leave together with our own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn begin(
        connection: PeerConnection,
        options: SessionOptions,
        lost: Option<ResumeToken>,
    ) -> Result<Opening, SessionError> {
        Opening::begin(connection, options, lost).await
    }

    /// Begins the session of a connection that this side accepted.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn accept(connection: PeerConnection, options: SessionOptions) -> Result<Self, SessionError> {
        let stream = connection.clone();
        Self::over_quic(connection, options, None, async move { stream.quinn().accept_bi().await }).await
    }

    /// Begins a session with the process that listens on the local socket `path`, which must belong to the
    /// same user.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`SessionError::Local`].
    pub async fn open_local(path: &Path, options: SessionOptions) -> Result<Self, SessionError> {
        let stream = dial_local(path).await?;
        Self::over_local(stream, options).await
    }

    /// Begins a session on an accepted local connection.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn accept_local(stream: LocalStream, options: SessionOptions) -> Result<Self, SessionError> {
        Self::over_local(stream, options).await
    }

    async fn over_quic(
        connection: PeerConnection,
        options: SessionOptions,
        lost: Option<ResumeToken>,
        stream: impl Future<Output = Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>,
    ) -> Result<Self, SessionError> {
        if !connection.claim_session() {
            return Err(SessionError::SecondSession);
        }
        // On the heap: who waits here in a task of its own keeps the task, and its size, as long as the session.
        let greeted = Box::pin(async {
            let (mut output, mut input) = stream.await.map_err(|error| HelloError::Broken(Arc::new(error.into())))?;
            let peer = greet(&mut input, &mut output, (&options.greeting, lost), Some(connection.peer())).await?;
            Ok((input, output, peer))
        });
        match within(options.limits.hello_deadline, greeted).await {
            Ok((input, output, peer)) => {
                let explain = explain_quic(connection.clone());
                let carrier = quic_carrier(connection);
                let SessionOptions { bootstrap, gate, limits, .. } = options;
                let mut session =
                    Self::start(Box::new(input), Box::new(output), carrier, explain, peer, bootstrap, gate, limits);
                session.resumes = lost.or(session.peer.resumes);
                Ok(session)
            }
            Err(error) => Err(opening::failed(&connection, error)),
        }
    }

    async fn over_local(stream: LocalStream, options: SessionOptions) -> Result<Self, SessionError> {
        let (mut input, mut output) = stream.into_split();
        let greeted = greet(&mut input, &mut output, (&options.greeting, None), None);
        let peer = within(options.limits.hello_deadline, greeted).await?;
        let explain: Explain = Box::new(|error| SessionEnd::Lost(Arc::new(error)));
        let SessionOptions { bootstrap, gate, limits, .. } = options;
        let output: Box<dyn AsyncWrite + Unpin> = Box::new(output);
        Ok(Self::start(Box::new(input), Box::new(output), Carrier::Local, explain, peer, bootstrap, gate, limits))
    }

    #[allow(clippy::too_many_arguments)] // Each is another part of the session.
    fn start(
        input: Box<dyn AsyncRead + Unpin>,
        output: Box<dyn Output>,
        carrier: Carrier,
        explain: Explain,
        peer: Peer,
        bootstrap: Option<Client>,
        gate: OutputGate,
        limits: SessionLimits,
    ) -> Self {
        let connection = match &carrier {
            Carrier::Quic { connection, .. } => Some(connection.clone()),
            Carrier::Local => None,
        };
        let token = connection.as_ref().and_then(|connection| ResumeToken::of(connection.quinn()));
        let steps = Arc::new(StepWaker::default());
        let wire = Wire::new(input, gate, limits, steps.clone(), explain);
        let system = System::new(Box::new(Connection::new(wire.clone())), bootstrap);
        let desk = match &carrier {
            Carrier::Quic { connection, .. } => Some(Desk::new(connection.clone(), wire.clone())),
            Carrier::Local => None,
        };
        let disconnector = system.disconnector();
        let rpc = Rc::new(Rpc { system: RefCell::new(Some(system)), wanted: RefCell::default() });
        let (last_word, ended) = announcement();
        let driver = Driver {
            wire: wire.clone(),
            rpc: rpc.clone(),
            disconnector,
            output,
            carrier,
            desk: desk.clone(),
            steps,
            last_word,
            progress: Progress::default(),
            peer: peer.id,
        };
        tokio::task::spawn_local(driver.run());
        Self { wire, rpc, peer, connection, token, resumes: None, desk, ended }
    }

    /// The peer's bootstrap capability. Calls on it may be made at once; they fail if the peer offers none, and
    /// with the session when that ends.
    #[must_use]
    pub fn bootstrap<C: FromClientHook>(&self) -> C {
        let ended = || self.wire.end().unwrap_or(SessionEnd::Local).to_exception();
        let client: Client = match self.rpc.system.try_borrow_mut() {
            Ok(mut slot) => match slot.as_mut() {
                Some(system) => system.bootstrap(),
                None => capnp_rpc::new_broken_cap(ended()),
            },
            // Asked by an object of this very session, within its own call: the driver answers after that.
            Err(_) => {
                let (sender, receiver) = oneshot::channel();
                self.rpc.wanted.borrow_mut().push(sender);
                let wire = self.wire.clone();
                capnp_rpc::new_future_client(async move {
                    receiver.await.map_err(|_| wire.end().unwrap_or(SessionEnd::Local).to_exception())
                })
            }
        };
        C::new(client.hook)
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The id that the peer has proven; `None` on a local socket.
    #[must_use]
    pub fn peer_id(&self) -> Option<VatId> {
        self.peer.id
    }

    /// What this session is called when it was lost and another takes its place ([`open_again`](Self::open_again)).
    /// Both ends have the same one. `None` on a local socket.
    #[must_use]
    pub fn resume_token(&self) -> Option<ResumeToken> {
        self.token
    }

    /// The session with the same peer that this one takes the place of, if whoever dialled said so.
    #[must_use]
    pub fn resumes(&self) -> Option<ResumeToken> {
        self.resumes
    }

    /// Why the session has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<SessionEnd> {
        self.wire.end()
    }

    /// Waits until the session has ended, with everything that was released delivered if that was possible, and
    /// the connection closed. Those who wait are woken in the order in which they began to.
    pub async fn closed(&self) -> SessionEnd {
        self.when_closed().await
    }

    /// The same, for who does not want to hold the session meanwhile.
    pub fn when_closed(&self) -> impl Future<Output = SessionEnd> + 'static {
        let (ended, wire) = (self.ended.wait(), self.wire.clone());
        // Without a last word the thread's tasks were dropped, and the session with them.
        async move { ended.await.or_else(|| wire.end()).unwrap_or(SessionEnd::Local) }
    }

    /// Does `work`, unless the session ends before it is done.
    ///
    /// Calls fail by themselves when their session ends; this is for work that has other things to wait for.
    ///
    /// # Errors
    /// Why the session ended.
    pub async fn or_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, SessionEnd> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            end = self.closed() => Err(end),
        }
    }

    /// Closes the session: what was released is delivered, what was not is never said, the peer is told.
    /// [`closed`](Self::closed) waits until that is done.
    pub fn close(&self) {
        self.wire.finish(SessionEnd::Local);
    }

    /// Takes no more calls, which are answered with `code`, and ends the session when all that were taken are answered
    /// and their answers on their way. How long that may take is up to the caller.
    pub fn drain(&self, code: ErrorCode) {
        self.wire.drain(code);
    }

    /// Since when nothing that the peer has asked for is under way; `None` while something is.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        self.wire.idle_since()
    }

    /// How many of the peer's capabilities this side keeps, if that is all that there is between the two: no call is under
    /// way in either direction, and the peer keeps nothing of ours. `None` otherwise.
    #[must_use]
    pub fn imports_if_quiet(&self) -> Option<usize> {
        self.wire.imports_if_quiet()
    }

    /// Offers bulk content to the peer: whoever shows `token` on this connection gets it, once, from the offset that it
    /// asks for. The token goes to the peer in the answer to a call, and nowhere else.
    ///
    /// # Errors
    /// [`BulkError::Unavailable`] where sessions have one stream only, and [`BulkError::TooMany`].
    pub fn offer(&self, token: &Secret, content: Box<dyn BulkSource>) -> Result<(), BulkError> {
        self.desk.as_ref().ok_or(BulkError::Unavailable)?.offer(token, content)
    }

    /// Fetches the bulk content that the peer has given `token` for, from byte `offset`.
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn fetch(&self, token: &Secret, offset: u64) -> Result<BulkReader, BulkError> {
        let desk = self.desk.as_ref().ok_or(BulkError::Unavailable)?;
        BulkReader::open(desk.connection(), token, offset).await
    }

    /// What has gone over the connection so far, to tell a peer that is silent from one that has nothing to say;
    /// `None` on a local socket.
    #[must_use]
    pub fn traffic(&self) -> Option<Traffic> {
        self.connection.as_ref().and_then(PeerConnection::traffic)
    }

    /// Ends the session at once and tells the peer why: what has not reached it is lost. For sessions whose peer is
    /// not expected to answer, or has no claim to be waited for.
    pub fn dismiss(&self, code: ErrorCode) {
        self.wire.finish(SessionEnd::Dismissed { code });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer).field("end", &self.end()).finish_non_exhaustive()
    }
}

/// Both sides greet at once.
async fn greet(
    input: &mut (impl AsyncRead + Unpin),
    output: &mut (impl AsyncWrite + Unpin),
    (greeting, lost): (&Greeting, Option<ResumeToken>),
    id: Option<VatId>,
) -> Result<Peer, HelloError> {
    let (peer, ()) = tokio::try_join!(hello::receive(input, id), hello::send(output, greeting, lost))?;
    Ok(peer)
}

async fn within<T>(
    deadline: std::time::Duration,
    work: impl Future<Output = Result<T, HelloError>>,
) -> Result<T, HelloError> {
    timeout(deadline, work).await.unwrap_or(Err(HelloError::Timeout { after: deadline }))
}

fn explain_quic(connection: PeerConnection) -> Explain {
    Box::new(move |error| connection.close_reason().unwrap_or_else(|| SessionEnd::Lost(Arc::new(error))))
}

fn quic_carrier(connection: PeerConnection) -> Carrier {
    Carrier::Quic { next_stream: Some(next_stream(&connection)), connection }
}

fn next_stream(connection: &PeerConnection) -> NextStream {
    let streams = connection.clone();
    Box::pin(async move { streams.quinn().accept_bi().await })
}
