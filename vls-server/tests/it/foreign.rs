//! Packets that say nothing of a vat: what the pkarr crate signs is held and answered as it is, by every carrier, and
//! never in the place of a vat's record.

use std::{net::SocketAddr, path::Path, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use schemas::{
    SignedPacket,
    datagram::{Known, LookupAnswer, LookupQuestion},
};
use simple_dns::{Packet, RCODE, ResourceRecord, TYPE, rdata::RData};
use tokio::{net::UdpSocket, time::timeout};
use vls_server::{
    DurableRegistry, Server,
    registry::{Admission, Expected, Outcome, Policy, Registry, Seed},
};

use crate::{
    dns_core::{ORIGIN, query},
    finder::{Finder, Wire},
    http_client::HttpClient,
    local::{HandClock, START, foreign, key, on_one_thread, record},
    over_dns::config,
    world::{Draft, HOUR, World, at, refreshed, stored},
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start(disk: Arc<dyn checkpoint::Disk>, clock: Rc<HandClock>) -> (Server, HttpClient) {
    let server = Server::start(config(disk), clock).await.unwrap();
    let http = HttpClient::to(server.http_address().unwrap()).await;
    (server, http)
}

fn path(packet: &SignedPacket) -> String {
    format!("/{}", packet.id())
}

/// One datagram there and one back.
async fn exchange(address: SocketAddr, question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(question).await.unwrap();
    let mut bytes = [0; 2000];
    let length = timeout(PATIENCE, socket.recv(&mut bytes)).await.expect("an answer").unwrap();
    bytes[..length].to_vec()
}

/// What DNS has at a name: the code, and the data of each record as text.
async fn resolve(server: &Server, name: &str, kind: TYPE) -> (RCODE, Vec<String>) {
    let answer = exchange(server.dns_address().unwrap(), &query(name, kind)).await;
    let read = Packet::parse(&answer).unwrap();
    let text = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::TXT(text) => String::try_from(text.clone()).unwrap(),
        RData::A(a) => std::net::Ipv4Addr::from(a.address).to_string(),
        other => panic!("{other:?}"),
    };
    (read.rcode(), read.answers.iter().map(text).collect())
}

async fn ask_cold(server: &Server, packet: &SignedPacket) -> Vec<u8> {
    let mut question = Vec::new();
    LookupQuestion { nonce: [5; 8], id: *packet.id().as_bytes() }.write(&mut question);
    exchange(server.local_address(), &question).await
}

/// Every carrier answers with the packet as it was signed.
async fn assert_is_answered(server: &Server, http: &mut HttpClient, packet: &SignedPacket, text: &str) {
    for path in [path(packet), format!("/pkarr/{}", packet.id())] {
        let found = http.get(&path).await;
        assert_eq!((found.status, found.body.as_slice()), (200, packet.packet()));
    }
    let cold = ask_cold(server, packet).await;
    let known = LookupAnswer::read(&cold).unwrap().known;
    assert_eq!(known, Some(Known { packet: packet.packet(), age: 0, expired: false }));
    let finder = Finder::dial(9, server.id(), server.local_address()).await;
    assert_eq!(finder.lookup(packet.id().as_bytes()).await, Ok((packet.packet().to_vec(), 0, false)));

    let (id, ok) = (packet.id(), RCODE::NoError);
    let at = |name: &str| format!("{name}{id}.{ORIGIN}");
    assert_eq!(resolve(server, &at(""), TYPE::A).await, (ok, vec!["192.0.2.9".to_owned()]));
    assert_eq!(resolve(server, &at("_iroh."), TYPE::TXT).await, (ok, vec![text.to_owned()]));
    assert_eq!(resolve(server, &at("_iroh."), TYPE::A).await, (ok, vec![]));
    assert_eq!(resolve(server, &at("_vat."), TYPE::TXT).await, (RCODE::NameError, vec![]));
}

#[test]
fn it_is_put_over_http_answered_by_every_carrier_and_there_again_after_a_restart() {
    on_one_thread(async {
        let (disk, clock) = (SimulatedDisk::new(), HandClock::new());
        let (server, mut http) = start(disk.clone(), clock.clone()).await;
        let packet = foreign(&key(1), START, "relay=https://relay.example");
        let put = http.put(&path(&packet), &[], packet.packet()).await;
        assert_eq!((put.status, put.header("vls-lease")), (204, Some("3600")));
        assert_is_answered(&server, &mut http, &packet, "relay=https://relay.example").await;

        for known in
            [("If-Modified-Since", "Fri, 15 Jan 2027 08:00:00 GMT"), ("If-None-Match", put.header("etag").unwrap())]
        {
            assert_eq!(http.ask("GET", &path(&packet), &[known], b"").await.status, 304, "{known:?}");
        }
        let before = [("If-Modified-Since", "Fri, 15 Jan 2027 07:59:59 GMT")];
        assert_eq!(http.ask("GET", &path(&packet), &before, b"").await.status, 200);
        server.stop().await.unwrap();

        let (server, mut http) = start(disk, clock).await;
        assert_is_answered(&server, &mut http, &packet, "relay=https://relay.example").await;
        server.stop().await.unwrap();
    });
}

#[test]
fn over_http_a_later_one_takes_its_place_and_an_older_one_does_not() {
    on_one_thread(async {
        let (_server, mut http) = start(SimulatedDisk::new(), HandClock::new()).await;
        let micros = |micros| START + Duration::from_micros(micros);
        let [first, second, third] = [0, 1, 2].map(|time| foreign(&key(1), micros(time), "x"));
        let path = path(&first);
        let put = http.put(&path, &[("If-None-Match", "*")], second.packet()).await;
        assert_eq!(put.status, 204);
        let tag = put.header("etag").unwrap().to_owned();
        let older = http.put(&path, &[], first.packet()).await;
        assert_eq!((older.status, older.code(), older.header("etag")), (409, "vls.stale", Some(tag.as_str())));
        let rival = foreign(&key(1), second.timestamp(), "y");
        assert_eq!(http.put(&path, &[], rival.packet()).await.status, 409);
        assert_eq!(http.put(&path, &[("If-None-Match", "*")], third.packet()).await.status, 412);
        let current = if rival.compare(&second).is_gt() { rival } else { second };
        let by_time = current.timestamp().as_micros().to_string();
        assert_eq!(http.put(&path, &[("If-Match", &by_time)], third.packet()).await.status, 204);
        assert_eq!(http.get(&path).await.body, third.packet());
    });
}

#[test]
fn a_vats_record_takes_its_place_at_any_time_and_is_never_replaced_by_one() {
    on_one_thread(async {
        let (server, mut http) = start(SimulatedDisk::new(), HandClock::new()).await;
        let before = foreign(&key(1), START + Duration::from_secs(1), "one");
        assert_eq!(http.put(&path(&before), &[], before.packet()).await.status, 204);
        // Signed earlier, and registered over another carrier.
        let record = record(&key(1), 1, -100);
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        assert_eq!(vat.register(&record).await, Ok(Wire::Stored(3600)));
        let after = foreign(&key(1), START + Duration::from_secs(200), "other");
        for packet in [&before, &after] {
            let refused = http.put(&path(packet), &[], packet.packet()).await;
            assert_eq!((refused.status, refused.code()), (409, "vls.stale"));
        }
        assert_eq!(http.get(&path(&before)).await.body, record.packet());
    });
}

#[test]
fn something_at_the_name_of_a_record_that_is_none_is_refused_however_it_is_signed() {
    on_one_thread(async {
        let (_server, mut http) = start(SimulatedDisk::new(), HandClock::new()).await;
        for (name, text) in [("_vat", "v=1"), ("_vat", "v=2"), ("_vat", "no key"), ("_VAT", "v=1")] {
            let packet = pkarr::SignedPacket::builder()
                .txt("_iroh".try_into().unwrap(), "x=y".try_into().unwrap(), 60)
                .txt(name.try_into().unwrap(), text.try_into().unwrap(), 60)
                .timestamp(START.as_micros().into())
                .sign(&pkarr::Keypair::from_secret_key(&key(1).seed()))
                .unwrap();
            let path = format!("/{}", key(1).id());
            let refused = http.put(&path, &[], &packet.to_relay_payload()).await;
            let code = if text == "v=2" { "record.version" } else { "record.malformed" };
            assert_eq!((refused.status, refused.code()), (400, code), "{name} {text}");
            assert_eq!(http.get(&path).await.status, 404);
        }
    });
}

#[test]
fn its_lease_is_the_policys_and_an_identical_packet_renews_it_for_ever() {
    let mut world = World::new();
    let packet = foreign(&key(1), at(0), "x");
    assert_eq!(world.register_packet(&packet, &Expected::Absent), stored(HOUR));
    for _ in 0..30 * 24 {
        world.wait(HOUR - Duration::from_secs(1));
        assert!(!world.lookup(packet.id()).expired);
        assert_eq!(world.register_packet(&packet, &Expected::Anything), refreshed(HOUR));
    }
    world.restart();
    assert!(!world.lookup(packet.id()).expired);
    world.wait(HOUR);
    assert!(world.lookup(packet.id()).expired);
    assert_eq!(world.register_packet(&packet, &Expected::Anything), refreshed(HOUR), "it has no end of its own");
    let ahead = foreign(&key(2), world.now.wall + Duration::from_secs(301), "x");
    assert_eq!(crate::world::refusal(&world.register_packet(&ahead, &Expected::Anything)), "record.future");
}

#[test]
fn the_mark_that_a_vat_leaves_keeps_it_out_and_its_own_mark_keeps_no_vat_out() {
    let mut world = World::with(Policy { max_records: 1, work: None, ..Policy::default() });
    let record = Draft::default().sign(&key(1));
    let ours = foreign(&key(1), at(100), "x");
    let others = foreign(&key(2), at(100), "x");
    assert_eq!(world.register(&record), stored(HOUR));
    assert_eq!(world.register_packet(&others, &Expected::Anything), stored(HOUR), "the first is given up");
    for _ in 0..2 {
        assert_eq!(world.register_packet(&ours, &Expected::Anything), Outcome::Stale { current: None });
        world.restart();
    }
    assert_eq!(world.register(&record), stored(HOUR), "and now the second");
    let older = foreign(&key(2), at(99), "x");
    assert_eq!(world.register_packet(&older, &Expected::Anything), Outcome::Stale { current: None });
    let vat = Draft { signed: -50, ..Draft::default() }.sign(&key(2));
    assert_eq!(world.register(&vat), stored(HOUR));
}

#[test]
fn two_of_one_time_are_evidence_that_outlives_a_restart_of_a_real_store() {
    on_one_thread(async {
        let (disk, clock) = (SimulatedDisk::new(), HandClock::new());
        let open = |clock| {
            DurableRegistry::open(disk.clone(), Path::new("/store"), key(0).id(), Policy::default(), clock).unwrap()
        };
        let registry = open(clock.clone());
        let mut packets = ["one", "other"].map(|text| foreign(&key(1), at(0), text));
        packets.sort_by(SignedPacket::compare);
        let [lower, higher] = &packets;
        let give = async |registry: &DurableRegistry, packet: &SignedPacket| {
            registry
                .register(None, packet.id().as_bytes(), packet.packet(), &Expected::Anything, &Admission::None)
                .await
                .unwrap()
        };
        assert_eq!(give(&registry, lower).await, stored(HOUR));
        assert_eq!(give(&registry, higher).await, Outcome::Conflict { other: lower.packet().into() });
        registry.close().unwrap();
        drop(registry);

        let registry = open(clock.in_new_process());
        assert_eq!(give(&registry, lower).await, Outcome::Conflict { other: higher.packet().into() });
        let answer = registry.lookup(higher.id().as_bytes()).await.unwrap();
        assert_eq!((answer.packet.as_deref(), answer.expired), (Some(higher.packet()), false));
        registry.close().unwrap();
    });
}

#[test]
fn a_packet_for_which_no_signature_was_checked_costs_a_token_like_any_other() {
    // A packet of another key's is well-formed for every id: only its signature tells.
    let packet = foreign(&key(1), at(0), "x");
    let source = Some([198, 51, 100, 7].into());
    let checks = vls_server::registry::Rate { burst: 2, ..Policy::default().signature_checks };
    let mut registry = Registry::new(Policy { signature_checks: checks, ..Policy::default() }, Seed::of([1; 32]));
    let now = World::new().now;
    let codes: Vec<_> = (2..6)
        .map(|vat| {
            let decision = registry.register(
                now,
                source,
                key(vat).id().as_bytes(),
                packet.packet(),
                &Expected::Anything,
                &Admission::None,
            );
            crate::world::refusal(&decision.outcome.reveal(0).unwrap())
        })
        .collect();
    assert_eq!(codes, ["record.forged", "record.forged", "vls.quota", "vls.quota"]);
}
