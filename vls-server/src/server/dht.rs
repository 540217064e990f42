//! The Mainline DHT (BEP 5, 42, 44), if the operator wants it: a network of millions of nodes that keeps any signed packet
//! under its key, which is how the service goes past one machine (DESIGN §4, §5).
//!
//! The packets are the same bytes, so what is put there is read by pkarr's clients, and what they put is read here. What
//! comes from there is judged by the registry like all that is learned. Nobody in the DHT says when a vat was last seen:
//! what is found is held for a few minutes at a time, and never put there again by who has only found it, so no record
//! lives on because servers tell each other of it.
//!
//! The `mainline` crate drives the protocol on a thread of its own, and panics when that thread has ended. It is a guest
//! here: a panic of it ends what was asked of it and has it started anew, and whatever it is asked has a deadline.

mod node;
mod publisher;

use std::{
    cell::{Cell, RefCell},
    panic::AssertUnwindSafe,
    rc::Rc,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use mainline::{MutableItem, async_dht::AsyncDht};
use schemas::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet, spawn_local},
    time::{Instant, sleep, timeout_at},
};

pub use self::node::{Bootstrap, BootstrapError, DhtConfig};
use super::{
    metrics::Metrics,
    status::{DhtStatus, Reached},
};
use crate::{
    durable::{DurableRegistry, Seen},
    limits,
    peering::{Heard, Publishing},
    registry::{Claim, Id, Outcome, SourcePrefix},
};

/// This server's part in the DHT. Ends when it is dropped.
pub(super) struct Dht {
    shared: Rc<Shared>,
    tasks: Vec<AbortHandle>,
    lookups: RefCell<JoinSet<()>>,
}

struct Shared {
    config: DhtConfig,
    registry: Rc<DurableRegistry>,
    metrics: Rc<Metrics>,
    state: watch::Sender<State>,
    /// It is of no use any more.
    broken: Notify,
    /// Lookups in a row that nobody has answered.
    silent: Cell<u32>,
    publishing: RefCell<Publishing>,
    /// There is something to put.
    noted: Notify,
    /// There is room for more.
    taken: Notify,
    stored: Cell<u64>,
}

enum State {
    /// Asked of in a moment.
    Joining,
    Open(AsyncDht),
    /// It cannot be joined, or had to be started anew.
    Resting,
}

impl Dht {
    /// Takes part from now on.
    pub(super) fn join(config: DhtConfig, registry: Rc<DurableRegistry>, metrics: Rc<Metrics>) -> Self {
        let shared = Rc::new(Shared {
            config,
            registry,
            metrics,
            state: watch::Sender::new(State::Joining),
            broken: Notify::new(),
            silent: Cell::new(0),
            publishing: RefCell::new(Publishing::new(limits::DHT_PUBLISHED)),
            noted: Notify::new(),
            taken: Notify::new(),
            stored: Cell::new(0),
        });
        let tasks = vec![
            spawn_local(Rc::clone(&shared).keep()).abort_handle(),
            spawn_local(publisher::publish(Rc::clone(&shared))).abort_handle(),
            spawn_local(publisher::sweep(Rc::clone(&shared))).abort_handle(),
        ];
        Self { shared, tasks, lookups: RefCell::default() }
    }

    pub(super) fn config(&self) -> &DhtConfig {
        &self.shared.config
    }

    /// Something was registered here.
    pub(super) fn registered(&self, id: &Id) {
        self.shared.publishing.borrow_mut().registered(id);
        self.shared.noted.notify_one();
    }

    /// Looks an id up, and has the registry judge what is found. Is heard with the first live record; those that come later
    /// are judged all the same.
    pub(super) fn look_up(&self, id: Id) -> impl Future<Output = Heard> + 'static + use<> {
        let (tell, mut told) = watch::channel(Heard::Nothing);
        let shared = Rc::clone(&self.shared);
        let mut lookups = self.lookups.borrow_mut();
        while lookups.try_join_next().is_some() {}
        lookups.spawn_local(async move {
            let heard = shared.look_up(&id, || _ = tell.send_replace(Heard::Live)).await;
            shared.metrics.of_dht(if heard == Heard::Live { "found" } else { "unknown" });
        });
        async move {
            // An error: who tells has come to the end.
            let _ = told.wait_for(|heard| *heard == Heard::Live).await;
            *told.borrow()
        }
    }

    /// How it is doing, for the operator.
    pub(super) fn status(&self) -> DhtStatus {
        let reached = match &*self.shared.state.borrow() {
            State::Joining => Reached::Dialling,
            State::Open(_) => Reached::Open,
            State::Resting => Reached::Failed,
        };
        let waiting = self.shared.publishing.borrow().waiting();
        DhtStatus { reached, stored: self.shared.stored.get(), waiting }
    }
}

impl Drop for Dht {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    /// Joins, and joins again when it has broken.
    async fn keep(self: Rc<Self>) {
        let mut rest = limits::DHT_REJOIN;
        loop {
            match node::open(&self.config).await {
                Ok(node) => {
                    tracing::info!("taking part in the Mainline DHT");
                    let begun = Instant::now();
                    self.state.send_replace(State::Open(node));
                    self.broken.notified().await;
                    tracing::warn!("nobody in the Mainline DHT answers; joining it anew");
                    if begun.elapsed() >= limits::LONGEST_REDIAL {
                        rest = limits::DHT_REJOIN;
                    }
                }
                // Once, and not every minute that a line is down.
                Err(error) if rest == limits::DHT_REJOIN => {
                    tracing::warn!(%error, "the Mainline DHT could not be joined; trying again");
                }
                Err(error) => tracing::debug!(%error, "the Mainline DHT could not be joined"),
            }
            // With it the thread of the node ends.
            self.state.send_replace(State::Resting);
            self.silent.set(0);
            sleep(rest).await;
            rest = (rest * 2).min(limits::LONGEST_REDIAL);
        }
    }

    /// The node, once there is one; `None` if there will not be one soon.
    async fn node(&self) -> Option<AsyncDht> {
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| !matches!(state, State::Joining)).await.ok()?;
        match &*known {
            State::Open(node) => Some(node.clone()),
            State::Joining | State::Resting => None,
        }
    }

    /// Looks an id up until everybody has been heard who is to be heard, or it takes too long. `on_live` is told of the
    /// first live record.
    async fn look_up(&self, id: &Id, on_live: impl Fn()) -> Heard {
        let deadline = Instant::now() + limits::DHT_DEADLINE;
        let heard = Cell::new(Heard::Nothing);
        let looking = async {
            let Some(node) = self.node().await else { return };
            let mut found = node.get_mutable_detailed(id, None, None);
            let mut packets: Vec<Vec<u8>> = Vec::new();
            while let Some(item) = found.items.next().await {
                let Some(packet) = node::packet(&item).filter(|packet| !packets.contains(packet)) else { continue };
                if packets.len() >= limits::DHT_VERSIONS {
                    return;
                }
                if self.learn(id, &item, &packet).await {
                    heard.set(Heard::Live);
                    on_live();
                }
                packets.push(packet);
            }
            self.heard_by(found.outcome.recv().await.responded());
        };
        self.guarded(deadline, looking).await;
        heard.get()
    }

    /// Whether it was a record that is live now. One that is held and lives here already has nothing to gain.
    async fn learn(&self, id: &Id, item: &MutableItem, packet: &[u8]) -> bool {
        let now = self.registry.clock().now();
        let is_it =
            |seen: Seen<'_>| matches!(seen, Seen::Record { packet: held, expired: false, .. } if held == packet);
        if self.registry.see(id, now, is_it) {
            return true;
        }
        let signed = Timestamp::from_micros(u64::try_from(item.seq()).unwrap_or(0));
        // It was alive when it signed. Since then, nobody knows.
        let lease = self.registry.lease();
        let left = limits::DHT_LEASE.min(lease);
        let claim = Claim { age: now.wall.saturating_since(signed).min(lease - left), left };
        let outcome = self.registry.learn(SourcePrefix::DHT, id, packet, claim).await;
        matches!(outcome, Ok(Outcome::Stored { lease } | Outcome::Refreshed { lease }) if !lease.is_zero())
    }

    /// Runs what is asked of the crate; `None` if it took too long, or panicked, which ends the node.
    async fn guarded<T>(&self, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
        match timeout_at(deadline, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(done)) => Some(done),
            Ok(Err(_)) => {
                self.broken.notify_waiters();
                None
            }
            Err(_) => None,
        }
    }

    /// So many have answered a lookup.
    fn heard_by(&self, nodes: u32) {
        let silent = if nodes > 0 { 0 } else { self.silent.get() + 1 };
        self.silent.set(silent);
        if silent == limits::DHT_SILENCE {
            self.broken.notify_waiters();
        }
    }

    fn in_a_while(&self, wait: Duration) -> Duration {
        self.registry.clock().now().monotonic + wait
    }
}
