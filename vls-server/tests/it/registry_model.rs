//! The registry against a model that is too simple to be wrong, and against itself: whatever is done, in
//! whatever order, with restarts in between.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use proptest::prelude::*;
use schemas::{SignedPacket, Timestamp};
use vls_server::registry::{Answer, Expected, Outcome, Policy};

use crate::{
    local::{foreign, key},
    world::{Draft, World, at, refusal},
};

/// Policy of the model: short enough that leases end within a run.
const LEASE: Duration = Duration::from_secs(1_000);
const GRAIN: u32 = 16;

/// Three vats, each with records of three epochs and four times, two of every kind that contradict each
/// other; some expire within a run, some are dated ahead of its beginning. And what other programs have signed with the
/// same keys at the same times, and later than all of them.
static RECORDS: LazyLock<Vec<SignedPacket>> = LazyLock::new(|| {
    let mut records = Vec::new();
    for vat in 1..=3 {
        for epoch in 1..=3 {
            for signed in [-50, 0, 200, 700] {
                for turn in [1, 2] {
                    let expires = if epoch == 2 { 900 } else { 100_000 };
                    records.push(Draft { epoch, signed, expires, turn }.sign(&key(vat)).into());
                }
            }
        }
        for signed in [-50, 0, 200, 710] {
            records.extend(["one", "other"].map(|text| foreign(&key(vat), at(signed), text)));
        }
    }
    records
});

fn policy() -> Policy {
    Policy { lease: LEASE, ..Policy::default() }
}

#[derive(Debug, Clone)]
enum Step {
    Register { record: usize, expected: Option<Option<usize>> },
    Wait(u64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = || 0..RECORDS.len();
    let expected = prop_oneof![
        4 => Just(None),
        1 => Just(Some(None)),
        2 => record().prop_map(|record| Some(Some(record))),
    ];
    let step = prop_oneof![
        12 => (record(), expected).prop_map(|(record, expected)| Step::Register { record, expected }),
        4 => (0..400_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the model knows of one vat.
#[derive(Clone)]
struct Known {
    record: SignedPacket,
    seen: Timestamp,
    end: Timestamp,
}

#[derive(Default)]
struct Model {
    vats: HashMap<[u8; 32], Known>,
}

impl Model {
    fn register(&mut self, now: Timestamp, record: &SignedPacket, expected: &Expected) -> Outcome {
        let known = self.vats.get(record.id().as_bytes()).cloned();
        let end = record.expires().map_or(now + LEASE, |expires| expires.min(now + LEASE));
        let lease = end - now;
        let renewed = Known { record: record.clone(), seen: now, end };
        let packet = |known: Known| known.record.packet().into();
        let epoch = |record: &SignedPacket| record.record().map_or(0, |record| record.record().epoch);
        let mark = |record: &SignedPacket| (epoch(record), record.timestamp());
        if let Err(error) = record.check_time(now) {
            let reason = error.into();
            return Outcome::Refused(vls_server::registry::Refusal { reason, server_time: now });
        }
        let Some(known) = known else {
            if matches!(expected, Expected::Order(_)) {
                return Outcome::Unexpected { current: None };
            }
            self.vats.insert(*record.id().as_bytes(), renewed);
            return Outcome::Stored { lease };
        };
        if *record == known.record {
            if now < known.end && now - known.seen < (known.end - known.seen) / GRAIN {
                return Outcome::Refreshed { lease: known.end - now };
            }
            self.vats.insert(*record.id().as_bytes(), renewed);
            return Outcome::Refreshed { lease };
        }
        if mark(record) < mark(&known.record) {
            return Outcome::Stale { current: Some(packet(known)) };
        }
        if mark(record) == mark(&known.record) {
            if record.compare(&known.record).is_gt() {
                self.vats.insert(*record.id().as_bytes(), renewed);
            }
            return Outcome::Conflict { other: packet(known) };
        }
        let as_expected = match expected {
            Expected::Anything => true,
            Expected::Absent => false,
            Expected::Order(order) => *order == known.record.order(),
        };
        if !as_expected {
            return Outcome::Unexpected { current: Some(packet(known)) };
        }
        self.vats.insert(*record.id().as_bytes(), renewed);
        Outcome::Stored { lease }
    }

    fn lookup(&self, now: Timestamp, id: &[u8; 32]) -> Answer {
        self.vats.get(id).map_or_else(Answer::default, |known| Answer {
            packet: Some(known.record.packet().into()),
            age: now - known.seen,
            left: known.end.saturating_since(now),
            expired: known.end <= now,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_model_does(steps in steps()) {
        let mut world = World::with(policy());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Wait(seconds) => world.wait_seconds(seconds),
                Step::Restart => world.restart(),
                Step::Register { record, expected } => {
                    let record = &RECORDS[record];
                    let expected = match expected {
                        None => Expected::Anything,
                        Some(None) => Expected::Absent,
                        Some(Some(record)) => Expected::Order(RECORDS[record].order()),
                    };
                    let outcome = world.register_packet(record, &expected);
                    prop_assert_eq!(outcome, model.register(world.now.wall, record, &expected));
                }
            }
            for vat in 1..=3 {
                let id = key(vat).id();
                prop_assert_eq!(world.lookup(id), model.lookup(world.now.wall, id.as_bytes()));
            }
        }
    }

    #[test]
    fn two_registries_that_saw_the_same_packets_in_any_order_agree(
        (packets, shuffled) in prop::collection::vec(0..RECORDS.len(), 1..40)
            .prop_flat_map(|packets| (Just(packets.clone()), Just(packets).prop_shuffle())),
        restart_at in 0..40_usize,
    ) {
        let mut worlds = [World::with(policy()), World::with(policy())];
        for world in &mut worlds {
            world.wait_seconds(450);
        }
        let [one, other] = &mut worlds;
        for (count, (in_order, in_another)) in packets.iter().zip(&shuffled).enumerate() {
            one.register_packet(&RECORDS[*in_order], &Expected::Anything);
            other.register_packet(&RECORDS[*in_another], &Expected::Anything);
            if count == restart_at {
                other.restart();
            }
        }
        for vat in 1..=3 {
            let id = key(vat).id();
            let (answer, same) = (one.lookup(id), other.lookup(id));
            prop_assert_eq!(&answer.packet, &same.packet);
            // And where the highest records contradict each other, they hold the same evidence.
            let Some(packet) = answer.packet else { continue };
            let current = SignedPacket::verify(id, &packet).unwrap();
            let contradicted = packets.iter().map(|packet| &RECORDS[*packet]).any(|record| {
                record.id() == id
                    && record.epoch() == current.epoch()
                    && record.timestamp() == current.timestamp()
                    && *record != current
            });
            if contradicted {
                let evidence = one.registry.evidence(id.as_bytes());
                prop_assert!(evidence.is_some_and(|evidence| *evidence.highest() == current));
                prop_assert_eq!(evidence, other.registry.evidence(id.as_bytes()));
            }
        }
    }

    #[test]
    fn its_tables_never_outgrow_their_bounds_and_no_mark_is_passed(
        vats in prop::collection::vec((0..24_u8, 0..4_u64, 0..6_u8, 0..600_u64), 1..150),
        restart_every in 5..50_usize,
    ) {
        let policy = Policy { max_records: 6, work: None, max_marks: 24, ..policy() };
        let mut world = World::with(policy);
        let mut highest: HashMap<u8, u64> = HashMap::new();
        for (count, (vat, epoch, network, wait)) in vats.into_iter().enumerate() {
            let key = key(u32::from(vat) + 1);
            let record = match epoch {
                0 => foreign(&key, at(0), "some"),
                epoch => Draft { epoch, ..Draft::default() }.sign(&key).into(),
            };
            let source = Some([198, 51, network, 9].into());
            let outcome =
                world.register_bytes(source, record.id().as_bytes(), record.packet(), &Expected::Anything);
            let mark = highest.entry(vat).or_default();
            // There are more marks than vats: what was accepted once is never undercut.
            if epoch < *mark {
                prop_assert!(matches!(outcome, Outcome::Stale { .. }), "{outcome:?} after epoch {mark}");
            } else if matches!(outcome, Outcome::Refused(_)) {
                prop_assert_eq!(refusal(&outcome), "vls.full");
            } else {
                *mark = epoch;
                prop_assert!(world.current(record.id()).is_some());
            }
            let (records, marks, _) = world.disk.rows();
            prop_assert_eq!(records, world.registry.len());
            prop_assert!(records <= 6 && marks <= 24);
            world.wait_seconds(wait);
            if count % restart_every == 0 {
                world.restart();
            }
        }
    }
}
