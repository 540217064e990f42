//! How a store comes into being and is opened again.
//!
//! `create` writes the keyslots file under another name first and gives it its real name last. So a folder
//! with `keyslots` is a whole store; one with `keyslots.new` only is what an unfinished `create` left, and the
//! next one starts over; and a folder with frames but neither of them was damaged by somebody else, and is left
//! alone.

use std::{
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Instant, SystemTime},
};

use schemas::Timestamp;

use super::{
    StoreOptions, background,
    committer::{self, Committer},
    host::Host,
    state::{ByVat, Fold, Limits, Shared, Spare, State, VatState, VatTag},
};
use crate::{
    base::{Base, Snapshot, VatFold, VatPosition},
    disk::{Disk, LockAttempt, LockGuard},
    error::{Damage, LockHolder, StoreError},
    frame::Kind,
    journal::{Append, Head, Journal, Place, Replayed, Writer, replay},
    key_file,
    keys::{Keys, NO_VAT},
    keyslots::Keyslots,
    limits::MAX_PROGRAM_CHARACTERS,
    overlay::Overlay,
    payload::{self, Genesis},
    protection::Protection,
    store_keys::{self, KEYSLOTS},
};

const LOCK: &str = "lock";
const KEYSLOTS_NEW: &str = "keyslots.new";
const BASE: &str = "base.redb";
const JOURNAL: &str = "journal";

/// A store that does not exist yet: everything is in its folder but the name that makes it one.
pub(super) struct Creation {
    disk: Arc<dyn Disk>,
    keys: Keys,
    journal: Journal,
    limits: Limits,
    lock: Box<dyn LockGuard>,
    base: Base,
    writer: Writer,
    vat: Option<(Keys, VatPosition)>,
}

impl Creation {
    /// Puts everything into the folder: for no vat yet, or for one that has come as far as is said.
    pub(super) fn begin(
        disk: Arc<dyn Disk>,
        directory: &Path,
        vat: Option<([u8; 32], Head)>,
        protection: &Protection,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let limits = Limits::of(options)?;
        create_directory(disk.as_ref(), directory)?;
        let lock = lock(disk.as_ref(), directory)?;
        let journal = Journal::new(Arc::clone(&disk), directory);
        clear_unfinished(disk.as_ref(), directory, &journal)?;

        let (keyslots, root) = Keyslots::create(disk.as_ref(), protection)?;
        let keys = Keys::new(root, keyslots.store, NO_VAT);
        write_new(disk.as_ref(), &directory.join(KEYSLOTS_NEW), &keyslots.encode())?;
        // This syncs the folder, and so both names, before anything gets a name inside the journal.
        create_directory(disk.as_ref(), journal.directory())?;
        let segment = journal.make(0, limits.segment_bytes)?;
        let mut writer = Writer::new(segment, Place::default());
        let vat = match vat {
            Some((vat, start)) => {
                let keys = keys.of(vat);
                let head = write_genesis(&journal, &limits, &mut writer, &keys, &start)?;
                Some((keys, VatPosition { vat, turn: start.turn, head }))
            }
            None => None,
        };
        let no_rows = Overlay::default();
        let folds: Vec<VatFold<'_>> =
            vat.iter().map(|(keys, position)| VatFold { keys, rows: &no_rows, position: *position }).collect();
        let base = Base::create(disk.as_ref(), &directory.join(BASE), &keys, &folds, &writer.at())?;
        Ok(Self { disk, keys, journal, limits, lock, base, writer, vat })
    }

    /// The vat that it is for.
    pub(super) fn vat(&self) -> [u8; 32] {
        self.vat.as_ref().map_or(NO_VAT, |(keys, _)| keys.vat())
    }

    /// Puts rows of the vat into the base, which a later fold could not do before its first turn.
    pub(super) fn add(&self, rows: &Overlay) -> Result<(), StoreError> {
        let Some((keys, position)) = &self.vat else { return Ok(()) };
        let fold = VatFold { keys, rows, position: *position };
        self.base.write(&self.keys, &[fold], &self.writer.at()).map(drop)
    }

    /// Makes it a store.
    pub(super) fn finish(self, directory: &Path, options: StoreOptions) -> Result<Arc<Host>, StoreError> {
        let Self { disk, keys, journal, limits, lock, base, writer, .. } = self;
        sync_directory(disk.as_ref(), directory)?;
        let (unfinished, keyslots) = (directory.join(KEYSLOTS_NEW), directory.join(KEYSLOTS));
        disk.rename(&unfinished, &keyslots).map_err(|e| StoreError::disk("rename", &unfinished, e))?;
        sync_directory(disk.as_ref(), directory)?;
        let snapshot = base.snapshot(&keys)?;
        let vats = ByVat::default();
        Opened { keys, journal, limits, lock, base, snapshot, writer, vats, unfolded: 0 }.start(directory, options)
    }
}

/// Writes the first frame of a vat, and of a journal.
fn write_genesis(
    journal: &Journal,
    limits: &Limits,
    writer: &mut Writer,
    keys: &Keys,
    start: &Head,
) -> Result<Head, StoreError> {
    let Head { turn, epoch, incarnation, .. } = *start;
    let genesis = Append { keys, kind: Kind::Genesis, before: &Head::default(), turn, epoch, incarnation };
    let payload = |_, frame: &mut Vec<u8>| payload::append(frame, &Genesis { vat: keys.vat() });
    let no_switch = |number, length: u64| journal.make(number, limits.segment_bytes.max(length));
    // Proof: there is one head for each frame.
    Ok(writer.append(&[genesis], payload, no_switch)?[0])
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    directory: &Path,
    protection: &Protection,
    options: StoreOptions,
) -> Result<Arc<Host>, StoreError> {
    let limits = Limits::of(&options)?;
    // Before locking, which would leave a lock file in whatever folder somebody names by mistake.
    let keyslots = directory.join(KEYSLOTS);
    drop(disk.open_to_read(&keyslots).map_err(|e| StoreError::disk("open", &keyslots, e))?);
    let lock = lock(disk.as_ref(), directory)?;
    let (store, root) = store_keys::unlock(disk.as_ref(), directory, protection)?;
    let keys = Keys::new(root, store, NO_VAT);

    let base = Base::open(disk.as_ref(), &directory.join(BASE), &keys)?;
    let snapshot = base.snapshot(&keys)?;
    let journal = Journal::new(disk, directory);
    let (replayed, vats) = replay_onto(&journal, &keys, &snapshot)?;
    replayed.settle(&journal, limits.segment_bytes)?;
    let Replayed { at, segment, bytes: unfolded, .. } = replayed;
    let writer = Writer::new(segment, at);
    Opened { keys, journal, limits, lock, base, snapshot, writer, vats, unfolded }.start(directory, options)
}

/// Reads what the journal has after a base: the vats of which it has something.
fn replay_onto(journal: &Journal, keys: &Keys, snapshot: &Snapshot) -> Result<(Replayed, ByVat<VatState>), StoreError> {
    let mut bases = ByVat::default();
    let mut changes = ByVat::<Overlay>::default();
    let mut find = |tag: &VatTag| {
        let Some(base) = snapshot.vat(keys, tag)? else { return Ok(None) };
        let position = base.position;
        bases.insert(*tag, base);
        Ok(Some((Arc::new(keys.of(position.vat)), position.head)))
    };
    let replayed = replay(journal, keys, &snapshot.place(), &mut find, &mut |keys, turn| {
        // Also turns that the base contains, if it ends in the middle of a group: what they set is what the base
        // has, or is set again by a later turn.
        let overlay = changes.entry(keys.vat_tag()).or_default();
        for change in &turn.changes {
            overlay.set(change.space, change.name.0.to_vec(), change.value.map(|value| value.0.to_vec()));
        }
    })?;
    let mut vats = ByVat::default();
    for (tag, (keys, head)) in &replayed.vats {
        let base = bases.remove(tag);
        if let Some(base) = &base {
            assert_reached(journal, &base.position, head)?;
        }
        let mut vat = VatState::new(Arc::clone(keys), *head, base);
        vat.upper = changes.remove(tag).unwrap_or_default();
        vats.insert(*tag, vat);
    }
    Ok((replayed, vats))
}

/// A fold may end in the middle of a group; then the base is ahead of where replay begins, and the journal has to have
/// the rest of the group.
pub(super) fn assert_reached(journal: &Journal, base: &VatPosition, head: &Head) -> Result<(), StoreError> {
    if head.turn >= base.turn {
        return Ok(());
    }
    let damage = Damage::BehindBase { journal: head.turn, base: base.turn };
    Err(StoreError::damaged(journal.directory(), damage))
}

/// A store whose files are in order and whose threads are not running yet.
struct Opened {
    keys: Keys,
    journal: Journal,
    limits: Limits,
    lock: Box<dyn LockGuard>,
    base: Base,
    snapshot: Snapshot,
    writer: Writer,
    /// The vats that the journal changes after the base, and how many bytes of frames that are.
    vats: ByVat<VatState>,
    unfolded: u64,
}

impl Opened {
    fn start(self, directory: &Path, options: StoreOptions) -> Result<Arc<Host>, StoreError> {
        let first_unfolded = (self.unfolded > 0).then(Instant::now);
        let tags: Vec<VatTag> = self.vats.keys().copied().collect();
        let mut state = State {
            vats: self.vats,
            ready: Vec::new(),
            touched: Vec::new(),
            queued_turns: 0,
            queued_bytes: 0,
            at: self.writer.at(),
            committer: Some(Box::new(Committer::new(self.writer))),
            called: false,
            base: Arc::new(self.snapshot),
            poison: None,
            closing: false,
            committer_ended: false,
            spare: Spare::None,
            fold: Fold { written: self.unfolded, first_unfolded, ..Fold::default() },
        };
        tags.iter().for_each(|tag| state.touch(tag));
        let told = (options.metrics, options.on_fold);
        let shared = Arc::new(Shared::new(self.keys, self.journal, self.limits, told, state));
        let mut host = Host::new(Arc::clone(&shared), directory, &self.base, self.lock);
        let (for_committer, base) = (Arc::clone(&shared), self.base);
        host.committer = Some(spawn("committer", move || committer::run(&for_committer))?);
        // If this fails, the host is dropped, and the committer ends.
        host.background = Some(spawn("background", move || background::run(&shared, base))?);
        Ok(Arc::new(host))
    }
}

fn spawn<T: Send + 'static>(
    thread: &'static str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, StoreError> {
    let builder = thread::Builder::new().name(format!("checkpoint-{thread}"));
    builder.spawn(run).map_err(|source| StoreError::Thread { thread, source: Arc::new(source) })
}

/// Locks the store, or says who has it.
pub(super) fn lock(disk: &dyn Disk, directory: &Path) -> Result<Box<dyn LockGuard>, StoreError> {
    let path = directory.join(LOCK);
    match disk.try_lock(&path, &lock_text()).map_err(|e| StoreError::disk("lock", &path, e))? {
        LockAttempt::Acquired(lock) => Ok(lock),
        LockAttempt::Held(text) => {
            Err(StoreError::Locked { directory: directory.to_owned(), holder: parse_lock_text(&text) })
        }
    }
}

/// What the next one who wants the lock is told.
pub(crate) fn lock_text() -> String {
    // As the program was called. Where it really is would cost a system call, in every request to a small store.
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    let program: String = program.chars().filter(|c| !c.is_control()).take(MAX_PROGRAM_CHARACTERS).collect();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("process {}\nprogram {program}\nsince {since}\n", std::process::id())
}

/// `None` if the holder has not written it yet.
pub(crate) fn parse_lock_text(text: &str) -> Option<LockHolder> {
    let value = |name| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Some(LockHolder {
        process_id: value("process")?.parse().ok()?,
        program: value("program")?.chars().filter(|c| !c.is_control()).take(MAX_PROGRAM_CHARACTERS).collect(),
        since: Timestamp::from_seconds(value("since")?.parse().ok()?),
    })
}

/// Makes sure that there is nothing in the folder but the lock and what an unfinished `create` left, and
/// removes that.
fn clear_unfinished(disk: &dyn Disk, directory: &Path, journal: &Journal) -> Result<(), StoreError> {
    let names = disk.list(directory).map_err(|e| StoreError::disk("list", directory, e))?;
    let has = |name| names.iter().any(|found| found == name);
    let no_frames = !has(JOURNAL) || journal.is_empty()?;
    let unfinished = has(KEYSLOTS_NEW) && !has(KEYSLOTS);
    let ours = |name: &str| {
        name == LOCK || (name == JOURNAL && no_frames) || (unfinished && [KEYSLOTS_NEW, BASE, JOURNAL].contains(&name))
    };
    if let Some(found) = names.iter().find(|name| !ours(name)) {
        return Err(StoreError::Occupied { directory: directory.to_owned(), found: found.clone() });
    }
    if !unfinished {
        return Ok(());
    }
    // The name that says "unfinished" goes last.
    if !no_frames {
        journal.clear()?;
    }
    for name in [BASE, KEYSLOTS_NEW].into_iter().filter(|name| has(name)) {
        let path = directory.join(name);
        disk.remove(&path).map_err(|e| StoreError::disk("remove", &path, e))?;
        sync_directory(disk, directory)?;
    }
    Ok(())
}

/// Makes a folder, durable with its name, if it is not there yet.
fn create_directory(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    match disk.create_directory(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(StoreError::disk("create", path, error)),
        // Also when it is there: the process that made it may have been killed before it was durable.
        _ => sync_directory(disk, key_file::parent(path)),
    }
}

pub(crate) fn sync_directory(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    disk.sync_directory(path).map_err(|e| StoreError::disk("sync", path, e))
}

pub(crate) fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |error| StoreError::disk("write", path, error);
    let file = disk.create(path).map_err(failed)?;
    file.write_all_at(0, bytes).map_err(failed)?;
    file.sync_data().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulated::SimulatedDisk, store::Store};

    const VAT: [u8; 32] = [7; 32];

    /// A fold may end in the middle of a frame; then the base is ahead of where replay begins, and the frame
    /// has to be there.
    #[test]
    fn a_base_with_turns_that_the_journal_has_lost_is_damage() {
        let (disk, directory) = (SimulatedDisk::new(), Path::new("/store"));
        let options = StoreOptions::default;
        drop(Store::create(disk.clone(), directory, &VAT, &Protection::Plain, options()).unwrap());
        let (id, root) = store_keys::unlock(disk.as_ref(), directory, &Protection::Plain).unwrap();
        let keys = Keys::new(root, id, VAT);
        let base = Base::open(disk.as_ref(), &directory.join(BASE), &keys).unwrap();
        let snapshot = base.snapshot(&keys).unwrap();
        let position = snapshot.vat(&keys, &keys.vat_tag()).unwrap().unwrap().position;
        let ahead = VatFold { keys: &keys, rows: &Overlay::default(), position: VatPosition { turn: 3, ..position } };
        base.write(&keys, &[ahead], &snapshot.place()).unwrap();
        drop(snapshot);
        base.close().unwrap();

        let refused = Store::open(disk, directory, &VAT, &Protection::Plain, options()).unwrap_err();
        let damage = Damage::BehindBase { journal: 0, base: 3 };
        assert!(matches!(&refused, StoreError::Damaged { damage: found, .. } if *found == damage), "{refused}");
    }

    #[test]
    fn the_text_of_a_lock_reads_back_and_nothing_else_does() {
        let holder = parse_lock_text(&lock_text()).unwrap();
        assert_eq!(holder.process_id, std::process::id());
        for text in ["", "process 1", "process x\nprogram y\nsince 1\n", "process 1\nprogram y\nsince\n"] {
            assert_eq!(parse_lock_text(text), None, "{text}");
        }
        let long = format!("process 1\nprogram \u{1b}[31m{}\nsince 1\n", "x".repeat(200));
        assert_eq!(parse_lock_text(&long).unwrap().program.chars().count(), MAX_PROGRAM_CHARACTERS);
        assert!(!parse_lock_text(&long).unwrap().program.contains('\u{1b}'));
    }
}
