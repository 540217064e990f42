//! Ids are checked public keys with one spelling each; signatures are bound to their context.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/strategies.rs"]
mod strategies;

use proptest::prelude::*;
use schemas::{Coded, ErrorCode, IdentityError, IdentityKey, VatId};

const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

proptest! {
    #[test]
    fn printing_and_parsing_an_id_gives_it_back(id in strategies::id()) {
        let text = id.to_string();
        prop_assert_eq!(text.len(), VatId::TEXT_LENGTH);
        prop_assert_eq!(text.parse::<VatId>().unwrap(), id);
        prop_assert_eq!(VatId::from_slice(id.as_bytes()).unwrap(), id);
    }

    #[test]
    fn all_fifteen_other_spellings_of_an_id_are_refused(id in strategies::id()) {
        let text = id.to_string();
        let (rest, last) = text.split_at(VatId::TEXT_LENGTH - 1);
        let data_bit = ALPHABET.iter().position(|symbol| *symbol == last.as_bytes()[0]).unwrap();
        prop_assert_eq!(data_bit % 16, 0, "the spare bits are the low ones");
        for spare in 1..16 {
            let spelling = format!("{rest}{}", char::from(ALPHABET[data_bit + spare]));
            prop_assert_eq!(spelling.parse::<VatId>(), Err(IdentityError::NotCanonical));
        }
        prop_assert_eq!(text.to_uppercase().parse::<VatId>(), Err(IdentityError::Text));
    }

    #[test]
    fn any_text_parses_to_its_own_id_or_not_at_all(text in "\\PC{0,60}|[a-z0-9]{52}") {
        if let Ok(id) = text.parse::<VatId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn any_bytes_are_a_canonical_key_or_refused(bytes in any::<[u8; 32]>()) {
        match VatId::from_bytes(bytes) {
            Ok(id) => prop_assert_eq!(id.as_bytes(), &bytes),
            Err(error) => prop_assert_eq!(error, IdentityError::NotAKey),
        }
    }

    #[test]
    fn a_signature_counts_for_its_signer_context_and_message_only(key in strategies::key(), other in strategies::id(), message: Vec<u8>) {
        let signature = key.sign("test", &message);
        prop_assert_eq!(key.id().verify("test", &message, &signature), Ok(()));
        prop_assert_eq!(other.verify("test", &message, &signature), Err(IdentityError::Signature));
        prop_assert_eq!(key.id().verify("tests", &message, &signature), Err(IdentityError::Signature));
        prop_assert_eq!(key.id().verify_raw(&message, &signature), Err(IdentityError::Signature));
        let longer = [&message[..], b"x"].concat();
        prop_assert_eq!(key.id().verify("test", &longer, &signature), Err(IdentityError::Signature));
    }
}

#[test]
fn where_the_context_ends_is_part_of_what_is_signed() {
    let key = IdentityKey::from_seed(&[1; 32]);
    let signature = key.sign("ab", b"cd");
    assert_eq!(key.id().verify("abc", b"d", &signature), Err(IdentityError::Signature));
    assert_eq!(key.id().verify("a", b"bcd", &signature), Err(IdentityError::Signature));
}

/// The encodings of the eight points of small order, and the unreduced encodings of the same.
#[test]
fn small_order_keys_are_refused() {
    let order_eight = [
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ];
    let mut encodings: Vec<[u8; 32]> =
        order_eight.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()).to_vec();
    // y = 0, 1, -1, and the same plus p = 2^255 - 19.
    for (lowest, others) in [(0x00, 0x00), (0x01, 0x00), (0xec, 0xff), (0xed, 0xff), (0xee, 0xff)] {
        let mut encoding = [others; 32];
        encoding[0] = lowest;
        encoding[31] &= 0x7f;
        encodings.push(encoding);
    }
    for mut encoding in encodings {
        assert_eq!(VatId::from_bytes(encoding), Err(IdentityError::NotAKey), "{encoding:02x?}");
        encoding[31] |= 0x80;
        assert_eq!(VatId::from_bytes(encoding), Err(IdentityError::NotAKey), "{encoding:02x?}, other sign");
    }
}

#[test]
fn unreduced_encodings_are_refused_also_of_points_of_full_order() {
    let mut reduced_accepted = 0;
    for y in 0..19_u8 {
        for sign in [0x00, 0x80] {
            let mut reduced = [0; 32];
            (reduced[0], reduced[31]) = (y, sign);
            reduced_accepted += usize::from(VatId::from_bytes(reduced).is_ok());
            let mut unreduced = [0xff; 32];
            (unreduced[0], unreduced[31]) = (0xed + y, 0x7f | sign);
            assert_eq!(VatId::from_bytes(unreduced), Err(IdentityError::NotAKey), "p + {y}");
        }
    }
    assert!(reduced_accepted > 10, "most of them would be keys if they were reduced: {reduced_accepted}");
}

#[test]
fn lengths_are_checked() {
    assert_eq!(VatId::from_slice(&[1; 31]), Err(IdentityError::Length { found: 31 }));
    assert_eq!("".parse::<VatId>(), Err(IdentityError::Text));
    let text = IdentityKey::from_seed(&[1; 32]).id().to_string();
    assert_eq!(text[1..].parse::<VatId>(), Err(IdentityError::Text));
    assert_eq!(format!("{text}y").parse::<VatId>(), Err(IdentityError::Text));
}

#[test]
fn generated_identities_differ_and_come_back_from_their_seed() {
    let (first, second) = (IdentityKey::generate().unwrap(), IdentityKey::generate().unwrap());
    assert_ne!(first.id(), second.id());
    assert_eq!(IdentityKey::from_seed(&first.seed()).id(), first.id());
}

#[test]
fn a_wrong_id_has_its_own_code() {
    assert_eq!(IdentityError::Text.code(), ErrorCode::RefIdMalformed);
    assert_eq!(IdentityError::NotAKey.code(), ErrorCode::RefIdMalformed);
}
