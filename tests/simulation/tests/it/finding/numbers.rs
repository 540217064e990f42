//! How often and how soon a lookup finds its vat while one of three servers is dead and one datagram in twenty is lost.

use std::{ops::Range, time::Duration};

use simulation::finding::{Counts, Judgement, Plan, lookups};
use vls_client::limits::HEDGE;

use super::world::{Mutation, run};
use crate::seeds::{chosen_seeds, each};

/// What is asked of them: at most one in ten thousand may fail.
const MISSED: usize = 10_000;

/// What came of many lookups.
#[derive(Default)]
struct Numbers {
    found: usize,
    missed: usize,
    /// By how much each took longer than two round trips; nothing if it did not.
    over: Vec<Duration>,
}

impl Numbers {
    fn of(seeds: Range<u64>) -> Self {
        let mut all = Self::default();
        for numbers in each(seeds, Self::of_one) {
            all.found += numbers.found;
            all.missed += numbers.missed;
            all.over.extend(numbers.over);
        }
        all.over.sort_unstable();
        all
    }

    fn of_one(seed: u64) -> Option<Self> {
        let report = run(Plan::one_dead(seed), Mutation::None);
        let breaches = report.breaches();
        assert_eq!(breaches, [], "{}", report.plan);
        let (took, missed) = lookups(&report.plan, &report.trace);
        let round_trips = 4 * report.plan.longest_way();
        let over = took.iter().map(|took| took.saturating_sub(round_trips)).collect();
        Some(Self { found: took.len(), missed, over })
    }

    /// By how much the slowest lookups but one in `one_in` took longer than two round trips.
    fn but(&self, one_in: usize) -> Duration {
        let position = self.over.len() - 1 - self.over.len() / one_in;
        self.over[position]
    }

    /// Judges them, and puts them into words.
    fn judged(&self) -> String {
        let Self { found, missed, .. } = self;
        let (p99, p999) = (self.but(100), self.but(1_000));
        assert!(*found > 0 && missed * MISSED <= found + missed, "{missed} of {} failed", found + missed);
        assert!(p99 <= HEDGE, "p99 took two round trips and {p99:?}");
        format!(
            "{found} lookups found their vat, {missed} did not; beyond two round trips: p99 {p99:?}, p99.9 {p999:?}"
        )
    }
}

#[test]
fn with_one_of_three_servers_dead_and_one_datagram_in_twenty_lost_vats_are_found_at_once() {
    println!("{}", Numbers::of(0..3).judged());
}

#[test]
#[ignore = "a thousand runs, a million lookups, take minutes"]
fn a_thousand_times_with_one_of_three_servers_dead_vats_are_found_at_once() {
    println!("{}", Numbers::of(chosen_seeds().unwrap_or(0..1_000)).judged());
}

/// Runs over many leases, in which only clocks are wrong: how much was judged, in words.
fn assert_no_registration_ends(seeds: Range<u64>, leases: u32) -> String {
    let judged = each(seeds, |seed| {
        let report = run(Plan::many_leases(seed, leases), Mutation::None);
        let Judgement { breaches, counts } = report.judged();
        Some((counts, (!breaches.is_empty()).then(|| format!("{breaches:?}\n{}", report.plan))))
    });
    let mut counts = Counts::default();
    judged.iter().for_each(|(of_one, _)| counts += *of_one);
    let failed: Vec<String> = judged.into_iter().filter_map(|(_, failure)| failure).collect();
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n\n"));
    let Counts { standing, .. } = counts;
    assert!(standing.judged > 0 && standing.excused_per_mille() <= 250, "{standing}");
    standing.to_string()
}

#[test]
fn for_many_leases_and_with_clocks_that_jump_no_registration_ends() {
    println!("milliseconds of registrations: {}", assert_no_registration_ends(0..2, 12));
}

#[test]
#[ignore = "hundreds of runs over a hundred leases take long"]
fn for_a_hundred_leases_no_registration_ends() {
    println!("milliseconds of registrations: {}", assert_no_registration_ends(chosen_seeds().unwrap_or(0..300), 100));
}
