//! Registrations that wait for their signatures to be verified.
//!
//! One that comes when none is waiting is verified on the spot. From then on, until everybody who was ready has had a
//! turn, others gather and are verified together; while that goes on, beside the thread that serves if there are many,
//! the next ones gather. So the batches grow with the load, and nobody waits for one to fill.
//!
//! They are admitted in the order in which they came.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use schemas::{RecordError, SignedPacket, UnverifiedPacket, verify_all};
use tokio::{
    sync::{Notify, oneshot},
    task::{JoinError, spawn_blocking, spawn_local, yield_now},
};

use super::{Committer, Core, Stopping};
use crate::{
    limits,
    registry::{Candidate, Origin, Outcome, Withheld},
};

/// What becomes of a registration.
type Taken = Result<Withheld<Outcome>, Stopping>;

/// A registration that waits.
#[derive(Debug)]
struct Waiting {
    candidate: Box<Candidate>,
    taken: oneshot::Sender<Taken>,
}

/// The same without its record, which is being verified.
#[derive(Debug)]
struct Undecided {
    origin: Origin,
    taken: oneshot::Sender<Taken>,
}

type Verified = Result<SignedPacket, RecordError>;

/// All that wait.
#[derive(Debug)]
pub(super) struct Checks {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Rc<Core>,
    gathered: RefCell<Vec<Waiting>>,
    /// Somebody will come for those who gather.
    gathering: Cell<bool>,
    fewer: Notify,
}

impl Checks {
    pub(super) fn new(core: Rc<Core>) -> Self {
        let (gathered, gathering) = (RefCell::default(), Cell::new(false));
        Self { shared: Rc::new(Shared { core, gathered, gathering, fewer: Notify::new() }) }
    }

    /// Whether another one has to wait outside.
    pub(super) fn are_too_many(&self) -> bool {
        self.shared.gathered.borrow().len() >= limits::UNVERIFIED
    }

    /// Waits until those who have gathered are being verified.
    pub(super) async fn fewer(&self) {
        self.shared.fewer.notified().await;
    }

    /// Has a signature verified, and the registration decided. Both are done even if the caller goes away.
    pub(super) async fn check(&self, candidate: Box<Candidate>) -> Taken {
        let shared = &self.shared;
        if !shared.gathering.replace(true) {
            spawn_local(Shared::verify_gathered(Rc::downgrade(shared)));
            let (record, origin) = candidate.into_parts();
            return shared.admit(origin, record.verify());
        }
        let (taken, told) = oneshot::channel();
        shared.gathered.borrow_mut().push(Waiting { candidate, taken });
        // Not told: the thread that verifies has panicked over this batch, or the registry is gone.
        told.await.unwrap_or(Err(Stopping))
    }
}

impl Shared {
    /// Sees to everybody who gathers, until nobody does. Keeps nothing open while it waits: whoever drops the registry
    /// has ended it.
    async fn verify_gathered(weak: Weak<Self>) {
        // This begins when everybody has had a turn who was ready when it was spawned.
        loop {
            let Some(shared) = weak.upgrade() else { return };
            let Some((records, others)) = shared.next_batch() else { return };
            let in_place = shared.core.committer != Committer::Beside || records.len() <= limits::CHECKS_IN_PLACE;
            drop(shared);
            let verified = verify(records, in_place).await;
            let mut batch = others.into_iter().zip(verified.unwrap_or_default());
            loop {
                let Some(shared) = weak.upgrade() else { return };
                let admitted = shared.admit_some(&mut batch);
                if admitted < limits::ADMITTED_AT_ONCE {
                    break;
                }
                drop(shared);
                yield_now().await;
            }
        }
    }

    /// Takes those who have gathered; `None` if there are none, and then nobody comes for the next ones.
    fn next_batch(&self) -> Option<(Vec<UnverifiedPacket>, Vec<Undecided>)> {
        let batch = self.gathered.take();
        self.fewer.notify_waiters();
        self.gathering.set(!batch.is_empty());
        let parts = batch.into_iter().map(|Waiting { candidate, taken }| {
            let (record, origin) = candidate.into_parts();
            (record, Undecided { origin, taken })
        });
        Some(parts.unzip()).filter(|(records, _): &(Vec<_>, Vec<_>)| !records.is_empty())
    }

    /// Decides about the next ones of a batch; says about how many.
    fn admit_some(&self, batch: &mut impl Iterator<Item = (Undecided, Verified)>) -> usize {
        let mut admitted = 0;
        for (Undecided { origin, taken }, verified) in batch.take(limits::ADMITTED_AT_ONCE) {
            admitted += 1;
            // Nobody has to be there to be told.
            let _ = taken.send(self.admit(origin, verified));
        }
        admitted
    }

    fn admit(&self, origin: Origin, verified: Verified) -> Taken {
        if self.core.gate.is_poisoned() {
            return Err(Stopping);
        }
        let is_learned = origin.is_learned();
        let decision = self.core.registry.borrow_mut().admit(self.core.clock.now(), origin, verified);
        self.core.take(decision, is_learned)
    }
}

async fn verify(records: Vec<UnverifiedPacket>, in_place: bool) -> Result<Vec<Verified>, JoinError> {
    if in_place {
        return Ok(records.into_iter().map(UnverifiedPacket::verify).collect());
    }
    spawn_blocking(|| verify_all(records)).await
}
