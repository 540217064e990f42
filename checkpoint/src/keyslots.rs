//! The keyslots file: what opens a store, and whether it is sealed at all (DESIGN §8, Keyslots). Final.
//!
//! The root key is random and never changes hands; each slot wraps it for one holder. So a key can be added
//! or removed without touching a frame. Numbers are little-endian.
//!
//! ```text
//!   0   8  magic, `vatslots`                       62   …  slots, one after the other:
//!   8   2  version of the store, 1                          2  type: 1 key file
//!  10   1  protection: 1 sealed, 2 plain                     4  length of what follows in this slot
//!  11   1  zero                                              …  as the type says
//!  12  16  store id, random                       -32  32  SHA-256 of everything before
//!  28  32  root key check (plain: zero)
//!  60   2  number of slots
//! ```
//!
//! A key file slot is 32 random bytes of salt, the wrapped root key (32) and the tag (16): AES-256-GCM under
//! HKDF-SHA256(key file, salt, context ‖ store id ‖ type), with everything up to the slots and the type as
//! associated data. Slots of types that this program does not know are kept and skipped.
//!
//! The checksum tells a damaged file (`checkpoint.damaged`) from a wrong key (`key.wrong`).

use std::path::Path;

use ring::digest::{SHA256, digest};

use crate::{
    error::{Damage, StoreError},
    keys::{self, Root, SALT_LENGTH, SecretBytes, TAG_LENGTH},
};

/// The version of a store's files together that this program writes, and the newest that it opens.
pub(crate) const STORE_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"vatslots";
const HEAD_LENGTH: usize = 62;
const CHECKSUM_LENGTH: usize = 32;
const SLOT_HEAD_LENGTH: usize = 6;
const SEALED: u8 = 1;
const PLAIN: u8 = 2;
const KEY_FILE: u16 = 1;
const WRAPPED_LENGTH: usize = SALT_LENGTH + 32 + TAG_LENGTH;

/// A keyslots file, read and found whole.
pub(crate) struct Keyslots {
    /// Which store this is.
    pub(crate) store: [u8; 16],
    head: [u8; HEAD_LENGTH],
    slots: Vec<(u16, Vec<u8>)>,
}

impl Keyslots {
    /// For a new store of public data.
    pub(crate) fn plain(store: [u8; 16]) -> Self {
        Self { store, head: head(store, PLAIN, &[0; 32], 0), slots: Vec::new() }
    }

    /// For a new sealed store whose root key is wrapped for the holder of one key file. The salt is random.
    pub(crate) fn with_key_file(
        store: [u8; 16],
        root: &SecretBytes,
        key_file: &SecretBytes,
        salt: &[u8; SALT_LENGTH],
    ) -> Self {
        let head = head(store, SEALED, &keys::root_check(root, &store), 1);
        let mut wrapped = root.clone();
        let key = keys::slot_key(key_file, salt, &store, KEY_FILE);
        let tag = keys::seal_once(&key, &associated(&head), wrapped.as_mut());
        Self { store, head, slots: vec![(KEY_FILE, [&salt[..], wrapped.as_ref(), &tag].concat())] }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.head[10] == SEALED
    }

    /// The root key, if `key_file` is the key of one of the slots.
    pub(crate) fn unwrap_with_key_file(&self, key_file: &SecretBytes) -> Option<Root> {
        for (_, slot) in self.slots.iter().filter(|(kind, slot)| *kind == KEY_FILE && slot.len() == WRAPPED_LENGTH) {
            let (salt, rest) = slot.split_at(SALT_LENGTH);
            let (wrapped, tag) = rest.split_at(32);
            let mut root = SecretBytes::default();
            root.copy_from_slice(wrapped);
            let key = keys::slot_key(key_file, salt, &self.store, KEY_FILE);
            if keys::open_once(&key, &associated(&self.head), root.as_mut(), tag)
                && keys::root_check(&root, &self.store) == self.head[28..60]
            {
                return Some(Root::Sealed(root));
            }
        }
        None
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.head.to_vec();
        for (kind, slot) in &self.slots {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(slot.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(slot);
        }
        let checksum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(checksum.as_ref());
        bytes
    }

    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |damage| StoreError::damaged(path, damage);
        let length = damaged(Damage::Length { found: bytes.len() as u64 });
        let body_length = bytes.len().checked_sub(CHECKSUM_LENGTH).ok_or_else(|| length.clone())?;
        let (body, checksum) = bytes.split_at(body_length);
        if digest(&SHA256, body).as_ref() != checksum {
            return Err(damaged(Damage::Checksum));
        }
        let (head, mut rest) = body.split_first_chunk::<HEAD_LENGTH>().ok_or(length)?;
        if &head[..8] != MAGIC {
            return Err(damaged(Damage::Contents));
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version != STORE_VERSION {
            return Err(StoreError::Version { path: path.to_owned(), found: version, known: STORE_VERSION });
        }
        if head[10] != SEALED && head[10] != PLAIN {
            return Err(damaged(Damage::Contents));
        }
        let mut slots = Vec::new();
        for _ in 0..u16::from_le_bytes([head[60], head[61]]) {
            let (slot_head, after) =
                rest.split_first_chunk::<SLOT_HEAD_LENGTH>().ok_or_else(|| damaged(Damage::Contents))?;
            let [kind_low, kind_high, length @ ..] = *slot_head;
            let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
            let (slot, after) = after.split_at_checked(length).ok_or_else(|| damaged(Damage::Contents))?;
            slots.push((u16::from_le_bytes([kind_low, kind_high]), slot.to_vec()));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(damaged(Damage::Contents));
        }
        let mut store = [0; 16];
        store.copy_from_slice(&head[12..28]);
        Ok(Self { store, head: *head, slots })
    }
}

fn head(store: [u8; 16], protection: u8, root_check: &[u8; 32], slots: u16) -> [u8; HEAD_LENGTH] {
    let mut head = [0; HEAD_LENGTH];
    head[..8].copy_from_slice(MAGIC);
    head[8..10].copy_from_slice(&STORE_VERSION.to_le_bytes());
    head[10] = protection;
    head[12..28].copy_from_slice(&store);
    head[28..60].copy_from_slice(root_check);
    head[60..62].copy_from_slice(&slots.to_le_bytes());
    head
}

/// What a wrapped key is bound to: the store and its root key check, and the type of the slot. Not the number
/// of slots, which changes when another key is added.
fn associated(head: &[u8; HEAD_LENGTH]) -> Vec<u8> {
    [&head[..60], &KEY_FILE.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: [u8; 16] = [3; 16];

    fn secret(byte: u8) -> SecretBytes {
        SecretBytes::new([byte; 32])
    }

    fn root_of(slots: &Keyslots, key: u8) -> Option<SecretBytes> {
        match slots.unwrap_with_key_file(&secret(key))? {
            Root::Sealed(root) => Some(root),
            Root::Plain => None,
        }
    }

    #[test]
    fn the_right_key_unwraps_the_root_key_and_no_other_does() {
        let slots = Keyslots::with_key_file(STORE, &secret(1), &secret(2), &[4; 32]);
        let read = Keyslots::decode(Path::new("keyslots"), &slots.encode()).unwrap();
        assert_eq!(root_of(&read, 2), Some(secret(1)));
        assert_eq!(root_of(&read, 5), None);
        assert!(read.is_sealed());
        assert!(!Keyslots::plain(STORE).is_sealed());
    }

    #[test]
    fn every_changed_bit_is_found() {
        let bytes = Keyslots::with_key_file(STORE, &secret(1), &secret(2), &[4; 32]).encode();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Keyslots::decode(Path::new("keyslots"), &changed).is_err(), "bit {bit}");
        }
        assert!(Keyslots::decode(Path::new("keyslots"), &bytes[..bytes.len() - 1]).is_err());
        assert!(Keyslots::decode(Path::new("keyslots"), &[]).is_err());
    }

    #[test]
    fn a_wrapped_key_does_not_open_in_another_store() {
        let mut slots = Keyslots::with_key_file(STORE, &secret(1), &secret(2), &[4; 32]);
        slots.store = [9; 16];
        slots.head[12..28].copy_from_slice(&slots.store);
        assert_eq!(root_of(&slots, 2), None);
    }

    #[test]
    fn slots_of_unknown_types_are_skipped() {
        let mut slots = Keyslots::with_key_file(STORE, &secret(1), &secret(2), &[4; 32]);
        slots.slots.insert(0, (77, vec![1, 2, 3]));
        slots.head[60] = 2;
        let read = Keyslots::decode(Path::new("keyslots"), &slots.encode()).unwrap();
        assert_eq!(root_of(&read, 2), Some(secret(1)));
    }

    #[test]
    fn a_newer_version_is_refused_as_such() {
        let mut slots = Keyslots::plain(STORE);
        slots.head[8] = 2;
        let refused = Keyslots::decode(Path::new("keyslots"), &slots.encode());
        assert!(matches!(refused, Err(StoreError::Version { found: 2, known: 1, .. })));
    }
}
