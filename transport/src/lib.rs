//! Sessions between key-identified peers.
//!
//! A connection proves who is at its ends before a byte of a call is said; a session carries Cap'n Proto calls
//! over it; an output gate holds back every word until what caused it is durable.
//!
//! ```text
//!   Endpoint ── dial, accept ──► PeerConnection ── Session::open, accept ──► Session ── bootstrap ──► capabilities
//!   LocalListener, dial_local ──► LocalStream ── Session::open_local, accept_local ──► Session
//!   LocalListener, TlsListener ──► ForeignStream ── Session::accept_foreign ──► Session
//! ```
//!
//! * [`tls`]: TLS 1.3 with raw Ed25519 keys on both sides; [`Endpoint`]: QUIC with small bounds (DESIGN §6);
//! * [`hello`]: the first bytes of a stream and the greeting; [`frames`]: messages read without trust;
//! * [`Session`]: one task on a tokio `LocalSet`, with our own RPC layer over capnp-rpc's traits;
//! * [`Sessions`]: all sessions of a process, one for each vat; below it [`peers`], which decides who stays, pure;
//! * [`OutputGate`]: rules R3 and R5, in one type;
//! * [`LocalListener`], [`dial_local`]: the same sessions between processes of one user;
//! * [`watchdog`]: notices a thread that hangs, and whose session it was busy with;
//! * [`TlsListener`]: TLS over TCP with the same key, for clients that have no QUIC;
//! * [`datagrams`]: what is not QUIC, on the same port or on others, in bunches;
//! * [`limits`]: every bound, with its reason.
//!
//! Nothing in this crate keeps a log of what is said, and no secret passes through it that it could print.

#![forbid(unsafe_code)]

pub mod datagrams;
pub mod frames;
pub mod hello;
pub mod limits;
pub mod peers;
pub mod tls;
pub mod watchdog;

mod bulk;
mod connection;
mod endpoint;
mod local;
mod output_gate;
mod peer_connection;
mod resume;
mod rpc;
mod session;
mod sessions;
mod silence;
mod text;
mod tls_listener;

pub use bulk::{BulkError, BulkReader, BulkSource};
pub use connection::with_call_deadline;
pub use endpoint::{
    AcceptError, AddressProof, BindError, DialError, Endpoint, EndpointConfig, HandshakeCounts, Incoming, beside,
};
pub use hello::{Greeting, HelloError, Peer};
pub use limits::SessionLimits;
pub use local::{LocalError, LocalListener, LocalStream, dial_local, dial_local_of};
pub use output_gate::{GatePoisoned, GateWait, OutputGate};
pub use peer_connection::{PeerConnection, Traffic};
pub use resume::ResumeToken;
pub use session::{
    ForeignOptions, ForeignStream, Opening, Restore, Session, SessionEnd, SessionError, SessionOptions, Violation,
};
pub use sessions::{AdmitError, Handshake, Sessions};
pub use silence::Silence;
pub use tls_listener::{TlsIncoming, TlsListener};
