//! Vats with many objects: making them, referring to them, handing them out, and what becomes of those that nothing
//! leads to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::Path,
    rc::{Rc, Weak},
    sync::Arc,
};

use capnp::capability::FromClientHook;
use checkpoint::{FileDisk, Protection, Store, StoreOptions};
use futures::executor::block_on;
use schemas::{Coded, ErrorCode, RemoteError, Secret, Timestamp, VatId, objects_capnp::counter};
use serde::{Deserialize, Serialize};
use vat::{
    Handle, Kind, Kinds, ObjectError, ObjectId, Reference, State,
    core::{Vat, VatError},
    engine::NoOutputs,
};

/// A counter with names for others.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Node {
    total: u64,
    links: BTreeMap<String, Reference>,
}

impl State for Node {
    const TYPE: &'static str = "test.node";
}

#[derive(Clone, Serialize, Deserialize)]
struct Undeclared;

impl State for Undeclared {
    const TYPE: &'static str = "test.undeclared";
}

struct Server(Rc<Handle<Node>>);

impl counter::Server for Server {
    async fn add(self: Rc<Self>, params: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
        let by = params.get()?.get_by();
        let total = self.0.turn(|node, _| {
            node.total += by;
            Ok(node.total)
        })?;
        results.get().set_total(total);
        Ok(())
    }
}

/// The handle of the object that became live last: with it a test does what the object's methods would do.
#[derive(Clone, Default)]
struct Latest(Rc<RefCell<Weak<Handle<Node>>>>);

impl Latest {
    fn handle(&self) -> Rc<Handle<Node>> {
        self.0.borrow().upgrade().unwrap()
    }
}

fn kind(name: &'static str, latest: &Latest) -> Kind {
    let latest = latest.clone();
    Kind::new(name, "a node of a graph", &[], move |handle| -> counter::Client {
        let handle = Rc::new(handle);
        *latest.0.borrow_mut() = Rc::downgrade(&handle);
        capnp_rpc::new_client(Server(handle))
    })
}

struct Bench {
    folder: tempfile::TempDir,
    id: VatId,
    latest: Latest,
    seconds: Rc<Cell<u64>>,
}

fn protection(folder: &Path) -> Protection {
    Protection::KeyFile(folder.join("key"))
}

impl Bench {
    fn new() -> Self {
        let (folder, latest) = (tempfile::tempdir().unwrap(), Latest::default());
        let (path, kinds) = (folder.path().join("store"), Kinds::default().with(kind("node", &latest)));
        let id = Vat::create(Arc::new(FileDisk), &path, &protection(folder.path()), &kinds, "node").unwrap();
        Self { folder, id, latest, seconds: Rc::new(Cell::new(1_700_000_000)) }
    }

    fn open(&self) -> Vat {
        self.open_with(Kinds::built_in().with(kind("node", &self.latest)).with(kind("other", &self.latest)))
    }

    fn open_with(&self, kinds: Kinds) -> Vat {
        let (folder, options) = (self.folder.path(), StoreOptions::default());
        let path = folder.join("store");
        let store = Store::open(Arc::new(FileDisk), &path, self.id.as_bytes(), &protection(folder), options).unwrap();
        let seconds = self.seconds.clone();
        let clock = Rc::new(move || Timestamp::from_seconds(seconds.get()));
        Vat::open(store, self.id, kinds, clock, Box::new(NoOutputs)).unwrap()
    }

    /// Has the root do something.
    fn root<R>(&self, vat: &Vat, work: impl FnOnce(&Handle<Node>) -> R) -> R {
        let root = vat.root().unwrap();
        let handle = self.latest.handle();
        let done = work(&handle);
        drop((root, handle));
        done
    }

    /// Has the root make an object and keep a reference to it under a name.
    fn make(&self, vat: &Vat, name: &str) -> Reference {
        self.root(vat, |root| {
            root.turn(|node, turn| {
                let made = turn.create("node")?;
                node.links.insert(name.to_owned(), made.clone());
                Ok(made)
            })
        })
        .unwrap()
    }

    fn unlink(&self, vat: &Vat, name: &str) {
        self.root(vat, |root| root.turn(|node, _| Ok(node.links.remove(name)))).unwrap().unwrap();
    }

    fn kept(&self, vat: &Vat, name: &str) -> Reference {
        self.root(vat, |root| root.read(|node, _| Ok(node.links[name].clone()))).unwrap()
    }
}

fn add(counter: &counter::Client, by: u64) -> Result<u64, capnp::Error> {
    let mut request = counter.add_request();
    request.get().set_by(by);
    block_on(request.send().promise)?.get().map(|results| results.get_total())
}

fn code(error: &capnp::Error) -> ErrorCode {
    RemoteError::parse(&error.to_string()).expect("every refusal has a code").code()
}

fn id_of(reference: &Reference) -> ObjectId {
    match reference {
        Reference::Near(object) => *object,
        _ => panic!("it is near"),
    }
}

fn settle(vat: &Vat) {
    vat.engine().store().wait_durable(vat.engine().newest_turn()).unwrap();
}

fn numbers(vat: &Vat) -> Vec<u64> {
    vat.objects().unwrap().into_iter().map(|(object, _)| object.number()).collect()
}

/// What nobody made up could lead to.
fn forged() -> Reference {
    postcard::from_bytes(&[0, 99]).unwrap()
}

#[test]
fn an_object_is_found_again_through_the_reference_that_was_kept() {
    let bench = Bench::new();
    {
        let vat = bench.open();
        let made = bench.make(&vat, "child");
        let child: counter::Client = bench.root(&vat, |root| root.open(&made)).unwrap();
        assert_eq!(add(&child, 5).unwrap(), 5);
        settle(&vat);
    }
    let vat = bench.open();
    let kept = bench.kept(&vat, "child");
    assert_eq!(bench.root(&vat, |root| root.kind(&kept).map(Kind::name)).unwrap(), "node");
    let child: counter::Client = bench.root(&vat, |root| root.open(&kept)).unwrap();
    assert_eq!(add(&child, 2).unwrap(), 7);
    assert_eq!(vat.object_count().unwrap(), 2);
}

#[test]
fn an_object_may_begin_with_a_state_of_its_kind_and_of_no_other() {
    let bench = Bench::new();
    let vat = bench.open();
    let begin = Node { total: 40, ..Node::default() };
    let made = bench.root(&vat, |root| root.turn(|_, turn| turn.create_with("other", &begin))).unwrap();
    let child: counter::Client = bench.root(&vat, |root| root.open(&made)).unwrap();
    assert_eq!(add(&child, 2).unwrap(), 42);

    let before = vat.engine().newest_turn();
    let wrong = bench.root(&vat, |root| root.turn(|_, turn| turn.create_with("counter", &begin)));
    assert!(matches!(wrong, Err(ObjectError::UndeclaredType { what }) if what == Node::TYPE));
    let unknown = bench.root(&vat, |root| root.turn(|_, turn| turn.create("toaster"))).unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::VatUnknownObject);
    let undeclared = bench.root(&vat, |root| root.turn(|_, turn| turn.put(b"x", &Undeclared))).unwrap_err();
    assert!(matches!(&undeclared, ObjectError::UndeclaredType { what } if what == Undeclared::TYPE), "{undeclared}");
    assert_eq!(vat.engine().newest_turn(), before, "nothing of it was stored");
}

#[test]
fn a_made_up_or_stale_reference_is_a_clean_error_when_kept_and_when_opened() {
    let bench = Bench::new();
    let vat = bench.open();
    let stale = bench.make(&vat, "child");
    bench.unlink(&vat, "child");
    assert_eq!(vat.sweep().unwrap().objects, 1);
    for nowhere in [forged(), stale] {
        let opened = bench.root(&vat, |root| root.open::<counter::Client>(&nowhere)).err().unwrap();
        assert_eq!(opened.code(), ErrorCode::ObjectGone);
        let kept = bench.root(&vat, |root| {
            root.turn(|node, _| {
                node.links.insert("nowhere".to_owned(), nowhere.clone());
                Ok(())
            })
        });
        assert!(matches!(kept, Err(ObjectError::NoSuchObject { object }) if object == id_of(&nowhere)));
        let kept = bench.root(&vat, |root| root.read(|node, _| Ok(node.links.len()))).unwrap();
        assert_eq!(kept, 0);
    }
    assert!(matches!(
        vat.grant_object(id_of(&forged()), "", None, None),
        Err(VatError::Object(ObjectError::NoSuchObject { .. }))
    ));
    assert_eq!(id_of(&bench.make(&vat, "next")).number(), 18, "17 is never used again");
}

#[test]
fn what_is_reached_through_an_object_ends_with_the_grant_of_that_object() {
    let bench = Bench::new();
    let vat = bench.open();
    let made = bench.make(&vat, "child");
    let end = bench.seconds.get() + 60;
    let (lasting, short) = (vat.grant("", None, None).unwrap(), vat.grant("", Some(end), None).unwrap());
    let through = |secret: &Secret| -> counter::Client {
        let granted = vat.restore(secret).unwrap();
        let child = bench.latest.handle().open(&made).unwrap();
        drop(granted);
        child
    };
    let (revoked, expired) = (through(&lasting), through(&short));
    let owner: counter::Client = bench.root(&vat, |root| root.open(&made)).unwrap();
    assert_eq!((add(&revoked, 1).unwrap(), add(&expired, 1).unwrap()), (1, 2));
    vat.revoke(1).unwrap();
    assert_eq!(code(&add(&revoked, 1).unwrap_err()), ErrorCode::RefDenied);
    assert_eq!(add(&expired, 1).unwrap(), 3);
    bench.seconds.set(end);
    assert_eq!(code(&add(&expired, 1).unwrap_err()), ErrorCode::RefDenied);
    assert_eq!(add(&owner, 1).unwrap(), 4, "the owner's own capability is of no grant");
}

#[test]
fn an_object_below_the_root_is_granted_alone_by_its_capability() {
    let bench = Bench::new();
    let secret = {
        let vat = bench.open();
        let made = bench.make(&vat, "child");
        let child: counter::Client = bench.root(&vat, |root| root.open(&made)).unwrap();
        let object = vat.object_of(&*child.client.hook).unwrap();
        assert_eq!(object, id_of(&made));
        let secret = vat.grant_object(object, "only the child", None, None).unwrap();
        let granted = vat.grants().unwrap().pop().unwrap().1;
        assert_eq!((granted.object, vat.kind_name(&granted).unwrap()), (17, "node".to_owned()));

        let foreign: counter::Client = capnp_rpc::new_client(Nobody);
        assert_eq!(vat.object_of(&*foreign.client.hook), None, "a capability that the vat did not hand out");
        settle(&vat);
        secret
    };
    let vat = bench.open();
    let (hook, interface_id) = vat.restore(&secret).unwrap();
    assert_eq!(interface_id, <counter::Client as capnp::traits::HasTypeId>::TYPE_ID);
    assert_eq!(add(&counter::Client::new(hook), 3).unwrap(), 3);
    assert_eq!(bench.root(&vat, |root| root.read(|node, _| Ok(node.total))).unwrap(), 0, "the root is another one");
}

struct Nobody;

impl counter::Server for Nobody {}

#[test]
fn an_object_to_which_nothing_leads_any_more_is_removed_with_all_it_led_to() {
    let bench = Bench::new();
    let vat = bench.open();
    let child = bench.make(&vat, "child");
    bench.make(&vat, "sibling");
    // The child makes one of its own, and the two refer to each other: a cycle.
    let capability: counter::Client = bench.root(&vat, |root| root.open(&child)).unwrap();
    let handle = bench.latest.handle();
    let grandchild = handle
        .turn(|node, turn| {
            let back = Node { total: 1, links: BTreeMap::from([("back".to_owned(), child.clone())]) };
            let made = turn.create_with("node", &back)?;
            node.links.insert("it".to_owned(), made.clone());
            Ok(made)
        })
        .unwrap();
    drop((handle, capability));
    assert_eq!(vat.sweep().unwrap().turns, 0);
    assert_eq!(numbers(&vat), [16, 17, 18, 19]);

    bench.unlink(&vat, "child");
    let swept = vat.sweep().unwrap();
    assert_eq!((swept.objects, swept.turns), (2, 1));
    assert_eq!(numbers(&vat), [16, 18]);
    for gone in [&child, &grandchild] {
        assert!(vat.engine().store().scan(id_of(gone).number()).unwrap().is_empty(), "no row is left");
    }
}

#[test]
fn a_sweep_without_garbage_writes_nothing() {
    let bench = Bench::new();
    let vat = bench.open();
    bench.make(&vat, "child");
    let before = vat.engine().newest_turn();
    for _ in 0..2 {
        assert_eq!(vat.sweep().unwrap().turns, 0);
    }
    assert_eq!(vat.engine().newest_turn(), before);
}

#[test]
fn revoking_the_only_grant_lets_an_object_go_and_an_expired_grant_does_not() {
    let bench = Bench::new();
    let vat = bench.open();
    let child = bench.make(&vat, "child");
    vat.grant_object(id_of(&child), "", Some(bench.seconds.get() + 1), None).unwrap();
    bench.unlink(&vat, "child");
    bench.seconds.set(bench.seconds.get() + 2);
    assert_eq!(vat.sweep().unwrap().objects, 0, "a clock may be wrong, and removing cannot be undone");
    vat.revoke(1).unwrap();
    assert_eq!(vat.sweep().unwrap().objects, 1);
    assert_eq!(numbers(&vat), [16]);
}

#[test]
fn a_live_capability_keeps_its_object_until_it_is_dropped() {
    let bench = Bench::new();
    let vat = bench.open();
    let child = bench.make(&vat, "child");
    let held: counter::Client = bench.root(&vat, |root| root.open(&child)).unwrap();
    let again = held.clone();
    bench.unlink(&vat, "child");
    assert_eq!(vat.sweep().unwrap().objects, 0);
    drop(held);
    assert_eq!(vat.sweep().unwrap().objects, 0, "somebody still has it");
    assert_eq!(add(&again, 1).unwrap(), 1);
    drop(again);
    assert_eq!(vat.sweep().unwrap().objects, 1);
}

#[test]
fn whoever_holds_an_object_keeps_what_it_refers_to() {
    let bench = Bench::new();
    let vat = bench.open();
    let child = bench.make(&vat, "child");
    let held: counter::Client = bench.root(&vat, |root| root.open(&child)).unwrap();
    let handle = bench.latest.handle();
    let grandchild = handle.turn(|node, turn| {
        let made = turn.create("node")?;
        node.links.insert("it".to_owned(), made.clone());
        Ok(made)
    });
    bench.unlink(&vat, "child");
    assert_eq!(vat.sweep().unwrap().objects, 0);
    let grandchild: counter::Client = handle.open(&grandchild.unwrap()).unwrap();
    drop((held, handle));
    assert_eq!(vat.sweep().unwrap().objects, 1, "the child, which nobody holds");
    assert_eq!(add(&grandchild, 1).unwrap(), 1);
}

#[test]
fn what_was_garbage_when_the_vat_fell_asleep_is_removed_when_it_is_awake_again() {
    let bench = Bench::new();
    {
        let vat = bench.open();
        bench.make(&vat, "child");
        bench.root(&vat, |root| root.turn(|_, turn| turn.create("node"))).unwrap();
        bench.unlink(&vat, "child");
        settle(&vat);
    }
    let vat = bench.open();
    assert_eq!(vat.sweep().unwrap().objects, 2, "also the one that was never kept");
}

#[test]
fn objects_of_a_kind_that_the_program_does_not_know_say_so_and_disturb_no_other() {
    let bench = Bench::new();
    let secret = {
        let vat = bench.open();
        let other = bench.root(&vat, |root| {
            root.turn(|node, turn| {
                let made = turn.create("other")?;
                node.links.insert("other".to_owned(), made.clone());
                Ok(made)
            })
        });
        let secret = vat.grant_object(id_of(&other.unwrap()), "", None, None).unwrap();
        settle(&vat);
        secret
    };
    let vat = bench.open_with(Kinds::built_in().with(kind("node", &bench.latest)));
    assert_eq!(vat.restore(&secret).err().unwrap().code(), ErrorCode::VatUnknownObject);
    let other = bench.kept(&vat, "other");
    let opened = bench.root(&vat, |root| root.open::<counter::Client>(&other)).err().unwrap();
    assert!(opened.to_string().contains("\"other\""), "{opened}");
    bench.make(&vat, "child");
    assert_eq!(vat.sweep().unwrap().objects, 0);
    assert_eq!(vat.upgrade().unwrap_err().code(), ErrorCode::VatUnknownObject, "it cannot be told what it stores");
}

#[test]
fn a_number_is_no_right_an_object_reaches_only_what_it_was_given_or_has_made() {
    let bench = Bench::new();
    let vat = bench.open();
    let (child, sibling) = (bench.make(&vat, "child"), bench.make(&vat, "sibling"));
    // As out of the bytes of a caller. The object is there, and it is another one's.
    let guessed: Reference = postcard::from_bytes(&[0, 18]).unwrap();
    assert_eq!(guessed, sibling);
    let capability: counter::Client = bench.root(&vat, |root| root.open(&child)).unwrap();
    let handle = bench.latest.handle();
    let before = vat.engine().newest_turn();
    for nowhere in [&guessed, &Reference::Near(id_of(&forged()))] {
        let gone = |error: ObjectError| assert!(matches!(error, ObjectError::NoSuchObject { .. }), "{error}");
        gone(handle.open::<counter::Client>(nowhere).err().unwrap());
        gone(handle.kind(nowhere).err().unwrap());
        let links = || BTreeMap::from([("it".to_owned(), nowhere.clone())]);
        gone(handle.turn(|node, _| Ok(std::mem::replace(&mut node.links, links()))).unwrap_err());
        let state = Node { total: 0, links: links() };
        gone(handle.turn(|_, turn| turn.create_with("node", &state)).unwrap_err());
    }
    assert_eq!(vat.engine().newest_turn(), before);

    // What it makes it reaches; what it lets go of it can put back as long as it is in use.
    let made = handle.turn(|node, turn| {
        let made = turn.create("node")?;
        node.links.insert("it".to_owned(), made.clone());
        Ok(made)
    });
    let made = made.unwrap();
    handle.turn(|node, _| Ok(std::mem::take(&mut node.links))).unwrap();
    handle.open::<counter::Client>(&made).unwrap();
    handle.turn(|node, _| Ok(node.links.insert("again".to_owned(), made.clone()))).unwrap();
    handle.turn(|node, _| Ok(std::mem::take(&mut node.links))).unwrap();
    drop((handle, capability));

    // From then on, what it did not keep is none of its own any more, wherever else it has written the number.
    let capability: counter::Client = bench.root(&vat, |root| root.open(&child)).unwrap();
    let handle = bench.latest.handle();
    assert_eq!(handle.open::<counter::Client>(&made).err().unwrap().code(), ErrorCode::ObjectGone);
    assert!(numbers(&vat).contains(&id_of(&made).number()), "it is still there");
    drop((handle, capability));
}
