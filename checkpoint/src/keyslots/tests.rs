//! The keyslots file by itself: what opens which slot, and that no changed bit goes unseen.

use super::*;
use crate::{
    secrets::{RecipientKey, StoreKey},
    simulated::SimulatedDisk,
};
use zeroize::Zeroizing;

const STORE: [u8; 16] = [3; 16];
/// Enough for Argon2id to work at all, so that tests are quick.
const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };

fn secret(byte: u8) -> SecretBytes {
    SecretBytes::new([byte; 32])
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
}

fn with_key(key: u8) -> Keyslots {
    let mut slots = Keyslots::sealed(STORE, &secret(1));
    slots.add_key(&secret(1), &secret(key), &[4; 32]);
    slots
}

fn with_passphrase(text: &str, cost: PassphraseCost) -> Keyslots {
    let mut slots = Keyslots::sealed(STORE, &secret(1));
    slots.add_passphrase(&secret(1), &passphrase(text), cost, &[4; 32]).unwrap();
    slots
}

fn with_recipient(key: &RecipientKey) -> Keyslots {
    let mut slots = Keyslots::sealed(STORE, &secret(1));
    slots.add_recipient(&secret(1), &key.recipient().unwrap()).unwrap();
    slots
}

fn unlock(slots: &Keyslots, protection: &Protection) -> Result<SecretBytes, StoreError> {
    let read = Keyslots::decode(Path::new("keyslots"), &slots.encode()).unwrap();
    let unlocked = read.unlock(SimulatedDisk::new().as_ref(), Path::new("/s"), protection)?;
    let Root::Sealed(root) = unlocked.root else { panic!("plain") };
    assert!(read.slots().any(|(id, _)| Some(id) == unlocked.slot));
    Ok(root)
}

fn key(byte: u8) -> Protection {
    Protection::Key(StoreKey::new(&[byte; 32]))
}

#[test]
fn the_right_key_unwraps_the_root_key_and_no_other_does() {
    let slots = with_key(2);
    assert_eq!(unlock(&slots, &key(2)).unwrap(), secret(1));
    assert!(matches!(unlock(&slots, &key(5)), Err(StoreError::GivenKeyWrong { .. })));
    assert!(slots.is_sealed());
    assert!(!Keyslots::plain(STORE).is_sealed());
}

#[test]
fn the_right_passphrase_unwraps_the_root_key_and_no_other_does() {
    let slots = with_passphrase("correct horse", CHEAP);
    let with = |text| unlock(&slots, &Protection::Passphrase(passphrase(text)));
    assert_eq!(with("correct horse").unwrap(), secret(1));
    for wrong in ["correct horsf", "correct horse ", "Correct horse"] {
        assert!(matches!(with(wrong), Err(StoreError::PassphraseWrong { .. })), "{wrong}");
    }
    // The cost is part of what is stretched: it cannot be lowered.
    let mut cheaper = slots.clone();
    cheaper.slots[0].body[0] -= 1;
    let refused = unlock(&cheaper, &Protection::Passphrase(passphrase("correct horse")));
    assert!(matches!(refused, Err(StoreError::PassphraseWrong { .. })));
}

#[test]
fn the_right_private_key_unwraps_the_root_key_and_no_other_does() {
    let (mine, other) = (RecipientKey::generate().unwrap(), RecipientKey::generate().unwrap());
    let slots = with_recipient(&mine);
    assert_eq!(unlock(&slots, &Protection::Recipient(mine.clone())).unwrap(), secret(1));
    let refused = unlock(&slots, &Protection::Recipient(other.clone()));
    let name = other.recipient().unwrap();
    assert!(matches!(refused, Err(StoreError::RecipientWrong { recipient, .. }) if recipient == name));
    let (id, _) = slots.slots().next().unwrap();
    assert_eq!(slots.recipient(id, &secret(1)), Some(mine.recipient().unwrap()));
    assert_eq!(slots.recipient(id, &secret(2)), None, "for whom it is, only holders can read");
}

#[test]
fn a_kind_for_which_there_is_no_slot_is_named_with_those_there_are() {
    let mut slots = with_key(2);
    slots.slots.push(Slot { kind: 77, body: vec![1] });
    let refused = unlock(&slots, &Protection::Passphrase(passphrase("correct horse"))).unwrap_err();
    assert_eq!(refused.to_string(), "/s cannot be unlocked with a passphrase, only with: key, slot of type 77");
    let refused = unlock(&with_passphrase("correct horse", CHEAP), &key(2)).unwrap_err();
    assert_eq!(refused.to_string(), "/s cannot be unlocked with a key, only with: passphrase");
}

#[test]
fn what_a_slot_asks_for_is_bounded_before_any_memory_is_taken() {
    for (memory_kib, passes, lanes) in [
        (u32::MAX, 3, 1),
        (crate::limits::MAX_PASSPHRASE_MEMORY_KIB + 1, 3, 1),
        (64, u32::MAX, 1),
        (64, 0, 1),
        (64, 1, 0),
        (1 << 20, 1, u32::MAX),
        (7, 1, 1),
    ] {
        let mut slots = with_passphrase("correct horse", CHEAP);
        for (at, number) in [memory_kib, passes, lanes].into_iter().enumerate() {
            slots.slots[0].body[4 * at..4 * at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let right = Protection::Passphrase(passphrase("correct horse"));
        let refused = unlock(&slots, &right).unwrap_err();
        assert!(matches!(refused, StoreError::PassphraseCost { .. }), "{refused}");
        // Such a slot does not keep others from being opened.
        slots.slots.extend(with_passphrase("correct horse", CHEAP).slots);
        assert_eq!(unlock(&slots, &right).unwrap(), secret(1));
    }
}

#[test]
fn every_changed_bit_is_found() {
    let recipient = RecipientKey::generate().unwrap();
    let mut all = with_key(2);
    all.slots.extend(with_passphrase("correct horse", CHEAP).slots);
    all.slots.extend(with_recipient(&recipient).slots);
    let bytes = all.encode();
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Keyslots::decode(Path::new("keyslots"), &changed).is_err(), "bit {bit}");
        assert!(Keyslots::decode_prefix(Path::new("keyslots"), &changed).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(Keyslots::decode(Path::new("keyslots"), &bytes[..length]).is_err());
        assert!(Keyslots::decode_prefix(Path::new("keyslots"), &bytes[..length]).is_err());
    }
}

/// The checksum is no secret. Whoever can write the file can make it fit, and then every bit of a slot has to be
/// found by the slot itself.
#[test]
fn every_changed_bit_of_a_slot_is_found_without_the_checksum() {
    let recipient = RecipientKey::generate().unwrap();
    let cases = [
        (with_key(2), key(2)),
        (with_passphrase("correct horse", CHEAP), Protection::Passphrase(passphrase("correct horse"))),
        (with_recipient(&recipient), Protection::Recipient(recipient)),
    ];
    for (slots, protection) in cases {
        let (kind, length) = (slots.slots[0].kind, slots.slots[0].body.len());
        for bit in 0..length * 8 {
            // Argon2id would be asked for gigabytes of passes; bounds are another test's.
            if kind == PASSPHRASE && (bit / 8 < 12) && ![0, 1, 2].contains(&bit) {
                continue;
            }
            let mut changed = slots.clone();
            changed.slots[0].body[bit / 8] ^= 1 << (bit % 8);
            let opened = unlock(&changed, &protection);
            if kind == RECIPIENT && bit / 8 >= 80 {
                // The note says for whom the slot is, and opens nothing.
                let (id, _) = changed.slots().next().unwrap();
                assert_eq!(changed.recipient(id, &opened.unwrap()), None, "bit {bit}");
            } else {
                assert!(opened.is_err(), "type {kind} bit {bit}");
            }
        }
        for length in 0..length {
            let mut changed = slots.clone();
            changed.slots[0].body.truncate(length);
            assert!(unlock(&changed, &protection).is_err());
        }
    }
}

#[test]
fn a_wrapped_key_does_not_open_in_another_store_nor_as_another_type() {
    let recipient = RecipientKey::generate().unwrap();
    let cases = [
        (with_key(2), key(2)),
        (with_passphrase("correct horse", CHEAP), Protection::Passphrase(passphrase("correct horse"))),
        (with_recipient(&recipient), Protection::Recipient(recipient)),
    ];
    for (slots, protection) in cases {
        assert_eq!(unlock(&slots, &protection).unwrap(), secret(1));
        let mut moved = slots.clone();
        moved.store = [9; 16];
        moved.head[12..28].copy_from_slice(&moved.store);
        assert!(unlock(&moved, &protection).is_err());
        // Also not with the root key check of the other store.
        let mut moved = Keyslots::sealed([9; 16], &secret(1));
        moved.slots.clone_from(&slots.slots);
        assert!(unlock(&moved, &protection).is_err());
    }
    let mut other = with_passphrase("correct horse", CHEAP);
    other.slots[0].kind = KEY;
    other.slots[0].body.drain(..12);
    assert!(unlock(&other, &key(2)).is_err());
}

#[test]
fn slots_of_unknown_types_are_skipped_and_kept() {
    let mut slots = with_key(2);
    slots.slots.insert(0, Slot { kind: 77, body: vec![1, 2, 3] });
    let read = Keyslots::decode(Path::new("keyslots"), &slots.encode()).unwrap();
    assert_eq!(unlock(&read, &key(2)).unwrap(), secret(1));
    assert_eq!(read.encode(), slots.encode());
    assert_eq!(read.slots().map(|(_, kind)| kind).collect::<Vec<_>>(), [SlotKind::Unknown(77), SlotKind::Key]);
}

#[test]
fn a_newer_version_is_refused_as_such() {
    let mut slots = Keyslots::plain(STORE);
    slots.head[8] = 2;
    let refused = Keyslots::decode(Path::new("keyslots"), &slots.encode());
    assert!(matches!(refused, Err(StoreError::Version { found: 2, known: 1, .. })));
}

#[test]
fn keyslots_in_front_of_something_else_are_read_and_measured() {
    let bytes = with_key(2).encode();
    let (read, length) = Keyslots::decode_prefix(Path::new("image"), &[&bytes[..], b"frames"].concat()).unwrap();
    assert_eq!((length, read.encode()), (bytes.len(), bytes.clone()));
    assert!(Keyslots::decode(Path::new("keyslots"), &[&bytes[..], b"frames"].concat()).is_err());
}

#[test]
fn the_id_of_a_slot_reads_back_and_changes_with_every_bit() {
    let slots = with_key(2);
    let id = slots.slots[0].id();
    assert_eq!(id.to_string().parse(), Ok(id));
    for text in ["", "12345", "123456789", "123456789g", "123456789A", "12345678901", "é23456789"] {
        assert_eq!(text.parse::<SlotId>(), Err(SlotIdError), "{text}");
    }
    for bit in 0..8 * slots.slots[0].body.len() {
        let mut changed = slots.slots[0].clone();
        changed.body[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(changed.id(), id);
    }
}

#[test]
fn a_full_file_takes_no_further_holder_and_leaves_room_to_rotate() {
    let disk = SimulatedDisk::new();
    let recipient = Holder::Recipient(RecipientKey::generate().unwrap().recipient().unwrap());
    let mut slots = with_key(2);
    let refused = loop {
        match slots.add(disk.as_ref(), Path::new("/s"), &secret(1), &recipient) {
            Ok(_) => {}
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, StoreError::TooManySlots { .. }), "{refused}");
    assert!(slots.slots.len() > 400, "{}", slots.slots.len());
    let comes = slots.add_key(&secret(1), &secret(7), &[5; 32]);
    slots.set_rotation(Some((comes, comes)));
    assert!(slots.encode().len() as u64 <= MAX_KEYSLOTS_BYTES);

    let mut slots = with_key(2);
    for _ in 0..MAX_PASSPHRASE_SLOTS {
        slots.slots.extend(with_passphrase("correct horse", CHEAP).slots);
    }
    let refused = slots.add(disk.as_ref(), Path::new("/s"), &secret(1), &Holder::Passphrase(passphrase("another one")));
    assert!(matches!(refused, Err(StoreError::TooManySlots { .. })));
}

/// What `schemas` refuses as a recipient is exactly what gives a shared secret of zero, and HPKE refuses it too.
#[test]
fn nothing_is_sealed_for_a_key_that_everybody_has() {
    let private = RecipientKey::from_bytes(&[7; 32]).private().unwrap();
    let small_order = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ];
    for hexadecimal in small_order {
        use hpke::{Deserializable, Kem, OpModeR, aead::AesGcm256, kdf::HkdfSha256, kem::X25519HkdfSha256};
        let bytes: Vec<u8> =
            (0..64).step_by(2).map(|at| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap()).collect();
        assert!(Recipient::from_bytes(bytes.clone().try_into().unwrap()).is_err());
        let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&bytes).unwrap();
        let received = hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &private,
            &encapsulated,
            b"",
        );
        assert!(matches!(received, Err(hpke::HpkeError::DecapError)), "{hexadecimal}");
    }
}

#[test]
fn nothing_that_opens_a_store_can_be_printed() {
    let text = "a marked passphrase";
    let key = RecipientKey::from_bytes(&[0xab; 32]);
    let printed = format!(
        "{:?} {:?} {:?} {:?}",
        Protection::Passphrase(passphrase(text)),
        Protection::Recipient(key),
        Protection::Key(StoreKey::new(&[0xab; 32])),
        Holder::Passphrase(passphrase(text)),
    );
    assert_eq!(
        printed,
        "Passphrase(Passphrase(..)) Recipient(RecipientKey(..)) Key(StoreKey(..)) Passphrase(Passphrase(..))"
    );
    let refused = Passphrase::new(Zeroizing::new("short".to_owned())).unwrap_err();
    assert!(!refused.to_string().contains("short\""));
}
