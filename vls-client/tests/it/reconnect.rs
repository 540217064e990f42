//! When a vat is connected to again: the pure core, with simulated time.

use std::time::Duration;

use proptest::prelude::*;
use vls_client::reconnect::{Reconnect, ReconnectAction, ReconnectEvent, ReconnectTiming};

const MS: Duration = Duration::from_millis(1);

fn timing() -> ReconnectTiming {
    ReconnectTiming { base: 100 * MS, cap: 1000 * MS, steady: 2000 * MS, attempt: 500 * MS }
}

/// A machine with a clock of its own, and numbers that are always the highest or the lowest.
struct Simulated {
    machine: Reconnect,
    now: Duration,
    random: u64,
}

impl Simulated {
    fn new() -> Self {
        Self { machine: Reconnect::new(timing()), now: Duration::ZERO, random: u64::MAX }
    }

    fn at(&mut self, now: Duration, event: ReconnectEvent) -> Vec<ReconnectAction> {
        self.now = now;
        let random = self.random;
        self.machine.handle(now, event, &mut move || random)
    }

    fn now(&mut self, event: ReconnectEvent) -> Vec<ReconnectAction> {
        self.at(self.now, event)
    }

    /// Lets time pass until the machine wants to do something.
    fn wait(&mut self) -> (Duration, Vec<ReconnectAction>) {
        let at = self.machine.wake_at().expect("nothing to wait for");
        let waited = at.saturating_sub(self.now);
        (waited, self.at(at, ReconnectEvent::Tick))
    }
}

#[test]
fn nothing_is_dialled_for_nobody_and_the_first_who_wants_it_does_not_wait() {
    let mut simulated = Simulated::new();
    assert_eq!(simulated.now(ReconnectEvent::Tick), []);
    assert_eq!(simulated.machine.wake_at(), None);
    assert_eq!(simulated.now(ReconnectEvent::Wanted), [ReconnectAction::Connect]);
    assert_eq!(simulated.now(ReconnectEvent::Wanted), [], "one attempt at a time");
}

#[test]
fn a_session_whose_peer_is_silent_is_kept_until_another_has_come_and_has_ended_before_that_counts() {
    let mut simulated = Simulated::new();
    simulated.now(ReconnectEvent::Wanted);
    let connected = |epoch| ReconnectEvent::Connected { epoch };
    assert_eq!(simulated.now(connected(3)), [ReconnectAction::Keep { generation: 1 }]);
    assert_eq!(simulated.now(ReconnectEvent::Silent), [ReconnectAction::Connect]);
    assert_eq!(simulated.now(ReconnectEvent::Silent), [], "one attempt at a time");
    assert_eq!(simulated.now(ReconnectEvent::Failed), [], "it is still the one that counts");
    assert_eq!(simulated.now(ReconnectEvent::Silent), [ReconnectAction::Connect]);
    assert_eq!(simulated.now(connected(2)), [ReconnectAction::Discard { known: 3 }], "an old copy takes no place");
    assert_eq!(simulated.now(ReconnectEvent::Silent), [ReconnectAction::Connect]);
    assert_eq!(simulated.now(connected(3)), [ReconnectAction::Replace]);
    assert_eq!(simulated.now(ReconnectEvent::Ended), []);
    assert_eq!(simulated.now(connected(3)), [ReconnectAction::Keep { generation: 2 }]);
}

#[test]
fn a_silent_session_that_ends_by_itself_leaves_its_place_to_the_attempt_that_is_under_way() {
    let mut simulated = Simulated::new();
    simulated.now(ReconnectEvent::Wanted);
    simulated.now(ReconnectEvent::Connected { epoch: 1 });
    assert_eq!(simulated.now(ReconnectEvent::Silent), [ReconnectAction::Connect]);
    assert_eq!(simulated.now(ReconnectEvent::Ended), [], "no second attempt");
    assert_eq!(simulated.now(ReconnectEvent::Connected { epoch: 1 }), [ReconnectAction::Keep { generation: 2 }]);
}

#[test]
fn a_silent_session_that_nobody_waits_for_or_watches_is_left_alone() {
    let mut simulated = Simulated::new();
    simulated.now(ReconnectEvent::Wanted);
    simulated.now(ReconnectEvent::Connected { epoch: 1 });
    simulated.now(ReconnectEvent::Unwanted);
    assert_eq!(simulated.now(ReconnectEvent::Silent), []);
}

#[test]
fn waits_after_failures_double_to_the_cap_and_half_of_them_is_random() {
    for (random, expected) in [(u64::MAX, [100, 200, 400, 800, 1000, 1000]), (0, [50, 100, 200, 400, 500, 500])] {
        let mut simulated = Simulated::new();
        simulated.random = random;
        simulated.now(ReconnectEvent::Wanted);
        for milliseconds in expected {
            assert_eq!(simulated.now(ReconnectEvent::Failed), []);
            assert_eq!(simulated.wait(), (milliseconds * MS, vec![ReconnectAction::Connect]));
        }
    }
}

#[test]
fn a_wait_is_kept_also_if_everybody_leaves_and_comes_back_meanwhile() {
    let mut simulated = Simulated::new();
    simulated.now(ReconnectEvent::Wanted);
    simulated.now(ReconnectEvent::Failed);
    simulated.now(ReconnectEvent::Unwanted);
    assert_eq!(simulated.machine.wake_at(), None);
    assert_eq!(simulated.at(10 * MS, ReconnectEvent::Wanted), []);
    assert_eq!(simulated.wait(), (90 * MS, vec![ReconnectAction::Connect]));
}

#[test]
fn after_a_session_that_lasted_the_next_attempt_comes_soon_and_after_a_short_one_as_after_a_failure() {
    let mut simulated = Simulated::new();
    simulated.now(ReconnectEvent::Wanted);
    (0..3).for_each(|_| {
        simulated.now(ReconnectEvent::Failed);
        simulated.wait();
    });
    assert_eq!(simulated.now(ReconnectEvent::Connected { epoch: 3 }), [ReconnectAction::Keep { generation: 1 }]);
    // Accepted and dropped: the fourth failure in a row.
    simulated.now(ReconnectEvent::Ended);
    assert_eq!(simulated.wait(), (800 * MS, vec![ReconnectAction::Connect]));
    assert_eq!(simulated.now(ReconnectEvent::Connected { epoch: 3 }), [ReconnectAction::Keep { generation: 2 }]);
    let end = simulated.now + 2000 * MS;
    simulated.at(end, ReconnectEvent::Ended);
    assert_eq!(simulated.wait(), (100 * MS, vec![ReconnectAction::Connect]));
    simulated.now(ReconnectEvent::Failed);
    assert_eq!(simulated.wait(), (100 * MS, vec![ReconnectAction::Connect]), "a new count");
}

#[test]
fn an_old_copy_is_left_and_a_newer_one_takes_over_at_once() {
    let mut simulated = Simulated::new();
    simulated.now(ReconnectEvent::Wanted);
    simulated.now(ReconnectEvent::Connected { epoch: 5 });
    assert_eq!(simulated.now(ReconnectEvent::Seen { epoch: 5 }), [], "no news");
    assert_eq!(simulated.now(ReconnectEvent::Seen { epoch: 6 }), [ReconnectAction::Break]);
    assert_eq!(simulated.now(ReconnectEvent::Seen { epoch: 6 }), [], "told once");
    // Short as it was, its end is no failure of the vat.
    simulated.random = 0;
    assert_eq!(simulated.now(ReconnectEvent::Ended), [ReconnectAction::Connect]);
    assert_eq!(
        simulated.now(ReconnectEvent::Connected { epoch: 5 }),
        [ReconnectAction::Discard { known: 6 }],
        "the old copy answers once more"
    );
    simulated.wait();
    assert_eq!(simulated.now(ReconnectEvent::Connected { epoch: 7 }), [ReconnectAction::Keep { generation: 2 }]);
    assert_eq!(simulated.machine.highest_epoch(), 7);
}

fn event() -> impl Strategy<Value = ReconnectEvent> {
    prop_oneof![
        Just(ReconnectEvent::Wanted),
        Just(ReconnectEvent::Unwanted),
        (0_u64..4).prop_map(|epoch| ReconnectEvent::Connected { epoch }),
        Just(ReconnectEvent::Failed),
        Just(ReconnectEvent::Ended),
        Just(ReconnectEvent::Silent),
        (0_u64..4).prop_map(|epoch| ReconnectEvent::Seen { epoch }),
        Just(ReconnectEvent::Tick),
    ]
}

proptest! {
    /// Whatever happens, in any order: one attempt at a time, generations and epochs grow, who waits is never
    /// forgotten, and never waits for longer than the longest wait.
    #[test]
    fn no_order_of_events_breaks_the_rules(
        steps in prop::collection::vec((event(), 0_u64..700, any::<u64>()), 0..80)
    ) {
        let mut machine = Reconnect::new(timing());
        let (mut now, mut connecting, mut generation, mut epoch) = (Duration::ZERO, false, 0, 0);
        let (mut up, mut wanted) = (false, false);
        for (event, milliseconds, random) in steps {
            now += Duration::from_millis(milliseconds);
            let was_connecting = connecting;
            for action in machine.handle(now, event, &mut move || random) {
                match action {
                    ReconnectAction::Connect => {
                        // Beside a session only if that is silent.
                        prop_assert!(!connecting && (!up || event == ReconnectEvent::Silent));
                        connecting = true;
                    }
                    ReconnectAction::Keep { generation: next } => {
                        prop_assert!(was_connecting && !up);
                        prop_assert_eq!(next, generation + 1);
                        let ReconnectEvent::Connected { epoch: found } = event else { panic!("{event:?}") };
                        prop_assert!(found >= epoch);
                        (connecting, up, generation, epoch) = (false, true, next, found);
                    }
                    ReconnectAction::Discard { known } => {
                        prop_assert!(was_connecting);
                        prop_assert_eq!(known, machine.highest_epoch());
                        connecting = false;
                    }
                    ReconnectAction::Break => prop_assert!(up),
                    // What has come is said to be connected once more when the old one has ended.
                    ReconnectAction::Replace => prop_assert!(up && was_connecting),
                }
            }
            match event {
                ReconnectEvent::Wanted => wanted = true,
                ReconnectEvent::Unwanted => wanted = false,
                ReconnectEvent::Failed if was_connecting => connecting = false,
                ReconnectEvent::Ended => up = false,
                _ => {}
            }
            epoch = epoch.max(machine.highest_epoch());
            prop_assert_eq!(epoch, machine.highest_epoch());
            match machine.wake_at() {
                Some(at) => {
                    prop_assert!(wanted && !connecting && !up);
                    prop_assert!(at <= now + timing().cap);
                }
                None => prop_assert!(!wanted || connecting || up),
            }
        }
    }
}
