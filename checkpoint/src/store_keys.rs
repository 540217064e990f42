//! Who can open an existing store: listing, adding, removing and replacing keys (DESIGN §8, Keyslots).
//!
//! For a store in a folder all of it works on the keyslots file alone, so it works while another process has the store open: that one
//! has the root key already and does not need its keyslots again. What it does *not* do is change the root key:
//! whoever has copied both an old key and the keyslots that belonged to it keeps the root key that they gave.
//! Sealing everything again under another root key is what an export and import does.
//!
//! A small store has its keyslots in its one file, and changes them itself ([`SmallStore`](crate::SmallStore)), by the
//! same steps.
//!
//! The file is only ever replaced whole: written under another name, synced, renamed, the folder synced. Two
//! changes exclude each other by a lock file of their own. A key file is replaced in steps, and at each of them
//! what is at its path opens the store:
//!
//! ```text
//!                                        key file     opens with
//!   1  new key, durable beside the old    old          old
//!   2  keyslots with both, and a mark     old          old, new
//!   3  new key renamed over the old       new          old, new
//!   4  keyslots without the old           new          new
//! ```
//!
//! Interrupted after 2, the next rotation removes the slot of the new key, which nobody needs; after 3, that of
//! the old one. Which of the two it is, the key at the path tells, and what they are, the mark.
//!
//! What is seen at the path may be what an interrupted rotation renamed and never synced. So before any slot goes,
//! that folder is synced: the key that was opened must still be there after a loss of power.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
};

use schemas::Recipient;

use crate::{
    disk::{Disk, LockAttempt, LockGuard, read_small},
    error::{Damage, StoreError},
    key_file,
    keys::{Root, SecretBytes},
    keyslots::{Keyslots, SlotId, SlotKind, Unlocked},
    limits::{KEYSLOTS_READS, MAX_KEYSLOTS_BYTES},
    protection::{Holder, Protection},
    random,
    store::lifecycle::{lock_text, sync_directory, write_new},
};

pub(crate) const KEYSLOTS: &str = "keyslots";
/// The next keyslots, until they are renamed. Not `keyslots.new`, which says that a `create` did not finish.
const KEYSLOTS_NEXT: &str = "keyslots.next";
const KEYSLOTS_LOCK: &str = "keyslots.lock";
/// Behind the name of a key file: its successor, until it is renamed.
const ROTATION: &str = ".rotation";

/// One keyslot of a store, as its owner is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotInfo {
    /// Names it.
    pub id: SlotId,
    /// What opens it.
    pub kind: SlotKind,
    /// For whom it is, if it is for a recipient.
    pub recipient: Option<Recipient>,
    /// Whether it is the one that was opened to see this.
    pub own: bool,
    /// Whether it is one of the two slots of a rotation that is under way or was interrupted: the next rotation
    /// removes the one whose key is not in its place.
    pub rotating: bool,
}

/// The keyslots of a store, in the order in which they are tried. Plain stores have none.
///
/// # Errors
/// Those of opening the store with `protection`, but for its lock.
pub fn slots(disk: &dyn Disk, directory: &Path, protection: &Protection) -> Result<Vec<SlotInfo>, StoreError> {
    let (keyslots, unlocked) = read_and_unlock(disk, directory, protection)?;
    Ok(infos(&keyslots, &unlocked.root, unlocked.slot))
}

/// What the owner is shown of these keyslots, who has opened the slot `own`.
pub(crate) fn infos(keyslots: &Keyslots, root: &Root, own: Option<SlotId>) -> Vec<SlotInfo> {
    let Root::Sealed(root) = root else { return Vec::new() };
    let rotation = keyslots.rotation();
    let info = |(id, kind)| SlotInfo {
        id,
        kind,
        recipient: keyslots.recipient(id, root),
        own: own == Some(id),
        rotating: rotation.is_some_and(|(goes, comes)| id == goes || id == comes),
    };
    keyslots.slots().map(info).collect()
}

/// Lets another holder open a store that `protection` opens, from when this returns on.
///
/// # Errors
/// Those of opening the store with `protection`, but for its lock; [`StoreError::KeysBusy`];
/// [`StoreError::TooManySlots`]; [`StoreError::Protection`] for a plain store; errors of the disk.
pub fn add_holder(
    disk: &dyn Disk,
    directory: &Path,
    protection: &Protection,
    holder: &Holder,
) -> Result<SlotId, StoreError> {
    Edit::begin(disk, directory, protection)?.make(|change| change.add(holder))
}

/// Takes the slot `id` away from a store that `protection` opens. Never the slot that `protection` itself opens:
/// so somebody can always open the store.
///
/// # Errors
/// As [`add_holder`]; [`StoreError::UnknownSlot`], [`StoreError::SlotInUse`].
pub fn remove_holder(disk: &dyn Disk, directory: &Path, protection: &Protection, id: SlotId) -> Result<(), StoreError> {
    Edit::begin(disk, directory, protection)?.make(|change| change.remove(id))
}

/// Replaces the contents of a key file by a new random key, for a store that it opens; returns the id of the new
/// slot. After this the old key opens the store no more.
///
/// A key file that several stores share cannot be replaced for one of them: the others would not open any more.
///
/// # Errors
/// As [`add_holder`].
pub fn rotate_key_file(disk: &dyn Disk, directory: &Path, key_file: &Path) -> Result<SlotId, StoreError> {
    Edit::begin(disk, directory, &Protection::KeyFile(key_file.to_owned()))?.make(|change| change.rotate(key_file))
}

/// Held by whoever relies on the keyslots of a store, and on the key files that open it, staying as they are. Every
/// change of them is refused ([`StoreError::KeysBusy`]) until it is dropped, and ends with the process at the latest.
pub struct KeyslotsHold {
    _lock: Box<dyn LockGuard>,
}

/// Keeps everybody from changing who can open the store in `directory`: for a store that is about to give way to one
/// which the same key file opens. The keyslots themselves are not read, and may be damaged.
///
/// # Errors
/// [`StoreError::KeysBusy`] while somebody changes them; errors of the disk.
pub fn hold_keyslots(disk: &dyn Disk, directory: &Path) -> Result<KeyslotsHold, StoreError> {
    lock(disk, directory).map(|lock| KeyslotsHold { _lock: lock })
}

impl fmt::Debug for KeyslotsHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyslotsHold").finish_non_exhaustive()
    }
}

/// The id and the root key of a store, for opening it.
pub(crate) fn unlock(
    disk: &dyn Disk,
    directory: &Path,
    protection: &Protection,
) -> Result<([u8; 16], Root), StoreError> {
    let (keyslots, unlocked) = read_and_unlock(disk, directory, protection)?;
    Ok((keyslots.store, unlocked.root))
}

fn lock(disk: &dyn Disk, directory: &Path) -> Result<Box<dyn LockGuard>, StoreError> {
    let path = directory.join(KEYSLOTS_LOCK);
    match disk.try_lock(&path, &lock_text()).map_err(|error| StoreError::disk("lock", &path, error))? {
        LockAttempt::Acquired(lock) => Ok(lock),
        LockAttempt::Held(_) => Err(StoreError::KeysBusy { directory: directory.to_owned() }),
    }
}

/// Keyslots and key cannot be read at the same moment: if the key does not fit and the keyslots have changed
/// meanwhile, there was a rotation in between.
fn read_and_unlock(
    disk: &dyn Disk,
    directory: &Path,
    protection: &Protection,
) -> Result<(Keyslots, Unlocked), StoreError> {
    let mut keyslots = read(disk, directory)?;
    for _ in 1..KEYSLOTS_READS {
        let refused = match keyslots.unlock(disk, directory, protection) {
            Ok(unlocked) => return Ok((keyslots, unlocked)),
            Err(refused) => refused,
        };
        let again = read(disk, directory)?;
        if again.encode() == keyslots.encode() {
            return Err(refused);
        }
        keyslots = again;
    }
    let unlocked = keyslots.unlock(disk, directory, protection)?;
    Ok((keyslots, unlocked))
}

fn read(disk: &dyn Disk, directory: &Path) -> Result<Keyslots, StoreError> {
    let path = directory.join(KEYSLOTS);
    let failed = |error| StoreError::disk("read", &path, error);
    let file = disk.open_to_read(&path).map_err(failed)?;
    let Some(bytes) = read_small(file.as_ref(), MAX_KEYSLOTS_BYTES).map_err(failed)? else {
        return Err(StoreError::damaged(&path, Damage::Length { found: file.len().map_err(failed)? }));
    };
    Keyslots::decode(&path, &bytes)
}

/// A change of the keyslots of one store, which excludes every other one until it is dropped.
struct Edit<'a> {
    disk: &'a dyn Disk,
    directory: &'a Path,
    keyslots: Keyslots,
    root: SecretBytes,
    /// The slot that the caller opened.
    slot: SlotId,
    _lock: Box<dyn LockGuard>,
}

impl<'a> Edit<'a> {
    fn begin(disk: &'a dyn Disk, directory: &'a Path, protection: &Protection) -> Result<Self, StoreError> {
        // Before locking, which would leave a lock file in whatever folder somebody names by mistake.
        drop(read(disk, directory)?);
        let lock = lock(disk, directory)?;
        let (keyslots, unlocked) = read_and_unlock(disk, directory, protection)?;
        let Unlocked { root: Root::Sealed(root), slot: Some(slot) } = unlocked else {
            return Err(StoreError::Protection { path: directory.to_owned(), sealed: false });
        };
        if let Protection::KeyFile(path) = protection {
            sync_directory(disk, key_file::parent(path))?;
        }
        Ok(Self { disk, directory, keyslots, root, slot, _lock: lock })
    }

    /// Makes a change, which puts each of its steps in the place of the keyslots that are there.
    fn make<T>(self, change: impl FnOnce(&mut Change<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Self { disk, directory, keyslots, root, slot, _lock } = self;
        let put = &mut |keyslots: &Keyslots| replace(disk, directory, keyslots);
        change(&mut Change { disk, place: directory, keyslots, root: &root, own: slot, put })
    }
}

/// Puts the keyslots in the place of those that are there, at once and durably.
fn replace(disk: &dyn Disk, directory: &Path, keyslots: &Keyslots) -> Result<(), StoreError> {
    let (next, path) = (directory.join(KEYSLOTS_NEXT), directory.join(KEYSLOTS));
    remove_left_over(disk, &next)?;
    write_new(disk, &next, &keyslots.encode())?;
    disk.rename(&next, &path).map_err(|error| StoreError::disk("rename", &next, error))?;
    sync_directory(disk, directory)
}

/// A change of keyslots, wherever they stand: in a file of their own, or at the beginning of a small store. Nobody else
/// changes them meanwhile.
pub(crate) struct Change<'a> {
    pub(crate) disk: &'a dyn Disk,
    /// The store, for errors.
    pub(crate) place: &'a Path,
    pub(crate) keyslots: Keyslots,
    pub(crate) root: &'a SecretBytes,
    /// The slot that the caller opened.
    pub(crate) own: SlotId,
    /// Puts them in the place of those that are there, at once and durably.
    pub(crate) put: &'a mut dyn FnMut(&Keyslots) -> Result<(), StoreError>,
}

impl Change<'_> {
    pub(crate) fn add(&mut self, holder: &Holder) -> Result<SlotId, StoreError> {
        let id = self.keyslots.add(self.disk, self.place, self.root, holder)?;
        self.put()?;
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Result<(), StoreError> {
        if self.own == id {
            return Err(StoreError::SlotInUse { slot: id });
        }
        if !self.keyslots.remove(id) {
            return Err(StoreError::UnknownSlot { slot: id, path: self.place.to_owned() });
        }
        if self.keyslots.rotation().is_some_and(|(goes, comes)| id == goes || id == comes) {
            self.keyslots.set_rotation(None);
        }
        self.put()
    }

    /// Replaces the key file that opens the slot `own`.
    pub(crate) fn rotate(&mut self, key_file: &Path) -> Result<SlotId, StoreError> {
        self.settle();
        let old = key_file::load(self.disk, key_file)?;
        let next = with_suffix(key_file, ROTATION);
        // What an interrupted rotation left beside the key file opens nothing that is still needed.
        remove_left_over(self.disk, &next)?;
        let new = key_file::create(self.disk, &next)?;

        let comes = self.keyslots.add_key(self.root, &new, &random::salt()?);
        // The old key may have been added twice.
        for twice in self.keyslots.opened_by(&old).into_iter().filter(|id| *id != self.own) {
            self.keyslots.remove(twice);
        }
        self.keyslots.set_rotation(Some((self.own, comes)));
        self.put()?;

        self.disk.rename(&next, key_file).map_err(|error| StoreError::disk("rename", &next, error))?;
        sync_directory(self.disk, key_file::parent(key_file))?;

        self.keyslots.remove(self.own);
        self.keyslots.set_rotation(None);
        self.put()?;
        Ok(comes)
    }

    /// Removes what an interrupted rotation left: of its two slots the one that the key in its place does not open.
    fn settle(&mut self) {
        let left = self.keyslots.rotation().and_then(|(goes, comes)| match self.own {
            slot if slot == goes => Some(comes),
            slot if slot == comes => Some(goes),
            // A rotation of another key file: it is not known which of the two is in its place.
            _ => None,
        });
        if let Some(left) = left {
            self.keyslots.remove(left);
            self.keyslots.set_rotation(None);
        }
    }

    fn put(&mut self) -> Result<(), StoreError> {
        (self.put)(&self.keyslots)
    }
}

/// Removes what an interrupted change left under a name that is about to be used again. Durably: otherwise a loss
/// of power could bring the old file back under that name, and a rename that was meant for the new one would take it.
pub(crate) fn remove_left_over(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    match disk.remove(path) {
        Ok(()) => sync_directory(disk, key_file::parent(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::disk("remove", path, error)),
    }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
