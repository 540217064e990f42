//! What a disk may hold after a loss of power.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    SimulatedDisk,
    file_system::{FileSystem, Inode, Operation, to_usize},
};
use crate::limits::SECTOR_BYTES;

/// An operation that a loss of power may undo, because nothing has made it durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsynced {
    /// How many operations there were before it.
    pub at: usize,
    /// What it does.
    pub change: UnsyncedChange,
    /// The file or the folder. Empty for a file that has no name any more.
    pub path: PathBuf,
    /// How many parts it has, each of which can be lost alone: the sectors of a write, 1 for everything else.
    pub parts: usize,
}

/// What an operation does that a loss of power may undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnsyncedChange {
    /// Makes a file.
    Create,
    /// Makes a folder.
    CreateDirectory,
    /// Gives a file this name.
    Rename(PathBuf),
    /// Removes a file.
    Remove,
    /// Changes the contents of a file, from this offset on.
    Write(u64),
    /// Cuts or extends a file to this length.
    SetLength(u64),
}

/// Everything that was done to a disk, and how far a test has walked through it.
///
/// At each point there is what is durable, and a list of operations that are not: contents of files that were
/// not synced, names in folders that were not synced.
pub struct History {
    log: Vec<Operation>,
    done: usize,
    durable: FileSystem,
    /// With the number of each in the log.
    pending: Vec<(usize, Operation)>,
    /// What a process sees: also pages that the system has given up on.
    live: FileSystem,
}

impl History {
    pub(super) fn new(initial: FileSystem, log: Vec<Operation>) -> Self {
        Self { log, done: 0, live: initial.clone(), durable: initial, pending: Vec::new() }
    }

    /// How many operations there are, marks and syncs included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Whether nothing was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// The marks so far, in order.
    pub fn marks(&self) -> impl Iterator<Item = u64> {
        self.log[..self.done].iter().filter_map(|operation| match operation {
            Operation::Mark(mark) => Some(*mark),
            _ => None,
        })
    }

    /// Goes on to the point after `operations` operations from the beginning; never back.
    pub fn advance(&mut self, operations: usize) {
        while self.done < operations.min(self.log.len()) {
            let operation = self.log[self.done].clone();
            self.done += 1;
            self.live.apply(&operation);
            self.step(operation);
        }
    }

    /// What a loss of power at this point may undo, in order.
    #[must_use]
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let contents = |inode| self.live.name_of(inode).map(Path::to_owned).unwrap_or_default();
        let unsynced = |(at, operation): &(usize, Operation)| {
            let (change, path) = match operation {
                Operation::Create { path, .. } => (UnsyncedChange::Create, path.clone()),
                Operation::CreateDirectory { path } => (UnsyncedChange::CreateDirectory, path.clone()),
                Operation::Rename { from, to, .. } => (UnsyncedChange::Rename(to.clone()), from.clone()),
                Operation::Remove { path } => (UnsyncedChange::Remove, path.clone()),
                Operation::Write { inode, offset, .. } => (UnsyncedChange::Write(*offset), contents(*inode)),
                Operation::SetLength { inode, length } => (UnsyncedChange::SetLength(*length), contents(*inode)),
                // These are never pending.
                Operation::Sync { .. }
                | Operation::FailedSync { .. }
                | Operation::SyncDirectory { .. }
                | Operation::Mark(_) => return None,
            };
            Some(Unsynced { at: *at, change, path, parts: parts(operation) })
        };
        self.pending.iter().filter_map(unsynced).collect()
    }

    /// The disk after a loss of power at this point: everything durable, and of the rest what `keep` chooses. It
    /// is asked for each part of each of [`History::unsynced`], by their numbers from 0. An operation on a name
    /// that was lost is lost with it.
    #[must_use]
    pub fn crash_keeping(&self, mut keep: impl FnMut(usize, usize) -> bool) -> Arc<SimulatedDisk> {
        let mut files = self.durable.clone();
        for (index, (_, operation)) in self.pending.iter().enumerate() {
            match operation {
                Operation::Write { inode, offset, bytes } => {
                    for (part, (at, sector)) in sectors(*offset, bytes).enumerate() {
                        if keep(index, part) {
                            files.write(*inode, at, sector);
                        }
                    }
                }
                operation => {
                    if keep(index, 0) && files.check(operation).is_ok() {
                        files.apply(operation);
                    }
                }
            }
        }
        SimulatedDisk::with(files)
    }

    /// The disk after a loss of power at this point: everything durable, and a subset of the rest that depends
    /// on `seed` alone.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Arc<SimulatedDisk> {
        let mut random = Random::new(seed);
        let mode = match random.below(8) {
            0 => Mode::Nothing,
            1 => Mode::Everything,
            2 | 3 => Mode::Whole,
            4 => Mode::Prefix(random.below(self.pending.len() as u64 + 1)),
            _ => Mode::Parts,
        };
        let mut whole = false;
        self.crash_keeping(|index, part| match mode {
            Mode::Nothing => false,
            Mode::Everything => true,
            Mode::Prefix(length) => (index as u64) < length,
            Mode::Whole if part > 0 => whole,
            Mode::Whole | Mode::Parts => {
                whole = random.below(2) == 0;
                whole
            }
        })
    }

    /// The disk after the process was killed at this point while the machine goes on: everything that was
    /// written is seen, and what was not synced can still be lost by a later loss of power. That includes what a
    /// failed sync has left in the cache and no later sync will write.
    #[must_use]
    pub fn kill(&self) -> Arc<SimulatedDisk> {
        let pending = self.pending.iter().map(|(_, operation)| operation.clone()).collect();
        SimulatedDisk::with_cache(self.durable.clone(), pending, self.live.clone())
    }

    fn step(&mut self, operation: Operation) {
        match &operation {
            Operation::Sync { inode, .. } => {
                let inode = *inode;
                self.settle(|operation| contents_of(operation) == Some(inode));
            }
            Operation::SyncDirectory { path } => {
                let path = path.clone();
                self.settle(|operation| match operation {
                    Operation::Create { path: name, .. }
                    | Operation::CreateDirectory { path: name }
                    | Operation::Remove { path: name }
                    | Operation::Rename { from: name, .. } => name.parent() == Some(&path),
                    _ => false,
                });
            }
            Operation::FailedSync { inode } => {
                // The system has given up on some of the pages and calls them clean: a later sync that succeeds
                // does not write them.
                let (inode, mut random) = (*inode, Random::new(self.done as u64));
                self.pending.retain(|(_, operation)| contents_of(operation) != Some(inode) || random.below(2) == 0);
            }
            Operation::Mark(_) => {}
            _ => self.pending.push((self.done - 1, operation)),
        }
    }

    /// Makes the pending operations that `synced` chooses durable.
    fn settle(&mut self, synced: impl Fn(&Operation) -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|(_, operation)| {
            let synced = synced(operation);
            if synced {
                durable.apply(operation);
            }
            !synced
        });
    }
}

/// The file whose contents an operation changes.
fn contents_of(operation: &Operation) -> Option<Inode> {
    match operation {
        Operation::Write { inode, .. } | Operation::SetLength { inode, .. } => Some(*inode),
        _ => None,
    }
}

/// Which of the operations that were not synced a crash keeps.
#[derive(Clone, Copy)]
enum Mode {
    Nothing,
    Everything,
    /// The first ones, in order.
    Prefix(u64),
    /// Any, each wholly or not at all.
    Whole,
    /// Any, and of each write any sectors.
    Parts,
}

fn parts(operation: &Operation) -> usize {
    match operation {
        Operation::Write { offset, bytes, .. } => sectors(*offset, bytes).count(),
        _ => 1,
    }
}

/// The pieces of a write that a disk keeps or loses wholly, with their offsets.
fn sectors(mut offset: u64, mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let to_boundary = SECTOR_BYTES - to_usize(offset) % SECTOR_BYTES;
        let (sector, after) = bytes.split_at(to_boundary.min(bytes.len()));
        let at = offset;
        bytes = after;
        offset += sector.len() as u64;
        (!sector.is_empty()).then_some((at, sector))
    })
}

/// SplitMix64: small, and good enough to choose with.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
