//! The rules of registration, one by one (DESIGN §4): rules 1 to 5, what is accepted. Time is turned by hand; no socket, no disk.

use std::time::Duration;

use schemas::SignedRecord;
use vls_server::registry::{Expected, Outcome, Policy};

use crate::{
    local::{START, key},
    world::{Draft, HOUR, World, at, packet, refreshed, refusal, stored},
};

// ---- rule 1: cheap checks first, the signature last

#[test]
fn a_record_with_any_byte_altered_is_refused_and_never_answered() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    for position in 0..record.packet().len() {
        for bit in [0x01, 0x80] {
            let mut altered = record.packet().to_vec();
            altered[position] ^= bit;
            let outcome = world.register_bytes(None, record.id().as_bytes(), &altered, &Expected::Anything);
            assert!(matches!(outcome, Outcome::Refused(_)), "byte {position} bit {bit:#x}: {outcome:?}");
            assert_eq!(world.lookup(record.id()).packet, None);
        }
    }
    assert_eq!(world.register(&record), stored(HOUR));
}

#[test]
fn a_record_signed_by_another_key_is_forged() {
    let (vat, other) = (key(1), key(2));
    let record = Draft::default().sign(&vat);
    // A packet about `vat` whose signature another key has made over the same bytes.
    let mut forged = record.packet().to_vec();
    let value = &record.packet()[72..];
    let micros = record.timestamp().as_micros();
    let message = [format!("3:seqi{micros}e1:v{}:", value.len()).as_bytes(), value].concat();
    forged[..64].copy_from_slice(&other.sign_raw(&message));
    let mut world = World::new();
    let outcome = world.register_bytes(None, vat.id().as_bytes(), &forged, &Expected::Anything);
    assert_eq!(refusal(&outcome), "record.forged");
    // And a packet that is right, under an id that it is not about.
    let outcome = world.register_bytes(None, other.id().as_bytes(), record.packet(), &Expected::Anything);
    assert_eq!(refusal(&outcome), "record.forged");
}

#[test]
fn cheap_reasons_are_found_before_the_signature_is_looked_at() {
    let vat = key(1);
    let break_signature = |record: &SignedRecord| {
        let mut packet = record.packet().to_vec();
        packet[0] ^= 1;
        packet
    };
    let mut world = World::new();
    let give =
        |world: &mut World, packet: &[u8]| world.register_bytes(None, vat.id().as_bytes(), packet, &Expected::Anything);
    let expired = Draft { signed: -20, expires: -1, ..Draft::default() }.sign(&vat);
    assert_eq!(refusal(&give(&mut world, &break_signature(&expired))), "record.expired");
    let future = Draft { signed: 301, ..Draft::default() }.sign(&vat);
    assert_eq!(refusal(&give(&mut world, &break_signature(&future))), "record.future");
    let current = Draft { epoch: 3, ..Draft::default() }.sign(&vat);
    assert_eq!(world.register(&current), stored(HOUR));
    let older = Draft { epoch: 2, ..Draft::default() }.sign(&vat);
    let outcome = give(&mut world, &break_signature(&older));
    assert_eq!(outcome, Outcome::Stale { current: Some(packet(&current)) });
    let newer = Draft { epoch: 4, ..Draft::default() }.sign(&vat);
    assert_eq!(refusal(&give(&mut world, &break_signature(&newer))), "record.forged");
    assert_eq!(refusal(&give(&mut world, &[0; 71])), "record.malformed");
    assert_eq!(refusal(&give(&mut world, &[0; 1073])), "record.too_large");
}

#[test]
fn ids_that_are_no_canonical_keys_are_refused() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    let small_order = {
        let mut point = [0; 32];
        point[0] = 1;
        point
    };
    for id in [&small_order[..], &[0xff; 32], &[0; 31], &[0; 33], &[]] {
        let outcome = world.register_bytes(None, id, record.packet(), &Expected::Anything);
        assert_eq!(refusal(&outcome), "ref.id_malformed", "{id:?}");
    }
}

// ---- rule 2: (epoch, timestamp, bytes)

#[test]
fn a_later_time_in_a_lower_epoch_is_stale_and_an_earlier_time_in_a_higher_epoch_is_not() {
    let vat = key(1);
    let mut world = World::new();
    let second = Draft { epoch: 2, signed: -100, ..Draft::default() }.sign(&vat);
    assert_eq!(world.register(&second), stored(HOUR));
    let clone = Draft { epoch: 1, signed: 100, ..Draft::default() }.sign(&vat);
    assert_eq!(world.register(&clone), Outcome::Stale { current: Some(packet(&second)) });
    assert_eq!(world.current(vat.id()), Some(packet(&second)));
    let third = Draft { epoch: 3, signed: -200, ..Draft::default() }.sign(&vat);
    assert_eq!(world.register(&third), stored(HOUR));
    assert_eq!(world.current(vat.id()), Some(packet(&third)));
}

// ---- rule 3: identical, older, contradicting

#[test]
fn an_older_record_is_stale_and_the_current_one_is_told() {
    let vat = key(1);
    let mut world = World::new();
    let (older, newer) =
        (Draft { signed: 1, ..Draft::default() }.sign(&vat), Draft { signed: 2, ..Draft::default() }.sign(&vat));
    assert_eq!(world.register(&newer), stored(HOUR));
    assert_eq!(world.register(&older), Outcome::Stale { current: Some(packet(&newer)) });
    assert_eq!(world.current(vat.id()), Some(packet(&newer)));
}

#[test]
fn an_identical_record_begins_its_lease_anew() {
    let record = Draft::default().sign(&key(1));
    let mut world = World::new();
    assert_eq!(world.register(&record), stored(HOUR));
    world.wait_seconds(1800);
    assert_eq!(world.lookup(record.id()).age, Duration::from_secs(1800));
    assert_eq!(world.register(&record), refreshed(HOUR));
    assert_eq!(world.lookup(record.id()).age, Duration::ZERO);
}

#[test]
fn records_that_contradict_each_other_are_a_conflict_and_both_are_kept_as_evidence() {
    let vat = key(1);
    let mut drafts = [1, 2].map(|turn| Draft { turn, ..Draft::default() }.sign(&vat));
    drafts.sort_by(SignedRecord::compare);
    let [lower, higher] = &drafts;
    for (first, second) in [(lower, higher), (higher, lower)] {
        let mut world = World::new();
        assert_eq!(world.register(first), stored(HOUR));
        assert_eq!(world.register(second), Outcome::Conflict { other: packet(first) });
        // In whatever order they came, the higher one is current.
        assert_eq!(world.current(vat.id()), Some(packet(higher)));
        assert_eq!(world.register(lower), Outcome::Conflict { other: packet(higher) });
        let turn = world.disk.turn;
        assert_eq!(world.register(lower), Outcome::Conflict { other: packet(higher) });
        assert_eq!(world.disk.turn, turn, "evidence that is kept already is not written again");
        for _ in 0..2 {
            let evidence = world.registry.evidence(vat.id().as_bytes()).unwrap();
            assert_eq!((evidence.lowest().record(), evidence.highest().record()), (Some(lower), Some(higher)));
            world.restart();
        }
        // A higher record ends the conflict, not the evidence.
        let next = Draft { signed: 1, ..Draft::default() }.sign(&vat);
        assert_eq!(world.register(&next), stored(HOUR));
        assert!(world.registry.evidence(vat.id().as_bytes()).is_some());
    }
}

#[test]
fn a_forged_contradiction_is_no_evidence() {
    let vat = key(1);
    let mut world = World::new();
    let record = Draft::default().sign(&vat);
    world.register(&record);
    let mut forged = Draft { turn: 8, ..Draft::default() }.sign(&vat).packet().to_vec();
    forged[5] ^= 4;
    let outcome = world.register_bytes(None, vat.id().as_bytes(), &forged, &Expected::Anything);
    assert_eq!(refusal(&outcome), "record.forged");
    assert_eq!(world.registry.evidence(vat.id().as_bytes()), None);
    assert_eq!(world.current(vat.id()), Some(packet(&record)));
}

#[test]
fn the_evidence_is_that_of_the_latest_contradiction() {
    let vat = key(1);
    // One place for a record and no mark: what is displaced is forgotten, and an earlier time can come back.
    let mut world = World::with(Policy { max_records: 1, work: None, max_marks: 1, ..Policy::default() });
    let contradict = |world: &mut World, signed| {
        let pair = [1, 2].map(|turn| Draft { signed, turn, ..Draft::default() }.sign(&vat));
        assert_eq!(world.register(&pair[0]), stored(HOUR));
        assert!(matches!(world.register(&pair[1]), Outcome::Conflict { .. }));
    };
    let signed = |world: &World| world.registry.evidence(vat.id().as_bytes()).unwrap().highest().timestamp();
    contradict(&mut world, 10);
    assert_eq!(signed(&world), at(10));
    contradict(&mut world, 20);
    assert_eq!(signed(&world), at(20));
    for other in [2, 3] {
        world.wait(HOUR);
        assert_eq!(world.register(&Draft::default().sign(&key(other))), stored(HOUR));
    }
    world.wait(HOUR);
    contradict(&mut world, 15);
    assert_eq!(signed(&world), at(20));
}

#[test]
fn evidence_is_bounded_and_the_oldest_goes_first() {
    let mut world = World::with(Policy { max_evidence: 2, ..Policy::default() });
    for n in 1..=3 {
        for turn in [1, 2] {
            world.register(&Draft { turn, ..Draft::default() }.sign(&key(n)));
        }
    }
    for _ in 0..2 {
        let kept = [1, 2, 3].map(|n| world.registry.evidence(key(n).id().as_bytes()).is_some());
        assert_eq!(kept, [false, true, true]);
        world.restart();
    }
}

// ---- rule 4: not dated ahead

#[test]
fn a_record_dated_more_than_five_minutes_ahead_is_refused_with_the_servers_time() {
    let vat = key(1);
    let mut world = World::new();
    let outcome = world.register(&Draft { signed: 301, ..Draft::default() }.sign(&vat));
    assert_eq!(refusal(&outcome), "record.future");
    let Outcome::Refused(refusal) = outcome else { unreachable!() };
    assert_eq!(refusal.server_time, START);
    assert_eq!(refusal.reason.retry_after(), None);
    assert_eq!(world.register(&Draft { signed: 300, ..Draft::default() }.sign(&vat)), stored(HOUR));
}

#[test]
fn an_expired_record_is_refused() {
    let mut world = World::new();
    let record = Draft { signed: -10, expires: 0, ..Draft::default() }.sign(&key(1));
    assert_eq!(refusal(&world.register(&record)), "record.expired");
    assert_eq!(world.lookup(record.id()).packet, None);
}

// ---- rule 5: compare-and-swap

#[test]
fn a_write_happens_only_over_the_record_that_the_writer_expected() {
    let vat = key(1);
    let mut world = World::new();
    let [first, second, third] = [1, 2, 3].map(|epoch| Draft { epoch, ..Draft::default() }.sign(&vat));
    let swap =
        |world: &mut World, record: &SignedRecord, expected: Expected| world.register_from(None, record, &expected);
    let unexpected = |current: Option<&SignedRecord>| Outcome::Unexpected { current: current.map(packet) };
    assert_eq!(swap(&mut world, &first, Expected::Order(second.order())), unexpected(None));
    assert_eq!(swap(&mut world, &first, Expected::Absent), stored(HOUR));
    assert_eq!(swap(&mut world, &second, Expected::Absent), unexpected(Some(&first)));
    assert_eq!(swap(&mut world, &second, Expected::Order(third.order())), unexpected(Some(&first)));
    let mut wrong_digest = first.order();
    wrong_digest.digest[31] ^= 1;
    assert_eq!(swap(&mut world, &second, Expected::Order(wrong_digest)), unexpected(Some(&first)));
    assert_eq!(swap(&mut world, &second, Expected::Order(first.order())), stored(HOUR));
    // Two takeovers from the same state: the second finds that somebody was first.
    assert_eq!(swap(&mut world, &third, Expected::Order(first.order())), unexpected(Some(&second)));
    // The answer was lost, the writer asks again: it has what it wanted.
    assert_eq!(swap(&mut world, &second, Expected::Order(first.order())), refreshed(HOUR));
    assert_eq!(world.current(vat.id()), Some(packet(&second)));
}

#[test]
fn an_expired_record_is_still_the_one_to_expect() {
    let vat = key(1);
    let mut world = World::new();
    let [first, second] = [1, 2].map(|epoch| Draft { epoch, ..Draft::default() }.sign(&vat));
    world.register(&first);
    world.wait(HOUR * 2);
    let outcome = world.register_from(None, &second, &Expected::Absent);
    assert_eq!(outcome, Outcome::Unexpected { current: Some(packet(&first)) });
    assert_eq!(world.register_from(None, &second, &Expected::Order(first.order())), stored(HOUR));
}
