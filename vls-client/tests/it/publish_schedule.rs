//! The publisher's pure core, with simulated time and chosen randomness.
use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use vls_client::{
    PublishTiming, limits,
    publish_schedule::{PublishEvent, PublishSchedule},
};

const START: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);

/// What one simulated server does with a registration.
#[derive(Debug, Clone)]
enum Server {
    /// Takes `latency`, then grants `lease`; but every `fails`th attempt fails (0: none does).
    Grants { latency: Duration, lease: Duration, fails: u32 },
    /// Never answers: the registration ends at its deadline.
    Dead,
}

#[derive(Debug, Default)]
struct History {
    begun: Vec<Duration>,
    succeeded: Vec<Duration>,
}

/// Keeps registering for `days` of simulated time.
fn simulate(servers: &[Server], mut random: impl FnMut() -> u64, end: Duration) -> Vec<History> {
    let timing = PublishTiming::default();
    let mut schedule = PublishSchedule::new(servers.len(), timing, START);
    let mut histories: Vec<History> = servers.iter().map(|_| History::default()).collect();
    let mut running: BTreeMap<(Duration, usize), PublishEvent> = BTreeMap::new();
    let mut now = START;
    while now < end {
        for entry in schedule.begin_due(now) {
            histories[entry].begun.push(now);
            let attempt = u32::try_from(histories[entry].begun.len()).unwrap();
            let (after, event) = match &servers[entry] {
                Server::Grants { latency, fails, .. } if *fails > 0 && attempt.is_multiple_of(*fails) => {
                    (*latency, PublishEvent::Failed { entry, retry_after: None })
                }
                Server::Grants { latency, lease, .. } => (*latency, PublishEvent::Registered { entry, lease: *lease }),
                Server::Dead => (timing.register_deadline, PublishEvent::Failed { entry, retry_after: None }),
            };
            running.insert((now + after, entry), event);
        }
        let next_end = running.first_key_value().map(|((when, _), _)| *when);
        let next_due = schedule.wake_at();
        now = [next_end, next_due].into_iter().flatten().min().expect("something is always to come");
        while let Some(first) = running.first_entry().filter(|first| first.key().0 <= now) {
            let event = first.remove();
            if let PublishEvent::Registered { entry, .. } = event {
                histories[entry].succeeded.push(now);
            }
            schedule.handle(now, event, &mut random);
        }
    }
    histories
}

/// A small generator; its quality does not matter here.
fn numbers(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed ^ seed >> 29
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_registration_that_is_refreshed_for_ever_never_expires_not_even_beside_dead_entries(
        lease in (30_u64..20_000).prop_map(Duration::from_secs),
        latency in (1_u64..2000).prop_map(Duration::from_millis),
        fails in prop_oneof![Just(0_u32), 2_u32..9],
        dead in 0_usize..3,
        seed in any::<u64>(),
    ) {
        let mut servers = vec![Server::Dead; dead];
        servers.push(Server::Grants { latency, lease, fails });
        let histories = simulate(&servers, numbers(seed), lease * 40);
        let succeeded = &histories[dead].succeeded;
        prop_assert_eq!(succeeded[0], latency, "dead entries delay nothing");
        prop_assert!(succeeded.len() >= 40);
        for pair in succeeded.windows(2) {
            prop_assert!(pair[1] - pair[0] < lease, "the lease ran out between {:?} and {:?}", pair[0], pair[1]);
        }
    }

    #[test]
    fn renewals_come_at_half_the_lease_give_or_take_a_tenth(
        lease in (10_u64..7000).prop_map(Duration::from_secs),
        random in any::<u64>(),
    ) {
        let mut schedule = PublishSchedule::new(1, PublishTiming::default(), START);
        schedule.begin_due(START);
        schedule.handle(START, PublishEvent::Registered { entry: 0, lease }, &mut move || random);
        let due = schedule.due(0).unwrap();
        prop_assert!(due >= lease * 45 / 100 && due <= lease * 55 / 100, "{due:?} of {lease:?}");
    }
}

#[test]
fn jitter_uses_the_whole_range() {
    let mut random = numbers(1);
    let mut schedule = PublishSchedule::new(1, PublishTiming::default(), START);
    let lease = SECOND * 2000;
    let due = (0..2000).map(|_| {
        schedule.handle(START, PublishEvent::Registered { entry: 0, lease }, &mut random);
        schedule.due(0).unwrap()
    });
    let due: Vec<Duration> = due.collect();
    assert_eq!(due.iter().min(), Some(&(SECOND * 900)));
    assert_eq!(due.iter().max(), Some(&(SECOND * 1100)));
}

#[test]
fn failures_back_off_exponentially_up_to_the_cap_and_a_success_forgets_them() {
    let mut middle = || u64::MAX / 2 / 201 * 201 + 100;
    let timing = PublishTiming::default();
    let mut schedule = PublishSchedule::new(1, timing, START);
    let mut waits = Vec::new();
    for _ in 0..40 {
        schedule.handle(START, PublishEvent::Failed { entry: 0, retry_after: None }, &mut middle);
        waits.push(schedule.due(0).unwrap());
    }
    assert_eq!(waits[..6], [SECOND, SECOND * 2, SECOND * 4, SECOND * 8, SECOND * 16, SECOND * 32]);
    assert!(waits[6..].iter().all(|wait| *wait == timing.retry_cap));
    schedule.handle(START, PublishEvent::Registered { entry: 0, lease: SECOND * 600 }, &mut middle);
    schedule.handle(START, PublishEvent::Failed { entry: 0, retry_after: None }, &mut middle);
    assert_eq!(schedule.due(0), Some(SECOND));
}

#[test]
fn a_server_may_ask_for_a_longer_wait_but_not_for_an_endless_one() {
    let mut random = numbers(2);
    let mut schedule = PublishSchedule::new(1, PublishTiming::default(), START);
    let mut wait_for = |seconds| {
        let event = PublishEvent::Failed { entry: 0, retry_after: Some(SECOND * seconds) };
        schedule.handle(START, event, &mut random);
        schedule.due(0).unwrap()
    };
    assert_eq!(wait_for(300), SECOND * 300);
    assert_eq!(wait_for(u32::MAX), limits::MAX_RETRY_AFTER);
}

#[test]
fn a_nudge_registers_everywhere_at_once_and_again_where_one_is_under_way() {
    let mut random = numbers(3);
    let mut schedule = PublishSchedule::new(3, PublishTiming::default(), START);
    assert_eq!(schedule.begin_due(START), [0, 1, 2]);
    schedule.handle(START, PublishEvent::Registered { entry: 0, lease: SECOND * 600 }, &mut random);
    schedule.handle(START, PublishEvent::Failed { entry: 1, retry_after: None }, &mut random);
    assert_eq!(schedule.begin_due(START), [0_usize; 0]);

    schedule.handle(START, PublishEvent::Nudge, &mut random);
    assert_eq!(schedule.begin_due(START), [0, 1], "the renewed one and the one that waits after a failure");
    // Entry 2 registers what was true before the nudge.
    schedule.handle(START, PublishEvent::Registered { entry: 2, lease: SECOND * 600 }, &mut random);
    assert_eq!(schedule.begin_due(START), [2]);
    schedule.handle(START, PublishEvent::Registered { entry: 2, lease: SECOND * 600 }, &mut random);
    assert_eq!(schedule.begin_due(START), [0_usize; 0], "once is enough");
}

#[test]
fn a_lease_of_nothing_does_not_make_a_server_be_called_without_pause() {
    let mut random = numbers(4);
    let mut schedule = PublishSchedule::new(1, PublishTiming::default(), START);
    schedule.handle(START, PublishEvent::Registered { entry: 0, lease: Duration::ZERO }, &mut random);
    assert_eq!(schedule.due(0), Some(limits::MIN_RENEWAL));
    schedule.handle(START, PublishEvent::Registered { entry: 0, lease: SECOND * u32::MAX }, &mut random);
    let most = limits::MAX_RENEWAL + limits::MAX_RENEWAL / 10;
    assert!(schedule.due(0).unwrap() <= most, "a server that lost its table is told again in good time");
}

#[test]
fn an_entry_whose_carrier_is_missing_is_never_due() {
    let mut random = numbers(5);
    let mut schedule = PublishSchedule::new(1, PublishTiming::default(), START);
    schedule.handle(START, PublishEvent::Impossible { entry: 0 }, &mut random);
    schedule.handle(START, PublishEvent::Nudge, &mut random);
    assert_eq!(schedule.begin_due(SECOND), [0_usize; 0]);
    assert_eq!((schedule.wake_at(), schedule.due(0)), (None, None));
}
