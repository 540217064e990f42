//! Records over DNS: the core against queries right, wrong and random; UDP, TCP and HTTPS around it.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use schemas::SignedRecord;
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{A, CNAME, OPT, RData, TXT},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::spawn_local,
    time::timeout,
};
use vls_server::{
    Server, ServerConfig,
    dns::{Answer, Known, Transport, Zone, answer},
    registry::Rate,
};

use crate::{
    finder::{Finder, Wire},
    held_disk::{held_disk_over, hold},
    http_client::HttpClient,
    local::{HandClock, key, on_one_thread, record},
};

const ORIGIN: &str = "vls.example.org";
const PATIENCE: Duration = Duration::from_secs(20);

fn zone() -> Zone {
    Zone::new(ORIGIN.parse().unwrap(), "host.example.org".parse().unwrap(), 7)
}

/// A query as resolvers send it: with EDNS, wanting recursion.
fn query_with(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut packet = Packet::new_query(0x1234);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let kind = QTYPE::TYPE(TYPE::from(kind));
    packet.questions.push(Question::new(Name::new_unchecked(name), kind, QCLASS::CLASS(CLASS::IN), false));
    *packet.opt_mut() = edns.map(|udp_packet_size| OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    packet.build_bytes_vec().unwrap()
}

fn query(name: &str, kind: TYPE) -> Vec<u8> {
    query_with(name, kind.into(), Some(1232))
}

/// A packet that is not about a vat alone: what it may hold beside our strings. Only its DNS part is looked at.
fn packet(id: &str, ttl: u32, texts: usize) -> Vec<u8> {
    let mut packet = Packet::new_reply(0);
    let names =
        [format!("_vat.{id}"), format!("_iroh.{id}"), id.to_owned(), format!("a.b.{id}"), format!("alias.{id}")];
    let [vat, iroh, apex, deep, alias] = &names;
    let mut put = |name: &'static str, data| {
        packet.answers.push(ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, data));
    };
    // Leaked: names borrow, and a test ends soon.
    let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    for n in 0..texts {
        let text = leak(&format!("v={n}-{}", "x".repeat(100)));
        put(leak(vat), RData::TXT(TXT::new().with_string(text).unwrap()));
    }
    put(leak(iroh), RData::TXT(TXT::new().with_string("relay=https://relay.example").unwrap()));
    put(leak(apex), RData::A(A { address: 0xC000_0207 }));
    put(leak(deep), RData::A(A { address: 0xC000_0208 }));
    put(leak(alias), RData::CNAME(CNAME(Name::new_unchecked("elsewhere.example"))));
    [vec![0; 72], packet.build_bytes_vec_compressed().unwrap()].concat()
}

fn ask(query: &[u8], transport: Transport, known: &Known) -> Answer {
    answer(&zone(), query, transport, |_| known.clone())
}

fn reply(query: &[u8], known: &Known) -> Vec<u8> {
    match ask(query, Transport::Datagram, known) {
        Answer::Reply { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

fn known() -> (String, Known) {
    let id = key(1).id().to_string();
    let packet = packet(&id, 30, 1);
    (id, Known::Record { packet, left: Duration::from_secs(1000) })
}

#[test]
fn what_the_packet_holds_is_served_below_the_origin() {
    let (id, known) = known();
    for (name, kind, answers) in [
        (format!("_vat.{id}.{ORIGIN}"), TYPE::TXT, 1),
        (format!("_iroh.{id}.{ORIGIN}"), TYPE::TXT, 1),
        (format!("{id}.{ORIGIN}"), TYPE::A, 1),
        (format!("a.b.{id}.{ORIGIN}"), TYPE::A, 1),
        (format!("alias.{id}.{ORIGIN}"), TYPE::AAAA, 1),
        (format!("alias.{id}.{ORIGIN}"), TYPE::CNAME, 1),
    ] {
        let message = reply(&query(&name, kind), &known);
        let read = Packet::parse(&message).unwrap();
        assert_eq!((read.rcode(), read.answers.len(), read.id()), (RCODE::NoError, answers, 0x1234), "{name}");
        assert_eq!(read.answers[0].name.to_string(), name);
        assert!(read.has_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_DESIRED));
        assert!(!read.has_flags(PacketFlag::TRUNCATION) && !read.has_flags(PacketFlag::RECURSION_AVAILABLE));
        assert_eq!(read.opt().unwrap().udp_packet_size, 1232);
    }
}

#[test]
fn nodata_is_not_nxdomain_and_both_say_for_how_long() {
    let (id, known) = known();
    let nothing = Known::Nothing;
    for (name, kind, known, code) in [
        (format!("_vat.{id}.{ORIGIN}"), TYPE::A, &known, RCODE::NoError),
        (format!("{id}.{ORIGIN}"), TYPE::TXT, &known, RCODE::NoError),
        // Nothing of its own, but something below it.
        (format!("b.{id}.{ORIGIN}"), TYPE::A, &known, RCODE::NoError),
        (ORIGIN.to_owned(), TYPE::A, &known, RCODE::NoError),
        (format!("c.{id}.{ORIGIN}"), TYPE::A, &known, RCODE::NameError),
        (format!("_vat.{id}.{ORIGIN}"), TYPE::TXT, &nothing, RCODE::NameError),
        (format!("www.{ORIGIN}"), TYPE::A, &known, RCODE::NameError),
        (format!("{}.{ORIGIN}", "y".repeat(51)), TYPE::A, &known, RCODE::NameError),
    ] {
        let Answer::Reply { message, time_to_live } = ask(&query(&name, kind), Transport::Datagram, known) else {
            panic!("{name}")
        };
        let read = Packet::parse(&message).unwrap();
        assert_eq!((read.rcode(), read.answers.len()), (code, 0), "{name}");
        let [authority] = read.name_servers.as_slice() else { panic!("{name}: {:?}", read.name_servers) };
        assert_eq!((authority.name.to_string().as_str(), authority.ttl, time_to_live), (ORIGIN, 10, 10));
        assert!(matches!(&authority.rdata, RData::SOA(soa) if soa.minimum == 10 && soa.serial == 7));
    }
}

#[test]
fn the_zone_tells_of_itself_and_of_nothing_else() {
    let nothing = Known::Nothing;
    let soa = reply(&query(ORIGIN, TYPE::SOA), &nothing);
    assert!(matches!(&Packet::parse(&soa).unwrap().answers[0].rdata, RData::SOA(soa)
        if soa.mname.to_string() == "host.example.org" && soa.rname.to_string() == "hostmaster.vls.example.org"));
    let servers = reply(&query(ORIGIN, TYPE::NS), &nothing);
    assert!(matches!(&Packet::parse(&servers).unwrap().answers[0].rdata, RData::NS(ns)
        if ns.0.to_string() == "host.example.org"));
    for name in ["example.org", "org", "", "xvls.example.org", "vls.example.com", "host.example.org"] {
        let refused = reply(&query(name, TYPE::TXT), &nothing);
        let read = Packet::parse(&refused).unwrap();
        assert_eq!((read.rcode(), read.name_servers.len()), (RCODE::Refused, 0), "{name}");
        assert!(!read.has_flags(PacketFlag::AUTHORITATIVE_ANSWER));
    }
    // Transfers of the zone, and everything at once.
    for kind in [251, 252, 255] {
        let refused = reply(&query_with(ORIGIN, kind, None), &nothing);
        assert_eq!(refused[3] & 0xf, 5, "{kind}");
    }
}

#[test]
fn the_question_comes_back_byte_for_byte_in_every_case_and_type() {
    let (id, known) = known();
    let mixed: String = format!("_VaT.{id}.{ORIGIN}")
        .char_indices()
        .map(|(n, letter)| if n % 3 == 0 { letter.to_ascii_uppercase() } else { letter })
        .collect();
    let asked = query(&mixed, TYPE::TXT);
    let message = reply(&asked, &known);
    assert_eq!(message[12..12 + mixed.len() + 6], asked[12..12 + mixed.len() + 6]);
    let read = Packet::parse(&message).unwrap();
    assert_eq!((read.answers.len(), read.answers[0].name.to_string()), (1, mixed.clone()));
    // A type of the future exists nowhere, and a class of the past is not served.
    let future = query_with(&mixed, 65_280, None);
    let message = reply(&future, &known);
    assert_eq!((message[3] & 0xf, &message[12..12 + mixed.len() + 6]), (0, &future[12..12 + mixed.len() + 6]));
    let mut chaos = query_with("version.bind", 16, None);
    let end = chaos.len();
    chaos[end - 1] = 3;
    let message = reply(&chaos, &known);
    assert_eq!((message[3] & 0xf, &message[12..]), (5, &chaos[12..]));
}

#[test]
fn no_answer_is_longer_than_the_asker_or_the_path_can_take() {
    let id = key(1).id().to_string();
    let name = format!("_vat.{id}.{ORIGIN}");
    for (texts, edns, limit, whole) in [
        (1, None, 512, true),
        (6, None, 512, false),
        (6, Some(100), 512, false),
        (6, Some(1232), 1232, true),
        (12, Some(4096), 1232, false),
    ] {
        let known = Known::Record { packet: packet(&id, 30, texts), left: Duration::from_secs(9) };
        let asked = query_with(&name, 16, edns);
        let message = reply(&asked, &known);
        let read = Packet::parse(&message).unwrap();
        assert!(message.len() <= limit, "{} bytes of {limit}", message.len());
        assert_eq!(read.has_flags(PacketFlag::TRUNCATION), !whole, "{texts} texts, {edns:?}");
        assert_eq!(read.answers.len(), if whole { texts } else { 0 });
        let Answer::Reply { message, time_to_live } = ask(&asked, Transport::Stream, &known) else { panic!() };
        assert_eq!(
            (Packet::parse(&message).unwrap().answers.len(), time_to_live),
            (texts, 9),
            "no longer than the lease"
        );
    }
}

#[test]
fn queries_that_are_none_are_refused_or_met_with_silence() {
    let good = query(&format!("_vat.{}.{ORIGIN}", key(1).id()), TYPE::TXT);
    let changed = |changes: &[(usize, u8)]| {
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        match ask(&bytes, Transport::Datagram, &Known::Nothing) {
            Answer::Reply { message, .. } => {
                assert_eq!(message[..2], bytes[..2]);
                assert_eq!(message[2] & 0x80, 0x80);
                Some(message[3] & 0xf)
            }
            Answer::None => None,
            Answer::Later => panic!(),
        }
    };
    assert_eq!(changed(&[]), Some(3));
    assert_eq!(changed(&[(2, 0x80)]), None, "an answer is not answered");
    assert_eq!(changed(&[(2, 0x28)]), Some(4), "an update is not implemented");
    assert_eq!(changed(&[(3, 0x40)]), Some(3), "a bit that is reserved means nothing");
    for (at, byte) in [(4, 1), (5, 0), (5, 2), (7, 1), (9, 1), (11, 9), (12, 0xC0), (12, 0x40), (12, 63)] {
        assert_eq!(changed(&[(at, byte)]), Some(1), "byte {at} is {byte:#x}");
    }
    // A name that points to itself, and one that points ahead.
    assert_eq!(changed(&[(12, 0xC0), (13, 12)]), Some(1));
    assert_eq!(changed(&[(12, 0xC0), (13, 14)]), Some(1));
    let mut version_one = query(ORIGIN, TYPE::SOA);
    let at = version_one.len() - 5;
    version_one[at] = 1;
    let message = reply(&version_one, &Known::Nothing);
    assert_eq!((message[3] & 0xf, Packet::parse(&message).unwrap().rcode()), (0, RCODE::BADVERS));
    for length in 0..good.len() {
        match ask(&good[..length], Transport::Datagram, &Known::Nothing) {
            Answer::None => assert!(length < 12),
            Answer::Reply { message, .. } => assert!(length >= 12 && message.len() == 12 && message[3] & 0xf == 1),
            Answer::Later => panic!(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn junk_is_survived_and_answered_with_no_more_than_is_allowed(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        header in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if header && bytes.len() >= 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        }
        let (_, known) = known();
        if let Answer::Reply { message, .. } = ask(&bytes, Transport::Datagram, &known) {
            prop_assert!(message.len() <= 1232 && message.len() <= bytes.len() + 200);
            prop_assert_eq!(&message[..2], &bytes[..2]);
            prop_assert_eq!(message[2] & 0x80, 0x80);
        }
    }

    #[test]
    fn a_good_query_with_a_few_bytes_changed_is_survived_and_its_question_kept(
        changes in prop::collection::vec((0_usize..110, any::<u8>()), 0..6),
        stream in any::<bool>(),
    ) {
        let (id, known) = known();
        let mut bytes = query(&format!("_vat.{id}.{ORIGIN}"), TYPE::TXT);
        for (at, byte) in changes {
            let length = bytes.len();
            bytes[at % length] = byte;
        }
        let transport = if stream { Transport::Stream } else { Transport::Datagram };
        if let Answer::Reply { message, .. } = ask(&bytes, transport, &known) {
            prop_assert!(message.len() == 12 || message[12..].starts_with(&bytes[12..30]));
            // What we write can be read, unless its question cannot.
            let read = Packet::parse(&message);
            prop_assert!(read.is_ok() || message.len() == 12 || Packet::parse(&bytes).is_err());
        }
    }

    #[test]
    fn records_of_any_contents_are_survived(contents in prop::collection::vec(any::<u8>(), 0..300)) {
        let (id, _) = known();
        let known = Known::Record { packet: contents, left: Duration::from_secs(5) };
        let message = reply(&query(&format!("_vat.{id}.{ORIGIN}"), TYPE::TXT), &known);
        prop_assert!(message.len() <= 1232);
    }
}

// ---- through sockets

async fn start(config: ServerConfig) -> (Server, Rc<HandClock>) {
    let clock = HandClock::new();
    (Server::start(config, clock.clone()).await.unwrap(), clock)
}

fn config(disk: Arc<dyn checkpoint::Disk>) -> ServerConfig {
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

#[test]
fn tcp_connections_that_say_nothing_or_too_much_are_closed_and_the_idle_make_room() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.dns_limits.idle = Duration::from_millis(300);
        config.dns_limits.connections = 2;
        let (server, _clock) = start(config).await;
        let address = server.dns_address().unwrap();
        let connect = || async move { TcpStream::connect(address).await.unwrap() };
        let closed = async |stream: &mut TcpStream| {
            let mut byte = [0];
            timeout(PATIENCE, stream.read(&mut byte)).await.expect("closed").unwrap_or(0) == 0
        };
        let mut silent = connect().await;
        assert!(closed(&mut silent).await);
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
