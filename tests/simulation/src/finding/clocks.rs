//! What the wall clocks of a run show, and when what they show excuses a server that does not know a vat.
//!
//! A vat whose clock is ahead of a server's is told so, and dates what it signs for that server by that server's clock.
//! Two cases are left in which nothing can be done. A server whose clock is behind the date of what it has takes nothing
//! else: what is dated by this clock is older, and what is newer is ahead. And a record that has ended by a server's clock
//! when it comes is refused; a vat that is hours behind has no other.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use schemas::limits::MAX_CLOCK_AHEAD;

use super::{
    plan::{BEGINNING, Fault, Machine, Plan, VALIDITY},
    trace::{Standing, Version},
};

/// A time of the run, from and to.
pub(super) type Span = (Duration, Duration);

/// Since when a vat is where: its epoch and place.
pub(super) type Settled = (Duration, (u64, SocketAddr));

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

    /// When the clocks excuse a server that does not know a vat.
    pub(super) fn excuses(&self, pair: &Pair<'_>, ends_at: Duration) -> Vec<Span> {
        let mut moments: Vec<Duration> = vec![Duration::ZERO];
        moments.extend(self.steps(pair.server).iter().chain(self.steps(pair.vat)).map(|(at, _)| *at));
        moments.extend(pair.known.iter().map(|(at, _)| *at));
        moments.extend(pair.signed.iter().map(|(at, _)| *at));
        moments.extend(pair.settled.iter().map(|(at, _)| *at));
        moments.sort_unstable();
        moments.dedup();
        let ends = moments.iter().skip(1).copied().chain([ends_at]);
        let spans = moments.iter().copied().zip(ends).filter(|(from, to)| from < to);
        spans.flat_map(|span| self.excuses_within(pair, span)).collect()
    }

    /// The same while nothing changes but the time.
    fn excuses_within(&self, pair: &Pair<'_>, (from, to): Span) -> impl Iterator<Item = Span> {
        let here = self.shows(pair.server, from);
        let held = last(pair.known, from).and_then(|known| known.version());
        let signed = last(pair.signed, from);
        // What a server has it takes again, whenever it is dated: a vat that has not moved, and whose clock never made it
        // sign anew, offers that.
        let is_said = held.is_some_and(|held| last(pair.settled, from) == held.place.map(|place| (held.epoch, place)));
        let has_jumped = self.steps(pair.vat).first().is_some_and(|(at, _)| *at <= from);
        let is_behind = held.filter(|_| !is_said || has_jumped).and_then(|held| {
            let until = from + ahead_of(date(held) - micros(MAX_CLOCK_AHEAD), here)?;
            Some((from, until.min(to)))
        });
        let is_over = [held, signed].into_iter().flatten().filter_map(move |version| {
            let until = ahead_of(end(version), here).map_or(from, |left| from + left);
            (until < to).then_some((until, to))
        });
        is_behind.into_iter().chain(is_over)
    }
}

/// A server and a vat, and what was seen of them, in the order of time.
pub(super) struct Pair<'a> {
    pub(super) server: Machine,
    pub(super) vat: Machine,
    /// What the server knew of the vat.
    pub(super) known: &'a [(Duration, Standing)],
    /// What the vat signed.
    pub(super) signed: &'a [(Duration, Version)],
    /// Where the vat was.
    pub(super) settled: &'a [Settled],
}

/// What was the last before a moment, or at it.
fn last<T: Copy>(seen: &[(Duration, T)], at: Duration) -> Option<T> {
    seen[..seen.partition_point(|(since, _)| *since <= at)].last().map(|(_, seen)| *seen)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn date(version: Version) -> i64 {
    i64::try_from(version.signed).unwrap_or(i64::MAX)
}

/// When a version has ended. A record says so in whole seconds, and never later than its vat meant.
fn end(version: Version) -> i64 {
    const SECOND: i64 = 1_000_000;
    (date(version) + micros(VALIDITY)) / SECOND * SECOND
}

/// How long until a clock shows a time, if it does not yet.
fn ahead_of(time: i64, shown: i64) -> Option<Duration> {
    u64::try_from(time - shown).ok().filter(|ahead| *ahead > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_ends_with_a_whole_second() {
        let ends = |signed| end(Version { epoch: 1, signed, place: None }) - micros(VALIDITY);
        assert_eq!([0, 999_999, 1_000_000, 1_999_999].map(ends), [0, 0, 1_000_000, 1_000_000]);
    }
}
