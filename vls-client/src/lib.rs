//! Finding vats, and being found (DESIGN §4, §5).
//!
//! A vat signs where it is; location servers keep what it signed and are trusted with nothing but being there.
//! This crate is the side of those who ask and of those who are asked for:
//!
//! * [`Resolver`] finds a vat through a search path and dials it. All entries are raced, every answer is
//!   verified, the highest record wins, and only a peer that proves the vat's key is accepted. Underneath:
//!   [`schedule`] (whom to ask when, whom to believe) and [`dial_schedule`] (whom to dial when), both pure;
//! * [`RecordCache`] keeps verified records on disk, so that a dead location server is not a dead system;
//! * [`Publisher`] keeps a vat registered with every entry of its path. Underneath: [`publish_schedule`], pure;
//! * [`LiveRef`] is a reference that outlives sessions: it finds its vat again for the next call. Underneath:
//!   [`reconnect`], pure;
//! * [`Attempt`] is the one line of reason that every candidate gets, whatever becomes of the search.
//!
//! Time and randomness are parameters ([`clock`]); every bound is in [`limits`]. The shells run on a tokio
//! `LocalSet`, because Cap'n Proto sessions do.

pub mod clock;
mod cold;
pub mod dial_schedule;
pub mod limits;
pub mod publish_schedule;
pub mod reconnect;
pub mod schedule;

mod absent;
mod admission;
mod attempt;
mod cache;
mod carriers;
mod connect;
mod dial;
mod dns;
mod error;
mod failure;
mod http;
mod judge;
mod known;
mod live;
mod locality;
mod lookup;
mod pool;
mod publisher;
mod record_dates;
mod register;
mod report;
mod resolver;
mod scores;
mod service;
mod skew;
mod watching;
mod wave;

pub use admission::Invites;
pub use attempt::{Attempt, Candidate, Outcome, Summary};
pub use cache::{CacheError, RecordCache};
pub use carriers::{CarrierConfig, NameServers, TrustRoots};
pub use clock::{Clock, Moment, Randomness, SystemClock, SystemRandomness};
pub use connect::Connected;
pub use dial::addresses_of;
pub use dial_schedule::DialTiming;
pub use error::ResolveError;
pub use failure::{Carrier, Failure};
pub use judge::{Mark, Refusal};
pub use live::{Attempted, Finder, Held, LiveConfig, LiveError, LiveEvent, LiveEvents, LiveNetwork, LiveRef, LiveRefs};
pub use locality::LeftOut;
pub use publish_schedule::PublishTiming;
pub use publisher::{Publisher, PublisherConfig, RecordSource, Superseded};
pub use reconnect::ReconnectTiming;
pub use record_dates::{Reading, RecordDates};
pub use register::{Claim, Disproof, Expected, Refused, RegisterError, Registered};
pub use report::EntryReport;
pub use resolver::{Newest, Resolution, Resolver, ResolverConfig};
pub use schedule::{Freshness, LookupTiming};
pub use scores::{EntryScore, EntryScores};
pub use service::DialledBack;
pub use skew::ClockSkew;
pub use watching::{Sighting, Watching};
