//! Where an id stands in the index: SipHash-1-3 (Aumasson, Bernstein, 2012) under a secret key.
//!
//! Ids are chosen by strangers. Without the key nobody can prepare many that meet in one place.

use super::Id;

/// The secret key.
#[derive(Clone, Copy)]
pub(crate) struct HashKey(u64, u64);

impl HashKey {
    /// The key that belongs to a secret random number.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed, seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The hash of an id.
    pub(crate) fn hash(self, id: &Id) -> u64 {
        const INITIAL: [u64; 4] =
            [0x736f_6d65_7073_6575, 0x646f_7261_6e64_6f6d, 0x6c79_6765_6e65_7261, 0x7465_6462_7974_6573];
        let mut state = [INITIAL[0] ^ self.0, INITIAL[1] ^ self.1, INITIAL[2] ^ self.0, INITIAL[3] ^ self.1];
        let (words, _) = id.as_chunks::<8>();
        for word in words.iter().map(|word| u64::from_le_bytes(*word)) {
            state[3] ^= word;
            round(&mut state);
            state[0] ^= word;
        }
        // The last word has the length, modulo 256, in its highest byte.
        let last = (id.len() as u64) << 56;
        state[3] ^= last;
        round(&mut state);
        state[0] ^= last;
        state[2] ^= 0xff;
        (0..3).for_each(|_| round(&mut state));
        state.into_iter().fold(0, |hash, word| hash ^ word)
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey")
    }
}

fn round(state: &mut [u64; 4]) {
    let [mut a, mut b, mut c, mut d] = *state;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    *state = [a, b, c, d];
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    #[test]
    fn it_is_the_siphash_of_the_standard_library() {
        for byte in 0..50 {
            let mut id = [byte; 32];
            id[7] = 200 - byte;
            // Documented to have the keys 0 and 0; in fact SipHash-1-3.
            let mut reference = DefaultHasher::new();
            reference.write(&id);
            assert_eq!(HashKey(0, 0).hash(&id), reference.finish());
            assert_ne!(HashKey::new(1).hash(&id), HashKey::new(2).hash(&id));
        }
    }
}
