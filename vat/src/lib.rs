//! A vat: a small computer that never forgets, that you reach by a link, and that can live anywhere.
//!
//! From the inside out:
//!
//! * [`engine`]: turns over a checkpoint; one event, one atomic durable commit (R1–R4);
//! * [`object`]: objects written in Rust: a state type, a Cap'n Proto server trait and a [`Handle`];
//! * [`core`]: the vat itself: identity, grants, objects, garbage, evolution; no network;
//! * [`process`]: a vat awake: sessions, its location record, the witness check, sleep (R5, R7);
//! * [`reflection`]: schemas read at run time, and the codec between JSON and messages;
//! * [`home`], [`config`], [`program`]: the command line around all of it.

pub mod config;
pub mod core;
pub mod engine;
pub mod home;
pub mod limits;
pub mod object;
pub mod process;
pub mod program;
pub mod reflection;

mod address_book;
mod backup;
mod bridge;
mod cli;
mod invites;
mod kinds;
mod objects;
mod opener;
mod service;
mod tables;

pub use kinds::Kinds;
pub use object::{Entries, Handle, Kind, ObjectError, ObjectId, ObjectTurn, Reference, RowProblem, State};

/// How this program names itself to peers.
const PROGRAM: &str = concat!("vat/", env!("CARGO_PKG_VERSION"));
