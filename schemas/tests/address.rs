//! Addresses and search path entries come back from their text; hosts have one canonical spelling.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/strategies.rs"]
mod strategies;

use std::net::SocketAddr;

use proptest::prelude::*;
use schemas::{Address, AddressError, HostError, IdentityKey, SearchPathEntry, SearchPathError, UrlError};

proptest! {
    #[test]
    fn printing_and_parsing_an_address_gives_it_back(address in strategies::address()) {
        prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
    }

    #[test]
    fn printing_and_parsing_an_entry_gives_it_back(entry in strategies::entry()) {
        prop_assert_eq!(entry.to_string().parse::<SearchPathEntry>().unwrap(), entry);
    }

    #[test]
    fn what_is_accepted_has_a_canonical_text(text in "(quic:|https://|vls:|vls://|dns:|dht:)?[a-zA-Z0-9:/@%.\\[\\]-]{0,24}") {
        if let Ok(address) = text.parse::<Address>() {
            prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
        if let Ok(entry) = text.parse::<SearchPathEntry>() {
            prop_assert_eq!(entry.to_string().parse::<SearchPathEntry>().unwrap(), entry);
        }
    }

    #[test]
    fn every_socket_address_is_an_address(socket: SocketAddr) {
        prop_assume!(socket.port() != 0);
        let address = Address::from(socket);
        prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
    }
}

#[test]
fn hosts_are_made_canonical() {
    for (text, canonical) in [
        ("quic:Example.ORG:4433", "quic:example.org:4433"),
        ("quic:xn--bcher-kva.example:1", "quic:xn--bcher-kva.example:1"),
        ("quic:localhost:65535", "quic:localhost:65535"),
        ("quic:3com.com:80", "quic:3com.com:80"),
        ("quic:[2001:DB8:0:0:0:0:0:1]:4433", "quic:[2001:db8::1]:4433"),
        ("quic:[::ffff:192.0.2.1]:4433", "quic:[::ffff:192.0.2.1]:4433"),
        ("https://EXAMPLE.org", "https://example.org"),
        ("https://example.org/", "https://example.org"),
        ("https://example.org:443/Vat/", "https://example.org/Vat"),
        ("https://[2001:DB8::1]:8443/a%2fb", "https://[2001:db8::1]:8443/a%2Fb"),
        ("vls:", "vls:"),
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), canonical);
    }
}

#[test]
fn what_is_no_host_is_refused() {
    let long_label = "a".repeat(64);
    let long_name = format!("{}.org", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(59)].join("."));
    assert_eq!(long_name.len(), 255);
    for host in [
        "",
        ".",
        "a..b",
        "example.org.",
        "-a",
        "a-",
        "a_b",
        "a b",
        "b\u{fc}cher.example",
        "user@host",
        "2001:db8::1",
        "[2001:db8::1",
        "[::1%eth0]",
        "[192.0.2.1]",
        "[]",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.01",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "example.0X1",
        "2130706433",
        &long_label,
        &long_name,
    ] {
        assert_eq!(format!("quic:{host}:1").parse::<Address>(), Err(AddressError::Host(HostError::Host)), "{host}");
        assert_eq!(format!("https://{host}/").parse::<Address>(), Err(AddressError::Url(UrlError)), "{host}");
    }
}

#[test]
fn a_port_is_a_number_from_1_to_65535_in_its_one_spelling() {
    for port in ["", "0", "00", "01", "+1", "-1", "65536", "99999999999999999999", "1 ", " 1", "0x1", "\u{661}"] {
        assert_eq!(format!("quic:a:{port}").parse::<Address>(), Err(AddressError::Host(HostError::Port)), "{port}");
        assert_eq!(format!("https://a:{port}").parse::<Address>(), Err(AddressError::Url(UrlError)), "{port}");
    }
    assert_eq!("quic:a".parse::<Address>(), Err(AddressError::Host(HostError::Port)));
}

#[test]
fn a_gateway_url_has_no_user_query_fragment_or_odd_path() {
    for rest in [
        "a/?q", "a?q", "a/#f", "a#f", "u@a", "u:p@a", "a//", "a/b//c", "a/./b", "a/../b", "a/%2", "a/%zz", "a/ b",
        "a/\u{e9}", "a/<b>", "a/b\\c", "a/\n", "",
    ] {
        assert_eq!(format!("https://{rest}").parse::<Address>(), Err(AddressError::Url(UrlError)), "{rest}");
    }
    let long = format!("https://a/{}", "b".repeat(schemas::limits::MAX_URL));
    assert_eq!(long.parse::<Address>(), Err(AddressError::Url(UrlError)));
}

#[test]
fn other_schemes_are_told_from_wrong_text() {
    for text in ["", "tcp:a:1", "http://a", "QUIC:a:1", " quic:a:1", "quic", "vls"] {
        assert_eq!(text.parse::<Address>(), Err(AddressError::UnknownScheme), "{text}");
    }
    assert_eq!("vls:x".parse::<Address>(), Err(AddressError::Relayed));
    for text in ["", "vls:", "vls:/a", "http://a", "DHT:", "dns", "tor:abc"] {
        assert_eq!(text.parse::<SearchPathEntry>(), Err(SearchPathError::UnknownScheme), "{text}");
    }
}

#[test]
fn a_wrong_entry_says_which_part_is_wrong() {
    let id = IdentityKey::from_seed(&[1; 32]).id();
    assert_eq!("vls://a:1".parse::<SearchPathEntry>(), Err(SearchPathError::NoId));
    assert!(matches!("vls://x@a:1".parse::<SearchPathEntry>(), Err(SearchPathError::Id(_))));
    assert_eq!(format!("vls://{id}@a").parse::<SearchPathEntry>(), Err(SearchPathError::Host(HostError::Port)));
    assert_eq!(format!("vls://{id}@a@b:1").parse::<SearchPathEntry>(), Err(SearchPathError::Host(HostError::Host)));
    assert_eq!(format!("vls://{id}@a:1/").parse::<SearchPathEntry>(), Err(SearchPathError::Host(HostError::Port)));
    assert_eq!("dht:x".parse::<SearchPathEntry>(), Err(SearchPathError::Dht));
    assert_eq!("dns:192.0.2.1".parse::<SearchPathEntry>(), Err(SearchPathError::Host(HostError::Host)));
    assert_eq!("https://".parse::<SearchPathEntry>(), Err(SearchPathError::Url(UrlError)));
}
