//! Our packets are pkarr's packets: the `pkarr` crate reads ours, and we read what it signs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/packets.rs"]
mod packets;
#[path = "support/strategies.rs"]
mod strategies;

use packets::{SIGNED_AT, key, sample};
use pkarr::{Keypair, PublicKey, SignedPacket, dns};
use proptest::prelude::*;
use schemas::{RecordError, SignedRecord};

fn keypair() -> Keypair {
    Keypair::from_secret_key(&key().seed())
}

/// The TXT strings that pkarr finds under `_vat`.
fn strings(packet: &SignedPacket) -> Vec<String> {
    let texts = packet.resource_records("_vat").map(|record| match &record.rdata {
        dns::rdata::RData::TXT(text) => String::try_from(text.clone()).unwrap(),
        other => panic!("not TXT: {other:?}"),
    });
    texts.collect()
}

#[test]
fn both_spell_an_id_alike() {
    assert_eq!(keypair().public_key().to_z32(), key().id().to_string());
    assert_eq!(&keypair().public_key().to_bytes(), key().id().as_bytes());
}

#[test]
fn pkarr_verifies_our_packet_and_finds_our_strings() {
    let ours = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
    let theirs = SignedPacket::from_relay_payload(&keypair().public_key(), &ours.packet().to_vec().into()).unwrap();
    assert_eq!(theirs.timestamp().as_u64(), SIGNED_AT.as_micros());
    let expected = [
        "v=1",
        "e=3",
        "t=41",
        "h=k7q2m9",
        "st=live",
        "exp=1790003600",
        "a=quic:192.0.2.7:4433",
        "a=quic:[2001:db8::7]:4433",
        "vls=dht:",
    ];
    assert_eq!(strings(&theirs), expected);
    assert!(theirs.all_resource_records().all(|record| record.ttl == schemas::limits::RECORD_TTL));
}

#[test]
fn the_same_records_signed_by_pkarr_are_the_same_bytes() {
    let ours = SignedRecord::sign(&key(), &sample(), SIGNED_AT).unwrap();
    let read = SignedPacket::from_relay_payload(&keypair().public_key(), &ours.packet().to_vec().into()).unwrap();
    let builder =
        read.all_resource_records().fold(SignedPacket::builder(), |builder, record| builder.record(record.clone()));
    let theirs = builder.timestamp(SIGNED_AT.as_micros().into()).sign(&keypair()).unwrap();
    assert_eq!(theirs.to_relay_payload()[..], *ours.packet());
}

#[test]
fn we_accept_what_pkarr_signs_among_other_records() {
    let mut builder = SignedPacket::builder().address(".".try_into().unwrap(), "192.0.2.1".parse().unwrap(), 300).txt(
        "_iroh".try_into().unwrap(),
        "relay=https://relay.example".try_into().unwrap(),
        30,
    );
    for string in ["st=dormant", "exp=1790003600", "t=8", "a=https://example.org/vat", "e=2", "v=1"] {
        builder = builder.txt("_vat".try_into().unwrap(), string.try_into().unwrap(), 7200);
    }
    let theirs = builder.https(".".try_into().unwrap(), dns::rdata::SVCB::new(0, "a.example".try_into().unwrap()), 60);
    let theirs = theirs.timestamp(SIGNED_AT.as_micros().into()).sign(&keypair()).unwrap();
    let ours = SignedRecord::verify(key().id(), &theirs.to_relay_payload()).unwrap();
    assert_eq!(ours.timestamp(), SIGNED_AT);
    assert_eq!((ours.record().epoch, ours.record().turn, ours.record().state), (2, 8, schemas::State::Dormant));
    assert_eq!(ours.record().addresses, ["https://example.org/vat".parse().unwrap()]);
}

#[test]
fn a_packet_of_pkarrs_without_our_records_is_one_that_says_nothing_of_a_vat() {
    let theirs = SignedPacket::builder().txt("_iroh".try_into().unwrap(), "relay=x".try_into().unwrap(), 30).address(
        ".".try_into().unwrap(),
        "192.0.2.1".parse().unwrap(),
        300,
    );
    let theirs = theirs.timestamp(SIGNED_AT.as_micros().into()).sign(&keypair()).unwrap();
    for packet in [theirs, SignedPacket::builder().timestamp(SIGNED_AT.as_micros().into()).sign(&keypair()).unwrap()] {
        let bytes = packet.to_relay_payload();
        let ours = schemas::SignedPacket::verify(key().id(), &bytes).unwrap();
        assert!(matches!(ours, schemas::SignedPacket::Foreign(_)));
        assert_eq!((ours.timestamp(), ours.packet()), (SIGNED_AT, &bytes[..]));
        assert_eq!(ours.into_record(), Err(RecordError::NoVat { timestamp: SIGNED_AT }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pkarr_verifies_every_packet_that_we_sign(key in strategies::key(), record in strategies::record()) {
        let Ok(ours) = SignedRecord::sign(&key, &record, SIGNED_AT) else { return Ok(()) };
        let public_key = PublicKey::try_from(key.id().as_bytes()).unwrap();
        let theirs = SignedPacket::from_relay_payload(&public_key, &ours.packet().to_vec().into()).unwrap();
        prop_assert_eq!(strings(&theirs).len(), theirs.all_resource_records().count());
        prop_assert_eq!(&strings(&theirs)[1], &format!("e={}", record.epoch));
    }
}
