//! The location server: keeps the signed location records of vats and answers who asks for one (DESIGN §4, §5).
//!
//! ```text
//!   program ──► Server ──► sessions ──► service (Cap'n Proto)
//!                      ──► datagrams, http, dns
//!                              │
//!                              ▼
//!                       DurableRegistry ──► Registry    the rules: pure, no clock, no I/O
//!                              │
//!                              └──────────► checkpoint::Store (plain mode)
//! ```
//!
//! * [`registry`]: all nine rules of DESIGN §4 as a state machine, for every carrier and for the gateway;
//! * [`DurableRegistry`]: the same with its disk; nothing is told before it is durable;
//! * [`Server`]: identity, records and carriers (QUIC, datagrams, HTTP, DNS); runs in any process, on any [`Clock`];
//! * [`dns`]: the answer to a DNS query, pure;
//! * [`program`]: the `vls-server` program;
//! * [`limits`]: every bound, with its reason.
//!
//! A location server is trusted with nothing but availability: records verify themselves, and whoever dials
//! what one says accepts only the vat's own key.

mod clock;
mod durable;
mod identity_file;
pub mod limits;
mod peering;
pub mod program;
pub mod registry;
mod server;
mod service;
mod watches;

pub use clock::{Clock, SystemClock};
pub use durable::{Committer, DurableRegistry, Journaling, RecordsError, RowError, Seen, Stopping};
pub use identity_file::IdentityFileError;
pub use server::{
    Bootstrap, BootstrapError, CertificateError, CertificateFiles, DhtConfig, DhtStatus, HttpLimits, Peer, PeerError,
    PeerStatus, ProxyNetwork, ProxyNetworkError, Reached, Server, ServerConfig, ServerError, Status, dns,
};
