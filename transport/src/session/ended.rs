//! Tells those who wait for the end of a session, in the order in which they began to wait.
//!
//! Who holds capabilities of a session may hold some that lead through one another; those who are told in order
//! can take them down in order. tokio's `watch` wakes its receivers in random order, so it does not do here.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::SessionEnd;

/// The two ends of one announcement.
pub(super) fn announcement() -> (LastWord, Ended) {
    let shared = Rc::new(Shared::default());
    (LastWord { shared: shared.clone() }, Ended { shared })
}

#[derive(Default)]
struct Shared {
    /// Whether the session is over; and its reason, unless its task was dropped before it could give one.
    is_over: Cell<bool>,
    reason: RefCell<Option<SessionEnd>>,
    /// Who waits, by ticket.
    waiting: RefCell<BTreeMap<u64, Waker>>,
    next_ticket: Cell<u64>,
}

/// What a session's task says last. Being dropped says it too, without a reason.
pub(super) struct LastWord {
    shared: Rc<Shared>,
}

impl LastWord {
    pub(super) fn say(self, reason: SessionEnd) {
        self.shared.reason.replace(Some(reason));
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        self.shared.is_over.set(true);
        // Woken outside the borrow: a waker is foreign code and may come back here.
        let waiting = self.shared.waiting.take();
        waiting.into_values().for_each(Waker::wake);
    }
}

/// Whether it was said.
pub(super) struct Ended {
    shared: Rc<Shared>,
}

impl Ended {
    /// Waits for the last word. `None` if there was no reason in it.
    pub(super) fn wait(&self) -> Wait {
        Wait { shared: self.shared.clone(), ticket: None }
    }
}

#[must_use = "nothing waits until this is awaited"]
pub(super) struct Wait {
    shared: Rc<Shared>,
    ticket: Option<u64>,
}

impl Future for Wait {
    type Output = Option<SessionEnd>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.shared.is_over.get() {
            return Poll::Ready(this.shared.reason.borrow().clone());
        }
        let ticket = *this.ticket.get_or_insert_with(|| {
            this.shared.next_ticket.set(this.shared.next_ticket.get() + 1);
            this.shared.next_ticket.get()
        });
        this.shared.waiting.borrow_mut().insert(ticket, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.waiting.borrow_mut().remove(&ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        task::Wake,
    };

    use super::*;

    struct Note(u32, Arc<Mutex<Vec<u32>>>);
    impl Wake for Note {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[test]
    fn those_who_wait_are_woken_in_order_and_those_who_gave_up_are_not() {
        let (last_word, ended) = announcement();
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut waits: Vec<_> = (0..20).map(|number| (number, ended.wait())).collect();
        let poll = |number: u32, wait: &mut Wait| {
            let waker = Waker::from(Arc::new(Note(number, woken.clone())));
            Pin::new(wait).poll(&mut Context::from_waker(&waker))
        };
        for (number, wait) in &mut waits {
            assert!(poll(*number, wait).is_pending());
        }
        // Looking again keeps one's place.
        assert!(poll(waits[3].0, &mut waits[3].1).is_pending());
        drop(waits.remove(7));
        last_word.say(SessionEnd::Poisoned);
        let expected: Vec<u32> = (0..20).filter(|number| *number != 7).collect();
        assert_eq!(*woken.lock().unwrap(), expected);
        assert!(matches!(poll(0, &mut waits[0].1), Poll::Ready(Some(SessionEnd::Poisoned))));
        assert!(matches!(poll(99, &mut ended.wait()), Poll::Ready(Some(SessionEnd::Poisoned))));
    }

    #[test]
    fn a_task_that_is_dropped_has_said_its_last_word() {
        let (last_word, ended) = announcement();
        drop(last_word);
        let mut wait = ended.wait();
        assert!(matches!(Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(None)));
    }
}
