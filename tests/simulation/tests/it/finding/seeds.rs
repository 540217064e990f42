//! Many networks, each from one number.

use std::ops::Range;

use simulation::finding::{Counts, GRACE, LONGEST_HEDGE, Plan};

use super::world::{Mutation, Report, run};
use crate::seeds::{assert_same, chosen_seed, chosen_seeds, each, told};

/// What is run each time.
const SEEDS: Range<u64> = 0..16;
/// What is run when asked for.
const MANY_SEEDS: Range<u64> = 0..10_000;

/// No trace of them breaks a law, and enough is judged of them: how much, in words.
fn assert_lawful(seeds: Range<u64>) -> String {
    let judged = each(seeds, |seed| {
        let report = run(Plan::from_seed(seed), Mutation::None);
        Some((failure(&report), report.judged().counts))
    });
    let mut counts = Counts::default();
    judged.iter().for_each(|(_, of_one)| counts += *of_one);
    let told = format!("{} networks\n{counts}", judged.len());
    let failed: Vec<String> = judged.into_iter().filter_map(|(failure, _)| failure).collect();
    assert!(failed.is_empty(), "{told}\n{} failed\n{}", failed.len(), failed.join("\n\n"));
    assert_little_is_excused(&counts);
    told
}

fn failure(report: &Report) -> Option<String> {
    told(&report.breaches(), &report.plan, report.plan.seed, "finding::seeds::one_network")
}

fn assert_little_is_excused(counts: &Counts) {
    // While a server is down, cut off or lying, nothing can be asked of it. All else is judged nearly always.
    let Counts { standing, clocks, back, copies, settling, asking, finding } = counts;
    let bounds = [(standing, 350), (clocks, 40), (back, 5), (copies, 150), (settling, 5), (asking, 100), (finding, 10)];
    for (count, most_per_mille) in bounds {
        assert!(count.judged > 0 && count.excused <= most_of(count.judged + count.excused, most_per_mille), "{counts}");
    }
}

/// How many of so many may be excused: of a few, as many more as chance gives, which is three standard deviations; of many,
/// a thousandth more, since one silence excuses several at a time.
fn most_of(all: u64, per_mille: u64) -> u64 {
    let chance = (all * per_mille * (1_000 - per_mille)).isqrt();
    (all * per_mille + all.max(3 * chance)) / 1_000
}

#[test]
fn chance_counts_for_little_where_there_is_much() {
    assert_eq!([2_239, 90_000, 1_000_000_000].map(|all| most_of(all, 100)), [266, 9_270, 101_000_000]);
}

#[test]
fn many_networks_and_no_breach() {
    println!("{}", assert_lawful(chosen_seeds().unwrap_or(SEEDS)));
}

#[test]
#[ignore = "ten thousand runs take an hour, and nearly three without optimisation"]
fn ten_thousand_networks_and_no_breach() {
    println!("{}", assert_lawful(chosen_seeds().unwrap_or(MANY_SEEDS)));
}

/// With `SIMULATION_SEED`, the run of that seed with everything that was seen.
#[test]
fn one_network_and_no_breach() {
    let chosen = chosen_seed();
    let report = run(Plan::from_seed(chosen.unwrap_or(1)), Mutation::None);
    if chosen.is_some() {
        println!("{}", report.plan);
        report.trace.events.iter().for_each(|event| println!("{event}"));
    }
    assert_eq!(failure(&report), None);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let mut first = None;
    for seed in 100..102 {
        let [one, again] = [(); 2].map(|()| run(Plan::from_seed(seed), Mutation::None).trace);
        assert_same(seed, &one.events, &again.events, 1_000);
        assert_ne!(first.replace(one.clone()), Some(one));
    }
}

#[test]
fn the_times_of_the_laws_are_those_of_the_resolver() {
    assert_eq!((GRACE, LONGEST_HEDGE), (vls_client::limits::LIVE_GRACE, vls_client::limits::HEDGE_BOUNDS.1));
}
