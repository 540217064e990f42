//! The pure core of `connect`, with simulated time.
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::support::records::{draft, noon};
use proptest::prelude::*;
use schemas::{ErrorCode, SignedRecord, State};
use vls_client::{
    DialTiming, Failure, Outcome,
    dial_schedule::{DialAction, DialEvent, DialSchedule},
};

const START: Duration = Duration::ZERO;
const MILLISECOND: Duration = Duration::from_millis(1);

fn record(epoch: u64, addresses: &[&str]) -> SignedRecord {
    draft(epoch, noon()).at(addresses).sign()
}

fn race(hints: &[&str]) -> DialSchedule {
    let hints: Vec<String> = hints.iter().map(ToString::to_string).collect();
    DialSchedule::new(&hints, DialTiming::default(), false, START)
}

fn best(record: &SignedRecord) -> DialEvent {
    DialEvent::Best(Some(record.clone()))
}

fn failed(slot: usize) -> DialEvent {
    DialEvent::Failed { slot, failure: Failure::Timeout { after: MILLISECOND } }
}

fn somewhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9))
}

fn dialled(actions: &[DialAction]) -> Vec<usize> {
    let dial = |action: &DialAction| match action {
        DialAction::Dial(slot) => Some(*slot),
        _ => None,
    };
    actions.iter().filter_map(dial).collect()
}

#[test]
fn a_hinted_address_is_dialled_before_anybody_has_answered() {
    let mut race = race(&["10.0.0.1:5", "[2001:db8::1]:6"]);
    let actions = race.handle(START, DialEvent::Tick);
    assert_eq!(dialled(&actions), [0, 1]);
    assert_eq!((race.target(1).host.as_str(), race.target(1).port), ("2001:db8::1", 6));
    let won = race.handle(MILLISECOND, DialEvent::Connected { slot: 1, address: somewhere() });
    assert_eq!(won, [DialAction::Won(1)]);
    assert_eq!(race.wake_at(), None);
}

#[test]
fn the_addresses_of_a_record_are_dialled_in_its_order_and_staggered() {
    let mut race = race(&[]);
    assert_eq!(race.handle(START, DialEvent::Tick), []);
    let addresses = ["quic:10.0.0.1:1", "quic:10.0.0.2:1", "quic:10.0.0.3:1", "quic:10.0.0.4:1", "quic:10.0.0.5:1"];
    let timing = DialTiming::default();
    assert_eq!(dialled(&race.handle(START, best(&record(1, &addresses)))), [0, 1, 2]);
    assert_eq!(race.wake_at(), Some(timing.hedge));
    assert_eq!(dialled(&race.handle(timing.hedge, DialEvent::Tick)), [3]);
    assert_eq!(dialled(&race.handle(timing.hedge, failed(0))), [4], "a failure makes room at once");
}

#[test]
fn a_higher_record_replaces_the_addresses_but_not_the_hints() {
    let mut race = race(&["10.0.0.9:1"]);
    race.handle(START, DialEvent::Tick);
    race.handle(START, best(&record(1, &["quic:10.0.0.1:1", "quic:10.0.0.2:1"])));
    let actions = race.handle(MILLISECOND, best(&record(2, &["quic:10.0.0.2:1", "quic:10.0.0.3:1"])));
    assert_eq!(actions, [DialAction::Cancel(1), DialAction::Dial(3)]);
    let outcomes: Vec<&str> = race.attempts(MILLISECOND).iter().map(|attempt| attempt.outcome.kind()).collect();
    assert_eq!(outcomes, ["waiting", "withdrawn", "waiting", "waiting"]);
    // What a cancelled dial still brings is not taken.
    assert_eq!(race.handle(MILLISECOND, DialEvent::Connected { slot: 1, address: somewhere() }), []);
}

#[test]
fn a_record_of_a_vat_that_sleeps_withdraws_every_address() {
    let mut race = race(&[]);
    race.handle(START, best(&record(1, &["quic:10.0.0.1:1"])));
    let asleep = draft(2, noon()).state(State::Dormant).at(&["quic:10.0.0.1:1"]).sign();
    assert_eq!(race.handle(START, best(&asleep)), [DialAction::Cancel(0)]);
    assert_eq!(race.handle(START, DialEvent::LookupFinished), [DialAction::Lost]);
}

#[test]
fn an_address_that_comes_back_is_dialled_again() {
    let mut race = race(&[]);
    race.handle(START, best(&record(1, &["quic:10.0.0.1:1"])));
    race.handle(START, DialEvent::Best(None));
    assert_eq!(dialled(&race.handle(START, best(&record(2, &["quic:10.0.0.1:1"])))), [0]);
}

#[test]
fn the_race_is_lost_only_when_the_lookup_can_bring_nothing_more() {
    let mut race = race(&["10.0.0.1:5"]);
    race.handle(START, DialEvent::Tick);
    assert_eq!(race.handle(START, failed(0)), []);
    assert_eq!(race.handle(START, DialEvent::LookupFinished), [DialAction::Lost]);
}

#[test]
fn the_deadline_ends_it() {
    let mut race = race(&["10.0.0.1:5"]);
    race.handle(START, DialEvent::Tick);
    let deadline = DialTiming::default().deadline;
    assert_eq!(race.wake_at(), Some(deadline));
    assert_eq!(race.handle(deadline, DialEvent::Tick), [DialAction::Lost]);
    assert!(matches!(race.attempts(deadline)[0].outcome, Outcome::Waiting));
}

#[test]
fn what_cannot_be_dialled_gets_its_line_and_no_dial() {
    let mut race = race(&["no port"]);
    let record = record(1, &["https://example.org/vat", "vls:", "quic:10.0.0.1:1"]);
    assert_eq!(race.handle(START, best(&record)), [DialAction::Dial(3)]);
    let codes: Vec<_> = race.attempts(START).iter().map(|attempt| attempt.outcome.code()).collect();
    assert_eq!(codes[0], Some(ErrorCode::VlsEntryMalformed));
    assert_eq!(codes[1..3], [Some(ErrorCode::VlsNoCarrier); 2]);
}

/// What a random environment does next.
#[derive(Debug, Clone)]
enum Step {
    Record(Vec<u8>),
    Withdraw,
    Fail(usize),
    Connect(usize),
    Finish,
    Wait,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: no address is dialled twice at a time, only running dials are cancelled or win, there
    /// is one end, and after it nothing.
    #[test]
    fn the_race_ends_exactly_once_and_never_dials_one_address_twice_at_a_time(
        hints in 0_u8..4,
        steps in proptest::collection::vec(prop_oneof![
            proptest::collection::vec(0_u8..20, 0..8).prop_map(Step::Record),
            Just(Step::Withdraw),
            (0_usize..30).prop_map(Step::Fail),
            (0_usize..30).prop_map(Step::Connect),
            Just(Step::Finish),
            Just(Step::Wait),
        ], 0..40),
    ) {
        let hints: Vec<String> = (0..hints).map(|number| format!("10.0.0.{number}:1")).collect();
        let mut race = DialSchedule::new(&hints, DialTiming::default(), false, START);
        let mut now = START;
        let mut running: BTreeMap<usize, String> = BTreeMap::new();
        let mut ended = false;
        let mut epoch = 0;
        let all = std::iter::once(Step::Wait).chain(steps).chain([Step::Finish, Step::Wait, Step::Wait]);
        for step in all {
            let event = match step {
                Step::Record(numbers) => {
                    epoch += 1;
                    let mut texts: Vec<String> = numbers.iter().map(|number| format!("quic:10.0.0.{number}:1")).collect();
                    texts.sort();
                    texts.dedup();
                    best(&record(epoch, &texts.iter().map(String::as_str).collect::<Vec<_>>()))
                }
                Step::Withdraw => DialEvent::Best(None),
                Step::Fail(slot) => failed(slot),
                Step::Connect(slot) => DialEvent::Connected { slot, address: somewhere() },
                Step::Finish => DialEvent::LookupFinished,
                Step::Wait => {
                    now = race.wake_at().unwrap_or(now);
                    DialEvent::Tick
                }
            };
            let mut finished_by = None;
            match &event {
                DialEvent::Failed { slot, .. } => drop(running.remove(slot)),
                DialEvent::Connected { slot, .. } if running.contains_key(slot) => finished_by = Some(*slot),
                _ => {}
            }
            let actions = race.handle(now, event);
            prop_assert!(!ended || actions.is_empty(), "something came after the end");
            if let Some(slot) = finished_by.filter(|_| !ended) {
                prop_assert_eq!(&actions, &[DialAction::Won(slot)]);
            }
            for action in actions {
                match action {
                    DialAction::Dial(slot) => {
                        let host = race.target(slot).host.clone();
                        prop_assert!(!running.values().any(|other| *other == host), "{host} is dialled twice");
                        running.insert(slot, host);
                    }
                    DialAction::Cancel(slot) => prop_assert!(running.remove(&slot).is_some()),
                    DialAction::Won(slot) => {
                        prop_assert_eq!(finished_by, Some(slot));
                        ended = true;
                    }
                    DialAction::Lost => ended = true,
                }
            }
        }
        while !ended {
            let wake_at = race.wake_at();
            prop_assert!(wake_at.is_some(), "neither ended nor waiting");
            now = wake_at.unwrap();
            ended = race.handle(now, DialEvent::Tick).contains(&DialAction::Lost);
        }
        prop_assert!(now <= DialTiming::default().deadline);
        prop_assert_eq!(race.wake_at(), None);
    }
}
