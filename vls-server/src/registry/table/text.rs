//! Ids as packets spell them, in z-base-32, without memory of its own: lookups compare this spelling.

use super::Id;

const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

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

/// The spelling of an id.
pub(super) struct IdText([u8; Self::LENGTH]);

impl IdText {
    pub(super) const LENGTH: usize = schemas::VatId::TEXT_LENGTH;

    /// That of this id.
    pub(super) fn of(id: &Id) -> Self {
        let mut text = [0; Self::LENGTH];
        // Five bytes are eight characters; the last two bytes and four zero bits are the last four.
        for (bytes, characters) in id.chunks(5).zip(text.chunks_mut(8)) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let mut bits = u64::from_be_bytes(word);
            for character in characters {
                *character = ALPHABET[(bits >> 59) as usize];
                bits <<= 5;
            }
        }
        Self(text)
    }

    /// The id that is spelled like this. The spelling must be one of [`Self::of`].
    pub(super) fn read(text: &[u8]) -> Option<Id> {
        let mut id = [0; 32];
        for (bytes, characters) in id.chunks_mut(5).zip(text.chunks(8)) {
            let mut bits = 0_u64;
            for (place, character) in characters.iter().enumerate() {
                let value = VALUES[usize::from(*character)];
                if value == NONE {
                    return None;
                }
                bits |= u64::from(value) << (59 - 5 * place);
            }
            let word = bits.to_be_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        Some(id)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use schemas::IdentityKey;

    use super::*;

    #[test]
    fn it_is_the_text_form_of_an_id() {
        for byte in 0..64 {
            let id = IdentityKey::from_seed(&[byte; 32]).id();
            let text = IdText::of(id.as_bytes());
            assert_eq!(text.as_bytes(), id.to_string().as_bytes());
            assert_eq!(IdText::read(text.as_bytes()), Some(*id.as_bytes()));
        }
        assert_eq!(IdText::read(&[b'l'; IdText::LENGTH]), None);
    }
}
