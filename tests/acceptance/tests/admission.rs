//! New vats at location servers that do not take everybody at once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use acceptance::{Home, LocationServer, Running, World, program};
use serde_json::Value;

/// Longer than any work of an unoptimised program on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server again, with another configuration.
fn again(world: &World, server: &mut LocationServer<'_>, settings: &str) -> Running {
    server.interrupt();
    let file = world.path("server.toml");
    fs::write(&file, settings).unwrap();
    let mut command = server.command();
    command.arg("--config").arg(&file);
    let running = world.start(command);
    assert_eq!(running.wait_for("its entry", |line| line.starts_with("vls://")), server.entry());
    running
}

fn vls_server(world: &World, server: &LocationServer<'_>, arguments: &[&str]) -> Value {
    let mut command: Command = world.command(program("vls-server"));
    command.arg("--json").args(arguments).arg("--data").arg(server.path(""));
    world.run(command, "").ok().json()
}

/// Waits until a friend finds the vat through the server. What is asked here takes its time by itself.
fn is_found(friend: &Home<'_>, id: &str) {
    let begun = Instant::now();
    loop {
        let done = friend.vat(&["--json", "resolve", id]);
        if done.status == Some(0) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{done}");
    }
}

#[test]
fn a_vat_works_for_its_place_at_a_server_that_is_nearly_full() {
    let world = World::new();
    let mut server = world.location_server("server");
    // Of two places one costs nothing.
    let _running = again(&world, &mut server, "[limits]\nrecords = 2\n");
    let alice = world.home("alice");
    alice.add_server(server.entry());
    let friend = world.home("friend");
    friend.add_server(server.entry());
    let ids: Vec<String> = ["first", "second"].iter().map(|name| alice.new_vat(name, "counter")).collect();
    let first = alice.wake("first");
    assert_eq!(vls_server(&world, &server, &["status"])["work_bits"], 19);
    let second = alice.wake("second");
    ids.iter().for_each(|id| is_found(&friend, id));
    let status = vls_server(&world, &server, &["status"]);
    assert_eq!((&status["records"], &status["work_bits"]), (&2.into(), &23.into()));
    second.sleep();
    first.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_closed_server_takes_a_vat_with_an_invite_and_no_other() {
    let world = World::new();
    let mut server = world.location_server("server");
    let _running = again(&world, &mut server, "[registration]\nclosed = true\n");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    for home in [&alice, &bob] {
        home.add_server(server.entry());
        home.new_vat("tally", "counter");
    }
    let refused = alice.wake("tally");
    refused.process.wait_for_notice("why it is not registered", |line| line.contains("by invitation only"));
    refused.sleep();

    let made = vls_server(&world, &server, &["invite", "new", "--note", "for Bob"]);
    let invite = made["invite"].as_str().unwrap();
    let added = bob.vat_with_input(&["vls", "add", server.entry(), "--invite", "-"], invite).ok();
    assert!(added.stdout.contains("with the invite"), "{added}");
    let vat = bob.wake("tally");
    assert_eq!(vls_server(&world, &server, &["invite", "list"])["invites"], serde_json::json!([]), "used");
    assert_eq!(vls_server(&world, &server, &["status"])["records"], 1);
    vat.sleep();
    // Known: it comes and goes without another.
    bob.wake("tally").sleep();
    for shown in [bob.json(&["config", "show"]), bob.json(&["vls", "list"])] {
        assert!(!shown.to_string().contains(&invite[10..20]), "{shown}");
    }
    for file in fs::read_dir(world.path("written")).unwrap() {
        let text = fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(
            !text.contains(&invite[10..20]) || text.contains("\"invite\""),
            "only who made it was shown it: {text}"
        );
    }
    bob.fails(&["vls", "add", server.entry(), "--invite", "vlsinvite:mistyped"], 2, "vls.invite_malformed");
    bob.vat(&["vls", "remove", server.entry()]).ok();
    assert!(!fs::read_to_string(bob.path("invites.toml")).unwrap().contains("vlsinvite"));
    world.no_secret_leaked();
}
