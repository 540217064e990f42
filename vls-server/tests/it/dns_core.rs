//! The answer to a DNS query, against queries right, wrong and random.

use std::time::Duration;

use proptest::prelude::*;
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{A, CNAME, OPT, RData, TXT},
};
use vls_server::dns::{Answer, Known, Transport, Zone, answer};

use crate::local::key;

pub(crate) const ORIGIN: &str = "vls.example.org";

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

pub(crate) fn query(name: &str, kind: TYPE) -> Vec<u8> {
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
fn the_whole_signed_packet_is_served_in_pieces_as_long_as_the_lease_runs() {
    let (id, known) = known();
    let Known::Record { packet, .. } = &known else { panic!() };
    let name = format!("_SIGNED.{id}.{ORIGIN}");
    let message = reply(&query(&name, TYPE::TXT), &known);
    let read = Packet::parse(&message).unwrap();
    let [ResourceRecord { rdata: RData::TXT(text), ttl: 30, .. }] = read.answers.as_slice() else { panic!("{read:?}") };
    // The data of the record ends the message, but for the eleven bytes of EDNS.
    let data = &message[..message.len() - 11];
    let strings: Vec<&[u8]> = packet.chunks(255).collect();
    let written: Vec<u8> =
        strings.iter().flat_map(|string| [&[u8::try_from(string.len()).unwrap()], *string].concat()).collect();
    assert!(data.ends_with(&written) && strings.len() == 2, "{text:?}");

    let nothing = reply(&query(&name, TYPE::A), &known);
    assert_eq!(Packet::parse(&nothing).unwrap().rcode(), RCODE::NoError, "it is there, and is no address");
    let below = reply(&query(&format!("a.{name}"), TYPE::TXT), &known);
    assert_eq!(Packet::parse(&below).unwrap().rcode(), RCODE::NameError);
    let unknown = reply(&query(&name, TYPE::TXT), &Known::Nothing);
    assert_eq!(Packet::parse(&unknown).unwrap().rcode(), RCODE::NameError);

    // The longest that is published fits into a datagram; the longest that is accepted need not.
    for (bytes, whole) in [(995, true), (1000, true), (1100, false)] {
        let mut packet = packet.clone();
        packet.resize(72 + bytes, 0);
        let known = Known::Record { packet, left: Duration::from_secs(9) };
        let Answer::Reply { message, time_to_live } = ask(&query(&name, TYPE::TXT), Transport::Datagram, &known) else {
            panic!()
        };
        let read = Packet::parse(&message).unwrap();
        assert_eq!((read.has_flags(PacketFlag::TRUNCATION), read.answers.len()), (!whole, usize::from(whole)));
        assert!(message.len() <= 1232 && time_to_live <= 9);
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
