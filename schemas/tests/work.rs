//! Work for a place at a location server that is nearly full.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use schemas::{IdentityKey, Task, VatId};

fn id(number: u8) -> VatId {
    IdentityKey::from_seed(&[number; 32]).id()
}

fn task(bits: u8) -> Task {
    let mut challenge = [0; 16];
    (0..).zip(&mut challenge).for_each(|(number, byte)| *byte = number);
    Task { challenge, bits }
}

/// The figures are of another program: whoever writes a client of its own can compare.
#[test]
fn the_first_nonce_with_sixteen_zero_bits_is_the_one_that_another_program_finds() {
    assert_eq!(task(16).solve(&id(3), 0, || true), Some(25_156));
    assert_eq!(task(8).solve(&id(3), 0, || true), Some(493));
    assert_eq!(task(8).solve(&id(3), 494, || true), Some(1_728));
    assert!(task(16).is_solved_by(&id(3), 25_156));
    assert!(!task(17).is_solved_by(&id(3), 25_156), "its hash begins with 0000a9");
    assert!(!task(16).is_solved_by(&id(3), 25_157));
}

#[test]
fn whoever_is_told_to_stop_stops_and_asks_again_and_again() {
    let mut asked = 0;
    let found = task(64).solve(&id(3), 7, || {
        asked += 1;
        asked < 5
    });
    assert_eq!((found, asked), (None, 5));
}

#[test]
fn a_task_has_one_text() {
    let text = "18 000102030405060708090a0b0c0d0e0f";
    assert_eq!(task(18).to_string(), text);
    assert_eq!(text.parse(), Ok(task(18)));
    for wrong in
        ["", "18", "18 00", "256 000102030405060708090a0b0c0d0e0f", "18 000102030405060708090A0B0C0D0E0F", "18  0"]
    {
        assert!(wrong.parse::<Task>().is_err(), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_a_solution_and_of_no_other_id_challenge_or_harder_task_but_by_luck(
        challenge: [u8; 16],
        first: u64,
        bits in 6..=10_u8,
        vat in 0..200_u8,
        flipped in 0..128_usize,
    ) {
        let task = Task { challenge, bits };
        let nonce = task.solve(&id(vat), first, || true).unwrap();
        prop_assert!(task.is_solved_by(&id(vat), nonce));
        let (easier, harder) = (Task { bits: bits - 1, ..task }, Task { bits: 24, ..task });
        prop_assert!(easier.is_solved_by(&id(vat), nonce));
        // One in 2^24 by luck.
        let mut other = harder;
        other.challenge[flipped / 8] ^= 1 << (flipped % 8);
        prop_assert!(!other.is_solved_by(&id(vat), nonce));
        prop_assert!(!harder.is_solved_by(&id(vat.wrapping_add(1)), nonce));
        prop_assert_eq!(task.to_string().parse(), Ok(task));
    }
}
