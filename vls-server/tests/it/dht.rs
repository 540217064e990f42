//! Servers in the Mainline DHT: one of a handful of nodes on loopback, all of which are the `mainline` crate's own.

use std::{net::Ipv4Addr, rc::Rc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use mainline::{MutableItem, SigningKey, Testnet, async_dht::AsyncDht};
use rustix::process::Signal;
use schemas::{
    SearchPathEntry, SignedPacket, SignedRecord,
    datagram::{LookupAnswer, LookupQuestion},
};
use tokio::{net::UdpSocket, task::yield_now, time::timeout};
use vls_server::{Bootstrap, Clock, DhtConfig, Reached, Server, ServerConfig, SystemClock};

use crate::{
    finder::{Expect, Finder, Found, Wire},
    http_client::HttpClient,
    local::{HandClock, START, foreign, key, on_one_thread, record, record_at},
    program::{run, text},
    supervised::Supervised,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to answer.
const REQUEST: Duration = Duration::from_millis(500);
const NOTHING: Found = (Vec::new(), 0, false);

/// Its nodes run on threads of their own.
fn testnet() -> Testnet {
    Testnet::builder(6).build().unwrap()
}

fn bootstrap(testnet: &Testnet) -> Vec<Bootstrap> {
    testnet.bootstrap.iter().map(|node| node.parse().unwrap()).collect()
}

fn config(testnet: &Testnet) -> ServerConfig {
    let loopback = (Ipv4Addr::LOCALHOST, 0).into();
    let mut config = ServerConfig::new(loopback, "/data".into());
    config.disk = SimulatedDisk::new();
    config.http = Some(loopback);
    config.peers_deadline = PATIENCE / 2;
    let mut dht = DhtConfig::beside(loopback);
    dht.bootstrap = bootstrap(testnet);
    // Some of what nodes tell each other of is gone, or never was.
    dht.request_timeout = REQUEST;
    // And a busy machine may be late.
    dht.retry = Duration::ZERO;
    dht.pace = Duration::from_millis(1);
    dht.sweep = Duration::from_millis(20);
    config.dht = Some(dht);
    config
}

async fn start(testnet: &Testnet, clock: &Rc<HandClock>) -> Server {
    Server::start(config(testnet), clock.clone()).await.unwrap()
}

/// A client that knows only the DHT.
fn outsider(testnet: &Testnet) -> AsyncDht {
    let mut builder = mainline::Dht::builder();
    builder.bootstrap(&testnet.bootstrap).bind_address(Ipv4Addr::LOCALHOST).port(0);
    builder.request_timeout(REQUEST);
    builder.build().unwrap().as_async()
}

async fn finder(n: u32, server: &Server) -> Finder {
    Finder::dial(n, server.id(), server.local_address()).await
}

/// Waits until the server has put so many packets into the DHT.
async fn stored(server: &Server, count: u64) {
    let all = async {
        while server.status().dht.unwrap().stored < count {
            yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.expect("it is put there");
}

/// Waits until somebody who looks for this in the DHT finds it.
async fn is_there(dht: &AsyncDht, packet: &SignedPacket) {
    let is_it = |found: MutableItem| found == item(packet);
    let found = async { while !dht.get_mutable_most_recent(packet.id().as_bytes(), None).await.is_some_and(is_it) {} };
    timeout(PATIENCE, found).await.expect("it is there");
}

async fn put(dht: &AsyncDht, item: MutableItem) {
    let all = async { while dht.put_mutable(item.clone(), None).await.is_err() {} };
    timeout(PATIENCE, all).await.expect("somebody takes it");
}

fn item(packet: &SignedPacket) -> MutableItem {
    let (signature, rest) = packet.packet().split_first_chunk().unwrap();
    let sequence = i64::try_from(packet.timestamp().as_micros()).unwrap();
    MutableItem::new_signed_unchecked(*packet.id().as_bytes(), *signature, &rest[8..], sequence, None)
}

fn packet_of(record: &SignedRecord) -> SignedPacket {
    SignedPacket::verify(record.id(), record.packet()).unwrap()
}

#[test]
fn what_is_registered_at_one_is_found_through_another_that_knows_only_the_dht_by_every_carrier_that_waits() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let (first, second) = (start(&testnet, &clock).await, start(&testnet, &clock).await);
        let records = [1, 2, 3].map(|n| record(&key(n), 1, 0));
        let vat = finder(1, &first).await;
        for record in &records {
            assert_eq!(vat.register(record).await, Ok(Wire::Stored(3600)));
        }
        stored(&first, 3).await;
        let [by_session, by_http, by_datagram] = &records;
        let found = finder(2, &second).await.lookup(by_session.id().as_bytes()).await;
        assert_eq!(found, Ok((by_session.packet().to_vec(), 0, false)));

        let mut http = HttpClient::to(second.http_address().unwrap()).await;
        let answer = http.get(&format!("/{}", by_http.id())).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, by_http.packet()));

        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(second.local_address()).await.unwrap();
        let mut question = Vec::new();
        LookupQuestion { nonce: [5; 8], id: *by_datagram.id().as_bytes() }.write(&mut question);
        socket.send(&question).await.unwrap();
        let mut bytes = [0; 2000];
        let length = timeout(PATIENCE, socket.recv(&mut bytes)).await.expect("an answer").unwrap();
        let known = LookupAnswer::read(&bytes[..length]).unwrap().known.expect("it is found");
        assert_eq!((known.packet, known.expired), (by_datagram.packet(), false));
        // Whoever has only found something there does not put it there.
        assert_eq!(second.status().dht.unwrap().stored, 0);
        assert_eq!(second.status().dht.unwrap().reached, Reached::Open);
        first.stop().await.unwrap();
        second.stop().await.unwrap();
    });
}

#[test]
fn what_is_found_is_held_for_minutes_and_looked_up_again_for_as_long_as_it_is_there() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let server = start(&testnet, &clock).await;
        let dht = outsider(&testnet);
        let packet = foreign(&key(1), START, "x");
        put(&dht, item(&packet)).await;
        let finder = finder(2, &server).await;
        // Its age is that of its signature, or as much as can be if it is to be answered.
        for (wait, age) in [(0, 0), (30, 30 * 60), (300, 55 * 60)] {
            clock.wait(Duration::from_mins(wait));
            let found = finder.lookup(packet.id().as_bytes()).await;
            assert_eq!(found, Ok((packet.packet().to_vec(), age, false)));
            let answer = server.registry().lookup(packet.id().as_bytes()).await.unwrap();
            assert_eq!(answer.left, Duration::from_mins(5));
        }
        // A vat's record takes its place, however late the other one was signed.
        let record = record(&key(1), 1, -100);
        finder.register(&record).await.unwrap();
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok((record.packet().to_vec(), 0, false)));
    });
}

#[test]
fn what_the_rules_refuse_is_not_found_there_either_and_what_nobody_knows_is_not_looked_up_again_at_once() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let server = start(&testnet, &clock).await;
        let dht = outsider(&testnet);
        let finder = finder(2, &server).await;
        // Signed ahead of time; over; and something that is no packet, signed all the same.
        let (ahead, over) = (packet_of(&record(&key(1), 1, 400)), packet_of(&record(&key(2), 1, -11 * 24 * 3600)));
        let signer = SigningKey::from_bytes(&key(3).seed());
        for item in [item(&ahead), item(&over), MutableItem::new(signer, b"no packet", 7, None)] {
            put(&dht, item).await;
        }
        for n in [1, 2, 3, 4] {
            assert_eq!(finder.lookup(key(n).id().as_bytes()).await, Ok(NOTHING), "{n}");
        }
        assert_eq!(server.status().records, 0);
        // There since.
        let record = record(&key(4), 1, 0);
        put(&dht, item(&packet_of(&record))).await;
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(NOTHING));
        clock.wait(Duration::from_secs(31));
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok((record.packet().to_vec(), 31, false)));
    });
}

#[test]
fn what_is_held_is_put_there_again_within_the_hour_and_not_before_and_a_newer_one_at_once() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let server = start(&testnet, &clock).await;
        let dht = outsider(&testnet);
        let vat = finder(1, &server).await;
        let [first, second] = [1, 2].map(|epoch| record_at(START + Duration::from_secs(epoch), &key(1), epoch, 0));
        vat.register(&first).await.unwrap();
        stored(&server, 1).await;
        is_there(&dht, &packet_of(&first)).await;
        // A renewal has nothing new. What comes after it is put after it would have been.
        clock.wait(Duration::from_mins(30));
        assert_eq!(vat.renew(first.order()).await, Ok(Wire::Refreshed(3600)));
        let other = record(&key(2), 1, 0);
        vat.register(&other).await.unwrap();
        stored(&server, 2).await;
        is_there(&dht, &packet_of(&other)).await;
        clock.wait(Duration::from_mins(10));
        vat.register(&second).await.unwrap();
        stored(&server, 3).await;
        is_there(&dht, &packet_of(&second)).await;
        clock.wait(Duration::from_mins(20));
        assert_eq!(vat.register(&other).await, Ok(Wire::Refreshed(3600)));
        // Nobody registers, and the table is gone through.
        clock.wait(Duration::from_mins(35));
        stored(&server, 4).await;
        server.stop().await.unwrap();
    });
}

#[test]
fn what_has_ended_here_and_is_found_there_is_answered_and_not_put_there_again() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let server = start(&testnet, &clock).await;
        let vat = finder(1, &server).await;
        let [dead, other] = [1, 2].map(|n| record(&key(n), 1, 0));
        vat.register(&dead).await.unwrap();
        stored(&server, 1).await;
        clock.wait(Duration::from_mins(61));
        // The nodes there have it still.
        let found = vat.lookup(dead.id().as_bytes()).await;
        assert_eq!(found, Ok((dead.packet().to_vec(), 55 * 60, false)));
        // The table is gone through meanwhile, again and again.
        vat.register(&other).await.unwrap();
        stored(&server, 2).await;
        is_there(&outsider(&testnet), &packet_of(&other)).await;
        assert_eq!(server.status().dht.unwrap().stored, 2);
        // Until the vat itself is back.
        assert_eq!(vat.register(&dead).await, Ok(Wire::Refreshed(3600)));
        stored(&server, 3).await;
    });
}

#[test]
fn a_server_that_publishes_learns_of_what_is_newer_there_and_leaves_it() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let dht = outsider(&testnet);
        let [older, newer] = [0, 5].map(|signed| record(&key(1), 1, signed));
        put(&dht, item(&packet_of(&newer))).await;
        let server = start(&testnet, &clock).await;
        let vat = finder(1, &server).await;
        let (mut told, _watch) = vat.watch(older.id().as_bytes()).await.unwrap();
        told.next().await;
        vat.register(&older).await.unwrap();
        while told.next().await.0.0 != newer.packet() {}
        assert_eq!(vat.register(&older).await, Ok(Wire::Stale(newer.packet().to_vec())));
        stored(&server, 1).await;
        is_there(&dht, &packet_of(&newer)).await;
    });
}

#[test]
fn one_network_may_cause_a_few_lookups_and_what_is_held_is_answered_all_the_same() {
    let testnet = testnet();
    on_one_thread(async {
        let clock = HandClock::new();
        let server = start(&testnet, &clock).await;
        let finder = finder(2, &server).await;
        let record = record(&key(1), 1, 0);
        finder.register(&record).await.unwrap();
        let ids: Vec<[u8; 32]> = (100..140).map(|n| *key(n).id().as_bytes()).collect();
        let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
        assert_eq!(finder.lookup_many(&ids).await, Ok(vec![NOTHING; 40]));
        let mut http = HttpClient::to(server.http_address().unwrap()).await;
        let metrics = text(&http.get("/metrics").await.body);
        let count = |outcome: &str| {
            let name = format!("vls_dht_total{{outcome=\"{outcome}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
        };
        assert_eq!(count("unknown"), 16, "the burst of one network: {metrics}");
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok((record.packet().to_vec(), 0, false)));
    });
}

#[test]
fn a_dht_that_cannot_be_joined_delays_one_answer_and_no_registration() {
    on_one_thread(async {
        let clock = HandClock::new();
        let mut config = ServerConfig::new((Ipv4Addr::LOCALHOST, 0).into(), "/data".into());
        config.disk = SimulatedDisk::new();
        let mut dht = DhtConfig::beside(config.listen);
        dht.bootstrap = vec!["nowhere.invalid:6881".parse().unwrap()];
        config.dht = Some(dht);
        let mut server = Server::start(config.clone(), clock).await.unwrap();
        let finder = finder(2, &server).await;
        assert_eq!(finder.register(&record(&key(1), 1, 0)).await, Ok(Wire::Stored(3600)));
        assert_eq!(finder.lookup(key(2).id().as_bytes()).await, Ok(NOTHING));
        assert_ne!(server.status().dht.unwrap().reached, Reached::Open);
        config.dht = None;
        server.reload(&config).await.unwrap();
        assert_eq!(server.status().dht, None);
        timeout(PATIENCE, server.stop()).await.unwrap().unwrap();
    });
}

#[test]
fn a_node_of_the_dht_is_a_name_or_an_address_of_ipv4_and_a_port() {
    for good in ["router.bittorrent.com:6881", "192.0.2.1:1", "localhost:65535"] {
        assert_eq!(good.parse::<Bootstrap>().unwrap().to_string(), good);
    }
    for bad in
        ["", "localhost", "localhost:", ":6881", "localhost:0", "localhost:65536", "[::1]:6881", "a b:1", "a..b:1"]
    {
        assert!(bad.parse::<Bootstrap>().is_err(), "{bad}");
    }
}

#[test]
fn a_confined_server_joins_the_dht_that_its_file_names_and_leaves_it_when_that_is_taken_back() {
    let testnet = testnet();
    let nodes: Vec<String> = testnet.bootstrap.iter().map(|node| node.replace("127.0.0.1", "localhost")).collect();
    assert!(nodes.iter().all(|node| node.starts_with("localhost:")));
    let settings = format!("dht = true\ndht_bootstrap = {nodes:?}\n");
    let (first, mut second) = (Supervised::start(&settings), Supervised::start(""));
    assert!(second.status()["dht"].is_null(), "it is off unless it is wanted");
    second.reload(&settings);
    let shown = text(&run(&["config", "show", "--config", &second.config()]).stdout);
    assert!(shown.lines().any(|line| line.starts_with("dht_bootstrap") && line.contains(&nodes[0])), "{shown}");
    let record = record_at(SystemClock.now().wall, &key(1), 1, 0);
    on_one_thread(async {
        let SearchPathEntry::Vls { id, port, .. } = first.running.entry() else { unreachable!() };
        let vat = Finder::dial(1, id, (Ipv4Addr::LOCALHOST, port).into()).await;
        vat.register_bytes(record.id().as_bytes(), record.packet(), Expect::Absent).await.unwrap();
        while first.status()["dht"]["stored"] == 0 {}
        let finder = Finder::dial_entry(2, &second.running.line).await;
        assert_eq!(finder.lookup(record.id().as_bytes()).await.unwrap().0, record.packet());
    });
    let human = text(&run(&["status", "--config", &second.config()]).stdout);
    assert!(
        human.lines().any(|line| line.starts_with("Mainline DHT") && line.contains("open, 0 put there")),
        "{human}"
    );
    second.reload("");
    assert!(second.status()["dht"].is_null());
    second.running.signal(Signal::TERM);
    assert_eq!(second.running.ended().0.code(), Some(0));
}
