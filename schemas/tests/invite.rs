//! Invites to a closed location server: one text, every mistake in it found, and nothing shown.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use schemas::{Invite, InviteError};

/// Text and hash of the bytes a0 to af, by another program.
const TEXT: &str = "vlsinvite:wno4fe7rwsukxkfjiki43mpqi9qr8eza";
const HASH: &str = "ce5468f2fb5b3d930b6032646f61b82029b59d96cdb820b5840877963dbfe881";

fn invite() -> Invite {
    let bytes: Vec<u8> = (0xa0..0xb0).collect();
    Invite::from_slice(&bytes).unwrap()
}

#[test]
fn text_and_hash_are_those_that_another_program_computes() {
    assert_eq!(invite().expose().as_str(), TEXT);
    assert_eq!(TEXT.parse(), Ok(invite()));
    assert_eq!(data_encoding::HEXLOWER.encode(invite().hash().as_bytes()), HASH);
    assert_ne!(Invite::generate().unwrap(), Invite::generate().unwrap());
}

#[test]
fn every_change_of_a_character_is_found() {
    for position in 0..TEXT.len() {
        for character in "ybndrfg8ejkmcpqxot1uwisza345h769:Y ".chars() {
            let mut changed: Vec<char> = TEXT.chars().collect();
            if std::mem::replace(&mut changed[position], character) == character {
                continue;
            }
            let changed: String = changed.into_iter().collect();
            assert!(changed.parse::<Invite>().is_err(), "{changed}");
        }
    }
    assert_eq!(TEXT[..41].parse::<Invite>(), Err(InviteError::Text));
    assert_eq!(TEXT[10..].parse::<Invite>(), Err(InviteError::Scheme));
    assert_eq!(Invite::from_slice(&[1; 15]), Err(InviteError::Length { found: 15 }));
}

#[test]
fn no_part_of_an_invite_is_shown() {
    let shown = format!("{:?} {:#?} {:?}", invite(), invite(), TEXT.replace('w', "y").parse::<Invite>().unwrap_err());
    assert!(shown.contains(&invite().hash().to_string()));
    let bytes = data_encoding::HEXLOWER.encode(invite().as_bytes());
    for window in TEXT.as_bytes()[10..].windows(5).chain(bytes.as_bytes().windows(6)) {
        assert!(!shown.contains(std::str::from_utf8(window).unwrap()), "{shown}");
    }
    assert!(!shown.contains("160, 161"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_invite_survives_its_text(bytes: [u8; 16]) {
        let invite = Invite::from_slice(&bytes).unwrap();
        prop_assert_eq!(invite.expose().parse(), Ok(invite));
    }

    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _ = text.parse::<Invite>();
        let _ = format!("vlsinvite:{text}").parse::<Invite>();
    }
}
