//! Committing: one group at a time, one frame and one `fdatasync` for each (R2, R4, R5).
//!
//! There is one [`Committer`], and whoever has it commits: nobody else can meanwhile. It lies in the shared state
//! while nobody does. Two kinds of threads take it from there:
//!
//! * the **committer thread**, which is called when a host submits and goes on with other things;
//! * a thread that has nothing else to do than to **wait** for a commit. To call the committer thread and be called
//!   back by it takes two switches between threads, on a fast disk about as long as the sync itself.
//!
//! Whoever gives it back while there is more to do calls the committer thread, so nothing that was queued while a
//! commit was under way is left lying.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    Durable,
    state::{Queue, Shared, Spare, State},
};
use crate::{
    error::StoreError,
    frame::Kind,
    journal::{Append, Boundary, Segment, Writer},
    payload,
};

/// What it takes to commit.
pub(super) struct Committer {
    writer: Writer,
    /// What is being committed. Swapped with the queue each time, so that both keep their memory.
    group: Queue,
    on_durable: Option<Box<dyn Fn(Durable) + Send>>,
}

/// What there is to commit.
#[derive(Clone, Copy)]
enum Work {
    /// The turns in the queue.
    Turns,
    /// The beginning of an epoch.
    Epoch(u64, [u8; 16]),
}

/// The committer thread: until the store is closed or poisoned.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.lock();
    // Greedy: what queued while it committed is the next group. What comes when it is idle may be the first of
    // several turns, so then it has to be called.
    let mut busy = false;
    let committer = loop {
        let called = mem::take(&mut state.called) || busy || state.closing;
        if let Some(work) = state.work().filter(|_| called) {
            state = shared.commit(state, work);
            busy = true;
        } else if let Some(committer) = state.take_for_good() {
            break committer;
        } else {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            busy = false;
        }
    };
    let poisoned = state.poison.is_some();
    drop(state);
    if poisoned {
        // It may be the callback that panics. It has to know all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| committer.report(Durable::Poisoned)));
    }
    drop(committer);
    shared.lock().committer_ended = true;
    shared.background.notify_all();
    shared.changed.notify_all();
}

impl Committer {
    pub(super) fn new(writer: Writer, on_durable: Option<Box<dyn Fn(Durable) + Send>>) -> Self {
        Self { writer, group: Queue::default(), on_durable }
    }

    /// Commits the group that was taken from the queue, or an epoch.
    fn commit(&mut self, shared: &Shared, work: Work) {
        let Self { writer, group, .. } = self;
        let (before, begun) = (writer.at(), Instant::now());
        let append = match work {
            Work::Turns => Append {
                kind: Kind::Turns,
                turn: before.turn + group.turns as u64,
                epoch: before.epoch,
                incarnation: before.incarnation,
            },
            Work::Epoch(epoch, incarnation) => Append { kind: Kind::Epoch, turn: before.turn, epoch, incarnation },
        };
        let payload = |frame: &mut Vec<u8>| match work {
            Work::Turns => {
                payload::append(frame, &group.turns);
                frame.extend_from_slice(&group.bytes);
            }
            Work::Epoch(..) => {
                payload::append(frame, &payload::Epoch { previous: before.epoch, turn: before.turn });
            }
        };
        match writer.append(&append, payload, |number, length| shared.next_segment(number, length)) {
            Ok(after) => {
                shared.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
                if let Work::Turns = work {
                    // No group has as many turns as a float cannot count.
                    #[allow(clippy::cast_precision_loss)]
                    shared.metrics.group_turns.observe(self.group.turns as f64);
                }
                if shared.committed(&before, &after, self.writer.filled()) {
                    self.report(Durable::Turn(after.turn));
                }
            }
            Err(error) => {
                shared.poison(error);
            }
        }
    }

    fn report(&self, durable: Durable) {
        self.on_durable.iter().for_each(|on_durable| on_durable(durable));
    }
}

impl State {
    /// What the committer would do now; `None` also while somebody has it, and once the store has stopped.
    fn work(&self) -> Option<Work> {
        if self.poison.is_some() || self.committer.is_none() {
            return None;
        }
        let epoch = self.epoch_request.map(|(epoch, incarnation)| Work::Epoch(epoch, incarnation));
        if self.queue.turns > 0 { Some(Work::Turns) } else { epoch }
    }

    /// Whether the committer thread has to be told that there is something to do: not while somebody commits, who
    /// goes on by himself or tells it then.
    pub(super) fn call_committer(&mut self) -> bool {
        let needed = self.work().is_some() || (self.poison.is_some() && self.committer.is_some());
        needed && !mem::replace(&mut self.called, true)
    }

    /// The committer, if it will not be needed any more: after the store has stopped, or when everything is durable
    /// and nothing more will come.
    fn take_for_good(&mut self) -> Option<Box<Committer>> {
        if self.closing || self.poison.is_some() { self.committer.take() } else { None }
    }
}

impl Shared {
    /// For a thread that can only wait for a commit: does it, unless somebody is at it; then it waits for a change.
    pub(super) fn commit_or_wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(work) = state.work() else { return self.wait_for_change(state) };
        let mut state = self.commit(state, work);
        if state.call_committer() {
            self.work.notify_one();
        }
        state
    }

    /// Takes the committer, commits, and gives it back. The lock is not held meanwhile.
    fn commit<'a>(&'a self, mut state: MutexGuard<'a, State>, work: Work) -> MutexGuard<'a, State> {
        let Some(mut committer) = state.committer.take() else { return state };
        committer.group.bytes.clear();
        committer.group.turns = 0;
        // Only then can anybody be waiting for room, and nothing else has changed yet.
        let was_full = !state.has_room(&self.limits);
        if matches!(work, Work::Turns) {
            mem::swap(&mut state.queue, &mut committer.group);
        }
        drop(state);
        if was_full {
            self.changed.notify_all();
        }
        if catch_unwind(AssertUnwindSafe(|| committer.commit(self, work))).is_err() {
            self.poison(StoreError::Panicked { thread: "committer" });
        }
        let mut state = self.lock();
        state.committer = Some(committer);
        state
    }

    /// Takes note of a frame that is durable. Whether that may be reported: not after the store has stopped.
    fn committed(&self, before: &Boundary, after: &Boundary, (filled, length): (u64, u64)) -> bool {
        let mut state = self.lock();
        if state.poison.is_some() {
            return false;
        }
        state.durable = *after;
        if after.epoch > before.epoch {
            state.epoch_request = None;
        }
        let start = if after.segment == before.segment { before.offset } else { 0 };
        let written_before = state.fold.written;
        state.fold.written += after.offset - start;
        let written = state.fold.written;
        // The background thread is woken only if it has something new to do or to wait for: on a machine with few
        // cores a needless switch for each group is dear.
        let mut wake = state.fold.unfolded() >= self.limits.fold_bytes;
        if state.fold.first_unfolded.is_none() {
            state.fold.first_unfolded = Some(Instant::now());
            wake = true;
        }
        if let Some(mark) = state.fold.mark.as_mut().filter(|mark| mark.from.is_none() && after.turn >= mark.turn) {
            let ends_here = after.turn == mark.turn;
            mark.from = Some(if ends_here { (*after, written) } else { (*before, written_before) });
            wake = true;
        }
        // Half a segment ahead is time enough to fill the next one with zeros.
        if filled > length / 2 && matches!(state.spare, Spare::None) {
            state.spare = Spare::Wanted(after.segment + 1);
            wake = true;
        }
        drop(state);
        if wake {
            self.background.notify_one();
        }
        self.changed.notify_all();
        true
    }

    /// The next segment, of at least this length: the one that was made ahead, or else made now.
    fn next_segment(&self, number: u64, length: u64) -> Result<Segment, StoreError> {
        let mut state = self.lock();
        let spare = loop {
            state.check()?;
            match mem::replace(&mut state.spare, Spare::None) {
                Spare::Ready(segment) => break Some(segment),
                Spare::None | Spare::Wanted(_) => break None,
                Spare::Preparing => {
                    state.spare = Spare::Preparing;
                    state = self.wait_for_change(state);
                }
            }
        };
        drop(state);
        match spare {
            Some(mut segment) if segment.length < length => {
                segment.write_zeros(segment.length, length)?;
                segment.sync()?;
                segment.length = length;
                Ok(segment)
            }
            Some(segment) => Ok(segment),
            // The background thread makes none meanwhile: only the committer asks it to.
            None => self.journal.make(number, self.limits.segment_bytes.max(length)),
        }
    }
}
