//! `vls`: what a location server can hold and do, with a million records in its table.
//!
//! | figure | what one operation is | baseline |
//! |---|---|---|
//! | `record_memory` | one record more, in memory | the bytes of its packet |
//! | `restart_1m` | `DurableRegistry::open` of all records until one is answered | 1.5 s for a million |
//! | `register_durable` | a new record is verified, stored, and durable | `verify_strict` alone |
//! | `lookup_cold_vs_echo` | a cold lookup, in the server's processor time | a raw echo of the same sizes |
//! | `lookup_cold_vs_knot` | the same | a TXT query answered by Knot DNS |
//! | `dns_udp` | a TXT query | the same, answered by Knot DNS |
//! | `http_get` | a GET | hyper with a constant of the same size |
//! | `overload_p99` | a question among twice as many as can be answered, half of them hostile | a question at a quarter of that load |
//! | `resident_1m` | a server with 2,000 sessions, in memory | a machine of 512 MB |
//! | `lookup_many_64` | one id of 64 in one call | a call for one id, after the answer to the one before |
//!
//! Each of the first three is one module with a `measure`; those that ask a server are in [`lookups`]. All take their
//! records from [`records`].

mod lookups;
mod memory;
mod names;
mod records;
mod registering;
mod restart;

pub(crate) use lookups::{SERVE, serve};

use crate::{
    Failure, Report,
    figure::{Figure, Unit},
    folder, note,
    rounds::{Comparison, Effort},
};

/// The name of a figure, if it can be measured alone.
pub(crate) fn figure(name: &str) -> Option<&'static str> {
    names::LOOKUPS.iter().chain(names::OTHERS).copied().find(|known| *known == name)
}

/// Measures all figures that are wanted.
pub(crate) fn run(effort: Effort, report: Report<'_>) -> Result<(), Failure> {
    let folder = folder::temporary()?;
    lookups::measure(effort, folder.path(), report)?;
    if effort.wants("record_memory") {
        told("record_memory", Unit::Bytes, memory::measure(effort)?, report)?;
    }
    if effort.wants("restart_1m") {
        told("restart_1m", Unit::Microseconds, restart::measure(effort, folder.path())?, report)?;
    }
    if effort.wants("register_durable") {
        told("register_durable", Unit::RecordsPerSecond, registering::measure(effort, folder.path())?, report)?;
    }
    Ok(())
}

fn told(name: &'static str, unit: Unit, comparison: Comparison, report: Report<'_>) -> Result<(), Failure> {
    note(&format!("{name}: {comparison}"));
    report(Figure { name, unit, comparison })
}
