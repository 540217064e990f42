//! Records over DNS: UDP, TCP and HTTPS around the same answers.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use data_encoding::BASE64URL_NOPAD;
use schemas::SignedRecord;
use simple_dns::{Packet, PacketFlag, RCODE, ResourceRecord, TYPE, rdata::RData};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::spawn_local,
    time::timeout,
};
use vls_server::{Server, ServerConfig, registry::Rate};

use crate::{
    dns_core::{ORIGIN, query},
    finder::{Finder, Wire},
    held_disk::{held_disk_over, hold},
    http_client::HttpClient,
    local::{HandClock, key, on_one_thread, record},
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn start(config: ServerConfig) -> (Server, Rc<HandClock>) {
    let clock = HandClock::new();
    (Server::start(config, clock.clone()).await.unwrap(), clock)
}

/// With HTTP and DNS.
pub(crate) fn config(disk: Arc<dyn checkpoint::Disk>) -> ServerConfig {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = ServerConfig::new(any, "/data".into());
    config.disk = disk;
    config.http = Some(any);
    config.dns = Some(any);
    config.dns_origin = Some(ORIGIN.parse().unwrap());
    config
}

struct Resolver(UdpSocket);

impl Resolver {
    async fn of(server: &Server) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        socket.connect(server.dns_address().unwrap()).await.unwrap();
        Self(socket)
    }

    async fn send(&self, query: &[u8]) {
        self.0.send(query).await.unwrap();
    }

    async fn answer(&self) -> Vec<u8> {
        let mut bytes = [0; 4096];
        let length = timeout(PATIENCE, self.0.recv(&mut bytes)).await.expect("an answer").unwrap();
        bytes[..length].to_vec()
    }

    async fn ask(&self, query: &[u8]) -> Vec<u8> {
        self.send(query).await;
        self.answer().await
    }
}

async fn ask_stream(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    let length = u16::try_from(query.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

fn name_of(record: &SignedRecord) -> String {
    format!("_vat.{}.{ORIGIN}", record.id())
}

/// The strings of an answer, in order.
fn strings(message: &[u8]) -> Vec<String> {
    let read = Packet::parse(message).unwrap();
    assert_eq!(read.rcode(), RCODE::NoError);
    let text = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::TXT(text) => String::try_from(text.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    read.answers.iter().map(text).collect()
}

#[test]
fn what_a_vat_registers_is_found_over_udp_tcp_and_https_until_its_lease_ends() {
    on_one_thread(async {
        let (server, clock) = start(config(SimulatedDisk::new())).await;
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        let record = record(&key(1), 7, 0);
        let asked = query(&name_of(&record), TYPE::TXT);
        let resolver = Resolver::of(&server).await;
        assert_eq!(Packet::parse(&resolver.ask(&asked).await).unwrap().rcode(), RCODE::NameError);
        assert_eq!(vat.register(&record).await, Ok(Wire::Stored(3600)));

        let over_udp = resolver.ask(&asked).await;
        let found = strings(&over_udp);
        assert!(found.contains(&"e=7".to_owned()) && found.contains(&"st=live".to_owned()), "{found:?}");
        let mut stream = TcpStream::connect(server.dns_address().unwrap()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(ask_stream(&mut stream, &asked).await, over_udp);
        }
        let mut http = HttpClient::to(server.http_address().unwrap()).await;
        let encoded = BASE64URL_NOPAD.encode(&asked);
        let got = http.get(&format!("/dns-query?dns={encoded}")).await;
        assert_eq!((got.status, &got.body), (200, &over_udp));
        assert_eq!(got.header("content-type"), Some("application/dns-message"));
        assert_eq!(got.header("cache-control"), Some("public, max-age=30"));
        let posted = http.ask("POST", "/dns-query", &[("Content-Type", "application/dns-message")], &asked).await;
        assert_eq!((posted.status, posted.body), (200, over_udp));
        for (method, path, kind, body, status) in [
            ("POST", "/dns-query", "text/plain", asked.as_slice(), 415),
            ("GET", "/dns-query", "x", b"", 400),
            ("GET", "/dns-query?dns=%%%", "x", b"", 400),
            ("GET", "/dns-query?dns=AAAA", "x", b"", 400),
            ("PUT", "/dns-query", "x", b"x", 405),
        ] {
            let answer = http.ask(method, path, &[("Content-Type", kind)], body).await;
            assert_eq!((answer.status, answer.code()), (status, "http.request"), "{method} {path}");
        }

        clock.wait(Duration::from_hours(1));
        assert_eq!(Packet::parse(&resolver.ask(&asked).await).unwrap().rcode(), RCODE::NameError);
        server.stop().await.unwrap();
    });
}

#[test]
fn what_is_not_durable_is_answered_when_it_is_and_not_before() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let (server, _clock) = start(config(disk.clone())).await;
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        let resolver = Resolver::of(&server).await;
        let record = record(&key(1), 1, 0);
        let asked = query(&name_of(&record), TYPE::TXT);
        let held = hold(&disk);
        let registering = spawn_local({
            let record = record.clone();
            async move { vat.register(&record).await }
        });
        while server.registry().counts().0 == 0 {
            tokio::task::yield_now().await;
        }
        let address = server.dns_address().unwrap();
        let over_tcp = spawn_local({
            let asked = asked.clone();
            async move { ask_stream(&mut TcpStream::connect(address).await.unwrap(), &asked).await }
        });
        resolver.send(&asked).await;
        // What is known is answered at once, so the question before it has been looked at.
        let zone = resolver.ask(&query(ORIGIN, TYPE::SOA)).await;
        assert!(matches!(Packet::parse(&zone).unwrap().answers[0].rdata, RData::SOA(_)));
        assert!(!registering.is_finished() && !over_tcp.is_finished());
        drop(held);
        let answer = resolver.answer().await;
        assert!(strings(&answer).contains(&"e=1".to_owned()));
        assert_eq!(over_tcp.await.unwrap(), answer);
        assert_eq!(registering.await.unwrap(), Ok(Wire::Stored(3600)));
    });
}

#[test]
fn who_asks_too_fast_by_udp_is_told_every_second_time_to_come_by_tcp() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.dns_limits.answers = Rate { burst: 4, interval: Duration::from_secs(10) };
        let (server, clock) = start(config).await;
        let resolver = Resolver::of(&server).await;
        let asked = query(ORIGIN, TYPE::SOA);
        for _ in 0..4 {
            assert_eq!(Packet::parse(&resolver.ask(&asked).await).unwrap().answers.len(), 1);
        }
        for _ in 0..10 {
            resolver.send(&asked).await;
        }
        for _ in 0..5 {
            let slipped = resolver.answer().await;
            let read = Packet::parse(&slipped).unwrap();
            assert!(read.has_flags(PacketFlag::TRUNCATION) && read.answers.is_empty() && slipped.len() <= asked.len());
        }
        let mut stream = TcpStream::connect(server.dns_address().unwrap()).await.unwrap();
        assert_eq!(Packet::parse(&ask_stream(&mut stream, &asked).await).unwrap().answers.len(), 1);
        clock.wait(Duration::from_secs(10));
        let next = resolver.ask(&asked).await;
        assert_eq!(Packet::parse(&next).unwrap().answers.len(), 1, "five were slipped, and none is left over");
    });
}

/// Whether the other side closes.
async fn closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    // A connection that was closed with something unread is reset.
    timeout(PATIENCE, stream.read(&mut byte)).await.expect("closed").unwrap_or(0) == 0
}

#[test]
fn tcp_connections_that_say_nothing_are_closed() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.dns_limits.idle = Duration::from_millis(200);
        let (server, _clock) = start(config).await;
        let mut silent = TcpStream::connect(server.dns_address().unwrap()).await.unwrap();
        assert!(closed(&mut silent).await);
    });
}

#[test]
fn tcp_connections_that_say_too_much_are_closed_and_the_idle_make_room() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.dns_limits.connections = 2;
        let (server, _clock) = start(config).await;
        let address = server.dns_address().unwrap();
        let connect = || async move { TcpStream::connect(address).await.unwrap() };
        let mut long = connect().await;
        long.write_all(&1233_u16.to_be_bytes()).await.unwrap();
        assert!(closed(&mut long).await);
        let asked = query(ORIGIN, TYPE::SOA);
        let (mut first, mut second) = (connect().await, connect().await);
        ask_stream(&mut first, &asked).await;
        ask_stream(&mut second, &asked).await;
        let mut third = connect().await;
        ask_stream(&mut third, &asked).await;
        assert!(closed(&mut first).await);
        ask_stream(&mut second, &asked).await;
    });
}

#[test]
fn an_address_for_dns_without_a_zone_is_refused_and_names_are_checked() {
    use vls_server::dns::DomainName;
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.dns_origin = None;
        let error = Server::start(config, HandClock::new()).await.unwrap_err();
        assert_eq!(schemas::Coded::code(&error).as_str(), "cli.usage");
    });
    assert_eq!("VLS.Example.org.".parse::<DomainName>().unwrap().to_string(), ORIGIN);
    for text in ["", ".", "a..b", "-a.b", "a b", "ä.org", &format!("{}.org", "x".repeat(64)), &"x.".repeat(100)] {
        assert!(text.parse::<DomainName>().is_err(), "{text:?}");
    }
}
