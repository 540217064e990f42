//! What a disk may hold after a loss of power at one point: all of it when that is little, else a sample.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
    sync::Arc,
};

use checkpoint::simulated::{History, SimulatedDisk, Unsynced, UnsyncedChange};

use crate::harness::*;

/// Up to so many parts that can be lost, every subset of them is tried.
const EXHAUSTIVE_PARTS: usize = 5;

/// How an image came to be; each of these has to occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    LostCreate,
    LostRename,
    LostRemove,
    LostLength,
    LostWrite,
    TornWrite,
    /// Before anybody was told that the store exists.
    DuringCreate,
    /// The base has pages, or a length, that are not synced.
    DuringFold,
    /// A spare has writes that are not synced, or is changing its name.
    DuringRecycling,
    /// While the store was being opened after a crash.
    DuringRecovery,
    /// The process was killed, and the power failed while its successor recovered.
    AfterKill,
}

impl Kind {
    pub(super) const ALL: [Self; 11] = [
        Self::LostCreate,
        Self::LostRename,
        Self::LostRemove,
        Self::LostLength,
        Self::LostWrite,
        Self::TornWrite,
        Self::DuringCreate,
        Self::DuringFold,
        Self::DuringRecycling,
        Self::DuringRecovery,
        Self::AfterKill,
    ];
}

/// How many images there were, and how many of each kind.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pub(super) images: u64,
    pub(super) kinds: BTreeMap<Kind, u64>,
}

impl Coverage {
    pub(super) fn add(&mut self, kinds: impl IntoIterator<Item = Kind>) {
        self.images += 1;
        kinds.into_iter().for_each(|kind| *self.kinds.entry(kind).or_default() += 1);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.images += other.images;
        other.kinds.into_iter().for_each(|(kind, count)| *self.kinds.entry(kind).or_default() += count);
    }
}

/// A point in a history at which the power fails.
pub(super) struct Point<'a> {
    history: &'a History,
    unsynced: Vec<Unsynced>,
    /// The number of the first part of each of these, and how many there are.
    starts: Vec<usize>,
    parts: usize,
    /// The first part of the operation that was the last one, if it can be lost.
    newest: Option<usize>,
}

/// Which parts of what was not synced the disk has kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept(Vec<bool>);

impl<'a> Point<'a> {
    /// After so many operations, to which `history` has advanced.
    pub(super) fn new(history: &'a History, operations: usize) -> Self {
        let unsynced = history.unsynced();
        let mut parts = 0;
        let start = |operation: &Unsynced| {
            parts += operation.parts;
            parts - operation.parts
        };
        let starts: Vec<usize> = unsynced.iter().map(start).collect();
        let newest = unsynced.last().filter(|last| last.at + 1 == operations).and(starts.last().copied());
        Self { history, unsynced, starts, parts, newest }
    }

    /// Whether there are images here that were not possible one operation earlier.
    pub(super) fn is_new(&self) -> bool {
        self.newest.is_some()
    }

    /// Different images, none of which was possible one operation earlier.
    pub(super) fn images(&self, random: &mut Random, samples: u64) -> BTreeSet<Kept> {
        let mut images = BTreeSet::from([Kept(vec![true; self.parts])]);
        if self.parts <= EXHAUSTIVE_PARTS {
            images.extend((0..1u32 << self.parts).map(|kept| self.keeping(|part| kept & 1 << part != 0)));
        } else {
            images.insert(Kept(vec![false; self.parts]));
            images.extend((0..samples).map(|number| self.sample(number, random)));
        }
        if let Some(newest) = self.newest {
            images.retain(|kept| kept.0[newest..].iter().any(|kept| *kept));
        }
        images
    }

    fn sample(&self, number: u64, random: &mut Random) -> Kept {
        let operation = usize::try_from(random.below(self.starts.len() as u64)).unwrap();
        let (start, end) = (self.starts[operation], self.starts[operation] + self.unsynced[operation].parts);
        match number % 5 {
            // One operation is lost, wholly or in part.
            0 => self.keeping(|part| !(start..end).contains(&part)),
            1 => self.keeping(|part| !(start..end).contains(&part) || random.below(2) == 0),
            // Everything up to the middle of one.
            2 => self.keeping(|part| part < start || part < end && random.below(2) == 0),
            // Any operations, and any parts.
            3 => {
                let whole: Vec<bool> = self.starts.iter().map(|_| random.below(2) == 0).collect();
                self.keeping(|part| whole[self.starts.partition_point(|start| *start <= part) - 1])
            }
            _ => self.keeping(|_| random.below(2) == 0),
        }
    }

    fn keeping(&self, keep: impl FnMut(usize) -> bool) -> Kept {
        Kept((0..self.parts).map(keep).collect())
    }

    pub(super) fn disk(&self, kept: &Kept) -> Arc<SimulatedDisk> {
        self.history.crash_keeping(|operation, part| kept.0[self.starts[operation] + part])
    }

    /// How many parts of each operation were kept.
    fn fates<'b>(&'b self, kept: &'b Kept) -> impl Iterator<Item = (&'b Unsynced, usize)> {
        self.unsynced.iter().zip(&self.starts).map(|(operation, start)| {
            let parts = &kept.0[*start..*start + operation.parts];
            (operation, parts.iter().filter(|kept| **kept).count())
        })
    }

    pub(super) fn kinds(&self, kept: &Kept) -> BTreeSet<Kind> {
        let is_spare = |path: &Path| path.extension().is_some_and(|extension| extension == "spare");
        let mut kinds = BTreeSet::new();
        for (operation, parts) in self.fates(kept) {
            let recycling = match &operation.change {
                UnsyncedChange::Rename(to) => is_spare(&operation.path) || is_spare(to),
                _ => is_spare(&operation.path),
            };
            kinds.extend(recycling.then_some(Kind::DuringRecycling));
            // What stands at the beginning of the base is written when it is opened and closed as well.
            let pages = operation.path == Path::new(BASE) && operation.change != UnsyncedChange::Write(0);
            kinds.extend(pages.then_some(Kind::DuringFold));
            kinds.extend(match (&operation.change, parts) {
                (UnsyncedChange::Create | UnsyncedChange::CreateDirectory, 0) => Some(Kind::LostCreate),
                (UnsyncedChange::Rename(_), 0) => Some(Kind::LostRename),
                (UnsyncedChange::Remove, 0) => Some(Kind::LostRemove),
                (UnsyncedChange::SetLength(_), 0) => Some(Kind::LostLength),
                (UnsyncedChange::Write(_), 0) => Some(Kind::LostWrite),
                (UnsyncedChange::Write(_), parts) if parts < operation.parts => Some(Kind::TornWrite),
                _ => None,
            });
        }
        kinds
    }

    /// For whoever has to find out what went wrong.
    pub(super) fn describe(&self, kept: &Kept) -> String {
        let mut text = String::from("not synced were");
        for (operation, parts) in self.fates(kept) {
            let Unsynced { at, change, path, parts: all } = operation;
            let _ = write!(text, "\n  {at}: {change:?} of {}, kept {parts} of {all}", path.display());
        }
        text
    }
}
