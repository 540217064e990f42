//! What the wall clocks of a run show, and when what they show excuses a server that does not know a vat.
//!
//! A vat whose clock is ahead of a server's is told so, and dates what it signs for that server by that server's clock.
//! Two cases are left in which nothing can be done. A server whose clock is behind the date of what it has takes nothing
//! that is dated by this clock, because it is older, and nothing that is newer, because it is ahead. And a record that
//! has ended by a server's clock when it comes is refused; a vat that is hours behind has no other.

use std::{collections::HashMap, time::Duration};

use schemas::limits::MAX_CLOCK_AHEAD;

use super::{
    plan::{BEGINNING, Fault, Machine, Plan, VALIDITY},
    trace::{Standing, Version},
};

/// A time of the run, from and to.
pub(super) type Span = (Duration, Duration);

/// By how much clocks are wrong, in microseconds, and since when.
pub(super) struct Clocks(HashMap<Machine, Vec<(Duration, i64)>>);

impl Clocks {
    pub(super) fn of(plan: &Plan) -> Self {
        let mut clocks: HashMap<Machine, Vec<(Duration, i64)>> = HashMap::new();
        for (at, fault) in &plan.faults {
            let (machine, by) = match *fault {
                Fault::Jump { machine, ahead, by } => (machine, if ahead { micros(by) } else { -micros(by) }),
                Fault::SetRight { machine } => (machine, 0),
                _ => continue,
            };
            let steps = clocks.entry(machine).or_default();
            let before = steps.last().map_or(0, |(_, ahead)| *ahead);
            let is_right = matches!(fault, Fault::SetRight { .. });
            steps.push((*at, if is_right { 0 } else { before + by }));
        }
        Self(clocks)
    }

    fn steps(&self, machine: Machine) -> &[(Duration, i64)] {
        self.0.get(&machine).map_or(&[], Vec::as_slice)
    }

    /// What a clock shows, in microseconds since 1970.
    pub(super) fn shows(&self, machine: Machine, at: Duration) -> i64 {
        let ahead = self.steps(machine).iter().take_while(|(since, _)| *since <= at).last();
        micros(BEGINNING + at) + ahead.map_or(0, |(_, ahead)| *ahead)
    }

    /// When the clocks excuse a server, which knew this of a vat since then, of which this was signed.
    pub(super) fn excuses(
        &self,
        server: Machine,
        known: &[(Duration, Standing)],
        signed: &[(Duration, Version)],
        ends_at: Duration,
    ) -> Vec<Span> {
        let steps = self.steps(server);
        // As long as the clock is right, and nothing was dated by one that was not, there is no excuse.
        let mut moments: Vec<Duration> = vec![Duration::ZERO];
        moments.extend(steps.iter().map(|(at, _)| *at));
        moments.extend(known.iter().map(|(at, _)| *at));
        moments.extend(signed.iter().map(|(at, _)| *at));
        moments.sort_unstable();
        moments.dedup();
        let ends = moments.iter().skip(1).copied().chain([ends_at]);
        let spans = moments.iter().copied().zip(ends).filter(|(from, to)| from < to);
        spans.flat_map(|span| self.excuses_within(server, known, signed, span)).collect()
    }

    /// The same while nothing changes but the time.
    fn excuses_within(
        &self,
        server: Machine,
        known: &[(Duration, Standing)],
        signed: &[(Duration, Version)],
        (from, to): Span,
    ) -> impl Iterator<Item = Span> {
        let here = self.shows(server, from);
        let held = known.iter().take_while(|(at, _)| *at <= from).last().and_then(|(_, known)| known.version());
        let newest = signed.iter().take_while(|(at, _)| *at <= from).last().map(|(_, version)| *version);
        let is_behind = held.and_then(|held| {
            let until = from + ahead_of(date(held) - micros(MAX_CLOCK_AHEAD), here)?;
            Some((from, until.min(to)))
        });
        let is_ended = newest.and_then(|newest| {
            let until = ahead_of(date(newest) + micros(VALIDITY), here).map_or(from, |left| from + left);
            (until < to).then_some((until, to))
        });
        is_behind.into_iter().chain(is_ended)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn date(version: Version) -> i64 {
    i64::try_from(version.signed).unwrap_or(i64::MAX)
}

/// How long until a clock shows a time, if it does not yet.
fn ahead_of(time: i64, shown: i64) -> Option<Duration> {
    u64::try_from(time - shown).ok().filter(|ahead| *ahead > 0).map(Duration::from_micros)
}
