//! Who has a place among the TCP connections of a carrier, and who gives it up for a newcomer (DESIGN §6).
//!
//! There are so many places, and so many for each network. When they are taken, the connection that has been idle
//! for longest is closed: of the newcomer's own network if that is at its bound, else of all. An idle connection loses
//! nothing but a round trip. If nobody is idle, the newcomer is the one to go: those who are being served are not
//! disturbed by who knocks.
//!
//! Idle is who has not finished a request's head; so who sends a byte a minute makes room first.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use schemas::Network;
use tokio::sync::Notify;

/// The places of one carrier.
#[derive(Debug, Clone)]
pub(super) struct Places(Rc<RefCell<Table>>);

#[derive(Debug)]
struct Table {
    total: usize,
    per_network: usize,
    /// Ever counts up: numbers connections, and tells which of two has been idle for longer.
    next: u64,
    taken: HashMap<u64, Taken>,
    idle: BTreeSet<(u64, u64)>,
    networks: HashMap<Network, InNetwork>,
}

#[derive(Debug)]
struct Taken {
    /// `None` for who is not counted by network.
    network: Option<Network>,
    /// Since when, as a number from `next`.
    idle_since: Option<u64>,
    evicted: Rc<Notify>,
}

#[derive(Debug, Default)]
struct InNetwork {
    count: usize,
    idle: BTreeSet<(u64, u64)>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    number: u64,
    evicted: Rc<Notify>,
}

impl Places {
    pub(super) fn new(total: usize, per_network: usize) -> Self {
        Self(Rc::new(RefCell::new(Table {
            total,
            per_network,
            next: 0,
            taken: HashMap::new(),
            idle: BTreeSet::new(),
            networks: HashMap::new(),
        })))
    }

    /// A place for a newcomer, who is idle at first. `None` if everybody who could make room is busy. A proxy has no
    /// `network`: those behind it come from many.
    pub(super) fn take(&self, network: Option<Network>) -> Option<Place> {
        let mut table = self.0.borrow_mut();
        let own = network.and_then(|network| table.networks.get(&network));
        let evicted = match own.filter(|own| own.count >= table.per_network) {
            Some(own) => Some(own.idle.first()?.1),
            None if table.taken.len() >= table.total => Some(table.idle.first()?.1),
            None => None,
        };
        if let Some(taken) = evicted.and_then(|number| table.remove(number)) {
            taken.evicted.notify_one();
        }
        let (number, evicted) = (table.tick(), Rc::new(Notify::new()));
        if let Some(network) = network {
            table.networks.entry(network).or_default().count += 1;
        }
        table.taken.insert(number, Taken { network, idle_since: None, evicted: Rc::clone(&evicted) });
        table.set_idle(number, true);
        Some(Place { places: self.clone(), number, evicted })
    }

    /// How many are taken.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().taken.len()
    }
}

impl Place {
    /// Whether its connection is between two requests.
    pub(super) fn set_idle(&self, idle: bool) {
        self.places.0.borrow_mut().set_idle(self.number, idle);
    }

    /// Waits until the place was given to somebody else.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.borrow_mut().remove(self.number);
    }
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does nothing for a place that was given up.
    fn set_idle(&mut self, number: u64, idle: bool) {
        let now = self.tick();
        let Some(taken) = self.taken.get_mut(&number) else { return };
        let before = std::mem::replace(&mut taken.idle_since, idle.then_some(now));
        let after = taken.idle_since;
        let mut in_network = taken.network.and_then(|network| self.networks.get_mut(&network));
        if let Some(since) = before {
            self.idle.remove(&(since, number));
            in_network.as_mut().map(|own| own.idle.remove(&(since, number)));
        }
        if let Some(since) = after {
            self.idle.insert((since, number));
            in_network.as_mut().map(|own| own.idle.insert((since, number)));
        }
    }

    fn remove(&mut self, number: u64) -> Option<Taken> {
        self.set_idle(number, false);
        let taken = self.taken.remove(&number)?;
        if let Some(network) = taken.network
            && let Some(own) = self.networks.get_mut(&network)
        {
            own.count -= 1;
            if own.count == 0 {
                self.networks.remove(&network);
            }
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn network(last: u8) -> Option<Network> {
        Some(Network::of([192, 0, last, 1].into()))
    }

    fn was_evicted(place: &Place) -> bool {
        place.evicted().now_or_never().is_some()
    }

    #[test]
    fn the_longest_idle_makes_room_and_the_busy_never() {
        let places = Places::new(3, 3);
        let held: Vec<Place> = (0..3).map(|n| places.take(network(n)).unwrap()).collect();
        held[0].set_idle(false);
        let newcomer = places.take(network(9)).unwrap();
        assert!(!was_evicted(&held[0]), "it is being served");
        assert!(was_evicted(&held[1]));
        assert!(!was_evicted(&held[2]));
        held[0].set_idle(true);
        // Idle again, but for a shorter time than the others.
        let another = places.take(network(9)).unwrap();
        assert!(was_evicted(&held[2]) && !was_evicted(&held[0]));
        for busy in [&held[0], &newcomer, &another] {
            busy.set_idle(false);
        }
        assert!(places.take(network(10)).is_none(), "nobody is idle");
        // Those that were evicted say what they do for a while yet; it changes nothing.
        held[1].set_idle(true);
        assert!(places.take(network(10)).is_none());
        drop(another);
        assert!(places.take(network(10)).is_some());
    }

    #[test]
    fn a_crowded_network_makes_room_within_itself() {
        let places = Places::new(10, 2);
        let other = places.take(network(1)).unwrap();
        let own: Vec<Place> = (0..2).map(|_| places.take(network(2)).unwrap()).collect();
        let newcomer = places.take(network(2)).unwrap();
        assert!(was_evicted(&own[0]) && !was_evicted(&own[1]) && !was_evicted(&other));
        own[1].set_idle(false);
        newcomer.set_idle(false);
        assert!(places.take(network(2)).is_none());
        assert_eq!(places.len(), 3);
        drop((own, newcomer, other));
        assert_eq!(places.len(), 0);
        assert!(places.0.borrow().networks.is_empty() && places.0.borrow().idle.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_proxy_is_not_counted_by_its_network() {
        let places = Places::new(10, 1);
        let held: Vec<Place> = (0..10).map(|_| places.take(None).unwrap()).collect();
        assert!(held.iter().all(|place| !was_evicted(place)));
    }
}
