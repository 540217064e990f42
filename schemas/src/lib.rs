//! What two machines must agree on.
//!
//! Everything here is a format or a rule about bytes: no input or output, no clock, no async. The other
//! crates and other implementations can only meet through what this crate defines:
//!
//! * [`VatId`] and [`IdentityKey`]: self-certifying identities (DESIGN §3);
//! * [`SturdyRef`] and [`Secret`]: durable, secret references (DESIGN §3);
//! * [`SignedRecord`] and [`LocationRecord`]: where a vat says it is (DESIGN §4); [`SignedPacket`]: what carries it, and
//!   whatever else a key has signed in the same form;
//! * [`datagram`]: a lookup without a session (DESIGN §5);
//! * [`dns`]: the records of a DNS message, walked without trust;
//! * [`SearchPathEntry`] and [`Address`]: where to ask and where to dial (DESIGN §5);
//! * [`Network`]: whom quotas and caps take for one;
//! * [`Task`] and [`Invite`]: what a new vat may have to show before a location server takes it;
//! * [`Recipient`]: a public key that checkpoints and images are sealed for (DESIGN §8);
//! * the Cap'n Proto interfaces of sessions, the location service, vats and the built-in objects;
//! * [`ErrorCode`]: the registry of every error that a user can meet (DESIGN §10).

mod address;
pub mod datagram;
pub mod dns;
mod error_code;
mod host;
mod identity;
mod invite;
pub mod limits;
mod network;
mod recipient;
mod record;
mod search_path;
mod secret;
mod sturdyref;
mod url;
mod work;

pub use address::{Address, AddressError, Reach, is_localhost};
pub use error_code::{Coded, ErrorCode, Exit, RemoteError, UnknownErrorCode};
pub use host::HostError;
pub use identity::{IdText, IdentityError, IdentityKey, VatId, VatKey};
pub use invite::{Invite, InviteError, InviteHash};
pub use limits::{MAX_ACCEPTED_VALUE, MAX_PUBLISHED_VALUE};
pub use network::Network;
pub use recipient::{Recipient, RecipientError};
pub use record::{
    ForeignPacket, LocationRecord, Order, RecordError, SignedPacket, SignedRecord, State, Timestamp, UnverifiedPacket,
    verify_all,
};
pub use search_path::{SearchPathEntry, SearchPathError};
pub use sturdyref::{Hints, Secret, SecretHash, SturdyRef, SturdyRefError, VatAddress};
pub use url::UrlError;
pub use work::{Task, TaskError};

// The generated modules are, byte for byte, what the schema compiler writes: neither linted nor formatted.

/// Generated from `capnp/bridge.capnp`: the way to every vat, for programs in other languages.
#[path = "generated/bridge_capnp.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
pub mod bridge_capnp;
/// Generated from `capnp/location.capnp`: the location service.
#[path = "generated/location_capnp.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
pub mod location_capnp;
/// Generated from `capnp/objects.capnp`: the objects built into every vat.
#[path = "generated/objects_capnp.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
pub mod objects_capnp;
/// Generated from `capnp/session.capnp`: the greeting of every stream.
#[path = "generated/session_capnp.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
pub mod session_capnp;
/// Generated from `capnp/vat.capnp`: a vat's bootstrap, and what its owner may ask of it.
#[path = "generated/vat_capnp.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
pub mod vat_capnp;

/// The `CodeGeneratorRequest` (capnp's `schema.capnp`) of all interfaces above, to be read at run time by
/// programs that form calls without generated code.
pub const SCHEMA_REQUEST: &[u8] = include_bytes!("generated/schemas.cgr");
