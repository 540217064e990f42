//! The rules of registration, one by one (DESIGN §4): rules 6 to 9, how long it is kept and for whom. Time is turned by hand; no socket, no disk.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use schemas::SignedRecord;
use vls_server::registry::{Admission, Expected, Outcome, Policy, Rate};

use crate::{
    local::{START, key},
    world::{Draft, HOUR, World, packet, refreshed, refusal, stored},
};

// ---- rule 6: leases

#[test]
fn a_lease_ends_at_the_records_expiry_or_with_the_policy_whichever_is_first() {
    for (expires, lease) in [(600, 600), (3_600, 3_600), (7_200, 3_600)] {
        let mut world = World::new();
        let record = Draft { expires, ..Draft::default() }.sign(&key(1));
        assert_eq!(world.register(&record), stored(Duration::from_secs(lease)));
        world.wait(Duration::from_secs(lease) - Duration::from_micros(1));
        assert!(!world.lookup(record.id()).expired);
        world.wait(Duration::from_micros(1));
        let answer = world.lookup(record.id());
        assert!(answer.expired);
        assert_eq!(answer.packet, Some(packet(&record)), "it still tells where the vat was");
        assert_eq!(answer.age, Duration::from_secs(lease));
    }
}

#[test]
fn renewed_at_four_fifths_of_the_lease_it_is_found_at_six_fifths_also_across_a_restart() {
    for restart_after in [None, Some(10), Some(2890), Some(4000)] {
        let mut world = World::new();
        let record = Draft::default().sign(&key(1));
        world.register(&record);
        for second in 1..=4320 {
            world.wait_seconds(1);
            if second == 2880 {
                assert_eq!(world.register(&record), refreshed(HOUR));
            }
            if restart_after == Some(second) {
                world.restart();
            }
            assert_eq!(world.current(record.id()), Some(packet(&record)), "after {second} s");
        }
        // And the renewed lease ends when it should, not with the first one.
        world.wait_seconds(2880 + 3600 - 4320 - 1);
        assert!(!world.lookup(record.id()).expired);
        world.wait_seconds(1);
        assert!(world.lookup(record.id()).expired);
    }
}

#[test]
fn who_renews_at_half_his_lease_gets_a_longer_one_when_the_policy_has_become_longer() {
    let mut world = World::new();
    let record = Draft::default().sign(&key(1));
    assert_eq!(world.register(&record), stored(HOUR));
    world.registry.set_policy(Policy { lease: HOUR * 24, ..Policy::default() });
    world.wait(HOUR / 2);
    assert_eq!(world.register(&record), refreshed(HOUR * 24));
}

#[test]
fn a_record_that_is_renewed_for_ever_never_expires() {
    let mut world = World::new();
    let record = Draft { expires: 100_000_000, ..Draft::default() }.sign(&key(1));
    world.register(&record);
    for round in 0..1_000 {
        world.wait_seconds(1 + round * 7 % 3599);
        assert_eq!(world.current(record.id()), Some(packet(&record)), "round {round}");
        assert!(matches!(world.register(&record), Outcome::Refreshed { .. }));
        if round % 97 == 0 {
            world.restart();
        }
    }
}

#[test]
fn every_renewal_promises_no_more_than_what_a_restart_keeps() {
    let mut world = World::new();
    let record = Draft { expires: 9_000, ..Draft::default() }.sign(&key(1));
    world.register(&record);
    for step in [10, 200, 30, 300, 1000, 224, 226, 2000] {
        world.wait_seconds(step);
        let Outcome::Refreshed { lease } = world.register(&record) else { panic!("after {step}") };
        for restart in [false, true] {
            let mut later = world.restarted_copy();
            later.wait(lease - Duration::from_micros(1));
            if restart {
                later.restart();
            }
            assert!(!later.lookup(record.id()).expired, "{lease:?} were promised after {step} s");
            later.wait(Duration::from_micros(1));
            assert!(later.lookup(record.id()).expired);
        }
    }
}

#[test]
fn a_renewal_that_would_hardly_lengthen_the_lease_is_not_written() {
    let mut world = World::new();
    let record = Draft::default().sign(&key(1));
    world.register(&record);
    for second in 1..225 {
        world.wait_seconds(1);
        assert_eq!(world.register(&record), refreshed(HOUR - Duration::from_secs(second)));
    }
    assert_eq!(world.disk.turn, 1);
    world.wait_seconds(1);
    assert_eq!(world.register(&record), refreshed(HOUR));
    assert_eq!(world.disk.turn, 2);
}

#[test]
fn a_lease_is_measured_by_the_monotonic_clock() {
    let mut world = World::new();
    let record = Draft::default().sign(&key(1));
    world.register(&record);
    world.now.wall = world.now.wall + Duration::from_secs(50_000);
    assert!(!world.lookup(record.id()).expired, "somebody set the clock forward");
    world.now.wall = START - Duration::from_secs(50_000);
    world.now.monotonic += HOUR;
    assert!(world.lookup(record.id()).expired, "somebody set the clock back");
}

#[test]
fn a_lease_that_has_ended_is_renewed_however_soon_and_whatever_the_wall_clock_shows() {
    let mut world = World::new();
    let record = Draft { expires: 10, ..Draft::default() }.sign(&key(1));
    assert_eq!(world.register(&record), stored(Duration::from_secs(10)));
    world.now.monotonic += Duration::from_secs(20);
    world.now.wall = START - Duration::from_secs(100);
    assert!(world.lookup(record.id()).expired);
    assert_eq!(world.register(&record), refreshed(Duration::from_secs(110)));
    assert!(!world.lookup(record.id()).expired);
}

#[test]
fn after_a_restart_the_wall_clock_bounds_each_lease_and_never_lengthens_one() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    world.register(&record);
    // The machine was off for longer than the lease.
    world.now.wall = START + HOUR * 3;
    world.restart();
    let answer = world.lookup(record.id());
    assert!(answer.expired);
    assert_eq!(answer.age, HOUR * 3);
    // Its clock was set back by a year: the lease is as long as it was when it was granted, not a year.
    world.now.wall = START - HOUR * 24 * 365;
    world.restart();
    assert!(!world.lookup(record.id()).expired);
    world.wait(HOUR);
    assert!(world.lookup(record.id()).expired);
}

#[test]
fn a_changed_policy_keeps_the_promises_of_the_old_one() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    assert_eq!(world.register(&record), stored(HOUR));
    world.restart_with(Policy { lease: Duration::from_secs(60), ..Policy::default() });
    world.wait_seconds(3599);
    assert!(!world.lookup(record.id()).expired);
    assert_eq!(world.register(&record), refreshed(Duration::from_secs(60)));
}

#[test]
fn a_vat_whose_lease_has_ended_comes_back_with_the_same_record() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    world.register(&record);
    world.wait(HOUR * 5);
    assert!(world.lookup(record.id()).expired);
    assert_eq!(world.register(&record), refreshed(HOUR));
    assert!(!world.lookup(record.id()).expired);
    // But not once the record itself is over.
    world.wait_seconds(1_000_000);
    assert_eq!(refusal(&world.register(&record)), "record.expired");
}

// ---- rule 7: high-water marks

#[test]
fn a_high_water_mark_outlives_its_record_and_a_restart() {
    let vat = key(1);
    let mut world = World::with(Policy { max_records: 1, work: None, ..Policy::default() });
    let record = Draft { epoch: 5, ..Draft::default() }.sign(&vat);
    world.register(&record);
    world.wait(HOUR);
    // Another vat takes the only place.
    assert_eq!(world.register(&Draft::default().sign(&key(2))), stored(HOUR));
    assert_eq!(world.lookup(vat.id()).packet, None);
    assert_eq!(world.disk.rows(), (1, 1, 0));
    for _ in 0..2 {
        let older = Draft { epoch: 4, signed: 200, ..Draft::default() }.sign(&vat);
        assert_eq!(world.register(&older), Outcome::Stale { current: None });
        world.restart();
    }
    // The record itself comes back, or a higher one, once there is room again.
    world.wait(HOUR);
    let outcome = world.register_from(None, &record, &Expected::Absent);
    assert_eq!(outcome, stored(HOUR), "there is no record, only a mark");
    assert_eq!(world.disk.rows(), (1, 1, 0));
    assert_eq!(world.current(vat.id()), Some(packet(&record)));
}

#[test]
fn marks_are_bounded_and_the_oldest_goes_first() {
    let mut world = World::with(Policy { max_records: 1, work: None, max_marks: 2, ..Policy::default() });
    for n in 1..=4 {
        world.register(&Draft { epoch: 5, ..Draft::default() }.sign(&key(n)));
        world.wait(HOUR);
    }
    for _ in 0..2 {
        assert_eq!(world.disk.rows(), (1, 2, 0));
        for n in [2, 3] {
            let older = Draft { epoch: 4, ..Draft::default() }.sign(&key(n));
            assert_eq!(world.register(&older), Outcome::Stale { current: None });
        }
        world.restart();
    }
    let older = Draft { epoch: 4, ..Draft::default() }.sign(&key(1));
    assert_eq!(world.register(&older), stored(HOUR), "its mark was given up");
}

// ---- rule 8: success after durability

#[test]
fn nothing_is_told_of_a_record_before_it_is_durable() {
    let vat = key(1);
    let mut world = World::new();
    let [first, second] = [1, 2].map(|epoch| Draft { epoch, ..Draft::default() }.sign(&vat));
    let register = |world: &mut World, record: &SignedRecord| {
        let decision = world.registry.register(
            world.now,
            None,
            vat.id().as_bytes(),
            record.packet(),
            &Expected::Anything,
            &Admission::None,
        );
        (decision.turn.map(|turn| turn.number), decision.outcome)
    };
    let (turn, outcome) = register(&mut world, &second);
    assert_eq!((turn, outcome.turn()), (Some(1), 1));
    let outcome = outcome.reveal(0).expect_err("turn 1 is not durable");
    let answer = world.registry.lookup(world.now, vat.id().as_bytes()).reveal(0).expect_err("a lookup waits too");
    let (turn, stale) = register(&mut world, &first);
    assert_eq!(turn, None);
    let stale = stale.reveal(0).expect_err("the refusal of another record tells the one that is not durable");
    let (turn, again) = register(&mut world, &second);
    assert_eq!(turn, None, "the same record again is not written twice");
    let again = again.reveal(0).expect_err("and waits for the first");
    // Of other ids anything may be told.
    assert!(world.registry.lookup(world.now, key(2).id().as_bytes()).reveal(0).is_ok());
    // Now it is durable.
    assert_eq!(outcome.reveal(1), Ok(stored(HOUR)));
    assert_eq!(answer.reveal(1).unwrap().packet, Some(packet(&second)));
    assert_eq!(stale.reveal(1), Ok(Outcome::Stale { current: Some(packet(&second)) }));
    assert_eq!(again.reveal(1), Ok(refreshed(HOUR)));
}

#[test]
fn a_renewal_waits_for_its_own_write() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    world.register(&record);
    world.wait_seconds(2000);
    let decision = world.registry.register(
        world.now,
        None,
        record.id().as_bytes(),
        record.packet(),
        &Expected::Anything,
        &Admission::None,
    );
    assert_eq!(decision.turn.map(|turn| turn.number), Some(2));
    assert!(decision.outcome.reveal(1).is_err());
}

// ---- rule 9: quotas, no enumeration

fn network(n: u32) -> Option<IpAddr> {
    Some(IpAddr::V4(Ipv4Addr::from_bits(0xc000_0001 | n << 8)))
}

fn strict() -> Policy {
    Policy {
        new_ids: Rate { burst: 3, interval: Duration::from_secs(100) },
        signature_checks: Rate { burst: 6, interval: Duration::from_secs(10) },
        writes_per_id: Rate { burst: 4, interval: Duration::from_secs(50) },
        ..Policy::default()
    }
}

#[test]
fn new_ids_cost_their_network_a_token_and_renewals_do_not() {
    let mut world = World::with(strict());
    let records: Vec<_> = (1..=5).map(|n| Draft::default().sign(&key(n))).collect();
    let from = |world: &mut World, n, record| world.register_from(network(n), record, &Expected::Anything);
    for record in &records[..3] {
        assert_eq!(from(&mut world, 1, record), stored(HOUR));
    }
    let refused = from(&mut world, 1, &records[3]);
    assert_eq!(refusal(&refused), "vls.quota");
    let Outcome::Refused(reason) = refused else { unreachable!() };
    assert_eq!(reason.reason.retry_after(), Some(Duration::from_secs(100)));
    // Neighbours in the same /24 share the quota, other networks and local carriers do not.
    let neighbour = Some(IpAddr::from([192, 0, 1, 200]));
    assert_eq!(refusal(&world.register_from(neighbour, &records[3], &Expected::Anything)), "vls.quota");
    assert_eq!(from(&mut world, 2, &records[3]), stored(HOUR));
    assert_eq!(world.register(&records[4]), stored(HOUR));
    // Renewals and new records of known ids cost no such token.
    world.wait_seconds(60);
    for record in &records {
        assert!(matches!(from(&mut world, 1, record), Outcome::Refreshed { .. }));
    }
    let next = Draft { epoch: 2, ..Draft::default() }.sign(&key(1));
    assert_eq!(from(&mut world, 1, &next), stored(HOUR));
    world.wait_seconds(40);
    assert_eq!(from(&mut world, 1, &Draft::default().sign(&key(9))), stored(HOUR), "a token has come back");
}

#[test]
fn forged_records_exhaust_the_quota_of_their_own_network_only() {
    let mut world = World::with(strict());
    let vat = key(1);
    world.register(&Draft::default().sign(&vat));
    let mut forged = Draft { epoch: 2, ..Draft::default() }.sign(&vat).packet().to_vec();
    forged[0] ^= 1;
    let give =
        |world: &mut World, n| world.register_bytes(network(n), vat.id().as_bytes(), &forged, &Expected::Anything);
    for _ in 0..6 {
        assert_eq!(refusal(&give(&mut world, 1)), "record.forged");
    }
    assert_eq!(refusal(&give(&mut world, 1)), "vls.quota");
    assert_eq!(refusal(&give(&mut world, 2)), "record.forged");
    // The vat itself, elsewhere, does not notice: no forgery was charged to its id.
    for epoch in 2..5 {
        let record = Draft { epoch, ..Draft::default() }.sign(&vat);
        assert_eq!(world.register_from(network(3), &record, &Expected::Anything), stored(HOUR));
    }
}

#[test]
fn an_id_can_be_written_only_so_often_and_can_always_be_renewed() {
    let mut world = World::with(strict());
    let vat = key(1);
    let drafts: Vec<_> = (1..=5).map(|epoch| Draft { epoch, ..Draft::default() }.sign(&vat)).collect();
    for draft in &drafts[..4] {
        assert_eq!(world.register(draft), stored(HOUR));
    }
    assert_eq!(refusal(&world.register(&drafts[4])), "vls.quota");
    for _ in 0..20 {
        world.wait_seconds(1);
        assert!(matches!(world.register(&drafts[3]), Outcome::Refreshed { .. }));
    }
    world.wait_seconds(30);
    assert_eq!(world.register(&drafts[4]), stored(HOUR));
}

#[test]
fn contradictions_are_writes_of_their_id_too() {
    let mut world = World::with(strict());
    let drafts = (1..=9).map(|turn| Draft { turn, ..Draft::default() }.sign(&key(1)));
    let outcomes: Vec<_> = drafts.map(|record| world.register(&record)).collect();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).map(refusal);
    assert!(refused.clone().count() > 0 && refused.clone().all(|code| code == "vls.quota"), "{outcomes:?}");
    assert!(world.disk.turn <= 4, "no more was written than the id may write");
}

#[test]
fn a_full_table_gives_up_what_expired_first() {
    let mut world = World::with(Policy { max_records: 3, work: None, ..Policy::default() });
    for (n, expires) in [(1, 500), (2, 300), (3, 5000)] {
        world.register_from(network(n), &Draft { expires, ..Draft::default() }.sign(&key(n)), &Expected::Anything);
    }
    world.wait_seconds(1000);
    for n in [4, 5] {
        let record = Draft::default().sign(&key(n));
        assert_eq!(world.register_from(network(n), &record, &Expected::Anything), stored(HOUR));
    }
    let held = [1, 2, 3, 4, 5].map(|n| world.lookup(key(n).id()).packet.is_some());
    assert_eq!(held, [false, false, true, true, true]);
    assert_eq!(world.registry.len(), 3);
}

#[test]
fn a_full_table_of_live_records_gives_up_one_of_the_network_that_has_most() {
    let mut world = World::with(Policy { max_records: 5, work: None, ..Policy::default() });
    let register = |world: &mut World, n: u32, network_number: u32, expires: i64| {
        let record = Draft { expires, ..Draft::default() }.sign(&key(n));
        world.register_from(network(network_number), &record, &Expected::Anything)
    };
    // Network 1 has four, the vat of network 2 ends before all of them.
    for (n, expires) in [(1, 3000), (2, 2000), (3, 2500), (4, 3500)] {
        register(&mut world, n, 1, expires);
    }
    register(&mut world, 5, 2, 100);
    assert!(matches!(register(&mut world, 6, 3, 3600), Outcome::Stored { .. }));
    let held = [1, 2, 3, 4, 5, 6].map(|n| world.lookup(key(n).id()).packet.is_some());
    assert_eq!(held, [true, false, true, true, true, true], "the soonest to expire of network 1");
    // Network 1 has most: what it adds displaces its own.
    assert!(matches!(register(&mut world, 7, 1, 3600), Outcome::Stored { .. }));
    let held = [1, 3, 4, 5, 6, 7].map(|n| world.lookup(key(n).id()).packet.is_some());
    assert_eq!(held, [true, false, true, true, true, true]);
    // After a restart the networks are still known.
    world.restart();
    assert!(matches!(register(&mut world, 8, 3, 3600), Outcome::Stored { .. }));
    let held = [1, 4, 5, 6, 7, 8].map(|n| world.lookup(key(n).id()).packet.is_some());
    assert_eq!(held, [false, true, true, true, true, true]);
}

#[test]
fn a_full_table_where_nobody_has_more_than_one_refuses_and_says_when_there_is_room() {
    let mut world = World::with(Policy { max_records: 2, work: None, ..Policy::default() });
    for (n, expires) in [(1, 700), (2, 900)] {
        world.register_from(network(n), &Draft { expires, ..Draft::default() }.sign(&key(n)), &Expected::Anything);
    }
    let newcomer = Draft::default().sign(&key(3));
    let outcome = world.register_from(network(3), &newcomer, &Expected::Anything);
    assert_eq!(refusal(&outcome), "vls.full");
    let Outcome::Refused(reason) = outcome else { unreachable!() };
    assert_eq!(reason.reason.retry_after(), Some(Duration::from_secs(700)));
    // Who is in the table is not affected.
    let next = Draft { epoch: 2, ..Draft::default() }.sign(&key(1));
    assert_eq!(world.register_from(network(1), &next, &Expected::Anything), stored(HOUR));
    world.wait_seconds(900);
    assert_eq!(world.register_from(network(3), &newcomer, &Expected::Anything), stored(HOUR));
}

#[test]
fn a_packet_forwarded_from_elsewhere_does_not_change_who_the_record_is_counted_for() {
    let mut world = World::with(Policy { max_records: 3, work: None, ..Policy::default() });
    let register = |world: &mut World, n: u32, epoch: u64, from: u32, expires: i64| {
        let record = Draft { epoch, expires, ..Draft::default() }.sign(&key(n));
        world.register_from(network(from), &record, &Expected::Anything)
    };
    register(&mut world, 1, 1, 1, 1000);
    register(&mut world, 2, 1, 2, 2000);
    register(&mut world, 3, 1, 2, 3000);
    // Somebody in the crowded network 2 forwards the next record of vat 1.
    register(&mut world, 1, 2, 2, 500);
    register(&mut world, 4, 1, 4, 3600);
    let held = [1, 2, 3, 4].map(|n| world.lookup(key(n).id()).packet.is_some());
    assert_eq!(held, [true, false, true, true], "vat 1 was not displaced for its forwarder's crowd");
}
