//! What holds when processes die and folders are restored: nobody is lost, and no two copies of a vat live.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, process::Command};

use acceptance::{Home, SilentAddress, World, absent_server};
use rustix::process::Signal;

/// Copies a folder as `cp -a` does: what an owner types to back it up.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

/// Puts an older copy of a vat's folder in the place of the newer one.
fn restore(home: &Home<'_>, name: &str, backup: &Path) {
    let folder = home.path("vats").join(name);
    std::fs::remove_dir_all(&folder).unwrap();
    copy(backup, &folder);
}

#[test]
fn a_location_server_that_was_killed_still_knows_the_vat() {
    let world = World::new();
    let mut server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let reference = alice.share("tally", &[]);
    // The vat is stopped, so it cannot register again: whatever the server knows, it has remembered.
    vat.process.signal(Signal::STOP);
    server.kill();
    server.restart();
    let found = bob.json(&["resolve", &id]);
    assert_eq!((&found["state"], &found["epoch"]), (&"live".into(), &1.into()), "{found}");
    vat.process.signal(Signal::CONT);
    assert_eq!(bob.vat_with_input(&["call", "-", "add"], &reference).ok().stdout, "total: 1\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_vat_that_was_killed_is_called_again_under_the_same_reference() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    alice.new_vat("tally", "counter");
    let mut vat = alice.wake("tally");
    bob.vat_with_input(&["accept", "pet", "-"], &alice.share("tally", &[])).ok();
    for round in 1..=5 {
        assert_eq!(vat.epoch(), round, "each start is an epoch");
        assert_eq!(bob.json(&["call", "pet", "add"])["total"], round);
        vat.kill();
        vat = alice.wake("tally");
    }
    vat.kill();
    // Nobody said goodbye, so the record still says that it lives: the failure is honest about that.
    let failure = bob.fails(&["call", "pet", "get"], 5, "vls.no_dial");
    failure.says(&["127.0.0.1:"]);
    world.no_secret_leaked();
}

#[test]
fn what_a_command_has_shown_outlives_any_kill() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let mut vat = alice.wake("tally");
    let mut kept = Vec::new();
    // Each round grants two references, the later of which it revokes; the vat dies right after each word.
    for last in [2, 4, 6] {
        for _ in 0..2 {
            kept.push(alice.share("tally", &[]));
            vat.kill();
            vat = alice.wake("tally");
        }
        alice.vat(&["revoke", "tally", &last.to_string()]).ok();
        vat.kill();
        vat = alice.wake("tally");
        let revoked = kept.pop().unwrap();
        alice.fails_with_input(&["call", "-", "get"], &revoked, 4, "ref.denied");
        for reference in &kept {
            alice.vat_with_input(&["call", "-", "get"], reference).ok();
        }
    }
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn starting_the_same_vat_twice_is_refused_and_names_who_holds_it() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let holder = vat.process.pid().to_string();
    let failure = alice.fails(&["run", "tally", "--listen", "127.0.0.1:0"], 7, "vat.running");
    failure.says(&[&holder]).hints(&holder);
    // The one that holds it was not disturbed.
    assert_eq!(alice.vat(&["call", "tally", "add"]).ok().stdout, "total: 1\n");
    vat.kill();
    let vat = alice.wake("tally");
    assert_eq!(alice.vat(&["call", "tally", "get"]).ok().stdout, "total: 1\n", "a lock dies with its process");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn an_older_copy_of_a_vat_refuses_to_wake_until_its_owner_takes_over() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    bob.vat_with_input(&["accept", "pet", "-"], &alice.share("tally", &[])).ok();
    bob.vat(&["call", "pet", "add", "by=10"]).ok();
    vat.sleep();
    let backup = world.path("backup");
    copy(&alice.path("vats/tally"), &backup);
    let old_turn = alice.json(&["status", "tally"])["turn"].as_u64().unwrap();

    let vat = alice.wake("tally");
    for _ in 0..3 {
        bob.vat(&["call", "pet", "add", "by=1"]).ok();
    }
    vat.sleep();
    let new_turn = alice.json(&["status", "tally"])["turn"].as_u64().unwrap();
    assert_eq!(new_turn, old_turn + 3, "each call was one turn");

    restore(&alice, "tally", &backup);
    // A refusal must not make the next attempt look better: it stays refused.
    for attempt in 1..=3 {
        let failure = alice.fails(&["run", "tally", "--listen", "127.0.0.1:0"], 7, "vat.rolled_back");
        failure.says(&[&format!("turn {old_turn} "), &format!("turn {new_turn} ")]);
        failure.hints("--take-over");
        assert_eq!(alice.json(&["status", "tally"])["epoch"], 1, "attempt {attempt} changed nothing");
    }
    bob.fails(&["call", "pet", "get"], 5, "vls.dormant");
    // Nor does it take turns while it sleeps: they would make it look newer than it is.
    for _ in 0..4 {
        alice.fails(&["share", "tally"], 7, "vat.rolled_back");
    }
    assert_eq!(alice.json(&["status", "tally"])["turn"], old_turn);

    let vat = alice.wake_with("tally", &["--take-over"]);
    assert_eq!(vat.epoch(), 3, "above every epoch that anybody knows");
    assert_eq!(bob.vat(&["call", "pet", "get"]).ok().stdout, "total: 10\n", "what was given up is gone, and no more");
    vat.kill();
    // From here on it is the one copy, and needs no further permission.
    let vat = alice.wake("tally");
    assert_eq!(vat.epoch(), 4);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn of_two_copies_of_a_folder_the_one_that_was_left_behind_is_refused() {
    let world = World::new();
    let server = world.location_server("server");
    let alice = world.home("alice");
    alice.add_server(server.entry());
    alice.new_vat("tally", "counter");
    alice.wake("tally").sleep();
    // A second machine: the whole home was copied, key files and all.
    let clone = world.home("clone");
    copy(&alice.path(""), &clone.path(""));
    let vat = alice.wake("tally");
    // No turn was made since, only the epoch tells that somebody else was started.
    let failure = clone.fails(&["run", "tally", "--listen", "127.0.0.1:0"], 7, "vat.fenced");
    failure.says(&["epoch 2", "epoch 1"]).hints("--take-over");
    assert_eq!(alice.vat(&["call", "tally", "add"]).ok().stdout, "total: 1\n", "the first is not disturbed");
    // When the clone is made the one, the other steps down as soon as it learns of it.
    let taken = clone.wake_with("tally", &["--take-over"]);
    assert_eq!(taken.epoch(), 3);
    vat.kill();
    alice.fails(&["run", "tally", "--listen", "127.0.0.1:0"], 7, "vat.fenced");
    taken.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_location_server_that_is_named_twice_is_no_rival() {
    let world = World::new();
    let server = world.location_server("server");
    let alice = world.home("alice");
    alice.add_server(server.entry());
    // The same server under another name: it shows the vat's own record when that is registered once more.
    alice.add_server(&server.entry().replace("127.0.0.1", "localhost"));
    alice.new_vat("tally", "counter");
    for epoch in 1..=3 {
        let vat = alice.wake("tally");
        assert_eq!(vat.epoch(), epoch);
        let status = alice.json(&["status", "tally"]);
        for registration in status["registrations"].as_array().unwrap() {
            assert!(registration["last_success"].as_u64().unwrap() > 0, "{status}");
        }
        vat.sleep();
    }
    world.no_secret_leaked();
}

#[test]
fn of_two_copies_that_wake_at_once_at_most_one_lives() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, clone) = (world.home("alice"), world.home("clone"));
    alice.add_server(server.entry());
    clone.add_server(server.entry());
    alice.new_vat("tally", "counter");
    alice.wake("tally").sleep();
    copy(&alice.path("vats"), &clone.path("vats"));
    copy(&alice.path("keys"), &clone.path("keys"));
    // Both have seen the same record, of their own last start; the compare-and-swap lets one replace it.
    let started = [&alice, &clone].map(|home| home.start(&["--json", "run", "tally", "--listen", "127.0.0.1:0"]));
    let live = started.iter().filter_map(|vat| vat.first_line()).count();
    assert!(live <= 1, "two copies of one identity are live");
    world.no_secret_leaked();
}

#[test]
fn where_a_witness_is_required_a_vat_does_not_wake_without_one() {
    let world = World::new();
    let alice = world.home("alice");
    alice.write("config.toml", "witness = \"required\"\n");
    alice.new_vat("tally", "counter");
    let run = ["run", "tally", "--listen", "127.0.0.1:0"];
    alice.fails(&run, 5, "vls.no_answer").says(&["witness", "search path is empty"]);
    let (silent, absent) = (SilentAddress::bind(), absent_server());
    alice.add_server(&silent.entry());
    alice.add_server(&absent);
    alice.fails(&run, 5, "vls.no_answer").says(&["witness", &silent.entry(), &absent]);
    let mut server = world.location_server("server");
    alice.add_server(server.entry());
    let vat = alice.wake("tally");
    assert_eq!(vat.epoch(), 1, "the refused attempts were no epochs");
    // One that is awake goes on when the witness dies.
    server.kill();
    assert_eq!(alice.vat(&["call", "tally", "add"]).ok().stdout, "total: 1\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn where_no_witness_is_required_a_vat_wakes_without_one_and_says_so() {
    let world = World::new();
    let alice = world.home("alice");
    alice.add_server(&absent_server());
    alice.new_vat("tally", "counter");
    let vat = alice.start(&["run", "tally", "--listen", "127.0.0.1:0"]);
    vat.wait_for_notice("that there is no witness", |line| line.contains("without a witness"));
    vat.wait_for("that it is awake", |line| line.contains("is awake"));
    assert_eq!(alice.vat(&["call", "tally", "add"]).ok().stdout, "total: 1\n");
    vat.interrupt().ok();
    world.no_secret_leaked();
}
