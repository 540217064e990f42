//! Refreshed for ever, a registration never ends: what servers know of vats that can reach them.

use std::time::Duration;

use schemas::limits::MAX_CLOCK_AHEAD;

use super::{
    laws::Breach,
    plan::{Fault, JUMP, LEASE, Machine, Plan, RECOVERY, SERVERS, VALIDITY},
    trace::{Standing, Trace, What},
};

/// How long after a fault a registration may be missing: the next renewal comes within half the lease (a tenth of it is
/// jitter), and it may have to be tried again.
const BACK_WITHIN: Duration = Duration::from_secs(LEASE.as_secs() * 55 / 100 + RECOVERY.as_secs());

/// Between which moments nothing is demanded of a server's knowledge of a vat.
fn excuses(plan: &Plan, server: u8, vat: u8) -> Vec<(Duration, Duration)> {
    let is_concerned = |fault: &Fault| match *fault {
        Fault::Cut { server: cut, other, .. } => cut == server && other == Machine::Vat(vat),
        Fault::Isolate { server: struck, .. }
        | Fault::Crash { server: struck, .. }
        | Fault::Lies { server: struck, .. } => struck == server,
        Fault::Restarts { vat: struck, .. } | Fault::Forks { vat: struck } => struck == vat,
        _ => false,
    };
    let ends_for_good = |fault: &Fault| match *fault {
        Fault::Departs { vat: struck } | Fault::Sleeps { vat: struck, .. } => struck == vat,
        _ => false,
    };
    let mut excuses: Vec<(Duration, Duration)> = plan
        .faults
        .iter()
        .filter(|(_, fault)| is_concerned(fault))
        .map(|(at, fault)| (*at, *at + fault.lasts() + BACK_WITHIN))
        .collect();
    // Of a vat that sleeps a server knows that it does, and that has no lease that is renewed.
    excuses.extend(plan.faults.iter().filter(|(_, fault)| ends_for_good(fault)).map(|(at, fault)| {
        let lasts = if matches!(fault, Fault::Departs { .. }) { plan.ends_at } else { fault.lasts() + BACK_WITHIN };
        (*at, *at + lasts)
    }));
    excuses.extend(excused_by_clocks(plan, server, vat).map(|at| (at, plan.ends_at)));
    excuses
}

/// From when on the clocks excuse a server that does not know a vat.
///
/// A vat whose clock is ahead of a server's is told so, and dates what it signs for that server by that server's clock. But
/// a server whose clock was set back to before the date of what it has takes nothing that is dated by this clock,
/// because it is older, and nothing that is newer, because it is ahead. And a vat that is so far behind that its records
/// have ended when they come has no way out.
pub(super) fn excused_by_clocks(plan: &Plan, server: u8, vat: u8) -> Option<Duration> {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let (hour, allowed, validity) = (seconds(JUMP), seconds(MAX_CLOCK_AHEAD), seconds(VALIDITY - LEASE));
    // How far they are ahead of the true time, and so what the server has.
    let (mut own, mut here, mut dated) = (0, 0, 0);
    for (at, fault) in &plan.faults {
        let Fault::Jump { machine, ahead } = fault else { continue };
        let by = if *ahead { hour } else { -hour };
        match *machine {
            Machine::Vat(struck) if struck == vat => own += by,
            Machine::Server(struck) if struck == server => here += by,
            _ => continue,
        }
        // A record is signed anew when half of its validity is over.
        if dated > here + allowed || here - own > validity / 2 {
            return Some(*at);
        }
        dated = dated.max(own.min(here));
    }
    None
}

/// Once it is registered, a vat whose publisher can reach a server is live there, always.
pub(super) fn judge_standing(plan: &Plan, trace: &Trace, breaches: &mut Vec<Breach>) {
    for vat in 0..plan.vats {
        for server in 0..SERVERS {
            let excuses = excuses(plan, server, vat);
            let is_excused = |at: Duration| excuses.iter().any(|(from, to)| (*from..=*to).contains(&at));
            let lost = moments_without(plan, trace, server, vat).into_iter().find(|(from, to)| {
                // Something of it lies outside of all excuses: its beginning, its end, or the end of an excuse.
                let ends = excuses.iter().map(|(_, end)| *end + Duration::from_nanos(1));
                let mut moments = [*from, *to].into_iter().chain(ends).filter(|at| (*from..=*to).contains(at));
                moments.any(|at| !is_excused(at))
            });
            breaches.extend(lost.map(|(at, _)| Breach::Lost { vat, server, at }));
        }
    }
}

/// When a server did not know a vat as live, after it had once.
fn moments_without(plan: &Plan, trace: &Trace, server: u8, vat: u8) -> Vec<(Duration, Duration)> {
    let mut without = Vec::new();
    let (mut was_live, mut since) = (false, None);
    for event in trace.events.iter().filter(|event| event.host == Machine::Server(server)) {
        let What::Knows { vat: of, standing } = &event.what else { continue };
        if *of != vat {
            continue;
        }
        if let Standing::Live(_) = standing {
            was_live = true;
            without.extend(since.take().map(|since| (since, event.at)));
        } else if was_live {
            since.get_or_insert(event.at);
        }
    }
    without.extend(since.map(|since| (since, plan.ends_at)));
    without
}
