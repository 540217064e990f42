//! Invites: what admits a new vat to a location server that is not open to everybody (DESIGN §4, rule 9).
//!
//! ```text
//! vlsinvite:<32 characters>
//! ```
//!
//! z-base-32 of 16 random bytes, then four bytes CRC-32C (Castagnoli, big endian) over them: a mistake in copying is found
//! where it was made. Whoever has the text can use the invite, so it is a secret: nothing but [`Invite::expose`] gives
//! it. The server keeps its hash alone, so neither its disk nor a backup of that admits anybody.

use std::{fmt, str::FromStr};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    Coded, ErrorCode,
    identity::Misspelt,
    secret::{SecretBytes, write_prefix},
};

const SCHEME: &str = "vlsinvite:";

const BYTES: usize = 16;

const HASH_CONTEXT: &[u8] = b"vls invite v1\0";

/// Why some bytes or some text are no invite. Never shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// It does not begin with `vlsinvite:`.
    #[error("an invite begins with vlsinvite:, this does not")]
    Scheme,
    /// What follows is not 32 characters of z-base-32.
    #[error("after vlsinvite: come 32 characters; some are missing, too many, or not of the alphabet")]
    Text,
    /// The checksum does not fit.
    #[error("the checksum does not fit: a character was changed or swapped")]
    Checksum,
    /// Not 16 bytes.
    #[error("an invite has 16 bytes, this has {found}")]
    Length {
        /// How many.
        found: usize,
    },
}

impl Coded for InviteError {
    fn code(&self) -> ErrorCode {
        ErrorCode::VlsInviteMalformed
    }
}

/// The right to register new vats with one location server, as often as its operator has said.
///
/// ```compile_fail,E0599
/// fn show(invite: schemas::Invite) -> String {
///     invite.to_string()
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Zeroize)]
pub struct Invite(SecretBytes<BYTES>);

/// Its bytes are wiped.
impl ZeroizeOnDrop for Invite where SecretBytes<BYTES>: ZeroizeOnDrop {}

impl Invite {
    /// A new one from the operating system's random source.
    ///
    /// # Errors
    /// When the operating system has no random numbers to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        SecretBytes::generate().map(Self)
    }

    /// The bytes of one, as they come over a session.
    ///
    /// # Errors
    /// [`InviteError::Length`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, InviteError> {
        SecretBytes::from_slice(bytes).map(Self).ok_or(InviteError::Length { found: bytes.len() })
    }

    /// The bytes, for the few places that send them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; BYTES] {
        self.0.expose()
    }

    /// The text, in memory that is wiped when dropped.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        self.0.text(SCHEME, crc32c::crc32c(self.0.expose()))
    }

    /// What a server knows it by.
    #[must_use]
    pub fn hash(&self) -> InviteHash {
        InviteHash(self.0.hash(HASH_CONTEXT))
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.strip_prefix(SCHEME).ok_or(InviteError::Scheme)?;
        let (secret, checksum) = SecretBytes::parse(text).map_err(|misspelt| match misspelt {
            Misspelt::Text => InviteError::Text,
            Misspelt::SpareBits => InviteError::Checksum,
        })?;
        if checksum != crc32c::crc32c(secret.expose()) {
            return Err(InviteError::Checksum);
        }
        Ok(Self(secret))
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invite({})", self.hash())
    }
}

/// SHA-256 of an invite, behind a context string. An invite has 128 random bits: nobody finds it by its hash.
///
/// `Display` and `Debug` are the first eight characters of its z-base-32: what people name an invite by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InviteHash([u8; 32]);

impl InviteHash {
    /// Characters that are printed.
    const PRINTED: usize = 8;

    /// A hash that was stored.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// All 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for InviteHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_prefix(&self.0, Self::PRINTED, f)
    }
}

impl fmt::Debug for InviteHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteHash({self})")
    }
}
