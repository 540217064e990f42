//! Many networks, each from one number.

use std::ops::Range;

use simulation::finding::{GRACE, LONGEST_HEDGE, Plan};

use super::world::{Mutation, Report, run};
use crate::seeds::{assert_same, chosen_seed, chosen_seeds, each, told};

/// What is run each time.
const SEEDS: Range<u64> = 0..16;
/// What is run when asked for.
const MANY_SEEDS: Range<u64> = 0..10_000;

/// Those of them whose trace breaks a law.
fn run_all(seeds: Range<u64>) -> Vec<String> {
    each(seeds, |seed| failure(&run(Plan::from_seed(seed), Mutation::None)))
}

fn failure(report: &Report) -> Option<String> {
    told(&report.breaches(), &report.plan, report.plan.seed, "finding::seeds::one_network")
}

#[test]
fn many_networks_and_no_breach() {
    let failed = run_all(chosen_seeds().unwrap_or(SEEDS));
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
#[ignore = "ten thousand runs take an hour"]
fn ten_thousand_networks_and_no_breach() {
    let failed = run_all(chosen_seeds().unwrap_or(MANY_SEEDS));
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n\n"));
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
