//! HMAC-SHA256 (RFC 2104) and HKDF-SHA256 (RFC 5869): how keys are derived (DESIGN §8, Sealing).
//!
//! Every frame has a key of its own, and 15 blocks of SHA-256 derive it: as much work as to encrypt 4 KiB. That is why
//! this is not left to a library, as all other cryptography is. *ring* takes half as long again as those blocks, and the
//! `hkdf` crate a quarter: each of the six short messages becomes a hash of its own, which is made, copied, fed piece by
//! piece and wiped. Here a message goes to the block function in one piece. The block function is that of `sha2`,
//! which uses the processor's instructions for SHA where it has them; whatever was secret on the way is wiped; and the
//! tests hold every length of message, and any key, against *ring*.

use std::iter::once;

use ring::digest::{SHA256, digest};
use sha2::block_api::compress256;
use zeroize::optimization_barrier;

/// Length of what SHA-256 gives, in bytes.
pub(crate) const HASH_LENGTH: usize = 32;

/// Length of a block of SHA-256, in bytes.
const BLOCK: usize = 64;
/// As many blocks as the longest message of a frame's key has: they are compressed in one go.
const BLOCKS: usize = 4;
/// SHA-256 before its first block (FIPS 180-4, section 5.3.3).
const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const INNER: u8 = 0x36;
const OUTER: u8 = 0x5c;

type State = [u32; 8];
type Hash = [u8; HASH_LENGTH];

/// HKDF-SHA256. `out` is at most 255 hashes long.
pub(crate) fn hkdf(secret: &[u8], salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
    debug_assert!(out.len() <= 255 * HASH_LENGTH);
    let mut extracted = hmac(salt, once(secret));
    let expand = Hmac::new(&extracted);
    wipe(&mut extracted);
    let mut previous: &[u8] = &[];
    for (piece, number) in out.chunks_mut(HASH_LENGTH).zip(1..) {
        let number = [number];
        let message = once(previous).chain(info.iter().copied()).chain(once(&number[..]));
        let mut hash = expand.sign(message);
        piece.copy_from_slice(&hash[..piece.len()]);
        wipe(&mut hash);
        previous = piece;
    }
}

/// HMAC-SHA256 of a message that is given in pieces.
fn hmac<'a>(key: &[u8], message: impl IntoIterator<Item = &'a [u8]>) -> Hash {
    Hmac::new(key).sign(message)
}

/// HMAC-SHA256 under one key, which is taken in once: SHA-256 after the blocks that the key fills, for the inner and the outer hash.
pub(crate) struct Hmac {
    inner: State,
    outer: State,
}

impl Hmac {
    /// Under this key.
    pub(crate) fn new(key: &[u8]) -> Self {
        if key.len() > BLOCK {
            return Self::new(digest(&SHA256, key).as_ref());
        }
        let keyed = |with: u8| {
            let (mut state, mut block) = (INITIAL, [with; BLOCK]);
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            compress256(&mut state, &[block]);
            wipe(&mut block);
            state
        };
        Self { inner: keyed(INNER), outer: keyed(OUTER) }
    }

    /// Of a message that is given in pieces.
    pub(crate) fn sign<'a>(&self, message: impl IntoIterator<Item = &'a [u8]>) -> Hash {
        let mut inner = finish(self.inner, message);
        let hash = finish(self.outer, once(&inner[..]));
        wipe(&mut inner);
        hash
    }
}

impl Drop for Hmac {
    fn drop(&mut self) {
        wipe(&mut self.inner);
        wipe(&mut self.outer);
    }
}

/// The SHA-256 of a message whose first block, which led to `state`, is followed by these pieces.
fn finish<'a>(mut state: State, message: impl IntoIterator<Item = &'a [u8]>) -> Hash {
    let mut blocks = [[0; BLOCK]; BLOCKS];
    let (mut filled, mut length) = (0, BLOCK as u64);
    for mut piece in message {
        length += piece.len() as u64;
        while !piece.is_empty() {
            if filled == BLOCKS * BLOCK {
                compress256(&mut state, &blocks);
                filled = 0;
            }
            let room = &mut blocks.as_flattened_mut()[filled..];
            let (now, later) = piece.split_at(piece.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            (filled, piece) = (filled + now.len(), later);
        }
    }
    // One bit, as many zeros as it takes, and the number of bits before (FIPS 180-4, section 5.1.1).
    let mut used = filled / BLOCK;
    if used == BLOCKS {
        compress256(&mut state, &blocks);
        (filled, used) = (0, 0);
    }
    blocks[used][filled % BLOCK..].fill(0);
    blocks[used][filled % BLOCK] = 0x80;
    if filled % BLOCK >= BLOCK - size_of::<u64>() {
        compress256(&mut state, &blocks[..=used]);
        blocks[0] = [0; BLOCK];
        used = 0;
    }
    blocks[used][BLOCK - size_of::<u64>()..].copy_from_slice(&(length * 8).to_be_bytes());
    compress256(&mut state, &blocks[..=used]);
    // The message lies at the beginning; one that is longer than there is room has been everywhere.
    let secret = usize::try_from(length - BLOCK as u64).map_or(usize::MAX, |bytes| bytes.min(BLOCKS * BLOCK));
    wipe(&mut blocks.as_flattened_mut()[..secret]);
    let mut hash = [0; HASH_LENGTH];
    hash.as_chunks_mut().0.iter_mut().zip(state).for_each(|(bytes, word)| *bytes = word.to_be_bytes());
    wipe(&mut state);
    hash
}

/// Overwrites what was secret, in a way that the compiler must not leave out.
fn wipe<T: Default + Copy>(secret: &mut [T]) {
    secret.fill(T::default());
    optimization_barrier(secret);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::{hkdf as ring_hkdf, hmac as ring_hmac};

    use super::*;

    struct Length(usize);

    impl ring_hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }

    fn rings_hkdf(secret: &[u8], salt: &[u8], info: &[&[u8]], length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        let key = ring_hkdf::Salt::new(ring_hkdf::HKDF_SHA256, salt).extract(secret);
        key.expand(info, Length(length)).unwrap().fill(&mut out).unwrap();
        out
    }

    fn rings_hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
        ring_hmac::sign(&ring_hmac::Key::new(ring_hmac::HMAC_SHA256, key), message).as_ref().to_vec()
    }

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 5869, appendix A.2: long inputs, and three pieces of output.
    #[test]
    fn keys_are_those_of_the_second_example_of_the_standard() {
        let run = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
        let mut out = [0; 82];
        hkdf(&run(0x00, 0x4f), &run(0x60, 0xaf), &[&run(0xb0, 0xd0), &run(0xd1, 0xff)], &mut out);
        let expected = "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09\
                        da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87";
        assert_eq!(hexadecimal(&out), expected);
    }

    /// Where one block, the buffer, or the room for the length ends, every length is tried.
    #[test]
    fn messages_of_every_length_have_the_code_that_ring_gives_them() {
        let message: Vec<u8> = (0..=u8::MAX).cycle().take(2 * BLOCKS * BLOCK + 9).collect();
        for length in 0..message.len() {
            let (first, second) = message[..length].split_at(length / 3);
            assert_eq!(hmac(b"a key", [first, second]), *rings_hmac(b"a key", &message[..length]), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_key_is_the_one_that_ring_derives(
            secret in prop::collection::vec(any::<u8>(), 0..100),
            salt in prop::collection::vec(any::<u8>(), 0..100),
            info in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            length in 0..100usize,
        ) {
            let info: Vec<&[u8]> = info.iter().map(Vec::as_slice).collect();
            let mut out = vec![0; length];
            hkdf(&secret, &salt, &info, &mut out);
            prop_assert_eq!(out, rings_hkdf(&secret, &salt, &info, length));
        }
    }
}
