//! The committer: one thread, one group at a time, one frame and one `fdatasync` for each (R2, R4, R5).

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
    time::Instant,
};

use super::{
    Durable,
    state::{Queue, Shared, Spare},
};
use crate::{
    error::StoreError,
    frame::Kind,
    journal::{Append, Boundary, Segment, Writer},
    payload,
};

/// What the committer does next.
enum Work {
    /// Commit the turns that were just taken from the queue.
    Turns,
    /// Begin an epoch.
    Epoch(u64, [u8; 16]),
    /// Everything is durable, and nothing more will come.
    Closed,
    /// The store has stopped.
    Poisoned,
}

/// The thread: until the store is closed or poisoned.
pub(super) fn run(shared: &Shared, mut writer: Writer, on_durable: Option<Box<dyn Fn(Durable) + Send>>) {
    let report = |durable| on_durable.as_ref().into_iter().for_each(|on_durable| on_durable(durable));
    let outcome = catch_unwind(AssertUnwindSafe(|| commit_until_the_end(shared, &mut writer, &report)));
    if outcome.is_err() {
        shared.poison(StoreError::Panicked { thread: "committer" });
        // It may be the callback that panics. It has to know all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| report(Durable::Poisoned)));
    }
    shared.lock().committer_ended = true;
    shared.background.notify_all();
    shared.changed.notify_all();
}

fn commit_until_the_end(shared: &Shared, writer: &mut Writer, report: &dyn Fn(Durable)) {
    // Swapped with the queue each time, so that both keep their memory.
    let mut group = Queue::default();
    loop {
        let before = writer.at();
        let append = match shared.next_work(&mut group) {
            Work::Turns => Append {
                kind: Kind::Turns,
                turn: before.turn + group.turns as u64,
                epoch: before.epoch,
                incarnation: before.incarnation,
            },
            Work::Epoch(epoch, incarnation) => Append { kind: Kind::Epoch, turn: before.turn, epoch, incarnation },
            Work::Closed => return,
            Work::Poisoned => return report(Durable::Poisoned),
        };
        let payload = |frame: &mut Vec<u8>| {
            if append.kind == Kind::Turns {
                payload::append(frame, &group.turns);
                frame.extend_from_slice(&group.bytes);
            } else {
                payload::append(frame, &payload::Epoch { previous: before.epoch, turn: before.turn });
            }
        };
        match writer.append(&append, payload, |number, length| shared.next_segment(number, length)) {
            Ok(after) => {
                if shared.committed(&before, &after, writer.filled()) {
                    report(Durable::Turn(after.turn));
                }
            }
            Err(error) => {
                shared.poison(error);
            }
        }
    }
}

impl Shared {
    /// Waits for something to do. For turns, `group` is what to commit.
    fn next_work(&self, group: &mut Queue) -> Work {
        group.bytes.clear();
        group.turns = 0;
        let mut state = self.lock();
        loop {
            if state.poison.is_some() {
                return Work::Poisoned;
            }
            if state.queue.turns > 0 {
                mem::swap(&mut state.queue, group);
                drop(state);
                self.changed.notify_all();
                return Work::Turns;
            }
            if let Some((epoch, incarnation)) = state.epoch_request {
                return Work::Epoch(epoch, incarnation);
            }
            if state.closing {
                return Work::Closed;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
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
