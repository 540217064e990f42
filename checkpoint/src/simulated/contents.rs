//! The bytes of a file, in blocks that copies share until one of them changes: a test that crashes a disk ten
//! thousand times copies what the crash has changed, and not the disk.

use std::sync::{Arc, LazyLock};

const BLOCK_BYTES: usize = 4 << 10;

type Block = [u8; BLOCK_BYTES];

/// What a file is extended with.
static ZEROS: LazyLock<Arc<Block>> = LazyLock::new(|| Arc::new([0; BLOCK_BYTES]));

/// Contents of a file.
#[derive(Clone, Default)]
pub(super) struct Contents {
    length: usize,
    /// As many as hold `length` bytes. What the last one has after them is zero.
    blocks: Vec<Arc<Block>>,
}

impl Contents {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Fills `buffer` from `offset` on, if there is that much.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> Option<()> {
        offset.checked_add(buffer.len()).filter(|end| *end <= self.length)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (block, start) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
            let (piece, after) = rest.split_at_mut(rest.len().min(BLOCK_BYTES - start));
            piece.copy_from_slice(&self.blocks[block][start..start + piece.len()]);
            at += piece.len();
            rest = after;
        }
        Some(())
    }

    /// Writes `bytes` at `offset`; grows as needed.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if self.length < offset + bytes.len() {
            self.set_length(offset + bytes.len());
        }
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (block, start) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
            let (piece, after) = rest.split_at(rest.len().min(BLOCK_BYTES - start));
            Arc::make_mut(&mut self.blocks[block])[start..start + piece.len()].copy_from_slice(piece);
            at += piece.len();
            rest = after;
        }
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_length(&mut self, length: usize) {
        self.blocks.resize_with(length.div_ceil(BLOCK_BYTES), || Arc::clone(&ZEROS));
        let end = length % BLOCK_BYTES;
        if length < self.length
            && end > 0
            && let Some(last) = self.blocks.last_mut()
        {
            Arc::make_mut(last)[end..].fill(0);
        }
        self.length = length;
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.blocks.iter().flat_map(|block| block.iter()).copied().collect();
        bytes.truncate(self.length);
        bytes
    }
}

impl From<&[u8]> for Contents {
    fn from(bytes: &[u8]) -> Self {
        let mut contents = Self::default();
        contents.write(0, bytes);
        contents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_those_of_a_vector_whatever_is_done_to_them() {
        let mut contents = Contents::default();
        let mut expected: Vec<u8> = Vec::new();
        let steps = [(0, 10), (4090, 20), (8192, 4096), (5, 9000), (20_000, 1), (4096, 0), (12_287, 2)];
        for (number, (offset, length)) in (1u8..).zip(steps) {
            let bytes = vec![number; length];
            if expected.len() < offset + length {
                expected.resize(offset + length, 0);
            }
            expected[offset..offset + length].copy_from_slice(&bytes);
            let before = contents.clone();
            let before_expected = before.to_vec();
            contents.write(offset, &bytes);
            assert_eq!((contents.len(), contents.to_vec()), (expected.len(), expected.clone()), "{number}");
            assert_eq!(before.to_vec(), before_expected, "a copy keeps what it had");
            let middle = expected.len() / 2;
            let mut read = vec![0xff; expected.len() - middle];
            assert!(contents.read(middle, &mut read).is_some());
            assert_eq!(read, expected[middle..]);
            assert!(contents.read(middle + 1, &mut read).is_none());
        }
        for length in [20_000, 8_200, 8_192, 5_000, 4_097, 30_000, 0, 5] {
            contents.set_length(length);
            expected.resize(length, 0);
            assert_eq!(contents.to_vec(), expected, "{length}");
        }
    }
}
