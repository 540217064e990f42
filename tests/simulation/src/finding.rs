//! Finding vats on a simulated network: location servers, vats that publish, finders that look for them.
//!
//! The same shape as the simulation of sessions beside it: a [`Plan`] from a seed, a [`Trace`] of what an observer saw,
//! and [`judge`], which says which laws the trace breaks and how much was judged. What the observer sees comes from outside of the programs:
//! from the wire (cold lookups are readable there), from what the servers hold, and from what the finders' callers get.

pub mod plan;

mod clocks;
mod counts;
mod laws;
mod renewals;
mod searching;
mod standing;
mod trace;

pub use counts::{Count, Counts};
pub use laws::{Breach, GRACE, Judgement, LONGEST_HEDGE, judge, lookups};
pub use plan::{Machine, Plan};
pub use trace::{Event, Found, Standing, Trace, Version, What};
