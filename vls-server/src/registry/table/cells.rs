//! The packets, with what is kept beside each, one after the other in memory.
//!
//! A record is a *cell*: ten bytes, sometimes a few more, and the packet. Cells of one length stand in slabs of 128, all
//! full but the last; what is taken out of the middle is replaced by the last one. So nothing is ever swept or
//! compacted, memory that is not needed any more is given back at once, and a change copies one cell at most.
//!
//! ```text
//! cell = position 29 bits ‖ flags 3 bits ‖ end of the lease 6 bytes
//!        [‖ length of the lease 6 bytes] [‖ id 32 bytes] ‖ packet [‖ one byte, to make the length even]
//! ```
//!
//! Most records need neither of the optional parts. Their lease is as long as the policy says; and their packet has the
//! id in it already: it is the name of the first DNS record, in z-base-32.

use schemas::IdText;

use super::{Id, index::NUMBERS};
use crate::limits::MOST_RECORDS;

/// Cells in a slab.
const SLAB_CELLS: u32 = 128;

/// The number of a cell has 26 bits: as many records as there can be, and a slab of each length that is not full.
const _: () = assert!(MOST_RECORDS + SLAB_CELLS as usize * MAX_CELL < NUMBERS as usize);

const HEADER: usize = 10;
const LEASE: usize = 6;
const ID: usize = 32;

/// The longest cell.
const MAX_CELL: usize = HEADER + LEASE + ID + schemas::limits::PACKET_HEADER + schemas::limits::MAX_ACCEPTED_VALUE;

/// Bytes that come from memory together, on nearly all processors.
const CACHE_LINE: usize = 64;

/// Flags, above the position.
const OWN_LEASE: u32 = 1 << 29;
const OWN_ID: u32 = 1 << 30;
const PADDED: u32 = 1 << 31;

/// One more than the highest position.
pub(super) const POSITIONS: u32 = 1 << 29;

/// Where the id stands in a packet whose first DNS record is `_vat.<id>`: behind signature, timestamp, the header of
/// the message, the label `_vat` and the length of the label.
const ID_IN_PACKET: usize = schemas::limits::PACKET_HEADER + 12 + 5 + 1;

/// Names a cell, until it or another one is taken out.
pub(super) type Number = u32;

/// What a cell is made of. Times are in [ticks](super::super::time::Moment::ticks).
#[derive(Debug, Clone, Copy)]
pub(super) struct Contents<'a> {
    pub(super) id: &'a Id,
    pub(super) packet: &'a [u8],
    /// When the lease ends; below 2⁴⁸.
    pub(super) end: u64,
    /// How long it was.
    pub(super) lease: u64,
}

/// All cells.
#[derive(Debug)]
pub(super) struct Cells {
    /// By half the length of their cells.
    classes: Vec<Class>,
    slabs: Vec<Slab>,
    /// Numbers of slabs that have no memory.
    unused: Vec<u32>,
    /// The lease that needs not be written down.
    usual_lease: u64,
}

#[derive(Debug, Default)]
struct Class {
    slabs: Vec<u32>,
    /// How many cells there are.
    len: u32,
}

#[derive(Default)]
struct Slab {
    bytes: Box<[u8]>,
    cell: u16,
}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slab").field("cell", &self.cell).finish_non_exhaustive()
    }
}

impl Cells {
    /// No cells.
    pub(super) fn new(usual_lease: u64) -> Self {
        let classes = (0..=MAX_CELL.div_ceil(2)).map(|_| Class::default()).collect();
        Self { classes, slabs: Vec::new(), unused: Vec::new(), usual_lease }
    }

    /// Adds a cell.
    pub(super) fn add(&mut self, contents: &Contents<'_>) -> Number {
        let form = Form::of(contents, self.usual_lease);
        let class = form.cell() / 2;
        let (slab, index) = self.place(class);
        let number = slab * SLAB_CELLS + index;
        let cell = self.cell_mut(number);
        let (position, rest) = cell.split_at_mut(4);
        position.copy_from_slice(&form.flags.to_le_bytes());
        let (end, mut rest) = rest.split_at_mut(6);
        end.copy_from_slice(&contents.end.to_le_bytes()[..6]);
        if form.flags & OWN_LEASE != 0 {
            let (lease, others) = rest.split_at_mut(LEASE);
            lease.copy_from_slice(&contents.lease.to_le_bytes()[..LEASE]);
            rest = others;
        }
        if form.flags & OWN_ID != 0 {
            let (id, others) = rest.split_at_mut(ID);
            id.copy_from_slice(contents.id);
            rest = others;
        }
        let (packet, padding) = rest.split_at_mut(contents.packet.len());
        packet.copy_from_slice(contents.packet);
        padding.fill(0);
        number
    }

    /// Takes a cell out. If another one has taken its number, gives the number that that one had.
    pub(super) fn remove(&mut self, number: Number) -> Option<Number> {
        let class = usize::from(self.slabs[(number / SLAB_CELLS) as usize].cell) / 2;
        let Class { slabs, len } = &mut self.classes[class];
        *len -= 1;
        // Proof: the cell that is taken out was in one of the slabs.
        #[allow(clippy::unwrap_used)]
        let last = *slabs.last().unwrap() * SLAB_CELLS + *len % SLAB_CELLS;
        let emptied = (*len % SLAB_CELLS == 0).then(|| slabs.pop()).flatten();
        if last != number {
            self.copy(last, number);
        }
        if let Some(slab) = emptied {
            self.slabs[slab as usize] = Slab::default();
            self.unused.push(slab);
            // What had its time of many lengths gives that back as well.
            if self.classes[class].slabs.is_empty() {
                self.classes[class].slabs = Vec::new();
            }
        }
        (last != number).then_some(last)
    }

    /// Writes a new end and length of the lease, if they fit into the cell as it is.
    #[must_use]
    pub(super) fn renew(&mut self, number: Number, end: u64, lease: u64) -> bool {
        let usual = self.usual_lease == lease;
        let cell = self.cell_mut(number);
        match (word(cell) & OWN_LEASE != 0, usual) {
            (false, false) => return false,
            (false, true) => {}
            (true, _) => cell[HEADER..HEADER + LEASE].copy_from_slice(&lease.to_le_bytes()[..LEASE]),
        }
        cell[4..HEADER].copy_from_slice(&end.to_le_bytes()[..6]);
        true
    }

    /// When the lease ends.
    pub(super) fn end(&self, number: Number) -> u64 {
        six(&self.cell(number)[4..HEADER])
    }

    /// How long the lease was when it was granted.
    pub(super) fn lease(&self, number: Number) -> u64 {
        let cell = self.cell(number);
        if word(cell) & OWN_LEASE == 0 { self.usual_lease } else { six(&cell[HEADER..HEADER + LEASE]) }
    }

    /// The packet.
    pub(super) fn packet(&self, number: Number) -> &[u8] {
        let cell = self.cell(number);
        &cell[packet_from(cell)..cell.len() - usize::from(word(cell) & PADDED != 0)]
    }

    /// Whether the cell is of this id.
    pub(super) fn is_of(&self, number: Number, id: &Id, text: &IdText) -> bool {
        let cell = self.cell(number);
        match own_id(cell) {
            Some(own) => own == id,
            None => text_in(&cell[packet_from(cell)..]) == Some(text.as_bytes()),
        }
    }

    /// The id that it is of.
    pub(super) fn id(&self, number: Number) -> Id {
        let cell = self.cell(number);
        let read = || text_in(&cell[packet_from(cell)..]).and_then(|text| IdText::read(text).ok());
        // Proof: a cell without an id of its own has it in its packet, where it was compared with the id.
        own_id(cell).and_then(|own| own.try_into().ok()).or_else(read).unwrap_or_default()
    }

    /// Reads a byte of each part of the cell that memory gives at once, and nothing else.
    pub(super) fn touch(&self, number: Number) -> u8 {
        self.cell(number).iter().step_by(CACHE_LINE).fold(0, |all, byte| all ^ byte)
    }

    /// Where it stands in the [order](super::order::Order).
    pub(super) fn position(&self, number: Number) -> u32 {
        word(self.cell(number)) & (POSITIONS - 1)
    }

    /// Notes where it stands in the order.
    pub(super) fn set_position(&mut self, number: Number, position: u32) {
        debug_assert!(position < POSITIONS, "positions have 29 bits");
        let cell = self.cell_mut(number);
        let flags = word(cell) & !(POSITIONS - 1);
        cell[..4].copy_from_slice(&(flags | position).to_le_bytes());
    }

    /// The numbers of all cells.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> impl Iterator<Item = Number> {
        self.classes.iter().flat_map(|class| {
            (0..class.len).map(|index| class.slabs[(index / SLAB_CELLS) as usize] * SLAB_CELLS + index % SLAB_CELLS)
        })
    }

    /// The place behind the last cell of a class: a slab and an index in it.
    fn place(&mut self, class: usize) -> (u32, u32) {
        let index = self.classes[class].len % SLAB_CELLS;
        if index == 0 {
            let slab = self.unused.pop().unwrap_or_else(|| {
                self.slabs.push(Slab::default());
                // Proof: there are less than 2²⁰.
                u32::try_from(self.slabs.len() - 1).unwrap_or(u32::MAX)
            });
            let bytes = vec![0; class * 2 * SLAB_CELLS as usize].into_boxed_slice();
            // Proof: the longest cell has less than two thousand bytes.
            let cell = u16::try_from(class * 2).unwrap_or(u16::MAX);
            self.slabs[slab as usize] = Slab { bytes, cell };
            self.classes[class].slabs.push(slab);
        }
        self.classes[class].len += 1;
        // Proof: one was added if there was none with a free place.
        #[allow(clippy::unwrap_used)]
        let slab = *self.classes[class].slabs.last().unwrap();
        (slab, index)
    }

    fn copy(&mut self, from: Number, to: Number) {
        let (from_slab, to_slab) = ((from / SLAB_CELLS) as usize, (to / SLAB_CELLS) as usize);
        let source = self.slabs[from_slab].range(from);
        let target = self.slabs[to_slab].range(to);
        if from_slab == to_slab {
            self.slabs[to_slab].bytes.copy_within(source, target.start);
        } else if let Ok([from, to]) = self.slabs.get_disjoint_mut([from_slab, to_slab]) {
            to.bytes[target].copy_from_slice(&from.bytes[source]);
        }
    }

    fn cell(&self, number: Number) -> &[u8] {
        let slab = &self.slabs[(number / SLAB_CELLS) as usize];
        &slab.bytes[slab.range(number)]
    }

    fn cell_mut(&mut self, number: Number) -> &mut [u8] {
        let slab = &mut self.slabs[(number / SLAB_CELLS) as usize];
        let range = slab.range(number);
        &mut slab.bytes[range]
    }
}

impl Slab {
    fn range(&self, number: Number) -> std::ops::Range<usize> {
        let cell = usize::from(self.cell);
        let from = (number % SLAB_CELLS) as usize * cell;
        from..from + cell
    }
}

/// Which parts a cell has.
struct Form {
    flags: u32,
    bytes: usize,
}

impl Form {
    fn of(contents: &Contents<'_>, usual_lease: u64) -> Self {
        let mut form = Self { flags: 0, bytes: HEADER + contents.packet.len() };
        if contents.lease != usual_lease {
            form.flags |= OWN_LEASE;
            form.bytes += LEASE;
        }
        if text_in(contents.packet) != Some(IdText::of(contents.id).as_bytes()) {
            form.flags |= OWN_ID;
            form.bytes += ID;
        }
        if form.bytes % 2 == 1 {
            form.flags |= PADDED;
        }
        form
    }

    fn cell(&self) -> usize {
        self.bytes.next_multiple_of(2)
    }
}

/// Position and flags.
fn word(cell: &[u8]) -> u32 {
    cell[..4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// A number of six bytes.
fn six(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn packet_from(cell: &[u8]) -> usize {
    let word = word(cell);
    let mut from = HEADER;
    if word & OWN_LEASE != 0 {
        from += LEASE;
    }
    if word & OWN_ID != 0 {
        from += ID;
    }
    from
}

fn own_id(cell: &[u8]) -> Option<&[u8]> {
    let word = word(cell);
    let from = if word & OWN_LEASE != 0 { HEADER + LEASE } else { HEADER };
    (word & OWN_ID != 0).then(|| &cell[from..from + ID])
}

/// The text where a packet usually has its id.
fn text_in(packet: &[u8]) -> Option<&[u8]> {
    packet.get(ID_IN_PACKET..ID_IN_PACKET + IdText::LENGTH)
}
