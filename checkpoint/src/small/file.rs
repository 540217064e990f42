//! The one file of a small store: how it is read, settled after a crash, and replaced (see
//! [the module above](super)).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::Timestamp;

use super::{
    note::Note,
    rows::{Row, Rows},
};
use crate::{
    disk::Disk,
    error::{Damage, StoreError},
    image::{End, ImageHead, ImageReader, ImageWriter, Verified},
    journal::{Head, Place, Replayed, Segment, Writer, replay_file},
    key_file,
    keys::Keys,
    keyslots::{Keyslots, SlotId, Unlocked},
    limits::{SECTOR_BYTES, SMALL_FILE_BYTES, SMALL_MAX_RESERVE_BYTES, SMALL_MIN_RESERVE_BYTES},
    protection::Protection,
    store::lifecycle::sync_directory,
    store_keys::{remove_left_over, with_suffix},
};

/// What all files of a store have in common, one after the other.
pub(super) struct Shape {
    pub(super) keyslots: Keyslots,
    /// The slot that was opened; `None` for a plain store.
    pub(super) own: Option<SlotId>,
    pub(super) keys: Arc<Keys>,
}

/// A file that is to take the place of the one before.
pub(super) struct Folded {
    bytes: Vec<u8>,
    at: Place,
    head: Head,
}

/// What the snapshot says that it is a copy of.
pub(super) fn head(keys: &Keys, at: &Head) -> ImageHead {
    ImageHead {
        vat: keys.vat(),
        turn: at.turn,
        epoch: at.epoch,
        incarnation: at.incarnation,
        // An image for others says when and of what it was made. This is no copy.
        created: Timestamp::from_micros(0),
        label: String::new(),
    }
}

impl Shape {
    /// A file with these rows. Turn, epoch and incarnation are those of `next`; its frames go on counting after it.
    pub(super) fn fold<'a>(
        &self,
        path: &Path,
        next: &Head,
        mut rows: impl Iterator<Item = Row<'a>>,
    ) -> Result<Folded, StoreError> {
        let mut bytes = Vec::new();
        let keys = Arc::clone(&self.keys);
        let mut image =
            ImageWriter::begin(&mut bytes, path, &self.keyslots, keys, &head(&self.keys, next), next.sequence)?;
        rows.try_for_each(|(space, name, value)| image.row(space, name, value))?;
        let End { sequence, chain, .. } = image.finish_to_go_on()?;
        let snapshot = bytes.len() as u64;
        let length = snapshot + snapshot.clamp(SMALL_MIN_RESERVE_BYTES, SMALL_MAX_RESERVE_BYTES);
        if length > SMALL_FILE_BYTES {
            return Err(StoreError::Outgrown { path: path.to_owned(), bytes: length, limit: SMALL_FILE_BYTES });
        }
        // Proof of the cast: it is at most 64 MiB.
        #[allow(clippy::cast_possible_truncation)]
        bytes.resize(length as usize, 0);
        let at = Place { segment: 0, offset: snapshot, group: sequence, chain };
        Ok(Folded { bytes, at, head: Head { sequence, chain, ..*next } })
    }
}

impl Folded {
    /// Gives the file its name, durably: at every moment there is the old one or the new one under it, whole.
    pub(super) fn put(self, disk: &dyn Disk, path: &Path) -> Result<(Writer, Head), StoreError> {
        let unfinished = with_suffix(path, ".new");
        // An interrupted one may have left it.
        remove_left_over(disk, &unfinished)?;
        let file = disk.create(&unfinished).map_err(|e| StoreError::disk("create", &unfinished, e))?;
        let segment = Segment { number: 0, length: self.bytes.len() as u64, path: unfinished, file };
        segment.write(0, &self.bytes)?;
        segment.sync()?;
        disk.rename(&segment.path, path).map_err(|e| StoreError::disk("rename", &segment.path, e))?;
        sync_directory(disk, key_file::parent(path))?;
        Ok((Writer::new(Segment { path: path.to_owned(), ..segment }, self.at), self.head))
    }
}

/// Refuses a path at which there is something.
pub(super) fn assert_free(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    match disk.open_to_read(path) {
        Ok(_) => Err(StoreError::Occupied {
            directory: PathBuf::from(key_file::parent(path)),
            found: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::disk("open", path, error)),
    }
}

/// Reads and verifies the file from its first byte to its last, and puts its rows into `rows`. Changes nothing.
pub(super) fn read(
    disk: &dyn Disk,
    path: &Path,
    vat: &[u8; 32],
    protection: &Protection,
    rows: &mut Rows,
) -> Result<(Shape, Head, Replayed), StoreError> {
    let file = disk.open(path).map_err(|e| StoreError::disk("open", path, e))?;
    let length = file.len().map_err(|e| StoreError::disk("read", path, e))?;
    if length > SMALL_FILE_BYTES {
        return Err(StoreError::Outgrown { path: path.to_owned(), bytes: length, limit: SMALL_FILE_BYTES });
    }
    let segment = Segment { number: 0, length, path: path.to_owned(), file };
    let mut bytes = segment.read_from(0)?;

    let mut opened = None;
    let mut image = ImageReader::begin_of_small(Box::new(&bytes[..]), path, |found| {
        let Unlocked { root, slot } = found.unlock(disk, path, protection)?;
        opened = Some((found.clone(), slot));
        Ok(root)
    })?;
    if image.head().vat != *vat {
        return Err(StoreError::WrongVat { path: path.to_owned() });
    }
    if !length.is_multiple_of(SECTOR_BYTES as u64) {
        return Err(StoreError::damaged(path, Damage::Length { found: length }));
    }
    while let Some((key, value)) = image.next_row()? {
        if !rows.insert(key.space, key.name, value) {
            return Err(StoreError::damaged(path, Damage::Repeated));
        }
    }
    // Proof: there is no keyslot left out, and the last row comes with the end.
    let (Some((keyslots, own)), Some(Verified { keys, head, offset, sequence, chain })) = (opened, image.verified())
    else {
        return Err(StoreError::damaged(path, Damage::CutOff));
    };

    let ImageHead { turn, epoch, incarnation, .. } = head;
    let from = Place { segment: 0, offset, group: sequence, chain };
    let head = Head { sequence, chain, turn, epoch, incarnation };
    let keys = Arc::new(keys);
    // Proof of the cast: it is at most the length of the file.
    #[allow(clippy::cast_possible_truncation)]
    let tail = &mut bytes[offset as usize..];
    let replayed = replay_file(segment, tail, (&keys, head), &from, &mut |_, turn| {
        for change in &turn.changes {
            rows.set(change.space, change.name.0.to_vec(), change.value.map(|value| value.0.to_vec()));
        }
    })?;
    let head = replayed.head(&keys, head);
    Ok((Shape { keyslots, own, keys }, head, replayed))
}

/// Makes durable what was found, unless it is known to be.
pub(super) fn settle(
    disk: &dyn Disk,
    path: &Path,
    (replayed, head): (&Replayed, &Head),
    note: &mut Note,
) -> Result<(), StoreError> {
    if note.names(&head.chain)? && !replayed.is_torn() {
        return Ok(());
    }
    note.clear()?;
    // All of the reserve: zeros that were written before may be in the page cache only, like the last frame.
    replayed.segment.write_zeros(replayed.at.offset, replayed.segment.length)?;
    replayed.settle_segment()?;
    if replayed.groups == 0 {
        sync_directory(disk, key_file::parent(path))?;
    }
    note.record(&head.chain);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulated::SimulatedDisk, small::SmallStore};

    #[test]
    fn a_file_in_which_a_row_comes_twice_is_refused() {
        let (disk, path, vat) = (SimulatedDisk::new(), Path::new("/vat"), [7; 32]);
        let (keyslots, root) = Keyslots::create(disk.as_ref(), &Protection::Plain).unwrap();
        let shape = Shape { keys: Arc::new(Keys::new(root, keyslots.store, vat)), own: None, keyslots };
        let once: [Row<'_>; 2] = [(1, b"a", b"1"), (2, b"a", b"1")];
        let twice: [Row<'_>; 3] = [(1, b"a", b"1"), (2, b"a", b"1"), (1, b"a", b"2")];
        for (rows, good) in [(once.as_slice(), true), (&twice, false)] {
            shape.fold(path, &Head::default(), rows.iter().copied()).unwrap().put(disk.as_ref(), path).unwrap();
            let opened = SmallStore::open(disk.clone(), path, &vat, &Protection::Plain, &mut || false).map(drop);
            let repeated = matches!(opened, Err(StoreError::Damaged { damage: Damage::Repeated, .. }));
            assert_eq!((opened.is_ok(), repeated), (good, !good));
        }
    }
}
