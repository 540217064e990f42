//! Finding a vat when location servers are dead: they cost nothing, and their absence is explained.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use acceptance::{Home, SilentAddress, World, absent_server};
use serde_json::json;

/// The most that a dead server may add to the median of a command: generous for two busy cores, and far
/// below any time-out, none of which is under a second.
const UNNOTICED: Duration = Duration::from_millis(150);

/// Runs per way of asking. Odd, so that there is a median.
const RUNS: usize = 7;

/// A friend who has only this in the search path, and the vat's reference under the name `pet`.
fn friend<'w>(world: &'w World, name: &str, path: &[&str], reference: &str) -> Home<'w> {
    let home = world.home(name);
    path.iter().for_each(|entry| home.add_server(entry));
    home.vat_with_input(&["accept", "pet", "-"], reference).ok();
    home
}

fn forget_cached_records(home: &Home<'_>) {
    let cache = home.path("cache");
    if cache.exists() {
        fs::remove_dir_all(cache).unwrap();
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_dead_server_in_the_path_costs_no_visible_delay() {
    let world = World::new();
    let server = world.location_server("server");
    let silent = SilentAddress::bind();
    let alice = world.home("alice");
    alice.add_server(server.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let reference = alice.share("tally", &[]);

    let (absent, dead) = (absent_server(), silent.entry());
    let paths = [vec![server.entry()], vec![&absent, server.entry()], vec![&dead, server.entry()]];
    let friends: Vec<_> = ["alone", "absent", "silent"]
        .iter()
        .zip(&paths)
        .map(|(name, path)| friend(&world, name, path, &reference))
        .collect();
    for (what, command) in [("resolve", vec!["resolve", id.as_str()]), ("call", vec!["call", "pet", "get"])] {
        for cached in [false, true] {
            // In turn, so that whatever else the machine does hits all of them alike.
            let mut times = vec![Vec::new(); friends.len()];
            for _ in 0..RUNS {
                for (friend, times) in friends.iter().zip(&mut times) {
                    if !cached {
                        forget_cached_records(friend);
                    }
                    let began = Instant::now();
                    friend.vat(&command).ok();
                    times.push(began.elapsed());
                }
            }
            let medians: Vec<_> = times.into_iter().map(median).collect();
            println!(
                "{what}, cached {cached}: alone {:?}, absent {:?}, silent {:?}",
                medians[0], medians[1], medians[2]
            );
            for (dead, median) in ["absent", "silent"].iter().zip(&medians[1..]) {
                assert!(
                    *median < medians[0] + UNNOTICED,
                    "{what} with an {dead} server takes {median:?}, without {:?} (cached record: {cached})",
                    medians[0]
                );
            }
        }
    }
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn with_all_servers_dead_a_cached_record_still_leads_to_the_vat() {
    let world = World::new();
    let mut server = world.location_server("server");
    let silent = SilentAddress::bind();
    let alice = world.home("alice");
    alice.add_server(server.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let bob = friend(&world, "bob", &[server.entry(), &silent.entry()], &alice.share("tally", &[]));
    bob.vat(&["call", "pet", "add"]).ok();
    server.kill();

    assert_eq!(bob.vat(&["call", "pet", "add"]).ok().stdout, "total: 2\n");
    let found = bob.json(&["resolve", &id]);
    assert_eq!((&found["state"], &found["addresses"]), (&json!("live"), &vat.live["addresses"]));
    let explained = bob.vat(&["resolve", &id, "--explain"]).ok();
    for entry in [server.entry(), &silent.entry()] {
        assert!(explained.stdout.contains(entry), "each entry is explained: {explained}");
    }
    let scores = bob.json(&["vls", "list"]);
    let count = |entry: usize, what: &str| scores["entries"][entry][what].as_u64().unwrap();
    assert!(count(0, "answers") > 0 && scores["entries"][0]["p95_us"].as_u64() > Some(0), "{scores}");
    assert!(count(1, "answers") == 0, "{scores}");
    assert!(bob.vat(&["vls", "list"]).ok().stdout.contains(" answered"), "and in words");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn with_all_servers_dead_and_nothing_cached_each_entry_has_its_reason() {
    let world = World::new();
    let mut server = world.location_server("server");
    let (silent, absent) = (SilentAddress::bind(), absent_server());
    let alice = world.home("alice");
    alice.add_server(server.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let bob = friend(&world, "bob", &[server.entry(), &silent.entry(), &absent], &alice.share("tally", &[]));
    server.kill();

    for command in [&["resolve", id.as_str()][..], &["call", "pet", "get"]] {
        let failure = bob.fails(command, 5, "vls.no_answer");
        for entry in [server.entry(), &silent.entry(), &absent] {
            let lines = failure.message.lines().filter(|line| line.contains(entry)).count();
            assert_eq!(lines, 1, "one line of reason for {entry}: {}", failure.message);
        }
        failure.hints("vat vls test");
    }
    vat.kill();
    world.no_secret_leaked();
}

#[test]
fn an_empty_search_path_never_dead_ends() {
    let world = World::new();
    let alice = world.home("alice");
    let id = alice.new_vat("tally", "counter");
    let vat = alice.start(&["run", "tally", "--listen", "127.0.0.1:0"]);
    vat.wait_for("that it is awake", |line| line.contains("is awake"));
    vat.wait_for_notice("how to add an entry", |line| line.contains("vat vls add"));
    let reference = alice.share("tally", &[]);

    assert_eq!(alice.vat(&["call", "tally", "add"]).ok().stdout, "total: 1\n");
    assert_eq!(alice.vat_with_input(&["call", "-", "add"], &reference).ok().stdout, "total: 2\n");
    for target in ["tally", id.as_str()] {
        let found = alice.vat(&["resolve", target]).ok();
        assert!(found.stdout.contains("awake on this machine"), "{found}");
        assert!(found.stderr.contains("search path is empty"), "it says why it was found this way: {found}");
    }
    let local = alice.json(&["resolve", "tally"]);
    assert_eq!((&local["state"], &local["local"]), (&json!("awake"), &json!(true)));
    let listed = alice.vat(&["vls", "list"]).ok();
    assert!(listed.stdout.contains("vat vls add"), "{listed}");
    let bob = world.home("bob");
    bob.fails(&["resolve", &id], 5, "vls.empty_path").hints("vat vls add");
    vat.interrupt().ok();
    assert!(alice.vat(&["resolve", "tally"]).ok().stdout.contains("asleep on this machine"));
    world.no_secret_leaked();
}

#[test]
fn that_no_vat_is_registered_through_dns_is_said_where_it_is_added_and_when_a_vat_wakes() {
    let world = World::new();
    let alice = world.home("alice");
    // Nobody answers there, which is known at once.
    alice.write("config.toml", "name_servers = [\"127.0.0.1:9\"]\n");
    let added = alice.vat(&["vls", "add", "dns:vls.example.org"]).ok();
    assert!(added.stdout.contains("no vat of yours is registered"), "{added}");
    alice.new_vat("tally", "counter");
    let vat = alice.start(&["run", "tally", "--listen", "127.0.0.1:0"]);
    let told = vat.wait_for_notice("that it is not registered", |line| line.contains("not registered with dns:"));
    assert!(told.contains("takes no registrations") && !told.contains("trying again"), "{told}");
    vat.interrupt().ok();
    world.no_secret_leaked();
}

#[test]
fn with_nobody_who_may_be_asked_watching_ends_with_the_reason() {
    let world = World::new();
    let alice = world.home("alice");
    let id = world.home("bob").new_vat("tally", "counter");
    alice.fails(&["resolve", &id, "--watch"], 5, "vls.empty_path");
    alice.add_server("https://vls.example.org");
    let failure = alice.fails(&["--local-only", "resolve", &id, "--watch"], 5, "vls.no_answer");
    assert!(failure.message.contains("(vls.left_out)"), "{}", failure.message);
    world.no_secret_leaked();
}

#[test]
fn a_vat_registers_with_every_server_and_is_found_through_any() {
    let world = World::new();
    let (mut first, mut second) = (world.location_server("first"), world.location_server("second"));
    let alice = world.home("alice");
    alice.add_server(first.entry());
    alice.add_server(second.entry());
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let reference = alice.share("tally", &[]);
    let bob = friend(&world, "bob", &[first.entry()], &reference);
    let carol = friend(&world, "carol", &[second.entry()], &reference);
    assert_eq!(bob.json(&["resolve", &id])["state"], "live");
    assert_eq!(carol.json(&["resolve", &id])["state"], "live");
    // Each server alone is enough, for whoever has both.
    let dave = friend(&world, "dave", &[first.entry(), second.entry()], &reference);
    first.kill();
    assert_eq!(dave.vat(&["call", "pet", "add"]).ok().stdout, "total: 1\n");
    first.restart();
    second.kill();
    forget_cached_records(&dave);
    assert_eq!(dave.vat(&["call", "pet", "add"]).ok().stdout, "total: 2\n");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_vat_that_is_watched_is_seen_to_come_to_go_and_to_come_back_when_the_server_does() {
    let world = World::new();
    let mut server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    let id = alice.new_vat("tally", "counter");
    let watching = bob.start(&["--json", "resolve", &id, "--watch"]);
    let sees = |what: &str, state: &str, epoch: u64| {
        watching.wait_for(what, |line| {
            let seen: serde_json::Value = serde_json::from_str(line).expect("one object for each line");
            seen["state"] == state && (epoch == 0 || seen["epoch"] == epoch)
        })
    };
    sees("nobody knows it", "gone", 0);
    let vat = alice.wake("tally");
    sees("it comes", "live", 1);
    vat.sleep();
    sees("it sleeps", "dormant", 1);
    server.kill();
    server.restart();
    let vat = alice.wake("tally");
    sees("it comes back", "live", 2);
    watching.signal(rustix::process::Signal::INT);
    vat.sleep();
    bob.fails(&["resolve", "nobody", "--watch"], 3, "vat.not_found");
    alice.fails(&["resolve", &id, "--watch", "--explain"], 2, "cli.usage");
    world.no_secret_leaked();
}

#[test]
fn local_only_mode_leaves_out_what_is_elsewhere_and_says_so() {
    let world = World::new();
    let server = world.location_server("server");
    let alice = world.home("alice");
    let elsewhere =
        format!("vls://{}@192.0.2.1:4433", server.entry().strip_prefix("vls://").unwrap().split('@').next().unwrap());
    for entry in [server.entry(), &elsewhere, "https://vls.example.org", "dns:vls.example.org", "dht:"] {
        alice.add_server(entry);
    }
    let id = alice.new_vat("tally", "counter");
    let vat = alice.wake_with("tally", &["--local-only"]);
    let found = alice.json(&["--local-only", "resolve", &id, "--explain"]);
    let codes: Vec<_> = found["attempts"].as_array().unwrap().iter().map(|attempt| attempt["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("vls.left_out"), Some("vls.left_out"), Some("vls.left_out"), Some("vls.left_out")]);
    alice.fails(&["--local-only", "vls", "test", &elsewhere], 4, "vls.left_out");
    vat.sleep();
    world.no_secret_leaked();
}
