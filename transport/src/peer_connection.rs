//! A connection whose both ends have proven their keys.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use quinn::{ConnectionError, VarInt};
use schemas::{ErrorCode, RemoteError, VatId};

use crate::{
    endpoint::{canonical, progress::Progress},
    limits,
    session::SessionEnd,
    text::printable,
};

/// A QUIC connection to a peer that has proven its id. Clones are handles to the same connection; it is closed
/// when the last handle and the last stream are gone.
#[derive(Clone)]
pub struct PeerConnection {
    inner: Arc<Inner>,
}

struct Inner {
    quinn: quinn::Connection,
    peer: VatId,
    /// Whether the one session of this connection was begun.
    has_session: AtomicBool,
}

impl PeerConnection {
    /// The peer has proven its key: from now on it may send as much ahead as a session needs.
    pub(crate) fn new(quinn: quinn::Connection, peer: VatId) -> Self {
        quinn.set_receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES));
        Self { inner: Arc::new(Inner { quinn, peer, has_session: AtomicBool::new(false) }) }
    }

    /// The id that the peer has proven.
    #[must_use]
    pub fn peer(&self) -> VatId {
        self.inner.peer
    }

    /// Where the peer is now. Changes when the peer moves to another network.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.inner.quinn.remote_address())
    }

    /// Closes the connection at once and tells the peer why. What was not delivered yet is lost.
    pub fn close(&self, code: ErrorCode) {
        self.close_because(code, code.meaning());
    }

    pub(crate) fn close_because(&self, code: ErrorCode, message: &str) {
        self.inner.quinn.close(close_code(code), &close_reason(code, message));
    }

    /// Waits until the connection is closed, by whomever.
    pub async fn closed(&self) -> SessionEnd {
        connection_end(self.inner.quinn.closed().await)
    }

    /// Why the connection is closed, if it is.
    #[must_use]
    pub fn close_reason(&self) -> Option<SessionEnd> {
        self.inner.quinn.close_reason().map(connection_end)
    }

    /// The QUIC connection itself, for streams beside the session.
    #[must_use]
    pub fn quinn(&self) -> &quinn::Connection {
        &self.inner.quinn
    }

    /// Lets the peer have this many bidirectional streams open at once. More than before are never taken back.
    pub(crate) fn allow_streams(&self, count: u32) {
        self.inner.quinn.set_max_concurrent_bi_streams(VarInt::from_u32(count));
    }

    /// What has gone over it so far.
    pub(crate) fn traffic(&self) -> Option<Traffic> {
        let frames = self.inner.quinn.stats().frame_tx;
        let Progress { sent, acknowledged } = Progress::of(&self.inner.quinn)?;
        Some(Traffic { asked: frames.stream + frames.ping, sent, acknowledged })
    }

    /// Takes the one place for a session; `false` if it is taken.
    pub(crate) fn claim_session(&self) -> bool {
        !self.inner.has_session.swap(true, Ordering::AcqRel)
    }
}

/// What has gone over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// How often something was sent that the peer acknowledges at once if it is there, repetitions included.
    pub asked: u64,
    /// The number of the last packet that was sent.
    pub sent: u64,
    /// The number of the newest packet of which the peer has said that it arrived. Not just anything that comes from
    /// it counts: on a path that is cut in one direction it is still heard, repeating itself.
    pub acknowledged: u64,
}

impl fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerConnection({} at {})", self.inner.peer, self.remote_address())
    }
}

/// The number that goes with a code on the wire: its exit status, which is stable. The reason text has the code.
pub(crate) fn close_code(code: ErrorCode) -> VarInt {
    VarInt::from_u32(u32::from(code.exit() as u8))
}

pub(crate) fn close_reason(code: ErrorCode, message: &str) -> Vec<u8> {
    code.to_wire(message).into_bytes()
}

/// What a peer gave as its reason: `code: message`, or any text, or nothing.
pub(crate) fn remote_error(reason: &[u8]) -> RemoteError {
    remote_error_text(&String::from_utf8_lossy(reason))
}

pub(crate) fn remote_error_text(text: &str) -> RemoteError {
    let text = printable(text, limits::REASON_CHARACTERS);
    RemoteError::parse(&text).unwrap_or_else(|| RemoteError {
        code: ErrorCode::SessionClosed,
        message: if text.is_empty() { "the peer ended the session without a reason".to_owned() } else { text },
    })
}

fn connection_end(error: ConnectionError) -> SessionEnd {
    match error {
        ConnectionError::ApplicationClosed(close) => SessionEnd::Peer(remote_error(&close.reason)),
        ConnectionError::LocallyClosed => SessionEnd::Local,
        error => SessionEnd::Lost(Arc::new(error.into())),
    }
}
