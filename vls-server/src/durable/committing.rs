//! The registry and its disk, for all that decide: every turn goes to the store here, and nothing that it says is told
//! before it is durable (R3 to R5).

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    time::Duration,
};

use checkpoint::{Durable, Store, StoreError, TurnDelta};
use tokio::{sync::watch, time::Instant};
use transport::OutputGate;

use super::{Committer, Stopping, rows};
use crate::{
    clock::Clock,
    registry::{Decision, Id, Registry, Turn, Withheld, Write},
    watches::Watches,
};

/// Is told of a registration.
pub(super) type Tell = Box<dyn Fn(&Id)>;

/// The registry and its disk.
pub(super) struct Core {
    pub(super) registry: RefCell<Registry>,
    pub(super) clock: Rc<dyn Clock>,
    /// `None` once it was closed.
    pub(super) store: RefCell<Option<Store>>,
    pub(super) gate: OutputGate,
    pub(super) watches: Rc<Watches>,
    /// Who is told of registrations.
    pub(super) registered: RefCell<Option<Tell>>,
    /// Why a turn was not taken by the store.
    pub(super) failure: RefCell<Option<StoreError>>,
    pub(super) last_sync: Rc<Cell<Option<Instant>>>,
    pub(super) committer: Committer,
    /// Of [`Committer::InPlace`]: somebody will commit what is queued.
    pub(super) committing: Cell<bool>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("committer", &self.committer).finish_non_exhaustive()
    }
}

impl Core {
    /// Hands the writes of a decision over. What it says is told later.
    pub(super) fn take<T>(self: &Rc<Self>, decision: Decision<T>, is_learned: bool) -> Result<Withheld<T>, Stopping> {
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

    pub(super) async fn reveal<T>(&self, withheld: Withheld<T>) -> Result<T, Stopping> {
        self.gate.wait(withheld.turn()).await.map_err(|_| Stopping)?;
        withheld.reveal(self.gate.durable()).map_err(|_| Stopping)
    }
}

pub(super) async fn carry(
    mut reported: watch::Receiver<Durable>,
    gate: OutputGate,
    last_sync: Rc<Cell<Option<Instant>>>,
) {
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
