//! Nothing is acknowledged before it is durable, and nothing that was acknowledged is lost (rule 8), whatever
//! the disk does.

use std::{path::Path, rc::Rc, sync::Arc, time::Duration};

use checkpoint::{
    Disk,
    simulated::{Fault, SimulatedDisk},
};
use futures::{FutureExt, future::join_all};
use schemas::{Coded, SignedRecord};
use vls_server::{
    DurableRegistry, RecordsError, Stopping,
    registry::{Admission, Expected, Outcome, Policy},
};

use crate::held_disk::{held_disk_over, hold};
use crate::local::{HandClock, key, on_one_thread, record};

const HOUR: Duration = Duration::from_hours(1);

fn open_at(disk: Arc<dyn Disk>, clock: Rc<HandClock>) -> Result<DurableRegistry, RecordsError> {
    DurableRegistry::open(disk, Path::new("/store"), key(0).id(), Policy::default(), clock)
}

fn open(disk: Arc<dyn Disk>) -> DurableRegistry {
    open_at(disk, HandClock::new()).unwrap()
}

async fn register(registry: &DurableRegistry, record: &SignedRecord) -> Result<Outcome, Stopping> {
    registry.register(None, record.id().as_bytes(), record.packet(), &Expected::Anything, &Admission::None).await
}

async fn packet(registry: &DurableRegistry, record: &SignedRecord) -> Option<Arc<[u8]>> {
    registry.lookup(record.id().as_bytes()).await.unwrap().packet
}

#[test]
fn an_answer_waits_for_the_disk_and_tells_of_nothing_that_is_not_durable() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let registry = open(disk.clone());
        let (first, second) = (record(&key(1), 1, 0), record(&key(1), 2, 0));
        let durable = record(&key(2), 1, 0);
        register(&registry, &durable).await.unwrap();

        let held = hold(&disk);
        let mut stored = Box::pin(register(&registry, &second));
        assert_eq!(stored.as_mut().now_or_never(), None, "the disk has not confirmed it");
        let mut lookup = Box::pin(packet(&registry, &second));
        assert_eq!(lookup.as_mut().now_or_never(), None, "nor may a lookup tell it");
        let mut stale = Box::pin(register(&registry, &first));
        assert_eq!(stale.as_mut().now_or_never(), None, "nor the refusal of an older one");
        let mut settled = Box::pin(registry.settled());
        assert_eq!(settled.as_mut().now_or_never(), None);
        // Whom it does not concern does not wait.
        assert_eq!(packet(&registry, &durable).now_or_never().unwrap().as_deref(), Some(durable.packet()));
        assert_eq!(packet(&registry, &record(&key(3), 1, 0)).now_or_never().unwrap(), None);

        drop(held);
        assert_eq!(stored.await, Ok(Outcome::Stored { lease: HOUR }));
        assert_eq!(lookup.await.as_deref(), Some(second.packet()));
        assert_eq!(stale.await, Ok(Outcome::Stale { current: Some(second.packet().into()) }));
        settled.await.unwrap();
    });
}

#[test]
fn registrations_that_are_verified_together_are_decided_in_the_order_in_which_they_came() {
    const OTHERS: u32 = 300;
    on_one_thread(async {
        let registry = open(SimulatedDisk::new());
        let vat = key(1);
        let [first, second, third, fourth] = [1, 2, 3, 4].map(|epoch| record(&vat, epoch, 0));
        let mut forged = record(&vat, 9, 0).packet().to_vec();
        forged[3] ^= 1;
        let give = async |packet: &[u8], expected: Expected| {
            registry.register(None, vat.id().as_bytes(), packet, &expected, &Admission::None).await.unwrap()
        };
        assert_eq!(register(&registry, &first).await, Ok(Outcome::Stored { lease: HOUR }));
        let others: Vec<_> = (2..OTHERS).map(|n| record(&key(n), 1, 0)).collect();
        // Each is in order when it comes; the others of the same vat decide what becomes of it.
        let (crowd, refused, highest, stale, swapped, same) = tokio::join!(
            join_all(others.iter().map(|record| register(&registry, record))),
            give(&forged, Expected::Anything),
            give(third.packet(), Expected::Order(first.order())),
            give(second.packet(), Expected::Anything),
            give(fourth.packet(), Expected::Order(first.order())),
            give(third.packet(), Expected::Order(first.order())),
        );
        assert!(crowd.iter().all(|outcome| *outcome == Ok(Outcome::Stored { lease: HOUR })));
        assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
        let current: Option<Arc<[u8]>> = Some(third.packet().into());
        assert_eq!(highest, Outcome::Stored { lease: HOUR });
        assert_eq!(stale, Outcome::Stale { current: current.clone() });
        assert_eq!(swapped, Outcome::Unexpected { current });
        assert_eq!(same, Outcome::Refreshed { lease: HOUR });
        registry.close().unwrap();
    });
}

#[test]
fn after_a_power_failure_at_any_point_every_acknowledged_record_is_there() {
    const VATS: u32 = 24;
    let records: Vec<_> = (1..=VATS).map(|n| record(&key(n), 1, 0)).collect();
    let disk = SimulatedDisk::new();
    on_one_thread(async {
        let registry = open(disk.clone());
        let acknowledge = |n: usize| {
            let (registry, record, disk) = (&registry, &records[n], &disk);
            async move {
                assert_eq!(register(registry, record).await, Ok(Outcome::Stored { lease: HOUR }));
                disk.mark(n as u64);
            }
        };
        // Some alone, some in groups.
        for n in 0..6 {
            acknowledge(n).await;
        }
        for group in [6..9, 9..16, 16..24] {
            join_all(group.map(acknowledge)).await;
        }
    });
    let mut history = disk.history();
    let points = history.len();
    let mut found_more = 0;
    for point in (0..=points).step_by(5).chain([points]) {
        history.advance(point);
        let acknowledged: Vec<_> = history.marks().map(|n| usize::try_from(n).unwrap()).collect();
        for seed in 0..2 {
            let crashed = history.crash(point as u64 * 7 + seed);
            on_one_thread(async {
                let registry = open(crashed);
                for n in &acknowledged {
                    let found = packet(&registry, &records[*n]).await;
                    assert_eq!(found.as_deref(), Some(records[*n].packet()), "record {n} after {point} operations");
                }
                let mut held = 0;
                for record in &records {
                    held += usize::from(packet(&registry, record).await.is_some());
                }
                found_more += usize::from(held > acknowledged.len());
            });
        }
    }
    assert!(found_more > 0, "no crash fell between writing and acknowledging: this test has tested nothing");
}

#[test]
fn when_the_disk_fails_nothing_more_is_told_and_what_was_acknowledged_is_kept() {
    let records: Vec<_> = (1..=12).map(|n| record(&key(n), 1, 0)).collect();
    let mut failures = 0;
    for call in (0..36).step_by(3) {
        for (fault, code) in [(Fault::Full, "checkpoint.disk_full"), (Fault::Broken, "checkpoint.disk")] {
            let disk = SimulatedDisk::new();
            let acknowledged = on_one_thread(async {
                let registry = open(disk.clone());
                disk.inject(disk.calls() + call, fault);
                let mut acknowledged = Vec::new();
                for record in &records {
                    if register(&registry, record).await.is_ok() {
                        acknowledged.push(record);
                        continue;
                    }
                    failures += 1;
                    // From here on it is silent, about old and new.
                    let error = registry.failed().await;
                    assert_eq!(error.code().as_str(), code, "{error}");
                    assert_eq!(register(&registry, &records[0]).await, Err(Stopping));
                    assert_eq!(registry.lookup(records[0].id().as_bytes()).await, Err(Stopping));
                    assert!(registry.close().is_err());
                    break;
                }
                acknowledged
            });
            // And the power goes, too.
            let mut history = disk.history();
            history.advance(history.len());
            let crashed = history.crash(call);
            on_one_thread(async {
                let registry = open(crashed);
                for record in &acknowledged {
                    assert_eq!(packet(&registry, record).await.as_deref(), Some(record.packet()));
                }
            });
        }
    }
    assert!(failures > 8, "only {failures} of the injected faults were met by a registration");
}

#[test]
fn leases_survive_restarts_and_go_on_by_the_clock() {
    on_one_thread(async {
        let disk = SimulatedDisk::new();
        let mut clock = HandClock::new();
        let renewed = record(&key(1), 1, 0);
        let silent = record(&key(2), 1, 0);
        {
            let registry = open_at(disk.clone(), clock.clone()).unwrap();
            register(&registry, &renewed).await.unwrap();
            register(&registry, &silent).await.unwrap();
            clock.wait(HOUR * 4 / 5);
            assert_eq!(register(&registry, &renewed).await, Ok(Outcome::Refreshed { lease: HOUR }));
            // No good-bye: the process is killed.
        }
        let disk = {
            let mut history = disk.history();
            history.advance(history.len());
            history.kill()
        };
        clock = clock.in_new_process();
        let registry = open_at(disk.clone(), clock.clone()).unwrap();
        clock.wait(HOUR * 2 / 5);
        let answer = registry.lookup(renewed.id().as_bytes()).await.unwrap();
        assert_eq!((answer.expired, answer.age), (false, HOUR * 2 / 5));
        let answer = registry.lookup(silent.id().as_bytes()).await.unwrap();
        assert_eq!((answer.expired, answer.age), (true, HOUR * 6 / 5));
        assert_eq!(answer.packet.as_deref(), Some(silent.packet()));
        clock.wait(HOUR * 3 / 5);
        assert!(registry.lookup(renewed.id().as_bytes()).await.unwrap().expired);
    });
}

#[test]
fn conflicts_and_marks_survive_a_restart() {
    on_one_thread(async {
        let disk = SimulatedDisk::new();
        let clock = HandClock::new();
        let policy = Policy { max_records: 1, work: None, ..Policy::default() };
        let open = || {
            let store = Path::new("/store");
            DurableRegistry::open(disk.clone(), store, key(0).id(), policy.clone(), clock.clone()).unwrap()
        };
        let registry = open();
        let first = record(&key(1), 5, 0);
        register(&registry, &first).await.unwrap();
        clock.wait(HOUR);
        register(&registry, &record(&key(2), 1, 0)).await.unwrap();
        registry.close().unwrap();
        drop(registry);
        let registry = open();
        let stale = register(&registry, &record(&key(1), 4, 30)).await;
        assert_eq!(stale, Ok(Outcome::Stale { current: None }), "its record is gone, its mark is not");
        assert_eq!(register(&registry, &record(&key(2), 1, 0)).await, Ok(Outcome::Refreshed { lease: HOUR }));
    });
}

#[test]
fn a_store_of_another_server_or_with_a_part_missing_is_refused() {
    on_one_thread(async {
        let disk = SimulatedDisk::new();
        let registry = open(disk.clone());
        register(&registry, &record(&key(1), 1, 0)).await.unwrap();
        let in_use = open_at(disk.clone(), HandClock::new()).unwrap_err();
        assert_eq!(in_use.code().as_str(), "server.running");
        registry.close().unwrap();
        drop(registry);

        let other =
            DurableRegistry::open(disk.clone(), Path::new("/store"), key(7).id(), Policy::default(), HandClock::new());
        assert_eq!(other.unwrap_err().code().as_str(), "checkpoint.wrong_vat");
        let base = disk.copy();
        base.remove(Path::new("/store/base.redb")).unwrap();
        let before = base.files();
        assert_eq!(open_at(base.clone(), HandClock::new()).unwrap_err().code().as_str(), "checkpoint.missing");
        assert_eq!(base.files(), before, "nothing was made in its place");
        assert!(open_at(disk, HandClock::new()).is_ok());
    });
}
