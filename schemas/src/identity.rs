//! Self-certifying identities: a vat's id *is* its Ed25519 public key (DESIGN §3).
//!
//! Text form: 52 characters of z-base-32 (as pkarr and iroh spell keys). 52 characters carry 260 bits, so
//! four bits are spare and every id would have sixteen spellings; only the one with zero spare bits is
//! accepted, so equality of text is equality of ids.

mod text;

use std::{fmt, str::FromStr, sync::LazyLock};

use curve25519_dalek::{
    constants::EIGHT_TORSION,
    edwards::{CompressedEdwardsY, EdwardsPoint},
};
use data_encoding::{DecodeKind, Encoding, Specification};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::{ZeroizeOnDrop, Zeroizing};

pub use self::text::IdText;
use crate::{Coded, ErrorCode};

/// Begins every message that a vat key signs, except a location record.
///
/// BEP44 messages begin with `4:salt` or `3:seqi`, so no signature of ours can be replayed as a location
/// record, nor the other way round.
const CONTEXT_PREFIX: &str = "vat.signature.1:";

/// z-base-32 with checked spare bits: the one text encoding of ids ([`IdText`]), and of secrets.
pub(crate) fn zbase32() -> &'static Encoding {
    static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
        let mut specification = Specification::new();
        specification.symbols.extend(text::ALPHABET.iter().copied().map(char::from));
        specification.check_trailing_bits = true;
        // Proof: 32 distinct ASCII symbols and no padding are always a valid specification; a test encodes.
        #[allow(clippy::expect_used)]
        specification.encoding().expect("a constant, valid specification")
    });
    &ENCODING
}

/// Why some text is not the z-base-32 of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misspelt {
    /// Of another length, or not of the alphabet.
    Text,
    /// Its last character carries bits that must be zero.
    SpareBits,
}

/// Fills `output` from text that is exactly as long as that takes.
pub(crate) fn decode(text: &str, output: &mut [u8]) -> Result<(), Misspelt> {
    if text.len() != zbase32().encode_len(output.len()) {
        return Err(Misspelt::Text);
    }
    match zbase32().decode_mut(text.as_bytes(), output) {
        Ok(_) => Ok(()),
        Err(partial) if partial.error.kind == DecodeKind::Trailing => Err(Misspelt::SpareBits),
        Err(_) => Err(Misspelt::Text),
    }
}

/// Why some bytes or some text are not an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not 32 bytes.
    #[error("an id has 32 bytes, this has {found}")]
    Length {
        /// How many bytes there were.
        found: usize,
    },
    /// Not 52 characters of z-base-32.
    #[error("an id is 52 characters of z-base-32 (letters and digits without 0, 2, l and v), this is not")]
    Text,
    /// Another spelling of an id that has exactly one.
    #[error("this is not the canonical spelling of an id (its last character carries bits that must be zero)")]
    NotCanonical,
    /// The bytes are no point of the curve, a small-order point, or not reduced.
    #[error("these 32 bytes are not a usable Ed25519 public key")]
    NotAKey,
    /// A signature does not belong to this identity and this message.
    #[error("the signature was not made by this identity over this message")]
    Signature,
}

impl Coded for IdentityError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Signature => ErrorCode::RecordForged,
            _ => ErrorCode::RefIdMalformed,
        }
    }
}

/// The self-certifying id of a vat or a location server: an Ed25519 public key, checked to be one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VatId([u8; 32]);

impl VatId {
    /// Length of the text form, in characters.
    pub const TEXT_LENGTH: usize = 52;

    /// Accepts the bytes of an Ed25519 public key that is on the curve, canonical and not of small order.
    ///
    /// # Errors
    /// [`IdentityError::NotAKey`].
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, IdentityError> {
        VatKey::from_bytes(bytes).map(|key| key.id)
    }

    /// The id with these bytes, which were [those](Self::as_bytes) of an id before: for reading a store back. Nothing
    /// is checked. Bytes that are no key verify nothing.
    #[must_use]
    pub const fn from_stored(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The same, for bytes of any length, as they come off the wire.
    ///
    /// # Errors
    /// [`IdentityError::Length`], [`IdentityError::NotAKey`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdentityError> {
        Self::from_bytes(bytes.try_into().map_err(|_| IdentityError::Length { found: bytes.len() })?)
    }

    /// The 32 bytes that a text spells, without the costly check that they are a key: enough to look up what was
    /// registered, since only keys are.
    ///
    /// # Errors
    /// [`IdentityError::Text`], [`IdentityError::NotCanonical`].
    pub fn spelled(text: &str) -> Result<[u8; 32], IdentityError> {
        IdText::read(text.as_bytes())
    }

    /// The 32 bytes of the public key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Verifies `signature` over `message` strictly (no malleability, no small-order components), with a
    /// context string in front of the message that no location record can begin with.
    ///
    /// # Errors
    /// [`IdentityError::Signature`].
    pub fn verify(&self, context: &str, message: &[u8], signature: &[u8; 64]) -> Result<(), IdentityError> {
        self.verify_raw(&with_context(context, message), signature)
    }

    /// Verifies without a context string, strictly. For formats that fix their own framing: the TLS
    /// handshake and BEP44.
    ///
    /// # Errors
    /// [`IdentityError::Signature`].
    pub fn verify_raw(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), IdentityError> {
        VerifyingKey::from_bytes(&self.0)
            .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
            .map_err(|_| IdentityError::Signature)
    }
}

impl fmt::Display for VatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IdText::of(&self.0).fmt(f)
    }
}

impl fmt::Debug for VatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VatId({self})")
    }
}

impl FromStr for VatId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::from_bytes(Self::spelled(text)?)
    }
}

/// The secret half of an identity. Never printed; wiped from memory when dropped.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Makes the identity of a 32-byte seed (RFC 8032). The seed must come from the operating system's
    /// random source, once, and is itself the secret.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// A new identity from the operating system's random source.
    ///
    /// # Errors
    /// When the operating system has no random numbers to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        Ok(Self::from_seed(&seed))
    }

    /// The seed, for the one place that seals it into a checkpoint.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn id(&self) -> VatId {
        VatId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` behind a context string (see [`VatId::verify`]).
    #[must_use]
    pub fn sign(&self, context: &str, message: &[u8]) -> [u8; 64] {
        self.sign_raw(&with_context(context, message))
    }

    /// Signs without a context string (see [`VatId::verify_raw`]).
    #[must_use]
    pub fn sign_raw(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// Its one field is.
impl ZeroizeOnDrop for IdentityKey where SigningKey: ZeroizeOnDrop {}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey(of {})", self.id())
    }
}

/// An id, and the point of the curve that it names. Finding that is a tenth of verifying a signature, so what is verified
/// later, with others ([`verify_all`](crate::verify_all)), does not find it again.
#[derive(Debug, Clone, Copy)]
pub struct VatKey {
    id: VatId,
    point: EdwardsPoint,
}

impl VatKey {
    /// As [`VatId::from_bytes`].
    ///
    /// # Errors
    /// [`IdentityError::NotAKey`].
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, IdentityError> {
        let point = decompress(&bytes).ok_or(IdentityError::NotAKey)?;
        Ok(Self { id: VatId(bytes), point })
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> VatId {
        self.id
    }

    pub(crate) fn point(&self) -> EdwardsPoint {
        self.point
    }
}

/// The point that this is the canonical encoding of, if it is not of small order.
pub(crate) fn decompress(bytes: &[u8; 32]) -> Option<EdwardsPoint> {
    static SMALL_ORDER: LazyLock<[CompressedEdwardsY; 8]> =
        LazyLock::new(|| EIGHT_TORSION.map(|point| point.compress()));
    let encoding = CompressedEdwardsY(*bytes);
    // Not canonical are a y that is not reduced, and an x of zero with a sign. In the latter case y is 1 or -1: two points
    // of small order, of whose encodings the sign is left out.
    let without_sign = |encoding: &CompressedEdwardsY| {
        let mut bytes = encoding.to_bytes();
        bytes[31] &= 0x7f;
        bytes
    };
    let small = SMALL_ORDER.iter().any(|small| without_sign(small) == without_sign(&encoding));
    if small || !is_reduced(bytes) { None } else { encoding.decompress() }
}

/// Whether y, which is what all bits but the highest say, is below 2²⁵⁵ - 19.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    bytes[0] < 0xed || bytes[31] & 0x7f != 0x7f || bytes[1..31].iter().any(|byte| *byte != 0xff)
}

fn with_context(context: &str, message: &[u8]) -> Vec<u8> {
    [CONTEXT_PREFIX.as_bytes(), context.as_bytes(), b"\0", message].concat()
}
