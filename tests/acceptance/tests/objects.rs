//! Many objects in one vat: reached by paths, granted alone, removed when nothing leads to them; and what was stored
//! by programs of other versions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use acceptance::{Home, World};
use capnp::capability::FromClientHook;
use checkpoint::{Change, FileDisk, Protection, RowKey, Store, StoreError, StoreOptions, TurnDelta};
use schemas::{
    ErrorCode, IdentityKey, RemoteError, SturdyRef, VatId,
    objects_capnp::{container, counter, directory},
    vat_capnp,
};
use serde_json::{Value, json};
use tokio::task::LocalSet;
use transport::{Endpoint, Greeting, OutputGate, Session, SessionLimits, SessionOptions};

fn objects(home: &Home<'_>, name: &str) -> Value {
    home.json(&["status", name])["objects"].clone()
}

#[test]
fn an_object_below_a_directory_is_reached_by_a_path_and_granted_alone() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    alice.new_vat("home", "directory");
    let vat = alice.wake("home");
    alice.vat(&["call", "home", "make", "name=work", "kind=directory"]).ok();
    alice.vat(&["call", "home/work", "make", "name=minutes", "kind=notes"]).ok();
    alice.vat(&["call", "home/work/minutes", "put", "name=may", "text=agreed"]).ok();
    let listed = alice.json(&["call", "home/work", "list"]);
    assert_eq!(listed, json!({"names": ["minutes"], "more": false, "kinds": ["notes"]}));
    assert!(alice.vat(&["call", "home/work/minutes"]).ok().stdout.starts_with("Notes\n"));

    // Bob gets the minutes, and a friend of his the directory.
    let minutes = alice.share("home/work/minutes", &["--label", "minutes"]);
    let work = alice.share("home/work", &["--label", "work"]);
    bob.vat_with_input(&["accept", "minutes", "-"], &minutes).ok();
    bob.vat_with_input(&["accept", "work", "-"], &work).ok();
    assert_eq!(bob.vat(&["call", "minutes", "get", "name=may"]).ok().stdout, "text: agreed\n");
    assert_eq!(bob.vat(&["call", "work/minutes", "get", "name=may"]).ok().stdout, "text: agreed\n");
    let granted = &alice.json(&["grants", "home"])["grants"];
    assert_eq!((&granted[0]["kind"], &granted[0]["object"]), (&json!("notes"), &json!(18)));
    assert_eq!((&granted[1]["kind"], &granted[1]["object"]), (&json!("directory"), &json!(17)));
    assert!(alice.vat(&["grants", "home"]).ok().stdout.contains("notes #18"));

    bob.fails(&["call", "work/nothing", "list"], 3, "object.not_found").says(&["nothing"]);
    bob.fails(&["call", "minutes/may", "get"], 2, "object.no_container").says(&["may"]);
    alice.fails(&["share", "home/nothing"], 3, "object.not_found");
    alice.fails(&["call", "home/work", "make", "name=minutes", "kind=notes"], 7, "object.exists");
    alice.fails(&["call", "home", "make", "name=x", "kind=toaster"], 2, "vat.unknown_object").says(&["counter"]);

    alice.vat(&["revoke", "home", "2"]).ok();
    bob.fails(&["call", "work/minutes", "get", "name=may"], 4, "ref.denied");
    assert_eq!(bob.vat(&["call", "minutes", "get", "name=may"]).ok().stdout, "text: agreed\n");
    vat.sleep();

    // Asleep it is the same, and after the next start it is still there.
    let again = alice.share("home/work/minutes", &["--label", "again"]);
    alice.fails(&["share", "home/work/nothing"], 3, "object.not_found");
    assert_eq!(alice.json(&["grants", "home"])["grants"][1]["kind"], "notes");
    let vat = alice.wake("home");
    assert_eq!(bob.vat_with_input(&["call", "-", "get", "name=may"], &again).ok().stdout, "text: agreed\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn an_empty_name_in_a_path_and_a_grant_of_nothing_are_refused_and_never_mean_the_root() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("home", "directory");
    let vat = alice.wake("home");
    alice.vat(&["call", "home", "make", "name=work", "kind=directory"]).ok();
    for target in ["home/", "home//work"] {
        alice.fails(&["share", target], 2, "cli.usage").says(&[target]).hints("home itself");
        alice.fails(&["call", target, "list"], 2, "cli.usage").says(&[target]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let session = Session::open_local(&alice.path("run/home.sock"), session_options()).await.unwrap();
        let owner: vat_capnp::owner::Client = session.bootstrap();
        let refused = owner.share_request().send().promise.await.err().unwrap();
        assert_eq!(RemoteError::parse(&refused.to_string()).unwrap().code, ErrorCode::ObjectArgument);
    });
    assert_eq!(alice.json(&["grants", "home"])["grants"], json!([]));
    assert!(alice.share("home", &[]).starts_with("vat://"), "the root, when it is meant");
    assert_eq!(alice.json(&["grants", "home"])["grants"][0]["object"], 16);
    vat.sleep();
    alice.fails(&["share", "home/"], 2, "cli.usage");
    world.no_secret_leaked();
}

#[test]
fn what_nothing_leads_to_is_removed_by_a_vat_that_is_awake_and_by_a_command_on_one_that_sleeps() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("home", "directory");
    let vat = alice.wake("home");
    for name in ["lost", "granted"] {
        alice.vat(&["call", "home", "make", &format!("name={name}"), "kind=notes"]).ok();
        alice.vat(&["call", &format!("home/{name}"), "put", "name=a", "text=b"]).ok();
    }
    let reference = alice.share("home/granted", &[]);
    for name in ["lost", "granted"] {
        alice.vat(&["call", "home", "unbind", &format!("name={name}")]).ok();
    }
    assert!(alice.vat(&["status", "home"]).ok().stdout.contains("objects"));
    // Folds come by themselves, some seconds after the first commit.
    let asked = Instant::now();
    while objects(&alice, "home") != json!(2) {
        assert!(asked.elapsed() < Duration::from_secs(60), "it is still there: {}", objects(&alice, "home"));
    }
    assert_eq!(alice.vat_with_input(&["call", "-", "get", "name=a"], &reference).ok().stdout, "text: b\n");
    vat.sleep();
    alice.vat(&["revoke", "home", "1"]).ok();
    assert_eq!(objects(&alice, "home"), json!(1));
    world.no_secret_leaked();
}

#[test]
fn a_grant_is_revoked_even_if_what_it_led_to_cannot_be_removed() {
    let world = World::new();
    let alice = world.home("alice");
    let address = alice.new_vat("home", "directory");
    let vat = alice.wake("home");
    alice.vat(&["call", "home", "make", "name=notes", "kind=notes"]).ok();
    vat.sleep();
    assert!(alice.share("home/notes", &[]).starts_with("vat://"));
    // What the root refers to, damaged.
    let name = [&16_u64.to_be_bytes()[..], b"x"].concat();
    store(&alice, &address, (4, &name), ("vat.references", 1, vec![0xff; 3]));
    let revoked = alice.vat(&["revoke", "home", "1"]).ok();
    assert_eq!(revoked.stdout, "grant 1 of home is revoked\n");
    assert!(revoked.stderr.contains("not removed") && revoked.stderr.contains("checkpoint.damaged"), "{revoked}");
    assert_eq!(alice.json(&["grants", "home"])["grants"], json!([]));
    assert_eq!(objects(&alice, "home"), json!(2));
    world.no_secret_leaked();
}

#[test]
fn an_object_that_a_session_holds_is_kept_until_the_session_lets_it_go() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("home", "directory");
    let vat = alice.wake("home");
    for name in ["lost", "held"] {
        alice.vat(&["call", "home", "make", &format!("name={name}"), "kind=counter"]).ok();
    }
    let reference: SturdyRef = alice.share("home", &[]).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (session, held) = open(&reference, vat.address().parse().unwrap(), "held").await;
        for name in ["lost", "held"] {
            alice.vat(&["call", "home", "unbind", &format!("name={name}")]).ok();
        }
        wait_for_objects(&alice, 2).await;
        let answer = held.add_request().send().promise.await.unwrap();
        assert_eq!(answer.get().unwrap().get_total(), 1, "it is the other one that was removed");
        drop((held, session));
        // The next fold comes after the next turn.
        alice.vat(&["call", "home", "make", "name=next", "kind=counter"]).ok();
        assert_eq!(objects(&alice, "home"), json!(3));
        wait_for_objects(&alice, 2).await;
        assert_eq!(alice.json(&["call", "home/next", "get"]), json!({"total": 0}));
    });
    vat.sleep();
    world.no_secret_leaked();
}

/// Waits until a fold has come, which it does by itself some seconds after the first commit, and the sweep after it.
async fn wait_for_objects(home: &Home<'_>, count: u64) {
    let asked = Instant::now();
    while objects(home, "home") != json!(count) {
        assert!(asked.elapsed() < Duration::from_secs(60), "there are {}", objects(home, "home"));
        tokio::task::yield_now().await;
    }
}

fn session_options() -> SessionOptions {
    SessionOptions {
        greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "acceptance".to_owned() },
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

/// A session in which a counter is held that was opened through a directory.
async fn open(reference: &SturdyRef, address: SocketAddr, name: &str) -> (Session, counter::Client) {
    let endpoint = Endpoint::client(&IdentityKey::generate().unwrap()).unwrap();
    let connection = endpoint.dial(reference.id, address, Duration::from_secs(60)).await.unwrap();
    let session = Session::open(connection, session_options()).await.unwrap();
    let mut request = session.bootstrap::<vat_capnp::vat::Client>().restore_request();
    request.get().set_secret(reference.secret.expose());
    let restored = request.send().promise.await.unwrap();
    let directory: directory::Client = restored.get().unwrap().get_capability().get_as_capability().unwrap();
    let mut request = container::Client::new(directory.client.hook).open_request();
    request.get().set_name(name);
    let opened = request.send().promise.await.unwrap();
    let counter = opened.get().unwrap().get_object().get_as_capability().unwrap();
    (session, counter)
}

/// Puts a row into a sleeping vat, as a program of another version would have.
fn store(home: &Home<'_>, address: &str, (space, name): (u64, &[u8]), row: (&str, u32, Vec<u8>)) {
    let id: VatId = address.strip_prefix("vat://").unwrap().parse().unwrap();
    let protection = Protection::KeyFile(home.path("keys/vats/home.key"));
    let path = home.path("vats/home/store");
    let asked = Instant::now();
    let store = loop {
        match Store::open(Arc::new(FileDisk), &path, id.as_bytes(), &protection, StoreOptions::default()) {
            // Another test starts a program at this moment: until that one begins, it has all that is open here.
            Err(StoreError::Locked { .. }) if asked.elapsed() < Duration::from_secs(60) => {}
            opened => break opened.unwrap(),
        }
    };
    let turn = store.position().turn + 1;
    // {type, version, body}
    let value = Some(postcard::to_stdvec(&row).unwrap());
    store
        .submit(TurnDelta { turn, changes: vec![Change { key: RowKey { space, name: name.to_vec() }, value }] })
        .unwrap();
    store.wait_durable(turn).unwrap();
    store.close().unwrap();
}

#[test]
fn rows_of_an_older_program_are_upgraded_at_once_or_not_at_all() {
    let world = World::new();
    let alice = world.home("alice");
    let address = alice.new_vat("home", "directory");
    alice.new_vat("tally", "counter");
    let reference = alice.share("tally", &[]);
    assert_eq!(alice.json(&["upgrade", "home"]), json!({"name": "home", "rows": 0, "dry_run": false}));

    let binding = |text: &str| ("directory.binding", 1, postcard::to_stdvec(text).unwrap());
    store(&alice, &address, (16, b"\x01friend"), binding(&reference));
    store(&alice, &address, (16, b"\x01broken"), ("directory.binding", 1, vec![0xff; 3]));
    for command in [&["upgrade", "home", "--dry-run"][..], &["upgrade", "home"]] {
        alice.fails(command, 9, "checkpoint.damaged").says(&["directory.binding"]);
    }
    let turn = alice.json(&["status", "home"])["turn"].clone();
    store(&alice, &address, (16, b"\x01broken"), binding(&reference));
    assert_eq!(alice.json(&["upgrade", "home", "--dry-run"])["rows"], 2);
    assert_eq!(alice.json(&["status", "home"])["turn"], turn.as_u64().unwrap() + 1, "only the repair");
    assert_eq!(alice.json(&["upgrade", "home"])["rows"], 2);
    assert_eq!(alice.json(&["upgrade", "home"])["rows"], 0);
    let vat = alice.wake("home");
    alice.fails(&["upgrade", "home"], 7, "vat.running").hints("sleep");
    let found = alice.discloses(&["--json", "call", "home", "lookup", "name=friend"]).ok().json();
    assert_eq!(found["ref"], reference.as_str());
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_vat_of_a_newer_program_is_refused_by_every_command_that_opens_it() {
    let world = World::new();
    let alice = world.home("alice");
    let address = alice.new_vat("home", "directory");
    store(&alice, &address, (5, b"directory.binding"), ("vat.version", 1, postcard::to_stdvec(&9_u32).unwrap()));
    for command in [
        &["status", "home"][..],
        &["run", "home", "--listen", "127.0.0.1:0"],
        &["grants", "home"],
        &["share", "home"],
        &["upgrade", "home"],
    ] {
        alice.fails(command, 11, "checkpoint.version").says(&["directory.binding", "9", "2"]).hints("Update");
    }
    world.no_secret_leaked();
}
