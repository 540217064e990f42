//! The built-in objects and the grants that lead to them, as a caller sees them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{cell::Cell, path::Path, rc::Rc, sync::Arc};

use capnp::{
    capability::{Client, FromClientHook},
    private::capability::ClientHook,
};
use checkpoint::{FileDisk, Protection, Store, StoreOptions};
use futures::executor::block_on;
use schemas::{
    Coded, ErrorCode, RemoteError, Secret, SturdyRef, Timestamp, VatId,
    objects_capnp::{container, counter, directory, guestbook, notes},
};
use vat::{
    Kinds,
    core::{Vat, VatError},
    engine::NoOutputs,
};

/// A vat in a temporary folder, with a clock that the test sets.
struct Bench {
    folder: tempfile::TempDir,
    id: VatId,
    seconds: Rc<Cell<u64>>,
}

impl Bench {
    fn new(kind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let id = Vat::create(
            Arc::new(FileDisk),
            &folder.path().join("store"),
            &protection(folder.path()),
            &Kinds::built_in(),
            kind,
        )
        .unwrap();
        Self { folder, id, seconds: Rc::new(Cell::new(1_700_000_000)) }
    }

    fn open(&self) -> Vat {
        let store = Store::open(
            Arc::new(FileDisk),
            &self.folder.path().join("store"),
            self.id.as_bytes(),
            &protection(self.folder.path()),
            StoreOptions::default(),
        )
        .unwrap();
        let seconds = self.seconds.clone();
        let clock = Rc::new(move || Timestamp::from_seconds(seconds.get()));
        Vat::open(store, self.id, Kinds::built_in(), clock, Box::new(NoOutputs)).unwrap()
    }
}

fn protection(folder: &Path) -> Protection {
    Protection::KeyFile(folder.join("key"))
}

fn root<C: FromClientHook>(vat: &Vat) -> C {
    C::new(vat.root().unwrap().0)
}

fn restored<C: FromClientHook>(vat: &Vat, secret: &Secret) -> C {
    C::new(vat.restore(secret).unwrap().0)
}

fn code(error: &capnp::Error) -> ErrorCode {
    RemoteError::parse(&error.to_string()).expect("every refusal has a code").code()
}

fn add(counter: &counter::Client, by: u64) -> Result<u64, capnp::Error> {
    let mut request = counter.add_request();
    request.get().set_by(by);
    block_on(request.send().promise)?.get().map(|results| results.get_total())
}

fn total(counter: &counter::Client) -> u64 {
    block_on(counter.get_request().send().promise).unwrap().get().unwrap().get_total()
}

#[test]
fn a_counter_adds_and_remembers() {
    let bench = Bench::new("counter");
    {
        let vat = bench.open();
        let counter: counter::Client = root(&vat);
        assert_eq!(add(&counter, 40).unwrap(), 40);
        assert_eq!(add(&counter, 2).unwrap(), 42);
        assert_eq!(total(&counter), 42);
        let turn = vat.engine().newest_turn();
        vat.engine().store().wait_durable(turn).unwrap();
    }
    assert_eq!(total(&root(&bench.open())), 42);
}

#[test]
fn a_counter_that_would_overflow_stays_as_it_was() {
    let bench = Bench::new("counter");
    let vat = bench.open();
    let counter: counter::Client = root(&vat);
    add(&counter, u64::MAX).unwrap();
    assert_eq!(code(&add(&counter, 1).unwrap_err()), ErrorCode::ObjectOverflow);
    assert_eq!(total(&counter), u64::MAX);
}

fn sign(guestbook: &guestbook::Client, name: &str, text: &str) -> Result<u64, capnp::Error> {
    let mut request = guestbook.sign_request();
    request.get().set_name(name);
    request.get().set_text(text);
    block_on(request.send().promise)?.get().map(|results| results.get_number())
}

/// (number, time, name) of a page, and whether there is more.
fn page(guestbook: &guestbook::Client, after: u64, limit: u32) -> (Vec<(u64, u64, String)>, bool) {
    let mut request = guestbook.list_request();
    request.get().set_after(after);
    request.get().set_limit(limit);
    let response = block_on(request.send().promise).unwrap();
    let results = response.get().unwrap();
    let entry = |entry: guestbook::entry::Reader<'_>| {
        (entry.get_number(), entry.get_time(), entry.get_name().unwrap().to_string().unwrap())
    };
    (results.get_entries().unwrap().iter().map(entry).collect(), results.get_more())
}

#[test]
fn a_guestbook_lists_in_order_and_in_pages() {
    let bench = Bench::new("guestbook");
    let vat = bench.open();
    let guestbook: guestbook::Client = root(&vat);
    for (number, name) in (1..).zip(["Ada", "Grace", "Barbara"]) {
        bench.seconds.set(1_700_000_000 + number);
        assert_eq!(sign(&guestbook, name, "was here").unwrap(), number);
    }
    let ada = (1, 1_700_000_001, "Ada".to_owned());
    let grace = (2, 1_700_000_002, "Grace".to_owned());
    let barbara = (3, 1_700_000_003, "Barbara".to_owned());
    assert_eq!(page(&guestbook, 0, 2), (vec![ada, grace], true));
    assert_eq!(page(&guestbook, 2, 2), (vec![barbara], false));
    assert_eq!(page(&guestbook, u64::MAX, 2), (vec![], false));
    assert_eq!(page(&guestbook, 0, 0), (vec![], true));
    let long = "x".repeat(300);
    assert_eq!(code(&sign(&guestbook, &long, "").unwrap_err()), ErrorCode::ObjectTooLarge);
    assert_eq!(page(&guestbook, 0, 9).0.len(), 3);
}

#[test]
fn a_guestbook_full_of_long_texts_is_read_to_its_end() {
    let bench = Bench::new("guestbook");
    let vat = bench.open();
    let guestbook: guestbook::Client = root(&vat);
    let text = "x".repeat(1 << 20);
    for _ in 0..5 {
        sign(&guestbook, "Ada", &text).unwrap();
    }
    let (mut after, mut pages) = (0, 0);
    loop {
        let (entries, more) = page(&guestbook, after, 50);
        after = entries.last().expect("every page gets further").0;
        pages += 1;
        if !more {
            break;
        }
    }
    assert_eq!(after, 5);
    assert!(pages > 1, "no page is larger than a message may be");
}

fn put_note(notes: &notes::Client, name: &str, text: &str) -> bool {
    let mut request = notes.put_request();
    request.get().set_name(name);
    request.get().set_text(text);
    block_on(request.send().promise).unwrap().get().unwrap().get_replaced()
}

fn get_note(notes: &notes::Client, name: &str) -> Result<String, capnp::Error> {
    let mut request = notes.get_request();
    request.get().set_name(name);
    let response = block_on(request.send().promise)?;
    Ok(response.get()?.get_text()?.to_string()?)
}

#[test]
fn notes_are_kept_replaced_listed_and_removed() {
    let bench = Bench::new("notes");
    let vat = bench.open();
    let notes: notes::Client = root(&vat);
    assert!(!put_note(&notes, "b/2", "two"));
    assert!(!put_note(&notes, "b/1", "one"));
    assert!(!put_note(&notes, "a", ""));
    assert!(!put_note(&notes, "", "a note without a name is a note"));
    assert!(put_note(&notes, "b/1", "uno"));
    assert_eq!(get_note(&notes, "b/1").unwrap(), "uno");
    assert_eq!(get_note(&notes, "").unwrap(), "a note without a name is a note");
    assert_eq!(code(&get_note(&notes, "c").unwrap_err()), ErrorCode::ObjectNotFound);

    let list = |prefix: &str, after: &str, limit| {
        let mut request = notes.list_request();
        request.get().set_prefix(prefix);
        request.get().set_after(after);
        request.get().set_limit(limit);
        let response = block_on(request.send().promise).unwrap();
        let results = response.get().unwrap();
        let names = results.get_names().unwrap().iter().map(|name| name.unwrap().to_string().unwrap());
        (names.collect::<Vec<_>>().join(" "), results.get_more())
    };
    assert_eq!(list("", "", 10), (" a b/1 b/2".to_owned(), false));
    assert_eq!(list("b/", "", 1), ("b/1".to_owned(), true));
    assert_eq!(list("b/", "b/1", 1), ("b/2".to_owned(), false));
    assert_eq!(list("b/", "a", 10), ("b/1 b/2".to_owned(), false));

    let remove = |name: &str| {
        let mut request = notes.remove_request();
        request.get().set_name(name);
        block_on(request.send().promise).unwrap().get().unwrap().get_removed()
    };
    assert!(remove("b/1"));
    assert!(!remove("b/1"));
    assert_eq!(list("b/", "", 10), ("b/2".to_owned(), false));
}

#[test]
fn a_directory_keeps_whole_sturdyrefs_only_and_repeats_none_of_a_wrong_one() {
    let bench = Bench::new("directory");
    let vat = bench.open();
    let directory: directory::Client = root(&vat);
    let bind = |name: &str, reference: &str| {
        let mut request = directory.bind_request();
        request.get().set_name(name);
        request.get().set_ref(reference);
        block_on(request.send().promise).map(|response| response.get().unwrap().get_replaced())
    };
    let reference = SturdyRef { id: bench.id, secret: Secret::generate().unwrap(), hints: Default::default() };
    let text = reference.expose();
    assert!(!bind("friend", &text).unwrap());

    let mut mistyped = text.to_string();
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == 'y' { 'b' } else { 'y' });
    let error = bind("other", &mistyped).unwrap_err();
    assert_eq!(code(&error), ErrorCode::ObjectArgument);
    let secret = text.split('#').next_back().unwrap();
    assert!(!error.to_string().contains(&secret[..8]), "an error shows no part of a secret");

    let lookup = |name: &str| {
        let mut request = directory.lookup_request();
        request.get().set_name(name);
        let response = block_on(request.send().promise)?;
        Ok::<_, capnp::Error>(response.get()?.get_ref()?.to_string()?)
    };
    assert_eq!(lookup("friend").unwrap(), *text);
    assert_eq!(code(&lookup("other").unwrap_err()), ErrorCode::ObjectNotFound);
}

fn make(directory: &directory::Client, name: &str, kind: &str) -> Result<(Box<dyn ClientHook>, u64), capnp::Error> {
    let mut request = directory.make_request();
    request.get().set_name(name);
    request.get().set_kind(kind);
    let response = block_on(request.send().promise)?;
    let results = response.get()?;
    Ok((results.get_object().get_as_capability::<Client>()?.hook, results.get_interface_id()))
}

fn open(container: &container::Client, name: &str) -> Result<(Box<dyn ClientHook>, u64), capnp::Error> {
    let mut request = container.open_request();
    request.get().set_name(name);
    let response = block_on(request.send().promise)?;
    let results = response.get()?;
    Ok((results.get_object().get_as_capability::<Client>()?.hook, results.get_interface_id()))
}

fn unbind(directory: &directory::Client, name: &str) -> bool {
    let mut request = directory.unbind_request();
    request.get().set_name(name);
    block_on(request.send().promise).unwrap().get().unwrap().get_removed()
}

/// What a directory lists: each name, and what it stands for.
fn listed(directory: &directory::Client) -> Vec<(String, String)> {
    let response = block_on(directory.list_request().send().promise).unwrap();
    let results = response.get().unwrap();
    let texts = |list: capnp::text_list::Reader<'_>| -> Vec<String> {
        list.iter().map(|text| text.unwrap().to_string().unwrap()).collect()
    };
    let (names, kinds) = (texts(results.get_names().unwrap()), texts(results.get_kinds().unwrap()));
    assert_eq!(names.len(), kinds.len());
    names.into_iter().zip(kinds).collect()
}

#[test]
fn a_directory_makes_objects_opens_them_by_name_and_lists_what_they_are() {
    let bench = Bench::new("directory");
    {
        let vat = bench.open();
        let directory: directory::Client = root(&vat);
        let (tally, interface_id) = make(&directory, "tally", "counter").unwrap();
        assert_eq!(interface_id, <counter::Client as capnp::traits::HasTypeId>::TYPE_ID);
        assert_eq!(add(&counter::Client::new(tally), 3).unwrap(), 3);
        let (below, _) = make(&directory, "below", "directory").unwrap();
        make(&FromClientHook::new(below), "minutes", "notes").unwrap();
        let reference = SturdyRef { id: bench.id, secret: Secret::generate().unwrap(), hints: Default::default() };
        let mut request = directory.bind_request();
        request.get().set_name("friend");
        request.get().set_ref(reference.expose().as_str());
        block_on(request.send().promise).unwrap();
        vat.engine().store().wait_durable(vat.engine().newest_turn()).unwrap();
    }
    let vat = bench.open();
    let directory: directory::Client = root(&vat);
    let expected = [("below", "directory"), ("friend", "sturdyref"), ("tally", "counter")];
    assert_eq!(listed(&directory), expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
    // A directory is a container: so it is opened by whoever knows no more of it.
    let container = container::Client::new(vat.root().unwrap().0);
    assert_eq!(total(&FromClientHook::new(open(&container, "tally").unwrap().0)), 3);
    let below = container::Client::new(open(&container, "below").unwrap().0);
    let minutes: notes::Client = FromClientHook::new(open(&below, "minutes").unwrap().0);
    assert!(!put_note(&minutes, "a", "b"));
    for nothing in ["friend", "nobody"] {
        assert_eq!(code(&open(&container, nothing).err().unwrap()), ErrorCode::ObjectNotFound);
    }
}

#[test]
fn a_name_that_stands_for_an_object_is_not_given_away_and_unbinding_lets_the_object_go() {
    let bench = Bench::new("directory");
    let vat = bench.open();
    let directory: directory::Client = root(&vat);
    let (tally, _) = make(&directory, "tally", "counter").unwrap();
    drop(tally);
    assert_eq!(code(&make(&directory, "tally", "notes").err().unwrap()), ErrorCode::ObjectExists);
    assert_eq!(code(&make(&directory, "other", "toaster").err().unwrap()), ErrorCode::VatUnknownObject);
    let reference = SturdyRef { id: bench.id, secret: Secret::generate().unwrap(), hints: Default::default() };
    let mut request = directory.bind_request();
    request.get().set_name("tally");
    request.get().set_ref(reference.expose().as_str());
    assert_eq!(code(&block_on(request.send().promise).err().unwrap()), ErrorCode::ObjectExists);
    let mut request = directory.lookup_request();
    request.get().set_name("tally");
    assert_eq!(code(&block_on(request.send().promise).err().unwrap()), ErrorCode::ObjectNotFound);

    assert_eq!((vat.sweep().unwrap().objects, vat.object_count().unwrap()), (0, 2));
    assert!(unbind(&directory, "tally"));
    assert_eq!((vat.sweep().unwrap().objects, vat.object_count().unwrap()), (1, 1));
    assert!(listed(&directory).is_empty());
    make(&directory, "tally", "notes").unwrap();
}

#[test]
fn a_grant_leads_to_the_object_after_a_restart_and_a_wrong_secret_never_does() {
    let bench = Bench::new("counter");
    let secret = {
        let vat = bench.open();
        let secret = vat.grant("for Bob", None, None).unwrap();
        add(&restored(&vat, &secret), 7).unwrap();
        vat.engine().store().wait_durable(vat.engine().newest_turn()).unwrap();
        secret
    };
    let vat = bench.open();
    assert_eq!(total(&restored(&vat, &secret)), 7);
    let other = Secret::generate().unwrap();
    assert!(matches!(vat.restore(&other), Err(VatError::Denied)));
    assert_eq!(vat.restore(&other).err().unwrap().code(), ErrorCode::RefDenied);
}

#[test]
fn all_grants_and_the_owner_share_one_state() {
    let bench = Bench::new("counter");
    let vat = bench.open();
    let [a, b] = [vat.grant("a", None, None).unwrap(), vat.grant("b", None, None).unwrap()];
    add(&restored(&vat, &a), 1).unwrap();
    add(&restored(&vat, &b), 2).unwrap();
    add(&root(&vat), 4).unwrap();
    assert_eq!(total(&restored(&vat, &a)), 7);
}

#[test]
fn revoking_a_grant_ends_live_capabilities_and_those_below_it_but_no_other() {
    let bench = Bench::new("counter");
    let vat = bench.open();
    let parent = vat.grant("parent", None, None).unwrap();
    let child = vat.grant("child", None, Some(1)).unwrap();
    let grandchild = vat.grant("grandchild", None, Some(2)).unwrap();
    let other = vat.grant("other", None, None).unwrap();
    let live: Vec<counter::Client> = [&parent, &child, &grandchild].map(|secret| restored(&vat, secret)).into();
    let unaffected: counter::Client = restored(&vat, &other);
    assert!(matches!(vat.grant("orphan", None, Some(99)), Err(VatError::NoSuchGrant { number: 99 })));

    vat.revoke(1).unwrap();
    for counter in &live {
        assert_eq!(code(&add(counter, 1).unwrap_err()), ErrorCode::RefDenied);
    }
    for secret in [&parent, &child, &grandchild] {
        assert!(matches!(vat.restore(secret), Err(VatError::Denied)));
    }
    assert_eq!(add(&unaffected, 1).unwrap(), 1);
    let left: Vec<_> = vat.grants().unwrap().into_iter().map(|(_, grant)| grant.label).collect();
    assert_eq!(left, ["other"]);
    assert!(matches!(vat.revoke(1), Err(VatError::NoSuchGrant { number: 1 })));
    vat.grant("new", None, None).unwrap();
    assert_eq!(vat.grants().unwrap().last().unwrap().1.number, 5, "numbers are never used again");
}

#[test]
fn an_expired_grant_opens_nothing_and_its_live_capabilities_end() {
    let bench = Bench::new("counter");
    let vat = bench.open();
    let secret = vat.grant("until noon", Some(bench.seconds.get() + 60), None).unwrap();
    let counter: counter::Client = restored(&vat, &secret);
    add(&counter, 1).unwrap();
    bench.seconds.set(bench.seconds.get() + 60);
    assert_eq!(code(&add(&counter, 1).unwrap_err()), ErrorCode::RefDenied);
    assert!(matches!(vat.restore(&secret), Err(VatError::Denied)));
}

#[test]
fn a_child_grant_ends_with_its_parent_at_the_latest() {
    let bench = Bench::new("counter");
    let vat = bench.open();
    let end = bench.seconds.get() + 60;
    vat.grant("parent", Some(end), None).unwrap();
    let child = vat.grant("child", None, Some(1)).unwrap();
    let counter: counter::Client = restored(&vat, &child);
    add(&counter, 1).unwrap();
    bench.seconds.set(end);
    assert_eq!(code(&add(&counter, 1).unwrap_err()), ErrorCode::RefDenied);
    assert!(matches!(vat.restore(&child), Err(VatError::Denied)));
    assert!(matches!(vat.grant("too late", None, Some(1)), Err(VatError::NoSuchGrant { number: 1 })));
}

#[test]
fn another_identity_or_an_unknown_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let make = |kind: &str| {
        let store = folder.path().join("store");
        Vat::create(Arc::new(FileDisk), &store, &protection(folder.path()), &Kinds::built_in(), kind)
    };
    let error = make("toaster").unwrap_err();
    assert_eq!(error.code(), ErrorCode::VatUnknownObject);
    assert!(error.to_string().contains("counter, guestbook, notes, directory"));
    assert!(!folder.path().join("store").exists(), "nothing is left of a vat that was not made");

    let bench = Bench::new("counter");
    let store = Store::open(
        Arc::new(FileDisk),
        &bench.folder.path().join("store"),
        bench.id.as_bytes(),
        &protection(bench.folder.path()),
        StoreOptions::default(),
    )
    .unwrap();
    let other = schemas::IdentityKey::from_seed(&[1; 32]).id();
    let clock = Rc::new(|| Timestamp::from_seconds(0));
    let refused = Vat::open(store, other, Kinds::built_in(), clock, Box::new(NoOutputs));
    assert!(matches!(refused, Err(VatError::NotAVat(_))));
}

#[test]
fn an_object_gets_no_name_that_no_path_could_lead_to() {
    let bench = Bench::new("directory");
    let vat = bench.open();
    let directory: directory::Client = root(&vat);
    for name in ["", "/", "a/b", "a/"] {
        assert_eq!(code(&make(&directory, name, "counter").err().unwrap()), ErrorCode::ObjectArgument, "{name:?}");
    }
    assert_eq!(vat.object_count().unwrap(), 1);
    make(&directory, "a", "counter").unwrap();
}
