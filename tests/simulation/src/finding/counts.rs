//! How much was judged, and how much was not because something excused it: a law with too many excuses is none.

use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// Judgements of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// What a law was applied to.
    pub judged: u64,
    /// What it would have been applied to without an excuse.
    pub excused: u64,
}

/// What was judged in one run, or in many together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Milliseconds in which a server had to know a vat, over all servers and vats.
    pub standing: Count,
    /// The same, with wrong clocks for the only excuse.
    pub clocks: Count,
    /// Servers and vats of which the first had to know the second some time after the healing.
    pub back: Count,
    /// Copies of vats that had to stop.
    pub copies: Count,
    /// Searches that had to end soon after a good answer.
    pub settling: Count,
    /// Searches that had to ask one server after the other.
    pub asking: Count,
    /// Searches that had to find their vat after the healing.
    pub finding: Count,
}

impl Count {
    pub(super) fn add(&mut self, is_excused: bool) {
        *(if is_excused { &mut self.excused } else { &mut self.judged }) += 1;
    }

    /// How many in a thousand were excused.
    #[must_use]
    pub fn excused_per_mille(&self) -> u64 {
        self.excused * 1000 / (self.judged + self.excused).max(1)
    }
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { judged: self.judged + other.judged, excused: self.excused + other.excused }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { standing, clocks, back, copies, settling, asking, finding } = other;
        *self = Self {
            standing: self.standing + standing,
            clocks: self.clocks + clocks,
            back: self.back + back,
            copies: self.copies + copies,
            settling: self.settling + settling,
            asking: self.asking + asking,
            finding: self.finding + finding,
        };
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { judged, excused } = self;
        write!(f, "{judged} judged, {excused} excused ({} per mille)", self.excused_per_mille())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { standing, clocks, back, copies, settling, asking, finding } = self;
        writeln!(f, "known to a server, in ms: {standing}")?;
        writeln!(f, "excused by clocks, in ms: {clocks}")?;
        writeln!(f, "registered after healing: {back}")?;
        writeln!(f, "copies that stop:         {copies}")?;
        writeln!(f, "ended after an answer:    {settling}")?;
        writeln!(f, "asked within a hedge:     {asking}")?;
        write!(f, "found after healing:      {finding}")
    }
}
