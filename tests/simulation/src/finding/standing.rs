//! Refreshed for ever, a registration never ends: what servers know of vats that can reach them.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use super::{
    clocks::{Clocks, Pair, Settled, Span},
    counts::{Count, Counts},
    laws::Breach,
    plan::{Fault, LEASE, Machine, Plan, REGISTER_DEADLINE, RETRY_CAP, SERVERS},
    trace::{Standing, Trace, Version, What},
};

/// For how long a registration lasts at least that nothing has happened to: of its lease the longest time until a renewal
/// is over (half of it, and a tenth of that, which is jitter), and one try of a renewal.
const HELD: Duration = Duration::from_secs(LEASE.as_secs() * 45 / 100 - REGISTER_DEADLINE.as_secs());

/// How long after the end of what made tries fail the next one comes, and succeeds: one that is under way ends at its
/// deadline, the longest wait follows (a tenth of it is jitter), and a part of a deadline.
const TRIED_WITHIN: Duration = Duration::from_millis(REGISTER_DEADLINE.as_secs() * 1500 + RETRY_CAP.as_secs() * 1100);

/// How long a publisher may not notice that a server has lost what it had, or has only said that it has it: until the
/// next renewal. It may have to be tried again.
const NOTICED_WITHIN: Duration = Duration::from_secs(LEASE.as_secs() * 55 / 100 + TRIED_WITHIN.as_secs());

/// What was seen of vats and of what servers know of them.
struct Seen {
    clocks: Clocks,
    known: HashMap<(u8, u8), Vec<(Duration, Standing)>>,
    signed: HashMap<u8, Vec<(Duration, Version)>>,
    settled: HashMap<u8, Vec<Settled>>,
    superseded: HashSet<u8>,
}

impl Seen {
    fn all(plan: &Plan, trace: &Trace) -> Self {
        let (known, signed, settled) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut seen = Self { clocks: Clocks::of(plan), known, signed, settled, superseded: HashSet::new() };
        for event in &trace.events {
            match (&event.what, event.host) {
                (What::Knows { vat, standing }, Machine::Server(server)) => {
                    seen.known.entry((server, *vat)).or_default().push((event.at, *standing));
                }
                (What::Signed { version }, Machine::Vat(vat)) => {
                    seen.signed.entry(vat).or_default().push((event.at, *version));
                }
                (What::Settled { epoch, place }, Machine::Vat(vat)) => {
                    seen.settled.entry(vat).or_default().push((event.at, (*epoch, *place)));
                }
                (What::Superseded { .. }, Machine::Vat(vat)) => _ = seen.superseded.insert(vat),
                _ => {}
            }
        }
        seen
    }

    fn known(&self, server: u8, vat: u8) -> &[(Duration, Standing)] {
        self.known.get(&(server, vat)).map_or(&[], Vec::as_slice)
    }

    /// Where a vat is in the end: the last place of its highest epoch.
    fn place(&self, vat: u8) -> Option<(u64, SocketAddr)> {
        let places = self.settled.get(&vat)?.iter().map(|(_, place)| *place);
        places.max_by_key(|(epoch, _)| *epoch)
    }

    /// When the first server knew of the newest copy of a vat.
    fn new_copy_known_at(&self, vat: u8) -> Option<Duration> {
        let (newest, _) = self.place(vat)?;
        let is_newest =
            |known: &&(Duration, Standing)| known.1.version().is_some_and(|version| version.epoch == newest);
        (0..SERVERS).filter_map(|server| self.known(server, vat).iter().find(is_newest)).map(|(at, _)| *at).min()
    }

    fn excused_by_clocks(&self, plan: &Plan, server: u8, vat: u8) -> Vec<Span> {
        let pair = Pair {
            server: Machine::Server(server),
            vat: Machine::Vat(vat),
            known: self.known(server, vat),
            signed: self.signed.get(&vat).map_or(&[], Vec::as_slice),
            settled: self.settled.get(&vat).map_or(&[], Vec::as_slice),
        };
        self.clocks.excuses(&pair, plan.ends_at)
    }
}

/// Once it is registered, a vat whose publisher can reach a server is live there, always; some time after the healing it
/// is live everywhere, and where it is; and of two copies the old one has stopped.
pub(super) fn judge_standing(plan: &Plan, trace: &Trace, breaches: &mut Vec<Breach>, counts: &mut Counts) {
    let seen = Seen::all(plan, trace);
    for vat in 0..plan.vats {
        let by_clocks: Vec<Vec<Span>> = (0..SERVERS).map(|server| seen.excused_by_clocks(plan, server, vat)).collect();
        for (server, by_clocks) in (0..SERVERS).zip(&by_clocks) {
            let known = seen.known(server, vat);
            let excuses = excuses(plan, server, vat, by_clocks);
            judge_lasting(plan, (server, vat), known, &excuses, breaches);
            counts.standing += count_lasting(plan, known, &excuses);
            let by_clocks_alone: Vec<Span> = by_clocks.iter().map(|(from, to)| (*from, *to + TRIED_WITHIN)).collect();
            counts.clocks += count_lasting(plan, known, &by_clocks_alone);
            if let Some((healed_at, recovered_at)) = plan.healed_at.zip(plan.last_searches_at())
                && !departs(plan, vat)
            {
                let is_excused = is_out_of_reach(by_clocks, healed_at);
                counts.back.add(is_excused);
                let place = seen.place(vat);
                let lost = (!is_excused).then(|| moment_elsewhere(known, recovered_at, place)).flatten();
                breaches.extend(lost.map(|at| Breach::NotBack { vat, server, at }));
            }
        }
        let forks = plan.faults.iter().any(|(_, fault)| *fault == Fault::Forks { vat });
        if let Some(healed_at) = plan.healed_at.filter(|_| forks) {
            // What the new copy signs is taken nowhere; or no server has known of it before the healing, and the old one may have
            // registered just before it: then the next renewal tells, which may come after the end of the run.
            let is_excused = by_clocks.iter().all(|by_clocks| is_out_of_reach(by_clocks, healed_at))
                || seen.new_copy_known_at(vat).is_none_or(|at| at >= healed_at);
            counts.copies.add(is_excused);
            if !is_excused && !seen.superseded.contains(&vat) {
                breaches.push(Breach::TwoCopies(vat));
            }
        }
    }
}

/// Whether clocks keep a vat from a server still after the healing.
fn is_out_of_reach(by_clocks: &[Span], healed_at: Duration) -> bool {
    by_clocks.iter().any(|(_, to)| *to > healed_at)
}

fn departs(plan: &Plan, vat: u8) -> bool {
    plan.faults.iter().any(|(_, fault)| *fault == Fault::Departs { vat })
}

/// Between which moments nothing is demanded of a server's knowledge of a vat.
///
/// After the healing, for which publishers are told to register, no fault is an excuse for longer than that takes.
fn excuses(plan: &Plan, server: u8, vat: u8, by_clocks: &[Span]) -> Vec<Span> {
    let latest = |end: Duration, within: Duration| match plan.last_searches_at().zip(plan.healed_at) {
        Some((recovered_at, healed_at)) if end <= healed_at => (end + within).min(recovered_at),
        _ => end + within,
    };
    let mut excuses: Vec<Span> = Vec::new();
    // Of faults of which one begins before the last is overcome no lease need have begun in between.
    let mut disturbed: Option<Span> = None;
    for (at, fault) in plan.faults.iter().filter(|(_, fault)| is_concerned(fault, server, vat)) {
        let begun = disturbed.filter(|(_, overcome)| at <= overcome).map_or(*at, |(begun, _)| begun);
        let (from, within) = match fault {
            Fault::Departs { .. } => {
                excuses.push((*at, plan.ends_at));
                continue;
            }
            // What is left of leases is reckoned by the wall clock when a server begins: they end early if that has been set
            // since they were granted.
            Fault::Crash { server, empty, .. } if *empty || is_set(plan, *server, *at) => (*at, NOTICED_WITHIN),
            Fault::Lies { server, .. } if is_set(plan, *server, *at) => (*at, NOTICED_WITHIN),
            Fault::Lies { .. } => (begun + HELD, NOTICED_WITHIN),
            _ => (begun + HELD, TRIED_WITHIN),
        };
        let until = latest(*at + fault.lasts(), within);
        let overcome = disturbed.map_or(until, |(_, overcome)| overcome.max(until));
        disturbed = Some((begun, overcome));
        excuses.push((from.min(until), until));
    }
    excuses.extend(by_clocks.iter().map(|(from, to)| (*from, latest(*to, TRIED_WITHIN))));
    excuses
}

/// Whether somebody has set the clock of a server not much longer than a lease before a moment.
fn is_set(plan: &Plan, server: u8, by: Duration) -> bool {
    let is_its_clock = |fault: &Fault| fault.sets_clock_of() == Some(Machine::Server(server));
    plan.faults.iter().any(|(at, fault)| is_its_clock(fault) && *at + LEASE > by)
}

/// Whether a fault may keep a vat from being registered with a server.
fn is_concerned(fault: &Fault, server: u8, vat: u8) -> bool {
    match *fault {
        Fault::Cut { server: cut, other, .. } => cut == server && other == Machine::Vat(vat),
        Fault::Isolate { server: struck, .. }
        | Fault::Crash { server: struck, .. }
        | Fault::Lies { server: struck, .. } => struck == server,
        // Of a vat that sleeps a server knows that it does, and that has no lease that is renewed.
        Fault::Restarts { vat: struck, .. }
        | Fault::Forks { vat: struck }
        | Fault::Sleeps { vat: struck, .. }
        | Fault::Departs { vat: struck } => struck == vat,
        Fault::Jump { .. } | Fault::SetRight { .. } | Fault::Storm { .. } | Fault::Moves { .. } => false,
    }
}

fn judge_lasting(
    plan: &Plan,
    (server, vat): (u8, u8),
    known: &[(Duration, Standing)],
    excuses: &[Span],
    breaches: &mut Vec<Breach>,
) {
    let is_excused = |at: Duration| excuses.iter().any(|(from, to)| (*from..=*to).contains(&at));
    let lost = moments_without(plan, known).into_iter().find(|(from, to)| {
        // Something of it lies outside of all excuses: its beginning, its end, or the end of an excuse.
        let ends = excuses.iter().map(|(_, end)| *end + Duration::from_nanos(1));
        let mut moments = [*from, *to].into_iter().chain(ends).filter(|at| (*from..=*to).contains(at));
        moments.any(|at| !is_excused(at))
    });
    breaches.extend(lost.map(|(at, _)| Breach::Lost { vat, server, at }));
}

/// Counts for how long the knowledge of a server was judged.
fn count_lasting(plan: &Plan, known: &[(Duration, Standing)], excuses: &[Span]) -> Count {
    let first = known.iter().find(|(_, standing)| matches!(standing, Standing::Live(_)));
    let Some((from, _)) = first else { return Count::default() };
    let excused = covered(excuses, (*from, plan.ends_at));
    Count { excused: millis(excused), judged: millis((plan.ends_at - *from).saturating_sub(excused)) }
}

/// How much of a time lies in any of some others.
fn covered(spans: &[Span], (from, to): Span) -> Duration {
    let mut spans: Vec<Span> = spans.iter().map(|(begin, end)| ((*begin).max(from), (*end).min(to))).collect();
    spans.sort_unstable();
    let mut reached = from;
    spans.into_iter().fold(Duration::ZERO, |sum, (begin, end)| {
        let new = end.saturating_sub(begin.max(reached));
        reached = reached.max(end);
        sum + new
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When a server did not know a vat as live, after it had once.
fn moments_without(plan: &Plan, known: &[(Duration, Standing)]) -> Vec<Span> {
    let mut without = Vec::new();
    let (mut was_live, mut since) = (false, None);
    for (at, standing) in known {
        if let Standing::Live(_) = standing {
            was_live = true;
            without.extend(since.take().map(|since| (since, *at)));
        } else if was_live {
            since.get_or_insert(*at);
        }
    }
    without.extend(since.map(|since| (since, plan.ends_at)));
    without
}

/// When, from a moment on, a server first did not know a vat to be live where it is.
fn moment_elsewhere(
    known: &[(Duration, Standing)],
    from: Duration,
    place: Option<(u64, SocketAddr)>,
) -> Option<Duration> {
    let before = known.iter().take_while(|(at, _)| *at <= from).last().map(|(_, standing)| (from, *standing));
    let after = known.iter().filter(|(at, _)| *at > from).copied();
    let is_there = |standing: &Standing| match (standing, place) {
        (Standing::Live(version), Some((epoch, place))) => version.epoch == epoch && version.place == Some(place),
        _ => false,
    };
    let before = before.unwrap_or((from, Standing::Missing));
    [before].into_iter().chain(after).find(|(_, standing)| !is_there(standing)).map(|(at, _)| at)
}
