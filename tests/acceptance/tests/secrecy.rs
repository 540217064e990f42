//! Secrets stay where they belong, however much the programs log and however they die.
//!
//! Every acceptance test ends with the same search; here the programs are made to say as much as they can.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use acceptance::{Done, Home, Running, World, program};
use rustix::process::Signal;

/// A command that logs all that it can.
fn chatty(world: &World, home: &Home<'_>, arguments: &[&str], input: &str) -> Done {
    let mut command = home.command(arguments);
    command.env("VAT_LOG", "trace").env("RUST_BACKTRACE", "full");
    world.run(command, input)
}

fn wake(world: &World, home: &Home<'_>) -> Running {
    let mut command = home.command(&["run", "tally", "--listen", "127.0.0.1:0"]);
    command.env("VAT_LOG", "trace").env("RUST_BACKTRACE", "full");
    let vat = world.start(command);
    vat.wait_for("that it is awake", |line| line.contains("is awake"));
    vat
}

#[test]
fn with_every_log_switched_on_nothing_tells_a_secret() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    alice.new_vat("tally", "counter");
    alice.new_vat("friends", "directory");
    let vat = wake(&world, &alice);
    let friends = alice.wake("friends");
    let reference = alice.share("tally", &["--label", "for Bob", "--with-hints"]);
    let directory = alice.share("friends", &[]);

    chatty(&world, &bob, &["accept", "pet", &reference], "").ok();
    chatty(&world, &bob, &["accept", "friends", "-"], &directory).ok();
    let called = chatty(&world, &bob, &["call", "pet", "add"], "").ok();
    assert!(called.stderr.contains("TRACE"), "it does log: {called}");
    chatty(&world, &bob, &["call", "-", "add"], &reference).ok();
    chatty(&world, &bob, &["call", "friends", "bind", "name=tally", &format!("ref={reference}")], "").ok();
    chatty(&world, &bob, &["list"], "").ok();
    chatty(&world, &alice, &["grants", "tally"], "").ok();
    // Failures of every kind, with the secret in the wrong place.
    let (kept, last) = reference.split_at(reference.len() - 1);
    let broken = format!("{kept}{}", if last == "y" { "b" } else { "y" });
    let fragment = reference.split_once('#').unwrap().1;
    for (arguments, input) in [
        (vec!["call", &broken, "add"], ""),
        (vec!["call", "-", "add"], broken.as_str()),
        (vec!["accept", "other", kept], ""),
        (vec!["accept", &reference, "other"], ""),
        (vec!["call", fragment, "add"], ""),
        (vec!["resolve", &reference], ""),
        (vec!["resolve", fragment], ""),
        (vec!["call", &reference, fragment], ""),
        (vec!["call", &reference, "add", fragment], ""),
        (vec!["call", &reference, "add", &reference], ""),
        (vec!["call", "friends", "bind", "name=tally", &reference], ""),
        (vec!["call", "friends", "bind", "name=tally", "--", &broken], ""),
        (vec!["call", "friends", "lookup", &reference], ""),
        (vec!["vls", "add", &reference], ""),
        (vec!["help", &reference], ""),
        (vec!["new", &reference, "--object", "counter"], ""),
        (vec!["new", "other", "--object", &reference], ""),
        (vec!["run", &reference], ""),
        (vec!["revoke", "pet", &reference], ""),
        (vec!["call", "pet", "add", "--timeout", &reference], ""),
        (vec![&reference], ""),
    ] {
        for json in [&[][..], &["--json"]] {
            let arguments = [json, &arguments].concat();
            let done = chatty(&world, &bob, &arguments, input);
            assert_ne!(done.status, Some(0), "{done}");
        }
    }
    // Denied: the secret was granted, and is not any more.
    alice.vat(&["revoke", "tally", "1"]).ok();
    chatty(&world, &bob, &["call", "pet", "add"], "").exits(4);
    let logged = vat.interrupt().ok();
    assert!(logged.stderr.contains("TRACE"), "it does log: {logged}");
    friends.sleep();
    world.no_secret_leaked();
}

/// Core files below a folder.
fn cores(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("core")).count()
}

#[test]
fn a_program_that_holds_keys_leaves_no_core_behind() {
    let world = World::new();
    let server = world.location_server("server");
    let alice = world.home("alice");
    alice.add_server(server.entry());
    alice.new_vat("tally", "counter");
    let _reference = alice.share("tally", &[]);
    let mut vat = wake(&world, &alice);
    for process in [&vat, server.process()] {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let words: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(words, ["0", "0"], "neither now nor by a later change: {core}");
    }
    vat.signal(Signal::ABORT);
    let died = vat.wait();
    assert_eq!(died.status, None, "{died}");
    assert_eq!(cores(&world.path("cwd")), 0);

    // The same death of another program does leave one, so it was not the system that kept it back.
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut control = world.command("sh");
    control.args(["-c", "kill -ABRT $$"]);
    assert_eq!(world.run(control, "").status, None);
    if pattern.trim() == "core" && rustix::process::getrlimit(rustix::process::Resource::Core).current != Some(0) {
        assert_eq!(cores(&world.path("cwd")), 1, "no core of the control: {pattern}");
    }
    world.no_secret_leaked();
}

#[test]
fn nobody_sees_a_secret_in_the_list_of_processes() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let reference = alice.share("tally", &[]);
    alice.vat_with_input(&["accept", "pet", "-"], &reference).ok();
    // Whatever goes on running was started without a secret: a program that waits for one reads it.
    let mut command = world.command("sh");
    command.env("VAT_HOME", alice.path("")).args(["-c", r#"sleep 1000 | "$0" call - add"#]).arg(program("vat"));
    let waiting = world.start(command);
    let visible = fs::read(format!("/proc/{}/cmdline", vat.process.pid())).unwrap();
    assert!(
        visible.starts_with(program("vat").to_str().unwrap().as_bytes()),
        "the command line is that of the program"
    );
    drop(waiting);
    vat.sleep();
    world.no_secret_leaked();
}
