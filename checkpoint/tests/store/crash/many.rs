//! The same for a store of several vats: groups with frames of several of them, vats that sleep and wake, that are
//! made while others work, and folds of some while the rest goes on.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, thread};

use checkpoint::{Durable, HostStore, Store, StoreError, TurnDelta, simulated::SimulatedDisk};

use super::{
    campaign::Effort,
    images::{Coverage, Kind, Point},
};
use crate::harness::*;

const VATS: u64 = 4;
const EFFORT: Effort = Effort { steps: 30, samples: 8, second_crash: 9 };
const LIVES: RangeInclusive<u64> = 1..=6;
const LEAST_IMAGES: u64 = 8_000;
/// Marks of a vat have its number above this bit.
const VAT_BIT: u32 = 40;

fn vat(number: u64) -> [u8; 32] {
    [number as u8 + 1; 32]
}

fn mark(disk: &SimulatedDisk, vat: u64, mark: Mark) {
    disk.mark(vat << VAT_BIT | mark.number());
}

/// What one vat should contain after each of its turns.
#[derive(Debug, Clone)]
struct Model {
    states: Vec<Rows>,
    epoch: u64,
}

struct Life {
    disk: Arc<SimulatedDisk>,
    models: BTreeMap<u64, Model>,
    /// Groups that had frames of more than one vat.
    shared_groups: u64,
}

fn options(seed: u64) -> checkpoint::StoreOptions {
    let fold_bytes = if seed.is_multiple_of(2) { u64::MAX } else { 8 << 10 };
    // In every third life more vats commit than a group takes.
    let group_vats = if seed.is_multiple_of(3) { 2 } else { 100 };
    checkpoint::StoreOptions { fold_bytes, group_vats, ..smallest_segments() }
}

fn marking(disk: &Arc<SimulatedDisk>, vat: u64) -> Option<checkpoint::OnDurable> {
    let disk = Arc::clone(disk);
    Some(Box::new(move |durable| {
        if let Durable::Turn(turn) = durable {
            mark(&disk, vat, Mark::Durable(turn));
        }
    }))
}

/// A life: vats are made, wake, take turns alone and together, begin epochs, sleep; the store folds, closes, opens.
fn live(seed: u64) -> Result<Life, StoreError> {
    let (disk, mut random) = (SimulatedDisk::new(), Random(seed));
    let mut host = HostStore::create(disk.clone(), directory(), &sealed(), options(seed))?;
    disk.mark(u64::MAX);
    let mut awake = BTreeMap::<u64, Store>::new();
    let mut life = Life { disk: Arc::clone(&disk), models: BTreeMap::new(), shared_groups: 0 };
    for _ in 0..EFFORT.steps {
        let number = random.below(VATS);
        match random.below(12) {
            0 => {
                awake.clear();
                host.close()?;
                host = HostStore::open(disk.clone(), directory(), &sealed(), options(seed))?;
            }
            1 => host.fold()?,
            // While turns of several vats are committed.
            2 => thread::scope(|scope| {
                let fold = scope.spawn(|| host.fold());
                life.turns(&awake, &mut random)?;
                fold.join().unwrap()
            })?,
            3 => drop(awake.remove(&number)),
            4 => {
                if let (Some(store), Some(model)) = (awake.get(&number), life.models.get_mut(&number)) {
                    model.epoch += 1;
                    mark(&disk, number, Mark::EpochRequested(model.epoch));
                    store.begin_epoch(model.epoch, [3; 16])?;
                    mark(&disk, number, Mark::Epoch(model.epoch));
                }
            }
            _ => {
                wake(&host, &disk, &mut life, &mut awake, number)?;
                life.turns(&awake, &mut random)?;
            }
        }
    }
    awake.clear();
    host.close()?;
    Ok(life)
}

fn wake(
    host: &HostStore,
    disk: &Arc<SimulatedDisk>,
    life: &mut Life,
    awake: &mut BTreeMap<u64, Store>,
    number: u64,
) -> Result<(), StoreError> {
    if awake.contains_key(&number) {
        return Ok(());
    }
    let store = if let Some(model) = life.models.get(&number) {
        let store = host.open_vat(&vat(number), marking(disk, number))?;
        assert_eq!(store.position().turn as usize, model.states.len() - 1);
        assert_eq!(&contents(&store)?, model.states.last().unwrap());
        store
    } else {
        let store = host.create_vat(&vat(number), marking(disk, number))?;
        mark(disk, number, Mark::Created);
        life.models.insert(number, Model { states: vec![Rows::new()], epoch: 0 });
        store
    };
    awake.insert(number, store);
    Ok(())
}

impl Life {
    /// A turn or two of some that are awake, queued one after the other so that they share a group.
    fn turns(&mut self, awake: &BTreeMap<u64, Store>, random: &mut Random) -> Result<(), StoreError> {
        let mut last = None;
        let mut members = 0;
        for (number, store) in awake {
            let turns = random.below(3);
            for _ in 0..turns {
                let changes = random.changes_of([40, 600, 4_500]);
                let states = &mut self.models.get_mut(number).unwrap().states;
                let mut rows = states.last().unwrap().clone();
                apply(&mut rows, &changes);
                states.push(rows);
                let turn = store.position().turn + 1;
                mark(&self.disk, *number, Mark::Submitted(turn));
                store.queue(TurnDelta { turn, changes })?;
                last = Some((store, turn));
            }
            members += u64::from(turns > 0);
        }
        self.shared_groups += u64::from(members > 1);
        // The others may be left to a later group, or to sleep.
        match last {
            Some((store, turn)) => store.wait_durable(turn),
            None => Ok(()),
        }
    }

    fn crash(&self, seed: u64) -> Result<Coverage, String> {
        let (mut random, mut coverage) = (Random(seed), Coverage::default());
        let mut history = self.disk.history();
        for point in 0..=history.len() {
            history.advance(point);
            let allowed = Allowed::after(history.marks());
            let at = Point::new(&history, point);
            if !at.is_new() && point % 16 > 0 {
                continue;
            }
            for kept in at.images(&mut random, EFFORT.samples) {
                let wrong = |what| format!("after operation {point}: {what}\n{}", at.describe(&kept));
                coverage.add(at.kinds(&kept));
                let disk = at.disk(&kept);
                let before = disk.operations();
                let Some((operations, shown)) = allowed.check(&disk, self).map_err(wrong)? else { continue };
                if random.below(EFFORT.second_crash) > 0 {
                    continue;
                }
                // And again, after each operation of the recovery.
                let mut recovery = disk.history();
                for point in before + 1..=operations {
                    recovery.advance(point);
                    let allowed = if point == operations { &shown } else { &allowed };
                    let at = Point::new(&recovery, point);
                    for kept in at.images(&mut random, 2) {
                        let wrong = |what| format!("and again in the recovery: {what}\n{}", at.describe(&kept));
                        coverage.add(at.kinds(&kept).into_iter().chain([Kind::DuringRecovery]));
                        allowed.check(&at.disk(&kept), self).map_err(wrong)?;
                    }
                }
            }
        }
        Ok(coverage)
    }
}

/// What a crashed store may contain.
#[derive(Debug, Clone, Default)]
struct Allowed {
    created: bool,
    vats: BTreeMap<u64, AllowedVat>,
}

#[derive(Debug, Clone, Default)]
struct AllowedVat {
    created: bool,
    oldest: u64,
    newest: u64,
    epoch: u64,
    requested: u64,
}

impl Allowed {
    fn after(marks: impl Iterator<Item = u64>) -> Self {
        let mut allowed = Self::default();
        for mark in marks {
            if mark == u64::MAX {
                allowed.created = true;
                continue;
            }
            let vat = allowed.vats.entry(mark >> VAT_BIT).or_default();
            match Mark::from_number(mark & ((1 << VAT_BIT) - 1)) {
                Mark::Created => vat.created = true,
                Mark::Durable(turn) => vat.oldest = vat.oldest.max(turn),
                Mark::Submitted(turn) => vat.newest = turn,
                Mark::EpochRequested(epoch) => vat.requested = epoch,
                Mark::Epoch(epoch) => vat.epoch = epoch,
            }
        }
        allowed
    }

    /// Opens a crashed store, compares each vat, and has some go on; `None` if it was never acknowledged to be there
    /// and is not. Otherwise how many operations there were once it was open, and what is allowed from then on.
    fn check(&self, disk: &Arc<SimulatedDisk>, life: &Life) -> Result<Option<(usize, Self)>, String> {
        let host = match HostStore::open(disk.clone(), directory(), &sealed(), smallest_segments()) {
            Ok(host) => host,
            Err(StoreError::Missing { .. } | StoreError::KeyMissing { .. }) if !self.created => return Ok(None),
            Err(error) => return Err(format!("does not open: {error}")),
        };
        let operations = disk.operations();
        let failed = |error: StoreError| format!("does not go on: {error}");
        let mut shown = Self { created: true, ..self.clone() };
        let vats = host.vats().map_err(failed)?;
        for number in 0..VATS {
            let allowed = self.vats.get(&number).cloned().unwrap_or_default();
            match host.open_vat(&vat(number), None) {
                Ok(store) => {
                    let position = store.position();
                    let in_order = (allowed.oldest..=allowed.newest).contains(&position.turn)
                        && (allowed.epoch..=allowed.requested).contains(&position.epoch);
                    if !in_order || !vats.contains(&vat(number)) {
                        return Err(format!("vat {number} is at {position:?}, allowed is {allowed:?}"));
                    }
                    let rows = contents(&store).map_err(failed)?;
                    let known = life.models.get(&number).and_then(|model| model.states.get(position.turn as usize));
                    // A vat may be there that nobody was told of any more.
                    if *known.unwrap_or(&Rows::new()) != rows {
                        return Err(format!("vat {number} is not in the state after turn {}", position.turn));
                    }
                    let (oldest, epoch) = (position.turn, position.epoch);
                    shown.vats.insert(number, AllowedVat { created: true, oldest, epoch, ..allowed });
                    durable_turn(&store, vec![set(0, b"again", b"again")]).map_err(failed)?;
                }
                Err(StoreError::NoSuchVat { .. }) if !allowed.created => {
                    let store = host.create_vat(&vat(number), None).map_err(failed)?;
                    durable_turn(&store, vec![set(0, b"again", b"again")]).map_err(failed)?;
                }
                Err(error) => return Err(format!("vat {number} does not wake: {error}")),
            }
        }
        host.fold().map_err(failed)?;
        host.close().map_err(failed)?;
        Ok(Some((operations, shown)))
    }
}

#[test]
#[allow(clippy::print_stdout)]
fn every_vat_of_a_crashed_store_is_in_a_state_not_older_than_what_it_acknowledged() {
    let total = std::sync::Mutex::new((Coverage::default(), 0));
    on_two_threads(LIVES.count() as u64, |number| {
        let seed = LIVES.start() + number;
        let life = live(seed).unwrap();
        let coverage = life.crash(seed).unwrap_or_else(|what| panic!("life {seed}: {what}"));
        let mut total = total.lock().unwrap();
        total.0.merge(coverage);
        total.1 += life.shared_groups;
    });
    let (coverage, shared) = total.into_inner().unwrap();
    println!("{coverage:?}, {shared} groups of several vats");
    assert!(coverage.images >= LEAST_IMAGES && shared > 20, "{coverage:?}, {shared}");
    for kind in Kind::ALL {
        let of_one = [Kind::DuringCreate, Kind::AfterKill].contains(&kind);
        assert!(of_one || coverage.kinds.contains_key(&kind), "no image was {kind:?}: {coverage:?}");
    }
}
