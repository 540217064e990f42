//! A vat behind a router: where it is seen, it is published only if others get through to it there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use acceptance::{Awake, Home, LocationServer, Router, World};
use serde_json::Value;

/// A vat that finds its location server behind a router.
fn awake_behind<'w>(world: &'w World, server: &LocationServer<'_>, router: &Router) -> (Home<'w>, Awake) {
    let (server_id, _) = server.entry().split_once('@').unwrap();
    let home = world.home("alice");
    home.add_server(&format!("{server_id}@{}", router.inside()));
    home.new_vat("tally", "counter");
    let vat = home.wake("tally");
    (home, vat)
}

/// What the owner is told, once a location server has tried.
fn seen_from_outside(home: &Home<'_>) -> (Value, Value) {
    let begun = Instant::now();
    loop {
        let status = home.json(&["status", "tally"]);
        if !status["outside"].is_null() || begun.elapsed() > Duration::from_secs(60) {
            return (status["outside"].clone(), status["addresses"].clone());
        }
        thread::sleep(Duration::from_millis(50)); // polls a condition
    }
}

/// What `vat doctor` has found about that.
fn findings_from_outside(doctor: &str) -> Vec<Value> {
    let mut doctor: Value = serde_json::from_str(doctor).unwrap();
    let findings = doctor["findings"].as_array_mut().unwrap();
    findings.retain(|finding| finding["check"] == "vat tally from outside");
    findings.clone()
}

fn router_before(server: &LocationServer<'_>, lets_in: bool) -> Router {
    Router::before(server.address().parse::<SocketAddr>().unwrap(), lets_in)
}

#[test]
fn where_a_location_server_got_through_to_it_a_vat_is_found_by_others() {
    let world = World::new();
    let server = world.location_server("server");
    let router = router_before(&server, true);
    let (alice, _vat) = awake_behind(&world, &server, &router);
    let (outside, addresses) = seen_from_outside(&alice);
    assert_eq!(
        (&outside["reached"], outside["address"].as_str()),
        (&true.into(), Some(&*router.outside().to_string()))
    );
    assert_eq!(addresses[0], format!("quic:{}", router.outside()), "first of all: {addresses}");
    assert_eq!(addresses.as_array().unwrap().len(), 2, "beside where it is: {addresses}");
    let bob = world.home("bob");
    bob.add_server(server.entry());
    bob.vat_with_input(&["accept", "pet", "-"], &alice.share("tally", &[])).ok();
    let begun = Instant::now();
    let is_published = || {
        let found = bob.json(&["resolve", "pet"]);
        found["addresses"].as_array().unwrap().contains(&format!("quic:{}", router.outside()).into())
    };
    while !is_published() {
        assert!(begun.elapsed() < Duration::from_secs(60), "others hear of it");
        thread::sleep(Duration::from_millis(50)); // polls a condition
    }
    assert!(bob.vat(&["resolve", "pet"]).ok().stdout.contains("(from this machine only)"));
    let healthy = findings_from_outside(&alice.vat(&["--json", "doctor"]).ok().stdout);
    assert_eq!(healthy.len(), 1, "{healthy:?}");
    let detail = format!("reached at {} by {}", router.outside(), outside["server"].as_str().unwrap());
    assert_eq!((&healthy[0]["ok"], &healthy[0]["detail"]), (&true.into(), &detail.into()));
    world.no_secret_leaked();
}

#[test]
fn where_nobody_gets_through_it_is_not_published_and_its_owner_is_told_what_to_do() {
    let world = World::new();
    let server = world.location_server("server");
    let router = router_before(&server, false);
    let (alice, vat) = awake_behind(&world, &server, &router);
    let told = vat.process.wait_for_notice("what its owner can do", |line| line.contains("cannot reach this vat"));
    assert!(told.contains(&format!("sees it at {}", router.outside())) && told.contains("UDP port"), "{told}");
    let (outside, addresses) = seen_from_outside(&alice);
    assert_eq!((&outside["reached"], outside["code"].as_str()), (&false.into(), Some("net.timeout")), "{outside}");
    assert!(!addresses.to_string().contains(&router.outside().to_string()), "{addresses}");
    let shown = alice.vat(&["status", "tally"]).ok().stdout;
    assert!(shown.contains("NOT reached at"), "{shown}");
    let found = findings_from_outside(&alice.vat(&["--json", "doctor"]).exits(10).stdout);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["ok"], &found[0]["code"]), (&false.into(), &"net.timeout".into()), "{found:?}");
    let port = addresses[0].as_str().unwrap().rsplit(':').next().unwrap();
    let next = found[0]["next"].as_str().unwrap();
    assert!(next.contains(&format!("UDP port {port} ")) && told.contains(next), "as the log says: {next}");
    let told = alice.vat(&["doctor"]).exits(10).stdout;
    assert!(told.contains("NOT reached at") && told.contains(next), "{told}");
    vat.sleep();
    let asleep = alice.vat(&["--json", "doctor"]).ok().stdout;
    assert!(findings_from_outside(&asleep).is_empty(), "nobody knows while it sleeps: {asleep}");
    world.no_secret_leaked();
}
