//! Who has a place among the TCP connections of a carrier, and who gives it up for a newcomer (DESIGN §6).
//!
//! There are so many places, and so many for each network. When they are taken, the connection that has been idle
//! for longest is closed: of the newcomer's own network if that is at its bound, else of all. An idle connection loses
//! nothing but a round trip. If nobody is idle, the newcomer is the one to go: those who are being served are not
//! disturbed by who knocks.
//!
//! Idle is who has not finished a request's head; so who sends a byte a minute makes room first.
//!
//! A request costs no more than a note of when its connection became idle. The order by these notes is made when somebody
//! has to make room: there every connection stands where it belonged when it was last looked at, which is never behind
//! its true place. Whoever is found at the front and belongs further back is put there; whoever is busy is taken out and
//! comes back when he is idle. So the one that stays at the front is the right one, and each request pays for one move at
//! most.

use std::{
    cell::{Cell, RefCell},
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
    /// Numbers connections.
    next: u64,
    times: Times,
    taken: HashMap<u64, Taken>,
    order: Order,
    networks: HashMap<Network, InNetwork>,
}

/// When a connection is thought to have become idle, and its number.
type Order = BTreeSet<(u64, u64)>;

/// Ever counts up: tells which of two has been idle for longer.
#[derive(Debug, Clone, Default)]
struct Times(Rc<Cell<u64>>);

impl Times {
    fn next(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

#[derive(Debug)]
struct Taken {
    /// `None` for who is not counted by network.
    network: Option<Network>,
    /// Where it stands in the orders, if it does.
    at: Option<u64>,
    state: Rc<State>,
}

#[derive(Debug)]
struct State {
    idle_since: Cell<Option<u64>>,
    /// It was found busy, and so stands in no order.
    is_out: Cell<bool>,
    evicted: Notify,
}

#[derive(Debug, Default)]
struct InNetwork {
    count: usize,
    order: Order,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    number: u64,
    times: Times,
    state: Rc<State>,
}

impl Places {
    pub(super) fn new(total: usize, per_network: usize) -> Self {
        Self(Rc::new(RefCell::new(Table {
            total,
            per_network,
            next: 0,
            times: Times::default(),
            taken: HashMap::new(),
            order: Order::new(),
            networks: HashMap::new(),
        })))
    }

    /// A place for a newcomer, who is idle at first. `None` if everybody who could make room is busy. A proxy has no
    /// `network`: those behind it come from many.
    pub(super) fn take(&self, network: Option<Network>) -> Option<Place> {
        let mut table = self.0.borrow_mut();
        let own = network.filter(|network| {
            table.networks.get(network).is_some_and(|in_network| in_network.count >= table.per_network)
        });
        if own.is_some() || table.taken.len() >= table.total {
            let longest_idle = table.longest_idle(own)?;
            if let Some(taken) = table.remove(longest_idle) {
                taken.state.evicted.notify_one();
            }
        }
        table.next += 1;
        let (number, times) = (table.next, table.times.clone());
        if let Some(network) = network {
            table.networks.entry(network).or_default().count += 1;
        }
        let (idle_since, is_out) = (Cell::new(Some(times.next())), Cell::new(true));
        let state = Rc::new(State { idle_since, is_out, evicted: Notify::new() });
        table.taken.insert(number, Taken { network, at: None, state: Rc::clone(&state) });
        table.put(number, state.idle_since.get());
        Some(Place { places: self.clone(), number, times, state })
    }

    /// How many are taken.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().taken.len()
    }
}

impl Place {
    /// Whether its connection is between two requests.
    pub(super) fn set_idle(&self, idle: bool) {
        self.state.idle_since.set(idle.then(|| self.times.next()));
        if idle && self.state.is_out.get() {
            self.places.0.borrow_mut().put(self.number, self.state.idle_since.get());
        }
    }

    /// Waits until the place was given to somebody else.
    pub(super) async fn evicted(&self) {
        self.state.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.borrow_mut().remove(self.number);
    }
}

impl Table {
    /// The number of the connection that has been idle for longest, of one network or of all.
    fn longest_idle(&mut self, network: Option<Network>) -> Option<u64> {
        loop {
            let order = match network {
                Some(network) => &self.networks.get(&network)?.order,
                None => &self.order,
            };
            let (at, number) = *order.first()?;
            let idle_since = self.taken.get(&number)?.state.idle_since.get();
            if idle_since == Some(at) {
                return Some(number);
            }
            self.put(number, idle_since);
        }
    }

    /// Has a connection stand where it belongs, or nowhere. Does nothing for a place that was given up.
    fn put(&mut self, number: u64, at: Option<u64>) {
        let Some(taken) = self.taken.get_mut(&number) else { return };
        let before = std::mem::replace(&mut taken.at, at);
        taken.state.is_out.set(at.is_none());
        let mut in_network = taken.network.and_then(|network| self.networks.get_mut(&network));
        if let Some(before) = before {
            self.order.remove(&(before, number));
            in_network.as_mut().map(|own| own.order.remove(&(before, number)));
        }
        if let Some(at) = at {
            self.order.insert((at, number));
            in_network.as_mut().map(|own| own.order.insert((at, number)));
        }
    }

    fn remove(&mut self, number: u64) -> Option<Taken> {
        self.put(number, None);
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
    use proptest::prelude::*;

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
        assert!(places.0.borrow().networks.is_empty() && places.0.borrow().order.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_proxy_is_not_counted_by_its_network() {
        let places = Places::new(10, 1);
        let held: Vec<Place> = (0..10).map(|_| places.take(None).unwrap()).collect();
        assert!(held.iter().all(|place| !was_evicted(place)));
    }

    /// What may happen to one of the connections.
    #[derive(Debug, Clone)]
    enum Step {
        Comes(u8),
        IsIdle(usize, bool),
        Goes(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4_u8).prop_map(Step::Comes),
            6 => (any::<usize>(), any::<bool>()).prop_map(|(which, idle)| Step::IsIdle(which, idle)),
            1 => any::<usize>().prop_map(Step::Goes),
        ]
    }

    /// A place as it is meant: whose, since which step it is idle, and whether it was taken away.
    struct Meant {
        place: Place,
        network: u8,
        idle_since: Option<usize>,
        evicted: bool,
    }

    proptest! {
        #[test]
        fn it_is_always_the_longest_idle_that_makes_room(steps in prop::collection::vec(step(), 0..200)) {
            const TOTAL: usize = 6;
            const PER_NETWORK: usize = 3;
            let places = Places::new(TOTAL, PER_NETWORK);
            let mut held: Vec<Meant> = Vec::new();
            for (time, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Comes(number) => {
                        let live = || (0..held.len()).filter(|which| !held[*which].evicted);
                        let of_own = || live().filter(|which| held[*which].network == number);
                        let crowd: Option<Vec<usize>> = if of_own().count() >= PER_NETWORK {
                            Some(of_own().collect())
                        } else {
                            (live().count() >= TOTAL).then(|| live().collect())
                        };
                        let idle = |which: &usize| held[*which].idle_since.map(|since| (since, *which));
                        let goes = crowd.as_ref().map(|crowd| crowd.iter().filter_map(idle).min());
                        let place = places.take(network(number));
                        prop_assert_eq!(place.is_some(), goes != Some(None));
                        if let Some(Some((_, which))) = goes {
                            held[which].evicted = true;
                            prop_assert!(was_evicted(&held[which].place));
                        }
                        held.extend(place.map(|place| Meant { place, network: number, idle_since: Some(time), evicted: false }));
                    }
                    Step::IsIdle(which, idle) if !held.is_empty() => {
                        let which = which % held.len();
                        held[which].place.set_idle(idle);
                        held[which].idle_since = idle.then_some(time);
                    }
                    Step::Goes(which) if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                    Step::IsIdle(..) | Step::Goes(_) => {}
                }
                prop_assert!(held.iter().all(|meant| !was_evicted(&meant.place)), "and nobody else");
                prop_assert_eq!(places.len(), held.iter().filter(|meant| !meant.evicted).count());
            }
        }
    }
}
