//! New ids where not everybody is taken at once: work where the table is nearly full, invites where the server is closed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use proptest::prelude::*;
use schemas::{Invite, SignedRecord, Task};
use vls_server::{
    limits,
    registry::{
        Admission, Claim, Examined, Expected, InviteTerms, NewInviteError, NotInvited, Outcome, Policy, Price, Rate,
        RefusalReason, SourcePrefix,
    },
};

use crate::{
    local::key,
    world::{Draft, HOUR, World, refreshed, refusal, stored},
};

/// Cheap enough for hundreds of runs, and dear enough that nobody guesses it in one of them.
const PRICE: Price = Price { above: 500, bits: 8, bits_full: 10 };

fn nearly_full() -> Policy {
    Policy { max_records: 8, work: Some(PRICE), ..Policy::default() }
}

fn closed() -> Policy {
    Policy { closed: true, ..Policy::default() }
}

fn record(vat: u32) -> SignedRecord {
    Draft::default().sign(&key(vat))
}

/// Each vat is in a network of its own.
fn network(vat: u32) -> Option<IpAddr> {
    Some(IpAddr::from((0x0a00_0000 | vat << 8).to_be_bytes()))
}

fn register(world: &mut World, vat: u32, admission: Admission) -> Outcome {
    world.admission = admission;
    let outcome = world.register_from(network(vat), &record(vat), &Expected::Anything);
    world.admission = Admission::None;
    outcome
}

/// What a vat is asked to do.
fn task(outcome: &Outcome) -> Task {
    match outcome {
        Outcome::Refused(refusal) => match refusal.reason {
            RefusalReason::Work { task } => task,
            ref other => panic!("{other}"),
        },
        other => panic!("{other:?}"),
    }
}

fn solved(task: &Task, vat: u32) -> Admission {
    Admission::Work(task.solve(&key(vat).id(), 0, || true).unwrap())
}

/// Fills the part of the table that costs nothing.
fn filled() -> World {
    let mut world = World::with(nearly_full());
    for vat in 1..=4 {
        assert_eq!(world.registry.work(), None);
        assert_eq!(register(&mut world, vat, Admission::None), stored(HOUR));
    }
    world
}

#[test]
fn a_new_id_works_for_its_place_once_the_table_is_nearly_full() {
    let mut world = filled();
    assert_eq!(world.registry.work(), Some(PRICE.bits));
    let asked = task(&register(&mut world, 5, Admission::None));
    assert_eq!(asked.bits, PRICE.bits);
    let wrong = (0..).find(|nonce| !asked.is_solved_by(&key(5).id(), *nonce)).unwrap();
    assert_eq!(refusal(&register(&mut world, 5, Admission::Work(wrong))), "vls.work");
    assert_eq!(register(&mut world, 5, solved(&asked, 5)), stored(HOUR));
    // Ids that are known go on as ever, and so does the owner.
    for vat in 1..=5 {
        assert_eq!(register(&mut world, vat, Admission::None), refreshed(HOUR));
        let later = Draft { signed: 1, ..Draft::default() }.sign(&key(vat));
        assert_eq!(world.register_from(network(vat), &later, &Expected::Anything), stored(HOUR));
    }
    assert_eq!(world.register(&record(6)), stored(HOUR));
    // It becomes dearer.
    for vat in 7..=8 {
        let asked = task(&register(&mut world, vat, Admission::None));
        assert!(asked.bits > PRICE.bits);
        assert_eq!(register(&mut world, vat, solved(&asked, vat)), stored(HOUR));
    }
    assert_eq!(world.registry.work(), Some(PRICE.bits_full));
}

#[test]
fn leases_that_have_ended_make_room_without_work() {
    let mut world = filled();
    world.wait(HOUR);
    assert_eq!(register(&mut world, 5, Admission::None), stored(HOUR));
    assert_eq!(world.registry.work(), None);
    world.restart();
    assert_eq!(world.registry.work(), None);
    assert_eq!(register(&mut world, 6, Admission::None), stored(HOUR));
}

#[test]
fn work_is_of_one_id_one_process_and_some_minutes() {
    let mut world = filled();
    let asked = task(&register(&mut world, 5, Admission::None));
    let nonces: Vec<u64> = {
        let mut first = 0;
        (0..3)
            .map(|_| {
                let nonce = asked.solve(&key(5).id(), first, || true).unwrap();
                first = nonce + 1;
                nonce
            })
            .collect()
    };
    let works = |world: &World, vat: u32, is_restarted: bool| {
        nonces.iter().any(|nonce| {
            let mut copy = world.restarted_copy();
            if !is_restarted {
                (copy.registry, copy.now) = (filled().registry, world.now);
            }
            !matches!(register(&mut copy, vat, Admission::Work(*nonce)), Outcome::Refused(_))
        })
    };
    assert!(works(&world, 5, false), "the same secret, and the same table");
    assert!(!works(&world, 6, false), "another id");
    assert!(!works(&world, 5, true), "the same server after a restart");
    world.wait(limits::WORK_WINDOW * 2);
    for nonce in &nonces {
        assert_eq!(refusal(&register(&mut world, 5, Admission::Work(*nonce))), "vls.work", "too late");
    }
    // Somebody who began in time is not late.
    let asked = task(&register(&mut world, 5, Admission::None));
    world.wait(limits::WORK_WINDOW);
    assert_eq!(register(&mut world, 5, solved(&asked, 5)), stored(HOUR));
}

#[test]
fn a_refusal_for_want_of_work_costs_neither_a_token_nor_a_signature_check() {
    let one = Rate { burst: 1, interval: HOUR };
    let mut world = World::with(Policy { new_ids: one, signature_checks: one, ..nearly_full() });
    for vat in 1..=4 {
        assert_eq!(world.register(&record(vat)), stored(HOUR));
    }
    let forged = [record(5).packet().split_at(63).0, &[1], record(5).packet().split_at(64).1].concat();
    for packet in [record(5).packet(), &forged] {
        let outcome = world.register_bytes(network(5), key(5).id().as_bytes(), packet, &Expected::Anything);
        assert_eq!(refusal(&outcome), "vls.work");
    }
    let asked = task(&register(&mut world, 5, Admission::None));
    assert_eq!(register(&mut world, 5, solved(&asked, 5)), stored(HOUR), "the token is still there");
}

/// Learns from another server, or from somebody who says that he is one.
fn learn(world: &mut World, source: SourcePrefix, vat: u32) -> Outcome {
    let claim = Claim { age: Duration::ZERO, left: HOUR };
    let record = record(vat);
    let examined = world.registry.examine_learned(world.now, source, record.id().as_bytes(), record.packet(), claim);
    let decision = match examined {
        Examined::Decided(decision) => decision,
        Examined::Unverified(candidate) => {
            let (record, origin) = candidate.into_parts();
            world.registry.admit(world.now, origin, record.verify())
        }
    };
    world.disk.apply(&decision);
    decision.outcome.reveal(world.disk.turn).unwrap()
}

#[test]
fn other_servers_have_their_share_without_work_and_strangers_cannot_pass_for_one() {
    let mut world = filled();
    assert_eq!(learn(&mut world, SourcePrefix::of_server(key(90).id()), 5), stored(HOUR));
    assert_eq!(refusal(&learn(&mut world, SourcePrefix::of(network(6)), 6)), "vls.work");
}

#[test]
fn a_closed_server_learns_of_ids_that_it_knows_and_of_no_others() {
    let mut world = World::with(closed());
    assert_eq!(world.register(&record(1)), stored(HOUR));
    let server = SourcePrefix::of_server(key(90).id());
    assert_eq!(refusal(&learn(&mut world, server, 2)), "vls.invite");
    let newer = Draft { signed: 1, ..Draft::default() }.sign(&key(1));
    let claim = Claim { age: Duration::ZERO, left: HOUR };
    let examined = world.registry.examine_learned(world.now, server, newer.id().as_bytes(), newer.packet(), claim);
    assert!(matches!(examined, Examined::Unverified(_)));
}

fn terms(world: &World, uses: u32, until: Option<u64>) -> InviteTerms {
    let until = until.map(|seconds| world.now.wall + Duration::from_secs(seconds));
    InviteTerms { uses, made: world.now.wall, until, note: "for a friend".to_owned() }
}

fn invite(number: u8) -> Invite {
    Invite::from_slice(&[number; 16]).unwrap()
}

fn make(world: &mut World, number: u8, terms: InviteTerms) {
    let decision = world.registry.invite(invite(number).hash(), terms).unwrap();
    world.disk.apply(&decision);
}

fn by(number: u8) -> Admission {
    Admission::Invite(invite(number).hash())
}

fn not_invited(outcome: &Outcome) -> NotInvited {
    match outcome {
        Outcome::Refused(refusal) => match refusal.reason {
            RefusalReason::Invite(why) => why,
            ref other => panic!("{other}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_closed_server_takes_new_ids_by_invitation_and_known_ones_always() {
    let mut world = World::new();
    assert_eq!(register(&mut world, 1, Admission::None), stored(HOUR));
    world.restart_with(closed());
    assert_eq!(not_invited(&register(&mut world, 2, Admission::None)), NotInvited::Missing);
    assert_eq!(not_invited(&register(&mut world, 2, by(1))), NotInvited::Unknown);
    let two = terms(&world, 2, None);
    make(&mut world, 1, two);
    assert_eq!(register(&mut world, 2, by(1)), stored(HOUR));
    // The answer was lost: it comes again, with the invite or without.
    assert_eq!(register(&mut world, 2, by(1)), refreshed(HOUR));
    assert_eq!(register(&mut world, 2, Admission::None), refreshed(HOUR));
    world.restart();
    assert_eq!(register(&mut world, 3, by(1)), stored(HOUR));
    assert_eq!(not_invited(&register(&mut world, 4, by(1))), NotInvited::Unknown, "used up");
    assert_eq!(world.registry.invite_count(), 0);
    // Known ids go on; also with another record, and after their lease.
    world.wait(HOUR * 2);
    for vat in 1..=3 {
        assert!(matches!(register(&mut world, vat, Admission::None), Outcome::Refreshed { .. }));
    }
}

#[test]
fn an_id_that_was_forgotten_is_new_again_and_one_of_which_a_mark_is_left_is_not() {
    let policy = Policy { max_records: 1, max_marks: 1, ..closed() };
    let mut world = World::with(policy);
    for vat in 1..=2 {
        assert_eq!(world.register(&record(vat)), stored(HOUR));
        world.wait(HOUR);
    }
    assert_eq!(register(&mut world, 1, Admission::None), stored(HOUR), "its mark is known");
    world.wait(HOUR);
    assert_eq!(world.register(&record(3)), stored(HOUR));
    world.wait(HOUR);
    assert_eq!(not_invited(&register(&mut world, 2, Admission::None)), NotInvited::Missing);
}

#[test]
fn invites_end_and_are_revoked_and_neither_is_undone_by_a_restart() {
    let mut world = World::with(closed());
    let (ending, revoked) = (terms(&world, 9, Some(60)), terms(&world, 9, None));
    make(&mut world, 1, ending);
    make(&mut world, 2, revoked);
    assert_eq!(register(&mut world, 1, by(1)), stored(HOUR));
    assert_eq!(register(&mut world, 2, by(2)), stored(HOUR));
    let decision = world.registry.revoke_invite(&invite(2).hash().to_string()).unwrap();
    world.disk.apply(&decision);
    assert!(world.registry.revoke_invite(&invite(2).hash().to_string()).is_none());
    for _ in 0..2 {
        assert_eq!(not_invited(&register(&mut world, 3, by(2))), NotInvited::Unknown);
        world.restart();
    }
    world.wait_seconds(60);
    assert_eq!(not_invited(&register(&mut world, 3, by(1))), NotInvited::Ended);
    world.restart();
    assert_eq!(not_invited(&register(&mut world, 3, by(1))), NotInvited::Ended);
    // The next one that is made takes the place of those that have ended.
    let next = terms(&world, 1, None);
    make(&mut world, 3, next);
    assert_eq!(world.registry.invite_count(), 1);
}

#[test]
fn a_use_is_not_lost_by_what_is_refused_nor_given_twice_to_two_at_once() {
    let mut world = World::with(closed());
    let one = terms(&world, 1, None);
    make(&mut world, 1, one);
    // A forged signature.
    let forged = [record(1).packet().split_at(63).0, &[1], record(1).packet().split_at(64).1].concat();
    world.admission = by(1);
    let outcome = world.register_bytes(network(1), key(1).id().as_bytes(), &forged, &Expected::Anything);
    assert!(matches!(outcome, Outcome::Refused(_)));
    // Two whose signatures are being verified at the same time.
    let examined = [2, 3].map(|vat| {
        let record = record(vat);
        let (id, packet) = (record.id(), record.packet());
        match world.registry.examine(world.now, network(vat), id.as_bytes(), packet, &Expected::Anything, &by(1)) {
            Examined::Unverified(candidate) => candidate.into_parts(),
            Examined::Decided(decision) => panic!("{decision:?}"),
        }
    });
    let outcomes = examined.map(|(record, origin)| {
        let decision = world.registry.admit(world.now, origin, record.verify());
        world.disk.apply(&decision);
        decision.outcome.reveal(world.disk.turn).unwrap()
    });
    assert_eq!(outcomes[0], stored(HOUR));
    assert_eq!(not_invited(&outcomes[1]), NotInvited::Unknown);
}

#[test]
fn invites_have_limits_and_names_of_their_own() {
    let mut world = World::with(closed());
    let good = terms(&world, 1, None);
    make(&mut world, 1, good.clone());
    let mut refused = |number: u8, terms: InviteTerms| world.registry.invite(invite(number).hash(), terms).unwrap_err();
    assert_eq!(refused(1, good.clone()), NewInviteError::Exists);
    assert_eq!(refused(2, InviteTerms { uses: 0, ..good.clone() }), NewInviteError::Useless);
    assert_eq!(refused(2, InviteTerms { until: Some(good.made), ..good.clone() }), NewInviteError::Useless);
    let long = "x".repeat(limits::INVITE_NOTE_BYTES + 1);
    assert_eq!(refused(2, InviteTerms { note: long, ..good }), NewInviteError::Note);
    for number in 1..limits::MAX_INVITES {
        let mut bytes = [0xee; 16];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let hash = Invite::from_slice(&bytes).unwrap().hash();
        let decision = world.registry.invite(hash, good.clone()).unwrap();
        world.disk.apply(&decision);
    }
    assert_eq!(world.registry.invite(invite(2).hash(), good).unwrap_err(), NewInviteError::TooMany);
}

// ---- the model

/// Vats, and invites, of a run.
const VATS: u32 = 6;
const INVITES: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    /// With which invite, if any.
    Register {
        vat: u32,
        invite: Option<u8>,
    },
    Make {
        invite: u8,
        uses: u32,
        seconds: Option<u64>,
    },
    Revoke {
        invite: u8,
    },
    Close(bool),
    Wait(u64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..=VATS, prop::option::of(0..INVITES)).prop_map(|(vat, invite)| Step::Register { vat, invite }),
        4 => (0..INVITES, 1..4_u32, prop::option::of(1..200_u64))
            .prop_map(|(invite, uses, seconds)| Step::Make { invite, uses, seconds }),
        1 => (0..INVITES).prop_map(|invite| Step::Revoke { invite }),
        1 => prop::bool::weighted(0.8).prop_map(Step::Close),
        2 => (0..120_u64).prop_map(Step::Wait),
        2 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_comes_in_is_who_the_model_lets_in(steps in steps()) {
        let mut policy = closed();
        let mut world = World::with(policy.clone());
        let mut known = BTreeSet::new();
        // Uses left, and the end.
        let mut invites: BTreeMap<u8, (u32, Option<schemas::Timestamp>)> = BTreeMap::new();
        for step in steps {
            let now = world.now.wall;
            match step {
                Step::Register { vat, invite } => {
                    let admission = invite.map_or(Admission::None, by);
                    let outcome = register(&mut world, vat, admission);
                    let held = invite.and_then(|invite| invites.get_mut(&invite));
                    let expected = match held {
                        _ if known.contains(&vat) => None,
                        _ if !policy.closed => None,
                        None if invite.is_none() => Some(NotInvited::Missing),
                        None => Some(NotInvited::Unknown),
                        Some((_, Some(until))) if *until <= now => Some(NotInvited::Ended),
                        Some((uses, _)) => {
                            *uses -= 1;
                            None
                        }
                    };
                    invites.retain(|_, (uses, _)| *uses > 0);
                    match expected {
                        Some(why) => prop_assert_eq!(not_invited(&outcome), why),
                        None => {
                            let is_new = known.insert(vat);
                            prop_assert_eq!(is_new, matches!(outcome, Outcome::Stored { .. }), "{:?}", outcome);
                        }
                    }
                }
                Step::Make { invite: number, uses, seconds } => {
                    let terms = terms(&world, uses, seconds);
                    let until = terms.until;
                    let made = world.registry.invite(invite(number).hash(), terms);
                    if let std::collections::btree_map::Entry::Vacant(place) = invites.entry(number) {
                        world.disk.apply(&made.unwrap());
                        place.insert((uses, until));
                        invites.retain(|_, (_, until)| until.is_none_or(|until| until > now));
                    } else {
                        prop_assert_eq!(made.unwrap_err(), NewInviteError::Exists);
                    }
                }
                Step::Revoke { invite: number } => {
                    let decision = world.registry.revoke_invite(&invite(number).hash().to_string());
                    prop_assert_eq!(decision.is_some(), invites.remove(&number).is_some());
                    decision.iter().for_each(|decision| world.disk.apply(decision));
                }
                Step::Close(is_closed) => {
                    policy.closed = is_closed;
                    world.restart_with(policy.clone());
                }
                Step::Wait(seconds) => world.wait_seconds(seconds),
                Step::Restart => world.restart(),
            }
            prop_assert_eq!(world.registry.invite_count(), invites.len());
        }
    }

    #[test]
    fn who_is_new_where_it_is_nearly_full_works_and_nobody_else_does(
        steps in prop::collection::vec((1..=12_u32, any::<bool>(), 0..3_u8, 0..1_200_u64), 1..50),
    ) {
        let mut world = World::with(nearly_full());
        let mut known = BTreeSet::new();
        for (vat, works, what, seconds) in steps {
            match what {
                0 => world.restart(),
                1 => world.wait_seconds(seconds),
                _ => {}
            }
            // Work is asked for by what is live; leases that have ended are looked at by whoever comes.
            let first = register(&mut world, vat, Admission::None);
            let asked = world.registry.work().is_some();
            match &first {
                Outcome::Refused(_) if refusal(&first) == "vls.work" => {
                    prop_assert!(!known.contains(&vat) && asked);
                    if works {
                        let task = task(&first);
                        prop_assert_eq!(Some(task.bits), world.registry.work());
                        let second = register(&mut world, vat, solved(&task, vat));
                        let is_stored = matches!(second, Outcome::Stored { .. });
                        prop_assert!(is_stored || refusal(&second) == "vls.full");
                        if is_stored {
                            known.insert(vat);
                        }
                    }
                }
                Outcome::Stored { .. } | Outcome::Refreshed { .. } => {
                    known.insert(vat);
                }
                other => prop_assert_eq!(refusal(other), "vls.full"),
            }
            prop_assert!(world.registry.len() <= 8);
        }
    }
}
