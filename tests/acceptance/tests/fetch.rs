//! Content that comes on a stream of its own, and goes on where it stopped.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use acceptance::{Home, World};
use serde_json::json;

/// As long as a command line takes, and far more than one datagram.
const LENGTH: usize = 100_000;

fn text() -> String {
    (0..LENGTH)
        .map(|position| char::from(b'a' + u8::try_from((position * position + position / 7) % 26).unwrap()))
        .collect()
}

/// A vat of notes with one long note; a reference to it, through `at` if that is given.
fn notes(home: &Home<'_>, at: Option<SocketAddr>) -> String {
    home.vat(&["call", "home", "put", "name=long", &format!("text={}", text())]).ok();
    let reference = home.share("home", &["--label", "reader"]);
    let (address, secret) = reference.split_once('#').unwrap();
    match at {
        Some(at) => format!("{address}?at={at}#{secret}"),
        None => reference,
    }
}

#[test]
fn a_note_is_fetched_over_the_network_and_over_the_socket_of_its_own_machine() {
    let world = World::new();
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.new_vat("home", "notes");
    let vat = alice.wake("home");
    let reference = notes(&alice, Some(vat.address().parse().unwrap()));
    bob.vat_with_input(&["accept", "minutes", "-"], &reference).ok();
    for (home, target) in [(&bob, "minutes"), (&alice, "home")] {
        let file = home.path("long.txt");
        let fetched = home.json(&["fetch", target, "long", "-o", file.to_str().unwrap()]);
        assert_eq!(
            (&fetched["bytes"], &fetched["resumed_at"], &fetched["sessions"]),
            (&json!(LENGTH), &json!(0), &json!(1))
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), text());

        // Half of it lies there already.
        let name = format!("again.txt.{}.part", &fetched["sha256"].as_str().unwrap()[..16]);
        let part = home.path(&name);
        home.write(&name, &text()[..LENGTH / 2]);
        let again = home.path("again.txt");
        let fetched = home.json(&["fetch", target, "long", "-o", again.to_str().unwrap()]);
        assert_eq!(fetched["resumed_at"], json!(LENGTH / 2));
        assert_eq!(fs::read_to_string(&again).unwrap(), text());
        assert!(!part.exists());

        // What lies there is something else, although it says otherwise: found at the end, and gone after it.
        home.write(&name, &"x".repeat(LENGTH / 2));
        // Once only: the next attempt begins anew.
        home.vat(&["--json", "fetch", target, "long", "-o", again.to_str().unwrap()]).failed(9, "bulk.damaged");
        assert!(!part.exists());
        home.fails(&["fetch", target, "nothing", "-o", again.to_str().unwrap()], 3, "object.not_found");
    }
    // Revoked, nothing comes any more.
    alice.vat(&["revoke", "home", "1"]).ok();
    bob.fails(&["fetch", "minutes", "long", "-o", bob.path("late.txt").to_str().unwrap()], 4, "ref.denied");
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn what_keeps_no_content_is_said_to_keep_none_and_leaves_no_file() {
    let world = World::new();
    let alice = world.home("alice");
    for kind in ["counter", "directory"] {
        alice.new_vat(kind, kind);
        let vat = alice.wake(kind);
        let file = alice.path("file");
        let fetch = ["fetch", kind, "minutes", "-o", file.to_str().unwrap()];
        alice.fails(&fetch, 2, "object.unknown_method").says(&["minutes", "keeps no content"]).hints("call TARGET");
        assert!(!file.exists());
        vat.sleep();
    }
    world.no_secret_leaked();
}

/// A way to a vat that can be cut: it lets so many bytes come back, and no more until it is opened.
struct Way {
    address: SocketAddr,
    is_open: Arc<AtomicBool>,
    cut: mpsc::Receiver<()>,
}

fn way_to(vat: SocketAddr, bytes: usize) -> Way {
    let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let (inside, outside) = (bind(), bind());
    let (address, is_open, client) =
        (inside.local_addr().unwrap(), Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
    let (tell, cut) = mpsc::channel();
    let passed = AtomicUsize::new(0);
    thread::spawn({
        let (inside, outside, client) = (inside.try_clone().unwrap(), outside.try_clone().unwrap(), client.clone());
        move || {
            let mut datagram = [0; 65_536];
            // Nobody may listen at the other end for a while; the thread ends with the test.
            while let Ok((length, from)) = inside.recv_from(&mut datagram) {
                *client.lock().unwrap() = Some(from);
                let _ = outside.send_to(&datagram[..length], vat);
            }
        }
    });
    thread::spawn({
        let is_open = is_open.clone();
        move || {
            let mut datagram = [0; 65_536];
            loop {
                let Ok((length, _)) = outside.recv_from(&mut datagram) else { continue };
                let passes = passed.fetch_add(length, Ordering::SeqCst) < bytes || is_open.load(Ordering::SeqCst);
                match *client.lock().unwrap() {
                    Some(client) if passes => drop(inside.send_to(&datagram[..length], client)),
                    // The test may have ended.
                    _ => drop(tell.send(())),
                }
            }
        }
    });
    Way { address, is_open, cut }
}

#[test]
fn a_transfer_whose_vat_is_killed_goes_on_with_its_successor_where_it_stopped() {
    let world = World::new();
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.new_vat("home", "notes");
    let vat = alice.wake("home");
    let address = vat.address();
    let way = way_to(address.parse().unwrap(), LENGTH / 2);
    let reference = notes(&alice, Some(way.address));
    bob.vat_with_input(&["accept", "minutes", "-"], &reference).ok();
    let file = bob.path("long.txt");
    let mut fetching = bob.start(&["--json", "fetch", "minutes", "long", "-o", file.to_str().unwrap()]);
    way.cut.recv().unwrap();
    vat.kill();
    let successor = alice.start(&["--json", "run", "home", "--listen", &address]);
    successor.wait_for("that it is live", |line| line.contains("epoch"));
    way.is_open.store(true, Ordering::SeqCst);
    let fetched = fetching.wait().ok().json();
    assert_eq!((&fetched["bytes"], &fetched["sessions"]), (&json!(LENGTH), &json!(2)), "{fetched}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text());
    successor.interrupt().ok();
    world.no_secret_leaked();
}
