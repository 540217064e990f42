//! Programs that are made wrong on purpose: the laws notice.

use std::time::Duration;

use simulation::{
    Breach, Host, Plan,
    plan::{Fault, Weather},
};

use crate::world::{Mutation, run};

/// A quick network, and a vat that dies again and again.
fn plan(seed: u64) -> Plan {
    let crash = Fault::Crash { host: Host::Vat, lasts: Duration::from_millis(200) };
    let crashes = (1..10).map(|number| (Duration::from_secs(2 * number), crash)).collect();
    let least_latency = Duration::from_millis(1);
    let weather = Weather { least_latency, most_latency: 2 * least_latency, loss: 0, duplication: 0 };
    Plan { weather, ..Plan::quiet(seed, crashes) }
}

/// Whether one of a few seeds shows a breach of this kind.
fn is_noticed(mutation: Mutation, is: impl Fn(&Breach) -> bool) -> bool {
    (0..20).any(|seed| run(plan(seed), mutation).breaches().iter().any(&is))
}

#[test]
fn programs_that_are_right_break_no_law_under_the_same_faults() {
    for seed in 0..5 {
        assert_eq!(run(plan(seed), Mutation::None).breaches(), []);
    }
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
