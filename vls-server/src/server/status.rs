//! How a server is doing, for its operator. Nothing here names an id or a client.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use checkpoint::Sizes;
use schemas::{Timestamp, VatId};

use super::Peer;

/// How a server is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// Its id.
    pub id: VatId,
    /// Its clock.
    pub time: Timestamp,
    /// For how long it has been running.
    pub uptime: Duration,
    /// Where it listens for QUIC and cold lookups.
    pub listen: SocketAddr,
    /// Where it listens for HTTP.
    pub http: Option<SocketAddr>,
    /// Where it listens for DNS.
    pub dns: Option<SocketAddr>,
    /// The servers that it follows.
    pub peers: Vec<PeerStatus>,
    /// The Mainline DHT, if it takes part in it.
    pub dht: Option<DhtStatus>,
    /// Records held, live and expired.
    pub records: usize,
    /// Records that there may be.
    pub capacity: usize,
    /// New vats are taken by invitation only.
    pub closed: bool,
    /// Invites that were made and are not used up.
    pub invites: usize,
    /// The bits of work that the place of a new vat costs, because the table is nearly full.
    pub work: Option<u8>,
    /// How long a record is answered after its vat was last seen.
    pub lease: Duration,
    /// Sessions that are open.
    pub sessions: usize,
    /// Handshakes that were refused, because there were too many connections or there was no time for more of them.
    pub handshakes_refused: u64,
    /// Watches that wait.
    pub watches: usize,
    /// The newest turn that was decided.
    pub turn: u64,
    /// The newest turn that is durable.
    pub durable_turn: u64,
    /// How long ago something last became durable; none since the start if there is nothing here.
    pub last_sync: Option<Duration>,
    /// How much room the records take on the disk, if it says so.
    pub store: Option<Sizes>,
    /// The last moment at which the certificate of HTTPS is valid.
    pub certificate_end: Option<Timestamp>,
    /// Answers given, by carrier.
    pub answers: BTreeMap<&'static str, u64>,
    /// How many of them were that somebody asks too much.
    pub limited: u64,
}

/// How a server that is followed is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Which.
    pub peer: Peer,
    /// Whether there is a session with it.
    pub reached: Reached,
    /// Registrations that it has not been told of yet.
    pub untold: usize,
}

/// Whether there is a session with another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reached {
    /// Nobody has wanted one lately.
    Unasked,
    /// There is one.
    Open,
    /// It is being dialled.
    Dialling,
    /// It could not be dialled, or hung up.
    Failed,
}

/// A server's part in the Mainline DHT.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DhtStatus {
    /// Whether it takes part.
    pub reached: Reached,
    /// Packets that were put there since the start, each as often as it was.
    pub stored: u64,
    /// Packets that wait to be put.
    pub waiting: usize,
}
