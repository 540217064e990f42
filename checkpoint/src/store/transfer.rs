//! A whole vat out of a store and into a store: export, import, and reading everything to see that it is whole.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use schemas::Timestamp;

use super::{RowKey, Store, StoreOptions, lifecycle};
use crate::{
    base::{Snapshot, VatBase, Visit},
    disk::{Disk, DiskFile},
    error::StoreError,
    image::{Census, ImageHead, ImageReader, ImageWriter, Unfinished},
    journal::Head,
    keys::Keys,
    keyslots::Keyslots,
    limits::{IMPORT_BATCH_BYTES, ROW_MEMORY_BYTES},
    overlay::Overlay,
    protection::{Holder, Protection},
};

/// Says what becomes of a row; `None` leaves it out.
pub type ReviseRow<'a> = dyn FnMut(&RowKey, Vec<u8>) -> Option<Vec<u8>> + 'a;

/// What becomes of a vat that is read from an image.
pub enum Adoption<'a> {
    /// It goes on: the same vat, at the turn and in the epoch of the image.
    Continue,
    /// It begins anew, at turn 0 and in epoch 0, as another vat.
    Anew {
        /// The new vat.
        vat: [u8; 32],
        /// Gives each row its new value.
        row: &'a mut ReviseRow<'a>,
    },
}

impl Adoption<'_> {
    /// Which vat it is from now on, and how far that has come.
    pub(crate) fn start(&self, head: &ImageHead) -> ([u8; 32], Head) {
        match self {
            Self::Continue => {
                let (turn, epoch, incarnation) = (head.turn, head.epoch, head.incarnation);
                (head.vat, Head { turn, epoch, incarnation, ..Head::default() })
            }
            Self::Anew { vat, .. } => (*vat, Head::default()),
        }
    }

    /// The new value of a row.
    pub(crate) fn revise(&mut self, key: &RowKey, value: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::Continue => Some(value),
            Self::Anew { row, .. } => row(key, value),
        }
    }
}

/// The state after one turn, while the store goes on.
struct View {
    base: Arc<Snapshot>,
    vat: Option<Arc<VatBase>>,
    /// What has changed after the base, newest first.
    layers: [Option<Arc<Overlay>>; 2],
    at: Head,
}

impl<'a> ImageReader<'a> {
    /// Reads the beginning of an image: for whom it is sealed, and what it is a copy of. `path` is what errors
    /// call `input`.
    ///
    /// # Errors
    /// [`StoreError::NotAnImage`]; errors of the key (`key.*`); [`StoreError::Damaged`]; [`StoreError::Version`];
    /// what `input` says.
    pub fn open(
        disk: &dyn Disk,
        (input, path): (Box<dyn Read + 'a>, &Path),
        protection: &Protection,
    ) -> Result<Self, StoreError> {
        Self::begin(input, path, |keyslots| Ok(keyslots.unlock(disk, path, protection)?.root))
    }

    /// The same for a file.
    ///
    /// # Errors
    /// As [`ImageReader::open`]; [`StoreError::Missing`].
    pub fn open_file(disk: &dyn Disk, path: &Path, protection: &Protection) -> Result<Self, StoreError> {
        let file = disk.open_to_read(path).map_err(|e| StoreError::disk("open", path, e))?;
        Self::open(disk, (Box::new(Sequential { file, offset: 0 }), path), protection)
    }
}

/// A file, from its beginning on.
struct Sequential {
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl Write for Sequential {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.file.len()?.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        self.file.read_at(self.offset, &mut buffer[..length])?;
        self.offset += length as u64;
        Ok(length)
    }
}

impl Store {
    /// Writes the state after the newest submitted turn as an [image](crate::image), sealed for `holders`
    /// (at least one), and tells `progress` how far it is. The store can be used meanwhile; turns after the first moment are not in the image.
    ///
    /// `path` is what errors call `output`. To make the bytes durable is the caller's business. Blocks on the disk,
    /// first until that turn is durable: an image shows nothing that could still be undone.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; damage in the base, which does not stop the store: what is whole can still be used;
    /// what `output` says.
    pub fn export(
        &self,
        disk: &dyn Disk,
        (output, path): (&mut dyn Write, &Path),
        holders: &[Holder],
        (label, created): (&str, Timestamp),
        progress: &mut dyn FnMut(Census),
    ) -> Result<(ImageHead, Census), StoreError> {
        let view = self.view()?;
        self.wait_durable(view.at.turn)?;
        let head = ImageHead {
            vat: self.keys.vat(),
            turn: view.at.turn,
            epoch: view.at.epoch,
            incarnation: view.at.incarnation,
            created,
            label: label.to_owned(),
        };
        let (keyslots, root) = Keyslots::of_image(disk, path, holders)?;
        let keys = Arc::new(Keys::new(root, keyslots.store, head.vat));
        let mut image = ImageWriter::begin(output, path, &keyslots, keys, &head, 0)?;
        let mut failed = None;
        self.walk(&view, &mut |space, name, value| {
            let written = image.row(space, name, value);
            progress(image.census());
            // The disk of the image is not the disk of the store, which goes on.
            written.map_err(|error| failed.insert(error).clone())
        })
        .map_err(|error| failed.take().unwrap_or(error))?;
        Ok((head, image.finish()?))
    }

    /// The same, into a new file for its owner only (mode 0600), durably: the file has its name only once it is
    /// whole. A file that has the name already is left alone. What an export of this vat into the same folder left that
    /// was killed is removed first.
    ///
    /// # Errors
    /// As [`Store::export`]; [`StoreError::ImageExists`].
    pub fn export_to_file(
        &self,
        disk: &dyn Disk,
        path: &Path,
        holders: &[Holder],
        label: (&str, Timestamp),
        progress: &mut dyn FnMut(Census),
    ) -> Result<(ImageHead, Census), StoreError> {
        let unfinished = Unfinished::begin(disk, path, &self.keys.vat())?;
        let mut output = Sequential { file: Arc::clone(unfinished.file()), offset: 0 };
        let written = self.export(disk, (&mut output, unfinished.path()), holders, label, progress)?;
        unfinished.finish(path)?;
        Ok(written)
    }

    /// Reads every row as of a turn, and says which turn, and how much there is. When this succeeds, no row is
    /// missing and each is what was written. Blocks on the disk.
    ///
    /// The turn is the newest submitted one, or a later one. What the base does not have of it is folded first, so
    /// that nothing is taken from memory.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; damage in the base, which does not stop the store unless the fold meets it.
    pub fn verify(&self, progress: &mut dyn FnMut(Census)) -> Result<(u64, Census), StoreError> {
        let wanted = self.view()?;
        if wanted.vat.is_none_or(|vat| vat.position.turn < wanted.at.turn) {
            self.fold()?;
        }
        // As it is now. What has changed since is in the layers above it, which are left out.
        let View { base, vat, .. } = self.view()?;
        let mut census = Census::default();
        // Proof: the fold has put it there.
        let Some(vat) = vat else { return Ok((0, census)) };
        base.walk(&self.keys, &vat, &mut |_, name, value| {
            census.add(name, value);
            progress(census);
            Ok(())
        })?;
        Ok((vat.position.turn, census))
    }

    /// Makes a new store, as [`Store::create`] does, of what is in an image. It exists, also after a crash, only
    /// once the image was read to its end and found whole. Blocks on the disk and on the image.
    ///
    /// # Errors
    /// As [`Store::create`] and [`ImageReader::next_row`].
    pub fn import(
        disk: Arc<dyn Disk>,
        directory: &Path,
        protection: &Protection,
        image: &mut ImageReader<'_>,
        mut adoption: Adoption<'_>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let (vat, start) = adoption.start(image.head());
        let creation = lifecycle::Creation::begin(disk, directory, Some((vat, start)), protection, &options)?;
        let (mut batch, mut bytes) = (Overlay::default(), 0);
        while let Some((key, value)) = image.next_row()? {
            let Some(value) = adoption.revise(&key, value) else { continue };
            bytes += ROW_MEMORY_BYTES + (key.name.len() + value.len()) as u64;
            batch.set(key.space, key.name, Some(value));
            if bytes >= IMPORT_BATCH_BYTES {
                creation.add(&batch)?;
                (batch, bytes) = (Overlay::default(), 0);
            }
        }
        creation.add(&batch)?;
        Self::finish(creation, directory, options)
    }

    fn view(&self) -> Result<View, StoreError> {
        let state = self.shared.lock();
        state.check()?;
        let vat = state.vat(&self.tag);
        let upper = Some(Arc::new(vat.upper.clone()));
        let at = Head { turn: vat.submitted, ..vat.durable };
        Ok(View { base: Arc::clone(&state.base), vat: vat.base.clone(), layers: [upper, vat.frozen.clone()], at })
    }

    /// Gives every row of a view to `visit`, each once.
    fn walk(&self, view: &View, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let layers: Vec<&Overlay> = view.layers.iter().flatten().map(Arc::as_ref).collect();
        let changed = |space, name: &[u8]| layers.iter().any(|layer| layer.get(space, name).is_some());
        if let Some(vat) = &view.vat {
            view.base.walk(&self.keys, vat, &mut |space, name, value| {
                if changed(space, name) { Ok(()) } else { visit(space, name, value) }
            })?;
        }
        let mut newest = BTreeMap::new();
        for layer in layers.iter().rev() {
            newest.extend(layer.rows().map(|(space, name, value)| ((space, name), value)));
        }
        newest.into_iter().try_for_each(|((space, name), value)| match value {
            Some(value) => visit(space, name, value),
            None => Ok(()),
        })
    }
}
