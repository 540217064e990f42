//! How many turns a second become durable while 128 wait for theirs.
//!
//! All waiters share one thread; each submits its next turn when its last one is durable. On the other side is a
//! thread that commits: the store's own, or for a database one of the same build. Both are greedy: they take
//! whatever queued while the last sync ran.

use std::{
    mem,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use checkpoint::{Durable, FileDisk, Store, StoreOptions};

use super::{group_commit::create_store, turns::Turn};
use crate::{
    Failure, note,
    rounds::{Comparison, Effort, compare, rate},
};

const WAITERS: u64 = 128;

/// A database that makes a group of turns durable with one transaction.
pub(super) trait Database: Send + 'static {
    fn commit(&mut self, group: &[Turn]) -> Result<(), Failure>;
}

/// The store against a database.
pub(super) async fn measure<D: Database>(
    effort: Effort,
    folder: &Path,
    database: impl FnOnce(&Path) -> Result<D, Failure>,
) -> Result<Comparison, Failure> {
    let mut store = StoreSide::create(folder)?;
    let mut database = DatabaseSide::start(database(folder)?)?;
    let (mut of_store, mut of_database) = (Waiters::default(), Waiters::default());
    let comparison = compare(
        effort,
        async || of_store.run(&mut store, effort.window),
        async || of_database.run(&mut database, effort.window),
    )
    .await?;
    let frames = store.store.durable().sequence;
    let transactions = database.stop()?;
    note(&format!(
        "store: {} turns in {frames} frames; database: {} turns in {transactions} transactions",
        of_store.durable, of_database.durable
    ));
    Ok(comparison)
}

/// Something that makes turns durable, and tells.
trait Side {
    fn queue(&mut self, turn: Turn) -> Result<(), Failure>;
    /// Has it begin with what is queued.
    fn start(&mut self);
    /// Waits for news: the newest durable turn.
    fn wait(&mut self) -> Result<u64, Failure>;
}

#[derive(Default)]
struct Waiters {
    submitted: u64,
    durable: u64,
}

impl Waiters {
    /// Durable turns per second.
    fn run(&mut self, side: &mut impl Side, window: Duration) -> Result<f64, Failure> {
        let (first, begun) = (self.durable, Instant::now());
        self.submit(side, WAITERS)?;
        while self.durable < self.submitted {
            let newest = side.wait()?;
            let answered = newest - mem::replace(&mut self.durable, newest);
            if begun.elapsed() < window {
                self.submit(side, answered)?;
            }
        }
        Ok(rate(self.durable - first, begun.elapsed()))
    }

    fn submit(&mut self, side: &mut impl Side, count: u64) -> Result<(), Failure> {
        for _ in 0..count {
            self.submitted += 1;
            side.queue(Turn::of(self.submitted))?;
        }
        side.start();
        Ok(())
    }
}

struct StoreSide {
    store: Store,
    reports: mpsc::Receiver<Durable>,
}

impl StoreSide {
    fn create(folder: &Path) -> Result<Self, Failure> {
        let (sender, reports) = mpsc::channel();
        let on_durable = move |event| {
            // Nobody listens only once the store is being dropped.
            let _ = sender.send(event);
        };
        let options = StoreOptions { on_durable: Some(Box::new(on_durable)), ..StoreOptions::default() };
        Ok(Self { store: create_store(Arc::new(FileDisk), folder, options)?, reports })
    }
}

impl Side for StoreSide {
    fn queue(&mut self, turn: Turn) -> Result<(), Failure> {
        Ok(self.store.queue(turn.delta())?)
    }

    fn start(&mut self) {
        self.store.start_commit();
    }

    fn wait(&mut self) -> Result<u64, Failure> {
        match self.reports.recv()? {
            Durable::Turn(turn) => Ok(turn),
            Durable::Poisoned => Err("the disk failed under the store".into()),
        }
    }
}

/// A database behind a committer like the store's.
struct DatabaseSide {
    shared: Arc<Shared>,
    reports: mpsc::Receiver<u64>,
    thread: Option<JoinHandle<Result<u64, Failure>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    turns: Vec<Turn>,
    closing: bool,
}

impl DatabaseSide {
    fn start(mut database: impl Database) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let (sender, reports) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let work = move || {
            let mut transactions = 0;
            let mut group = Vec::new();
            while of_thread.next_group(&mut group) {
                database.commit(&group)?;
                transactions += 1;
                if let Some(last) = group.last() {
                    sender.send(last.number)?;
                }
            }
            Ok(transactions)
        };
        let thread = thread::Builder::new().name("database".to_owned()).spawn(work)?;
        Ok(Self { shared, reports, thread: Some(thread) })
    }

    /// Ends it; gives the number of transactions.
    fn stop(mut self) -> Result<u64, Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<u64, Failure> {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        self.thread.take().map_or(Ok(0), |thread| thread.join().unwrap_or_else(|_| Err("a committer panicked".into())))
    }
}

impl Drop for DatabaseSide {
    fn drop(&mut self) {
        // Dropped without `stop` after a failure that says more.
        let _ = self.end();
    }
}

impl Side for DatabaseSide {
    fn queue(&mut self, turn: Turn) -> Result<(), Failure> {
        self.shared.lock().turns.push(turn);
        Ok(())
    }

    fn start(&mut self) {
        self.shared.work.notify_one();
    }

    fn wait(&mut self) -> Result<u64, Failure> {
        match self.reports.recv() {
            Ok(turn) => Ok(turn),
            // It has ended, so it says why.
            Err(_) => Err(self.end().err().unwrap_or_else(|| "the committer has ended".into())),
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for turns, and takes all that there are; `false` when nothing more will come.
    fn next_group(&self, group: &mut Vec<Turn>) -> bool {
        group.clear();
        let mut queue = self.lock();
        while queue.turns.is_empty() {
            if queue.closing {
                return false;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut queue.turns, group);
        true
    }
}
