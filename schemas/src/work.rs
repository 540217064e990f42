//! Work: what a registration costs where a location server is nearly full (DESIGN §4, rule 9).
//!
//! The server hands out a [`Task`]; whoever wants a place looks for a nonce with which
//!
//! ```text
//! SHA-256( "vls work v1" ‖ five zero bytes ‖ challenge 16 ‖ id 32 ‖ nonce 8, big endian )
//! ```
//!
//! begins with as many zero bits as the task says. Everything before the nonce is one block of SHA-256, so a trial is one
//! compression, and to check a nonce takes two: a fraction of a microsecond. The id stands in what is hashed, so nobody
//! works for somebody else's id, and the challenge is one that nobody can know before the server has named it.
//!
//! SHA-256 and nothing that needs memory: puzzles that do so are dearer to check than the signature that they are to
//! guard, and what this one has to hold off is a flood that costs nothing, not a rich enemy.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::VatId;

/// What stands in front, filled up to 16 bytes.
const CONTEXT: [u8; 16] = *b"vls work v1\0\0\0\0\0";

/// Trials between two questions whether to go on: some tens of microseconds.
const TRIALS_AT_ONCE: u64 = 256;

/// What a server asks for. It is no secret, and may be shown to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Made by the server for one id and for some minutes.
    pub challenge: [u8; Self::CHALLENGE_BYTES],
    /// Zero bits that the hash has to begin with. Each doubles the work: it takes 2 to the power of this many trials on
    /// average.
    pub bits: u8,
}

impl Task {
    /// Length of a challenge.
    pub const CHALLENGE_BYTES: usize = 16;

    /// Whether `nonce` is a solution for `id`.
    #[must_use]
    pub fn is_solved_by(&self, id: &VatId, nonce: u64) -> bool {
        zero_bits(self.first_block(id), nonce) >= self.bits.into()
    }

    /// Looks for a solution from `first` on, which should be random if several look for one. Takes 2 to the power of the
    /// task's bits trials on average, of a tenth of a microsecond each on a fast processor; whether to go on is asked
    /// between some hundred of them. How many bits are too many, the caller decides before.
    ///
    /// `None` if it was not to go on.
    pub fn solve(&self, id: &VatId, first: u64, mut goes_on: impl FnMut() -> bool) -> Option<u64> {
        let block = self.first_block(id);
        let mut nonce = first;
        while goes_on() {
            for _ in 0..TRIALS_AT_ONCE {
                if zero_bits(block.clone(), nonce) >= self.bits.into() {
                    return Some(nonce);
                }
                nonce = nonce.wrapping_add(1);
            }
        }
        None
    }

    fn first_block(&self, id: &VatId) -> Sha256 {
        Sha256::new().chain_update(CONTEXT).chain_update(self.challenge).chain_update(id.as_bytes())
    }
}

/// Zero bits that the hash begins with, up to 64.
fn zero_bits(block: Sha256, nonce: u64) -> u32 {
    let hash: [u8; 32] = block.chain_update(nonce.to_be_bytes()).finalize().into();
    let (words, _) = hash.as_chunks::<8>();
    u64::from_be_bytes(words[0]).leading_zeros()
}

/// As a header field has it: the bits, a space, and the challenge in hexadecimal digits.
impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bits, data_encoding::HEXLOWER.encode(&self.challenge))
    }
}

/// Some text is no [`Task`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a number of bits and a challenge of 32 hexadecimal digits")]
pub struct TaskError;

impl FromStr for Task {
    type Err = TaskError;

    fn from_str(text: &str) -> Result<Self, TaskError> {
        let (bits, challenge) = text.split_once(' ').ok_or(TaskError)?;
        let challenge = data_encoding::HEXLOWER.decode(challenge.as_bytes()).map_err(|_| TaskError)?;
        let challenge = challenge.try_into().map_err(|_| TaskError)?;
        Ok(Self { challenge, bits: bits.parse().map_err(|_| TaskError)? })
    }
}
