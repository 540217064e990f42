//! One slot: the root key wrapped for one holder. The bytes of each type are in the table of
//! [`keyslots`](super).

use argon2::{Algorithm, Argon2, Block, Params, Version};
use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, aead::AesGcm256, kdf::HkdfSha256, kem::X25519HkdfSha256,
    single_shot_open, single_shot_seal,
};
use schemas::Recipient;
use zeroize::Zeroizing;

use super::{Binding, KEY, PASSPHRASE, RECIPIENT, Slot};
use crate::{
    error::StoreError,
    keys::{self, SALT_LENGTH, SecretBytes, TAG_LENGTH},
    limits::{
        MAX_PASSPHRASE_LANES, MAX_PASSPHRASE_MEMORY_KIB, MAX_PASSPHRASE_PASSES, PASSPHRASE_LANES,
        PASSPHRASE_MEMORY_KIB, PASSPHRASE_PASSES,
    },
    random,
    secrets::{Passphrase, RecipientKey, WipedBlocks},
};

const ROOT_LENGTH: usize = 32;
const WRAPPED_LENGTH: usize = SALT_LENGTH + ROOT_LENGTH + TAG_LENGTH;
const COST_LENGTH: usize = 12;
const ENCAPSULATED_LENGTH: usize = 32;
const RECIPIENT_LENGTH: usize = ENCAPSULATED_LENGTH + 2 * (ROOT_LENGTH + TAG_LENGTH);
const RECIPIENT_CONTEXT: &[u8] = b"vat checkpoint recipient 1\0";

/// A slot for 32 random bytes: a key file, a credential, a key of the caller's.
pub(super) fn for_key(binding: &Binding<'_>, root: &SecretBytes, key: &SecretBytes, salt: &[u8; SALT_LENGTH]) -> Slot {
    Slot { kind: KEY, body: wrap(binding, KEY, root, key, salt) }
}

pub(super) fn open_with_key(binding: &Binding<'_>, body: &[u8], key: &SecretBytes) -> Option<SecretBytes> {
    unwrap(binding, KEY, body, key)
}

/// What it costs to try a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PassphraseCost {
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
}

impl PassphraseCost {
    /// What new slots cost.
    pub(crate) const NEW: Self =
        Self { memory_kib: PASSPHRASE_MEMORY_KIB, passes: PASSPHRASE_PASSES, lanes: PASSPHRASE_LANES };

    fn encode(self) -> [u8; COST_LENGTH] {
        let mut bytes = [0; COST_LENGTH];
        bytes[..4].copy_from_slice(&self.memory_kib.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.passes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.lanes.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; COST_LENGTH]) -> Self {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { memory_kib: number(0), passes: number(4), lanes: number(8) }
    }

    /// Whether this program is willing to pay it. A file decides nothing about how much memory is taken.
    fn is_bearable(self) -> bool {
        self.memory_kib <= MAX_PASSPHRASE_MEMORY_KIB
            && (1..=MAX_PASSPHRASE_PASSES).contains(&self.passes)
            && (1..=MAX_PASSPHRASE_LANES).contains(&self.lanes)
    }

    /// Argon2id (RFC 9106), version 1.3.
    fn stretch(self, passphrase: &Passphrase, salt: &[u8]) -> Result<SecretBytes, StoreError> {
        let unbearable = |_| StoreError::PassphraseCost { memory_kib: self.memory_kib, passes: self.passes };
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(ROOT_LENGTH)).map_err(unbearable)?;
        let count = params.block_count();
        let mut blocks = WipedBlocks(Vec::new());
        blocks.0.try_reserve_exact(count).map_err(|_| StoreError::Memory { bytes: count * Block::SIZE })?;
        blocks.0.resize(count, Block::new());
        let mut key = SecretBytes::default();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(passphrase.expose().as_bytes(), salt, &mut key[..], &mut blocks.0)
            .map_err(unbearable)?;
        Ok(key)
    }
}

/// A slot for a passphrase.
pub(super) fn for_passphrase(
    binding: &Binding<'_>,
    root: &SecretBytes,
    passphrase: &Passphrase,
    cost: PassphraseCost,
    salt: &[u8; SALT_LENGTH],
) -> Result<Slot, StoreError> {
    let key = cost.stretch(passphrase, salt)?;
    let mut body = cost.encode().to_vec();
    body.extend_from_slice(&wrap(binding, PASSPHRASE, root, &key, salt));
    Ok(Slot { kind: PASSPHRASE, body })
}

/// `Ok(None)` if it is another passphrase.
///
/// # Errors
/// [`StoreError::PassphraseCost`], before any memory is taken; [`StoreError::Memory`].
pub(super) fn open_with_passphrase(
    binding: &Binding<'_>,
    body: &[u8],
    passphrase: &Passphrase,
) -> Result<Option<SecretBytes>, StoreError> {
    let Some((cost, wrapped)) = body.split_first_chunk::<COST_LENGTH>() else { return Ok(None) };
    if wrapped.len() != WRAPPED_LENGTH {
        return Ok(None);
    }
    let cost = PassphraseCost::decode(*cost);
    if !cost.is_bearable() {
        return Err(StoreError::PassphraseCost { memory_kib: cost.memory_kib, passes: cost.passes });
    }
    let key = cost.stretch(passphrase, &wrapped[..SALT_LENGTH])?;
    Ok(unwrap(binding, PASSPHRASE, wrapped, &key))
}

/// A slot for whoever has the private half of a key.
pub(super) fn for_recipient(
    binding: &Binding<'_>,
    root: &SecretBytes,
    recipient: &Recipient,
) -> Result<Slot, StoreError> {
    type Public = <X25519HkdfSha256 as Kem>::PublicKey;
    let unusable = |_| StoreError::RecipientUnusable;
    let public = Public::from_bytes(recipient.as_bytes()).map_err(unusable)?;
    // `single_shot_seal` panics when the system has no random numbers. It has, or this fails first: once
    // getrandom(2) has given some, it never fails again.
    random::fill(&mut [0; 32])?;
    let (encapsulated, sealed) = single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &public,
        &info(binding),
        &root[..],
        &binding.associated(RECIPIENT),
    )
    .map_err(unusable)?;
    let encapsulated = encapsulated.to_bytes();
    let mut note = *recipient.as_bytes();
    let key = keys::recipient_note_key(root, &encapsulated, binding.store());
    let tag = keys::seal_once(&key, &binding.associated(RECIPIENT), &mut note);
    Ok(Slot { kind: RECIPIENT, body: [&encapsulated[..], &sealed, &note, &tag].concat() })
}

pub(super) fn open_with_recipient_key(
    binding: &Binding<'_>,
    body: &[u8],
    key: &RecipientKey,
) -> Result<Option<SecretBytes>, StoreError> {
    type Encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey;
    if body.len() != RECIPIENT_LENGTH {
        return Ok(None);
    }
    let (encapsulated, rest) = body.split_at(ENCAPSULATED_LENGTH);
    let Ok(encapsulated) = Encapsulated::from_bytes(encapsulated) else { return Ok(None) };
    let opened = single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &key.private()?,
        &encapsulated,
        &info(binding),
        &rest[..ROOT_LENGTH + TAG_LENGTH],
        &binding.associated(RECIPIENT),
    );
    let Ok(opened) = opened.map(Zeroizing::new) else { return Ok(None) };
    let mut root = SecretBytes::default();
    root.copy_from_slice(&opened);
    Ok(binding.is_root(&root).then_some(root))
}

/// For whom a recipient slot is, which only those see who can open the store.
pub(super) fn recipient_of(binding: &Binding<'_>, body: &[u8], root: &SecretBytes) -> Option<Recipient> {
    if body.len() != RECIPIENT_LENGTH {
        return None;
    }
    let (encapsulated, rest) = body.split_at(ENCAPSULATED_LENGTH);
    let (note, tag) = rest[ROOT_LENGTH + TAG_LENGTH..].split_first_chunk::<32>()?;
    let mut note = *note;
    let key = keys::recipient_note_key(root, encapsulated, binding.store());
    let opened = keys::open_once(&key, &binding.associated(RECIPIENT), &mut note, tag);
    opened.then(|| Recipient::from_bytes(note).ok()).flatten()
}

/// What HPKE mixes into its key, so that nothing of another program or another store opens as a slot.
fn info(binding: &Binding<'_>) -> Vec<u8> {
    [RECIPIENT_CONTEXT, binding.store()].concat()
}

fn wrap(binding: &Binding<'_>, kind: u16, root: &SecretBytes, key: &SecretBytes, salt: &[u8; SALT_LENGTH]) -> Vec<u8> {
    let mut wrapped = root.clone();
    let key = keys::slot_key(key, salt, binding.store(), kind);
    let tag = keys::seal_once(&key, &binding.associated(kind), wrapped.as_mut());
    [&salt[..], wrapped.as_ref(), &tag].concat()
}

fn unwrap(binding: &Binding<'_>, kind: u16, body: &[u8], key: &SecretBytes) -> Option<SecretBytes> {
    if body.len() != WRAPPED_LENGTH {
        return None;
    }
    let (salt, rest) = body.split_at(SALT_LENGTH);
    let (wrapped, tag) = rest.split_at(ROOT_LENGTH);
    let mut root = SecretBytes::default();
    root.copy_from_slice(wrapped);
    let key = keys::slot_key(key, salt, binding.store(), kind);
    let opened = keys::open_once(&key, &binding.associated(kind), root.as_mut(), tag) && binding.is_root(&root);
    opened.then_some(root)
}
