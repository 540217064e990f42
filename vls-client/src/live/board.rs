//! A value that changes, and those who look at it: told in the order in which they came.
//!
//! Like tokio's `watch`, which wakes its receivers in random order. Who holds several live references is told of
//! their breaks in order (DESIGN §6), and the same simulated run must happen the same way twice.

use std::{
    cell::{Cell, Ref, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Where the value stands.
pub(super) struct Board<T> {
    shared: Rc<Shared<T>>,
}

/// One who looks at it.
pub(super) struct Reader<T> {
    shared: Rc<Shared<T>>,
    /// How often it had changed when it was looked at.
    seen: u64,
    /// Its place among those who wait.
    place: u64,
}

struct Shared<T> {
    value: RefCell<T>,
    changes: Cell<u64>,
    /// Who waits, by place.
    waiting: RefCell<BTreeMap<u64, Waker>>,
    next_place: Cell<u64>,
}

impl<T> Board<T> {
    pub(super) fn new(value: T) -> Self {
        let (changes, waiting, next_place) = (Cell::new(0), RefCell::default(), Cell::new(0));
        Self { shared: Rc::new(Shared { value: RefCell::new(value), changes, waiting, next_place }) }
    }

    pub(super) fn look(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.shared.value.borrow_mut());
        self.shared.changes.set(self.shared.changes.get() + 1);
        // Woken outside the borrow: a waker is foreign code and may come back here.
        let waiting = self.shared.waiting.take();
        waiting.into_values().for_each(Waker::wake);
    }

    /// A reader that has seen what stands there now.
    pub(super) fn reader(&self) -> Reader<T> {
        let place = self.shared.next_place.replace(self.shared.next_place.get() + 1);
        Reader { shared: self.shared.clone(), seen: self.shared.changes.get(), place }
    }
}

impl<T> Reader<T> {
    /// What stands there. It has been seen then.
    pub(super) fn look(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.changes.get();
        self.shared.value.borrow()
    }

    /// Waits until something stands there that was not seen.
    pub(super) fn changed(&mut self) -> Changed<'_, T> {
        Changed { reader: self }
    }
}

#[must_use = "nothing waits until this is awaited"]
pub(super) struct Changed<'a, T> {
    reader: &'a mut Reader<T>,
}

impl<T> Future for Changed<'_, T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Reader { shared, seen, place } = &*self.reader;
        if shared.changes.get() != *seen {
            return Poll::Ready(());
        }
        shared.waiting.borrow_mut().insert(*place, context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        self.reader.shared.waiting.borrow_mut().remove(&self.reader.place);
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
    fn readers_are_told_in_the_order_in_which_they_came_whenever_they_began_to_wait() {
        let board = Board::new("old");
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut readers: Vec<Reader<&str>> = (0..20).map(|_| board.reader()).collect();
        {
            let mut waits: Vec<Changed<'_, &str>> = readers.iter_mut().map(Reader::changed).collect();
            for (number, wait) in (0..).zip(&mut waits).collect::<Vec<_>>().into_iter().rev() {
                let waker = Waker::from(Arc::new(Note(number, woken.clone())));
                assert!(Pin::new(wait).poll(&mut Context::from_waker(&waker)).is_pending());
            }
            drop(waits.remove(7));
            board.change(|value| *value = "new");
            let expected: Vec<u32> = (0..20).filter(|number| *number != 7).collect();
            assert_eq!(*woken.lock().unwrap(), expected);
        }
        for reader in &mut readers {
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut reader.changed()).poll(&mut context).is_ready());
            assert_eq!(*reader.look(), "new");
            assert!(Pin::new(&mut reader.changed()).poll(&mut context).is_pending());
        }
    }
}
