//! A waker that knows whether its task is running: what it wakes during a step is done in the next step.
//!
//! It takes several polls to bring one message from the stream to its object and the answer back, each announced by
//! a wake-up of the session's own task. Through the scheduler every one would go to the end of the queue.
//! With this waker the driver goes on at once, so a message is answered in one visit, and all that was said in
//! one visit is written together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use futures::task::AtomicWaker;

#[derive(Debug, Default)]
pub(crate) struct StepWaker {
    /// The task that polls the driver.
    task: AtomicWaker,
    /// Whether the driver is in its loop, and will look at `again` before it leaves.
    running: AtomicBool,
    /// Whether there is something to do.
    again: AtomicBool,
}

impl StepWaker {
    /// Begins a visit of the driver, on behalf of the task of `waker`.
    pub(super) fn begin(&self, waker: &Waker) {
        self.task.register(waker);
        self.running.store(true, Ordering::SeqCst);
    }

    /// Begins a step: whatever wakes from now on asks for another one.
    pub(super) fn begin_step(&self) {
        self.again.store(false, Ordering::SeqCst);
    }

    /// Whether something has asked for another step.
    pub(super) fn wants_another(&self) -> bool {
        self.again.load(Ordering::SeqCst)
    }

    /// Ends the visit. `true` if something woke meanwhile or was left undone: the caller has the task woken then.
    #[must_use = "nobody else wakes the task for what was left undone"]
    pub(super) fn end(&self) -> bool {
        self.running.store(false, Ordering::SeqCst);
        self.wants_another()
    }

    pub(crate) fn wake_by_ref(&self) {
        self.again.store(true, Ordering::SeqCst);
        if !self.running.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Wake for StepWaker {
    fn wake(self: Arc<Self>) {
        StepWaker::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        StepWaker::wake_by_ref(self);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_during_a_visit_asks_for_a_step_and_one_outside_wakes_the_task() {
        let (count, steps) = (Arc::new(Count::default()), Arc::new(StepWaker::default()));
        let woken = || count.0.load(Ordering::SeqCst);
        let waker = Waker::from(steps.clone());
        steps.begin(&Waker::from(count.clone()));
        steps.begin_step();
        waker.wake_by_ref();
        assert!(steps.wants_another());
        assert_eq!(woken(), 0);
        steps.begin_step();
        assert!(!steps.wants_another());
        assert!(!steps.end(), "nothing was left undone");
        assert_eq!(woken(), 0);
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
    }

    #[test]
    fn what_is_left_undone_at_the_end_of_a_visit_is_told() {
        let (count, steps) = (Arc::new(Count::default()), Arc::new(StepWaker::default()));
        steps.begin(&Waker::from(count.clone()));
        steps.begin_step();
        steps.wake_by_ref();
        assert!(steps.end());
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "when the task is woken is for the caller to choose");
    }
}
