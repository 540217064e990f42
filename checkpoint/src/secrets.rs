//! The secrets that open stores, as callers hold them: none can be printed, all are wiped when dropped.
//!
//! They are kept on the heap, so that moving one leaves no copy on the stack that nobody wipes.

use std::{fmt, path::Path};

use hpke::{Deserializable, Kem, Serializable, kem::X25519HkdfSha256};
use schemas::Recipient;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    disk::Disk,
    error::StoreError,
    key_file,
    keys::SecretBytes,
    limits::{MAX_PASSPHRASE_BYTES, MIN_PASSPHRASE_CHARACTERS},
    random,
};

/// A passphrase. Its UTF-8 bytes count, as they are: nothing is trimmed or normalised.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes a passphrase that somebody typed, to make a slot for it or to open one.
    ///
    /// # Errors
    /// [`StoreError::PassphraseLength`] if it is too short to withstand a search, or absurdly long.
    pub fn new(text: Zeroizing<String>) -> Result<Self, StoreError> {
        if text.chars().count() < MIN_PASSPHRASE_CHARACTERS || text.len() > MAX_PASSPHRASE_BYTES {
            return Err(StoreError::PassphraseLength);
        }
        Ok(Self(text))
    }

    /// The passphrase itself, to hand it on to whoever seals.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// 32 secret bytes of the caller's that open a store, such as those of a sturdyref.
#[derive(Clone)]
pub struct StoreKey(Box<SecretBytes>);

impl StoreKey {
    /// Takes a copy. Wiping `bytes` is up to the caller. They must be random: a passphrase belongs into a
    /// [`Passphrase`].
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let mut key = Box::new(SecretBytes::default());
        key.copy_from_slice(bytes);
        Self(key)
    }

    pub(crate) fn expose(&self) -> &SecretBytes {
        &self.0
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

/// The private half of a [`Recipient`]: an X25519 key.
#[derive(Clone)]
pub struct RecipientKey(Box<SecretBytes>);

impl RecipientKey {
    /// A new one, from the operating system's random source.
    ///
    /// # Errors
    /// [`StoreError::Random`].
    pub fn generate() -> Result<Self, StoreError> {
        let mut key = Box::new(SecretBytes::default());
        random::fill(&mut key[..])?;
        Ok(Self(key))
    }

    /// Takes a copy of one that was kept. Wiping `bytes` is up to the caller.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut key = Box::new(SecretBytes::default());
        key.copy_from_slice(bytes);
        Self(key)
    }

    /// Reads one from a file that is for its owner only, in the form of a key file: 32 bytes, mode 0600.
    ///
    /// # Errors
    /// As for a key file (`key.missing`, `key.mode`, `key.wrong`), and errors of the disk.
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<Self, StoreError> {
        key_file::load(disk, path).map(|key| Self(Box::new(key)))
    }

    /// The same, and makes the file, durably, if it is not there.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`StoreError::Random`].
    pub fn load_or_create(disk: &dyn Disk, path: &Path) -> Result<Self, StoreError> {
        key_file::load_or_create(disk, path).map(|key| Self(Box::new(key)))
    }

    /// The public half, which others seal for.
    ///
    /// # Errors
    /// [`StoreError::RecipientUnusable`]. A key that was generated never gives it.
    pub fn recipient(&self) -> Result<Recipient, StoreError> {
        let public = X25519HkdfSha256::sk_to_pk(&self.private()?).to_bytes();
        Recipient::from_bytes(public.into()).map_err(|_| StoreError::RecipientUnusable)
    }

    pub(crate) fn private(&self) -> Result<<X25519HkdfSha256 as Kem>::PrivateKey, StoreError> {
        <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&self.0[..]).map_err(|_| StoreError::RecipientUnusable)
    }
}

impl PartialEq for RecipientKey {
    fn eq(&self, other: &Self) -> bool {
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl Eq for RecipientKey {}

impl fmt::Debug for RecipientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecipientKey(..)")
    }
}

/// Memory that held what a passphrase was stretched in: wiped when dropped, also after an error.
pub(crate) struct WipedBlocks(pub(crate) Vec<argon2::Block>);

impl Drop for WipedBlocks {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Zeroize::zeroize);
    }
}
