//! The transport on a simulated network: see the crate's documentation for what is drawn, seen and judged.
//!
//! `SIMULATION_SEED=n` runs one seed and prints its plan and its trace; `SIMULATION_SEEDS=first..end` chooses
//! which seeds `many_networks_and_no_breach` runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod caller;
mod clock;
mod directed;
mod finding;
mod laws_in_action;
mod live;
mod radio;
mod seeds;
mod vat;
mod world;
