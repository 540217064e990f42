//! What a disk may hold after a loss of power.

use std::sync::Arc;

use super::{
    SimulatedDisk,
    file_system::{FileSystem, Inode, Operation, to_usize},
};
use crate::limits::SECTOR_BYTES;

/// Everything that was done to a disk, and how far a test has walked through it.
///
/// At each point there is what is durable, and a list of operations that are not: contents of files that were
/// not synced, names in folders that were not synced.
pub struct History {
    log: Vec<Operation>,
    done: usize,
    durable: FileSystem,
    pending: Vec<Operation>,
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
            _ => Mode::Sectors,
        };
        let mut files = self.durable.clone();
        for (index, operation) in self.pending.iter().enumerate() {
            keep_some(&mut files, operation, mode, index as u64, &mut random);
        }
        SimulatedDisk::with(files)
    }

    /// The disk after the process was killed at this point while the machine goes on: everything that was
    /// written is seen, and what was not synced can still be lost by a later loss of power. That includes what a
    /// failed sync has left in the cache and no later sync will write.
    #[must_use]
    pub fn kill(&self) -> Arc<SimulatedDisk> {
        SimulatedDisk::with_cache(self.durable.clone(), self.pending.clone(), self.live.clone())
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
                self.pending.retain(|operation| contents_of(operation) != Some(inode) || random.below(2) == 0);
            }
            Operation::Mark(_) => {}
            _ => self.pending.push(operation),
        }
    }

    /// Makes the pending operations that `synced` chooses durable.
    fn settle(&mut self, synced: impl Fn(&Operation) -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|operation| {
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
    Sectors,
}

fn keep_some(files: &mut FileSystem, operation: &Operation, mode: Mode, index: u64, random: &mut Random) {
    let keep = match mode {
        Mode::Nothing => false,
        Mode::Everything => true,
        Mode::Prefix(length) => index < length,
        Mode::Sectors if contents_of(operation).is_some() => {
            if let Operation::Write { inode, offset, bytes } = operation {
                return keep_sectors(files, *inode, *offset, bytes, random);
            }
            random.below(2) == 0
        }
        Mode::Whole | Mode::Sectors => random.below(2) == 0,
    };
    // An operation on a name that the crash has lost is lost with it.
    if keep && files.check(operation).is_ok() {
        files.apply(operation);
    }
}

fn keep_sectors(files: &mut FileSystem, inode: Inode, offset: u64, bytes: &[u8], random: &mut Random) {
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        let to_boundary = SECTOR_BYTES - to_usize(at) % SECTOR_BYTES;
        let (sector, after) = rest.split_at(to_boundary.min(rest.len()));
        if random.below(2) == 0 {
            files.write(inode, at, sector);
        }
        at += sector.len() as u64;
        rest = after;
    }
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
