//! All cryptography of a store: what is derived from the root key, and how (DESIGN §8, Sealing).
//!
//! Every frame and every row is sealed under a key of its own, HKDF-SHA256(root key, 32 random bytes), that
//! is used exactly once. So there is no nonce to keep: the nonce is constant, and a copy, a rollback or a
//! fork of a store cannot make a (key, nonce) pair repeat, because the random bytes come from the operating
//! system each time and never from the store. HKDF gives a frame 64 bytes: the AES-256-GCM key and a
//! commitment to it that stands in the header. AES-GCM alone lets somebody who knows two keys build one
//! ciphertext that opens under both; comparing the commitment first rules that out, and it is also what
//! makes a header, which is not encrypted, authentic on its own.
//!
//! A store of public data ([`Root::Plain`]) has no secret. There SHA-256 over the same bytes stands in for
//! the commitment and the tag: it finds every accident, and proves nothing against somebody who can write
//! to the disk.
//!
//! What was derived is wiped, like the root key. The AES key schedules that *ring* makes of it live on the stack and are
//! not.

use std::{iter::once, sync::Arc};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey},
    digest,
};
use zeroize::Zeroizing;

use crate::kdf::{self, Hmac};

/// Length of an authentication tag, in bytes.
pub(crate) const TAG_LENGTH: usize = 16;
/// Length of the random part of a key derivation, in bytes.
pub(crate) const SALT_LENGTH: usize = 32;
/// Length of a key in the base: a vat, a space and a name, each as 16 bytes.
pub(crate) const ROW_KEY_LENGTH: usize = 48;
/// Where a base of the first format keeps the position of its one vat.
pub(crate) const POSITION_KEY: RowKeyBytes = [0; ROW_KEY_LENGTH];
/// Where the base keeps the place in the journal.
pub(crate) const PLACE_KEY: RowKeyBytes = own_key(1);
/// What the keys of the store's own rows begin with. No vat's tag does, but for one in 2¹²⁰.
const OWN: [u8; 15] = [0; 15];

/// The vat of keys that are not those of a vat. No vat has this id: it is not the key of anybody.
pub(crate) const NO_VAT: [u8; 32] = [0; 32];

/// A key of the base.
pub(crate) type RowKeyBytes = [u8; ROW_KEY_LENGTH];

// What each derivation is for. They end in a zero byte, so that none is the beginning of another.
const FRAME: &[u8] = b"vat checkpoint frame 1\0";
const FRAME_COMMITMENT: &[u8] = b"vat checkpoint frame commitment 1\0";
const FRAME_TAG: &[u8] = b"vat checkpoint frame tag 1\0";
const ROW: &[u8] = b"vat checkpoint row 1\0";
/// Its own name, the store, the tag of the vat, and the key.
const ROW_CONTEXT_LENGTH: usize = ROW.len() + 16 + 16 + ROW_KEY_LENGTH;
const NAMES: &[u8] = b"vat checkpoint names 1\0";
const SLOT: &[u8] = b"vat checkpoint keyslot 1\0";
const RECIPIENT_NOTE: &[u8] = b"vat checkpoint recipient note 1\0";
const ROOT_CHECK: &[u8] = b"vat checkpoint root key check 1\0";

const VAT_NAME: u8 = 1;
const SPACE_NAME: u8 = 2;
const ROW_NAME: u8 = 3;
const TALLY_NAME: u8 = 4;
const ROW_DIGEST: u8 = 5;

/// 32 secret bytes: a root key, or a key that wraps one. Wiped when dropped, never printed.
pub(crate) type SecretBytes = Zeroizing<[u8; 32]>;

/// What everything in a store is derived from.
pub(crate) enum Root {
    /// The root key of a sealed store.
    Sealed(SecretBytes),
    /// A store of public data: no key.
    Plain,
}

impl Root {
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }
}

/// The keys of one vat in one store. All vats of a store share its root key. What is sealed for one of them opens for
/// no other; names of spaces and rows, which stand in the keys of the base in derived form, are derived for all alike.
pub(crate) struct Keys {
    root: Arc<Root>,
    /// Keyed once: every name and every digest is taken with it.
    names: Arc<Hmac>,
    store: [u8; 16],
    vat: [u8; 32],
    vat_tag: [u8; 16],
}

impl Keys {
    pub(crate) fn new(root: Root, store: [u8; 16], vat: [u8; 32]) -> Self {
        let mut names = SecretBytes::default();
        match &root {
            Root::Sealed(key) => derive(key, &store, &[NAMES], names.as_mut()),
            // The store id, which is random and in nobody's hands, keeps collisions from being prepared.
            Root::Plain => derive(&[0; 32], &store, &[NAMES], names.as_mut()),
        }
        let names = Arc::new(Hmac::new(names.as_slice()));
        let mut keys = Self { root: Arc::new(root), names, store, vat, vat_tag: [0; 16] };
        keys.bind(vat);
        keys
    }

    /// The keys of another vat in the same store.
    pub(crate) fn of(&self, vat: [u8; 32]) -> Self {
        let (root, names) = (Arc::clone(&self.root), Arc::clone(&self.names));
        let mut keys = Self { root, names, store: self.store, vat, vat_tag: [0; 16] };
        keys.bind(vat);
        keys
    }

    /// Makes them those of another vat.
    pub(crate) fn bind(&mut self, vat: [u8; 32]) {
        self.vat = vat;
        self.vat_tag = self.name(VAT_NAME, &vat);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.root.is_sealed()
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn store(&self) -> [u8; 16] {
        self.store
    }

    pub(crate) fn vat(&self) -> [u8; 32] {
        self.vat
    }

    /// What stands for the vat where its id must not be readable.
    pub(crate) fn vat_tag(&self) -> [u8; 16] {
        self.vat_tag
    }

    /// The key of a row in the base. It shows equality to whoever has the file, also that of names in two vats, and
    /// nothing else.
    pub(crate) fn row_key(&self, space: u64, name: &[u8]) -> RowKeyBytes {
        let mut key = self.first_row_key(space);
        key[32..].copy_from_slice(&self.name(ROW_NAME, name));
        key
    }

    /// The smallest key that a row of this space can have; the last 16 bytes are zero.
    pub(crate) fn first_row_key(&self, space: u64) -> RowKeyBytes {
        let mut key = [0; ROW_KEY_LENGTH];
        key[..16].copy_from_slice(&self.vat_tag);
        key[16..32].copy_from_slice(&self.name(SPACE_NAME, &space.to_le_bytes()));
        key
    }

    /// Where the base keeps the tally of a space. The first byte of the second 16 names its bucket.
    pub(crate) fn tally_key(&self, space: u64) -> RowKeyBytes {
        let mut key = self.first_row_key(space);
        key[..16].copy_from_slice(&self.name(TALLY_NAME, &self.vat));
        key
    }

    /// The first and the last key that a tally of this vat can have. No row has one of these: the first 16 bytes of
    /// the two are derived differently.
    pub(crate) fn tally_keys(&self) -> (RowKeyBytes, RowKeyBytes) {
        all_with(&self.name(TALLY_NAME, &self.vat))
    }

    /// The first and the last key that a row of this vat can have.
    pub(crate) fn row_keys(&self) -> (RowKeyBytes, RowKeyBytes) {
        all_with(&self.vat_tag)
    }

    /// Stands for one row as the base stores it, in tallies. Its first bytes hold the salt, its last ones the
    /// tag, and the two decide everything between them.
    pub(crate) fn row_digest(&self, key: &RowKeyBytes, sealed: &[u8]) -> [u8; 32] {
        let first = &sealed[..sealed.len().min(1 + SALT_LENGTH)];
        let last = &sealed[sealed.len().saturating_sub(TAG_LENGTH)..];
        self.prf(ROW_DIGEST, &[key, first, last])
    }

    fn name(&self, kind: u8, name: &[u8]) -> [u8; 16] {
        first(&self.prf(kind, &[name]))
    }

    fn prf(&self, kind: u8, parts: &[&[u8]]) -> [u8; 32] {
        self.names.sign(once(&[kind][..]).chain(parts.iter().copied()))
    }

    /// The key of one frame, and the commitment to it that its header carries. `header` is all of the header
    /// before the commitment; its salt makes the key.
    pub(crate) fn frame_key(&self, header: &[u8], salt: &[u8; SALT_LENGTH]) -> (FrameKey, [u8; 32]) {
        let mut commitment = [0; 32];
        let key = match self.root.as_ref() {
            Root::Sealed(root) => {
                let mut both = Zeroizing::new([0; 64]);
                derive(root, salt, &[FRAME, header], both.as_mut());
                commitment.copy_from_slice(&both[32..]);
                FrameKey::Sealed(both)
            }
            Root::Plain => {
                commitment = sha256(&[FRAME_COMMITMENT, header]);
                FrameKey::Plain
            }
        };
        (key, commitment)
    }

    /// What the base stores for a row: its plaintext sealed, or in a plain store checked.
    pub(crate) fn seal_row(&self, key: &RowKeyBytes, salt: &[u8; SALT_LENGTH], row: &[u8]) -> Vec<u8> {
        let context = self.row_context(key);
        let mut sealed = Vec::with_capacity(1 + SALT_LENGTH + row.len() + TAG_LENGTH);
        match self.root.as_ref() {
            Root::Sealed(root) => {
                let mut secret = SecretBytes::default();
                derive(root, salt, &[&context], secret.as_mut());
                sealed.push(ROW_SEALED);
                sealed.extend_from_slice(salt);
                sealed.extend_from_slice(row);
                let tag = seal_once(&secret, &context, &mut sealed[1 + SALT_LENGTH..]);
                sealed.extend_from_slice(&tag);
            }
            Root::Plain => {
                sealed.push(ROW_PLAIN);
                sealed.extend_from_slice(row);
                let tag: [u8; TAG_LENGTH] = first(&sha256(&[&context, &sealed]));
                sealed.extend_from_slice(&tag);
            }
        }
        sealed
    }

    /// The plaintext of a row as the base stores it; `None` if it is not what was sealed under this key.
    pub(crate) fn open_row<'a>(&self, key: &RowKeyBytes, row: &'a mut [u8]) -> Option<&'a [u8]> {
        let context = self.row_context(key);
        let (rest, tag) = row.split_at_mut_checked(row.len().checked_sub(TAG_LENGTH)?)?;
        match self.root.as_ref() {
            Root::Sealed(root) => {
                let (kind, rest) = rest.split_first_mut()?;
                let (salt, body) = rest.split_at_mut_checked(SALT_LENGTH)?;
                let mut secret = SecretBytes::default();
                derive(root, salt, &[&context], secret.as_mut());
                let opened = *kind == ROW_SEALED && open_once(&secret, &context, body, tag);
                opened.then_some(&*body)
            }
            Root::Plain => {
                let same = first::<TAG_LENGTH>(&sha256(&[&context, rest])) == *tag;
                let (kind, body) = rest.split_first()?;
                (same && *kind == ROW_PLAIN).then_some(body)
            }
        }
    }

    /// Binds a row to its key, its vat and its store. The store's own rows are read before it is known which vat they
    /// are about.
    fn row_context(&self, key: &RowKeyBytes) -> [u8; ROW_CONTEXT_LENGTH] {
        let vat_tag = if key[..15] == OWN { [0; 16] } else { self.vat_tag };
        let mut context = [0; ROW_CONTEXT_LENGTH];
        let mut rest = &mut context[..];
        for part in [ROW, &self.store, &vat_tag, key] {
            let (place, others) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = others;
        }
        debug_assert!(rest.is_empty());
        context
    }
}

/// Where the base keeps how far the vat with this tag has come. The first byte of the tag names its bucket, as that of
/// a tally does.
pub(crate) fn vat_key(vat_tag: &[u8; 16]) -> RowKeyBytes {
    let mut key = own_key(2);
    key[16..32].copy_from_slice(vat_tag);
    key
}

/// The first and the last key that [`vat_key`] gives.
pub(crate) fn vat_keys() -> (RowKeyBytes, RowKeyBytes) {
    (vat_key(&[0; 16]), vat_key(&[0xff; 16]))
}

/// The first key of one kind of the store's own rows.
const fn own_key(kind: u8) -> RowKeyBytes {
    let mut key = [0; ROW_KEY_LENGTH];
    key[15] = kind;
    key
}

/// The first and the last key that begins with these bytes.
fn all_with(beginning: &[u8; 16]) -> (RowKeyBytes, RowKeyBytes) {
    let (mut first, mut last) = ([0; ROW_KEY_LENGTH], [0xff; ROW_KEY_LENGTH]);
    first[..16].copy_from_slice(beginning);
    last[..16].copy_from_slice(beginning);
    (first, last)
}

const ROW_SEALED: u8 = 1;
const ROW_PLAIN: u8 = 2;

/// The key of one frame. Used once.
pub(crate) enum FrameKey {
    /// The key, and the commitment to it.
    Sealed(Zeroizing<[u8; 64]>),
    Plain,
}

impl FrameKey {
    /// Seals `body` in place and gives its tag, which also covers `associated`.
    pub(crate) fn seal(self, associated: &[u8], body: &mut [u8]) -> [u8; TAG_LENGTH] {
        match self {
            Self::Sealed(both) => seal_once(first_key(&both), associated, body),
            Self::Plain => first(&sha256(&[FRAME_TAG, associated, body])),
        }
    }

    /// Opens `body` in place. If it says no, `body` is spoiled.
    pub(crate) fn open(self, associated: &[u8], body: &mut [u8], tag: &[u8; TAG_LENGTH]) -> bool {
        match self {
            Self::Sealed(both) => open_once(first_key(&both), associated, body, tag),
            Self::Plain => first::<TAG_LENGTH>(&sha256(&[FRAME_TAG, associated, body])) == *tag,
        }
    }
}

/// The key of a frame, without the commitment to it.
fn first_key(both: &[u8; 64]) -> &[u8; 32] {
    // Proof: 64 bytes begin with 32.
    #[allow(clippy::expect_used)]
    both.first_chunk().expect("64 bytes")
}

/// The key that wraps a root key in a slot.
pub(crate) fn slot_key(secret: &[u8; 32], salt: &[u8], store: &[u8; 16], kind: u16) -> SecretBytes {
    let mut key = SecretBytes::default();
    derive(secret, salt, &[SLOT, store, &kind.to_le_bytes()], key.as_mut());
    key
}

/// The key that seals, in a recipient slot, for whom the slot is. `encapsulated` is new in each slot.
pub(crate) fn recipient_note_key(root: &[u8; 32], encapsulated: &[u8], store: &[u8; 16]) -> SecretBytes {
    let mut key = SecretBytes::default();
    derive(root, encapsulated, &[RECIPIENT_NOTE, store], key.as_mut());
    key
}

/// Tells a right root key from a wrong one.
pub(crate) fn root_check(root: &[u8; 32], store: &[u8; 16]) -> [u8; 32] {
    let mut check = [0; 32];
    derive(root, store, &[ROOT_CHECK], &mut check);
    check
}

/// AES-256-GCM with a key that is used for this one message only. The constant nonce is right because of
/// that.
pub(crate) fn seal_once(key: &[u8; 32], associated: &[u8], body: &mut [u8]) -> [u8; TAG_LENGTH] {
    // Proof: ring refuses bodies of 64 GiB and more only, and no body is longer than a segment or a turn.
    #[allow(clippy::expect_used)]
    let tag = aes(key)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(associated), body)
        .expect("shorter than 64 GiB");
    first(tag.as_ref())
}

/// The opposite of [`seal_once`]. If it says no, `body` is spoiled.
pub(crate) fn open_once(key: &[u8; 32], associated: &[u8], body: &mut [u8], tag: &[u8]) -> bool {
    let Ok(tag) = Tag::try_from(tag) else { return false };
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    aes(key).open_in_place_separate_tag(nonce, Aad::from(associated), tag, body, 0..).is_ok()
}

fn aes(key: &[u8; 32]) -> LessSafeKey {
    // Proof: the only error is a key of another length than 32 bytes.
    #[allow(clippy::expect_used)]
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"))
}

/// HKDF-SHA256 of one of our secrets.
fn derive(secret: &[u8; 32], salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
    kdf::hkdf(secret, salt, info, out);
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The first `N` bytes of something that has at least as many.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first.copy_from_slice(&bytes[..N]);
    first
}
