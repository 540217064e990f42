//! What must hold of every trace, whatever befell the machines.

use std::{collections::HashSet, fmt, time::Duration};

use super::{
    counts::Counts,
    plan::{Machine, Plan, Search},
    renewals::judge_renewals,
    searching::{Searched, judge_searches},
    standing::judge_standing,
    trace::{Found, Standing, Trace, What},
};

/// For how long after a first good answer a better one is waited for: the resolver's, which a test compares with this.
pub const GRACE: Duration = Duration::from_millis(50);

/// The longest hedge: likewise.
pub const LONGEST_HEDGE: Duration = Duration::from_millis(500);

/// A law that a trace breaks. Searches are named by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Breach {
    /// A search ended with an older record than an answer to it had shown.
    UsedOlder(u32),
    /// A search ended with an older record than the finder had seen in an earlier one.
    WentBack(u32),
    /// A search ended with nothing, although the highest record that the finder had ever seen said where the vat is, and
    /// came in an answer to it.
    Ignored(u32),
    /// A search ended at somebody who is not the vat.
    WrongPeer(u32),
    /// A search ended at a place that the vat had left, as an answer had shown.
    StalePeer(u32),
    /// A search dialled a place that the vat had left, as an answer had shown.
    DialledAfterBetter(u32),
    /// A search did not end within the grace after an answer with the highest record known.
    SlowToSettle(u32),
    /// A search did not ask the next server within one hedge.
    SlowToAsk(u32),
    /// On a network that is whole, a search for a vat that all servers know did not find it in time.
    NotFound(u32),
    /// A search did not end.
    NeverEnded(u32),
    /// A server did not know a vat any more whose publisher could reach it.
    Lost {
        /// The vat.
        vat: u8,
        /// The server.
        server: u8,
        /// Since when.
        at: Duration,
    },
    /// Some time after the healing a server did not know a vat to be live, or to be where it is.
    NotBack {
        /// The vat.
        vat: u8,
        /// The server.
        server: u8,
        /// Since when.
        at: Duration,
    },
    /// A server took more renewals of a vat in one lease than there was reason for.
    RenewedTooOften {
        /// The vat.
        vat: u8,
        /// The server.
        server: u8,
        /// From when on.
        at: Duration,
    },
    /// A vat tried to register more often in one lease than there was reason for.
    TriedTooOften {
        /// The vat.
        vat: u8,
        /// From when on.
        at: Duration,
    },
    /// A publisher believes that it is registered with a server that does not know it.
    FalseBelief {
        /// The vat.
        vat: u8,
        /// The server.
        server: u8,
    },
    /// A vat stopped for a proof that proves nothing.
    StoppedByALie(u8),
    /// Of two copies of a vat the old one was not stopped.
    TwoCopies(u8),
    /// Something of a program still ran after its end.
    Leaked(Machine),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What is said of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Every law that it breaks.
    pub breaches: Vec<Breach>,
    /// How much was judged.
    pub counts: Counts,
}

/// Judges a trace by every law.
#[must_use]
pub fn judge(plan: &Plan, trace: &Trace) -> Judgement {
    let Judgement { mut breaches, mut counts } = Judgement::default();
    judge_searches(plan, trace, &mut breaches, &mut counts);
    judge_standing(plan, trace, &mut breaches, &mut counts);
    judge_renewals(plan, trace, &mut breaches);
    judge_proofs(trace, &mut breaches);
    for event in &trace.events {
        match (&event.what, event.host) {
            (What::Leaked, machine) => breaches.push(Breach::Leaked(machine)),
            (What::Believes { server, standing: Some(Standing::Missing | Standing::Lapsed(_)) }, Machine::Vat(vat)) => {
                breaches.push(Breach::FalseBelief { vat, server: *server });
            }
            _ => {}
        }
    }
    Judgement { breaches, counts }
}

/// A copy of a vat stops only for the proof of a later one.
fn judge_proofs(trace: &Trace, breaches: &mut Vec<Breach>) {
    let mut woken = HashSet::new();
    for event in &trace.events {
        let Machine::Vat(vat) = event.host else { continue };
        match event.what {
            What::Woke { epoch } => _ = woken.insert((vat, epoch)),
            What::Superseded { epoch, by } if by <= epoch || !woken.contains(&(vat, by)) => {
                breaches.push(Breach::StoppedByALie(vat));
            }
            _ => {}
        }
    }
}

/// How long each search for a record took, of those that found one, and how many found none.
#[must_use]
pub fn lookups(plan: &Plan, trace: &Trace) -> (Vec<Duration>, usize) {
    let is_lookup = |(_, search): &&(Duration, Search)| !search.connects;
    let expected = plan.searches.iter().filter(is_lookup).count();
    let searches = Searched::all(trace);
    let took = |search: &Searched| match &search.ended {
        Some((at, Found::Record(Some(_)), _)) => Some(*at - search.began),
        _ => None,
    };
    let found: Vec<Duration> = searches.values().filter_map(took).collect();
    let missed = expected.saturating_sub(found.len());
    (found, missed)
}

#[cfg(test)]
mod tests;
