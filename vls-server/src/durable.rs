//! The registry with its disk: what it decides is durable before it is told (rule 8; R3 to R5).
//!
//! Each registration that changes something is one turn of a [`checkpoint::Store`] in plain mode: records are
//! public. Turns are submitted in the order in which they were decided, and the store makes all that queued
//! while the last `fdatasync` ran durable with the next one. Meanwhile the registry goes on deciding; only the
//! answers wait, each for the newest turn that it tells of.
//!
//! Signatures are verified in batches, which costs less than half of one after the other: whatever has gathered while
//! the last batch was verified is the next one ([`checks`]). One that comes alone is verified at once.
//!
//! The first error of the disk ends it: from then on nothing is answered, not even what was durable, and the
//! server stops.

mod checks;
mod rows;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use checkpoint::{Disk, Durable, Protection, Sizes, Store, StoreError, StoreOptions, TurnDelta};
use schemas::{Coded, ErrorCode, VatId};
use tokio::{sync::watch, task::AbortHandle, time::Instant};
use transport::OutputGate;

use crate::{
    clock::Clock,
    limits,
    registry::{
        Answer, Claim, Decision, Examined, Expected, Id, Now, Outcome, Peek, Policy, Registry, SourcePrefix, Turn,
        Withheld, Write,
    },
    watches::Watches,
};
use checks::Checks;
pub use rows::RowError;

/// Why the records could not be opened, or are not served any more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// Another process serves from this folder.
    #[error("{source}")]
    InUse {
        /// Who.
        source: StoreError,
    },
    /// The store.
    #[error(transparent)]
    Store(StoreError),
    /// A row is not one of ours.
    #[error("the store {} cannot be used: {source}", directory.display())]
    Row {
        /// The store.
        directory: PathBuf,
        /// What is wrong with the row.
        source: RowError,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(getrandom::Error),
}

impl From<StoreError> for RecordsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Locked { .. } => Self::InUse { source: error },
            StoreError::Poisoned { cause } => Self::Store(StoreError::clone(&cause)),
            error => Self::Store(error),
        }
    }
}

impl Coded for RecordsError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::InUse { .. } => ErrorCode::ServerRunning,
            Self::Store(error) => error.code(),
            Self::Row { source, .. } => source.code(),
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::InUse { source: StoreError::Locked { holder: Some(holder), .. } } => {
                Some(format!("Use the server that runs, or end process {}.", holder.process_id))
            }
            Self::Store(StoreError::DiskFull { .. }) => Some("Make room, then start the server again.".to_owned()),
            Self::Store(error) => error.next(),
            _ => None,
        }
    }
}

/// The disk has failed, or the server is stopping: nothing is answered any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the location server is stopping")]
pub struct Stopping;

impl Coded for Stopping {
    fn code(&self) -> ErrorCode {
        ErrorCode::ServerStopping
    }
}

/// What is known of an id at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'a> {
    /// No record is held.
    Nothing,
    /// This one is.
    Record {
        /// The packet.
        packet: &'a [u8],
        /// The time since the vat was last seen.
        age: Duration,
        /// The time until the lease ends.
        left: Duration,
        /// The lease has ended.
        expired: bool,
    },
    /// What is known is not durable yet, or never will be: nothing may be said.
    Early,
}

/// How registrations are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Journaling {
    /// Who does it.
    pub committer: Committer,
    /// Length of the journal's segments, in bytes.
    pub segment_bytes: u64,
}

impl Default for Journaling {
    fn default() -> Self {
        Self { committer: Committer::Beside, segment_bytes: checkpoint::limits::SEGMENT_BYTES }
    }
}

/// Who makes registrations durable, and verifies their signatures if there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committer {
    /// Threads beside the one that serves, which goes on meanwhile.
    Beside,
    /// The thread that serves, this long after the first registration of a group was decided. For simulations, where no
    /// other thread's pace may decide when something happens.
    InPlace {
        /// How long a write to the disk takes, on tokio's clock.
        after: Duration,
    },
}

/// A registry whose answers are durable. Belongs to one thread and one `LocalSet`.
#[derive(Debug)]
pub struct DurableRegistry {
    core: Rc<Core>,
    checks: Checks,
    /// Carries what the committer's thread reports to the gate.
    reports: AbortHandle,
}

/// Is told of a registration.
type Tell = Box<dyn Fn(&Id)>;

/// The registry and its disk.
struct Core {
    registry: RefCell<Registry>,
    clock: Rc<dyn Clock>,
    /// `None` once it was closed.
    store: RefCell<Option<Store>>,
    gate: OutputGate,
    watches: Rc<Watches>,
    /// Who is told of registrations.
    registered: RefCell<Option<Tell>>,
    /// Why a turn was not taken by the store.
    failure: RefCell<Option<StoreError>>,
    last_sync: Rc<Cell<Option<Instant>>>,
    committer: Committer,
    /// Of [`Committer::InPlace`]: somebody will commit what is queued.
    committing: Cell<bool>,
}

impl DurableRegistry {
    /// Opens the records of the server `id` in `directory`, or begins with none if it is not there or empty.
    /// Blocks on the disk. Must be called within a `LocalSet`.
    ///
    /// # Errors
    /// [`RecordsError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        id: VatId,
        policy: Policy,
        clock: Rc<dyn Clock>,
    ) -> Result<Self, RecordsError> {
        Self::open_with(disk, directory, id, policy, clock, Journaling::default())
    }

    /// The same with a journal of the caller's choice.
    ///
    /// # Errors
    /// [`RecordsError`].
    pub fn open_with(
        disk: Arc<dyn Disk>,
        directory: &Path,
        id: VatId,
        policy: Policy,
        clock: Rc<dyn Clock>,
        journaling: Journaling,
    ) -> Result<Self, RecordsError> {
        let Journaling { committer, segment_bytes } = journaling;
        let (report, reported) = watch::channel(Durable::Turn(0));
        let store = open_store(&disk, directory, id, segment_bytes, &report)?;
        let position = store.position();
        // An epoch of its own for each start, as every store has: frames of two starts cannot be mixed up.
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation).map_err(RecordsError::Random)?;
        store.begin_epoch(position.epoch + 1, incarnation)?;

        let seed = getrandom::u64().map_err(RecordsError::Random)?;
        let registry = restore(&store, directory, policy, seed, clock.now())?;
        tracing::info!(records = registry.len(), turn = registry.turn(), "the records are open");

        let gate = OutputGate::new(registry.turn());
        let last_sync = Rc::default();
        let reports = tokio::task::spawn_local(carry(reported, gate.clone(), Rc::clone(&last_sync))).abort_handle();
        let watches = Rc::new(Watches::new(limits::WATCHES));
        let (registry, store) = (RefCell::new(registry), RefCell::new(Some(store)));
        let (failure, committing) = (RefCell::new(None), Cell::new(false));
        let registered = RefCell::default();
        let core =
            Core { registry, clock, store, gate, watches, registered, failure, last_sync, committer, committing };
        let core = Rc::new(core);
        Ok(Self { checks: Checks::new(Rc::clone(&core)), core, reports })
    }

    /// Registers a packet ([`Registry::register`]) and waits until what the outcome tells is durable.
    ///
    /// If the caller goes away meanwhile, the registration is carried out all the same.
    ///
    /// # Errors
    /// [`Stopping`]: whether it was stored is not known.
    pub async fn register(
        &self,
        source: Option<IpAddr>,
        id: &[u8],
        packet: &[u8],
        expected: &Expected,
    ) -> Result<Outcome, Stopping> {
        self.wait_for_room().await?;
        let examined = {
            let mut registry = self.core.registry.borrow_mut();
            registry.examine(self.core.clock.now(), source, id, packet, expected)
        };
        self.conclude(examined, false).await
    }

    /// Takes a record that the server `source` told of ([`Registry::examine_learned`]), and waits in the same way.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn learn(
        &self,
        source: SourcePrefix,
        id: &[u8],
        packet: &[u8],
        claim: Claim,
    ) -> Result<Outcome, Stopping> {
        self.wait_for_room().await?;
        let examined = {
            let mut registry = self.core.registry.borrow_mut();
            registry.examine_learned(self.core.clock.now(), source, id, packet, claim)
        };
        self.conclude(examined, true).await
    }

    async fn conclude(&self, examined: Examined, is_learned: bool) -> Result<Outcome, Stopping> {
        let withheld = match examined {
            Examined::Decided(decision) => self.core.take(decision, is_learned)?,
            Examined::Unverified(candidate) => self.checks.check(candidate).await?,
        };
        self.core.reveal(withheld).await
    }

    /// Has everything that is registered here from now on told to `tell`, by its id; not what is learned.
    pub(crate) fn on_registered(&self, tell: impl Fn(&Id) + 'static) {
        self.core.registered.replace(Some(Box::new(tell)));
    }

    /// What is known of an id, once that is durable.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn lookup(&self, id: &Id) -> Result<Answer, Stopping> {
        let withheld = self.core.registry.borrow().lookup(self.core.clock.now(), id);
        self.core.reveal(withheld).await
    }

    /// Looks at what is known of an id, at once and without taking memory: for who cannot wait.
    pub fn see<R>(&self, id: &Id, now: Now, look: impl FnOnce(Seen<'_>) -> R) -> R {
        if self.core.gate.is_poisoned() {
            return look(Seen::Early);
        }
        match self.core.registry.borrow().peek(now, id) {
            None => look(Seen::Nothing),
            Some(Peek { turn, .. }) if turn > self.core.gate.durable() => look(Seen::Early),
            Some(Peek { packet, age, left, expired, .. }) => look(Seen::Record { packet, age, left, expired }),
        }
    }

    /// To be called before many ids are looked up ([`Registry::approach`]).
    pub fn approach<'a>(&self, ids: impl ExactSizeIterator<Item = &'a Id>) {
        self.core.registry.borrow().approach(ids);
    }

    /// Who waits for what is registered here.
    pub(crate) fn watches(&self) -> &Rc<Watches> {
        &self.core.watches
    }

    /// The clock that all of this goes by.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        self.core.clock.as_ref()
    }

    /// How many records are held, the newest turn, and the newest durable one: for who watches.
    #[must_use]
    pub fn counts(&self) -> (usize, u64, u64) {
        let registry = self.core.registry.borrow();
        (registry.len(), registry.turn(), self.core.gate.durable())
    }

    /// How many records there may be.
    pub(crate) fn capacity(&self) -> usize {
        self.core.registry.borrow().policy().max_records
    }

    /// Goes by another policy from now on.
    pub(crate) fn set_policy(&self, policy: Policy) {
        self.core.registry.borrow_mut().set_policy(policy);
    }

    /// In how many parts [`Self::part`] gives the packets.
    pub(crate) fn parts(&self) -> usize {
        self.core.registry.borrow().parts()
    }

    /// The ids and packets of one part of the records, once they are durable: for the server's owner alone.
    ///
    /// # Errors
    /// [`Stopping`].
    pub(crate) async fn part(&self, part: usize) -> Result<Vec<(Id, Vec<u8>)>, Stopping> {
        let (packets, turn) = {
            let registry = self.core.registry.borrow();
            let packets: Vec<_> = registry.part(part).map(|(id, packet)| (id, packet.to_vec())).collect();
            (packets, registry.turn())
        };
        self.core.gate.wait(turn).await.map_err(|_| Stopping)?;
        Ok(packets)
    }

    /// When something last became durable; not since the start if there is none.
    pub(crate) fn last_sync(&self) -> Option<Instant> {
        self.core.last_sync.get()
    }

    /// How much room the records take on the disk.
    ///
    /// # Errors
    /// When the disk does not say.
    pub(crate) fn sizes(&self) -> Result<Option<Sizes>, StoreError> {
        self.core.store.borrow().as_ref().map(Store::sizes).transpose()
    }

    /// Waits until everything that was decided so far is durable.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn settled(&self) -> Result<(), Stopping> {
        let turn = self.core.registry.borrow().turn();
        self.core.gate.wait(turn).await.map_err(|_| Stopping)
    }

    /// Waits until the disk fails; tells how.
    pub async fn failed(&self) -> RecordsError {
        // No turn has this number, so the wait ends only when the gate is poisoned.
        let never = self.core.gate.wait(u64::MAX).await;
        debug_assert!(never.is_err());
        let poisoned = self.core.store.borrow().as_ref().and_then(Store::poisoned);
        let cause = poisoned.map(|cause| StoreError::clone(&cause)).or_else(|| self.core.failure.borrow().clone());
        match cause {
            Some(cause) => cause.into(),
            // The store was closed by its owner: there is nothing to wait for.
            None => std::future::pending().await,
        }
    }

    /// Makes everything that was decided durable and closes the store. Nothing is answered afterwards. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// [`RecordsError::Store`].
    pub fn close(&self) -> Result<(), RecordsError> {
        let store = self.core.store.borrow_mut().take();
        let closed = store.map_or(Ok(()), Store::close);
        self.core.gate.poison();
        Ok(closed?)
    }

    /// Waits while too many turns wait for the disk, or too many registrations for their signatures.
    async fn wait_for_room(&self) -> Result<(), Stopping> {
        loop {
            let newest = self.core.registry.borrow().turn();
            let needed = newest.saturating_sub(limits::TURNS_IN_FLIGHT - 1);
            if needed > self.core.gate.durable() || self.core.gate.is_poisoned() {
                self.core.gate.wait(needed).await.map_err(|_| Stopping)?;
            } else if self.checks.are_too_many() {
                self.checks.fewer().await;
            } else {
                return Ok(());
            }
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("committer", &self.committer).finish_non_exhaustive()
    }
}

impl Core {
    /// Hands the writes of a decision over. What it says is told later.
    fn take(self: &Rc<Self>, decision: Decision, is_learned: bool) -> Result<Withheld<Outcome>, Stopping> {
        if let Some(turn) = decision.turn {
            self.submit(turn, is_learned)?;
        }
        Ok(decision.outcome)
    }

    fn submit(self: &Rc<Self>, turn: Turn, is_learned: bool) -> Result<(), Stopping> {
        let delta = TurnDelta { turn: turn.number, changes: turn.writes.iter().map(rows::change).collect() };
        let submitted = self.store.borrow().as_ref().map(|store| match self.committer {
            Committer::Beside => store.submit(delta),
            Committer::InPlace { .. } => store.queue(delta),
        });
        if let Some(Ok(())) = submitted {
            if let Committer::InPlace { after } = self.committer {
                self.commit_after(after);
            }
            // Whoever waits for one of them sees it when it is durable.
            for write in &turn.writes {
                if let Write::PutRecord { id, .. } = write {
                    self.watches.changed(id);
                    if let Some(tell) = self.registered.borrow().as_ref().filter(|_| !is_learned) {
                        tell(id);
                    }
                }
            }
            return Ok(());
        }
        if let Some(Err(error)) = submitted {
            self.failure.borrow_mut().get_or_insert(error);
        }
        // The registry knows something that the disk does not: nothing that it says may leave any more.
        self.gate.poison();
        Err(Stopping)
    }

    /// Commits in a while what is queued then. Keeps nothing open meanwhile: whoever drops the registry has ended it.
    fn commit_after(self: &Rc<Self>, wait: Duration) {
        if self.committing.replace(true) {
            return;
        }
        let core = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            let Some(core) = core.upgrade() else { return };
            core.committing.set(false);
            let turn = core.registry.borrow().turn();
            match core.store.borrow().as_ref().map(|store| store.wait_durable(turn)) {
                Some(Ok(())) => core.gate.release(turn),
                // Closed meanwhile, which has poisoned the gate, or failed.
                _ => core.gate.poison(),
            }
        });
    }

    async fn reveal<T>(&self, withheld: Withheld<T>) -> Result<T, Stopping> {
        self.gate.wait(withheld.turn()).await.map_err(|_| Stopping)?;
        withheld.reveal(self.gate.durable()).map_err(|_| Stopping)
    }
}

impl Drop for DurableRegistry {
    fn drop(&mut self) {
        self.reports.abort();
    }
}

/// Opens the store, or makes it if nothing is there or an earlier beginning was not finished.
fn open_store(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    id: VatId,
    segment_bytes: u64,
    report: &watch::Sender<Durable>,
) -> Result<Store, RecordsError> {
    let options = || {
        let report = report.clone();
        let on_durable = move |durable| {
            report.send_replace(durable);
        };
        StoreOptions { on_durable: Some(Box::new(on_durable)), segment_bytes, ..StoreOptions::default() }
    };
    let missing = match Store::open(Arc::clone(disk), directory, id.as_bytes(), &Protection::Plain, options()) {
        Err(error @ StoreError::Missing { .. }) => error,
        opened => return Ok(opened?),
    };
    match Store::create(Arc::clone(disk), directory, id.as_bytes(), &Protection::Plain, options()) {
        // Not empty and yet without something that a store needs: that is the thing to say.
        Err(StoreError::Occupied { .. }) => Err(missing.into()),
        created => Ok(created?),
    }
}

/// Reads what the store holds. Rows of an older format are written anew.
fn restore(store: &Store, directory: &Path, policy: Policy, seed: u64, now: Now) -> Result<Registry, RecordsError> {
    let mut turn = store.position().turn;
    let mut restoring = Registry::restoring(policy, seed, now);
    let anew = rows::read(store, &mut restoring)?
        .map_err(|source| RecordsError::Row { directory: directory.to_owned(), source })?;
    for changes in anew.chunks(limits::CHANGES_PER_UPGRADE) {
        turn += 1;
        store.submit(TurnDelta { turn, changes: changes.to_vec() })?;
    }
    store.wait_durable(turn)?;
    Ok(restoring.finish(turn))
}

/// Whether the folder holds anything: then it is not a new server's.
pub(crate) fn holds_records(disk: &dyn Disk, directory: &Path) -> io::Result<bool> {
    match disk.list(directory) {
        Ok(names) => Ok(!names.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn carry(mut reported: watch::Receiver<Durable>, gate: OutputGate, last_sync: Rc<Cell<Option<Instant>>>) {
    // Ends when the store is gone, and with it the sender.
    while reported.changed().await.is_ok() {
        let durable = *reported.borrow_and_update();
        match durable {
            Durable::Turn(turn) => {
                last_sync.set(Some(Instant::now()));
                gate.release(turn);
            }
            Durable::Poisoned => gate.poison(),
        }
    }
}
