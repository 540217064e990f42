//! What an observer at the applications saw.
//!
//! Not packets: their sizes and numbers carry keys and connection ids, which are random in every run. What they
//! lead to, and when, is decided by the seed.

use std::{fmt, time::Duration};

use crate::plan::Fault;

/// One of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// The one that is called.
    Vat,
    /// One of those that call.
    Caller(u8),
}

/// What was seen, in the order in which it was seen; by default in the simulation of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace<H = Host, W = What> {
    /// Times never fall.
    pub events: Vec<Event<H, W>>,
}

/// Something that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<H = Host, W = What> {
    /// Simulated time since the beginning of the run.
    pub at: Duration,
    /// Where.
    pub host: H,
    /// What.
    pub what: W,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The plan struck.
    Struck(Fault),
    /// The host's program started.
    Woke {
        /// How many times it has now.
        epoch: u64,
    },
    /// A caller has a session.
    Began {
        /// Counted over all callers.
        session: u32,
        /// What the vat says of itself.
        epoch: u64,
    },
    /// A caller could not have one.
    NotBegun {
        /// The error's code.
        code: String,
    },
    /// A caller made a call.
    Called {
        /// In which session.
        session: u32,
        /// On which of the session's capabilities.
        capability: u8,
        /// Counted over all callers; never used again.
        call: u64,
    },
    /// A call has its outcome.
    Ended {
        /// In which session.
        session: u32,
        /// Which.
        call: u64,
        /// How.
        outcome: Outcome,
    },
    /// A caller closed its session, because it had heard nothing for too long.
    GaveUp {
        /// Which.
        session: u32,
    },
    /// A caller was told that its session is over.
    Broken {
        /// Which.
        session: u32,
        /// Which of those that hold something of it, in the order in which they said that they want to be told.
        holder: u8,
        /// The reason's code.
        code: String,
    },
    /// The vat carried a call out. It is not durable yet.
    Executed {
        /// Which.
        call: u64,
    },
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With its answer.
    Answered,
    /// With its session.
    Broken,
    /// With an error, while its session goes on.
    Refused {
        /// The error's code.
        code: String,
    },
}

impl<H, W> Default for Trace<H, W> {
    fn default() -> Self {
        Self { events: Vec::new() }
    }
}

impl<H, W> Trace<H, W> {
    /// Writes down that something was seen.
    pub fn push(&mut self, at: Duration, host: H, what: W) {
        self.events.push(Event { at, host, what });
    }

    /// How many events are of this kind.
    pub fn count(&self, is: impl Fn(&W) -> bool) -> usize {
        self.events.iter().filter(|event| is(&event.what)).count()
    }
}

impl<H: fmt::Debug, W: fmt::Debug> fmt::Display for Event<H, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6} s  {:?}: {:?}", self.at.as_secs_f64(), self.host, self.what)
    }
}
