//! Random numbers that can be had again: every failure names the seed.

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators"): small, and good enough
/// to choose moments and amounts.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// Takes the seed from `VAT_TEST_SEED`, or a new one.
    ///
    /// # Panics
    /// When `VAT_TEST_SEED` is not a number, or the system has no random numbers.
    #[must_use]
    pub fn from_environment() -> Self {
        let seed = match std::env::var("VAT_TEST_SEED") {
            Ok(text) => text.parse().expect("VAT_TEST_SEED is a number"),
            Err(_) => {
                // Every process and every moment has its own keys of the standard hash.
                use std::hash::{BuildHasher, Hasher};
                std::hash::RandomState::new().build_hasher().finish()
            }
        };
        Self { seed, state: seed }
    }

    /// What to set `VAT_TEST_SEED` to, for the same choices again.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number from 0 to `bound` - 1.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The bias of the remainder is 2^-50 for the small bounds used here.
        (mixed ^ (mixed >> 31)) % bound
    }
}
