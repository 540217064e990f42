//! proptest strategies for everything that this crate defines, valid by construction.

#![allow(dead_code, reason = "each test file uses a part")]

use proptest::{collection::vec, option, prelude::*};
use schemas::{
    Address, Hints, IdentityKey, LocationRecord, SearchPathEntry, Secret, State, SturdyRef, Timestamp, VatId, limits,
};

pub(crate) fn key() -> impl Strategy<Value = IdentityKey> {
    any::<[u8; 32]>().prop_map(|seed| IdentityKey::from_seed(&seed))
}

pub(crate) fn id() -> impl Strategy<Value = VatId> {
    key().prop_map(|key| key.id())
}

pub(crate) fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]{1,8}(-{1,2}[a-z0-9]{1,4})?(\\.[a-z][a-z0-9]{0,6}){1,3}|localhost"
}

/// A host in its canonical text, IPv6 without brackets.
pub(crate) fn host() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
        // Addresses with runs of zeros, where spellings differ.
        any::<[u16; 2]>().prop_map(|[a, b]| std::net::Ipv6Addr::from([a, 0, 0, 0, 0, 0, 0, b]).to_string()),
    ]
}

fn bracketed(host: String) -> String {
    if host.contains(':') { format!("[{host}]") } else { host }
}

pub(crate) fn host_port() -> impl Strategy<Value = String> {
    (host(), 1_u16..).prop_map(|(host, port)| format!("{}:{port}", bracketed(host)))
}

pub(crate) fn url() -> impl Strategy<Value = String> {
    let port = option::of((1_u16..).prop_filter("the default is not printed", |port| *port != 443));
    (host(), port, "(/[a-zA-Z0-9_~!$&'()*+,;=:@-]{1,8}|/%[0-9A-F]{2}|/\\.\\.\\.){0,3}").prop_map(
        |(host, port, path)| {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("https://{}{port}{path}", bracketed(host))
        },
    )
}

pub(crate) fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        4 => (host(), 1_u16..).prop_map(|(host, port)| Address::Quic { host, port }),
        2 => url().prop_map(|url| Address::Gateway { url }),
        1 => Just(Address::Relayed),
    ]
}

pub(crate) fn entry() -> impl Strategy<Value = SearchPathEntry> {
    prop_oneof![
        4 => (id(), host(), 1_u16..).prop_map(|(id, host, port)| SearchPathEntry::Vls { id, host, port }),
        2 => url().prop_map(|url| SearchPathEntry::Http { url }),
        1 => name().prop_map(|origin| SearchPathEntry::Dns { origin }),
        1 => Just(SearchPathEntry::Dht),
    ]
}

pub(crate) fn hints() -> impl Strategy<Value = Hints> {
    (vec(host_port(), 0..4), vec(entry(), 0..4), vec(url(), 0..4))
        .prop_map(|(addresses, search_path, gateways)| Hints { addresses, search_path, gateways })
}

pub(crate) fn secret() -> impl Strategy<Value = Secret> {
    any::<[u8; 32]>().prop_map(|bytes| Secret::from_slice(&bytes).unwrap())
}

pub(crate) fn sturdyref() -> impl Strategy<Value = SturdyRef> {
    (id(), secret(), hints()).prop_map(|(id, secret, hints)| SturdyRef { id, secret, hints })
}

pub(crate) fn plain_sturdyref() -> impl Strategy<Value = SturdyRef> {
    (id(), secret()).prop_map(|(id, secret)| SturdyRef { id, secret, hints: Hints::default() })
}

fn counter() -> impl Strategy<Value = u64> {
    prop_oneof![0..=limits::MAX_COUNTER, 0..1000_u64, Just(0), Just(limits::MAX_COUNTER)]
}

pub(crate) fn timestamp() -> impl Strategy<Value = Timestamp> {
    counter().prop_map(Timestamp::from_micros)
}

/// A record that fits a packet.
pub(crate) fn record() -> impl Strategy<Value = LocationRecord> {
    let state = prop_oneof![Just(State::Live), Just(State::Dormant), Just(State::Departed), Just(State::Revoked)];
    (
        (counter(), counter(), option::of("[a-z0-9]{1,32}"), state),
        (0..=limits::MAX_COUNTER / 1_000_000),
        vec(address(), 0..6),
        vec(entry(), 0..4),
        option::of(any::<[u8; 32]>()),
    )
        .prop_map(|((epoch, turn, chain_head, state), expires, addresses, search_path, document)| LocationRecord {
            epoch,
            turn,
            chain_head,
            state,
            expires: Timestamp::from_seconds(expires),
            addresses,
            search_path,
            document,
        })
}
