//! Programs that are made wrong on purpose: the laws notice.

use std::time::Duration;

use simulation::finding::{
    Breach, Plan,
    plan::{Fault, Lie},
};

use super::world::{Mutation, run};

const SECOND: Duration = Duration::from_secs(1);

/// A server that goes on with what it knew while every other vat moves.
fn plan(seed: u64) -> Plan {
    let frozen = Fault::Lies { server: 0, lie: Lie::Frozen, lasts: 20 * SECOND };
    let mut faults = vec![(7 * SECOND, frozen)];
    faults.extend((0..20).step_by(2).map(|vat| (8 * SECOND, Fault::Moves { vat, stranger: true })));
    Plan::quiet(seed, faults).with_searches_from_seed(4)
}

/// Whether one of a few seeds shows a breach of this kind.
fn is_noticed(mutation: Mutation, is: impl Fn(&Breach) -> bool) -> bool {
    (0..3).any(|seed| run(plan(seed), mutation).breaches().iter().any(&is))
}

#[test]
fn programs_that_are_right_break_no_law_under_the_same_faults() {
    for seed in 0..2 {
        assert_eq!(run(plan(seed), Mutation::None).breaches(), []);
    }
}

#[test]
fn a_finder_that_uses_the_first_record_that_comes_is_noticed() {
    assert!(is_noticed(Mutation::Trusting, |breach| matches!(breach, Breach::UsedOlder(_))));
}

#[test]
fn a_publisher_that_never_renews_is_noticed() {
    assert!(is_noticed(Mutation::NoRenewal, |breach| matches!(breach, Breach::Lost { .. })));
}

#[test]
fn a_server_that_gives_up_what_it_has_promised_to_keep_is_noticed() {
    assert!(is_noticed(Mutation::Crowded, |breach| matches!(breach, Breach::Lost { .. })));
    assert!(is_noticed(Mutation::Crowded, |breach| matches!(breach, Breach::FalseBelief { .. })));
}
