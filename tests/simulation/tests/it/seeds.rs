//! Many networks, each from one number.

use std::{
    fmt::{Debug, Display},
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use simulation::Plan;

use crate::world::{Mutation, Report, run};

/// What is run each time.
const SEEDS: Range<u64> = 0..60;
/// What is run when asked for.
const MANY_SEEDS: Range<u64> = 0..1_000;

/// Runs seeds side by side, and gives what comes of them.
pub(crate) fn each<T: Send>(seeds: Range<u64>, run: impl Fn(u64) -> Option<T> + Sync) -> Vec<T> {
    let next = AtomicU64::new(seeds.start);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= seeds.end {
                    return results;
                }
                results.extend(run(seed));
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// The seeds that the environment names, `first..end`.
pub(crate) fn chosen_seeds() -> Option<Range<u64>> {
    let range = std::env::var("SIMULATION_SEEDS").ok()?;
    let (first, end) = range.split_once("..").expect("first..end");
    Some(first.parse().unwrap()..end.parse().unwrap())
}

/// The seed that the environment names.
pub(crate) fn chosen_seed() -> Option<u64> {
    std::env::var("SIMULATION_SEED").ok().map(|seed| seed.parse().expect("a number"))
}

/// What is to be told of a run in which laws were broken, and how to see it again: by the test of this name.
pub(crate) fn told(breaches: &[impl Debug], plan: &impl Display, seed: u64, test: &str) -> Option<String> {
    (!breaches.is_empty()).then(|| {
        format!("{breaches:?}\n{plan}\nreplay: SIMULATION_SEED={seed} cargo test -p simulation {test} -- --nocapture")
    })
}

/// Two runs of one seed have seen the same, more than `least` events.
pub(crate) fn assert_same<E: PartialEq + Debug>(seed: u64, one: &[E], again: &[E], least: usize) {
    assert!(one.len() > least, "something happens");
    let differs = one.iter().zip(again).find(|(one, again)| one != again);
    assert!(differs.is_none(), "seed {seed}: {differs:?}");
    assert_eq!(one.len(), again.len());
}

/// Those of them whose trace breaks a law.
fn run_all(seeds: Range<u64>) -> Vec<String> {
    each(seeds, |seed| failure(&run(Plan::from_seed(seed), Mutation::None)))
}

fn failure(report: &Report) -> Option<String> {
    told(&report.breaches(), &report.plan, report.plan.seed, "seeds::one_network")
}

#[test]
fn many_networks_and_no_breach() {
    let failed = run_all(chosen_seeds().unwrap_or(SEEDS));
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
#[ignore = "a thousand runs take minutes"]
fn a_thousand_networks_and_no_breach() {
    let failed = run_all(MANY_SEEDS);
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
    let traces = |seed| [(); 2].map(|()| run(Plan::from_seed(seed), Mutation::None).trace);
    let mut first = None;
    for seed in 100..104 {
        let [one, again] = traces(seed);
        assert_same(seed, &one.events, &again.events, 100);
        assert_ne!(first.replace(one.clone()), Some(one));
    }
}
