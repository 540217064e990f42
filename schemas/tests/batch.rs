//! Many signatures at once are judged as each by itself, also those that were made to be judged differently.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/packets.rs"]
mod packets;

use curve25519_dalek::{
    EdwardsPoint, Scalar,
    constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION},
};
use schemas::{
    IdentityKey, LocationRecord, RecordError, SignedPacket, SignedRecord, State, Timestamp, UnverifiedPacket, VatId,
    VatKey, verify_all,
};
use sha2::{Digest, Sha512};

/// More than twice what is verified one by one.
const MANY: u32 = 300;

const SIGNED_AT: Timestamp = Timestamp::from_seconds(1_800_000_000);

type Packet = (VatId, Vec<u8>);

fn good(number: u32) -> Packet {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    let key = IdentityKey::from_seed(&seed);
    // Every seventh says nothing of a vat.
    if number % 7 == 6 {
        return (key.id(), packets::sign_at(&key, SIGNED_AT.as_micros(), &packets::message("_iroh", &[])));
    }
    let record = LocationRecord {
        epoch: 1,
        turn: u64::from(number),
        chain_head: None,
        state: State::Live,
        expires: Timestamp::from_seconds(1_900_000_000),
        addresses: Vec::new(),
        search_path: Vec::new(),
        document: None,
    };
    let record = SignedRecord::sign(&key, &record, SIGNED_AT).unwrap();
    (record.id(), record.packet().to_vec())
}

/// A signature by the key aB + `of_key`, with rB + `of_nonce` for R. Both additions are of small order.
fn with_torsion(number: u64, of_key: EdwardsPoint, of_nonce: EdwardsPoint) -> Packet {
    let (a, r) =
        (Scalar::from(number + 11) * Scalar::from(u64::MAX), Scalar::from(number + 13) * Scalar::from(u64::MAX));
    let id = (ED25519_BASEPOINT_POINT * a + of_key).compress().to_bytes();
    let id = VatId::from_bytes(id).expect("not of small order");
    let (_, mut packet) = good(0);
    // The id is the label behind `_vat`.
    packet[90..142].copy_from_slice(id.to_string().as_bytes());
    let nonce = (ED25519_BASEPOINT_POINT * r + of_nonce).compress().to_bytes();
    let begins = format!("3:seqi{}e1:v{}:", SIGNED_AT.as_micros(), packet.len() - 72);
    let hash = Sha512::new().chain_update(nonce).chain_update(id.as_bytes()).chain_update(begins);
    let k = Scalar::from_bytes_mod_order_wide(&hash.chain_update(&packet[72..]).finalize().into());
    packet[..32].copy_from_slice(&nonce);
    packet[32..64].copy_from_slice(&(r + k * a).to_bytes());
    (id, packet)
}

/// Each by itself.
fn one_by_one(packets: &[Packet]) -> Vec<Result<SignedPacket, RecordError>> {
    packets.iter().map(|(id, packet)| SignedPacket::verify(*id, packet)).collect()
}

/// All together, half of them with keys that were found before.
fn together(packets: &[Packet]) -> Vec<Result<SignedPacket, RecordError>> {
    let parse = |(number, (id, packet)): (usize, &Packet)| {
        if number % 2 == 0 {
            UnverifiedPacket::parse(*id, packet).unwrap()
        } else {
            UnverifiedPacket::parse_with(VatKey::from_bytes(*id.as_bytes()).unwrap(), packet).unwrap()
        }
    };
    verify_all(packets.iter().enumerate().map(parse).collect())
}

#[test]
fn good_ones_are_accepted_and_exactly_the_bad_ones_are_refused() {
    for bad in [&[][..], &[0], &[299], &[150, 151], &[3, 77, 140, 200, 201, 280]] {
        let mut packets: Vec<_> = (0..MANY).map(good).collect();
        for (way, number) in bad.iter().enumerate() {
            let packet = &mut packets[*number].1;
            match way % 3 {
                // Another R, which may be no point at all; an s that is not reduced; another s.
                0 => packet[5] ^= 4,
                1 => packet[63] |= 0xe0,
                _ => packet[33] ^= 1,
            }
        }
        let verified = together(&packets);
        for (number, result) in verified.iter().enumerate() {
            assert_eq!(result.is_err(), bad.contains(&number), "{number} of {bad:?}");
        }
        assert_eq!(verified, one_by_one(&packets));
    }
}

#[test]
fn signatures_that_only_a_multiplication_by_the_cofactor_makes_good_are_refused() {
    let none = EIGHT_TORSION[0];
    for torsion in &EIGHT_TORSION[1..] {
        // A test that looks at the sum of all equations alone would let one of two to eight of them pass.
        for attempt in 0..12 {
            let mut packets: Vec<_> = (0..120).map(good).collect();
            packets[usize::try_from(attempt).unwrap() * 9] = with_torsion(attempt, none, *torsion);
            // And two that cancel out in every sum in which both or none of them are.
            packets[110] = with_torsion(100 + attempt, none, *torsion);
            packets[111] = with_torsion(200 + attempt, none, -torsion);
            let verified = together(&packets);
            assert_eq!(verified.iter().filter(|result| result.is_err()).count(), 3);
            assert_eq!(verified, one_by_one(&packets));
        }
    }
}

#[test]
fn keys_outside_the_subgroup_are_judged_as_strictly_and_no_more() {
    let mut packets: Vec<_> = (0..60).map(good).collect();
    for (number, torsion) in (0..96).zip(EIGHT_TORSION.iter().cycle()) {
        packets.push(with_torsion(number, *torsion, EIGHT_TORSION[0]));
        packets.push(with_torsion(number, *torsion, EIGHT_TORSION[usize::try_from(number % 7).unwrap()]));
    }
    let alone = one_by_one(&packets);
    // Where k times the torsion of the key is zero, or what that of R takes away, the strict check accepts.
    let accepted = alone.iter().skip(60).filter(|result| result.is_ok()).count();
    assert!((10..180).contains(&accepted), "{accepted}");
    for _ in 0..3 {
        assert_eq!(together(&packets), alone);
    }
    let (good, bad): (Vec<_>, Vec<_>) = packets.into_iter().zip(alone).partition(|(_, result)| result.is_ok());
    assert!(!bad.is_empty());
    // Together they are a batch without one that fails.
    let packets: Vec<_> = good.iter().cycle().take(200).map(|(packet, _)| packet.clone()).collect();
    assert!(together(&packets).iter().all(Result::is_ok));
}

#[test]
fn few_are_verified_too() {
    for count in [0, 1, 2, 95, 96, 97] {
        let packets: Vec<_> = (0..count).map(good).collect();
        let verified = together(&packets);
        assert_eq!(verified.len(), packets.len());
        assert!(verified.iter().all(Result::is_ok));
    }
}

#[test]
fn one_key_outside_the_subgroup_among_good_ones_is_judged_as_strictly() {
    let mut packets: Vec<_> = (0..100).map(good).collect();
    let mut accepted = 0;
    // Every part that R can have meets every multiple of the key's, some times.
    for (number, of_nonce) in (0..240).zip(EIGHT_TORSION.iter().cycle()) {
        let odd = with_torsion(number, EIGHT_TORSION[1], *of_nonce);
        let alone = SignedPacket::verify(odd.0, &odd.1);
        accepted += usize::from(alone.is_ok());
        packets[50] = odd;
        assert_eq!(together(&packets)[50], alone, "{number}");
    }
    assert!((10..60).contains(&accepted), "{accepted}");
}
