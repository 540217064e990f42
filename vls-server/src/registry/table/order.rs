//! Which record ends next: everywhere, per source prefix, and among those whose lease has ended (rule 6).
//!
//! There are no timers. The order holds the end of each lease as it is now: a renewal moves it, so no older
//! end is left behind that could still fire.
//!
//! Each source has two *groups*, of its live records and of its lapsed ones. A group is a binary heap of the numbers of
//! cells, by the ends that stand in the cells; each cell in turn has its position in the heap. The heaps share their
//! memory in chunks of 64 numbers, each of which knows its group: so a position tells the source as well, and all
//! of this takes about four and a half bytes for a record, and four in its cell. A change costs O(log n).

use std::collections::{BTreeSet, HashMap};

use super::cells::{Cells, Number, POSITIONS};
use crate::{limits::MOST_RECORDS, registry::quota::SourcePrefix};

/// Numbers in a chunk.
const CHUNK: usize = 64;

/// Chunks whose memory is asked for at once.
const PAGE: usize = 64;

/// A position has 29 bits: as many records as there can be, each in a chunk of its own, and as many full chunks.
const _: () = assert!(MOST_RECORDS * CHUNK + MOST_RECORDS < POSITIONS as usize);

/// A group: a number of a source, and whether these are its lapsed records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupId(u32);

impl GroupId {
    fn of(source: u32, lapsed: bool) -> Self {
        Self(source << 1 | u32::from(lapsed))
    }

    fn source(self) -> usize {
        (self.0 >> 1) as usize
    }

    fn lapsed(self) -> bool {
        self.0 & 1 == 1
    }
}

#[derive(Debug)]
struct Chunk {
    numbers: [Number; CHUNK],
    group: GroupId,
    /// Which of the group's chunks it is.
    ordinal: u32,
}

#[derive(Debug, Default)]
struct Group {
    chunks: Vec<u32>,
    len: u32,
}

#[derive(Debug)]
struct Source {
    prefix: SourcePrefix,
    /// Live and lapsed.
    groups: [Group; 2],
}

/// The order of all records.
#[derive(Debug, Default)]
pub(super) struct Order {
    numbers: HashMap<SourcePrefix, u32>,
    sources: Vec<Source>,
    unused_sources: Vec<u32>,
    pages: Vec<Box<[Chunk]>>,
    unused_chunks: Vec<u32>,
    /// The first end of the live, and of the lapsed, records of each source.
    firsts: [BTreeSet<(u64, u32)>; 2],
    /// How many live records each source has.
    crowds: BTreeSet<(u32, SourcePrefix)>,
    /// How many live records all of them have.
    live: usize,
}

impl Order {
    /// Adds a cell, by the end that it has.
    pub(super) fn insert(&mut self, cells: &mut Cells, number: Number, source: SourcePrefix, lapsed: bool) {
        let source = self.number_of(source);
        self.change(cells, GroupId::of(source, lapsed), |order, cells, group| order.push(cells, group, number));
    }

    /// Where one of many cells is to be [restored](Self::restored).
    pub(super) fn group_for(&mut self, source: SourcePrefix, lapsed: bool) -> GroupId {
        GroupId::of(self.number_of(source), lapsed)
    }

    /// Adds many cells to an empty order. The first to end comes first: so each belongs where there is room next, and no
    /// other cell, somewhere in memory, has to be looked at to know it.
    pub(super) fn restored(&mut self, cells: &mut Cells, all: impl Iterator<Item = (GroupId, Number)>) {
        debug_assert_eq!(self.live, 0, "only an empty order is filled");
        for (group, number) in all {
            let index = self.lengthen(group);
            self.set(cells, group, index, number);
        }
        for (number, source) in (0..).zip(&self.sources) {
            for (lapsed, firsts) in [false, true].into_iter().zip(&mut self.firsts) {
                let group = GroupId::of(number, lapsed);
                let Group { chunks, len } = &source.groups[usize::from(lapsed)];
                let Some(chunk) = chunks.first().map(|chunk| *chunk as usize) else { continue };
                debug_assert_eq!(self.pages[chunk / PAGE][chunk % PAGE].group, group);
                firsts.insert((cells.end(self.pages[chunk / PAGE][chunk % PAGE].numbers[0]), number));
                if !lapsed {
                    self.crowds.insert((*len, source.prefix));
                    self.live += *len as usize;
                }
            }
        }
    }

    /// Takes a cell out, before its end changes; tells of which source it is.
    pub(super) fn remove(&mut self, cells: &mut Cells, number: Number) -> SourcePrefix {
        let position = cells.position(number);
        let chunk = self.chunk(position as usize / CHUNK);
        let (group, index) = (chunk.group, chunk.ordinal as usize * CHUNK + position as usize % CHUNK);
        let prefix = self.sources[group.source()].prefix;
        self.change(cells, group, |order, cells, group| order.take(cells, group, index));
        self.forget_if_empty(group);
        prefix
    }

    /// The same cell has another number now.
    pub(super) fn renumber(&mut self, cells: &Cells, new: Number) {
        let position = cells.position(new) as usize;
        self.chunk_mut(position / CHUNK).numbers[position % CHUNK] = new;
    }

    /// The source of a cell.
    pub(super) fn source(&self, cells: &Cells, number: Number) -> SourcePrefix {
        self.sources[self.group_of(cells, number).source()].prefix
    }

    /// The record that ends first among the live or the lapsed of all sources, with its end.
    pub(super) fn first(&self, lapsed: bool) -> Option<(u64, Number)> {
        let (end, source) = self.firsts[usize::from(lapsed)].first()?;
        Some((*end, self.at(GroupId::of(*source, lapsed), 0)))
    }

    /// The live record of `source` that ends first.
    pub(super) fn first_of(&self, source: SourcePrefix) -> Option<Number> {
        let group = GroupId::of(*self.numbers.get(&source)?, false);
        (self.group(group).len > 0).then(|| self.at(group, 0))
    }

    /// The source with the most live records, and how many.
    pub(super) fn most_crowded(&self) -> Option<(SourcePrefix, u32)> {
        self.crowds.last().map(|(count, source)| (*source, *count))
    }

    /// How many live records a source has.
    pub(super) fn count(&self, source: SourcePrefix) -> u32 {
        self.numbers.get(&source).map_or(0, |source| self.group(GroupId::of(*source, false)).len)
    }

    /// How many live records there are.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    fn group_of(&self, cells: &Cells, number: Number) -> GroupId {
        self.chunk(cells.position(number) as usize / CHUNK).group
    }

    fn number_of(&mut self, prefix: SourcePrefix) -> u32 {
        if let Some(number) = self.numbers.get(&prefix) {
            return *number;
        }
        let source = Source { prefix, groups: Default::default() };
        let number = match self.unused_sources.pop() {
            Some(number) => {
                self.sources[number as usize] = source;
                number
            }
            None => {
                self.sources.push(source);
                // Proof: each has a record or is about to have one, and of those there are less than 2²⁶.
                u32::try_from(self.sources.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(prefix, number);
        number
    }

    fn forget_if_empty(&mut self, group: GroupId) {
        let source = &mut self.sources[group.source()];
        if source.groups.iter().any(|group| group.len > 0) {
            return;
        }
        source.groups = Default::default();
        self.numbers.remove(&source.prefix);
        self.unused_sources.push(group.0 >> 1);
    }

    /// Changes a group, and with it what is known of its first end and its size.
    fn change(&mut self, cells: &mut Cells, group: GroupId, change: impl FnOnce(&mut Self, &mut Cells, GroupId)) {
        let before = self.summary(cells, group);
        change(self, cells, group);
        let after = self.summary(cells, group);
        let (source, lapsed) = (group.0 >> 1, usize::from(group.lapsed()));
        if before.0 != after.0 {
            before.0.map(|end| self.firsts[lapsed].remove(&(end, source)));
            after.0.map(|end| self.firsts[lapsed].insert((end, source)));
        }
        if !group.lapsed() && before.1 != after.1 {
            let prefix = self.sources[group.source()].prefix;
            self.live = self.live + after.1 as usize - before.1 as usize;
            self.crowds.remove(&(before.1, prefix));
            if after.1 > 0 {
                self.crowds.insert((after.1, prefix));
            }
        }
    }

    fn summary(&self, cells: &Cells, group: GroupId) -> (Option<u64>, u32) {
        let len = self.group(group).len;
        ((len > 0).then(|| cells.end(self.at(group, 0))), len)
    }

    fn push(&mut self, cells: &mut Cells, group: GroupId, number: Number) {
        let index = self.lengthen(group);
        self.rise(cells, group, index, number);
    }

    /// Makes room for one more at the end of a heap.
    fn lengthen(&mut self, group: GroupId) -> usize {
        let index = self.group(group).len as usize;
        if index.is_multiple_of(CHUNK) {
            let chunk = self.new_chunk(group, index / CHUNK);
            self.group_mut(group).chunks.push(chunk);
        }
        self.group_mut(group).len += 1;
        index
    }

    /// Takes out what stands at an index of the heap.
    fn take(&mut self, cells: &mut Cells, group: GroupId, index: usize) {
        let last = self.group(group).len as usize - 1;
        let moved = self.at(group, last);
        self.group_mut(group).len -= 1;
        if last.is_multiple_of(CHUNK) {
            let freed = self.group_mut(group).chunks.pop();
            self.unused_chunks.extend(freed);
        }
        if index == last {
            return;
        }
        let end = cells.end(moved);
        if index > 0 && end < cells.end(self.at(group, (index - 1) / 2)) {
            self.rise(cells, group, index, moved);
        } else {
            self.sink(cells, group, index, moved);
        }
    }

    /// Puts a number where it belongs, at a place of the heap or above it.
    fn rise(&mut self, cells: &mut Cells, group: GroupId, mut index: usize, number: Number) {
        let end = cells.end(number);
        while index > 0 {
            let parent = (index - 1) / 2;
            let above = self.at(group, parent);
            if cells.end(above) <= end {
                break;
            }
            self.set(cells, group, index, above);
            index = parent;
        }
        self.set(cells, group, index, number);
    }

    /// Puts a number where it belongs, at a place of the heap or below it.
    fn sink(&mut self, cells: &mut Cells, group: GroupId, mut index: usize, number: Number) {
        let (end, len) = (cells.end(number), self.group(group).len as usize);
        loop {
            let children = 2 * index + 1..(2 * index + 3).min(len);
            let ends = children.map(|child| (cells.end(self.at(group, child)), child));
            let Some((least, child)) = ends.min() else { break };
            if end <= least {
                break;
            }
            self.set(cells, group, index, self.at(group, child));
            index = child;
        }
        self.set(cells, group, index, number);
    }

    fn at(&self, group: GroupId, index: usize) -> Number {
        let chunk = self.group(group).chunks[index / CHUNK] as usize;
        self.chunk(chunk).numbers[index % CHUNK]
    }

    fn set(&mut self, cells: &mut Cells, group: GroupId, index: usize, number: Number) {
        let chunk = self.group(group).chunks[index / CHUNK] as usize;
        self.chunk_mut(chunk).numbers[index % CHUNK] = number;
        // Proof: there are less than 2²³ chunks of 2⁶.
        #[allow(clippy::cast_possible_truncation)]
        cells.set_position(number, (chunk * CHUNK + index % CHUNK) as u32);
    }

    fn group(&self, group: GroupId) -> &Group {
        &self.sources[group.source()].groups[usize::from(group.lapsed())]
    }

    fn group_mut(&mut self, group: GroupId) -> &mut Group {
        &mut self.sources[group.source()].groups[usize::from(group.lapsed())]
    }

    fn new_chunk(&mut self, group: GroupId, ordinal: usize) -> u32 {
        if self.unused_chunks.is_empty() {
            let first = self.pages.len() * PAGE;
            let chunk = || Chunk { numbers: [0; CHUNK], group, ordinal: 0 };
            self.pages.push((0..PAGE).map(|_| chunk()).collect());
            // Proof: there are less than 2²³. The lowest is used first.
            self.unused_chunks.extend((first..first + PAGE).rev().filter_map(|chunk| u32::try_from(chunk).ok()));
        }
        // Proof: some were added if there was none.
        #[allow(clippy::unwrap_used)]
        let number = self.unused_chunks.pop().unwrap();
        let chunk = self.chunk_mut(number as usize);
        chunk.group = group;
        // Proof: less than the number of chunks.
        chunk.ordinal = u32::try_from(ordinal).unwrap_or(u32::MAX);
        number
    }

    fn chunk(&self, number: usize) -> &Chunk {
        &self.pages[number / PAGE][number % PAGE]
    }

    fn chunk_mut(&mut self, number: usize) -> &mut Chunk {
        &mut self.pages[number / PAGE][number % PAGE]
    }
}
