//! The main job, from making a vat to calling it by its id, as its users type it: for each built-in object,
//! for people and for programs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use acceptance::{Home, World};
use serde_json::json;

/// Alice, whose vat it is, and Bob, who knows nothing but a location server.
fn alice_and_bob<'w>(world: &'w World, entry: &str) -> (Home<'w>, Home<'w>) {
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(entry);
    bob.add_server(entry);
    (alice, bob)
}

#[test]
fn a_counter_is_shared_found_by_its_id_and_called_as_people_type_it() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());

    let made = alice.vat(&["new", "tally", "--object", "counter"]).ok();
    assert!(made.stdout.contains("vat run tally"), "it says how to go on: {made}");
    let mut vat = alice.start(&["run", "tally", "--listen", "127.0.0.1:0"]);
    let id = vat.wait_for("its address", |line| line.starts_with("vat://"));
    assert!(made.stdout.contains(&id), "{made}");
    vat.wait_for("where it listens", |line| line.trim().starts_with("at quic:127.0.0.1:"));
    vat.wait_for("that it is awake", |line| line.contains("tally is awake: epoch 1"));
    vat.wait_for_notice("that it is registered", |line| line.contains(server.entry()));

    let reference = alice.share("tally", &["--label", "for Bob"]);
    assert!(reference.starts_with(&format!("{id}#")), "a reference is the public address and a secret");
    let accepted = bob.vat_with_input(&["accept", "tally-of-alice", "-"], &format!("{reference}\n")).ok();
    assert!(accepted.stdout.contains(&id), "{accepted}");

    let found = bob.vat(&["resolve", &id]).ok();
    for part in [id.as_str(), "live", "epoch", "quic:127.0.0.1:"] {
        assert!(found.stdout.contains(part), "{part}: {found}");
    }
    let explained = bob.vat(&["resolve", &id, "--explain"]).ok();
    assert!(explained.stdout.contains(server.entry()), "it says what each server answered: {explained}");

    assert_eq!(bob.vat(&["call", "tally-of-alice", "add", "by=3"]).ok().stdout, "total: 3\n");
    assert_eq!(bob.vat(&["call", "tally-of-alice", "add"]).ok().stdout, "total: 4\n", "`by` is 1 by default");
    assert_eq!(bob.vat(&["call", "tally-of-alice", "get"]).ok().stdout, "total: 4\n");
    let methods = bob.vat(&["call", "tally-of-alice"]).ok();
    for part in ["Counter", "add", "by", "UInt64", "get", "total"] {
        assert!(methods.stdout.contains(part), "{part}: {methods}");
    }

    vat.signal(rustix::process::Signal::INT);
    let ended = vat.wait().ok();
    assert!(ended.stderr.contains("tally sleeps"), "{ended}");
    world.no_secret_leaked();
}

#[test]
fn the_same_for_programs() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());

    let made = alice.json(&["new", "tally", "--object", "counter"]);
    let id = made["vat"].as_str().unwrap();
    assert_eq!(made, json!({"name": "tally", "vat": id, "object": "counter"}));
    assert!(id.parse::<schemas::VatAddress>().is_ok());
    let asleep = alice.json(&["status", "tally"]);
    assert_eq!((&asleep["state"], &asleep["epoch"], &asleep["grants"]), (&json!("asleep"), &json!(0), &json!(0)));

    let vat = alice.wake("tally");
    assert_eq!((&vat.live["name"], &vat.live["vat"], vat.epoch()), (&json!("tally"), &made["vat"], 1));
    assert_eq!(vat.live["registrations"], json!([{"entry": server.entry(), "registered": true}]));
    let status = alice.json(&["status", "tally"]);
    assert_eq!((&status["state"], &status["process"]), (&json!("awake"), &json!(vat.process.pid())));
    assert_eq!((&status["epoch"], &status["addresses"]), (&json!(1), &vat.live["addresses"]));
    assert_eq!(status["registrations"][0]["entry"], server.entry());
    assert_eq!(status["registrations"][0]["code"], "");

    let reference = alice.share("tally", &[]);
    let accepted = bob.vat_with_input(&["--json", "accept", "t", "-"], &reference).ok().json();
    assert_eq!(accepted, json!({"petname": "t", "vat": id}));
    let found = bob.json(&["resolve", id]);
    assert_eq!((&found["vat"], &found["state"], &found["epoch"]), (&made["vat"], &json!("live"), &json!(1)));
    assert_eq!(found["addresses"], vat.live["addresses"]);
    assert_eq!(found["attempts"].as_array().map(Vec::len), Some(1), "one place was asked: {found}");

    assert_eq!(bob.json(&["call", "t", "add", "by=3"]), json!({"total": 3}));
    assert_eq!(bob.json(&["call", "t", "add", r#"{"by": 4}"#]), json!({"total": 7}));
    let methods = bob.json(&["call", "t"]);
    assert_eq!(methods["methods"].as_array().map(Vec::len), Some(2), "{methods}");

    let status = alice.json(&["status", "tally"]);
    assert_eq!((&status["turn"], &status["grants"]), (&status["durable_turn"], &json!(1)));
    let book = bob.json(&["list"]);
    assert_eq!(book, json!({"vats": [], "address_book": [{"petname": "t", "vat": id}]}));
    assert_eq!(bob.json(&["forget", "t"]), json!({"forgotten": "t"}));
    bob.fails(&["call", "t", "get"], 3, "vat.not_found");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_guestbook_keeps_who_signed_in_order() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    alice.new_vat("book", "guestbook");
    let vat = alice.wake("book");
    let reference = alice.share("book", &[]);
    bob.vat_with_input(&["accept", "book", "-"], &reference).ok();

    assert_eq!(bob.json(&["call", "book", "sign", "name=Bob", "text=I was here"]), json!({"number": 1}));
    let text = "two lines,\nwith \"quotes\", an = sign and ünïcödé";
    let arguments = json!({"name": "Carol", "text": text}).to_string();
    assert_eq!(bob.json(&["call", "book", "sign", &arguments]), json!({"number": 2}));
    vat.kill();
    let vat = alice.wake("book");
    assert_eq!(bob.json(&["call", "book", "sign", "name=Dave", "text="]), json!({"number": 3}));

    let page = bob.json(&["call", "book", "list"]);
    let entries = page["entries"].as_array().unwrap();
    let signed: Vec<_> = entries.iter().map(|entry| (&entry["number"], &entry["name"], &entry["text"])).collect();
    let expected = [(json!(1), json!("Bob"), json!("I was here")), (json!(2), json!("Carol"), json!(text))];
    assert_eq!(signed[..2], expected.each_ref().map(|(number, name, text)| (number, name, text)));
    assert_eq!(signed[2], (&json!(3), &json!("Dave"), &json!("")));
    assert_eq!(page["more"], false);
    let page = bob.json(&["call", "book", "list", "after=1", "limit=1"]);
    assert_eq!((&page["entries"][0]["name"], &page["more"]), (&json!("Carol"), &json!(true)));
    let human = bob.vat(&["call", "book", "list"]).ok();
    assert!(human.stdout.contains("Bob") && human.stdout.contains("more: false"), "{human}");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn notes_are_put_got_listed_and_removed() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    alice.new_vat("pad", "notes");
    let vat = alice.wake("pad");
    let reference = alice.share("pad", &[]);
    bob.vat_with_input(&["accept", "pad", "-"], &reference).ok();

    assert_eq!(bob.json(&["call", "pad", "put", "name=shop/milk", "text=2 l"]), json!({"replaced": false}));
    assert_eq!(bob.json(&["call", "pad", "put", "name=shop/milk", "text=3 l"]), json!({"replaced": true}));
    bob.json(&["call", "pad", "put", "name=shop/salt", "text=a little"]);
    bob.json(&["call", "pad", "put", "name=other", "text="]);
    assert_eq!(bob.json(&["call", "pad", "get", "name=shop/milk"]), json!({"text": "3 l"}));
    assert_eq!(
        bob.json(&["call", "pad", "get", "shop/milk"]),
        json!({"text": "3 l"}),
        "the only argument needs no name"
    );
    let listed = bob.json(&["call", "pad", "list", "prefix=shop/"]);
    assert_eq!(listed, json!({"names": ["shop/milk", "shop/salt"], "more": false}));
    let listed = bob.json(&["call", "pad", "list", "after=other", "limit=1"]);
    assert_eq!(listed, json!({"names": ["shop/milk"], "more": true}));
    assert_eq!(bob.json(&["call", "pad", "remove", "name=shop/milk"]), json!({"removed": true}));
    assert_eq!(bob.json(&["call", "pad", "remove", "name=shop/milk"]), json!({"removed": false}));
    bob.fails(&["call", "pad", "get", "name=shop/milk"], 3, "object.not_found").says(&["shop/milk"]);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_directory_hands_out_references_and_its_listing_gives_none() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    alice.new_vat("tally", "counter");
    alice.new_vat("friends", "directory");
    let (tally, friends) = (alice.wake("tally"), alice.wake("friends"));
    let counter = alice.share("tally", &[]);
    let directory = alice.share("friends", &[]);
    bob.vat_with_input(&["accept", "friends", "-"], &directory).ok();

    let bind = format!("ref={counter}");
    assert_eq!(bob.json(&["call", "friends", "bind", "name=alices-tally", &bind]), json!({"replaced": false}));
    let listed = bob.vat(&["call", "friends", "list"]).ok();
    assert!(listed.stdout.contains("alices-tally"), "{listed}");
    let found = bob.discloses(&["--json", "call", "friends", "lookup", "name=alices-tally"]).ok().json();
    assert_eq!(found["ref"], counter.as_str());
    assert_eq!(bob.vat_with_input(&["call", "-", "add", "by=5"], &counter).ok().stdout, "total: 5\n");

    let (kept, last) = counter.split_at(counter.len() - 1);
    let broken = format!("ref={kept}{}", if last == "y" { "b" } else { "y" });
    bob.fails(&["call", "friends", "bind", "name=broken", &broken], 2, "object.argument").says(&["ref", "checksum"]);
    assert_eq!(bob.json(&["call", "friends", "unbind", "name=alices-tally"]), json!({"removed": true}));
    bob.fails(&["call", "friends", "lookup", "name=alices-tally"], 3, "object.not_found");
    tally.sleep();
    friends.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_vat_is_called_by_reference_standard_input_petname_and_name() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let reference = alice.share("tally", &[]);

    assert_eq!(bob.vat(&["call", &reference, "add"]).ok().stdout, "total: 1\n", "the reference itself");
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &reference).ok().stdout, "total: 2\n", "standard input");
    bob.vat(&["accept", "pet", &reference]).ok();
    assert_eq!(bob.vat(&["call", "pet", "add"]).ok().stdout, "total: 3\n", "a petname");
    assert_eq!(alice.vat(&["call", "tally", "add"]).ok().stdout, "total: 4\n", "one's own vat by its name");
    assert_eq!(alice.vat(&["call", &reference, "add"]).ok().stdout, "total: 5\n", "one's own vat by reference");

    // The public address gives no authority, and says so.
    bob.fails(&["call", &id, "get"], 2, "ref.malformed");
    // A petname is never silently given to another reference, and accepting the same one again is no error.
    bob.vat(&["accept", "pet", &reference]).ok();
    let second = alice.share("tally", &[]);
    bob.fails_with_input(&["accept", "pet", "-"], &second, 7, "vat.exists");
    alice.fails_with_input(&["accept", "tally", "-"], &second, 7, "vat.exists");
    bob.fails(&["new", "pet", "--object", "counter"], 7, "vat.exists");
    // Resolving works for all of them, and never needs the secret.
    for target in [id.as_str(), "pet"] {
        assert_eq!(bob.json(&["resolve", target])["vat"], id.as_str());
    }
    assert_eq!(alice.json(&["resolve", "tally"])["vat"], id.as_str());
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn sharing_works_awake_and_asleep_and_the_reference_is_alone_on_the_last_line() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    alice.new_vat("tally", "counter");
    // `Home::share` itself insists that the last line is a reference and nothing else.
    let asleep = alice.share("tally", &["--label", "made while it slept"]);
    let vat = alice.wake("tally");
    let awake = alice.share("tally", &["--label", "made while it was awake"]);
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &asleep).ok().stdout, "total: 1\n");
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &awake).ok().stdout, "total: 2\n");
    // A grant survives the process in which it was made.
    vat.kill();
    let vat = alice.wake("tally");
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &awake).ok().stdout, "total: 3\n");

    let shared = alice.discloses(&["--json", "share", "tally", "--label", "for a program"]).ok().json();
    world.mint(shared["sturdyref"].as_str().unwrap());
    let grants = alice.json(&["grants", "tally"]);
    let labels: Vec<_> = grants["grants"].as_array().unwrap().iter().map(|grant| &grant["label"]).collect();
    assert_eq!(labels, ["made while it slept", "made while it was awake", "for a program"]);
    assert_eq!(grants["grants"][2]["hash"], shared["hash"], "a grant is recognised by the hash of its secret");
    let human = alice.vat(&["grants", "tally"]).ok();
    assert!(human.stdout.contains("made while it slept"), "{human}");
    vat.sleep();
    assert_eq!(alice.json(&["grants", "tally"])["grants"].as_array().map(Vec::len), Some(3), "asleep as well");
    world.no_secret_leaked();
}

#[test]
fn a_revoked_grant_opens_nothing_and_the_others_go_on() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    alice.new_vat("tally", "counter");
    let (first, second, third) = (alice.share("tally", &[]), alice.share("tally", &[]), alice.share("tally", &[]));
    assert_eq!(alice.json(&["revoke", "tally", "1"]), json!({"revoked": 1}), "asleep");
    let vat = alice.wake("tally");
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &second).ok().stdout, "total: 1\n");
    let human = alice.vat(&["revoke", "tally", "2"]).ok();
    assert!(human.stdout.contains("revoked"), "{human}");
    for revoked in [&first, &second] {
        bob.fails_with_input(&["call", "-", "get"], revoked, 4, "ref.denied");
    }
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &third).ok().stdout, "total: 2\n");
    alice.fails(&["revoke", "tally", "2"], 3, "ref.not_found");
    alice.fails(&["revoke", "tally", "99"], 3, "ref.not_found").says(&["99"]);
    // A number is never used again: the next grant is the fourth.
    let fourth = alice.share("tally", &[]);
    let grants = alice.json(&["grants", "tally"]);
    let numbers: Vec<_> = grants["grants"].as_array().unwrap().iter().map(|grant| grant["number"].clone()).collect();
    assert_eq!(numbers, [3, 4]);
    vat.kill();
    let vat = alice.wake("tally");
    bob.fails_with_input(&["call", "-", "get"], &first, 4, "ref.denied");
    assert_eq!(bob.vat_with_input(&["call", "-", "get"], &fourth).ok().stdout, "total: 2\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn an_expired_grant_opens_nothing() {
    let world = World::new();
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let hinted = ["--with-hints", "--expires-in"];
    let lasting = alice.share("tally", &[hinted[0], hinted[1], "3600"]);
    let expired = alice.share("tally", &[hinted[0], hinted[1], "1"]);
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &lasting).ok().stdout, "total: 1\n");
    while bob.vat_with_input(&["call", "-", "get"], &expired).status == Some(0) {}
    bob.fails_with_input(&["call", "-", "add"], &expired, 4, "ref.denied");
    let human = alice.vat(&["grants", "tally"]).ok();
    assert!(human.stdout.contains("expires in") && human.stdout.contains("expired"), "{human}");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn hints_lead_a_finder_who_has_no_search_path() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, carol) = (world.home("alice"), world.home("carol"));
    alice.add_server(server.entry());
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let plain = alice.share("tally", &[]);
    let failure = carol.fails_with_input(&["call", "-", "add"], &plain, 5, "vls.empty_path");
    failure.hints("vat vls add");
    let hinted = alice.share("tally", &["--with-hints"]);
    assert!(hinted.contains("at=") && hinted.contains("vls="), "hints are given on request only");
    assert!(!plain.contains('?'), "hints are given on request only");
    assert_eq!(carol.vat_with_input(&["call", "-", "add"], &hinted).ok().stdout, "total: 1\n");
    // The vat comes back on another port; the hinted server knows it.
    vat.kill();
    let vat = alice.wake("tally");
    assert_eq!(carol.vat_with_input(&["call", "-", "add"], &hinted).ok().stdout, "total: 2\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_vat_that_was_put_to_sleep_is_known_to_sleep() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = alice_and_bob(&world, server.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let reference = alice.share("tally", &[]);
    bob.vat_with_input(&["accept", "pet", "-"], &reference).ok();
    bob.vat(&["call", "pet", "add"]).ok();
    vat.sleep();

    bob.fails(&["resolve", &id], 5, "vls.dormant").says(&["sleeps"]);
    bob.fails(&["call", "pet", "get"], 5, "vls.dormant");
    alice.fails(&["call", "tally", "get"], 5, "vat.asleep").hints("vat run tally");
    let own = alice.vat(&["resolve", "tally"]);
    assert!(own.stdout.contains("asleep on this machine"), "one's own vat is never lost: {own}");

    let vat = alice.wake("tally");
    assert_eq!(vat.epoch(), 2, "each start is an epoch");
    assert_eq!(bob.json(&["resolve", &id])["state"], "live");
    assert_eq!(bob.vat(&["call", "pet", "get"]).ok().stdout, "total: 1\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn lists_and_status_tell_what_is_awake() {
    let world = World::new();
    let alice = world.home("alice");
    let empty = alice.vat(&["list"]).ok();
    assert!(empty.stdout.contains("vat new"), "an empty list says how to begin: {empty}");
    for (name, kind) in [("a", "counter"), ("b", "notes"), ("c", "guestbook"), ("d", "directory")] {
        alice.new_vat(name, kind);
    }
    let (a, c) = (alice.wake("a"), alice.wake("c"));
    let list = alice.json(&["list"]);
    let states: Vec<_> = list["vats"].as_array().unwrap().iter().map(|vat| (&vat["name"], &vat["state"])).collect();
    let expected = [("a", "awake"), ("b", "asleep"), ("c", "awake"), ("d", "asleep")]
        .map(|(name, state)| (json!(name), json!(state)));
    assert_eq!(states, expected.each_ref().map(|(name, state)| (name, state)));
    let human = alice.vat(&["list"]).ok();
    assert_eq!(human.stdout.lines().count(), 4, "{human}");
    let human = alice.vat(&["status", "a"]).ok();
    assert!(human.stdout.contains(&format!("awake, process {}", a.process.pid())), "{human}");
    assert!(alice.vat(&["status", "b"]).ok().stdout.contains("asleep"));
    for (name, kind) in [("a", "counter"), ("b", "notes"), ("c", "guestbook"), ("d", "directory")] {
        assert_eq!(alice.json(&["status", name])["object"], kind);
    }
    // A vat that was killed is not awake, although its socket is still there.
    c.kill();
    assert_eq!(alice.json(&["status", "c"])["state"], "asleep");
    a.sleep();
    world.no_secret_leaked();
}

#[test]
fn settings_doctor_completions_and_help_answer_for_people_and_programs() {
    let world = World::new();
    let mut server = world.location_server("server");
    let alice = world.home("alice");
    let shown = alice.json(&["config", "show"]);
    assert_eq!(shown["search_path"], json!({"value": [], "source": "default"}));
    let doctor = alice.vat(&["doctor"]).exits(10);
    assert!(doctor.stdout.contains("vls.empty_path"), "an empty search path is worth a word: {doctor}");

    let tested = alice.json(&["vls", "test", server.entry()]);
    assert_eq!(tested["entry"], server.entry());
    alice.add_server(server.entry());
    assert_eq!(alice.json(&["vls", "list"])["search_path"], json!([server.entry()]));
    alice.fails(&["vls", "add", server.entry()], 7, "vls.entry_exists");
    let shown = alice.vat(&["config", "show"]).ok();
    assert!(shown.stdout.contains("config.toml:1"), "where each setting comes from: {shown}");
    let healthy = alice.json(&["doctor"]);
    assert!(healthy["findings"].as_array().unwrap().iter().all(|finding| finding["ok"] == true), "{healthy}");
    server.kill();
    let sick = alice.vat(&["--json", "doctor"]).exits(10).json();
    let problem = sick["findings"].as_array().unwrap().iter().find(|finding| finding["ok"] == false).unwrap();
    assert!(problem["check"].as_str().unwrap().contains(server.entry()), "{problem}");
    assert!(!problem["next"].as_str().unwrap().is_empty(), "{problem}");
    alice.vat(&["vls", "remove", server.entry()]).ok();
    assert_eq!(alice.json(&["vls", "list"]), json!({"search_path": [], "entries": []}));
    alice.fails(&["vls", "remove", server.entry()], 3, "vls.entry_not_found");

    for shell in ["bash", "zsh", "fish"] {
        let script = alice.vat(&["completions", shell]).ok().stdout;
        assert!(script.contains("share") && !script.contains("location-server"), "{shell}");
    }
    let help = alice.vat(&["help", "vls.no_answer"]).ok();
    assert!(help.stdout.contains("exit 5") && help.stdout.contains("Next: "), "{help}");
    let all = alice.json(&["help"]);
    assert_eq!(all.as_array().map(Vec::len), Some(schemas::ErrorCode::ALL.len()));
    let command = alice.vat(&["help", "run"]).ok();
    assert!(command.stdout.contains("--take-over") && command.stdout.contains("Usage: vat run"), "{}", command.stdout);
    alice.fails(&["help", "vls.no_anser"], 3, "cli.unknown_code");
    world.no_secret_leaked();
}
