//! Packets written by hand, for what [`schemas::SignedRecord::sign`] would never write.

#![allow(dead_code, reason = "each test file uses a part")]

use schemas::{IdentityKey, LocationRecord, State, Timestamp};
use simple_dns::{
    CLASS, Name, Packet, ResourceRecord,
    rdata::{RData, TXT},
};

/// When the hand-written packets are dated.
pub(crate) const SIGNED_AT: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

pub(crate) fn key() -> IdentityKey {
    IdentityKey::from_seed(&[7; 32])
}

/// The name under which a vat's record stands.
pub(crate) fn record_name(key: &IdentityKey) -> String {
    format!("_vat.{}", key.id())
}

pub(crate) fn sample() -> LocationRecord {
    LocationRecord {
        epoch: 3,
        turn: 41,
        chain_head: Some("k7q2m9".to_owned()),
        state: State::Live,
        expires: Timestamp::from_seconds(1_790_003_600),
        addresses: vec!["quic:192.0.2.7:4433".parse().unwrap(), "quic:[2001:db8::7]:4433".parse().unwrap()],
        search_path: vec!["dht:".parse().unwrap()],
        document: None,
    }
}

/// The strings of the smallest record that is accepted.
pub(crate) fn minimal() -> Vec<String> {
    ["v=1", "e=3", "t=41", "st=live", "exp=1790003600"].map(str::to_owned).to_vec()
}

/// An empty reply, to be filled.
pub(crate) fn reply<'a>() -> Packet<'a> {
    Packet::new_reply(0)
}

pub(crate) fn text<'a>(name: &'a str, strings: &'a [String]) -> ResourceRecord<'a> {
    let text = strings.iter().fold(TXT::new(), |text, string| text.with_string(string).unwrap());
    ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, 30, RData::TXT(text))
}

/// A message with one TXT record per string.
pub(crate) fn message(name: &str, strings: &[String]) -> Vec<u8> {
    let mut packet = reply();
    packet.answers = strings.iter().map(|string| text(name, std::slice::from_ref(string))).collect();
    packet.build_bytes_vec_compressed().unwrap()
}

/// Signs whatever value, as BEP44 says.
pub(crate) fn sign_at(key: &IdentityKey, timestamp: u64, value: &[u8]) -> Vec<u8> {
    let signed = [format!("3:seqi{timestamp}e1:v{}:", value.len()).as_bytes(), value].concat();
    [&key.sign_raw(&signed)[..], &timestamp.to_be_bytes(), value].concat()
}

pub(crate) fn sign(key: &IdentityKey, value: &[u8]) -> Vec<u8> {
    sign_at(key, SIGNED_AT.as_micros(), value)
}

/// A properly signed packet of `key()` with these strings under its name.
pub(crate) fn packet(strings: &[String]) -> Vec<u8> {
    sign(&key(), &message(&record_name(&key()), strings))
}
