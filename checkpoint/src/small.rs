//! The small profile: a vat in one file, for processes that live for one request (DESIGN §8, §9).
//!
//! A CGI process opens the vat, runs a turn, makes it durable and ends. It has no use for threads, for a group to
//! commit with, or for a database; what it needs is one short read, one write and one `fdatasync`. A vat that is
//! small enough to be read whole in each request gets that from [`SmallStore`]. The frames are those of the journal,
//! and what a crash may do to them is decided by the same code.
//!
//! ```text
//! <path>          an image of the vat, then its tail
//! <path>.lock     who has it open
//! <path>.synced   16 bytes: the tag of the last frame that is known to be durable; a hint
//! <path>.new      what a fold is writing, or an interrupted one has left
//!
//! <path>:   head, keyslots │ image, rows …, end │ turns, epoch, turns … │ zeros
//!                            snapshot               tail                   reserve
//! ```
//!
//! * **Head, keyslots and snapshot** have the form of an [image](crate::image), with the keys of the vat's store, and
//!   an empty label. One thing differs: the first frame does not have the number 1, but goes on counting from the file
//!   before. So a number names one frame in all the life of the store.
//!   Whoever lets another holder in, or replaces a key, folds.
//! * **The tail** is a piece of a [journal](crate::journal): frames that are chained on from the tag of `end`, in
//!   zero-filled space. Torn and damaged are told apart as there.
//! * **A fold** writes a new file under another name, which already contains the turn that is being committed, full of
//!   zeros where its tail will be; syncs it, renames it over the old one, and syncs the folder. It happens in the
//!   commit after [`SMALL_TAIL_FRAMES`] frames, or that does not fit the reserve. Root key and store id stay: every
//!   frame is sealed under a key from 32 fresh random bytes, so none is used twice, and each frame is bound by the
//!   chain to the first of its file, so no frame of the old file opens in the new one.
//!
//! # One sync in a commit, and none in opening
//! A process that was killed between its write and its sync leaves a frame in the page cache only. Whoever shows it,
//! or writes after it, must first make it durable: otherwise a loss of power takes what was shown, or leaves a hole
//! before a whole frame, which is damage. The journal of a host syncs whenever it is opened. Here that would double
//! the price of each request.
//!
//! So each commit notes the tag of its frame in `<path>.synced`, *after* the sync has succeeded, and nobody syncs that
//! note. If the note names the last frame that is found, that frame was durable when the note was written. What a
//! loss of power can do to the note is to take it back, which costs a sync; it cannot bring it forth before the frame
//! was durable. And nothing that is not durable can stand behind that frame: it would be a whole frame, and the
//! last one, or a torn one, which is seen; or zeros over a torn one, and before anybody writes those, the note is
//! cleared.
//!
//! If the note names another frame, or something is torn, opening clears the note, writes the reserve full of zeros
//! and the last frame again, and syncs, as a journal does; and if there is no frame after the snapshot, so that the
//! file may just have been renamed, it syncs the folder as well. That happens after a crash, and to a copy without its
//! note. A copy of all files by other means than [`SmallStore::export`] is as durable as whoever has copied them made
//! it.

mod file;
mod holders;
mod lock;
mod note;
mod rows;

use std::{
    fmt,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::Timestamp;

pub use self::lock::wait_at_most;
use self::{file::Shape, note::Note, rows::Rows};
use crate::{
    disk::{Disk, LockGuard},
    error::StoreError,
    frame::{self, Kind},
    image::{Census, ImageHead, ImageReader, ImageWriter},
    journal::{Append, Head, Writer},
    keys::Keys,
    keyslots::Keyslots,
    limits::{self, SMALL_TAIL_FRAMES},
    overlay::Overlay,
    payload::{self, Epoch},
    protection::{Holder, Protection},
    store::{Adoption, Change, Position, RowKey, ScannedRow, TurnDelta},
};

/// An open small store, locked against every other opener until it is dropped. See [the module](self).
///
/// The first error of the disk poisons it (R5): every later call fails, and opening it again is the only way on.
pub struct SmallStore {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    shape: Shape,
    rows: Rows,
    writer: Writer,
    /// How far the vat has come.
    head: Head,
    /// Frames after the snapshot.
    tail_frames: u64,
    note: Note,
    /// The payload under construction; kept for its memory.
    payload: Vec<u8>,
    poison: Option<Arc<StoreError>>,
    /// Where the key file is that has opened it.
    key_file: Option<PathBuf>,
    /// The last thing to go: until then nobody else may open the store.
    _lock: Box<dyn LockGuard>,
}

impl SmallStore {
    /// Makes a new store for one vat in a file that is not there yet (its folder must be), and opens it: epoch 0,
    /// turn 0.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] if there is such a file; [`StoreError::Locked`]; errors of the key file (`key.*`), of
    /// the disk, and of the random source.
    pub fn create(
        disk: Arc<dyn Disk>,
        path: &Path,
        vat: &[u8; 32],
        protection: &Protection,
    ) -> Result<Self, StoreError> {
        Self::begin(disk, path, protection, |_| Ok((*vat, Head::default())))
    }

    /// Opens a store: locks it, reads and verifies all of it, and removes the traces of a write that did not finish.
    ///
    /// While somebody else has it open, `wait` is called after each try to lock it, and says whether to try again:
    /// [`wait_at_most`] has a deadline and sleeps in between.
    ///
    /// # Errors
    /// [`StoreError::Locked`] with the holder; [`StoreError::Missing`]; [`StoreError::Damaged`] with the offset, and
    /// with nothing changed; [`StoreError::Outgrown`]; [`StoreError::NotAnImage`]; [`StoreError::Version`];
    /// [`StoreError::WrongVat`]; errors of the key (`key.*`) and of the disk.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        vat: &[u8; 32],
        protection: &Protection,
        wait: &mut dyn FnMut() -> bool,
    ) -> Result<Self, StoreError> {
        // Before locking, which would leave a lock file beside whatever somebody names by mistake.
        drop(disk.open_to_read(path).map_err(|e| StoreError::disk("open", path, e))?);
        let lock = lock::lock(disk.as_ref(), path, wait)?;
        // The lock comes before the file is opened for good: a fold gives the name to another file.
        let mut rows = Rows::default();
        let (shape, head, replayed) = file::read(disk.as_ref(), path, vat, protection, &mut rows)?;
        let mut note = Note::new(Arc::clone(&disk), path);
        file::settle(disk.as_ref(), path, (&replayed, &head), &mut note)?;
        let writer = Writer::new(replayed.segment, replayed.at);
        Ok(Self {
            disk,
            path: path.to_owned(),
            shape,
            rows,
            writer,
            head,
            tail_frames: replayed.groups,
            note,
            payload: Vec::new(),
            poison: None,
            key_file: key_file(protection),
            _lock: lock,
        })
    }

    /// Makes a new store, as [`SmallStore::create`] does, of what is in an image. It exists only once the image was
    /// read to its end and found whole.
    ///
    /// # Errors
    /// As [`SmallStore::create`] and [`ImageReader::next_row`]; [`StoreError::Outgrown`].
    pub fn import(
        disk: Arc<dyn Disk>,
        path: &Path,
        protection: &Protection,
        image: &mut ImageReader<'_>,
        mut adoption: Adoption<'_>,
    ) -> Result<Self, StoreError> {
        Self::begin(disk, path, protection, |rows| {
            let mut bytes = 0;
            while let Some((key, value)) = image.next_row()? {
                let Some(value) = adoption.revise(&key, value) else { continue };
                bytes += (key.name.len() + value.len()) as u64;
                // Before the memory of this machine ends.
                if bytes > limits::SMALL_FILE_BYTES {
                    let limit = limits::SMALL_FILE_BYTES;
                    return Err(StoreError::Outgrown { path: path.to_owned(), bytes, limit });
                }
                rows.set(key.space, key.name, Some(value));
            }
            Ok(adoption.start(image.head()))
        })
    }

    /// A new file with what `fill` puts into the rows, of the vat and at the place that it says.
    fn begin(
        disk: Arc<dyn Disk>,
        path: &Path,
        protection: &Protection,
        fill: impl FnOnce(&mut Rows) -> Result<([u8; 32], Head), StoreError>,
    ) -> Result<Self, StoreError> {
        let lock = lock::lock(disk.as_ref(), path, &mut || false)?;
        file::assert_free(disk.as_ref(), path)?;
        let mut rows = Rows::default();
        let (vat, start) = fill(&mut rows)?;
        let (keyslots, root) = Keyslots::create(disk.as_ref(), protection)?;
        let own = keyslots.slots().next().map(|(id, _)| id);
        let shape = Shape { keys: Arc::new(Keys::new(root, keyslots.store, vat)), own, keyslots };
        let mut note = Note::new(Arc::clone(&disk), path);
        let folded = shape.fold(path, &start, rows.iter())?;
        let (writer, head) = folded.put(disk.as_ref(), path)?;
        note.record(&head.chain);
        Ok(Self {
            disk,
            path: path.to_owned(),
            shape,
            rows,
            writer,
            head,
            tail_frames: 0,
            note,
            payload: Vec::new(),
            poison: None,
            key_file: key_file(protection),
            _lock: lock,
        })
    }

    /// How far the store has come. All of it is durable.
    #[must_use]
    pub fn position(&self) -> Position {
        let Head { turn, epoch, sequence, chain, .. } = self.head;
        Position { turn, epoch, sequence, chain_head: chain }
    }

    /// The incarnation that [`SmallStore::begin_epoch`] last made durable; zeros in epoch 0.
    #[must_use]
    pub fn incarnation(&self) -> [u8; 16] {
        self.head.incarnation
    }

    /// The value of a row. It is in memory.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    pub fn get(&self, key: &RowKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.check()?;
        Ok(self.rows.get(key.space, &key.name).map(<[u8]>::to_vec))
    }

    /// All rows of a space, in order of their names.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    pub fn scan(&self, space: u64) -> Result<Vec<ScannedRow>, StoreError> {
        self.check()?;
        let rows = self.rows.space(space).map(|(name, value)| (name.to_vec(), value.to_vec()));
        Ok(rows.collect())
    }

    /// Commits one turn: durable, and seen by reads, when this returns. One write and one `fdatasync`, unless it
    /// folds.
    ///
    /// # Errors
    /// [`StoreError::TurnTooLarge`], [`StoreError::TurnOrder`] and [`StoreError::Outgrown`], with nothing changed;
    /// [`StoreError::Poisoned`]; errors of the disk and of the random source, which poison the store.
    pub fn commit(&mut self, delta: TurnDelta) -> Result<(), StoreError> {
        self.check()?;
        let at = self.head;
        if delta.turn != at.turn + 1 {
            return Err(StoreError::TurnOrder { expected: at.turn + 1, found: delta.turn });
        }
        self.payload.clear();
        payload::append(&mut self.payload, &1_usize);
        payload::append_turn(&mut self.payload, &delta).map_err(|bytes| StoreError::TurnTooLarge {
            turn: delta.turn,
            bytes,
            limit: limits::MAX_TURN_BYTES,
        })?;
        self.write(&Head { turn: delta.turn, ..at }, Kind::Turns, &delta.changes)?;
        for change in delta.changes {
            self.rows.set(change.key.space, change.key.name, change.value);
        }
        Ok(())
    }

    /// Begins a higher epoch, durable when this returns (R7). `incarnation` is random.
    ///
    /// # Errors
    /// [`StoreError::EpochOrder`] and [`StoreError::Outgrown`], with nothing changed; the others as
    /// [`SmallStore::commit`].
    pub fn begin_epoch(&mut self, epoch: u64, incarnation: [u8; 16]) -> Result<(), StoreError> {
        self.check()?;
        let at = self.head;
        if epoch <= at.epoch {
            return Err(StoreError::EpochOrder { current: at.epoch, requested: epoch });
        }
        self.payload.clear();
        payload::append(&mut self.payload, &Epoch { previous: at.epoch, turn: at.turn });
        self.write(&Head { epoch, incarnation, ..at }, Kind::Epoch, &[])
    }

    /// Writes the state as an [image](crate::image) with a root key of its own, sealed for `holders` (at least one),
    /// as [`Store::export`](crate::Store::export) does.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; errors of the holders' keys; what `output` says.
    pub fn export(
        &self,
        disk: &dyn Disk,
        (output, path): (&mut dyn Write, &Path),
        holders: &[Holder],
        (label, created): (&str, Timestamp),
    ) -> Result<(ImageHead, Census), StoreError> {
        self.check()?;
        let head = ImageHead { label: label.to_owned(), created, ..file::head(&self.shape.keys, &self.head) };
        let (keyslots, root) = Keyslots::of_image(disk, path, holders)?;
        let keys = Arc::new(Keys::new(root, keyslots.store, head.vat));
        let mut image = ImageWriter::begin(output, path, &keyslots, keys, &head, 0)?;
        self.rows.iter().try_for_each(|(space, name, value)| image.row(space, name, value))?;
        Ok((head, image.finish()?))
    }

    /// The error that has stopped the store, if one has.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<StoreError>> {
        self.poison.clone()
    }

    fn check(&self) -> Result<(), StoreError> {
        self.poison.as_ref().map_or(Ok(()), |cause| Err(StoreError::Poisoned { cause: Arc::clone(cause) }))
    }

    /// Makes the payload durable, which makes the `changes` and leads to `next`: as a frame, or as part of a new
    /// snapshot.
    fn write(&mut self, next: &Head, kind: Kind, changes: &[Change]) -> Result<(), StoreError> {
        let (filled, length) = self.writer.filled();
        let extent = frame::extent(self.payload.len(), self.shape.keys.is_sealed()) as u64;
        let written = if self.tail_frames < SMALL_TAIL_FRAMES && filled + extent <= length {
            self.append(next, kind)
        } else {
            self.fold(next, changes)
        };
        self.written(written)
    }

    /// What follows on every write.
    fn written(&mut self, written: Result<(), StoreError>) -> Result<(), StoreError> {
        match written {
            Ok(()) => {
                self.note.record(&self.head.chain);
                Ok(())
            }
            Err(error @ StoreError::Outgrown { .. }) => Err(error),
            Err(error) => {
                self.poison = Some(Arc::new(error.clone()));
                Err(error)
            }
        }
    }

    fn append(&mut self, next: &Head, kind: Kind) -> Result<(), StoreError> {
        let Head { turn, epoch, incarnation, .. } = *next;
        let frame = Append { keys: &self.shape.keys, kind, before: &self.head, turn, epoch, incarnation };
        let (path, payload, length) = (&self.path, &self.payload, self.writer.filled().1);
        // Not called: it was just seen to fit.
        let no_other = |_, bytes| Err(StoreError::Outgrown { path: path.clone(), bytes, limit: length });
        let heads = self.writer.append(&[frame], |_, frame| frame.extend_from_slice(payload), no_other)?;
        // Proof: there is one head for each frame.
        self.head = heads[0];
        self.tail_frames += 1;
        Ok(())
    }

    fn fold(&mut self, next: &Head, changes: &[Change]) -> Result<(), StoreError> {
        let mut changed = Overlay::default();
        for change in changes {
            changed.set(change.key.space, change.key.name.clone(), change.value.clone());
        }
        let kept = self.rows.iter().filter(|(space, name, _)| changed.get(*space, name).is_none());
        let new = changed.rows().filter_map(|(space, name, value)| Some((space, name, value.as_deref()?)));
        let folded = self.shape.fold(&self.path, next, kept.chain(new))?;
        (self.writer, self.head) = folded.put(self.disk.as_ref(), &self.path)?;
        self.tail_frames = 0;
        Ok(())
    }
}

fn key_file(protection: &Protection) -> Option<PathBuf> {
    match protection {
        Protection::KeyFile(path) => Some(path.clone()),
        _ => None,
    }
}

impl fmt::Debug for SmallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmallStore")
            .field("path", &self.path)
            .field("position", &self.position())
            .finish_non_exhaustive()
    }
}
