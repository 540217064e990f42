//! Who can open a small store: the same steps as for a large one (`store_keys`), with the keyslots at the beginning of
//! the one file.
//!
//! They stand before the snapshot, so each change of them is a fold, and takes as long as one. The store is open and
//! locked meanwhile, so nobody reads the key file and the keyslots at two different moments.

use std::{mem, path::Path, sync::Arc};

use super::SmallStore;
use crate::{
    error::StoreError,
    key_file,
    keys::Root,
    keyslots::{Keyslots, SlotId},
    protection::Holder,
    store::lifecycle::sync_directory,
    store_keys::{Change, SlotInfo, infos},
};

impl SmallStore {
    /// The keyslots, in the order in which they are tried. Plain stores have none.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotInfo> {
        infos(&self.shape.keyslots, self.shape.keys.root(), self.shape.own)
    }

    /// Lets another holder open the store, from when this returns on.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; [`StoreError::Protection`] for a plain store; [`StoreError::TooManySlots`];
    /// [`StoreError::Outgrown`]; errors of the holder's key, and of the disk, which poison the store when they come
    /// from its own file.
    pub fn add_holder(&mut self, holder: &Holder) -> Result<SlotId, StoreError> {
        self.change(|change| change.add(holder))
    }

    /// Takes the slot `id` away. Never the one that was opened: so somebody can always open the store.
    ///
    /// # Errors
    /// As [`SmallStore::add_holder`]; [`StoreError::UnknownSlot`], [`StoreError::SlotInUse`].
    pub fn remove_holder(&mut self, id: SlotId) -> Result<(), StoreError> {
        // The key that was opened may be what an interrupted rotation renamed and never synced.
        if let Some(path) = &self.key_file {
            sync_directory(self.disk.as_ref(), key_file::parent(path))?;
        }
        self.change(|change| change.remove(id))
    }

    /// Replaces the contents of a key file that opens this store by a new random key; returns the id of the new slot.
    /// After this the old key opens the store no more.
    ///
    /// A key file that several stores share cannot be replaced for one of them: the others would not open any more.
    ///
    /// # Errors
    /// As [`SmallStore::add_holder`]; [`StoreError::KeyWrong`] if the key file does not open it, and errors of the key
    /// file.
    pub fn rotate_key_file(&mut self, key_file: &Path) -> Result<SlotId, StoreError> {
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        let old = key_file::load(disk.as_ref(), key_file)?;
        let Some(goes) = self.shape.keyslots.opened_by(&old).first().copied() else {
            return Err(StoreError::KeyWrong { key: key_file.to_owned(), path });
        };
        sync_directory(disk.as_ref(), key_file::parent(key_file))?;
        let comes = self.change(|change| {
            change.own = goes;
            change.rotate(key_file)
        })?;
        // The one that was opened may have been this one, or another one of the same key.
        if !self.shape.keyslots.slots().any(|(id, _)| Some(id) == self.shape.own) {
            self.shape.own = Some(comes);
        }
        Ok(comes)
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Change<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.check()?;
        let (disk, path, keys) = (Arc::clone(&self.disk), self.path.clone(), Arc::clone(&self.shape.keys));
        let (Root::Sealed(root), Some(own)) = (keys.root(), self.shape.own) else {
            return Err(StoreError::Protection { path, sealed: false });
        };
        let keyslots = self.shape.keyslots.clone();
        let put = &mut |keyslots: &Keyslots| self.put(keyslots.clone());
        change(&mut Change { disk: disk.as_ref(), place: &path, keyslots, root, own, put })
    }

    /// Writes the file anew, with these keyslots.
    fn put(&mut self, keyslots: Keyslots) -> Result<(), StoreError> {
        self.check()?;
        let before = mem::replace(&mut self.shape.keyslots, keyslots);
        let head = self.head;
        let folded = self.fold(&head, &[]);
        self.written(folded).inspect_err(|_| self.shape.keyslots = before)
    }
}
