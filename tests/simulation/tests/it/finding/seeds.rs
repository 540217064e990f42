//! Many networks, each from one number.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use simulation::finding::Plan;

use super::world::{Mutation, Report, run};

/// What is run each time.
const SEEDS: Range<u64> = 0..12;
/// What is run when asked for.
const MANY_SEEDS: Range<u64> = 0..10_000;

fn run_all(seeds: Range<u64>) -> Vec<String> {
    let next = AtomicU64::new(seeds.start);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= seeds.end {
                    return failed;
                }
                failed.extend(failure(&run(Plan::from_seed(seed), Mutation::None)));
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn failure(report: &Report) -> Option<String> {
    let breaches = report.breaches();
    (!breaches.is_empty()).then(|| {
        let (seed, plan) = (report.plan.seed, &report.plan);
        format!(
            "{breaches:?}\n{plan}\nreplay: SIMULATION_SEED={seed} cargo test -p simulation finding::seeds::one_network -- --nocapture"
        )
    })
}

#[test]
fn many_networks_and_no_breach() {
    let seeds = std::env::var("SIMULATION_SEEDS").ok().map(|range| {
        let (first, end) = range.split_once("..").expect("first..end");
        first.parse().unwrap()..end.parse().unwrap()
    });
    let failed = run_all(seeds.unwrap_or(SEEDS));
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
#[ignore = "ten thousand runs take an hour"]
fn ten_thousand_networks_and_no_breach() {
    let failed = run_all(MANY_SEEDS);
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n\n"));
}

/// With `SIMULATION_SEED`, the run of that seed with everything that was seen.
#[test]
fn one_network_and_no_breach() {
    let chosen = std::env::var("SIMULATION_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let report = run(Plan::from_seed(chosen.unwrap_or(1)), Mutation::None);
    if chosen.is_some() {
        println!("{}", report.plan);
        report.trace.events.iter().for_each(|event| println!("{event}"));
    }
    assert_eq!(failure(&report), None);
}
