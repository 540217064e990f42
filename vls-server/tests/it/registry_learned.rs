//! What other servers tell of, by the registry's rules alone: nobody's lease grows by being told of (rule 6), and no server
//! fills the table (rule 9).

use std::time::Duration;

use schemas::SignedRecord;
use vls_server::registry::{Claim, Examined, Outcome, Policy, Rate, SourcePrefix};

use crate::{
    local::key,
    world::{Draft, HOUR, World, packet, refreshed, refusal, stored},
};

const MINUTE: Duration = Duration::from_mins(1);

fn peer(n: u32) -> SourcePrefix {
    SourcePrefix::of_server(key(n).id())
}

fn claim(age: Duration, left: Duration) -> Claim {
    Claim { age, left }
}

impl World {
    fn learn(&mut self, source: SourcePrefix, record: &SignedRecord, claim: Claim) -> Outcome {
        let examined = self.registry.examine_learned(self.now, source, record.id().as_bytes(), record.packet(), claim);
        let decision = match examined {
            Examined::Decided(decision) => decision,
            Examined::Unverified(candidate) => {
                let (record, origin) = candidate.into_parts();
                self.registry.admit(self.now, origin, record.verify())
            }
        };
        self.disk.apply(&decision);
        decision.outcome.reveal(self.disk.turn).unwrap()
    }
}

#[test]
fn a_learned_lease_goes_on_from_where_it_is_and_ends_no_later_than_at_its_origin_also_across_a_restart() {
    // The origin's lease is shorter than ours, longer, or over; the last is valid for ten minutes only.
    for (age, left, expires, ends) in [(20, 10, 999, 10), (20, 999, 999, 40), (20, 0, 999, 0), (20, 30, 10, 10)] {
        let mut world = World::new();
        let record = Draft { expires: expires * 60, ..Draft::default() }.sign(&key(1));
        let outcome = world.learn(peer(9), &record, claim(age * MINUTE, Duration::from_mins(left)));
        assert_eq!(outcome, stored(Duration::from_mins(ends)));
        world.restart();
        let answer = world.lookup(record.id());
        assert_eq!((answer.age, answer.left, answer.expired), (age * MINUTE, Duration::from_mins(ends), ends == 0));
        world.wait(Duration::from_mins(ends));
        assert!(world.lookup(record.id()).expired);
    }
}

#[test]
fn who_passes_on_a_higher_record_as_one_that_is_over_ends_nobodys_lease() {
    let mut world = World::new();
    let [before, after] = [1, 2].map(|epoch| Draft { epoch, ..Draft::default() }.sign(&key(1)));
    world.register(&before);
    world.wait(10 * MINUTE);
    assert_eq!(world.learn(peer(9), &after, claim(MINUTE, Duration::ZERO)), stored(50 * MINUTE));
    world.restart();
    let answer = world.lookup(after.id());
    assert_eq!((answer.packet, answer.left, answer.expired), (Some(packet(&after)), 50 * MINUTE, false));
    // Where the lease was over, a claim of none begins none.
    world.wait(50 * MINUTE);
    let third = Draft { epoch: 3, ..Draft::default() }.sign(&key(1));
    assert_eq!(world.learn(peer(9), &third, claim(MINUTE, Duration::ZERO)), stored(Duration::ZERO));
}

#[test]
fn hearing_of_a_held_record_again_changes_its_lease_only_if_its_vat_was_seen_since() {
    let mut world = World::new();
    let record = Draft::default().sign(&key(1));
    world.register(&record);
    world.wait(30 * MINUTE);
    let turn = world.disk.turn;
    // From who heard it earlier, later with a shorter lease, or from here.
    for told in [claim(40 * MINUTE, 20 * MINUTE), claim(MINUTE, MINUTE), claim(30 * MINUTE, 30 * MINUTE)] {
        assert_eq!(world.learn(peer(9), &record, told), refreshed(30 * MINUTE));
        assert_eq!((world.lookup(record.id()).age, world.disk.turn), (30 * MINUTE, turn));
    }
    // The vat has renewed elsewhere ten minutes ago.
    assert_eq!(world.learn(peer(9), &record, claim(10 * MINUTE, 50 * MINUTE)), refreshed(50 * MINUTE));
    assert_eq!(world.lookup(record.id()).age, 10 * MINUTE);
    // And here now.
    assert_eq!(world.register(&record), refreshed(HOUR));
}

#[test]
fn two_servers_that_tell_each_other_keep_no_record_alive() {
    let (mut one, mut other) = (World::new(), World::new());
    let record = Draft::default().sign(&key(1));
    one.register(&record);
    let step = Duration::from_secs(7);
    for passed in 1..=600 {
        for world in [&mut one, &mut other] {
            world.wait(step);
        }
        let told = one.lookup(record.id());
        other.learn(peer(9), &record, claim(told.age, told.left));
        let told = other.lookup(record.id());
        one.learn(peer(8), &record, claim(told.age, told.left));
        let is_over = step * passed >= HOUR;
        assert_eq!(
            (one.lookup(record.id()).expired, other.lookup(record.id()).expired),
            (is_over, is_over),
            "{passed}"
        );
    }
}

#[test]
fn the_order_and_the_times_of_learned_records_are_judged_as_all_are() {
    let mut world = World::new();
    let fresh = claim(Duration::ZERO, HOUR);
    let current = Draft { epoch: 2, ..Draft::default() }.sign(&key(1));
    world.register(&current);
    let stale = Draft { epoch: 1, signed: 60, ..Draft::default() }.sign(&key(1));
    assert_eq!(world.learn(peer(9), &stale, fresh), Outcome::Stale { current: Some(packet(&current)) });
    for (draft, code) in [
        (Draft { epoch: 3, signed: 301, ..Draft::default() }, "record.future"),
        (Draft { epoch: 3, signed: -100, expires: -1, ..Draft::default() }, "record.expired"),
    ] {
        assert_eq!(refusal(&world.learn(peer(9), &draft.sign(&key(1)), fresh)), code);
    }
    // Higher, though its lease is over where it comes from: it takes the place, and what the vat was granted here it keeps.
    let higher = Draft { epoch: 3, ..Draft::default() }.sign(&key(1));
    assert_eq!(world.learn(peer(9), &higher, claim(2 * HOUR, Duration::ZERO)), stored(HOUR));
    assert_eq!(world.lookup(key(1).id()).packet, Some(packet(&higher)));
}

#[test]
fn one_server_takes_half_of_the_table_at_most_and_its_rate_is_its_own() {
    let learned_ids = Rate { burst: 20, interval: Duration::from_secs(1000) };
    let mut world = World::with(Policy { max_records: 10, work: None, learned_ids, ..Policy::default() });
    let fresh = claim(Duration::ZERO, HOUR);
    let held =
        |world: &World, range: std::ops::Range<u32>| range.filter(|n| world.current(key(*n).id()).is_some()).count();
    for n in 0..20 {
        world.wait_seconds(1);
        assert!(matches!(world.learn(peer(99), &Draft::default().sign(&key(n)), fresh), Outcome::Stored { .. }));
        assert_eq!(held(&world, 0..20), 5.min(n as usize + 1), "the first to end makes room");
    }
    // Its tokens are used up, and no one else's.
    let next = Draft::default().sign(&key(20));
    assert_eq!(refusal(&world.learn(peer(99), &next, fresh)), "vls.quota");
    assert!(matches!(world.learn(peer(98), &next, fresh), Outcome::Stored { .. }));
    // What a vat registers itself is not the server's any more.
    let own = Draft { epoch: 2, ..Draft::default() }.sign(&key(19));
    assert_eq!(world.register(&own), stored(HOUR));
    assert_eq!(held(&world, 0..20), 5);
    assert!(matches!(world.learn(peer(98), &Draft::default().sign(&key(30)), fresh), Outcome::Stored { .. }));
}
