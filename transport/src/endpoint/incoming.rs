//! A connection attempt that was let in, and what becomes of all of them.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{AcceptError, Endpoint, canonical};
use crate::{peer_connection::PeerConnection, tls};

/// A connection attempt that has not shaken hands yet. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    attempt: quinn::Incoming,
    endpoint: Endpoint,
}

impl Incoming {
    pub(super) fn new(attempt: quinn::Incoming, endpoint: Endpoint) -> Self {
        Self { attempt, endpoint }
    }

    /// Where the attempt comes from, as it says; see [`address_proof`](Self::address_proof).
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.attempt.remote_address())
    }

    /// How it has shown that it receives what is sent to that address.
    #[must_use]
    pub fn address_proof(&self) -> AddressProof {
        match (self.attempt.remote_address_validated(), self.attempt.may_retry()) {
            (false, _) => AddressProof::None,
            (true, true) => AddressProof::Token,
            (true, false) => AddressProof::Retry,
        }
    }

    /// Shakes hands: the peer proves its key, and we ours.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn accept(self) -> Result<PeerConnection, AcceptError> {
        let address = self.remote_address();
        let deadline = self.endpoint.inner.config.handshake_deadline;
        let before = self.endpoint.inner.measures.then(thread_time);
        // Not by waiting: what is done here is done when it returns.
        let begun = self.attempt.accept();
        if let (Some(before), Ok(_)) = (before, &begun) {
            let cost = thread_time().saturating_sub(before) * HANDSHAKE_STEPS;
            self.endpoint.lock_waiting().has_cost(cost);
        }
        drop(self.endpoint);
        // On the heap: who waits here in a task of its own keeps the task, and its size, as long as the connection.
        let handshake = Box::pin(async { begun?.await });
        match tokio::time::timeout(deadline, handshake).await {
            Err(_) => Err(AcceptError::Timeout { address, after: deadline }),
            Ok(Err(source)) => Err(AcceptError::Handshake { address, source }),
            Ok(Ok(connection)) => match tls::peer_id(&connection) {
                Some(peer) => Ok(PeerConnection::new(connection, peer)),
                None => Err(AcceptError::NoKey { address }),
            },
        }
    }
}

/// What a whole handshake costs, in what its first step does. Measured: our signature and the exchange of keys are in that
/// step and a third of the whole; the client's signature, all other keys, and the datagrams come later.
const HANDSHAKE_STEPS: u32 = 3;

/// The time for which this thread was at work.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // Neither is ever negative on this clock.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What has become of connection attempts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeCounts {
    /// Handshakes that were begun.
    pub begun: u64,
    /// Attempts that were asked for a proof of their address.
    pub asked: u64,
    /// Attempts that were refused: there were too many connections, or no time for more handshakes.
    pub refused: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) begun: AtomicU64,
    pub(super) asked: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Counts {
    pub(super) fn add(count: &AtomicU64) {
        count.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> HandshakeCounts {
        let [begun, asked, refused] = [&self.begun, &self.asked, &self.refused].map(|count| count.load(Relaxed));
        HandshakeCounts { begun, asked, refused }
    }
}

/// How a dialler has shown that it receives what is sent to its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressProof {
    /// It has not.
    None,
    /// By a token that it was given in an earlier connection.
    Token,
    /// It was asked for it.
    Retry,
}
