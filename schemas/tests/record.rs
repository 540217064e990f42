//! Location records: what is signed comes back, what is altered, misshapen or out of its time does not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/packets.rs"]
mod packets;
#[path = "support/strategies.rs"]
mod strategies;

use std::{cmp::Ordering, time::Duration};

use packets::{SIGNED_AT, key, minimal, packet, sample};
use proptest::prelude::*;
use schemas::{
    Address, AddressError, Coded, ErrorCode, ForeignPacket, LocationRecord, MAX_ACCEPTED_VALUE, MAX_PUBLISHED_VALUE,
    RecordError, SearchPathError, SignedPacket, SignedRecord, State, Timestamp, UnverifiedPacket, limits,
};
use sha2::{Digest, Sha256};

/// The record in a packet of `key()`.
fn parse(packet: &[u8]) -> Result<LocationRecord, RecordError> {
    UnverifiedPacket::parse(key().id(), packet).map(|packet| packet.location().expect("it is about a vat").clone())
}

/// What becomes of a packet of `key()` that has nothing at `_vat`.
fn parse_foreign(value: &[u8]) -> Result<ForeignPacket, RecordError> {
    match SignedPacket::verify(key().id(), &packets::sign(&key(), value))? {
        SignedPacket::Foreign(packet) => Ok(packet),
        SignedPacket::Record(record) => panic!("a record: {record:?}"),
    }
}

/// What becomes of the smallest record with these strings added.
fn parse_with(added: &[&str]) -> Result<LocationRecord, RecordError> {
    parse(&packet(&[minimal(), added.iter().map(|string| (*string).to_owned()).collect()].concat()))
}

/// What becomes of the smallest record when the string of `key` is another one.
fn parse_replacing(key: &str, value: &str) -> Result<LocationRecord, RecordError> {
    let prefix = format!("{key}=");
    let mut strings = minimal();
    let string = strings.iter_mut().find(|string| string.starts_with(&prefix)).expect("a key of the smallest record");
    *string = format!("{prefix}{value}");
    parse(&packet(&strings))
}

proptest! {
    #[test]
    fn what_is_signed_is_what_is_read(key in strategies::key(), record in strategies::record(), timestamp in strategies::timestamp()) {
        let signed = match SignedRecord::sign(&key, &record, timestamp) {
            Err(RecordError::TooLarge { found, .. }) => {
                prop_assert!(found > MAX_PUBLISHED_VALUE);
                return Ok(());
            }
            other => other.unwrap(),
        };
        prop_assert_eq!(signed.record(), &record);
        let read = SignedRecord::verify(key.id(), signed.packet()).unwrap();
        prop_assert_eq!(&read, &signed);
        prop_assert_eq!((read.id(), read.timestamp(), read.record()), (key.id(), timestamp, &record));
        prop_assert_eq!(read.order(), signed.order());
    }

    #[test]
    fn signing_is_deterministic(key in strategies::key(), record in strategies::record(), timestamp in strategies::timestamp()) {
        let first = SignedRecord::sign(&key, &record, timestamp);
        prop_assert_eq!(first, SignedRecord::sign(&key, &record, timestamp));
    }

    #[test]
    fn a_record_counts_for_its_own_vat_only(key in strategies::key(), other in strategies::id()) {
        let signed = SignedRecord::sign(&key, &sample(), SIGNED_AT).unwrap();
        // The name inside is another vat's, and so is the signature.
        prop_assert_eq!(SignedPacket::verify(other, signed.packet()), Err(RecordError::Forged));
        // The name inside is the victim's, the signature somebody else's.
        let forged = packets::sign(&packets::key(), &signed.packet()[72..]);
        prop_assert_eq!(SignedRecord::verify(key.id(), &forged), Err(RecordError::Forged));
        // The name inside is the victim's, the packet somebody else's: it says nothing of either.
        let packet = SignedPacket::verify(packets::key().id(), &forged).unwrap();
        prop_assert_eq!(packet.record(), None);
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
        prop_assert!(UnverifiedPacket::parse(key().id(), &bytes).is_err());
    }

    #[test]
    fn arbitrary_dns_records_are_no_record_and_do_not_panic(records in proptest::collection::vec(
        ("\\x00|(\\x01.){1,3}\\x00|\\xc0\\x0c|\\xc0[\\x00-\\x40]", 0_u16..70, proptest::collection::vec(any::<u8>(), 0..48)), 1..6))
    {
        // The message is well-formed down to the data of its records, of which simple-dns reads many types.
        let mut message = vec![0, 0, 0x84, 0, 0, 0, 0, u8::try_from(records.len()).unwrap(), 0, 0, 0, 0];
        for (name, kind, data) in records {
            message.extend(name.chars().map(|character| u8::try_from(u32::from(character) & 0xff).unwrap()));
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 30]);
            message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            message.extend(data);
        }
        if let Ok(packet) = parse_foreign(&message) {
            prop_assert_eq!(packet.order().epoch, 0);
        }
    }

    #[test]
    fn damage_anywhere_is_refused_without_a_panic(position in 72_usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..8)) {
        let signed = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
        let mut damaged = signed.packet().to_vec();
        let position = position.min(damaged.len() - 1);
        let end = damaged.len().min(position + bytes.len());
        damaged.splice(position..end, bytes);
        prop_assume!(damaged != signed.packet());
        prop_assert!(SignedPacket::verify(key().id(), &damaged).is_err());
    }

    #[test]
    fn a_packet_that_says_nothing_of_a_vat_is_below_every_started_one(
        strings in proptest::collection::vec("[a-z]{1,5}=[a-z0-9]{0,20}", 0..5), micros in 0..=limits::MAX_COUNTER, epoch in 1..100_u64)
    {
        let value = packets::message(&format!("_iroh.{}", key().id()), &strings);
        let bytes = packets::sign_at(&key(), micros, &value);
        let packet = SignedPacket::verify(key().id(), &bytes).unwrap();
        prop_assert_eq!((packet.epoch(), packet.expires(), packet.record()), (0, None, None));
        prop_assert_eq!(packet.packet(), &bytes[..]);
        let vat = SignedRecord::sign(&key(), &LocationRecord { epoch, ..sample() }, Timestamp::default()).unwrap();
        prop_assert_eq!(packet.compare(&vat.clone().into()), Ordering::Less);
        prop_assert_eq!(SignedPacket::from(vat).compare(&packet), Ordering::Greater);
        prop_assert_eq!(SignedRecord::verify(key().id(), &bytes), Err(RecordError::NoVat { timestamp: Timestamp::from_micros(micros) }));
    }
}

#[test]
fn every_flip_of_one_bit_is_refused() {
    let signed = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
    let mut forged = 0;
    for bit in 0..signed.packet().len() * 8 {
        let mut packet = signed.packet().to_vec();
        packet[bit / 8] ^= 1 << (bit % 8);
        let error = SignedPacket::verify(key().id(), &packet).expect_err("an altered packet was accepted");
        forged += usize::from(error == RecordError::Forged);
    }
    assert!(forged > 64 * 8, "all flips in the signature, and more, are left to the signature check: {forged}");
}

#[test]
fn every_truncation_and_every_appended_byte_is_refused() {
    let signed = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
    for length in 0..signed.packet().len() {
        let error = UnverifiedPacket::parse(key().id(), &signed.packet()[..length]).unwrap_err();
        let expected = if length < 72 { RecordError::TooShort { found: length } } else { RecordError::Structure };
        assert_eq!(error, expected);
    }
    for byte in 0..=255 {
        let value = [&signed.packet()[72..], &[byte]].concat();
        assert_eq!(parse(&packets::sign(&key(), &value)), Err(RecordError::Structure), "properly signed");
    }
}

#[test]
fn the_cheap_checks_come_before_the_signature() {
    let mut unsigned = packet(&minimal());
    unsigned[..64].fill(0);
    let record = UnverifiedPacket::parse(key().id(), &unsigned).expect("the signature is not looked at yet");
    assert_eq!(record.check_time(SIGNED_AT), Ok(()));
    assert_eq!(record.verify().unwrap_err(), RecordError::Forged);
    unsigned.resize(72 + MAX_ACCEPTED_VALUE + 1, 0);
    let found = MAX_ACCEPTED_VALUE + 1;
    let limit = MAX_ACCEPTED_VALUE;
    assert_eq!(SignedRecord::verify(key().id(), &unsigned), Err(RecordError::TooLarge { found, limit }));
}

/// A record of which the DNS packet has exactly this many bytes, grown in a string that is passed over.
fn packet_of_value_length(length: usize) -> Vec<u8> {
    let filled = |size: usize| {
        let fillers = (0..4).map(|index| format!("x={}", "y".repeat((size / 4) + usize::from(index < size % 4))));
        packet(&minimal().into_iter().chain(fillers).collect::<Vec<_>>())
    };
    let empty = filled(0).len() - 72;
    filled(length - empty)
}

#[test]
fn up_to_1000_bytes_are_accepted() {
    let largest = packet_of_value_length(MAX_ACCEPTED_VALUE);
    assert_eq!(largest.len(), 1072);
    SignedRecord::verify(key().id(), &largest).unwrap();
    let larger = packet_of_value_length(MAX_ACCEPTED_VALUE + 1);
    let error = SignedRecord::verify(key().id(), &larger).unwrap_err();
    assert_eq!(error, RecordError::TooLarge { found: 1001, limit: 1000 });
    assert_eq!(error.code(), ErrorCode::RecordTooLarge);
}

#[test]
fn up_to_995_bytes_are_published() {
    let url = |length: usize| Address::Gateway { url: format!("https://a/{}", "b".repeat(length)) };
    let with =
        |length: usize| LocationRecord { addresses: vec![url(200), url(200), url(200), url(length)], ..sample() };
    let size = |record: &LocationRecord| {
        SignedRecord::sign(&key(), record, SIGNED_AT).map(|signed| signed.packet().len() - 72)
    };
    let rest = MAX_PUBLISHED_VALUE - size(&with(1)).unwrap();
    assert_eq!(size(&with(1 + rest)), Ok(995));
    assert_eq!(size(&with(2 + rest)), Err(RecordError::TooLarge { found: 996, limit: 995 }));
}

#[test]
fn nothing_is_signed_that_a_reader_would_refuse() {
    let sign = |record: LocationRecord| SignedRecord::sign(&key(), &record, SIGNED_AT).map(|_| ()).unwrap_err();
    let quic = |host: &str, port| vec![Address::Quic { host: host.to_owned(), port }];
    let value = |key| RecordError::Value { key };
    assert_eq!(sign(LocationRecord { addresses: quic("UPPER.example", 1), ..sample() }), value("a"));
    assert_eq!(
        sign(LocationRecord { addresses: quic("[2001:db8::1]", 1), ..sample() }).code(),
        ErrorCode::RecordMalformed
    );
    assert_eq!(sign(LocationRecord { addresses: quic("a b", 1), ..sample() }).code(), ErrorCode::RecordMalformed);
    assert_eq!(sign(LocationRecord { addresses: quic("a", 0), ..sample() }).code(), ErrorCode::RecordMalformed);
    assert_eq!(sign(LocationRecord { chain_head: Some(String::new()), ..sample() }), value("h"));
    assert_eq!(sign(LocationRecord { chain_head: Some("A".to_owned()), ..sample() }), value("h"));
    assert_eq!(sign(LocationRecord { chain_head: Some("a".repeat(33)), ..sample() }), value("h"));
    assert_eq!(sign(LocationRecord { epoch: u64::MAX, ..sample() }), value("e"));
    assert_eq!(sign(LocationRecord { turn: limits::MAX_COUNTER + 1, ..sample() }), value("t"));
    assert_eq!(sign(LocationRecord { expires: Timestamp::MAX, ..sample() }), value("exp"));
    let many = LocationRecord { addresses: vec![Address::Relayed; limits::MAX_ADDRESSES + 1], ..sample() };
    assert_eq!(sign(many), RecordError::TooMany { key: "a", limit: limits::MAX_ADDRESSES });
    let long = format!("https://a/{}", "b".repeat(300));
    assert_eq!(
        sign(LocationRecord { addresses: vec![Address::Gateway { url: long }], ..sample() }),
        RecordError::TooLong { key: "a" }
    );
    let late = Timestamp::from_micros(limits::MAX_COUNTER + 1);
    assert_eq!(SignedRecord::sign(&key(), &sample(), late).unwrap_err(), RecordError::Timestamp);
}

#[test]
fn expiry_is_in_whole_seconds_on_the_wire() {
    let expires = Timestamp::from_micros(1_790_003_600_999_999);
    let signed = SignedRecord::sign(&key(), &LocationRecord { expires, ..sample() }, SIGNED_AT).unwrap();
    assert_eq!(signed.record().expires, Timestamp::from_seconds(1_790_003_600));
}

#[test]
fn the_smallest_record_is_accepted_in_any_order_and_in_any_number_of_strings() {
    let expected = parse(&packet(&minimal())).unwrap();
    assert_eq!((expected.epoch, expected.turn, expected.state), (3, 41, State::Live));
    let mut reversed = minimal();
    reversed.reverse();
    assert_eq!(parse(&packet(&reversed)), Ok(expected.clone()));
    let (name, strings) = (packets::record_name(&key()), minimal());
    let mut one = packets::reply();
    one.answers.push(packets::text(&name, &strings));
    let value = one.build_bytes_vec().unwrap();
    assert_eq!(parse(&packets::sign(&key(), &value)), Ok(expected));
}

#[test]
fn a_missing_key_is_named() {
    for missing in ["v", "e", "t", "st", "exp"] {
        let prefix = format!("{missing}=");
        let strings: Vec<_> = minimal().into_iter().filter(|string| !string.starts_with(&prefix)).collect();
        assert_eq!(parse(&packet(&strings)), Err(RecordError::Missing { key: missing }));
    }
}

#[test]
fn a_doubled_key_is_refused_even_with_the_same_value() {
    for (key, string) in [("v", "v=1"), ("e", "e=3"), ("t", "t=41"), ("st", "st=live"), ("exp", "exp=1790003600")] {
        assert_eq!(parse_with(&[string]), Err(RecordError::Duplicate { key }));
    }
    assert_eq!(parse_with(&["h=a", "h=a"]), Err(RecordError::Duplicate { key: "h" }));
    let digest = format!("d={}", "y".repeat(52));
    assert_eq!(parse_with(&[&digest, &digest]), Err(RecordError::Duplicate { key: "d" }));
}

#[test]
fn numbers_have_one_spelling_and_fit_a_signed_64_bit_number() {
    for key in ["v", "e", "t", "exp"] {
        for value in [
            "",
            "01",
            "00",
            "+1",
            "-1",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "0x1",
            "\u{661}",
            "9223372036854775808",
            "18446744073709551616",
        ] {
            assert_eq!(parse_replacing(key, value), Err(RecordError::Value { key }), "{key}={value}");
        }
    }
    assert_eq!(parse_replacing("e", "9223372036854775807").unwrap().epoch, limits::MAX_COUNTER);
    assert_eq!(parse_replacing("t", "0").unwrap().turn, 0);
    assert_eq!(parse_replacing("exp", "9223372036854").unwrap().expires.as_seconds(), 9_223_372_036_854);
    assert_eq!(parse_replacing("exp", "9223372036855"), Err(RecordError::Value { key: "exp" }));
}

#[test]
fn another_version_is_told_before_anything_else() {
    let mut strings = minimal();
    strings[0] = "v=2".to_owned();
    strings[1] = "e=whatever that means then".to_owned();
    let error = parse(&packet(&strings)).unwrap_err();
    assert_eq!(error, RecordError::Version { found: 2 });
    assert_eq!(error.code(), ErrorCode::RecordVersion);
    assert_eq!(parse_replacing("v", "0"), Err(RecordError::Version { found: 0 }));
}

#[test]
fn states_have_four_texts() {
    for state in [State::Live, State::Dormant, State::Departed, State::Revoked] {
        assert_eq!(parse_replacing("st", state.as_str()).unwrap().state, state);
    }
    for text in ["", "Live", "live ", "asleep"] {
        assert_eq!(parse_replacing("st", text), Err(RecordError::Value { key: "st" }));
    }
}

#[test]
fn optional_values_are_checked_where_they_stand() {
    let document = schemas::IdentityKey::from_seed(&[1; 32]).id();
    let read = parse_with(&["h=0az", &format!("d={document}")]).unwrap();
    assert_eq!((read.chain_head.as_deref(), read.document), (Some("0az"), Some(*document.as_bytes())));
    for string in ["h=", "h=A", "h=a-b", "h=\u{e9}", "h=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        assert_eq!(parse_with(&[string]), Err(RecordError::Value { key: "h" }), "{string}");
    }
    for value in ["", "y", &"y".repeat(51), &"y".repeat(53), &format!("{}b", "y".repeat(51)), &"Y".repeat(52)] {
        assert_eq!(parse_with(&[&format!("d={value}")]), Err(RecordError::Value { key: "d" }), "{value}");
    }
}

#[test]
fn addresses_and_entries_stand_in_their_canonical_spelling() {
    for string in ["a=quic:Example.org:1", "a=quic:[2001:DB8::1]:1", "a=https://example.org/"] {
        assert_eq!(parse_with(&[string]), Err(RecordError::Value { key: "a" }), "{string}");
    }
    assert_eq!(parse_with(&["vls=dns:Example.org"]), Err(RecordError::Value { key: "vls" }));
    assert!(matches!(parse_with(&["a=quic:example.org"]), Err(RecordError::Address(AddressError::Host(_)))));
    assert_eq!(parse_with(&["vls=vls://a:1"]), Err(RecordError::SearchPath(SearchPathError::NoId)));
}

#[test]
fn what_a_later_version_may_add_is_passed_over_within_limits() {
    let read = parse_with(&["a=tcp:a:1", "new=x", "new=y", "vls=tor:abc", "=", "a=vls:", "V=2"]).unwrap();
    assert_eq!(read.addresses, [Address::Relayed]);
    assert!(read.search_path.is_empty());
    let unknown = vec!["x="; limits::MAX_UNKNOWN_STRINGS];
    assert!(parse_with(&unknown).is_ok());
    let limit = limits::MAX_UNKNOWN_STRINGS;
    assert_eq!(parse_with(&[&unknown[..], &["y="]].concat()), Err(RecordError::TooMany { key: "?", limit }));
    let limit = limits::MAX_ADDRESSES;
    assert!(parse_with(&vec!["a=new:"; limit]).is_ok());
    assert_eq!(parse_with(&vec!["a=new:"; limit + 1]), Err(RecordError::TooMany { key: "a", limit }));
    let limit = limits::MAX_SEARCH_PATH;
    assert!(parse_with(&vec!["vls=dht:"; limit]).is_ok());
    assert_eq!(parse_with(&vec!["vls=dht:"; limit + 1]), Err(RecordError::TooMany { key: "vls", limit }));
}

#[test]
fn other_names_in_the_packet_are_permitted() {
    let (name, strings) = (packets::record_name(&key()), minimal());
    let (iroh, other) = (format!("_iroh.{}", key().id()), format!("_vat.x.{}", key().id()));
    let foreign = ["relay=https://relay.example".to_owned(), "v=2".to_owned()];
    let mut message = packets::reply();
    message.answers.push(packets::text(&iroh, &foreign));
    message.answers.extend(strings.iter().map(|string| packets::text(&name, std::slice::from_ref(string))));
    message.answers.push(packets::text(&other, &foreign));
    message.answers.push(packets::text("_vat.example.org", &foreign));
    // Only answers count.
    message.additional_records.push(packets::text(&name, &foreign));
    let value = message.build_bytes_vec_compressed().unwrap();
    assert_eq!(parse(&packets::sign(&key(), &value)), parse(&packet(&minimal())));
}

#[test]
fn a_label_with_a_dot_in_it_is_not_the_name() {
    let label = format!("_vat.{}", key().id());
    let mut message = packets::reply();
    let text = minimal();
    for string in &text {
        let mut record = packets::text("placeholder", std::slice::from_ref(string));
        record.name = simple_dns::Name::new_with_labels(&[simple_dns::Label::new_unchecked(label.as_bytes())]);
        assert_eq!(record.name.to_string(), packets::record_name(&key()));
        message.answers.push(record);
    }
    let value = message.build_bytes_vec_compressed().unwrap();
    assert!(parse_foreign(&value).is_ok());
}

#[test]
fn the_name_in_capitals_is_refused_because_dns_would_show_it_as_the_name() {
    let (name, strings) = (packets::record_name(&key()), minimal());
    for spelling in [name.to_uppercase(), name.replace("_vat", "_Vat")] {
        let value = packets::message(&spelling, &strings);
        assert_eq!(parse(&packets::sign(&key(), &value)), Err(RecordError::Foreign), "{spelling}");
        let mut beside = packets::reply();
        beside.answers = strings.iter().map(|string| packets::text(&name, std::slice::from_ref(string))).collect();
        beside.answers.push(packets::text(&spelling, &strings));
        let value = beside.build_bytes_vec_compressed().unwrap();
        assert_eq!(parse(&packets::sign(&key(), &value)), Err(RecordError::Foreign), "{spelling}");
    }
    for other in [format!("_vat2.{}", key().id()), format!("x.{name}"), format!("{name}.x"), key().id().to_string()] {
        assert!(parse_foreign(&packets::message(&other, &strings)).is_ok(), "{other}");
    }
}

#[test]
fn something_at_the_name_that_is_no_record_is_refused() {
    let name = packets::record_name(&key());
    let none = packets::message(&name, &[]);
    assert!(parse_foreign(&none).is_ok(), "no DNS record at all");
    for (strings, error) in [
        (&["x=1"][..], RecordError::Missing { key: "v" }),
        (&["v=1", "e=1"], RecordError::Missing { key: "exp" }),
        (&["v=2"], RecordError::Version { found: 2 }),
        (&[""], RecordError::Foreign),
    ] {
        let strings: Vec<_> = strings.iter().map(|string| (*string).to_owned()).collect();
        let value = packets::message(&name, &strings);
        assert_eq!(parse(&packets::sign(&key(), &value)), Err(error.clone()));
        let mut beside = packets::reply();
        let foreign = format!("_iroh.{}", key().id());
        beside.answers.push(packets::text(&foreign, &strings));
        beside.answers.push(packets::text(&name, &strings));
        let value = beside.build_bytes_vec_compressed().unwrap();
        assert_eq!(parse(&packets::sign(&key(), &value)), Err(error), "beside others");
    }
}

#[test]
fn only_txt_strings_with_keys_stand_under_the_name() {
    let (name, strings) = (packets::record_name(&key()), minimal());
    let with = |change: &dyn Fn(&mut simple_dns::ResourceRecord<'_>)| {
        let mut message = packets::reply();
        message.answers.extend(strings.iter().map(|string| packets::text(&name, std::slice::from_ref(string))));
        let mut last = message.answers[0].clone();
        change(&mut last);
        message.answers.push(last);
        parse(&packets::sign(&key(), &message.build_bytes_vec().unwrap()))
    };
    let txt = |string: &'static [u8]| {
        let string = simple_dns::CharacterString::new(string).unwrap();
        simple_dns::rdata::RData::TXT(simple_dns::rdata::TXT::new().with_char_string(string))
    };
    assert!(with(&|record| record.rdata = txt(b"x=")).is_ok());
    assert_eq!(with(&|record| record.rdata = txt(b"x")), Err(RecordError::Foreign));
    assert_eq!(with(&|record| record.rdata = txt(b"")), Err(RecordError::Foreign));
    assert_eq!(with(&|record| record.rdata = txt(b"x=\xff")), Err(RecordError::Foreign));
    assert_eq!(with(&|record| record.rdata = txt(b"\xff=x")), Err(RecordError::Foreign));
    let other =
        |class| move |record: &mut simple_dns::ResourceRecord<'_>| (record.rdata, record.class) = (txt(b"x="), class);
    assert_eq!(with(&other(simple_dns::CLASS::CH)), Err(RecordError::Foreign));
    let flushed = |record: &mut simple_dns::ResourceRecord<'_>| (record.rdata, record.cache_flush) = (txt(b"x="), true);
    assert_eq!(with(&flushed), Err(RecordError::Foreign));
    let address = simple_dns::rdata::RData::A(simple_dns::rdata::A { address: 1 });
    assert_eq!(with(&|record| record.rdata = address.clone()), Err(RecordError::Foreign));
    assert_eq!(
        with(&|record| record.rdata = simple_dns::rdata::RData::Empty(simple_dns::TYPE::TXT)),
        Err(RecordError::Foreign)
    );
}

#[test]
fn a_header_that_promises_more_than_there_is_is_refused() {
    for section in 0..4 {
        let mut value = packets::message(&packets::record_name(&key()), &minimal());
        value[4 + 2 * section..6 + 2 * section].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(parse(&packets::sign(&key(), &value)), Err(RecordError::Structure));
    }
    assert!(parse_foreign(&[0; 12]).is_ok(), "a message that promises nothing");
}

#[test]
fn the_timestamp_fits_a_signed_64_bit_number() {
    let value = packets::message(&packets::record_name(&key()), &minimal());
    let last = packets::sign_at(&key(), limits::MAX_COUNTER, &value);
    assert_eq!(SignedRecord::verify(key().id(), &last).unwrap().timestamp().as_micros(), limits::MAX_COUNTER);
    let late = packets::sign_at(&key(), limits::MAX_COUNTER + 1, &value);
    assert_eq!(SignedRecord::verify(key().id(), &late), Err(RecordError::Timestamp));
}

#[test]
fn a_record_is_current_from_five_minutes_before_its_date_until_its_expiry() {
    let signed = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
    let microsecond = Duration::from_micros(1);
    let earliest = SIGNED_AT - Duration::from_secs(300);
    let expires = sample().expires;
    assert_eq!(signed.check_time(earliest), Ok(()));
    let now = earliest - microsecond;
    assert_eq!(signed.check_time(now), Err(RecordError::Future { timestamp: SIGNED_AT, now }));
    assert_eq!(signed.check_time(expires - microsecond), Ok(()));
    let error = signed.check_time(expires).unwrap_err();
    assert_eq!(error, RecordError::Expired { expires, now: expires });
    assert_eq!(error.to_string(), "the record was valid until 2026-09-21T15:13:20Z; it is 2026-09-21T15:13:20Z");
    assert_eq!(error.code(), ErrorCode::RecordExpired);
    assert_eq!(signed.check_time(Timestamp::MAX).unwrap_err().code(), ErrorCode::RecordExpired);
    assert_eq!(signed.check_time(Timestamp::from_micros(0)).unwrap_err().code(), ErrorCode::RecordFuture);
}

#[test]
fn what_states_no_expiry_never_expires_but_may_be_dated_ahead() {
    let packet = parse_foreign(&packets::message("_iroh.example.org", &[])).unwrap();
    assert_eq!(packet.check_time(Timestamp::MAX), Ok(()));
    assert_eq!(packet.check_time(SIGNED_AT - Duration::from_secs(300)), Ok(()));
    assert_eq!(packet.check_time(Timestamp::default()).unwrap_err().code(), ErrorCode::RecordFuture);
}

#[test]
fn order_is_epoch_then_time_then_bytes() {
    let sign = |epoch, turn, micros| {
        let record = LocationRecord { epoch, turn, ..sample() };
        SignedRecord::sign(&key(), &record, SIGNED_AT + Duration::from_micros(micros)).unwrap()
    };
    let rising = [sign(3, 9, 7), sign(3, 1, 8), sign(3, 2, 8), sign(4, 0, 0), sign(10, 0, 0)];
    for (left_index, left) in rising.iter().enumerate() {
        for (right_index, right) in rising.iter().enumerate() {
            assert_eq!(left.compare(right), left_index.cmp(&right_index), "{left_index} {right_index}");
            let unverified = UnverifiedPacket::parse(key().id(), left.packet()).unwrap();
            assert_eq!(unverified.compare(&right.clone().into()), left_index.cmp(&right_index));
            assert_eq!(left.order() == right.order(), left_index == right_index);
        }
    }
    assert_eq!(rising[0].compare(&rising[0].clone()), Ordering::Equal);
}

#[test]
fn the_digest_of_the_order_is_sha_256_of_the_packet() {
    let signed = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
    let order = signed.order();
    assert_eq!((order.epoch, order.timestamp), (3, SIGNED_AT));
    assert_eq!(order.digest[..], Sha256::digest(signed.packet())[..]);
}
