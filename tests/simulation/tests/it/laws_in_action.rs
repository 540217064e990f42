//! Programs that are made wrong on purpose: the laws notice, within a few seeds of those that are always run.

use simulation::{Breach, Plan};

use crate::world::{Mutation, run};

/// Whether one of the first seeds shows a breach of this kind.
fn is_noticed(mutation: Mutation, is: impl Fn(&Breach) -> bool) -> bool {
    (0..20).any(|seed| run(Plan::from_seed(seed), mutation).breaches().iter().any(&is))
}

#[test]
fn a_vat_that_answers_before_its_disk_has_it_is_noticed() {
    assert!(is_noticed(Mutation::GateAlwaysOpen, |breach| matches!(breach, Breach::Forgotten(_))));
}

#[test]
fn a_caller_that_repeats_a_call_by_itself_is_noticed() {
    assert!(is_noticed(Mutation::SilentRetry, |breach| matches!(breach, Breach::ExecutedWrongly(_))));
    assert!(is_noticed(Mutation::SilentRetry, |breach| matches!(breach, Breach::CountedTwice(_))));
}
