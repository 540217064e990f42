//! The words of a message that is being written.
//!
//! capnp's own builders trust the offsets that they are given, since those come from generated code; ours come
//! from strangers. So the words are laid out here, with every access checked, and handed to capnp's *reader*,
//! which checks them again. Source: the Cap'n Proto encoding specification.

use super::limits::MAX_ARGUMENT_WORDS;
use capnp::{Word, any_pointer, message};

/// A message in one segment. Word 0 is the root pointer; every object lies behind the pointer to it.
#[derive(Debug)]
pub(super) struct Words(Vec<u64>);

/// The sections of one struct.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    data: usize,
    data_words: u16,
    pointers: u16,
}

/// The elements of a list of structs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    first: Place,
    words: usize,
}

impl Places {
    pub(super) fn element(self, index: usize) -> Place {
        Place { data: self.first.data + index * self.words, ..self.first }
    }
}

/// It would be larger than [`MAX_ARGUMENT_WORDS`].
#[derive(Debug)]
pub(super) struct Full;

const STRUCT: u64 = 0;
const LIST: u64 = 1;
const BYTES: u64 = 2;
const POINTERS: u64 = 6;
const COMPOSITE: u64 = 7;

impl Words {
    pub(super) const ROOT: usize = 0;

    pub(super) fn new() -> Self {
        Self(vec![0])
    }

    /// A zeroed struct, pointed to from the pointer at `slot`.
    pub(super) fn structure(&mut self, slot: usize, data_words: u16, pointers: u16) -> Result<Place, Full> {
        let size = usize::from(data_words) + usize::from(pointers);
        let data = self.allocate(size)?;
        // A struct of no size must not look like a null pointer: it points at the pointer itself.
        let offset = if size == 0 { -1 } else { self.offset(slot, data) };
        self.0[slot] = low_word(offset, STRUCT) | struct_size(data_words, pointers);
        Ok(Place { data, data_words, pointers })
    }

    /// A zeroed list of structs.
    pub(super) fn structures(
        &mut self,
        slot: usize,
        data_words: u16,
        pointers: u16,
        count: usize,
    ) -> Result<Places, Full> {
        let size = usize::from(data_words) + usize::from(pointers);
        let total = size.checked_mul(count).ok_or(Full)?;
        let tag = self.allocate(total.checked_add(1).ok_or(Full)?)?;
        self.0[tag] = low_word(field(count)?, STRUCT) | struct_size(data_words, pointers);
        self.0[slot] = low_word(self.offset(slot, tag), LIST) | list_size(COMPOSITE, field(total)?);
        Ok(Places { first: Place { data: tag + 1, data_words, pointers }, words: size })
    }

    /// A zeroed list of scalars of `width` bits: 0, 1, 8, 16, 32 or 64.
    pub(super) fn scalars(&mut self, slot: usize, width: u32, count: usize) -> Result<Place, Full> {
        let size_code = match width {
            0 => 0,
            1 => 1,
            8 => BYTES,
            16 => 3,
            32 => 4,
            _ => 5,
        };
        let bits = count.checked_mul(usize::try_from(width).map_err(|_| Full)?).ok_or(Full)?;
        self.list(slot, size_code, count, bits.div_ceil(64))
    }

    /// A list of null pointers; the index of the first.
    pub(super) fn pointers(&mut self, slot: usize, count: usize) -> Result<usize, Full> {
        self.list(slot, POINTERS, count, count).map(|place| place.data)
    }

    /// Data, or text if `terminator` adds the zero byte that ends it.
    pub(super) fn bytes(&mut self, slot: usize, bytes: &[u8], terminator: &[u8]) -> Result<(), Full> {
        let length = bytes.len() + terminator.len();
        let place = self.list(slot, BYTES, length, length.div_ceil(8))?;
        for (word, chunk) in self.0[place.data..].iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(whole);
        }
        Ok(())
    }

    /// Sets the scalar number `index`, in units of `width` bits, of a struct's data section. `None` if there is
    /// no such place in it.
    #[must_use]
    pub(super) fn set(&mut self, place: Place, width: u32, index: u32, bits: u64) -> Option<()> {
        let at = u64::from(index) * u64::from(width);
        let word = usize::try_from(at / 64).ok().filter(|word| *word < usize::from(place.data_words))?;
        self.set_bits(place.data + word, at % 64, width, bits)
    }

    /// Sets element `index` of a list made by [`Words::scalars`].
    #[must_use]
    pub(super) fn set_element(&mut self, list: Place, width: u32, index: usize, bits: u64) -> Option<()> {
        let at = u64::try_from(index).ok()?.checked_mul(u64::from(width))?;
        self.set_bits(list.data + usize::try_from(at / 64).ok()?, at % 64, width, bits)
    }

    /// Widths are powers of two, so no scalar lies in two words.
    fn set_bits(&mut self, word: usize, shift: u64, width: u32, bits: u64) -> Option<()> {
        let mask = u64::MAX >> (64 - width);
        let word = self.0.get_mut(word)?;
        *word = *word & !(mask << shift) | (bits & mask) << shift;
        Some(())
    }

    /// The word of a struct's pointer number `index`. `None` if it has no such pointer.
    pub(super) fn pointer(place: Place, index: u32) -> Option<usize> {
        let index = u16::try_from(index).ok().filter(|index| *index < place.pointers)?;
        Some(place.data + usize::from(place.data_words) + usize::from(index))
    }

    /// Copies the message to where it belongs.
    pub(super) fn write_to(self, mut out: any_pointer::Builder<'_>) -> capnp::Result<()> {
        let words: Vec<Word> = self
            .0
            .into_iter()
            .map(|word| {
                let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
                capnp::word(a, b, c, d, e, f, g, h)
            })
            .collect();
        let segments = [Word::words_to_bytes(&words)];
        let options = message::ReaderOptions { traversal_limit_in_words: None, nesting_limit: 64 };
        let message = message::Reader::new(message::SegmentArray::new(&segments), options);
        out.set_as::<any_pointer::Owned>(message.get_root::<any_pointer::Reader<'_>>()?)
    }

    fn list(&mut self, slot: usize, size_code: u64, count: usize, words: usize) -> Result<Place, Full> {
        let data = self.allocate(words)?;
        self.0[slot] = low_word(self.offset(slot, data), LIST) | list_size(size_code, field(count)?);
        Ok(Place { data, data_words: 0, pointers: 0 })
    }

    fn allocate(&mut self, words: usize) -> Result<usize, Full> {
        let start = self.0.len();
        let end = start.checked_add(words).filter(|end| *end <= MAX_ARGUMENT_WORDS).ok_or(Full)?;
        self.0.resize(end, 0);
        Ok(start)
    }

    /// From the word behind the pointer to the object. Objects lie behind their pointers, and the whole is
    /// far smaller than 2^29 words.
    fn offset(&self, slot: usize, target: usize) -> i32 {
        debug_assert!(slot < target && target <= self.0.len(), "objects lie behind their pointers");
        i32::try_from(target - slot - 1).unwrap_or(i32::MAX)
    }
}

/// A count that fits the 29 or 30 bits that pointers have for it.
fn field(count: usize) -> Result<i32, Full> {
    i32::try_from(count).ok().filter(|count| *count < 1 << 29).ok_or(Full)
}

fn low_word(offset: i32, kind: u64) -> u64 {
    u64::from(offset.cast_unsigned() << 2) | kind
}

fn struct_size(data_words: u16, pointers: u16) -> u64 {
    u64::from(data_words) << 32 | u64::from(pointers) << 48
}

fn list_size(size_code: u64, count: i32) -> u64 {
    size_code << 32 | u64::from(count.cast_unsigned()) << 35
}
