//! A sweep against a model: whatever objects, grants and holders did before, what is needed stays, what is not goes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::{Rc, Weak},
    sync::Arc,
};

use capnp::private::capability::ClientHook;
use checkpoint::{Protection, Store, StoreOptions, simulated::SimulatedDisk};
use schemas::{Timestamp, VatId, objects_capnp::counter};
use serde::{Deserialize, Serialize};

use super::*;
use crate::{
    engine::NoOutputs,
    kinds::Kinds,
    object::{Authority, Handle, Kind, Reference, State},
    tables::object_of_name,
};

/// A node of the graph: half of its links stand in its state, half in entries.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Node(BTreeMap<u8, Reference>);

impl State for Node {
    const TYPE: &'static str = "test.node";
}

#[derive(Clone, Serialize, Deserialize)]
struct Link(Option<Reference>);

impl State for Link {
    const TYPE: &'static str = "test.link";
}

struct Server(#[allow(dead_code)] Rc<Handle<Node>>);

impl counter::Server for Server {}

/// The handle of the object that became live last.
type Latest = Rc<RefCell<Weak<Handle<Node>>>>;

fn kinds(latest: &Latest) -> Kinds {
    let latest = latest.clone();
    let object = move |handle| -> counter::Client {
        let handle = Rc::new(handle);
        *latest.borrow_mut() = Rc::downgrade(&handle);
        capnp_rpc::new_client(Server(handle))
    };
    Kinds::default().with(Kind::new("node", "a node of a graph", &[], object).with_entry::<Link>())
}

const FOLDER: &str = "/store";
const SLOTS: u8 = 4;

fn in_state(slot: u8) -> bool {
    slot.is_multiple_of(2)
}

/// A vat on a simulated disk.
struct Bench {
    disk: Arc<SimulatedDisk>,
    id: VatId,
    latest: Latest,
    vat: Vat,
}

fn open(disk: &Arc<SimulatedDisk>, id: VatId, latest: &Latest) -> Vat {
    // Each turn in a frame of its own, so that a crash can come between any two.
    let (folder, options) = (Path::new(FOLDER), StoreOptions { group_turns: 1, ..StoreOptions::default() });
    let store = Store::open(disk.clone(), folder, id.as_bytes(), &Protection::Plain, options).unwrap();
    let clock = Rc::new(|| Timestamp::from_seconds(1_700_000_000));
    Vat::open(store, id, kinds(latest), clock, Box::new(NoOutputs)).unwrap()
}

impl Bench {
    fn new() -> Self {
        let (disk, latest) = (SimulatedDisk::new(), Latest::default());
        let id = Vat::create(disk.clone(), Path::new(FOLDER), &Protection::Plain, &kinds(&latest), "node").unwrap();
        let vat = open(&disk, id, &latest);
        Self { disk, id, latest, vat }
    }

    fn settle(&self) {
        self.vat.engine().store().wait_durable(self.vat.engine().newest_turn()).unwrap();
    }

    /// The same vat after a loss of power.
    fn after_power_loss(self, seed: u64) -> Self {
        self.settle();
        let mut history = self.disk.history();
        history.advance(history.len());
        let (disk, latest) = (history.crash(seed), Latest::default());
        let vat = open(&disk, self.id, &latest);
        Self { disk, id: self.id, latest, vat }
    }

    /// Has one node do something.
    fn with<R>(&self, object: ObjectId, work: impl FnOnce(&Handle<Node>) -> R) -> R {
        let capability = self.vat.objects.activate(object, Authority::default()).unwrap();
        let handle = self.latest.borrow().upgrade().unwrap();
        let done = work(&handle);
        drop((handle, capability));
        done
    }

    fn link(&self, from: ObjectId, slot: u8, to: impl FnOnce(&mut crate::ObjectTurn<'_, '_>) -> Option<Reference>) {
        self.try_link(from, slot, |turn| Ok(to(turn))).unwrap();
    }

    fn try_link(
        &self,
        from: ObjectId,
        slot: u8,
        to: impl FnOnce(&mut crate::ObjectTurn<'_, '_>) -> Result<Option<Reference>, ObjectError>,
    ) -> Result<(), ObjectError> {
        self.with(from, |handle| {
            handle.turn(|node, turn| {
                let to = to(turn)?;
                if let Some(Reference::Near(to)) = &to {
                    // As if it had been given.
                    self.vat.objects.obtain(from, *to)?;
                }
                match (to, in_state(slot)) {
                    (Some(to), true) => drop(node.0.insert(slot, to)),
                    (None, true) => drop(node.0.remove(&slot)),
                    (Some(to), false) => turn.put(&[slot], &Link(Some(to)))?,
                    (None, false) => drop(turn.remove(&[slot])?),
                }
                Ok(())
            })
        })
    }

    /// The links of a node as it reads them itself.
    fn links(&self, object: ObjectId) -> BTreeMap<u8, ObjectId> {
        self.with(object, |handle| {
            handle.read(|node, entries| {
                let mut links = node.0.clone();
                for slot in (0..SLOTS).filter(|slot| !in_state(*slot)) {
                    if let Some(Link(Some(to))) = entries.get(&[slot])? {
                        links.insert(slot, to);
                    }
                }
                Ok(links.into_iter().map(|(slot, Reference::Near(to))| (slot, to)).collect())
            })
        })
        .unwrap()
    }

    /// The objects that there are, by the table of objects.
    fn objects(&self) -> BTreeSet<ObjectId> {
        self.vat.objects().unwrap().into_iter().map(|(object, _)| object).collect()
    }
}

/// A sequence of numbers that looks random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

/// What there should be.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<ObjectId, BTreeMap<u8, ObjectId>>,
    grants: Vec<(u64, ObjectId)>,
    next_grant: u64,
}

impl Model {
    fn needed(&self, roots: impl IntoIterator<Item = ObjectId>) -> BTreeSet<ObjectId> {
        let mut open: Vec<ObjectId> = roots.into_iter().collect();
        let mut needed = BTreeSet::new();
        while let Some(object) = open.pop() {
            if needed.insert(object) {
                open.extend(self.nodes[&object].values());
            }
        }
        needed
    }
}

/// What a sweep takes for granted.
#[derive(Clone, Copy, PartialEq)]
enum Roots {
    All,
    NoGrants,
    NobodyHolds,
}

struct Run {
    bench: Bench,
    model: Model,
    held: Vec<(Box<dyn ClientHook>, ObjectId)>,
    roots: Roots,
}

impl Run {
    fn needed(&self) -> BTreeSet<ObjectId> {
        let root = self.bench.vat.objects.root();
        let granted = self.model.grants.iter().map(|(_, object)| *object);
        self.model.needed([root].into_iter().chain(granted).chain(self.held.iter().map(|(_, object)| *object)))
    }

    fn step(mut self, random: &mut Random) -> Result<Self, String> {
        let needed: Vec<ObjectId> = self.needed().into_iter().collect();
        let (from, to) = (random.of(&needed), random.of(&needed));
        let slot = u8::try_from(random.below(SLOTS.into())).unwrap();
        match random.below(24) {
            0..=5 => self.create(from, slot, true),
            6 => self.create(from, slot, false),
            7 => self.fail_to_create(from, slot),
            8..=10 => {
                self.bench.link(from, slot, |_| Some(Reference::Near(to)));
                self.model.nodes.get_mut(&from).unwrap().insert(slot, to);
            }
            11..=13 => {
                self.bench.link(from, slot, |_| None);
                self.model.nodes.get_mut(&from).unwrap().remove(&slot);
            }
            14 => {
                self.bench.vat.grant_object(to, "", None, None).unwrap();
                self.model.next_grant += 1;
                self.model.grants.push((self.model.next_grant, to));
            }
            15 if !self.model.grants.is_empty() => {
                let index = usize::try_from(random.below(self.model.grants.len() as u64)).unwrap();
                let (number, _) = self.model.grants.swap_remove(index);
                self.bench.vat.revoke(number).unwrap();
            }
            16 => self.held.push((self.bench.vat.objects.activate(to, Authority::default()).unwrap(), to)),
            17 if !self.held.is_empty() => {
                let index = usize::try_from(random.below(self.held.len() as u64)).unwrap();
                drop(self.held.swap_remove(index));
            }
            18 => {
                self.held.clear();
                self.bench = self.bench.after_power_loss(random.0);
            }
            19..=21 => self.sweep(random)?,
            _ => {}
        }
        self.check_references()?;
        Ok(self)
    }

    fn create(&mut self, from: ObjectId, slot: u8, keep: bool) {
        let mut made = None;
        if keep {
            self.bench.link(from, slot, |turn| {
                made = Some(turn.create("node").unwrap());
                made.clone()
            });
        } else {
            let create = |turn: &mut crate::ObjectTurn<'_, '_>| turn.create("node");
            made = self.bench.with(from, |handle| handle.turn(|_, turn| create(turn))).ok();
        }
        let Some(Reference::Near(object)) = made else { panic!("it was made") };
        assert!(self.model.nodes.insert(object, BTreeMap::new()).is_none(), "a number is never used again");
        if keep {
            self.model.nodes.get_mut(&from).unwrap().insert(slot, object);
        }
    }

    fn fail_to_create(&self, from: ObjectId, slot: u8) {
        let mut leaked = None;
        let undone = self.bench.try_link(from, slot, |turn| {
            leaked = Some(turn.create("node")?);
            Err(ObjectError::Refused("changed its mind".to_owned()))
        });
        assert!(undone.is_err());
        let stale = self.bench.try_link(from, slot, |_| Ok(leaked));
        assert!(matches!(stale, Err(ObjectError::NoSuchObject { .. })), "what was undone leads nowhere");
    }

    fn sweep(&mut self, random: &mut Random) -> Result<(), String> {
        let needed = self.needed();
        match self.roots {
            Roots::All if random.below(2) == 0 => self.bench.vat.sweep().map(drop),
            roots => {
                let vat = &self.bench.vat;
                let held = vat.objects.held().into_iter().filter(|_| roots != Roots::NobodyHolds);
                let granted = self.model.grants.iter().map(|(_, object)| *object);
                let granted = granted.filter(|_| roots != Roots::NoGrants);
                let roots = [vat.objects.root()].into_iter().chain(held).chain(granted).collect();
                // In turns of one row, or all at once.
                sweep_from(vat, roots, usize::try_from(random.below(2) * 10_000).unwrap()).map(drop)
            }
        }
        .map_err(|error| error.to_string())?;
        let left = self.bench.objects();
        if left != needed {
            return Err(format!("after the sweep there are {left:?}, needed are {needed:?}"));
        }
        let gone: Vec<ObjectId> = self.model.nodes.keys().filter(|object| !needed.contains(object)).copied().collect();
        for object in gone {
            let rows = self.bench.vat.engine().store().scan(object.0).unwrap();
            assert!(rows.is_empty(), "nothing is left of {object}");
            self.model.nodes.remove(&object);
        }
        for object in needed {
            assert_eq!(self.bench.links(object), self.model.nodes[&object], "{object} is as it was");
        }
        Ok(())
    }

    /// The table of references says what the rows say, for garbage as well.
    fn check_references(&self) -> Result<(), String> {
        let mut found = BTreeMap::<ObjectId, BTreeSet<ObjectId>>::new();
        for (name, row) in self.bench.vat.engine().store().scan(SPACE_REFERENCES).unwrap() {
            let object = object_of_name(&name[..8]).unwrap();
            found.entry(object).or_default().extend(decode_row::<Outgoing>(&row).unwrap().0);
        }
        let linked = self.model.nodes.iter().filter(|(_, links)| !links.is_empty());
        let expected = linked.map(|(object, links)| (*object, links.values().copied().collect())).collect();
        if found == expected { Ok(()) } else { Err(format!("references are {found:?}, should be {expected:?}")) }
    }
}

/// A whole sweep from these roots, in turns of this size.
fn sweep_from(vat: &Vat, roots: Vec<ObjectId>, turn_bytes: usize) -> Result<Swept, VatError> {
    let mut swept = Swept::default();
    loop {
        let part = vat.sweep_part_from(roots.clone(), turn_bytes)?;
        if part.turns == 0 {
            return Ok(swept);
        }
        swept += part;
    }
}

fn run(seed: u64, roots: Roots) -> Result<(), String> {
    let bench = Bench::new();
    let model = Model { nodes: BTreeMap::from([(bench.vat.objects.root(), BTreeMap::new())]), ..Model::default() };
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1));
    let mut run = Run { bench, model, held: Vec::new(), roots };
    for _ in 0..80 {
        run = run.step(&mut random)?;
    }
    Ok(())
}

const SEEDS: std::ops::Range<u64> = 0..24;

#[test]
fn what_is_needed_stays_and_what_is_not_goes_whatever_happened_before() {
    for seed in SEEDS {
        run(seed, Roots::All).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn the_test_above_notices_a_sweep_that_forgets_grants_or_holders() {
    for roots in [Roots::NoGrants, Roots::NobodyHolds] {
        assert!(SEEDS.into_iter().any(|seed| run(seed, roots).is_err()));
    }
}

/// The root leads to one chain, and nothing to another.
fn two_chains() -> (Bench, BTreeSet<ObjectId>) {
    let bench = Bench::new();
    let root = bench.vat.objects.root();
    for (first, slot) in [(root, 0), (root, 1)] {
        let mut from = (first, slot);
        for _ in 0..4 {
            bench.link(from.0, from.1, |turn| Some(turn.create("node").unwrap()));
            from = (bench.links(from.0)[&from.1], 2);
        }
    }
    let all = bench.objects();
    bench.link(root, 1, |_| None);
    let needed = all.iter().filter(|object| object.0 <= root.0 + 4).copied().collect();
    bench.settle();
    (bench, needed)
}

#[test]
fn a_sweep_of_many_turns_that_a_crash_interrupts_is_sound_and_is_finished_by_the_next() {
    let (bench, needed) = two_chains();
    let before = bench.disk.operations();
    let swept = sweep_from(&bench.vat, bench.vat.roots().unwrap(), 0).unwrap();
    assert_eq!((swept.objects, swept.turns), (4, swept.rows), "each row is a turn");
    bench.settle();
    let mut partly = 0;
    for stop in before..=bench.disk.operations() {
        let mut history = bench.disk.history();
        history.advance(stop);
        let (disk, latest) = (history.crash(stop as u64), Latest::default());
        let vat = open(&disk, bench.id, &latest);
        let crashed = Bench { disk, id: bench.id, latest, vat };
        let left = crashed.objects();
        assert!(left.is_superset(&needed));
        partly += usize::from(left != needed && left.len() < needed.len() + 4);
        crashed.vat.sweep().unwrap();
        assert_eq!(crashed.objects(), needed);
        let rows = crashed.vat.engine().with_rows(SPACE_REFERENCES, BTreeMap::len).unwrap();
        assert_eq!(rows, 4, "no row of garbage is left");
        for object in &needed {
            assert_eq!(crashed.links(*object).len(), usize::from(object.0 < bench.vat.objects.root().0 + 4));
        }
    }
    assert!(partly > 0, "some crash came in the middle");
}

#[test]
fn a_part_is_one_turn_of_a_bounded_size_and_an_object_that_is_larger_takes_several() {
    let bench = Bench::new();
    let root = bench.vat.objects.root();
    bench.link(root, 0, |turn| Some(turn.create("node").unwrap()));
    let large = bench.links(root)[&0];
    bench.with(large, |handle| {
        handle.turn(|_, turn| (0..50_u8).try_for_each(|entry| turn.put(&[entry; 50], &Link(None)))).unwrap();
    });
    bench.link(root, 0, |_| None);

    // A name of 51 bytes, and what a removal takes besides: six fit, seven do not.
    let (turn_bytes, roots) = (500, bench.vat.roots().unwrap());
    let mut parts = 0;
    while bench.objects().contains(&large) {
        let before = bench.vat.engine().newest_turn();
        let part = bench.vat.sweep_part_from(roots.clone(), turn_bytes).unwrap();
        assert_eq!((part.turns, bench.vat.engine().newest_turn()), (1, before + 1));
        assert!((1..=7).contains(&part.rows), "{part:?}");
        assert_eq!(part.objects, u64::from(!bench.objects().contains(&large)), "counted when it is gone");
        parts += 1;
    }
    assert_eq!(parts, 9);
    assert!(bench.vat.engine().store().scan(large.0).unwrap().is_empty());
    assert_eq!(bench.vat.sweep_part_from(roots, turn_bytes).unwrap(), Swept::default());
}

#[test]
fn whoever_comes_between_two_parts_of_a_sweep_is_heeded_by_the_next() {
    let (bench, needed) = two_chains();
    let garbage: Vec<ObjectId> = bench.objects().difference(&needed).copied().collect();
    let first = bench.vat.sweep_part_from(bench.vat.roots().unwrap(), 0).unwrap();
    assert_eq!((first.rows, first.turns), (1, 1));
    // Nobody can reach it any more; that it is looked for again is what matters here.
    let held = bench.vat.objects.activate(garbage[3], Authority::default()).unwrap();
    bench.vat.objects.litter();
    bench.vat.sweep().unwrap();
    assert!(bench.objects().contains(&garbage[3]));
    drop(held);
    bench.vat.sweep().unwrap();
    assert_eq!(bench.objects(), needed);
}

/// Notes how many objects are in memory when a turn is handed to the checkpoint.
#[derive(Clone, Default)]
struct Watch {
    engine: Rc<RefCell<Weak<crate::engine::Engine>>>,
    most: Rc<RefCell<usize>>,
}

impl crate::engine::Outputs for Watch {
    fn produced(&self, _: u64) -> crate::engine::CommitStart {
        let awake = self.engine.borrow().upgrade().map_or(0, |engine| objects_in_memory(&engine));
        let most = awake.max(*self.most.borrow());
        *self.most.borrow_mut() = most;
        crate::engine::CommitStart::Now
    }
}

/// Besides the root.
fn objects_in_memory(engine: &crate::engine::Engine) -> usize {
    engine.awake().into_iter().filter(|space| *space > crate::tables::FIRST_OBJECT).count()
}

#[test]
fn garbage_is_not_in_memory_all_at_once_and_not_at_all_after() {
    let (bench, needed) = two_chains();
    let Bench { disk, id, latest, vat } = bench;
    drop(vat);
    let watch = Watch::default();
    let store = Store::open(disk, Path::new(FOLDER), id.as_bytes(), &Protection::Plain, StoreOptions::default());
    let clock = Rc::new(|| Timestamp::from_seconds(1_700_000_000));
    let vat = Vat::open(store.unwrap(), id, kinds(&latest), clock, Box::new(watch.clone())).unwrap();
    *watch.engine.borrow_mut() = Rc::downgrade(vat.engine());
    let swept = vat.sweep().unwrap();
    assert_eq!((swept.objects, swept.turns), (4, 1));
    assert_eq!((*watch.most.borrow(), objects_in_memory(vat.engine())), (0, 0));
    assert_eq!(vat.objects().unwrap().len(), needed.len());
}

#[test]
fn an_object_whose_state_cannot_be_read_does_not_stay_in_memory() {
    let bench = Bench::new();
    let root = bench.vat.objects.root();
    bench.link(root, 0, |turn| Some(turn.create("node").unwrap()));
    let broken = bench.links(root)[&0];
    bench.vat.engine().turn(|turn| turn.put(broken.0, &[0], vec![0xff]).map_err(ObjectError::from)).unwrap();
    bench.vat.engine().forget(broken.0);
    let refused = bench.vat.objects.activate(broken, Authority::default()).err().unwrap();
    assert!(matches!(refused, ObjectError::Row { .. }), "{refused}");
    assert_eq!(objects_in_memory(bench.vat.engine()), 0);
    assert!(bench.vat.objects.held().is_empty());
}
