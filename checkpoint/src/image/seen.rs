//! Which rows of an image have come already.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher,
};

use crate::store::RowKey;

/// The rows that have come, each as 128 bits of two hashes under keys that nobody outside knows: two rows have the same
/// ones by chance once in more images than there will ever be, and nobody can make such rows.
#[derive(Default)]
pub(super) struct Seen {
    first: RandomState,
    second: RandomState,
    rows: HashSet<(u64, u64)>,
}

impl Seen {
    /// Notes a row, and says whether it is new.
    pub(super) fn insert(&mut self, key: &RowKey) -> bool {
        self.rows.insert((self.first.hash_one(key), self.second.hash_one(key)))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use schemas::Timestamp;

    use crate::{
        error::{Damage, StoreError},
        image::{Census, ImageHead, ImageReader, ImageWriter},
        keys::Keys,
        keyslots::Keyslots,
        limits::IMAGE_FRAME_BYTES,
        protection::{Holder, Protection},
        secrets::StoreKey,
        simulated::SimulatedDisk,
    };

    /// Writes an image of these rows, whatever they are, and reads it.
    fn written_and_read(rows: &[(u64, &[u8], &[u8])]) -> Result<Census, StoreError> {
        let (disk, path, key) = (SimulatedDisk::new(), Path::new("an.image"), StoreKey::new(&[3; 32]));
        let (keyslots, root) = Keyslots::of_image(disk.as_ref(), path, &[Holder::Key(key.clone())])?;
        let head = ImageHead {
            vat: [7; 32],
            turn: 1,
            epoch: 1,
            incarnation: [1; 16],
            created: Timestamp::from_seconds(1),
            label: "a vat".to_owned(),
        };
        let keys = Arc::new(Keys::new(root, keyslots.store, head.vat));
        let mut bytes = Vec::new();
        let mut image = ImageWriter::begin(&mut bytes, path, &keyslots, keys, &head, 0)?;
        rows.iter().try_for_each(|(space, name, value)| image.row(*space, name, value))?;
        image.finish()?;
        let mut reader = ImageReader::open(disk.as_ref(), (Box::new(&bytes[..]), path), &Protection::Key(key))?;
        while reader.next_row()?.is_some() {}
        Ok(reader.progress().1)
    }

    #[test]
    fn an_image_with_a_row_that_comes_twice_is_refused() {
        let large = vec![1; IMAGE_FRAME_BYTES];
        let good: [(u64, &[u8], &[u8]); 4] = [(1, b"a", b"1"), (2, b"a", b"1"), (1, b"", b"1"), (1, b"aa", &large)];
        assert_eq!(written_and_read(&good).unwrap().rows, 4);
        // With the same value or another one, in the same frame or frames later.
        for value in [b"1".as_slice(), b"2"] {
            for at in 1..=good.len() {
                let mut rows = good.to_vec();
                rows.insert(at, (1, b"a", value));
                let refused = written_and_read(&rows).unwrap_err();
                assert!(matches!(refused, StoreError::Damaged { damage: Damage::Repeated, .. }), "{refused}");
            }
        }
    }
}
