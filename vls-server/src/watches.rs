//! Who waits for which vat (DESIGN §5: `watch` tells a waiting finder the moment a vat comes, moves or goes).
//!
//! A watch is a task that looks its id up whenever the id was registered, and tells the watcher if what it sees has changed. So
//! it tells nothing that a lookup would not have told, and nothing that is not durable; of several changes while the
//! watcher is being told, it sees the last. That a lease has ended wakes nobody; each watch looks by itself from time to
//! time.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use schemas::location_capnp::{watch, watcher};
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::sleep,
};

use crate::{
    durable::DurableRegistry,
    registry::{Answer, Id},
    service::{Caller, write_answer},
};

/// Everybody who waits for a vat, by its id.
#[derive(Debug)]
pub(crate) struct Watches {
    waiting: RefCell<Waiting>,
    most: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    by_id: HashMap<Id, Rc<Notify>>,
    count: usize,
}

impl Watches {
    pub(crate) fn new(most: usize) -> Self {
        Self { waiting: RefCell::default(), most }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.waiting.borrow().count
    }

    /// What is known of this id may have changed.
    pub(crate) fn changed(&self, id: &Id) {
        if let Some(waiting) = self.waiting.borrow().by_id.get(id) {
            waiting.notify_waiters();
        }
    }

    /// Begins to wait; `None` if there are too many who do.
    fn begin(self: &Rc<Self>, id: Id) -> Option<Place> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.count >= self.most {
            return None;
        }
        waiting.count += 1;
        let changed = waiting.by_id.entry(id).or_default().clone();
        Some(Place { watches: Rc::clone(self), id, changed })
    }
}

/// A place among those who wait.
struct Place {
    watches: Rc<Watches>,
    id: Id,
    changed: Rc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.watches.waiting.borrow_mut();
        waiting.count -= 1;
        // This place has one handle, the table the other.
        if Rc::strong_count(&self.changed) <= 2 {
            waiting.by_id.remove(&self.id);
        }
    }
}

/// What a caller holds while it is told.
pub(crate) struct Watch {
    telling: AbortHandle,
    caller: Rc<Caller>,
}

impl watch::Server for Watch {}

impl Watch {
    /// Begins to tell `watcher` of `id`; `None` if too many watch already. `interval`: how often it is looked whether a
    /// lease has ended.
    pub(crate) fn begin(
        registry: Rc<DurableRegistry>,
        watches: &Rc<Watches>,
        caller: Rc<Caller>,
        id: Id,
        watcher: watcher::Client,
        interval: Duration,
    ) -> Option<Self> {
        let place = watches.begin(id)?;
        caller.begin_watch()?;
        let telling = spawn_local(async move { tell(&registry, &place, &watcher, interval).await }).abort_handle();
        Some(Self { telling, caller })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.telling.abort();
        self.caller.end_watch();
    }
}

/// Tells until it is stopped, or there is nobody to tell any more.
async fn tell(registry: &DurableRegistry, place: &Place, watcher: &watcher::Client, interval: Duration) {
    let mut told = None;
    loop {
        // Before it is looked up: what changes from now on is not missed.
        let changed = place.changed.notified();
        futures::pin_mut!(changed);
        changed.as_mut().enable();
        let Ok(answer) = registry.lookup(&place.id).await else { return };
        let seen = (answer.packet.clone(), answer.expired);
        if told.as_ref() != Some(&seen) {
            if say(watcher, &answer).await.is_err() {
                return;
            }
            told = Some(seen);
        }
        tokio::select! {
            () = changed => {}
            () = sleep(interval) => {}
        }
    }
}

async fn say(watcher: &watcher::Client, answer: &Answer) -> Result<(), capnp::Error> {
    let mut request = watcher.changed_request();
    let packet = answer.packet.as_deref().unwrap_or_default();
    write_answer(packet, (answer.age, answer.left), answer.expired, request.get().init_answer());
    request.send().promise.await.map(drop)
}
