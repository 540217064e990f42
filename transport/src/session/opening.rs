//! A session that is begun and not greeted: calls need not wait for the peer's greeting.
//!
//! Both sides greet at once and neither waits for the other (see [`hello`](crate::hello)). So the side that dials says
//! hello and makes its first calls in one piece, which saves a round trip. It knows whom it calls: the handshake has proven
//! that. A peer that speaks another version refuses our greeting and never reads the calls behind it; what it says itself is
//! read only behind its greeting.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use capnp::capability::FromClientHook;
use futures::{FutureExt, channel::oneshot};
use quinn::RecvStream;
use schemas::Coded;
use tokio::io::{AsyncRead, ReadBuf};

use super::{Session, SessionEnd, SessionError, SessionOptions, explain_quic, quic_carrier, within};
use crate::{
    hello::{self, HelloError, Peer},
    peer_connection::PeerConnection,
    resume::ResumeToken,
};

/// A session whose peer has not greeted yet. Dropping it closes it.
pub struct Opening {
    session: Session,
    connection: PeerConnection,
    input: RecvStream,
    /// Takes the stream to the session once the greeting is read.
    behind_greeting: oneshot::Sender<RecvStream>,
    hello_deadline: std::time::Duration,
}

impl Opening {
    pub(super) async fn begin(
        connection: PeerConnection,
        options: SessionOptions,
        lost: Option<ResumeToken>,
    ) -> Result<Self, SessionError> {
        if !connection.claim_session() {
            return Err(SessionError::SecondSession);
        }
        let hello_deadline = options.limits.hello_deadline;
        let opened =
            async { connection.quinn().open_bi().await.map_err(|error| HelloError::Broken(Arc::new(error.into()))) };
        let (output, input) = match within(hello_deadline, opened).await {
            Ok(streams) => streams,
            Err(error) => return Err(failed(&connection, error)),
        };
        let (behind_greeting, late) = oneshot::channel();
        let (explain, carrier) = (explain_quic(connection.clone()), quic_carrier(connection.clone()));
        // What is not known yet is not shown to anybody before it is.
        let peer =
            Peer { id: Some(connection.peer()), epoch: 0, incarnation: [0; 16], program: String::new(), resumes: None };
        let greeting = hello::encode(&options.greeting, lost);
        let SessionOptions { bootstrap, gate, limits, .. } = options;
        let late = Box::new(LateInput::Waiting(late));
        let mut session = Session::start(late, Box::new(output), carrier, explain, peer, bootstrap, gate, limits);
        session.resumes = lost;
        session.wire.outbox.borrow_mut().push_greeting(&greeting);
        Ok(Self { session, connection, input, behind_greeting, hello_deadline })
    }

    /// The peer's bootstrap capability; see [`Session::bootstrap`].
    #[must_use]
    pub fn bootstrap<C: FromClientHook>(&self) -> C {
        self.session.bootstrap()
    }

    /// Waits for the peer's greeting.
    ///
    /// # Errors
    /// [`SessionError`]. The connection is closed then, the peer told why, and every call has failed.
    pub async fn greeted(mut self) -> Result<Session, SessionError> {
        let greeting = Box::pin(hello::receive(&mut self.input, Some(self.connection.peer())));
        match within(self.hello_deadline, greeting).await {
            Ok(peer) => {
                self.session.resumes = self.session.resumes.or(peer.resumes);
                self.session.peer = peer;
                // Refused only if the session has ended meanwhile, which whoever uses it will find out.
                let _ = self.behind_greeting.send(self.input);
                Ok(self.session)
            }
            Err(error) => {
                let error = failed(&self.connection, error);
                self.session.wire.finish(match &error {
                    SessionError::Ended(end) => end.clone(),
                    SessionError::Hello(error) => SessionEnd::Greeting(Arc::new(error.clone())),
                    _ => SessionEnd::Local,
                });
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Closes the connection over a failed greeting, unless it is closed.
pub(super) fn failed(connection: &PeerConnection, error: HelloError) -> SessionError {
    // What the peer said explains more than what became of the stream.
    let error = match (error, connection.close_reason()) {
        (HelloError::Broken(_), Some(reason)) => SessionError::Ended(reason),
        (error, _) => SessionError::Hello(error),
    };
    connection.close_because(error.code(), &error.to_string());
    error
}

/// A stream that can be read once the greeting was taken from it.
enum LateInput {
    Waiting(oneshot::Receiver<RecvStream>),
    There(RecvStream),
}

impl AsyncRead for LateInput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut *self {
                Self::There(stream) => return Pin::new(stream).poll_read(context, buffer),
                Self::Waiting(waiting) => match waiting.poll_unpin(context) {
                    Poll::Ready(Ok(stream)) => *self = Self::There(stream),
                    // Nobody waits for the greeting any more: the session is told why by whoever did.
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}
