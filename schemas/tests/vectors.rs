//! The formats are frozen: the committed vectors are read, and written again byte for byte.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use schemas::{
    Coded, Hints, IdentityKey, LocationRecord, RecordError, Secret, SignedPacket, SignedRecord, SturdyRef, Timestamp,
    UnverifiedPacket, VatId,
};
use serde_json::Value;

/// The vectors of one kind.
fn vectors(kind: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("vectors/v1.json")).unwrap();
    let found = all[kind].as_array().unwrap().clone();
    assert!(!found.is_empty(), "{kind}");
    found
}

fn text<'a>(vector: &'a Value, field: &str) -> &'a str {
    vector[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {vector}"))
}

fn number(vector: &Value, field: &str) -> u64 {
    vector[field].as_u64().unwrap_or_else(|| panic!("no number `{field}` in {vector}"))
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn bytes<const N: usize>(vector: &Value, field: &str) -> [u8; N] {
    hex(text(vector, field)).try_into().unwrap()
}

/// A list of texts, each read as a `T`.
fn list<T: std::str::FromStr<Err: std::fmt::Debug>>(vector: &Value, field: &str) -> Vec<T> {
    vector[field].as_array().unwrap().iter().map(|item| item.as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn identities() {
    for vector in vectors("identities") {
        let id = IdentityKey::from_seed(&bytes(&vector, "seed")).id();
        assert_eq!(id.as_bytes(), &bytes(&vector, "public_key"));
        assert_eq!(id.to_string(), text(&vector, "id"));
        assert_eq!(text(&vector, "id").parse(), Ok(id));
    }
    for vector in vectors("refused_ids") {
        assert!(text(&vector, "text").parse::<VatId>().is_err(), "{vector}");
    }
}

#[test]
fn signatures_with_a_context() {
    for vector in vectors("signatures") {
        let key = IdentityKey::from_seed(&bytes(&vector, "seed"));
        let (context, message) = (text(&vector, "context"), hex(text(&vector, "message")));
        assert_eq!(key.sign(context, &message), bytes(&vector, "signature"));
        assert_eq!(key.id().verify(context, &message, &bytes(&vector, "signature")), Ok(()));
    }
}

#[test]
fn sturdyrefs() {
    for vector in vectors("sturdyrefs") {
        let hints = &vector["hints"];
        let reference = SturdyRef {
            id: text(&vector, "id").parse().unwrap(),
            secret: Secret::from_slice(&hex(text(&vector, "secret"))).unwrap(),
            hints: Hints {
                addresses: list(hints, "addresses"),
                search_path: list(hints, "search_path"),
                gateways: list(hints, "gateways"),
            },
        };
        assert_eq!(*reference.expose(), text(&vector, "text"));
        let read: SturdyRef = text(&vector, "text").parse().unwrap();
        assert_eq!((&read, &read.hints), (&reference, &reference.hints));
        assert_eq!(read.secret.hash().as_bytes(), &bytes(&vector, "secret_hash"));
    }
    for vector in vectors("refused_sturdyrefs") {
        let error = text(&vector, "text").parse::<SturdyRef>().expect_err(text(&vector, "why"));
        assert_eq!(error.code().as_str(), text(&vector, "code"), "{vector}");
    }
}

#[test]
fn records() {
    for vector in vectors("records") {
        let key = IdentityKey::from_seed(&bytes(&vector, "seed"));
        let record = LocationRecord {
            epoch: number(&vector, "epoch"),
            turn: number(&vector, "turn"),
            chain_head: vector["chain_head"].as_str().map(str::to_owned),
            state: text(&vector, "state").parse().unwrap(),
            expires: Timestamp::from_seconds(number(&vector, "expires")),
            addresses: list(&vector, "addresses"),
            search_path: list(&vector, "search_path"),
            document: vector["document"].as_str().map(|digest| hex(digest).try_into().unwrap()),
        };
        let timestamp = Timestamp::from_micros(number(&vector, "timestamp"));
        let signed = SignedRecord::sign(&key, &record, timestamp).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(signed.packet()), text(&vector, "packet"));
        assert_eq!(signed.order().digest, bytes(&vector, "digest"));
        let read = SignedRecord::verify(key.id(), &hex(text(&vector, "packet"))).unwrap();
        assert_eq!((read.record(), read.timestamp()), (&record, timestamp));
    }
}

#[test]
fn packets_that_are_accepted_and_packets_that_are_not() {
    let check = |vector: &Value| {
        let id = text(vector, "id").parse().unwrap();
        UnverifiedPacket::parse(id, &hex(text(vector, "packet")))?.verify()?.into_record()
    };
    for vector in vectors("accepted_records") {
        assert_eq!(check(&vector).err(), None, "{vector}");
    }
    for vector in vectors("refused_records") {
        let error = check(&vector).expect_err(text(&vector, "why"));
        assert_eq!(error.code().as_str(), text(&vector, "code"), "{vector}");
    }
}

#[test]
fn packets_that_say_nothing_of_a_vat() {
    for vector in vectors("foreign_packets") {
        let id = text(&vector, "id").parse().unwrap();
        let packet = SignedPacket::verify(id, &hex(text(&vector, "packet"))).unwrap();
        let timestamp = Timestamp::from_micros(number(&vector, "timestamp"));
        assert_eq!((packet.epoch(), packet.timestamp(), packet.expires()), (0, timestamp, None));
        assert_eq!(packet.into_record(), Err(RecordError::NoVat { timestamp }));
    }
}
