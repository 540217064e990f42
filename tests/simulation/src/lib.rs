//! What a simulated run is, without the running: drawn from a seed, written down, judged.
//!
//! * [`Plan`]: the weather of a network and what befalls its hosts, all drawn from one number;
//! * [`Trace`]: what an observer at the applications saw, with simulated times;
//! * [`judge`]: what must hold of every trace, whatever the plan was.
//!
//! The run itself is in `tests/it`: the real transport over a simulated network, in simulated time. Judging is
//! apart from it so that the judge can be judged: traces that break a rule are made by hand there.
//!
//! These are of sessions between a vat and its callers; [`finding`] has the same of finding vats.

pub mod finding;
pub mod plan;

mod laws;
mod trace;

pub use laws::{Breach, judge};
pub use plan::Plan;
pub use trace::{Event, Host, Outcome, Trace, What};
