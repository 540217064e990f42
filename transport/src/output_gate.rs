//! The output gate: nothing leaves before what caused it is durable (rules R3 and R5).
//!
//! A vat runs turns faster than a disk makes them durable. If a reply left before its turn was on disk and the
//! machine then died, the vat would wake up without having done what it had said it did; its peer would
//! remember a future that never happened. So every message is held back until the disk has caught up with the
//! turn that it could have been caused by.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Holds back everything that a vat says until what caused it is durable.
///
/// # The invariant
///
/// Let `newest` be the highest turn that [`produced`](Self::produced) was called with, and `durable` the
/// highest that [`release`](Self::release) was called with. For every message `m` of every session with this
/// gate:
///
/// 1. **Tag.** When `m` is sent, it is tagged with the `newest` of that moment; if the code of a turn runs, with that
///    of the moment after it. The turn that caused `m` has ended, or is the newest, so the tag is never lower than the turn that caused it. It may be higher, for
///    instance for a read-only call that saw a later turn's state: that is wanted, for what it tells may have
///    been caused by any turn up to `newest`.
/// 2. **Release.** No byte of `m` is handed to the network while `durable` is lower than the tag of `m`.
/// 3. **Order.** `newest` never falls, so tags never fall along a session's queue. Holding back the first
///    message therefore holds back exactly those that must wait, and the queue stays first in, first out. A
///    message of no consequence never overtakes one of consequence; Cap'n Proto relies on total order.
/// 4. **Poison.** After [`poison`](Self::poison), no further byte of any message is handed to the network by
///    any session, released or not, and every [`wait`](Self::wait) fails. There is no way back: the first
///    failed write or sync leaves unknown what the disk holds (R5), and only a new process that reads it again
///    may speak for the vat.
///
/// What this demands of the turn engine, and what the gate cannot check:
///
/// * the code of a turn runs between [`turn_begins`](Self::turn_begins) and [`turn_ends`](Self::turn_ends): it may
///   still be undone, so calls that it makes are refused instead of being sent;
/// * `produced(n)` is called when turn `n` is handed to the checkpoint, before its result is given to anyone; an
///   event that starts no turn (a read) need not call it;
/// * `release(n)` is called only after a sync that covers turn `n` has returned success;
/// * everything that leaves the process another way (a registration, a printed line, an HTTP body) waits with
///   [`wait`](Self::wait) for the turn that it tells about.
///
/// Bytes given to the network before a poisoning may still be on their way after it. They were released, so
/// they tell only what is durable.
///
/// The gate belongs to the vat's one thread; clones are handles to the same gate.
#[derive(Clone)]
pub struct OutputGate {
    state: Rc<RefCell<State>>,
}

struct State {
    newest: u64,
    durable: u64,
    poisoned: bool,
    /// The code of a turn is running.
    in_turn: bool,
    /// Who waits, by (turn, ticket): the order in which they can go on.
    waiting: BTreeMap<(u64, u64), Waker>,
    next_ticket: u64,
}

/// The gate was poisoned: a write or a sync of this vat failed, and it says nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the vat's storage failed; nothing that is not certainly durable is said any more")]
pub struct GatePoisoned;

impl OutputGate {
    /// A gate that never holds anything back: for programs without durable state.
    #[must_use]
    pub fn always_open() -> Self {
        Self::new(u64::MAX)
    }

    /// A gate of a vat that has made turn `durable` durable and no later one.
    #[must_use]
    pub fn new(durable: u64) -> Self {
        // With an open gate there is no turn to wait for, so nothing needs a tag.
        let newest = if durable == u64::MAX { 0 } else { durable };
        Self {
            state: Rc::new(RefCell::new(State {
                newest,
                durable,
                poisoned: false,
                in_turn: false,
                waiting: BTreeMap::new(),
                next_ticket: 0,
            })),
        }
    }

    /// Turn `turn` has begun to exist: whatever is sent from now on waits until it is durable.
    pub fn produced(&self, turn: u64) {
        let mut state = self.state.borrow_mut();
        state.newest = state.newest.max(turn);
    }

    /// The newest turn, with which messages are tagged now.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.state.borrow().newest
    }

    /// The highest turn that is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.state.borrow().durable
    }

    /// Every turn up to `durable` is durable: what is tagged with them may leave.
    pub fn release(&self, durable: u64) {
        let ready = {
            let mut state = self.state.borrow_mut();
            if durable <= state.durable {
                return;
            }
            state.durable = durable;
            match durable.checked_add(1) {
                // `split_off` returns those that still wait, and leaves those that can go on.
                Some(next) => {
                    let still_waiting = state.waiting.split_off(&(next, 0));
                    std::mem::replace(&mut state.waiting, still_waiting)
                }
                None => std::mem::take(&mut state.waiting),
            }
        };
        // Woken outside the borrow: a waker is foreign code and may come back here.
        ready.into_values().for_each(Waker::wake);
    }

    /// Closes the gate for good (R5). May be called more than once.
    pub fn poison(&self) {
        let waiting = {
            let mut state = self.state.borrow_mut();
            state.poisoned = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }

    /// Whether the gate was poisoned.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.state.borrow().poisoned
    }

    /// The code of a turn begins to run.
    pub fn turn_begins(&self) {
        self.state.borrow_mut().in_turn = true;
    }

    /// It has run, and was kept or undone.
    pub fn turn_ends(&self) {
        self.state.borrow_mut().in_turn = false;
    }

    /// Whether the code of a turn is running: what it wants to send could be taken back with it.
    #[must_use]
    pub fn is_in_turn(&self) -> bool {
        self.state.borrow().in_turn
    }

    /// Whether a message tagged `turn` may leave now.
    #[must_use]
    pub fn is_open(&self, turn: u64) -> bool {
        let state = self.state.borrow();
        !state.poisoned && turn <= state.durable
    }

    /// Waits until turn `turn` is durable.
    ///
    /// # Errors
    /// [`GatePoisoned`], also for a turn that was durable before the poisoning.
    pub fn wait(&self, turn: u64) -> GateWait {
        GateWait { gate: self.clone(), until: Until::Durable(turn), ticket: None }
    }

    /// Waits until the gate is poisoned. Never ends otherwise.
    pub fn poisoned(&self) -> GateWait {
        GateWait { gate: self.clone(), until: Until::Poisoned, ticket: None }
    }
}

impl fmt::Debug for OutputGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        f.debug_struct("OutputGate")
            .field("newest", &state.newest)
            .field("durable", &state.durable)
            .field("poisoned", &state.poisoned)
            .field("waiting", &state.waiting.len())
            .finish()
    }
}

/// Waits for a turn to be durable ([`OutputGate::wait`]) or for the poisoning ([`OutputGate::poisoned`]).
#[must_use = "nothing waits until this is awaited"]
pub struct GateWait {
    gate: OutputGate,
    until: Until,
    ticket: Option<u64>,
}

#[derive(Clone, Copy)]
enum Until {
    Durable(u64),
    Poisoned,
}

impl Until {
    /// The turn under which to wait in the queue: no release is as high as the poisoning is rare.
    fn turn(self) -> u64 {
        match self {
            Self::Durable(turn) => turn,
            Self::Poisoned => u64::MAX,
        }
    }
}

impl Future for GateWait {
    type Output = Result<(), GatePoisoned>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = this.gate.state.borrow_mut();
        if state.poisoned {
            return Poll::Ready(Err(GatePoisoned));
        }
        if let Until::Durable(turn) = this.until
            && turn <= state.durable
        {
            return Poll::Ready(Ok(()));
        }
        let ticket = *this.ticket.get_or_insert_with(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        state.waiting.insert((this.until.turn(), ticket), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for GateWait {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let waker = self.gate.state.borrow_mut().waiting.remove(&(self.until.turn(), ticket));
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(wait: &mut GateWait, count: &Arc<Count>) -> Poll<Result<(), GatePoisoned>> {
        Pin::new(wait).poll(&mut Context::from_waker(&Waker::from(count.clone())))
    }

    #[test]
    fn an_open_gate_holds_nothing_back() {
        let gate = OutputGate::always_open();
        assert_eq!(gate.newest(), 0);
        assert!(gate.is_open(gate.newest()));
        assert!(gate.is_open(u64::MAX));
    }

    #[test]
    fn a_turn_waits_for_its_own_release_and_not_for_an_earlier_one() {
        let gate = OutputGate::new(7);
        assert_eq!(gate.newest(), 7);
        gate.produced(8);
        gate.produced(9);
        let (count, mut wait) = (Arc::default(), gate.wait(gate.newest()));
        assert!(poll(&mut wait, &count).is_pending());
        gate.release(8);
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "turn 8 does not concern who waits for turn 9");
        assert!(poll(&mut wait, &count).is_pending());
        gate.release(9);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut wait, &count), Poll::Ready(Ok(())));
    }

    #[test]
    fn neither_the_newest_nor_the_durable_turn_ever_falls() {
        let gate = OutputGate::new(0);
        gate.produced(5);
        gate.produced(3);
        assert_eq!(gate.newest(), 5);
        gate.release(4);
        gate.release(2);
        assert_eq!(gate.durable(), 4);
        assert!(gate.is_open(4) && !gate.is_open(5));
    }

    #[test]
    fn poison_wakes_and_fails_everyone_and_is_for_good() {
        let gate = OutputGate::new(1);
        gate.produced(2);
        let (count, mut waiting) = (Arc::default(), gate.wait(2));
        assert!(poll(&mut waiting, &count).is_pending());
        gate.poison();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut waiting, &count), Poll::Ready(Err(GatePoisoned)));
        gate.release(u64::MAX);
        assert_eq!(poll(&mut gate.wait(1), &count), Poll::Ready(Err(GatePoisoned)));
        assert!(!gate.is_open(0));
    }

    #[test]
    fn waiting_for_poison_outlasts_every_release() {
        for gate in [OutputGate::new(0), OutputGate::always_open()] {
            let (count, mut wait) = (Arc::default(), gate.poisoned());
            assert!(poll(&mut wait, &count).is_pending());
            gate.release(u64::MAX);
            assert!(poll(&mut wait, &count).is_pending());
            gate.poison();
            assert!(count.0.load(Ordering::SeqCst) >= 1);
            assert_eq!(poll(&mut wait, &count), Poll::Ready(Err(GatePoisoned)));
        }
    }

    #[test]
    fn a_dropped_wait_leaves_nothing_behind() {
        let gate = OutputGate::new(0);
        let count = Arc::default();
        let (mut first, mut second) = (gate.wait(1), gate.wait(1));
        assert!(poll(&mut first, &count).is_pending());
        assert!(poll(&mut second, &count).is_pending());
        drop(first);
        assert_eq!(gate.state.borrow().waiting.len(), 1);
        gate.release(1);
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "only the one that still waits is woken");
        drop(second);
        assert!(gate.state.borrow().waiting.is_empty());
    }

    #[test]
    fn a_waker_may_come_back_to_the_gate() {
        struct Reenter(std::sync::Mutex<std::sync::mpsc::Sender<()>>);
        impl std::task::Wake for Reenter {
            fn wake(self: Arc<Self>) {
                self.0.lock().unwrap().send(()).unwrap();
            }
        }
        let gate = OutputGate::new(0);
        let (sender, receiver) = std::sync::mpsc::channel();
        let waker = Waker::from(Arc::new(Reenter(std::sync::Mutex::new(sender))));
        let mut wait = gate.wait(1);
        assert!(Pin::new(&mut wait).poll(&mut Context::from_waker(&waker)).is_pending());
        gate.release(1);
        receiver.try_recv().unwrap();
        assert!(gate.state.try_borrow_mut().is_ok());
    }

    proptest! {
        /// Whoever waits is ready exactly when its turn is durable and nothing is poisoned, and was woken if it
        /// was made to wait before that.
        #[test]
        fn waiting_agrees_with_a_model(steps in prop::collection::vec((0_u8..4, 0_u64..12), 1..80)) {
            let gate = OutputGate::new(0);
            let (mut durable, mut poisoned) = (0, false);
            let mut waits: Vec<(u64, Arc<Count>, GateWait)> = Vec::new();
            for (kind, number) in steps {
                match kind {
                    0 => {
                        let (count, mut wait) = (Arc::default(), gate.wait(number));
                        let _ = poll(&mut wait, &count);
                        waits.push((number, count, wait));
                    }
                    1 => { gate.release(number); durable = durable.max(number); }
                    2 if number == 0 => { gate.poison(); poisoned = true; }
                    _ => {
                        if let Some(index) = usize::try_from(number).unwrap().checked_rem(waits.len()) {
                            drop(waits.swap_remove(index));
                        }
                    }
                }
                for (turn, count, wait) in &mut waits {
                    let before = count.0.load(Ordering::SeqCst);
                    match poll(wait, count) {
                        Poll::Pending => prop_assert!(!poisoned && *turn > durable && before == 0),
                        Poll::Ready(Ok(())) => prop_assert!(!poisoned && *turn <= durable),
                        Poll::Ready(Err(GatePoisoned)) => prop_assert!(poisoned),
                    }
                }
            }
        }
    }
}
