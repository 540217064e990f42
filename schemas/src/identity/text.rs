//! The text form of an id, in an array: every lookup by name reads one, and every lookup in a server's table compares
//! one, so neither takes memory nor goes a bit at a time as an encoding for any alphabet must.

use std::fmt;

use super::{IdentityError, VatId};

/// The characters of z-base-32.
pub(super) const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

/// What no character means.
const NONE: u8 = 0xff;

const VALUES: [u8; 256] = {
    let mut values = [NONE; 256];
    let mut value = 0;
    while value < 32 {
        // 32 fits a byte.
        #[allow(clippy::cast_possible_truncation)]
        {
            values[ALPHABET[value] as usize] = value as u8;
        }
        value += 1;
    }
    values
};

/// 52 characters of z-base-32 that spell 32 bytes, in the one way that is accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdText([u8; Self::LENGTH]);

impl IdText {
    /// How many characters there are.
    pub const LENGTH: usize = VatId::TEXT_LENGTH;

    /// The spelling of an id's bytes.
    #[must_use]
    pub fn of(id: &[u8; 32]) -> Self {
        let mut text = [0; Self::LENGTH];
        // Five bytes are eight characters; the last two bytes and four zero bits are the last four.
        let ((groups, rest), (octets, last)) = (id.as_chunks::<5>(), text.as_chunks_mut::<8>());
        for ([a, b, c, d, e], characters) in groups.iter().zip(octets) {
            let bits = u64::from_be_bytes([0, 0, 0, *a, *b, *c, *d, *e]);
            for (place, character) in characters.iter_mut().enumerate() {
                *character = ALPHABET[(bits >> (35 - 5 * place) & 31) as usize];
            }
        }
        let bits = rest.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << 4;
        for (place, character) in last.iter_mut().enumerate() {
            *character = ALPHABET[(bits >> (15 - 5 * place) & 31) as usize];
        }
        Self(text)
    }

    /// The 32 bytes that are spelled like this. That they are a key is not checked.
    ///
    /// # Errors
    /// [`IdentityError::Text`], [`IdentityError::NotCanonical`].
    pub fn read(text: &[u8]) -> Result<[u8; 32], IdentityError> {
        if text.len() != Self::LENGTH {
            return Err(IdentityError::Text);
        }
        let (mut id, mut spare, mut all) = ([0; 32], 0, 0);
        for (bytes, characters) in id.chunks_mut(5).zip(text.chunks(8)) {
            let mut bits = 0_u64;
            for (place, character) in characters.iter().enumerate() {
                let value = VALUES[usize::from(*character)];
                all |= value;
                bits |= u64::from(value & 31) << (59 - 5 * place);
            }
            let word = bits.to_be_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
            // Of the last group, what is behind the id; of the others there are no more bits.
            spare = word[bytes.len()];
        }
        if all > 31 {
            return Err(IdentityError::Text);
        }
        if spare != 0 { Err(IdentityError::NotCanonical) } else { Ok(id) }
    }

    /// The characters.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Proof: all characters are of the alphabet, which is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for IdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdText({self})")
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::DecodeKind;
    use proptest::prelude::*;

    use super::{super::zbase32, *};

    proptest! {
        #[test]
        fn it_is_z_base_32(id: [u8; 32]) {
            let text = IdText::of(&id);
            let expected = zbase32().encode(&id);
            prop_assert_eq!(text.as_bytes(), expected.as_bytes());
            prop_assert_eq!(text.to_string(), expected);
            prop_assert_eq!(IdText::read(text.as_bytes()), Ok(id));
        }

        /// Whatever is changed of a spelling is judged as the encoding for any alphabet judges it.
        #[test]
        fn every_other_text_is_refused_as_what_it_is(id: [u8; 32], place in 0..IdText::LENGTH, character: u8) {
            let mut text = IdText::of(&id).0;
            text[place] = character;
            let expected = match zbase32().decode(&text) {
                Ok(bytes) => Ok(<[u8; 32]>::try_from(bytes).unwrap()),
                Err(error) if error.kind == DecodeKind::Trailing => Err(IdentityError::NotCanonical),
                Err(_) => Err(IdentityError::Text),
            };
            prop_assert_eq!(IdText::read(&text), expected);
        }

        #[test]
        fn a_text_of_another_length_is_none(text in "[a-z]{0,51}|[a-z]{53,80}") {
            prop_assert_eq!(IdText::read(text.as_bytes()), Err(IdentityError::Text));
        }
    }

    #[test]
    fn the_last_character_has_one_bit() {
        let last = |character| {
            let mut text = IdText::of(&[0xff; 32]).0;
            text[IdText::LENGTH - 1] = character;
            IdText::read(&text)
        };
        assert_eq!(last(ALPHABET[0b10000]), Ok([0xff; 32]));
        assert!(last(ALPHABET[0]).is_ok());
        for value in (1..16).chain(17..32) {
            assert_eq!(last(ALPHABET[value]), Err(IdentityError::NotCanonical), "{value}");
        }
    }
}
