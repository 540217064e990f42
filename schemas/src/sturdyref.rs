//! Sturdyrefs: the durable, secret form of a capability (DESIGN §3), and public addresses.
//!
//! ```text
//! vat://<id>[?hints]#<fragment>        a sturdyref: whoever has it may use the object
//! vat://<id>[?hints]                   a public address: gives no authority
//! ```
//!
//! * `<id>`: 52 characters, see [`VatId`].
//! * `<fragment>`: 58 characters of z-base-32: 32 secret bytes, then four bytes CRC-32C (Castagnoli, big
//!   endian) over the id's 32 bytes and the secret. The two spare bits of the last character are zero. The
//!   checksum catches *every* change of one character and *every* swap of two neighbours, before anything is
//!   sent anywhere (a test proves it for all references at once: the code is linear).
//! * hints: `at=<host>:<port>`, `vls=<search path entry>` and `gw=<https url>`, each any number of times within
//!   the limits, joined by `&`, percent-encoded. Keys, and schemes of entries, that this version does not
//!   know are ignored within the same limits, so a later version may add some. Hints are advice: they are
//!   not covered by the checksum and never count in comparisons.
//!
//! Nothing here shows a secret: no `Display`, a redacted `Debug`, and errors that carry no part of the text.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    Coded, ErrorCode, IdentityError, VatId,
    identity::{Misspelt, decode},
    limits::{MAX_HINTS, MAX_REFERENCE_TEXT},
    secret::{SecretBytes, write_prefix},
};

mod hints;

pub use hints::Hints;

const SCHEME: &str = "vat://";

const SECRET_BYTES: usize = 32;

/// Hashed in front of every secret, so that no other hash of ours is a [`SecretHash`].
const HASH_CONTEXT: &[u8] = b"vat.secret.1:";

/// Why some text is not a sturdyref or a public address. Carries no part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SturdyRefError {
    /// It does not begin with `vat://`.
    #[error("a sturdyref begins with vat://, this does not")]
    Scheme,
    /// Longer than any reference may be.
    #[error("a reference has at most {limit} characters, this has {found}")]
    TooLong {
        /// Its length, in bytes.
        found: usize,
        /// What is accepted.
        limit: usize,
    },
    /// What stands in the place of the id is not 52 characters of z-base-32.
    #[error("after vat:// come the 52 characters of an id; some are missing, too many, or not of its alphabet")]
    Id,
    /// There is no `#` with a secret behind it.
    #[error("this has no secret: a sturdyref ends with # and 58 characters")]
    NoSecret,
    /// What stands behind the `#` is not 58 characters of z-base-32.
    #[error("after # come 58 characters; some are missing, too many, or not of the alphabet")]
    Fragment,
    /// The checksum does not fit: a character was changed or swapped.
    #[error("the checksum does not fit: a character was changed or swapped")]
    Checksum,
    /// The checksum fits, and yet the id is no public key: this reference was never a working one.
    #[error("the id in this reference is wrong: {0}")]
    Key(IdentityError),
    /// A hint is not percent-encoded text, or not of the form of its kind.
    #[error("a hint `{key}=` is not of its form")]
    Hint {
        /// The kind of hint: `at`, `vls`, `gw`, or `?` for one that has no key.
        key: &'static str,
    },
    /// More hints than accepted.
    #[error("a reference has at most {} hints, this has more", MAX_HINTS)]
    TooManyHints,
    /// A public address was expected, and this has a secret.
    #[error("this is a sturdyref, with a secret behind its #, where a public address is expected")]
    UnexpectedSecret,
    /// A public address whose id is none.
    #[error(transparent)]
    Address(IdentityError),
    /// The bytes of a secret are not 32.
    #[error("a secret has 32 bytes, this has {found}")]
    SecretLength {
        /// How many there were.
        found: usize,
    },
}

impl Coded for SturdyRefError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Checksum => ErrorCode::RefChecksum,
            Self::Address(_) => ErrorCode::RefIdMalformed,
            _ => ErrorCode::RefMalformed,
        }
    }
}

/// The 32 random bytes that make a sturdyref an authority. Wiped from memory when dropped; compared in
/// constant time; never printed:
///
/// ```compile_fail,E0599
/// fn show(secret: schemas::Secret) -> String {
///     secret.to_string()
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Zeroize)]
pub struct Secret(SecretBytes<SECRET_BYTES>);

/// Its bytes are wiped.
impl ZeroizeOnDrop for Secret where SecretBytes<SECRET_BYTES>: ZeroizeOnDrop {}

impl Secret {
    /// A new secret from the operating system's random source.
    ///
    /// # Errors
    /// When the operating system has no random numbers to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        SecretBytes::generate().map(Self)
    }

    /// A secret that was stored. Wiping `bytes` is up to the caller.
    ///
    /// # Errors
    /// [`SturdyRefError::SecretLength`] when there are not 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, SturdyRefError> {
        SecretBytes::from_slice(bytes).map(Self).ok_or(SturdyRefError::SecretLength { found: bytes.len() })
    }

    /// The bytes, for the few places that seal or send them.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        self.0.expose()
    }

    /// What a vat stores and logs instead of the secret.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(self.0.hash(HASH_CONTEXT))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(hash {})", self.hash())
    }
}

/// SHA-256 of a secret, behind a context string. Tells two secrets apart and gives neither.
///
/// `Display` and `Debug` are the first six characters of its z-base-32: enough for a log, too little to
/// look anything up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Characters that are printed.
    const PRINTED: usize = 6;

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

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_prefix(&self.0, Self::PRINTED, f)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({self})")
    }
}

/// A durable, secret reference to one object of one vat. Equal when id and secret are equal.
///
/// Its text is had with [`SturdyRef::expose`] only, which is easy to search for:
///
/// ```compile_fail,E0599
/// fn show(reference: schemas::SturdyRef) -> String {
///     reference.to_string()
/// }
/// ```
#[derive(Clone)]
pub struct SturdyRef {
    /// The vat that made it.
    pub id: VatId,
    /// What the vat recognises it by.
    pub secret: Secret,
    /// Where a finder without a search path may look.
    pub hints: Hints,
}

impl SturdyRef {
    /// The whole reference as text, its secret included, in memory that is wiped when dropped.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        let checksum = checksum(&self.id.as_bytes()[..], self.secret.expose());
        self.secret.0.text(&format!("{}#", self.address()), checksum)
    }

    /// The public part: id and hints.
    #[must_use]
    pub fn address(&self) -> VatAddress {
        VatAddress { id: self.id, hints: self.hints.clone() }
    }
}

impl PartialEq for SturdyRef {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.secret == other.secret
    }
}

impl Eq for SturdyRef {}

impl Hash for SturdyRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
        self.secret.expose().hash(state);
    }
}

impl fmt::Debug for SturdyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SturdyRef")
            .field("id", &self.id)
            .field("secret", &self.secret)
            .field("hints", &self.hints)
            .finish()
    }
}

impl FromStr for SturdyRef {
    type Err = SturdyRefError;

    fn from_str(text: &str) -> Result<Self, SturdyRefError> {
        check_length(text)?;
        let rest = text.strip_prefix(SCHEME).ok_or(SturdyRefError::Scheme)?;
        let (address, fragment) = rest.split_once('#').ok_or(SturdyRefError::NoSecret)?;
        let (id, query) = split_query(address);

        let (secret, found) =
            SecretBytes::parse(fragment).map_err(|misspelt| misspelt_as(misspelt, SturdyRefError::Fragment))?;
        let mut id_bytes = [0; 32];
        decode(id, &mut id_bytes).map_err(|misspelt| misspelt_as(misspelt, SturdyRefError::Id))?;

        // Before the id is looked at as a key: half of all typos in an id leave no point of the curve, and
        // the user is helped by hearing of the typo.
        if found != checksum(&id_bytes, secret.expose()) {
            return Err(SturdyRefError::Checksum);
        }
        let id = VatId::from_bytes(id_bytes).map_err(SturdyRefError::Key)?;
        Ok(Self { id, secret: Secret(secret), hints: Hints::parse(query)? })
    }
}

/// Where to look for a vat: its id and hints. Not a secret, gives no authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VatAddress {
    /// The vat.
    pub id: VatId,
    /// Where a finder without a search path may look.
    pub hints: Hints,
}

impl From<VatId> for VatAddress {
    fn from(id: VatId) -> Self {
        Self { id, hints: Hints::default() }
    }
}

impl fmt::Display for VatAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.id, self.hints.query())
    }
}

impl FromStr for VatAddress {
    type Err = SturdyRefError;

    /// Accepts `vat://<id>[?hints]` and a bare `<id>`; refuses a sturdyref, so that no secret is taken for
    /// something that may be shown.
    fn from_str(text: &str) -> Result<Self, SturdyRefError> {
        check_length(text)?;
        if text.contains('#') {
            return Err(SturdyRefError::UnexpectedSecret);
        }
        let (id, query) = match text.strip_prefix(SCHEME) {
            Some(rest) => split_query(rest),
            None => (text, None),
        };
        Ok(Self { id: id.parse().map_err(SturdyRefError::Address)?, hints: Hints::parse(query)? })
    }
}

fn check_length(text: &str) -> Result<(), SturdyRefError> {
    if text.len() > MAX_REFERENCE_TEXT {
        return Err(SturdyRefError::TooLong { found: text.len(), limit: MAX_REFERENCE_TEXT });
    }
    Ok(())
}

fn split_query(address: &str) -> (&str, Option<&str>) {
    match address.split_once('?') {
        Some((id, query)) => (id, Some(query)),
        None => (address, None),
    }
}

fn checksum(id: &[u8], secret: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(id), secret)
}

/// Spare bits that are not zero are a changed character, as one that the checksum finds.
fn misspelt_as(misspelt: Misspelt, malformed: SturdyRefError) -> SturdyRefError {
    match misspelt {
        Misspelt::Text => malformed,
        Misspelt::SpareBits => SturdyRefError::Checksum,
    }
}
