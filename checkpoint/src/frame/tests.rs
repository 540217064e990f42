//! The frame by itself: sizes, stamps, and that nothing but the sealed bytes opens. The bytes themselves are
//! checked against the committed test vectors in `vectors`.

use proptest::prelude::*;

use super::*;
use crate::keys::Root;

const HEADER: Header = Header {
    kind: Kind::Turns,
    group: 5,
    preceding: 512,
    following: 1 << 20,
    sequence: 6,
    epoch: 7,
    incarnation: [8; 16],
};
const PREVIOUS: FrameTag = [9; 16];

fn keys(sealed: bool) -> Keys {
    keys_of(sealed, 1, 2, 3)
}

fn keys_of(sealed: bool, root: u8, store: u8, vat: u8) -> Keys {
    let root = if sealed { Root::Sealed(zeroize::Zeroizing::new([root; 32])) } else { Root::Plain };
    Keys::new(root, [store; 16], [vat; 32])
}

fn sealed_frame(keys: &Keys, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xee; HEADER_LENGTH];
    frame.extend_from_slice(payload);
    seal(keys, &HEADER, &PREVIOUS, &[4; 32], &mut frame);
    frame
}

/// The payload without its padding, if the frame opens.
fn opened(keys: &Keys, previous: &FrameTag, frame: &[u8], length: usize) -> Option<Vec<u8>> {
    let authentic = parse(keys, frame).ok()?;
    assert_eq!(authentic.header, HEADER);
    let mut frame = frame.to_vec();
    let (payload, _) = authentic.open(&(*previous).into(), &mut frame)?;
    assert!(is_zero(&payload[length..]));
    Some(payload[..length].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_sealed_opens(
        payload in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..20_000),
        sealed in any::<bool>(),
    ) {
        let keys = keys(sealed);
        let frame = sealed_frame(&keys, &payload);
        prop_assert_eq!(frame.len(), extent(payload.len(), sealed));
        prop_assert!(frame.len().is_multiple_of(SECTOR_BYTES));
        prop_assert_eq!(opened(&keys, &PREVIOUS, &frame, payload.len()), Some(payload));
    }
}

#[test]
fn every_length_around_a_sector_boundary_fits_its_extent() {
    for sealed in [true, false] {
        let keys = keys(sealed);
        for length in (0..2100).chain(8_000..8_300) {
            let payload = vec![1; length];
            let frame = sealed_frame(&keys, &payload);
            assert_eq!(opened(&keys, &PREVIOUS, &frame, length), Some(payload), "{length}");
        }
        assert_eq!(extent(336, sealed), 512);
        assert_eq!(extent(337, sealed), 1024);
    }
}

#[test]
fn padding_wastes_little_and_leaves_few_lengths() {
    assert_eq!(pad(8192), 8192);
    let mut lengths = std::collections::BTreeSet::new();
    for length in (0..32 << 20).step_by(SECTOR_BYTES) {
        let padded = pad(length);
        assert!(padded >= length && padded.is_multiple_of(SECTOR_BYTES));
        assert!(length <= FINE_PADDING_BYTES || padded - length <= length / 8);
        lengths.insert(padded);
    }
    // Of 65,536 multiples of a sector.
    assert!(lengths.len() < 400, "{}", lengths.len());
}

#[test]
fn no_sector_of_a_frame_is_all_zero_and_none_but_the_first_begins_like_a_header() {
    for sealed in [true, false] {
        let keys = keys(sealed);
        let lookalike = sealed_frame(&keys, &[]).repeat(40);
        for payload in [vec![0; 10_000], lookalike[..20_000].to_vec()] {
            // At every alignment that the payload could have in a sector.
            for shift in 0..SECTOR_BYTES {
                let frame = sealed_frame(&keys, &payload[shift..]);
                assert!(!has_zero_sector(&frame));
                assert!(!frame.chunks(SECTOR_BYTES).skip(1).any(begins_like_header));
            }
        }
    }
}

#[test]
fn every_changed_bit_is_found() {
    for sealed in [true, false] {
        let keys = keys(sealed);
        let frame = sealed_frame(&keys, &[5; 700]);
        assert_eq!(frame.len(), 1024);
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&keys, &PREVIOUS, &changed, 700), None, "bit {bit}, sealed {sealed}");
            assert_eq!(parse(&keys, &changed).is_err(), bit / 8 < HEADER_LENGTH, "bit {bit}, sealed {sealed}");
        }
    }
}

#[test]
fn a_frame_opens_only_after_the_frame_that_it_follows() {
    for sealed in [true, false] {
        let keys = keys(sealed);
        let frame = sealed_frame(&keys, b"payload");
        assert!(opened(&keys, &PREVIOUS, &frame, 7).is_some());
        assert!(opened(&keys, &[0; 16], &frame, 7).is_none());
    }
}

#[test]
fn frames_of_others_are_told_apart() {
    let error = |keys: &Keys, frame: &[u8]| parse(keys, frame).err();
    for sealed in [true, false] {
        let frame = sealed_frame(&keys(sealed), b"payload");
        let (other_store, other_vat) = (keys_of(sealed, 1, 9, 3), keys_of(sealed, 1, 2, 9));
        assert_eq!(error(&other_store, &frame), Some(HeaderError::OtherStore));
        assert_eq!(error(&other_vat, &frame), None, "all vats of a store share its root key");
        assert_ne!(vat_tag(&frame), other_vat.vat_tag());
        assert_eq!(error(&keys(!sealed), &frame), Some(HeaderError::NotAuthentic));
    }
    let frame = sealed_frame(&keys(true), b"payload");
    assert_eq!(error(&keys_of(true, 9, 2, 3), &frame), Some(HeaderError::NotAuthentic));
    assert_eq!(error(&keys(true), &[0; 512]), Some(HeaderError::NotAuthentic));
    assert_eq!(error(&keys(true), &frame[..100]), Some(HeaderError::NotAuthentic));
}

#[test]
fn what_a_newer_program_wrote_is_told_apart_from_damage() {
    let keys = keys(true);
    let mut newer = sealed_frame(&keys, b"payload");
    newer[8] = 2;
    assert_eq!(parse(&keys, &newer).err(), Some(HeaderError::Version(2)));

    // A kind that this program cannot name, in a header that its own store has committed to.
    let mut bytes = encode(&keys, &HEADER, 512, &[4; 32]);
    bytes[10] = 77;
    let (_, commitment) = keys.frame_key(&bytes[..COMMITMENT_AT], &[4; 32]);
    bytes[COMMITMENT_AT..].copy_from_slice(&commitment);
    assert_eq!(parse(&keys, &bytes).err(), Some(HeaderError::Kind(77)));
}

#[test]
fn the_same_turn_never_gives_the_same_frame_twice() {
    let keys = keys(true);
    let frame_with = |salt| {
        let mut frame = vec![0; HEADER_LENGTH + 64];
        seal(&keys, &HEADER, &PREVIOUS, &salt, &mut frame);
        frame
    };
    let (one, two) = (frame_with([1; 32]), frame_with([2; 32]));
    assert!(one[HEADER_LENGTH..] != two[HEADER_LENGTH..]);
    assert!(one[COMMITMENT_AT..HEADER_LENGTH] != two[COMMITMENT_AT..HEADER_LENGTH]);
}
