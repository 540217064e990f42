//! One store for many vats: one journal, one base, one committer (DESIGN §8).
//!
//! What all vats of a store have in common is a [`Host`]: the threads, the lock, the files. A [`Store`] is one vat of
//! it, awake; a [`HostStore`] is the store as a whole. Whichever of them is closed last closes the files.
//!
//! A vat that nobody has open takes neither memory nor a file: all that there is of it is in the base, but for what
//! happened to it since the last fold. Waking it reads what the base has of one vat in 256, to see that nobody has taken
//! this one back.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use super::{
    OnDurable, Sizes, Store, StoreOptions,
    committer::report_poisoned,
    lifecycle,
    state::{Request, Shared, State, VatState, VatTag},
};
use crate::{
    base::Base,
    disk::{Disk, DiskFile, LockGuard},
    error::StoreError,
    journal::Head,
    keys::Keys,
    protection::Protection,
};

/// A store of many vats, locked against every other opener. A vat of it is a [`Store`].
///
/// They share its fate: an error of the disk stops all of them, and so does a damaged row of one that is read
/// ([`Store::get`], [`Store::scan`]).
///
/// All methods can be called from any thread, and block on the disk.
///
/// ```
/// use std::path::Path;
/// use checkpoint::{Change, HostStore, Protection, RowKey, StoreOptions, TurnDelta, simulated::SimulatedDisk};
///
/// # fn main() -> Result<(), checkpoint::StoreError> {
/// let (disk, folder) = (SimulatedDisk::new(), Path::new("/vats"));
/// let key = Protection::KeyFile("/vats.key".into());
/// let host = HostStore::create(disk, folder, &key, StoreOptions::default())?;
/// let (one, two) = (host.create_vat(&[1; 32], None)?, host.create_vat(&[2; 32], None)?);
///
/// // Each vat counts its own turns. What several of them queue becomes durable with one sync.
/// let row = RowKey { space: 16, name: b"greeting".to_vec() };
/// for vat in [&one, &two] {
///     vat.queue(TurnDelta { turn: 1, changes: vec![Change { key: row.clone(), value: Some(b"hello".to_vec()) }] })?;
/// }
/// two.wait_durable(1)?;
/// assert_eq!(one.durable().turn, 1);
///
/// // Asleep, a vat is a few rows of the base; awake again it is as it was.
/// one.close()?;
/// let one = host.open_vat(&[1; 32], None)?;
/// assert_eq!(one.get(&row)?.as_deref(), Some(&b"hello"[..]));
/// # Ok(())
/// # }
/// ```
pub struct HostStore {
    pub(super) host: Arc<Host>,
}

impl HostStore {
    /// Makes a new store without any vat, in a folder that is empty or does not exist yet (its parent must), and opens
    /// it.
    ///
    /// # Errors
    /// As [`Store::create`]; [`StoreError::Option`] if `options` have a callback: each vat has its own.
    pub fn create(
        disk: Arc<dyn Disk>,
        directory: &Path,
        protection: &Protection,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let options = without_callback(options)?;
        let creation = lifecycle::Creation::begin(disk, directory, None, protection, &options)?;
        Ok(Self { host: creation.finish(directory, options)? })
    }

    /// Opens a store, also one that was made for a single vat.
    ///
    /// # Errors
    /// As [`Store::open`]; [`StoreError::Option`] if `options` have a callback: each vat has its own.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        protection: &Protection,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let options = without_callback(options)?;
        Ok(Self { host: lifecycle::open(disk, directory, protection, options)? })
    }

    /// Makes a new vat and wakes it: epoch 0, turn 0, durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::VatExists`]; [`StoreError::Poisoned`]; errors of the base.
    pub fn create_vat(&self, vat: &[u8; 32], on_durable: Option<OnDurable>) -> Result<Store, StoreError> {
        Store::create_in(&self.host, vat, on_durable)
    }

    /// Wakes a vat: whoever has it open has it alone. It sleeps again when the [`Store`] is closed or dropped.
    ///
    /// # Errors
    /// [`StoreError::VatAwake`]; [`StoreError::NoSuchVat`]; [`StoreError::Poisoned`]; damage of what the base has of this
    /// vat, which does not stop the store.
    pub fn open_vat(&self, vat: &[u8; 32], on_durable: Option<OnDurable>) -> Result<Store, StoreError> {
        Store::wake(&self.host, vat, on_durable)
    }

    /// All vats of the store, awake or asleep, in no order.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; errors of the base.
    pub fn vats(&self) -> Result<Vec<[u8; 32]>, StoreError> {
        let (base, new) = {
            let state = self.host.shared.lock();
            state.check()?;
            let new = state.vats.values().filter(|vat| vat.base.is_none() && vat.durable.sequence > 0);
            (Arc::clone(&state.base), new.map(|vat| vat.keys.vat()).collect::<Vec<_>>())
        };
        let mut vats = base.vats(&self.host.shared.keys)?;
        vats.extend(new);
        Ok(vats)
    }

    /// Folds everything that is submitted now into the base and waits for it, as [`Store::fold`] does.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    pub fn fold(&self) -> Result<(), StoreError> {
        self.host.fold()
    }

    /// How much room the store takes, with all of its vats.
    ///
    /// # Errors
    /// When the disk does not say.
    pub fn sizes(&self) -> Result<Sizes, StoreError> {
        self.host.sizes()
    }

    /// The error that has stopped the store, and so all of its vats, if one has.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<StoreError>> {
        self.host.shared.lock().poison.clone()
    }

    /// Closes the store once no vat of it is open any more; makes everything durable, and does not fold.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub fn close(self) -> Result<(), StoreError> {
        Arc::into_inner(self.host).map_or(Ok(()), |mut host| host.shut_down())
    }
}

impl fmt::Debug for HostStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostStore").field("directory", &self.host.directory).finish_non_exhaustive()
    }
}

fn without_callback(options: StoreOptions) -> Result<StoreOptions, StoreError> {
    match options.on_durable {
        Some(_) => Err(StoreError::Option { option: "on_durable", value: 1 }),
        None => Ok(options),
    }
}

/// What the vats of a store have in common. Dropping it closes the store.
pub(super) struct Host {
    pub(super) shared: Arc<Shared>,
    pub(super) directory: PathBuf,
    base_file: Arc<dyn DiskFile>,
    base_path: PathBuf,
    pub(super) committer: Option<JoinHandle<()>>,
    pub(super) background: Option<JoinHandle<Base>>,
    /// The last thing to go: until then nobody else may open the store.
    pub(super) lock: Option<Box<dyn LockGuard>>,
}

impl Host {
    pub(super) fn new(shared: Arc<Shared>, directory: &Path, base: &Base, lock: Box<dyn LockGuard>) -> Self {
        let (base_path, base_file) = (base.file().0.to_owned(), base.file().1);
        let (committer, background) = (None, None);
        Self { shared, directory: directory.to_owned(), base_file, base_path, committer, background, lock: Some(lock) }
    }

    pub(super) fn fold(&self) -> Result<(), StoreError> {
        let mut state = self.shared.lock();
        state.check()?;
        state.fold.requested += 1;
        let ticket = state.fold.requested;
        self.shared.background.notify_one();
        while state.fold.completed < ticket {
            state.check()?;
            state = self.shared.commit_or_wait(state);
        }
        Ok(())
    }

    pub(super) fn sizes(&self) -> Result<Sizes, StoreError> {
        let unfolded_bytes = self.shared.lock().fold.unfolded();
        let base_bytes = self.base_file.len().map_err(|e| StoreError::disk("read", &self.base_path, e))?;
        Ok(Sizes { journal_bytes: self.shared.journal.bytes()?, unfolded_bytes, base_bytes })
    }

    /// Ends the threads, once everything that was submitted is durable.
    pub(super) fn shut_down(&mut self) -> Result<(), StoreError> {
        let Some(committer) = self.committer.take() else { return Ok(()) };
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        // Both threads catch their panics and poison the store with them, so a failed join has been reported.
        let _ = committer.join();
        let base = self.background.take().and_then(|thread| thread.join().ok());
        let closed = base.map_or(Ok(()), Base::close);
        self.shared.lock().check()?;
        closed
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::warn!(store = %self.directory.display(), %error, "the store was closed after an error");
        }
    }
}

/// Keeps a vat awake, for one holder. Dropping it puts the vat to sleep once everything that was submitted is durable.
pub(super) struct Awake {
    pub(super) host: Arc<Host>,
    tag: VatTag,
}

impl Awake {
    /// Wakes a vat that there is.
    pub(super) fn wake(
        host: &Arc<Host>,
        keys: &Arc<Keys>,
        mut on_durable: Option<OnDurable>,
    ) -> Result<Self, StoreError> {
        let (shared, tag) = (&host.shared, keys.vat_tag());
        loop {
            let base = {
                let mut state = shared.lock();
                state.check()?;
                if state.wake(host, keys, &mut on_durable)? {
                    return Ok(Self { host: Arc::clone(host), tag });
                }
                Arc::clone(&state.base)
            };
            let found = base.vat(&shared.keys, &tag)?;
            let missing = || StoreError::NoSuchVat { directory: host.directory.clone(), vat: keys.vat() };
            let found = found.ok_or_else(missing)?;
            lifecycle::assert_reached(&shared.journal, &found.position, &found.position.head)?;

            let mut state = shared.lock();
            // It may have been awake and have slept again meanwhile.
            if !state.vats.contains_key(&tag) && Arc::ptr_eq(&state.base, &base) {
                let head = found.position.head;
                state.vats.insert(tag, VatState::new(Arc::clone(keys), head, Some(found)));
            }
        }
    }

    /// Makes a vat that there is not, and wakes it.
    pub(super) fn create(
        host: &Arc<Host>,
        keys: &Arc<Keys>,
        on_durable: Option<OnDurable>,
    ) -> Result<Self, StoreError> {
        let (shared, tag) = (&host.shared, keys.vat_tag());
        let exists = || StoreError::VatExists { directory: host.directory.clone(), vat: keys.vat() };
        let mut state = loop {
            let base = Arc::clone(&shared.lock().base);
            if base.vat(&shared.keys, &tag)?.is_some() {
                return Err(exists());
            }
            let state = shared.lock();
            state.check()?;
            if state.vats.contains_key(&tag) {
                return Err(exists());
            }
            if Arc::ptr_eq(&state.base, &base) {
                break state;
            }
        };
        let mut vat = VatState::new(Arc::clone(keys), Head::default(), None);
        (vat.open, vat.on_durable, vat.request) = (true, on_durable, Some(Request::Genesis));
        state.vats.insert(tag, vat);
        state.make_ready(&tag);
        // From here on it is put to sleep again if anything fails.
        let awake = Self { host: Arc::clone(host), tag };
        while state.vat(&tag).durable.sequence == 0 {
            if let Err(error) = state.check() {
                drop(state);
                drop(awake);
                return Err(error);
            }
            state = shared.commit_or_wait(state);
        }
        drop(state);
        Ok(awake)
    }

    /// Waits until everything that was submitted is durable.
    pub(super) fn drain(&self) -> Result<(), StoreError> {
        let shared = &self.host.shared;
        let mut state = shared.lock();
        while !state.vat(&self.tag).is_settled() {
            state.check()?;
            state = shared.commit_or_wait(state);
        }
        state.check()
    }
}

impl Awake {
    /// Puts the vat to sleep. Gives the host if nobody else has it.
    pub(super) fn sleep(self) -> Option<Host> {
        let host = Arc::clone(&self.host);
        drop(self);
        Arc::into_inner(host)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        // After an error there is nothing to wait for, and the next call says so.
        let _ = self.drain();
        let (callback, poisoned) = {
            let mut state = self.host.shared.lock();
            let vat = state.vat_mut(&self.tag);
            vat.open = false;
            let callback = vat.on_durable.take();
            state.forget_if_idle(&self.tag);
            (callback, state.poison.is_some())
        };
        // The committer, which tells everybody, has not come yet.
        if let Some(callback) = callback.filter(|_| poisoned) {
            report_poisoned(&[callback]);
        }
    }
}

impl State {
    /// Opens a vat that is in memory; `false` if it is not.
    fn wake(&mut self, host: &Host, keys: &Keys, on_durable: &mut Option<OnDurable>) -> Result<bool, StoreError> {
        let Some(vat) = self.vats.get_mut(&keys.vat_tag()) else { return Ok(false) };
        if vat.open {
            return Err(StoreError::VatAwake { directory: host.directory.clone(), vat: keys.vat() });
        }
        (vat.open, vat.on_durable) = (true, on_durable.take());
        vat.opening += 1;
        Ok(true)
    }
}
