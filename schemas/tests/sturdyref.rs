//! Sturdyrefs come back from their text, and no slip of the hand makes another one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/strategies.rs"]
mod strategies;

use std::collections::HashSet;

use proptest::prelude::*;
use schemas::{
    Coded, ErrorCode, Hints, IdentityError, IdentityKey, Secret, SturdyRef, SturdyRefError, VatAddress, limits,
};

const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

/// Characters of the format itself, look-alikes of the alphabet's, and some from elsewhere.
const FOREIGN: &str = "0l2vABYQ9#?&=%:/@.-_~ \n\u{0}\u{e9}\u{df}\u{2013}\u{1f600}";

const ID: std::ops::Range<usize> = 6..58;
const FRAGMENT: std::ops::Range<usize> = 59..117;

fn sample() -> SturdyRef {
    let id = IdentityKey::from_seed(&[3; 32]).id();
    SturdyRef { id, secret: Secret::from_slice(&[0xa5; 32]).unwrap(), hints: Hints::default() }
}

fn replaced(text: &str, position: usize, new: char) -> String {
    text.chars().enumerate().map(|(index, old)| if index == position { new } else { old }).collect()
}

fn refused(text: &str) -> SturdyRefError {
    text.parse::<SturdyRef>().expect_err("a damaged sturdyref was accepted")
}

proptest! {
    #[test]
    fn printing_and_parsing_a_sturdyref_gives_it_back(reference in strategies::sturdyref()) {
        let text = reference.expose();
        let parsed: SturdyRef = text.parse().unwrap();
        prop_assert_eq!(&parsed, &reference);
        prop_assert_eq!(&parsed.hints, &reference.hints);
        prop_assert_eq!(parsed.expose(), text);
    }

    #[test]
    fn a_sturdyref_without_hints_is_117_characters(reference in strategies::plain_sturdyref()) {
        let text = reference.expose();
        prop_assert_eq!(text.len(), 117);
        prop_assert!(text.starts_with("vat://") && text.as_bytes()[58] == b'#');
    }

    #[test]
    fn printing_and_parsing_a_public_address_gives_it_back(id in strategies::id(), hints in strategies::hints()) {
        let address = VatAddress { id, hints };
        prop_assert_eq!(address.to_string().parse::<VatAddress>().unwrap(), address);
        prop_assert_eq!(id.to_string().parse::<VatAddress>().unwrap(), VatAddress::from(id));
    }

    #[test]
    fn any_text_is_refused_or_accepted_without_a_panic(text in "\\PC{0,200}|vat://\\PC{0,150}") {
        let _ = text.parse::<SturdyRef>();
        let _ = text.parse::<VatAddress>();
    }

    #[test]
    fn any_hints_are_refused_or_accepted_without_a_panic(query in "((at|vls|gw|x)?=?[a-z0-9:/@%.\\[\\]&?-]{0,12}&?){0,6}") {
        let text = sample().expose().replace('#', &format!("?{query}#"));
        if let Ok(parsed) = text.parse::<SturdyRef>() {
            prop_assert_eq!(parsed, sample());
        }
    }

    #[test]
    fn hints_never_count_in_comparisons(reference in strategies::sturdyref(), hints in strategies::hints(), other in strategies::secret()) {
        let twin = SturdyRef { hints, ..reference.clone() };
        let different = SturdyRef { secret: other, ..reference.clone() };
        prop_assert_eq!(&twin, &reference);
        prop_assert_eq!(HashSet::from([twin, reference.clone()]).len(), 1);
        prop_assert_ne!(different, reference);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn every_change_of_one_character_is_refused(reference in strategies::plain_sturdyref()) {
        let text = reference.expose();
        for (position, old) in text.chars().enumerate() {
            for new in ALPHABET.iter().map(|byte| char::from(*byte)).chain(FOREIGN.chars()).filter(|new| *new != old) {
                refused(&replaced(&text, position, new));
            }
        }
    }

    #[test]
    fn every_swap_of_two_neighbours_is_refused(reference in strategies::plain_sturdyref()) {
        let text = reference.expose();
        for position in 0..text.len() - 1 {
            let mut bytes = text.as_bytes().to_vec();
            if bytes[position] != bytes[position + 1] {
                bytes.swap(position, position + 1);
                refused(&String::from_utf8(bytes).unwrap());
            }
        }
    }

    #[test]
    fn every_lost_and_every_doubled_character_is_refused(reference in strategies::plain_sturdyref()) {
        let text = reference.expose();
        for position in 0..text.len() {
            let (before, rest) = text.split_at(position);
            refused(&format!("{before}{}", &rest[1..]));
            refused(&format!("{before}{}{rest}", &rest[..1]));
        }
    }
}

/// The checksum is linear: whether it misses a change depends on which bits change, not on id and secret.
/// So what holds here for *one* reference, for every pattern of five bits at every position, and for every
/// pattern at two neighbours (of which a swap is a special case: both change by the same bits), holds for all.
#[test]
fn the_checksum_misses_no_typo_and_no_swap_in_any_sturdyref() {
    let text = sample().expose();
    let symbol = |byte: u8| ALPHABET.iter().position(|symbol| *symbol == byte).unwrap();
    let changed = |byte: u8, pattern: usize| char::from(ALPHABET[symbol(byte) ^ pattern]);
    let bytes = text.as_bytes();
    for range in [ID, FRAGMENT] {
        for position in range.clone() {
            for pattern in 1..32 {
                let one = replaced(&text, position, changed(bytes[position], pattern));
                assert_eq!(refused(&one), SturdyRefError::Checksum, "bits {pattern:05b} at {position}");
                if range.contains(&(position + 1)) {
                    let two = replaced(&one, position + 1, changed(bytes[position + 1], pattern));
                    assert_eq!(
                        refused(&two),
                        SturdyRefError::Checksum,
                        "bits {pattern:05b} at {position} and the next"
                    );
                }
            }
        }
    }
}

#[test]
fn a_typo_in_the_id_is_a_wrong_checksum_and_damage_to_the_form_is_not() {
    let text = sample().expose();
    assert_eq!(
        refused(&replaced(&text, 10, if text.as_bytes()[10] == b'y' { 'b' } else { 'y' })).code(),
        ErrorCode::RefChecksum
    );
    let damaged = [
        ("", SturdyRefError::Scheme),
        ("vat://", SturdyRefError::NoSecret),
        ("https://example.org/", SturdyRefError::Scheme),
        (&text[..58], SturdyRefError::NoSecret),
        (&text[..116], SturdyRefError::Fragment),
        (&text.replace("vat", "VAT"), SturdyRefError::Scheme),
        (&text.replacen(&text[6..8], "", 1), SturdyRefError::Id),
        (&format!("{}\n", *text), SturdyRefError::Fragment),
        (&format!("{}#", *text), SturdyRefError::Fragment),
    ];
    for (text, expected) in damaged {
        assert_eq!(refused(text), expected);
        assert_eq!(expected.code(), ErrorCode::RefMalformed);
    }
}

#[test]
fn the_spare_bits_of_the_fragment_are_zero() {
    let text = sample().expose();
    let last = ALPHABET.iter().position(|symbol| *symbol == text.as_bytes()[116]).unwrap();
    assert_eq!(last % 4, 0);
    for spare in 1..4 {
        refused(&replaced(&text, 116, char::from(ALPHABET[last + spare])));
    }
}

#[test]
fn a_checksum_over_something_that_is_no_key_does_not_make_it_one() {
    // The id of all zero bits is a point of small order: 52 times `y`.
    let secret = [9; 32];
    let checksum = crc32c::crc32c(&[&[0; 32][..], &secret].concat());
    let mut specification = data_encoding::Specification::new();
    specification.symbols.push_str(std::str::from_utf8(ALPHABET).unwrap());
    let fragment = specification.encoding().unwrap().encode(&[&secret[..], &checksum.to_be_bytes()].concat());
    let error = refused(&format!("vat://{}#{fragment}", "y".repeat(52)));
    assert_eq!(error, SturdyRefError::Key(IdentityError::NotAKey));
}

#[test]
fn hints_are_percent_encoded_and_read_in_any_order() {
    let id = IdentityKey::from_seed(&[4; 32]).id();
    let hints = Hints {
        addresses: vec!["[2001:db8::1]:4433".to_owned()],
        search_path: vec![format!("vls://{id}@vls.example:4433").parse().unwrap()],
        gateways: vec!["https://example.org/cgi-bin/vat(1)".to_owned()],
    };
    let reference = SturdyRef { hints: hints.clone(), ..sample() };
    let query = format!(
        "?at=%5B2001:db8::1%5D:4433&vls=vls://{id}@vls.example:4433&gw=https://example.org/cgi-bin/vat%281%29#"
    );
    assert!(reference.expose().contains(&query));
    let reordered = sample().expose().replace(
        '#',
        &format!(
            "?gw=https://EXAMPLE.org/cgi-bin/vat(1)/&vls=vls%3a//{id}%40vls.example%3A4433&at=[2001:DB8:0::1]:4433#"
        ),
    );
    assert_eq!(reordered.parse::<SturdyRef>().unwrap().hints, hints);
}

#[test]
fn hints_of_later_versions_are_ignored_within_the_limits() {
    let with_query = |query: &str| sample().expose().replace('#', &format!("?{query}#")).parse::<SturdyRef>();
    let known = with_query("at=192.0.2.1:1&new=%zz&vls=tor:abc&=&at=192.0.2.2:2").unwrap().hints;
    assert_eq!(known.addresses, ["192.0.2.1:1", "192.0.2.2:2"]);
    assert!(known.search_path.is_empty());
    assert!(with_query(&vec!["x=1"; limits::MAX_HINTS].join("&")).unwrap().hints.is_empty());
    assert_eq!(with_query(&vec!["x=1"; limits::MAX_HINTS + 1].join("&")), Err(SturdyRefError::TooManyHints));
}

#[test]
fn malformed_hints_are_refused() {
    let with_query = |query: &str| sample().expose().replace('#', &format!("?{query}#")).parse::<SturdyRef>();
    for (query, key) in [
        ("at=192.0.2.1", "at"),
        ("at=192.0.2.1:0", "at"),
        ("at=%5:1", "at"),
        ("at=%ff:1", "at"),
        ("at=a%2", "at"),
        ("vls=vls://x@y:1", "vls"),
        ("vls=dht:x", "vls"),
        ("gw=http://example.org", "gw"),
        ("gw=https://example.org/?q", "gw"),
        ("", "?"),
        ("at=192.0.2.1:1&", "?"),
        ("nothing", "?"),
    ] {
        assert_eq!(with_query(query), Err(SturdyRefError::Hint { key }), "{query}");
    }
}

#[test]
fn the_length_of_a_reference_is_bounded() {
    let padded = |size: usize| {
        let text = sample().expose();
        let filler = "x".repeat(size - text.len() - "?x=".len());
        text.replace('#', &format!("?x={filler}#"))
    };
    assert!(padded(limits::MAX_REFERENCE_TEXT).parse::<SturdyRef>().is_ok());
    let found = limits::MAX_REFERENCE_TEXT + 1;
    assert_eq!(refused(&padded(found)), SturdyRefError::TooLong { found, limit: limits::MAX_REFERENCE_TEXT });
}

#[test]
fn a_public_address_has_no_secret_and_a_wrong_id_has_its_own_code() {
    let text = sample().expose();
    assert_eq!(text.parse::<VatAddress>(), Err(SturdyRefError::UnexpectedSecret));
    assert_eq!(text[..59].parse::<VatAddress>(), Err(SturdyRefError::UnexpectedSecret));
    assert_eq!(text[..58].parse::<VatAddress>().unwrap(), sample().address());
    let wrong = "vat://nobody".parse::<VatAddress>().unwrap_err();
    assert_eq!(wrong.code(), ErrorCode::RefIdMalformed);
}

#[test]
fn secrets_are_random_32_bytes() {
    assert_ne!(Secret::generate().unwrap(), Secret::generate().unwrap());
    assert_eq!(Secret::from_slice(&[1; 31]), Err(SturdyRefError::SecretLength { found: 31 }));
    assert_eq!(Secret::from_slice(&[1; 33]), Err(SturdyRefError::SecretLength { found: 33 }));
    let secret = Secret::from_slice(&[1; 32]).unwrap();
    assert_eq!(secret, Secret::from_slice(secret.expose()).unwrap());
}
