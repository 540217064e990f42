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
mod committing;
mod error;
mod opening;
mod rows;

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use checkpoint::{Disk, Durable, Sizes, Store, StoreError};
use schemas::{InviteHash, VatId};
use tokio::{sync::watch, task::AbortHandle, time::Instant};
use transport::OutputGate;

pub(crate) use self::opening::holds_records;
use self::{
    checks::Checks,
    committing::{Core, carry},
    opening::{open_store, restore},
};
pub use self::{
    error::{RecordsError, Stopping},
    rows::RowError,
};
use crate::{
    clock::Clock,
    limits,
    registry::{
        Admission, Answer, Claim, Examined, Expected, Id, InviteTerms, NewInviteError, Now, Outcome, Peek, Policy,
        Seed, SourcePrefix,
    },
    watches::Watches,
};

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

        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(RecordsError::Random)?;
        let registry = restore(&store, directory, policy, Seed::of(seed), clock.now())?;
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
        admission: &Admission,
    ) -> Result<Outcome, Stopping> {
        self.wait_for_room().await?;
        let examined = {
            let mut registry = self.core.registry.borrow_mut();
            registry.examine(self.core.clock.now(), source, id, packet, expected, admission)
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

    /// Adds an invite, which holds once this has succeeded ([`Registry::invite`](crate::registry::Registry::invite)).
    ///
    /// # Errors
    /// [`Stopping`]; inside, why it was not made.
    pub async fn invite(&self, hash: InviteHash, terms: InviteTerms) -> Result<Result<(), NewInviteError>, Stopping> {
        self.wait_for_room().await?;
        let decision = self.core.registry.borrow_mut().invite(hash, terms);
        match decision {
            Ok(decision) => self.core.reveal(self.core.take(decision, false)?).await.map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Takes an invite back; tells whether there was one of this name.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn revoke_invite(&self, name: &str) -> Result<bool, Stopping> {
        self.wait_for_room().await?;
        let decision = self.core.registry.borrow_mut().revoke_invite(name);
        match decision {
            Some(decision) => self.core.reveal(self.core.take(decision, false)?).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// All invites, once they are durable: for the server's owner alone.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn invites(&self) -> Result<Vec<(InviteHash, InviteTerms)>, Stopping> {
        let invites = self.core.registry.borrow().invites();
        self.core.reveal(invites).await
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

    /// Who is admitted: the bits of work that a new id costs, if any, whether it needs an invite, and how many invites
    /// there are.
    pub(crate) fn admissions(&self) -> (Option<u8>, bool, usize) {
        let registry = self.core.registry.borrow();
        (registry.work(), registry.policy().closed, registry.invite_count())
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

    /// The packet of an id that is live and was registered here, once it is durable.
    pub(crate) async fn own(&self, id: &Id) -> Option<Vec<u8>> {
        let (packet, turn) = {
            let registry = self.core.registry.borrow();
            let (packet, turn) = registry.own(self.core.clock.now(), id)?;
            (packet.to_vec(), turn)
        };
        self.core.gate.wait(turn).await.is_ok().then_some(packet)
    }

    /// The ids of one part of the records that are live and were registered here.
    pub(crate) fn own_part(&self, part: usize) -> Vec<Id> {
        let (registry, now) = (self.core.registry.borrow(), self.core.clock.now());
        registry.part(part).map(|(id, _)| id).filter(|id| registry.own(now, id).is_some()).collect()
    }

    /// For how long a record is answered after its vat was last seen.
    pub(crate) fn lease(&self) -> Duration {
        self.core.registry.borrow().policy().lease
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

impl Drop for DurableRegistry {
    fn drop(&mut self) {
        self.reports.abort();
    }
}
