//! The keyslots file: what opens a store, and whether it is sealed at all (DESIGN §8, Keyslots).
//!
//! The root key is random and never changes hands; each slot wraps it for one holder. So a key can be added,
//! removed or replaced without touching a frame. Numbers are little-endian. The head and slot type 1 are final.
//!
//! ```text
//!   0   8  magic, `vatslots`                       62   …  slots, one after the other:
//!   8   2  version of the store, 1                          2  type
//!  10   1  protection: 1 sealed, 2 plain                     4  length of what follows in this slot
//!  11   1  zero                                              …  as the type says
//!  12  16  store id, random                       -32  32  SHA-256 of everything before
//!  28  32  root key check (plain: zero)
//!  60   2  number of slots
//!
//! type 1, key: 80 bytes              type 2, passphrase: 92 bytes       type 3, recipient: 128 bytes
//!   0  32  salt                        0   4  Argon2id memory, in KiB     0  32  encapsulated key
//!  32  32  root key, sealed            4   4  Argon2id passes            32  32  root key, sealed
//!  64  16  tag                         8   4  Argon2id lanes             64  16  tag
//!                                     12  32  salt                       80  32  the recipient, sealed
//! type 4, rotation: 10 bytes          44  32  root key, sealed          112  16  tag
//!   0   5  id of the slot that goes   76  16  tag
//!   5   5  id of the slot that comes
//! ```
//!
//! * What wraps the root key in types 1 and 2 is AES-256-GCM under HKDF-SHA256(secret, salt, context ‖ store id ‖
//!   type). In type 1 the secret is 32 random bytes: a key file, a credential, or a key of the caller's. In
//!   type 2 it is Argon2id (version 1.3) of the passphrase and the salt.
//! * Type 3 is HPKE in base mode (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, with
//!   `info` = context ‖ store id. For whom it is, only those can read who can open the store: AES-256-GCM under
//!   HKDF-SHA256(root key, encapsulated key, another context ‖ store id). Base mode says nothing about *who*
//!   sealed: whoever has a recipient can make a whole new store for it. What is opened with a recipient's key
//!   needs another proof of where it comes from.
//! * Associated data is always everything up to the number of slots, and the type. So a slot does not open in
//!   another store, nor as another type.
//! * Type 4 is there while a key file is replaced, and tells the next rotation what to clean up if that was
//!   interrupted (`store_keys`).
//! * Slots of types that this program does not know are kept and skipped.
//! * A slot's id is the first five bytes of SHA-256(context ‖ type ‖ contents).
//!
//! The checksum tells a damaged file (`checkpoint.damaged`) from a wrong key (`key.wrong`).

mod slot;

use std::{fmt, path::Path, str::FromStr};

use ring::digest::{SHA256, digest};
use schemas::{Coded, ErrorCode, Recipient};

pub(crate) use self::slot::PassphraseCost;
use crate::{
    disk::Disk,
    error::{Damage, StoreError},
    key_file,
    keys::{self, Root, SecretBytes},
    limits::{MAX_KEYSLOTS_BYTES, MAX_PASSPHRASE_SLOTS},
    protection::{Holder, Protection},
    random,
    secrets::Passphrase,
};

/// The version of a store's files together that this program writes, and the newest that it opens.
pub(crate) const STORE_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"vatslots";
const HEAD_LENGTH: usize = 62;
const CHECKSUM_LENGTH: usize = 32;
const SLOT_HEAD_LENGTH: usize = 6;
const SEALED: u8 = 1;
const PLAIN: u8 = 2;
const KEY: u16 = 1;
const PASSPHRASE: u16 = 2;
const RECIPIENT: u16 = 3;
const ROTATION: u16 = 4;
const SLOT_ID_CONTEXT: &[u8] = b"vat checkpoint keyslot id 1\0";

/// Names one keyslot of a store, for as long as it exists: ten hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId([u8; SlotId::LENGTH]);

impl SlotId {
    const LENGTH: usize = 5;
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Some text is not the id of a keyslot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a keyslot is ten digits and letters from a to f, this is not")]
pub struct SlotIdError;

impl Coded for SlotIdError {
    fn code(&self) -> ErrorCode {
        ErrorCode::KeyUnknownSlot
    }
}

impl FromStr for SlotId {
    type Err = SlotIdError;

    fn from_str(text: &str) -> Result<Self, SlotIdError> {
        if text.len() != 2 * Self::LENGTH || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(SlotIdError);
        }
        let mut id = [0; Self::LENGTH];
        for (byte, at) in id.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| SlotIdError)?;
        }
        Ok(Self(id))
    }
}

/// What opens a keyslot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlotKind {
    /// 32 random bytes: a key file, a credential, or a key of the caller's.
    Key,
    /// A passphrase.
    Passphrase,
    /// The private half of a recipient.
    Recipient,
    /// Something that this program does not know.
    Unknown(u16),
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => f.write_str("key"),
            Self::Passphrase => f.write_str("passphrase"),
            Self::Recipient => f.write_str("recipient"),
            Self::Unknown(kind) => write!(f, "slot of type {kind}"),
        }
    }
}

/// One slot as it is stored.
#[derive(Clone)]
struct Slot {
    kind: u16,
    body: Vec<u8>,
}

impl Slot {
    fn id(&self) -> SlotId {
        let hash = digest(&SHA256, &[SLOT_ID_CONTEXT, &self.kind.to_le_bytes(), &self.body].concat());
        let mut id = [0; SlotId::LENGTH];
        id.copy_from_slice(&hash.as_ref()[..SlotId::LENGTH]);
        SlotId(id)
    }

    fn kind(&self) -> SlotKind {
        match self.kind {
            KEY => SlotKind::Key,
            PASSPHRASE => SlotKind::Passphrase,
            RECIPIENT => SlotKind::Recipient,
            other => SlotKind::Unknown(other),
        }
    }
}

/// What every slot of one file is bound to: the head but for the number of slots, which changes when another
/// slot is added.
struct Binding<'a>(&'a [u8; HEAD_LENGTH]);

impl Binding<'_> {
    fn store(&self) -> &[u8; 16] {
        // Proof: 28 - 12 are 16.
        #[allow(clippy::expect_used)]
        self.0[12..28].try_into().expect("16 bytes")
    }

    fn is_root(&self, root: &SecretBytes) -> bool {
        keys::root_check(root, self.store()) == self.0[28..60]
    }

    fn associated(&self, kind: u16) -> Vec<u8> {
        [&self.0[..60], &kind.to_le_bytes()].concat()
    }
}

/// A keyslots file, read and found whole.
#[derive(Clone)]
pub(crate) struct Keyslots {
    /// Which store this is.
    pub(crate) store: [u8; 16],
    /// The number of slots in it is as it was read; [`encode`](Self::encode) writes the right one.
    head: [u8; HEAD_LENGTH],
    slots: Vec<Slot>,
}

/// What came of unlocking.
pub(crate) struct Unlocked {
    pub(crate) root: Root,
    /// The slot that was opened; `None` for a plain store.
    pub(crate) slot: Option<SlotId>,
}

impl Keyslots {
    /// For a new store of public data.
    pub(crate) fn plain(store: [u8; 16]) -> Self {
        Self { store, head: head(store, PLAIN, &[0; 32]), slots: Vec::new() }
    }

    /// For a new sealed store, or image, with this root key. Nobody can open it until
    /// [`add`](Self::add) has been called.
    pub(crate) fn sealed(store: [u8; 16], root: &SecretBytes) -> Self {
        Self { store, head: head(store, SEALED, &keys::root_check(root, &store)), slots: Vec::new() }
    }

    /// The keyslots of a new store with a random id and, unless it is plain, a random root key that
    /// `protection` unlocks.
    pub(crate) fn create(disk: &dyn Disk, protection: &Protection) -> Result<(Self, Root), StoreError> {
        let mut store = [0; 16];
        random::fill(&mut store)?;
        let mut root = SecretBytes::default();
        random::fill(root.as_mut())?;
        let mut keyslots = Self::sealed(store, &root);
        let holder = match protection {
            Protection::Plain => return Ok((Self::plain(store), Root::Plain)),
            Protection::KeyFile(path) => Holder::KeyFile(path.clone()),
            Protection::Credential { directory, name } => {
                keyslots.add_key(&root, &key_file::load_credential(disk, directory, name)?, &random::salt()?);
                return Ok((keyslots, Root::Sealed(root)));
            }
            Protection::Passphrase(passphrase) => Holder::Passphrase(passphrase.clone()),
            Protection::Recipient(key) => Holder::Recipient(key.recipient()?),
            Protection::Key(key) => Holder::Key(key.clone()),
        };
        keyslots.add(disk, Path::new(""), &root, &holder)?;
        Ok((keyslots, Root::Sealed(root)))
    }

    /// The keyslots of a new image with a random id and a random root key, which these holders can unlock.
    /// `place` is the image, for errors.
    pub(crate) fn of_image(disk: &dyn Disk, place: &Path, holders: &[Holder]) -> Result<(Self, Root), StoreError> {
        if holders.is_empty() {
            return Err(StoreError::Option { option: "holders", value: 0 });
        }
        let (mut store, mut root) = ([0; 16], SecretBytes::default());
        random::fill(&mut store)?;
        random::fill(root.as_mut())?;
        let mut keyslots = Self::sealed(store, &root);
        holders.iter().try_for_each(|holder| keyslots.add(disk, place, &root, holder).map(drop))?;
        Ok((keyslots, Root::Sealed(root)))
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.head[10] == SEALED
    }

    /// Wraps the root key for another holder. `place` is for errors.
    pub(crate) fn add(
        &mut self,
        disk: &dyn Disk,
        place: &Path,
        root: &SecretBytes,
        holder: &Holder,
    ) -> Result<SlotId, StoreError> {
        let too_many = || StoreError::TooManySlots { path: place.to_owned() };
        let id = match holder {
            Holder::KeyFile(path) => self.add_key(root, &key_file::load_or_create(disk, path)?, &random::salt()?),
            Holder::Key(key) => self.add_key(root, key.expose(), &random::salt()?),
            Holder::Passphrase(passphrase) => {
                if self.slots.iter().filter(|slot| slot.kind == PASSPHRASE).count() >= MAX_PASSPHRASE_SLOTS {
                    return Err(too_many());
                }
                self.add_passphrase(root, passphrase, PassphraseCost::NEW, &random::salt()?)?
            }
            Holder::Recipient(recipient) => self.add_recipient(root, recipient)?,
        };
        // With room for a rotation, which adds two slots for a while: a full store must still be able to replace
        // its key file.
        if self.encode().len() + ROTATION_ROOM > usize::try_from(MAX_KEYSLOTS_BYTES).unwrap_or(usize::MAX) {
            self.slots.pop();
            return Err(too_many());
        }
        Ok(id)
    }

    /// Wraps the root key for whoever has these 32 bytes.
    pub(crate) fn add_key(&mut self, root: &SecretBytes, key: &SecretBytes, salt: &[u8; 32]) -> SlotId {
        let slot = slot::for_key(&self.binding(), root, key, salt);
        let id = slot.id();
        self.slots.push(slot);
        id
    }

    /// Wraps the root key for whoever knows this passphrase.
    ///
    /// # Errors
    /// [`StoreError::PassphraseCost`] if Argon2id cannot work so; [`StoreError::Memory`].
    pub(crate) fn add_passphrase(
        &mut self,
        root: &SecretBytes,
        passphrase: &Passphrase,
        cost: PassphraseCost,
        salt: &[u8; 32],
    ) -> Result<SlotId, StoreError> {
        let slot = slot::for_passphrase(&self.binding(), root, passphrase, cost, salt)?;
        let id = slot.id();
        self.slots.push(slot);
        Ok(id)
    }

    /// Wraps the root key for whoever has the private half of this key.
    ///
    /// # Errors
    /// [`StoreError::RecipientUnusable`], [`StoreError::Random`].
    pub(crate) fn add_recipient(&mut self, root: &SecretBytes, recipient: &Recipient) -> Result<SlotId, StoreError> {
        let slot = slot::for_recipient(&self.binding(), root, recipient)?;
        let id = slot.id();
        self.slots.push(slot);
        Ok(id)
    }

    /// Every slot that these 32 bytes open, in order.
    pub(crate) fn opened_by(&self, key: &SecretBytes) -> Vec<SlotId> {
        let binding = self.binding();
        let opens = |slot: &&Slot| slot.kind == KEY && slot::open_with_key(&binding, &slot.body, key).is_some();
        self.slots.iter().filter(opens).map(Slot::id).collect()
    }

    /// Removes a slot, and says whether there was one.
    pub(crate) fn remove(&mut self, id: SlotId) -> bool {
        let before = self.slots.len();
        self.slots.retain(|slot| slot.id() != id || slot.kind == ROTATION);
        self.slots.len() != before
    }

    /// All slots, but for the mark of a rotation.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (SlotId, SlotKind)> {
        self.slots.iter().filter(|slot| slot.kind != ROTATION).map(|slot| (slot.id(), slot.kind()))
    }

    /// For whom a slot is, if it is one for a recipient.
    pub(crate) fn recipient(&self, id: SlotId, root: &SecretBytes) -> Option<Recipient> {
        let slot = self.slots.iter().find(|slot| slot.kind == RECIPIENT && slot.id() == id)?;
        slot::recipient_of(&self.binding(), &slot.body, root)
    }

    /// The slots that go and come in a rotation that was not finished.
    pub(crate) fn rotation(&self) -> Option<(SlotId, SlotId)> {
        let mark = self.slots.iter().find(|slot| slot.kind == ROTATION)?;
        let (goes, comes) = mark.body.split_first_chunk::<{ SlotId::LENGTH }>()?;
        Some((SlotId(*goes), SlotId(comes.try_into().ok()?)))
    }

    /// Notes a rotation, or that there is none.
    pub(crate) fn set_rotation(&mut self, rotation: Option<(SlotId, SlotId)>) {
        self.slots.retain(|slot| slot.kind != ROTATION);
        if let Some((goes, comes)) = rotation {
            self.slots.push(Slot { kind: ROTATION, body: [goes.0, comes.0].concat() });
        }
    }

    /// The root key, if `protection` opens one of the slots. `place` is the store or the image, for errors.
    ///
    /// # Errors
    /// [`StoreError::Protection`] if one of the two is plain and the other is not;
    /// [`StoreError::NoSlot`] if there is no slot of this kind; [`StoreError::KeyWrong`],
    /// [`StoreError::PassphraseWrong`], [`StoreError::RecipientWrong`] or [`StoreError::GivenKeyWrong`] if none of
    /// them opens; errors of the key file.
    pub(crate) fn unlock(
        &self,
        disk: &dyn Disk,
        place: &Path,
        protection: &Protection,
    ) -> Result<Unlocked, StoreError> {
        let (path, binding) = (place.to_owned(), self.binding());
        // Never guess: a sealed store that somebody has replaced by a plain one must not be taken for it.
        if self.is_sealed() == matches!(protection, Protection::Plain) {
            return Err(StoreError::Protection { path, sealed: self.is_sealed() });
        }
        let with_key = |key: &SecretBytes| {
            self.open_one(SlotKind::Key, place, |body| Ok(slot::open_with_key(&binding, body, key)))
        };
        let (opened, wrong) = match protection {
            Protection::Plain => return Ok(Unlocked { root: Root::Plain, slot: None }),
            Protection::KeyFile(key) => {
                (with_key(&key_file::load(disk, key)?)?, StoreError::KeyWrong { key: key.clone(), path })
            }
            Protection::Credential { directory, name } => {
                let key = key_file::load_credential(disk, directory, name)?;
                (with_key(&key)?, StoreError::KeyWrong { key: directory.join(name), path })
            }
            Protection::Key(key) => (with_key(key.expose())?, StoreError::GivenKeyWrong { path }),
            Protection::Passphrase(passphrase) => {
                let open = |body: &[u8]| slot::open_with_passphrase(&binding, body, passphrase);
                (self.open_one(SlotKind::Passphrase, place, open)?, StoreError::PassphraseWrong { path })
            }
            Protection::Recipient(key) => {
                let open = |body: &[u8]| slot::open_with_recipient_key(&binding, body, key);
                let wrong = StoreError::RecipientWrong { recipient: key.recipient()?, path };
                (self.open_one(SlotKind::Recipient, place, open)?, wrong)
            }
        };
        let (slot, root) = opened.ok_or(wrong)?;
        Ok(Unlocked { root: Root::Sealed(root), slot: Some(slot) })
    }

    /// Tries the slots of one kind. A slot that costs too much is passed over, and only reported if no other
    /// one opens.
    fn open_one(
        &self,
        kind: SlotKind,
        place: &Path,
        open: impl Fn(&[u8]) -> Result<Option<SecretBytes>, StoreError>,
    ) -> Result<Option<(SlotId, SecretBytes)>, StoreError> {
        let mut passed_over = Ok(None);
        let mut found = Vec::new();
        let mut tries = 0;
        for slot in self.slots.iter().filter(|slot| slot.kind != ROTATION) {
            if slot.kind() != kind {
                if !found.contains(&slot.kind()) {
                    found.push(slot.kind());
                }
                continue;
            }
            tries += 1;
            if kind == SlotKind::Passphrase && tries > MAX_PASSPHRASE_SLOTS {
                break;
            }
            match open(&slot.body) {
                Ok(Some(root)) => return Ok(Some((slot.id(), root))),
                Ok(None) => {}
                Err(error @ StoreError::PassphraseCost { .. }) => passed_over = Err(error),
                Err(error) => return Err(error),
            }
        }
        match tries {
            0 => Err(StoreError::NoSlot { kind, found, path: place.to_owned() }),
            _ => passed_over,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.head.to_vec();
        // Proof: a file of 64 KiB has no room for more slots of six bytes and more.
        let count = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        bytes[60..62].copy_from_slice(&count.to_le_bytes());
        for slot in &self.slots {
            bytes.extend_from_slice(&slot.kind.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(slot.body.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(&slot.body);
        }
        let checksum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(checksum.as_ref());
        bytes
    }

    /// Reads a file that consists of keyslots.
    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |damage| StoreError::damaged(path, damage);
        let body_length = bytes.len().checked_sub(CHECKSUM_LENGTH);
        let (body, checksum) = bytes
            .split_at_checked(body_length.unwrap_or(usize::MAX))
            .ok_or_else(|| damaged(Damage::Length { found: bytes.len() as u64 }))?;
        // Before anything is believed, the version included.
        if digest(&SHA256, body).as_ref() != checksum {
            return Err(damaged(Damage::Checksum));
        }
        let (keyslots, length) = Self::decode_prefix(path, bytes)?;
        if length == bytes.len() { Ok(keyslots) } else { Err(damaged(Damage::Contents)) }
    }

    /// Reads the keyslots with which a file begins, and says how long they are. `bytes` are the first ones of
    /// the file: all of it, or as many as keyslots can have.
    pub(crate) fn decode_prefix(path: &Path, bytes: &[u8]) -> Result<(Self, usize), StoreError> {
        let damaged = |damage| StoreError::damaged(path, damage);
        let short = || damaged(Damage::Length { found: bytes.len() as u64 });
        let (head, mut rest) = bytes.split_first_chunk::<HEAD_LENGTH>().ok_or_else(short)?;
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
            let (slot_head, after) = rest.split_first_chunk::<SLOT_HEAD_LENGTH>().ok_or_else(short)?;
            let [kind_low, kind_high, length @ ..] = *slot_head;
            let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
            let (body, after) = after.split_at_checked(length).ok_or_else(short)?;
            slots.push(Slot { kind: u16::from_le_bytes([kind_low, kind_high]), body: body.to_vec() });
            rest = after;
        }
        let body_length = bytes.len() - rest.len();
        let (checksum, _) = rest.split_first_chunk::<CHECKSUM_LENGTH>().ok_or_else(short)?;
        if digest(&SHA256, &bytes[..body_length]).as_ref() != checksum {
            return Err(damaged(Damage::Checksum));
        }
        let mut store = [0; 16];
        store.copy_from_slice(&head[12..28]);
        Ok((Self { store, head: *head, slots }, body_length + CHECKSUM_LENGTH))
    }

    fn binding(&self) -> Binding<'_> {
        Binding(&self.head)
    }
}

/// What a rotation adds to the file while it is under way: a key slot and the mark.
const ROTATION_ROOM: usize = 2 * SLOT_HEAD_LENGTH + 80 + 2 * SlotId::LENGTH;

fn head(store: [u8; 16], protection: u8, root_check: &[u8; 32]) -> [u8; HEAD_LENGTH] {
    let mut head = [0; HEAD_LENGTH];
    head[..8].copy_from_slice(MAGIC);
    head[8..10].copy_from_slice(&STORE_VERSION.to_le_bytes());
    head[10] = protection;
    head[12..28].copy_from_slice(&store);
    head[28..60].copy_from_slice(root_check);
    head
}

#[cfg(test)]
mod tests;
