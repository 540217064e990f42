//! The node itself: its first acquaintances, its manners, and the form in which the DHT has our packets.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use mainline::{Dht, MutableItem, RequestFilter, RequestSpecific, ServerSettings, async_dht::AsyncDht};
use schemas::{Coded, ErrorCode, Network, limits::PACKET_HEADER};
use tokio::{net::lookup_host, task::spawn_blocking, time::timeout};

use crate::{SystemClock, clock::Clock, limits, registry::Id, server::rates::Rates};

/// Taking part in the Mainline DHT.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DhtConfig {
    /// The first nodes that it asks for others; the usual ones if there are none.
    pub bootstrap: Vec<Bootstrap>,
    /// The address that it listens on, on any free port. The DHT is of IPv4.
    pub bind: Ipv4Addr,
    /// How long one node may take to answer.
    pub request_timeout: Duration,
    /// After how long a packet is put there again.
    pub republish: Duration,
    /// When a put that failed is tried again.
    pub retry: Duration,
    /// Between the beginnings of two puts.
    pub pace: Duration,
    /// How often the table is gone through for what is to be put.
    pub sweep: Duration,
}

impl Default for DhtConfig {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            bind: Ipv4Addr::UNSPECIFIED,
            request_timeout: mainline::DEFAULT_REQUEST_TIMEOUT,
            republish: limits::DHT_REPUBLISH,
            retry: limits::DHT_RETRY,
            pace: limits::DHT_PACE,
            sweep: limits::DHT_SWEEP,
        }
    }
}

impl DhtConfig {
    /// For a server that listens there.
    #[must_use]
    pub fn beside(listen: SocketAddr) -> Self {
        let bind = match listen.ip().to_canonical() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        Self { bind, ..Self::default() }
    }
}

/// A node of the DHT that is known beforehand: `<host>:<port>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    host: String,
    port: u16,
}

/// Why some text is no node of the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node of the DHT has the form <host>:<port>, with a name or an IPv4 address")]
pub struct BootstrapError;

impl Coded for BootstrapError {
    fn code(&self) -> ErrorCode {
        ErrorCode::ConfigInvalid
    }
}

impl FromStr for Bootstrap {
    type Err = BootstrapError;

    fn from_str(text: &str) -> Result<Self, BootstrapError> {
        let (host, port) = text.rsplit_once(':').ok_or(BootstrapError)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(BootstrapError)?;
        let is_name = |host: &str| {
            host.split('.').all(|label| {
                !label.is_empty()
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            })
        };
        if is_name(host) { Ok(Self { host: host.to_owned(), port }) } else { Err(BootstrapError) }
    }
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("none of its first nodes has an address that was found")]
    NoAddress,
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error("its thread could not be started")]
    Thread,
}

/// Starts a node. Names are looked up now, and again by who calls this again: they move, and a machine that has just
/// started may not be able to.
pub(super) async fn open(config: &DhtConfig) -> Result<AsyncDht, OpenError> {
    let usual = || mainline::DEFAULT_BOOTSTRAP_NODES.iter().filter_map(|node| node.parse().ok()).collect();
    let first: Vec<Bootstrap> = if config.bootstrap.is_empty() { usual() } else { config.bootstrap.clone() };
    let addresses = join_all(first.into_iter().map(addresses)).await.concat();
    if addresses.is_empty() {
        return Err(OpenError::NoAddress);
    }
    let seed = getrandom::u64().map_err(std::io::Error::other)?;
    let mut builder = Dht::builder();
    builder
        .bootstrap(&addresses)
        .bind_address(config.bind)
        .port(0)
        .request_timeout(config.request_timeout)
        .server_settings(ServerSettings {
            max_info_hashes: limits::DHT_KEPT,
            max_peers_per_info_hash: 1,
            max_immutable_values: limits::DHT_KEPT,
            max_mutable_values: limits::DHT_KEPT,
            filter: Box::new(Manners(Arc::new(Mutex::new(Rates::new(limits::DHT_ANSWERS, seed))))),
        });
    // It waits for its thread. A panic there is one of the crate's.
    let built = spawn_blocking(move || builder.build()).await.map_err(|_| OpenError::Thread)?;
    Ok(built?.as_async())
}

async fn addresses(Bootstrap { host, port }: Bootstrap) -> Vec<SocketAddrV4> {
    let found = timeout(limits::DHT_NAMES_DEADLINE, lookup_host((host.as_str(), port))).await;
    let Ok(Ok(found)) = found else { return Vec::new() };
    let found = found.filter_map(|address| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    });
    found.collect()
}

/// What others may ask of this node. One that is reachable answers others after a quarter of an hour, as all do.
#[derive(Debug, Clone)]
struct Manners(Arc<Mutex<Rates>>);

impl RequestFilter for Manners {
    fn allow_request(&self, _: &RequestSpecific, from: SocketAddrV4) -> bool {
        let now = SystemClock.now();
        // It is poisoned only if counting has panicked; then nobody is answered.
        self.0.lock().is_ok_and(|mut rates| rates.take(Network::of((*from.ip()).into()), now).is_ok())
    }
}

/// An item of the DHT as a packet; `None` if it cannot be one.
pub(super) fn packet(item: &MutableItem) -> Option<Vec<u8>> {
    let timestamp = u64::try_from(item.seq()).ok()?;
    let is_plain = item.salt().is_none();
    is_plain.then(|| [item.signature().as_slice(), &timestamp.to_be_bytes(), item.value()].concat())
}

/// A packet as an item of the DHT.
pub(super) fn item(id: &Id, packet: &[u8]) -> Option<MutableItem> {
    let (header, value) = packet.split_at_checked(PACKET_HEADER)?;
    let (signature, timestamp) = header.split_first_chunk()?;
    let sequence = i64::from_be_bytes(timestamp.try_into().ok()?);
    (sequence >= 0).then(|| MutableItem::new_signed_unchecked(*id, *signature, value, sequence, None))
}
