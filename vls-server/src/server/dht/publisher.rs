//! Putting what is registered here into the DHT, and again every hour, at a bounded pace.
//!
//! A put asks the nodes around the key first, so what they hold is judged on the way: a server that publishes hears of a
//! newer packet before it could try to put an older one in its place.

use std::{rc::Rc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use mainline::errors::PutMutableError;
use schemas::{Timestamp, UnverifiedPacket, VatId};
use tokio::{
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

use super::{Shared, node};
use crate::{limits, registry::Id};

/// Puts what is to be put, for ever.
pub(super) async fn publish(shared: Rc<Shared>) {
    let mut puts = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            Some(()) = puts.next(), if !puts.is_empty() => {}
            id = shared.to_be_put(next), if puts.len() < limits::DHT_PUTS => {
                if shared.due(&id).await.is_some() && shared.publishing.borrow_mut().begin(&id) {
                    next = Instant::now() + shared.config.pace;
                    puts.push(put(Rc::clone(&shared), id));
                }
            }
        }
    }
}

/// Goes through the table again and again for what is to be put.
pub(super) async fn sweep(shared: Rc<Shared>) {
    loop {
        sleep(shared.config.sweep).await;
        for part in 0..shared.registry.parts() {
            for id in shared.registry.own_part(part) {
                while !shared.is_held(&id) {
                    shared.taken.notified().await;
                }
            }
            yield_now().await;
        }
    }
}

async fn put(shared: Rc<Shared>, id: Id) {
    put_once(&shared, &id).await;
    shared.publishing.borrow_mut().end(&id);
    shared.noted.notify_one();
}

async fn put_once(shared: &Shared, id: &Id) {
    shared.look_up(id, || ()).await;
    // As it is now: something newer may have been found.
    let Some((packet, timestamp)) = shared.due(id).await else { return };
    let deadline = Instant::now() + limits::DHT_DEADLINE;
    let putting = async {
        let (node, item) = (shared.node().await?, node::item(id, &packet)?);
        Some(node.put_mutable(item, None).await)
    };
    let (outcome, again) = match shared.guarded(deadline, putting).await.flatten() {
        Some(Ok(_)) => {
            shared.stored.set(shared.stored.get() + 1);
            ("stored", shared.config.republish - shared.config.republish / 4 * jitter() / u32::from(u8::MAX))
        }
        // They have a packet of a later time, which was judged here and is not higher.
        Some(Err(PutMutableError::Concurrency(_))) => ("outdated", shared.config.republish),
        Some(Err(error)) => {
            tracing::debug!(%error, "a packet could not be put into the DHT");
            ("not_stored", shared.config.retry)
        }
        None => ("not_stored", shared.config.retry),
    };
    shared.metrics.of_dht(outcome);
    shared.publishing.borrow_mut().note(id, timestamp, shared.in_a_while(again));
}

impl Shared {
    /// The next id, not before `when`. Nothing is taken by who does not wait to the end.
    async fn to_be_put(&self, when: Instant) -> Id {
        sleep_until(when).await;
        loop {
            let next = self.publishing.borrow_mut().next();
            self.taken.notify_one();
            match next {
                Some(id) => return id,
                None => self.noted.notified().await,
            }
        }
    }

    fn is_held(&self, id: &Id) -> bool {
        let is_held = self.publishing.borrow_mut().held(self.registry.clock().now().monotonic, id);
        self.noted.notify_one();
        is_held
    }

    /// What is to be put of an id, if anything is, and its time.
    async fn due(&self, id: &Id) -> Option<(Vec<u8>, Timestamp)> {
        let packet = self.registry.own(id).await?;
        let timestamp = UnverifiedPacket::parse(VatId::from_stored(*id), &packet).ok()?.timestamp();
        let is_due = self.publishing.borrow().is_due(self.in_a_while(Duration::ZERO), id, timestamp);
        is_due.then_some((packet, timestamp))
    }
}

/// A part of 255: without random numbers, all come at the same time, which is no harm.
fn jitter() -> u32 {
    let mut byte = [0];
    getrandom::fill(&mut byte).map_or(0, |()| byte[0].into())
}
