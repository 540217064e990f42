//! Recipients: public keys that a root key can be wrapped for (DESIGN §8, Keyslots).
//!
//! ```text
//! vatkey:<58 characters>
//! ```
//!
//! z-base-32 of the 32 bytes of an X25519 public key, then four bytes CRC-32C (Castagnoli, big endian) over
//! them. The two spare bits of the last character are zero. So every change of one character is caught before
//! something is sealed for a key that nobody has; there is no other protection against that, because a sealed
//! file looks the same whoever it is for.
//!
//! A recipient is not a secret: whoever has it can seal something for its holder, and open nothing.

use std::{fmt, str::FromStr};

use crate::{
    Coded, ErrorCode,
    identity::{Misspelt, decode, zbase32},
};

const SCHEME: &str = "vatkey:";

/// The coordinates below 2^255 - 19 at which every shared secret is zero: what is sealed for them, everybody can
/// open. (0, 1, -1, and the two of order 8.)
const SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    small(1),
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
];

const fn small(number: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = number;
    bytes
}

/// Why some bytes or some text are no recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipientError {
    /// It does not begin with `vatkey:`.
    #[error("a recipient begins with vatkey:, this does not")]
    Scheme,
    /// What follows is not 58 characters of z-base-32.
    #[error("after vatkey: come 58 characters; some are missing, too many, or not of the alphabet")]
    Text,
    /// The checksum does not fit.
    #[error("the checksum does not fit: a character was changed or swapped")]
    Checksum,
    /// The checksum fits, and yet nothing can be sealed for this key alone.
    #[error("this is no usable X25519 public key: everybody could open what is sealed for it")]
    NotAKey,
}

impl Coded for RecipientError {
    fn code(&self) -> ErrorCode {
        ErrorCode::KeyRecipient
    }
}

/// An X25519 public key that root keys are wrapped for. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recipient([u8; 32]);

impl Recipient {
    /// Accepts the bytes of an X25519 public key that is reduced and not of small order.
    ///
    /// # Errors
    /// [`RecipientError::NotAKey`].
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, RecipientError> {
        // X25519 takes coordinates modulo 2^255 - 19 and drops the highest bit: one key, one spelling.
        let [low, middle @ .., high] = bytes;
        let unreduced = high > 0x7f || (high == 0x7f && low >= 0xed && middle == [0xff; 30]);
        if unreduced || SMALL_ORDER.contains(&bytes) {
            return Err(RecipientError::NotAKey);
        }
        Ok(Self(bytes))
    }

    /// The 32 bytes of the public key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 36];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&crc32c::crc32c(&self.0).to_be_bytes());
        write!(f, "{SCHEME}{}", zbase32().encode(&bytes))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        let text = text.strip_prefix(SCHEME).ok_or(RecipientError::Scheme)?;
        let mut bytes = [0; 36];
        decode(text, &mut bytes).map_err(|misspelt| match misspelt {
            Misspelt::Text => RecipientError::Text,
            Misspelt::SpareBits => RecipientError::Checksum,
        })?;
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[..32]);
        if bytes[32..] != crc32c::crc32c(&key).to_be_bytes() {
            return Err(RecipientError::Checksum);
        }
        Self::from_bytes(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Recipient {
        Recipient::from_bytes(std::array::from_fn(|at| u8::try_from(at * 3).unwrap())).unwrap()
    }

    #[test]
    fn the_text_of_a_recipient_reads_back() {
        let text = some().to_string();
        assert_eq!(text.len(), SCHEME.len() + 58);
        assert_eq!(text.parse(), Ok(some()));
    }

    #[test]
    fn every_mistyped_or_swapped_character_is_caught() {
        let text = some().to_string();
        let characters = "ybndrfg8ejkmcpqxot1uwisza345h769".bytes();
        for at in SCHEME.len()..text.len() {
            let mut typed = text.clone().into_bytes();
            for other in characters.clone().filter(|other| *other != text.as_bytes()[at]) {
                typed[at] = other;
                let typed = String::from_utf8(typed.clone()).unwrap();
                assert_eq!(typed.parse::<Recipient>(), Err(RecipientError::Checksum), "{typed}");
            }
            let mut swapped = text.clone().into_bytes();
            swapped.swap(at, text.len().min(at + 2) - 1);
            let swapped = String::from_utf8(swapped).unwrap();
            assert!(swapped == text || swapped.parse::<Recipient>() == Err(RecipientError::Checksum), "{swapped}");
        }
        for other in [&text[1..], &text[..text.len() - 1], &format!("{text}y"), "", "vatkey:", &text.to_uppercase()] {
            assert!(
                matches!(other.parse::<Recipient>(), Err(RecipientError::Scheme | RecipientError::Text)),
                "{other}"
            );
        }
        let odd = text.replace(&text[20..21], "0");
        assert_eq!(odd.parse::<Recipient>(), Err(RecipientError::Text));
    }

    #[test]
    fn keys_that_everybody_can_open_and_second_spellings_are_refused() {
        let mut refused: Vec<[u8; 32]> = SMALL_ORDER.to_vec();
        // 2^255 - 19 and what follows it are 0 and what follows; the highest bit does not count.
        for low in 0xed..=0xff {
            let mut unreduced = [0xff; 32];
            (unreduced[0], unreduced[31]) = (low, 0x7f);
            refused.push(unreduced);
        }
        let mut high = *some().as_bytes();
        high[31] |= 0x80;
        refused.push(high);
        for bytes in refused {
            assert_eq!(Recipient::from_bytes(bytes), Err(RecipientError::NotAKey), "{bytes:?}");
            assert_eq!(Recipient(bytes).to_string().parse::<Recipient>(), Err(RecipientError::NotAKey));
        }
    }
}
