//! One UDP socket, one identity, both directions: the endpoint that dials and accepts (DESIGN §6).
//!
//! quinn does the QUIC; this module decides what is spent on a stranger. Windows, streams, buffers and waiting
//! handshakes have small bounds (see [`limits`](crate::limits)), diallers must prove their address once many
//! connections are open, and every connection either proves the key that was expected or does not exist.
//!
//! The QUIC bit is never greased: on a location server's port, datagrams whose fixed bit is clear are lookups
//! (DESIGN §5), so no QUIC packet may have it clear.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig, TokenMemoryCache, TokenStore, TokioRuntime,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use quinn_proto::{ConnectionIdGenerator, RandomConnectionIdGenerator, congestion::CubicConfig};
use ring::hmac;
use schemas::{ErrorCode, IdentityKey, Network, VatId};
use tokio::time::Instant;

use admission::{Admission, UsedTokens, Verdict};
use beside::{Beside, DatagramsBeside};
pub use error::{AcceptError, BindError, DialError};
use incoming::Counts;
pub use incoming::{AddressProof, HandshakeCounts, Incoming};
use progress::Noting;
use waiting::{Next, Waiting};

use crate::{
    limits,
    peer_connection::{PeerConnection, close_code, close_reason},
    tls::{self, TlsIdentity},
};

mod admission;
mod backlog;
pub mod beside;
mod error;
mod incoming;
mod initials;
pub(crate) mod progress;
mod socket;
mod waiting;

/// How an endpoint treats those who dial it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// Connections beyond which new ones are refused ([`limits::CONNECTIONS`]).
    pub connections: usize,
    /// Connections beyond which a dialler must prove its address first ([`limits::CONNECTIONS_BEFORE_RETRY`]).
    pub connections_before_retry: usize,
    /// Handshakes at once of diallers that have not proven their address ([`limits::UNPROVEN_BURST`]); one more must
    /// prove it first.
    pub unproven_burst: u32,
    /// How often another such handshake may follow ([`limits::UNPROVEN_INTERVAL`]).
    pub unproven_interval: Duration,
    /// The share of the thread's time that handshakes may take, as one part in so many ([`limits::HANDSHAKE_SHARE`]).
    /// Beyond it they wait, and if too many wait ([`limits::HANDSHAKES_WAITING`]) more are refused.
    pub handshake_share: u32,
    /// Time that may be spent on handshakes at once after a quiet time ([`limits::HANDSHAKE_BURST`]).
    pub handshake_burst: Duration,
    /// What a handshake is taken to cost until it was measured ([`limits::HANDSHAKE_COST`]); for good, on a socket of
    /// the caller's, where the same is to happen every time.
    pub handshake_cost: Duration,
    /// How often a quiet connection sends a packet ([`limits::KEEP_ALIVE`]).
    pub keep_alive: Duration,
    /// After how long without the peer a connection is dead ([`limits::IDLE_TIMEOUT`]). QUIC can say at most
    /// 2⁶² milliseconds; a longer time means never.
    pub idle_timeout: Duration,
    /// How long an accepted connection may take to prove its key ([`limits::HANDSHAKE_DEADLINE`]).
    pub handshake_deadline: Duration,
    /// What packet numbers and the like are drawn from; `None` for the operating system's randomness. For
    /// simulated networks alone, where one seed shall decide when every packet leaves: who knows it can tell
    /// the packet numbers that are skipped to catch those who acknowledge what they never received.
    pub random_seed: Option<[u8; 32]>,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            connections: limits::CONNECTIONS,
            connections_before_retry: limits::CONNECTIONS_BEFORE_RETRY,
            unproven_burst: limits::UNPROVEN_BURST,
            unproven_interval: limits::UNPROVEN_INTERVAL,
            handshake_share: limits::HANDSHAKE_SHARE,
            handshake_burst: limits::HANDSHAKE_BURST,
            handshake_cost: limits::HANDSHAKE_COST,
            keep_alive: limits::KEEP_ALIVE,
            idle_timeout: limits::IDLE_TIMEOUT,
            handshake_deadline: limits::HANDSHAKE_DEADLINE,
            random_seed: None,
        }
    }
}

/// One UDP socket with one identity. Clones are handles to the same one.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    quinn: quinn::Endpoint,
    beside: Beside,
    id: VatId,
    tls: TlsIdentity,
    transport: Arc<TransportConfig>,
    local_address: SocketAddr,
    accepts: bool,
    config: EndpointConfig,
    admission: Mutex<Admission>,
    waiting: Mutex<Waiting<quinn::Incoming>>,
    /// Whether what handshakes cost is looked at.
    measures: bool,
    counts: Counts,
    /// The times of `admission` and `waiting` count from here.
    origin: Instant,
    /// With which this side proves its address where it was before, by the id of the peer.
    address_tokens: Arc<dyn TokenStore>,
}

impl Endpoint {
    /// Listens on `listen` (UDP), and dials from the same socket.
    ///
    /// `[::]` takes IPv4 too where the machine can; on a machine without IPv6 it becomes `0.0.0.0`. Port 0
    /// takes a free port, which [`local_address`](Self::local_address) tells.
    ///
    /// # Errors
    /// [`BindError`]. Must be called inside a tokio runtime.
    pub fn bind(key: &IdentityKey, listen: SocketAddr, config: EndpointConfig) -> Result<Self, BindError> {
        let socket = socket::bind(listen)?;
        let runtime = Self::runtime()?;
        let (socket, raw) = wrapped(socket, runtime.as_ref()).map_err(|source| BindError::address(listen, source))?;
        Self::start(key, socket, Some(raw), runtime, true, config)
    }

    /// Dials only. Reaches IPv4 and IPv6 where the machine has both.
    ///
    /// # Errors
    /// [`BindError`]. Must be called inside a tokio runtime.
    pub fn client(key: &IdentityKey) -> Result<Self, BindError> {
        let any = SocketAddr::from(([0_u16; 8], 0));
        let socket = socket::bind(any)?;
        let runtime = Self::runtime()?;
        let (socket, raw) = wrapped(socket, runtime.as_ref()).map_err(|source| BindError::address(any, source))?;
        Self::start(key, socket, Some(raw), runtime, false, EndpointConfig::default())
    }

    /// The same on a socket and a clock of the caller's: for simulated networks, and for a port that carries
    /// other datagrams beside QUIC.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn with_socket(
        key: &IdentityKey,
        socket: Arc<dyn AsyncUdpSocket>,
        runtime: Arc<dyn Runtime>,
        config: EndpointConfig,
    ) -> Result<Self, BindError> {
        Self::start(key, socket, None, runtime, true, config)
    }

    fn runtime() -> Result<Arc<dyn Runtime>, BindError> {
        tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        Ok(Arc::new(TokioRuntime))
    }

    fn start(
        key: &IdentityKey,
        socket: Arc<dyn AsyncUdpSocket>,
        raw: Option<UdpSocket>,
        runtime: Arc<dyn Runtime>,
        accepts: bool,
        config: EndpointConfig,
    ) -> Result<Self, BindError> {
        // A socket of the caller's may be part of a simulation.
        let measures = raw.is_some();
        let tls = TlsIdentity::new(key);
        let transport = Arc::new(transport_config(&config));
        let server = if accepts { Some(server_config(&tls, &transport)?) } else { None };
        let local_address = socket.local_addr().map_err(BindError::Socket)?;
        let mut endpoint_config = quinn::EndpointConfig::new(Arc::new(reset_key(key, local_address.port())));
        endpoint_config.grease_quic_bit(false).cid_generator(connection_ids).rng_seed(config.random_seed);
        let beside = Beside::new(socket, raw);
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(endpoint_config, server, beside.quic_side(accepts), runtime)
                .map_err(BindError::Socket)?;
        let inner = Inner {
            quinn,
            beside,
            id: key.id(),
            tls,
            transport,
            local_address,
            accepts,
            admission: Mutex::new(Admission::new(
                config.connections,
                config.connections_before_retry,
                config.unproven_burst,
                config.unproven_interval,
            )),
            waiting: Mutex::new(Waiting::new(config.handshake_share, config.handshake_burst, config.handshake_cost)),
            measures,
            counts: Counts::default(),
            origin: Instant::now(),
            address_tokens: Arc::new(TokenMemoryCache::new(
                limits::ADDRESS_TOKEN_STORE.0,
                limits::ADDRESS_TOKEN_STORE.1,
            )),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The address that the socket is bound to, with the real port.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.inner.local_address
    }

    /// The id that this endpoint proves to every peer.
    #[must_use]
    pub fn id(&self) -> VatId {
        self.inner.id
    }

    /// Takes the datagrams that come to its port, are not QUIC's, and begin with the byte `kind`: of each the first
    /// `kept_bytes` bytes. Those that nobody takes are dropped.
    #[must_use]
    pub fn datagrams_beside(&self, kind: u8, kept_bytes: usize) -> DatagramsBeside {
        self.inner.beside.take(kind, kept_bytes)
    }

    /// How many connections are open, those still shaking hands or closing included.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.inner.quinn.open_connections()
    }

    /// Dials `address` and accepts only a peer that proves to be `id`.
    ///
    /// # Errors
    /// [`DialError`]; [`DialError::Timeout`] after `deadline`.
    pub async fn dial(&self, id: VatId, address: SocketAddr, deadline: Duration) -> Result<PeerConnection, DialError> {
        let found = Arc::new(OnceLock::new());
        self.check_reachable(address)?;
        let crypto = self.inner.tls.client(id, found.clone()).map_err(DialError::Setup)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.inner.transport.clone());
        config.token_store(self.inner.address_tokens.clone());
        let connecting = self
            .inner
            .quinn
            .connect_with(config, address, &tls::server_name(&id))
            .map_err(|source| DialError::from_connect(address, source))?;
        match tokio::time::timeout(deadline, connecting).await {
            Err(_) => Err(DialError::Timeout { address, after: deadline }),
            Ok(Err(error)) => Err(DialError::from_handshake(id, found.get().copied(), address, deadline, error)),
            Ok(Ok(connection)) => match tls::peer_id(&connection) {
                // The verifier has refused every other id already; what is used is what the library reports.
                Some(peer) if peer == id => Ok(PeerConnection::new(connection, peer)),
                peer => {
                    let (code, reason) = (ErrorCode::SessionWrongPeer, "not the id that was dialled");
                    connection.close(close_code(code), &close_reason(code, reason));
                    Err(DialError::WrongPeer { expected: id, found: peer, address })
                }
            },
        }
    }

    /// A socket bound to one address has one family; sending to the other would only wait for the deadline.
    fn check_reachable(&self, address: SocketAddr) -> Result<(), DialError> {
        let local = self.inner.local_address;
        let possible = match (local.ip(), address.ip()) {
            (IpAddr::V4(_), IpAddr::V6(remote)) => remote.to_ipv4_mapped().is_some(),
            (IpAddr::V6(local), IpAddr::V4(_)) => local.is_unspecified() || local.to_ipv4_mapped().is_some(),
            _ => true,
        };
        if possible { Ok(()) } else { Err(DialError::Family { address, local }) }
    }

    /// Waits for the next connection attempt; `None` when the endpoint is closed or only dials.
    ///
    /// Attempts beyond the limits are refused here and not returned; those for which there is no time yet wait here. Can be
    /// dropped and called again without losing any.
    pub async fn accept(&self) -> Option<Incoming> {
        if !self.inner.accepts {
            return None;
        }
        loop {
            let wait = match self.next_waiting() {
                Next::Begin(attempt) => {
                    Counts::add(&self.inner.counts.begun);
                    return Some(Incoming::new(attempt, self.clone()));
                }
                Next::Wait(wait) => Some(wait),
                Next::Nobody => None,
            };
            let came = tokio::select! {
                // In this order, for simulations; those who wait have been looked at just now.
                biased;
                attempt = self.inner.quinn.accept() => attempt,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => continue,
            };
            let Some(attempt) = came else {
                drop(self.lock_waiting().clear());
                return None;
            };
            self.let_in(attempt);
        }
    }

    /// Has an attempt wait for its turn, unless it is asked for a proof of its address first or refused.
    fn let_in(&self, attempt: quinn::Incoming) {
        let counts = &self.inner.counts;
        // An attempt that cannot be asked any more has just proven it.
        let proven = attempt.remote_address_validated() || !attempt.may_retry();
        let refused = match self.judge(proven) {
            Verdict::Accept => {
                let network = Network::of(canonical(attempt.remote_address()).ip());
                self.lock_waiting().push(network, attempt).err()
            }
            Verdict::Refuse => Some(attempt),
            Verdict::Retry => {
                Counts::add(&counts.asked);
                // Cannot fail: `may_retry` was just asked. A failure would only drop the attempt.
                drop(attempt.retry());
                None
            }
        };
        if let Some(attempt) = refused {
            Counts::add(&counts.refused);
            attempt.refuse();
        }
    }

    fn next_waiting(&self) -> Next<quinn::Incoming> {
        let now = self.inner.origin.elapsed();
        self.lock_waiting().next(now)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, Waiting<quinn::Incoming>> {
        // What a panicking thread left is a queue like any other.
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has become of connection attempts so far.
    #[must_use]
    pub fn handshakes(&self) -> HandshakeCounts {
        self.inner.counts.read()
    }

    fn judge(&self, has_proven_address: bool) -> Verdict {
        let (now, open) = (self.inner.origin.elapsed(), self.inner.quinn.open_connections());
        // What a panicking thread left is a moment like any other.
        let mut admission = self.inner.admission.lock().unwrap_or_else(PoisonError::into_inner);
        admission.judge(now, open, has_proven_address)
    }

    /// Refuses new connections, tells every peer, and waits (at most [`limits::ENDPOINT_CLOSE_DEADLINE`]) until
    /// it was sent. Sessions are best closed before, so that what they still hold is delivered.
    pub async fn close(&self) {
        let (code, reason) = (ErrorCode::SessionClosed, "the other side has ended");
        self.inner.quinn.close(close_code(code), &close_reason(code, reason));
        // On expiry some peer has not acknowledged; it will notice by its idle timeout.
        let _ = tokio::time::timeout(limits::ENDPOINT_CLOSE_DEADLINE, self.inner.quinn.wait_idle()).await;
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} on {})", self.inner.id, self.inner.local_address)
    }
}

/// An IPv4 address as such, also when a dual-stack socket reports it inside an IPv6 one.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connection ids of 64 random bits.
///
/// quinn's default ids are 24 random bits and a check value, and the id that goes into a Retry packet is not
/// compared with those in use. With some thousand connections, eight ids each, about one dialler in 500 that was
/// asked to prove its address was then taken for another connection and never answered.
fn connection_ids() -> Box<dyn ConnectionIdGenerator> {
    Box::new(RandomConnectionIdGenerator::new(limits::CONNECTION_ID_BYTES))
}

/// The key of stateless resets (RFC 9000 §10.3): the same after a restart.
///
/// A process that was killed says no goodbye. Its successor does not know the connections that peers still
/// believe in; all that it can do is to answer their next packet with a token that only this endpoint can have
/// made. With quinn's default, a new key for each process, the tokens prove nothing and every peer waits for its
/// idle timeout: a restarted vat would look dead to its friends for most of a minute.
///
/// The port is part of it. Otherwise two endpoints of one identity could be played off against each other: one
/// would give out tokens for the connections of the other (RFC 9000 §21.11).
fn reset_key(key: &IdentityKey, port: u16) -> hmac::Key {
    let identity = hmac::Key::new(hmac::HMAC_SHA256, &key.seed()[..]);
    let mut context = hmac::Context::with_key(&identity);
    context.update(b"vat QUIC stateless reset");
    context.update(&port.to_be_bytes());
    hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
}

fn server_config(tls: &TlsIdentity, transport: &Arc<TransportConfig>) -> Result<ServerConfig, BindError> {
    let mut server = ServerConfig::with_crypto(Arc::new(tls.server().map_err(BindError::Setup)?));
    let total = limits::WAITING_CONNECTION_BYTES * limits::WAITING_CONNECTIONS as u64;
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(limits::ADDRESS_TOKENS_SENT).lifetime(limits::ADDRESS_TOKEN_LIFE).log(Arc::new(UsedTokens::default()));
    server
        .validation_token_config(tokens)
        .transport_config(transport.clone())
        .max_incoming(limits::WAITING_CONNECTIONS)
        .incoming_buffer_size(limits::WAITING_CONNECTION_BYTES)
        .incoming_buffer_size_total(total);
    Ok(server)
}

/// A socket for the event loop, and the same one for many datagrams at once.
fn wrapped(socket: UdpSocket, runtime: &dyn Runtime) -> io::Result<(Arc<dyn AsyncUdpSocket>, UdpSocket)> {
    let raw = socket.try_clone()?;
    Ok((runtime.wrap_udp_socket(socket)?, raw))
}

fn transport_config(config: &EndpointConfig) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.minimum_change(limits::MTU_STEP);
    let mut transport = TransportConfig::default();
    transport
        .congestion_controller_factory(Arc::new(Noting(Arc::new(CubicConfig::default()))))
        .mtu_discovery_config(Some(discovery))
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::STREAMS_PER_CONNECTION))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::UNPROVEN_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .crypto_buffer_size(limits::HANDSHAKE_BUFFER_BYTES)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .keep_alive_interval(Some(config.keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(config.idle_timeout).ok());
    transport
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn connection_ids_do_not_collide() {
        let mut ids = connection_ids();
        let distinct: HashSet<_> = (0..100_000).map(|_| ids.generate_cid().to_vec()).collect();
        // With 24 random bits some 300 would; with 64, once in four thousand million runs of this test.
        assert_eq!(distinct.len(), 100_000);
        assert_eq!(ids.cid_len(), limits::CONNECTION_ID_BYTES);
    }
}
