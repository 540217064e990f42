//! `vls`: what a location server can hold and do, with a million records in its table.
//!
//! | figure | what one operation is | baseline |
//! |---|---|---|
//! | `record_memory` | one record more, in memory | the bytes of its packet |
//! | `restart_1m` | `DurableRegistry::open` of all records until one is answered | 1.5 s for a million |
//! | `register_durable` | a new record is verified, stored, and durable | `verify_strict` alone |
//!
//! Each figure is one module with a `measure`, and takes its records from [`records`].

mod memory;
mod records;
mod registering;
mod restart;

use crate::{
    Failure, Report,
    figure::{Figure, Unit},
    folder, note,
    rounds::{Comparison, Effort},
};

/// Measures all figures.
pub(crate) fn run(effort: Effort, report: Report<'_>) -> Result<(), Failure> {
    told("record_memory", Unit::Bytes, memory::measure(effort)?, report)?;
    let folder = folder::temporary()?;
    told("restart_1m", Unit::Microseconds, restart::measure(effort, folder.path())?, report)?;
    told("register_durable", Unit::RecordsPerSecond, registering::measure(effort, folder.path())?, report)
}

fn told(name: &'static str, unit: Unit, comparison: Comparison, report: Report<'_>) -> Result<(), Failure> {
    note(&format!("{name}: {comparison}"));
    report(Figure { name, unit, comparison })
}
