//! No storm of renewals: how often a vat registers, and how often a server has to take it.
//!
//! At rest the next registration comes after half a lease (less a tenth of that, which is jitter): three in a lease at
//! most. What fails is tried again, after waits that double up to a cap. Whatever makes a publisher register at once costs
//! one more with each server; so does each setting of a clock of the two, by which what was signed may be of no use any more.

use std::{collections::HashMap, time::Duration};

use super::{
    laws::Breach,
    plan::{LEASE, Machine, Plan, SERVERS},
    trace::{Trace, What},
};

/// Renewals of one lease that a server takes: each second one may come again, because its answer was lost.
const MOST_TAKEN: usize = 6;

/// Tries of one lease with one server: all of them fail at once, and the waits are 1, 2, 4 and 6 seconds, less a tenth.
const MOST_TRIES: usize = 9;

pub(super) fn judge_renewals(plan: &Plan, trace: &Trace, breaches: &mut Vec<Breach>) {
    let mut taken: HashMap<(u8, u8), Vec<Duration>> = HashMap::new();
    let (mut tries, mut reasons) = (HashMap::<u8, Vec<Duration>>::new(), HashMap::<u8, Vec<Duration>>::new());
    for event in &trace.events {
        match (&event.what, event.host) {
            (What::Renewed { vat }, Machine::Server(server)) => {
                taken.entry((*vat, server)).or_default().push(event.at);
            }
            (What::Offers, Machine::Vat(vat)) => tries.entry(vat).or_default().push(event.at),
            (What::Settled { .. }, Machine::Vat(vat)) => reasons.entry(vat).or_default().push(event.at),
            _ => {}
        }
    }
    for vat in 0..plan.vats {
        // At the healing publishers are told to register everywhere.
        reasons.entry(vat).or_default().extend(plan.healed_at);
        let reasons = &reasons[&vat];
        for server in 0..SERVERS {
            let taken = taken.get(&(vat, server)).map_or(&[][..], Vec::as_slice);
            let clocks = clocks_set(plan, |machine| [Machine::Vat(vat), Machine::Server(server)].contains(&machine));
            let reasons: Vec<Duration> = reasons.iter().copied().chain(clocks).collect();
            let storm = first_storm(taken, &reasons, |reasons| MOST_TAKEN + reasons);
            breaches.extend(storm.map(|at| Breach::RenewedTooOften { vat, server, at }));
        }
        let tries = tries.get(&vat).map_or(&[][..], Vec::as_slice);
        let storm = first_storm(tries, reasons, |reasons| usize::from(SERVERS) * (MOST_TRIES + reasons));
        breaches.extend(storm.map(|at| Breach::TriedTooOften { vat, at }));
    }
}

/// When clocks were set.
fn clocks_set(plan: &Plan, whose: impl Fn(Machine) -> bool) -> impl Iterator<Item = Duration> {
    plan.faults.iter().filter(move |(_, fault)| fault.sets_clock_of().is_some_and(&whose)).map(|(at, _)| *at)
}

/// The first lease in which something is done more often than there may be reason to.
fn first_storm(times: &[Duration], reasons: &[Duration], most: impl Fn(usize) -> usize) -> Option<Duration> {
    let within = |from: Duration, at: &&Duration| (from..from + LEASE).contains(*at);
    times.iter().enumerate().find_map(|(first, from)| {
        let count = times[first..].iter().take_while(|at| within(*from, at)).count();
        // What was begun for a reason may be seen, or be tried again, a little later.
        let begun = from.saturating_sub(LEASE / 4);
        let reasons = reasons.iter().filter(|at| (begun..*from + LEASE).contains(*at)).count();
        (count > most(reasons)).then_some(*from)
    })
}
