//! What every secret that travels as text has in common (DESIGN §3).
//!
//! [`crate::Secret`] and [`crate::Invite`] are these bytes behind two names, so that neither can be taken for the other.
//! They differ in how many bytes they have, in the context of their hash, and in what their checksum covers; how they
//! are drawn, kept, wiped, compared and spelt is written here, once.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::identity::{Misspelt, decode, zbase32};

/// Bytes of the CRC-32C (Castagnoli, big endian) behind a secret.
const CHECKSUM: usize = 4;

/// Secret bytes: wiped when dropped, compared in constant time, without `Debug` and `Display`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SecretBytes<const BYTES: usize>(
    /// On the heap: moving the value around leaves no copies on the stack that nobody wipes.
    Box<[u8; BYTES]>,
);

impl<const BYTES: usize> SecretBytes<BYTES> {
    /// New ones from the operating system's random source.
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        let mut secret = Self(Box::new([0; BYTES]));
        getrandom::fill(&mut secret.0[..])?;
        Ok(secret)
    }

    /// Those of a slice of that length, or of none.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut secret = Self(Box::new([0; BYTES]));
        if bytes.len() != BYTES {
            return None;
        }
        secret.0.copy_from_slice(bytes);
        Some(secret)
    }

    pub(crate) fn expose(&self) -> &[u8; BYTES] {
        &self.0
    }

    /// SHA-256 behind `context`, so that the hash of one kind of secret is that of no other kind.
    pub(crate) fn hash(&self, context: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(context).chain_update(&self.0[..]).finalize().into()
    }

    /// `prefix`, then the secret and its checksum, which may cover more than it, in memory that is wiped when dropped.
    pub(crate) fn text(&self, prefix: &str, checksum: u32) -> Zeroizing<String> {
        // All of their full size from the start: growing would leave a copy behind that nobody wipes.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES + CHECKSUM));
        bytes.extend_from_slice(&self.0[..]);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        let mut characters = Zeroizing::new(vec![0; zbase32().encode_len(bytes.len())]);
        zbase32().encode_mut(&bytes, &mut characters);
        let mut text = Zeroizing::new(String::with_capacity(prefix.len() + characters.len()));
        text.push_str(prefix);
        characters.iter().for_each(|byte| text.push(char::from(*byte)));
        text
    }

    /// What [`Self::text`] wrote behind its prefix: the secret, and the checksum that is to be compared.
    pub(crate) fn parse(characters: &str) -> Result<(Self, u32), Misspelt> {
        let mut bytes = Zeroizing::new(vec![0; BYTES + CHECKSUM]);
        decode(characters, &mut bytes)?;
        let (secret, checksum) = bytes.split_first_chunk::<BYTES>().ok_or(Misspelt::Text)?;
        let checksum = checksum.try_into().map_err(|_| Misspelt::Text)?;
        let secret = Self::from_slice(secret).ok_or(Misspelt::Text)?;
        Ok((secret, u32::from_be_bytes(checksum)))
    }
}

impl<const BYTES: usize> PartialEq for SecretBytes<BYTES> {
    fn eq(&self, other: &Self) -> bool {
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl<const BYTES: usize> Eq for SecretBytes<BYTES> {}

/// Writes the first `characters` of a hash in z-base-32: what people tell secrets apart by.
pub(crate) fn write_prefix(hash: &[u8; 32], characters: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    zbase32().encode(hash).chars().take(characters).try_for_each(|character| fmt::Write::write_char(f, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_another_length_and_text_of_another_length_are_no_secret() {
        assert!(SecretBytes::<16>::from_slice(&[7; 16]).is_some_and(|secret| secret.expose() == &[7; 16]));
        assert!(SecretBytes::<16>::from_slice(&[7; 15]).is_none() && SecretBytes::<16>::from_slice(&[7; 17]).is_none());
        let text = SecretBytes::<16>::from_slice(&[7; 16]).map(|secret| secret.text("", 5)).unwrap_or_default();
        assert!(
            SecretBytes::<16>::parse(&text)
                .is_ok_and(|(secret, checksum)| secret.expose() == &[7; 16] && checksum == 5)
        );
        assert!(SecretBytes::<16>::parse(&text[1..]).is_err() && SecretBytes::<32>::parse(&text).is_err());
    }

    #[test]
    fn two_secrets_are_equal_if_all_their_bytes_are() {
        let secret = |last: u8| {
            let mut bytes = [9; 32];
            bytes[31] = last;
            SecretBytes::<32>::from_slice(&bytes)
        };
        assert!(secret(1) == secret(1) && secret(1) != secret(2));
    }
}
