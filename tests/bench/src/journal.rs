//! The sealed journal alone: how fast turns become durable with no network and no objects (DESIGN §8).
//!
//! A `checkpoint::Store` with the options that a vat uses, sealed like a vat's, in the same folder. The given
//! number of waiters each submit a turn, and the next one as soon as that is durable. They share one thread
//! and wait for the committer's reports, not each on its own for a lock: no cheaper way to use the store is
//! known, so this is the most that anything built on it can reach.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use checkpoint::{Change, Durable, FileDisk, Protection, RowKey, Store, StoreOptions, TurnDelta};

use crate::{Failure, rounds::rate};

/// What a turn of a counter writes: its one row, under a name of 1 byte, of 19 bytes (type, version, total).
const ROW_NAME: &[u8] = &[0];
const ROW_BYTES: usize = 19;
const ROW_SPACE: u64 = 16;

/// A sealed store and those who wait for it.
pub(crate) struct Journal {
    store: Store,
    reports: mpsc::Receiver<Durable>,
    submitted: u64,
    durable: u64,
}

/// What one run of a journal did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Commits {
    /// Turns that became durable.
    pub(crate) turns: u64,
    /// Frames that were written for them, each with one `fdatasync`.
    pub(crate) frames: u64,
}

impl Journal {
    /// Makes a new store in `folder`.
    pub(crate) fn create(folder: &Path) -> Result<Self, Failure> {
        let (sender, reports) = mpsc::channel();
        let on_durable = move |event| {
            // Nobody listens only once the journal is being dropped.
            let _ = sender.send(event);
        };
        let options = StoreOptions { on_durable: Some(Box::new(on_durable)), ..StoreOptions::default() };
        let protection = Protection::KeyFile(folder.join("journal.key"));
        let store = Store::create(Arc::new(FileDisk), &folder.join("journal"), &[7; 32], &protection, options)?;
        Ok(Self { store, reports, submitted: 0, durable: 0 })
    }

    /// Durable turns per second with `waiters` waiting at any time.
    pub(crate) fn run(&mut self, waiters: u64, window: Duration) -> Result<f64, Failure> {
        let (first, begun) = (self.durable, Instant::now());
        self.submit(waiters)?;
        while self.durable < self.submitted {
            let became_durable = self.wait()?;
            if begun.elapsed() < window {
                self.submit(became_durable)?;
            }
        }
        Ok(rate(self.durable - first, begun.elapsed()))
    }

    /// What was committed since the store was made.
    pub(crate) fn commits(&self) -> Commits {
        let position = self.store.durable();
        Commits { turns: position.turn, frames: position.sequence }
    }

    fn submit(&mut self, count: u64) -> Result<(), Failure> {
        for _ in 0..count {
            let mut row = [0; ROW_BYTES];
            row[..8].copy_from_slice(&self.submitted.to_be_bytes());
            let key = RowKey { space: ROW_SPACE, name: ROW_NAME.to_vec() };
            let changes = vec![Change { key, value: Some(row.to_vec()) }];
            self.submitted += 1;
            self.store.submit(TurnDelta { turn: self.submitted, changes })?;
        }
        Ok(())
    }

    /// Waits for the committer; tells how many turns have become durable.
    fn wait(&mut self) -> Result<u64, Failure> {
        let before = self.durable;
        let mut report = self.reports.recv()?;
        loop {
            match report {
                Durable::Turn(turn) => self.durable = turn,
                Durable::Poisoned => return Err("the disk failed under the journal".into()),
            }
            match self.reports.try_recv() {
                Ok(next) => report = next,
                Err(_) => return Ok(self.durable - before),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder;

    #[test]
    fn every_submitted_turn_becomes_durable_and_groups_form_only_among_waiters() {
        let folder = folder::temporary().unwrap();
        let mut journal = Journal::create(folder.path()).unwrap();
        assert!(journal.run(1, Duration::from_millis(20)).unwrap() > 0.0);
        let alone = journal.commits();
        assert_eq!(alone.turns, journal.submitted);
        assert!(alone.frames >= alone.turns, "one waiter never has two turns in a group: {alone:?}");
        assert!(journal.run(64, Duration::from_millis(20)).unwrap() > 0.0);
        let (turns, frames) = (journal.commits().turns - alone.turns, journal.commits().frames - alone.frames);
        assert!(turns > frames, "64 waiters share frames: {turns} turns in {frames} frames");
        assert_eq!(journal.durable, journal.submitted);
    }
}
