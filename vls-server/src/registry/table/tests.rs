//! The table against a model that is too simple to be wrong: a map and a search through all of it.

use std::collections::HashMap;

use schemas::{IdentityKey, LocationRecord, SignedRecord, State, Timestamp};

use super::*;

const LEASE: Duration = Duration::from_secs(100);

#[derive(Debug, Clone)]
struct Known {
    packet: Vec<u8>,
    lease: Lease,
    turn: u64,
}

/// Draws numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn at(millis: u64) -> Moment {
    Moment::from_ticks(1 << 45).after(Duration::from_millis(millis))
}

fn id(number: u64) -> Id {
    let mut id = [0x5a; 32];
    id[8..16].copy_from_slice(&number.to_be_bytes());
    id
}

/// A packet, most with the id where it usually is.
fn packet(id: &Id, length: usize, usual: bool) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).unwrap()).collect();
    if usual && length >= 142 {
        packet[90..142].copy_from_slice(IdText::of(id).as_bytes());
    }
    packet
}

struct Pair {
    table: Table,
    model: HashMap<Id, Known>,
    now: Moment,
}

impl Pair {
    fn new() -> Self {
        Self { table: Table::new(9, 4_000, 10, LEASE), model: HashMap::new(), now: at(0) }
    }

    fn agree_on(&self, id: &Id) {
        let (held, known) = (self.table.get(id), self.model.get(id));
        assert_eq!(held.is_some(), known.is_some());
        let (Some(held), Some(known)) = (held, known) else { return };
        assert_eq!(held.packet, known.packet);
        assert_eq!((held.seen, held.end), (known.lease.seen, known.lease.end));
        assert!(held.turn >= known.turn);
        assert_eq!(self.table.source(id), Some(known.lease.source));
    }

    fn agree_on_order(&self, sources: &[SourcePrefix]) {
        assert_eq!(self.table.len(), self.model.len());
        let all = || self.model.iter();
        let live = || all().filter(|(_, known)| known.lease.end > self.now);
        let lapsed = all().filter(|(_, known)| known.lease.end <= self.now).min_by_key(|(_, known)| known.lease.end);
        let count = |source| live().filter(|(_, known)| known.lease.source == source).count();
        for newcomer in sources {
            let displaced = self.table.displaced_by(*newcomer, self.now);
            let displaced = displaced.map(|id| &self.model[&id]);
            if let Some((_, oldest)) = lapsed {
                assert_eq!(displaced.map(|known| known.lease.end), Some(oldest.lease.end));
                continue;
            }
            let most = sources.iter().map(|source| count(*source)).max().unwrap_or(0);
            let own = count(*newcomer);
            let Some(displaced) = displaced else {
                assert!(own == 0 && most <= 1, "{own} of {most}");
                continue;
            };
            let source = displaced.lease.source;
            if most > own + 1 {
                assert_eq!(count(source), most);
            } else {
                assert_eq!(source, *newcomer);
            }
            let soonest = live().filter(|(_, known)| known.lease.source == source).map(|(_, known)| known.lease.end);
            assert_eq!(Some(displaced.lease.end), soonest.min());
        }
        if lapsed.is_none() {
            assert_eq!(self.table.next_end(), live().map(|(_, known)| known.lease.end).min());
        }
    }
}

/// Grows to some thousand records, shrinks, and grows again, with several lengths, renewals, displacement and leases
/// that end.
#[test]
fn it_agrees_with_a_map_through_growth_renewal_expiry_and_eviction() {
    let sources: Vec<_> = (1..8_u64).map(|n| SourcePrefix::from_bits(n << 8 | 4)).collect();
    let (mut pair, mut random) = (Pair::new(), Random(5));
    for turn in 1..=30_000_u64 {
        let growing = turn / 5_000 % 2 == 0;
        let id = id(random.below(4_000));
        let known = pair.model.get(&id).cloned();
        // Most leases are usual, some shorter, some are over when they come. Ends are all different.
        let length = match random.below(20) {
            0 => Duration::ZERO,
            1..4 => LEASE / 4 + Duration::from_micros(random.below(1_000)),
            _ => LEASE,
        };
        pair.now = pair.now.after(Duration::from_micros(1 + random.below(80_000)));
        let source = known.as_ref().map(|known| known.lease.source);
        let source = source.unwrap_or_else(|| sources[usize::try_from(random.below(49)).unwrap().isqrt()]);
        let lease = Lease { source, seen: pair.now, end: pair.now.after(length) };
        match random.below(10) {
            0..3 if known.is_some() => {
                pair.table.renew(&id, &lease, turn, pair.now);
                pair.model.entry(id).and_modify(|known| (known.lease, known.turn) = (lease, turn));
            }
            3..6 if growing => {}
            3..9 if !growing => {
                pair.table.take(&id);
                pair.model.remove(&id);
            }
            6 if growing => {
                let displaced = pair.table.displaced_by(source, pair.now);
                if let Some(displaced) = displaced {
                    pair.table.take(&displaced);
                    pair.model.remove(&displaced);
                }
            }
            _ => {
                let length = 72 + usize::try_from(random.below(59) * random.below(18)).unwrap();
                let packet = packet(&id, length, random.below(8) > 0);
                pair.table.put(&id, &packet, &lease, turn, pair.now);
                pair.model.insert(id, Known { packet, lease, turn });
            }
        }
        pair.agree_on(&id);
        for _ in 0..random.below(4) {
            pair.table.lapse(pair.now);
        }
        if turn % 500 == 0 {
            pair.agree_on_order(&sources);
            // Everything that has ended is moved, in the end, and the crowds are those of the living.
            while pair.table.order.first(false).is_some_and(|(end, _)| Moment::from_ticks(end) <= pair.now) {
                pair.table.lapse(pair.now);
            }
            pair.agree_on_order(&sources);
            pair.model.keys().for_each(|id| pair.agree_on(id));
        }
    }
    assert!(pair.model.len() > 300, "{}", pair.model.len());
    for id in pair.model.keys() {
        pair.table.take(id);
    }
    assert_eq!((pair.table.len(), pair.table.cells.numbers().count()), (0, 0));
}

/// Without leases that have ended, so that every displacement goes by the crowds.
#[test]
fn the_soonest_of_the_most_crowded_source_is_displaced() {
    let sources: Vec<_> = (1..6_u64).map(|n| SourcePrefix::from_bits(n << 8 | 4)).collect();
    let (mut pair, mut random) = (Pair::new(), Random(11));
    for turn in 1..=3_000_u64 {
        let id = id(turn);
        let source = sources[usize::try_from(random.below(25)).unwrap().isqrt()];
        let end = pair.now.after(LEASE + Duration::from_micros(random.below(1 << 24)));
        let lease = Lease { source, seen: pair.now, end };
        if pair.model.len() >= 200 {
            pair.agree_on_order(&sources);
            if let Some(displaced) = pair.table.displaced_by(source, pair.now) {
                pair.table.take(&displaced);
                pair.model.remove(&displaced);
            }
        }
        let packet = packet(&id, 200, true);
        pair.table.put(&id, &packet, &lease, turn, pair.now);
        pair.model.insert(id, Known { packet, lease, turn });
    }
    pair.agree_on_order(&sources);
    assert!(pair.model.len() >= 200);
}

/// Live and lapsed records of several sources, one of which has only lapsed ones, and some that end at one time.
#[test]
fn what_is_restored_is_found_and_goes_on() {
    let sources: Vec<_> = (1..7_u64).map(|n| SourcePrefix::from_bits(n << 8 | 4)).collect();
    let (mut pair, mut random) = (Pair::new(), Random(23));
    pair.now = at(60_000);
    let mut placed = Vec::new();
    for number in 0..3_000_u64 {
        let lapsed = number % 3 > 0;
        let (id, seen) = (id(number), at(random.below(1_500)));
        let source = sources[usize::try_from(random.below(if lapsed { 6 } else { 5 })).unwrap()];
        let lease = Lease { source, seen, end: seen.after(if lapsed { LEASE / 2 } else { LEASE }) };
        let packet = packet(&id, 150 + usize::try_from(number % 40).unwrap(), number % 2 == 0);
        placed.push(pair.table.restore(&id, &packet, &lease, pair.now));
        pair.model.insert(id, Known { packet, lease, turn: 0 });
    }
    pair.table.restored(placed);
    pair.model.keys().for_each(|id| pair.agree_on(id));
    pair.agree_on_order(&sources);
    for number in 0..2_000 {
        pair.table.take(&id(number));
        pair.model.remove(&id(number));
    }
    for number in 0..3_000 {
        pair.agree_on(&id(number));
    }
    // Whatever stands first goes: so each was where it belongs, among its own.
    while let Some(first) = pair.table.displaced_by(sources[pair.model.len() % 5], pair.now) {
        pair.agree_on_order(&sources);
        pair.table.take(&first);
        pair.model.remove(&first);
    }
    assert!(pair.table.len() == pair.model.len() && pair.table.len() <= sources.len());
}

#[test]
fn a_record_of_ours_has_its_id_where_it_is_looked_for() {
    let key = IdentityKey::from_seed(&[3; 32]);
    let record = LocationRecord {
        epoch: 1,
        turn: 2,
        chain_head: None,
        state: State::Live,
        expires: Timestamp::from_seconds(2_000_000_000),
        addresses: Vec::new(),
        search_path: Vec::new(),
        document: None,
    };
    let record = SignedRecord::sign(&key, &record, Timestamp::from_micros(1)).unwrap();
    let id = key.id();
    assert_eq!(record.packet()[90..142], *IdText::of(id.as_bytes()).as_bytes());
}
