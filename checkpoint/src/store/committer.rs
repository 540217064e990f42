//! Committing: one group at a time, one write and one `fdatasync` for each (R2, R4, R5).
//!
//! A group has one frame for each vat that has something to commit.
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
    sync::{Arc, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    Durable, OnDurable,
    state::{Mark, Queue, Request, Shared, Spare, State, VatTag},
};
use crate::{
    base::VatPosition,
    error::StoreError,
    frame::Kind,
    journal::{Append, Head, Place, Segment, Writer},
    keys::Keys,
    limits::{SPARE_QUEUE_BYTES, SPARE_QUEUES},
    payload,
};

/// What it takes to commit.
pub(super) struct Committer {
    writer: Writer,
    /// What is being committed.
    group: Vec<Member>,
    /// Empty queues, to be swapped with full ones: so that both keep their memory.
    queues: Vec<Queue>,
    /// The same for the list of those that are ready.
    ready: Vec<VatTag>,
}

/// A vat's part of a group.
struct Member {
    tag: VatTag,
    keys: Arc<Keys>,
    before: Head,
    work: Work,
    on_durable: Option<OnDurable>,
    /// Whose callback that is ([`VatState::opening`](super::state::VatState::opening)).
    opening: u64,
}

/// What a vat has to commit.
enum Work {
    Turns(Queue),
    Request(Request),
}

/// The committer thread: until the store is closed or poisoned.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.lock();
    // Greedy: what queued while it committed is the next group. What comes when it is idle may be the first of
    // several turns, so then it has to be called.
    let mut busy = false;
    let committer = loop {
        let called = mem::take(&mut state.called) || busy || state.closing;
        if called && state.has_work() {
            state = shared.commit(state);
            busy = true;
        } else if let Some(committer) = state.take_for_good() {
            break committer;
        } else {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            busy = false;
        }
    };
    let callbacks = if state.poison.is_some() { state.take_callbacks() } else { Vec::new() };
    drop(state);
    report_poisoned(&callbacks);
    drop((callbacks, committer));
    shared.lock().committer_ended = true;
    shared.background.notify_all();
    shared.changed.notify_all();
}

/// Tells whoever is left that the store has stopped.
pub(super) fn report_poisoned(callbacks: &[OnDurable]) {
    for on_durable in callbacks {
        // It may be a callback that has panicked. It has to know all the same, and so have the others.
        let _ = catch_unwind(AssertUnwindSafe(|| on_durable(Durable::Poisoned)));
    }
}

impl Committer {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer, group: Vec::new(), queues: Vec::new(), ready: Vec::new() }
    }

    /// Commits the group that was taken.
    fn commit(&mut self, shared: &Shared) {
        let Self { writer, group, .. } = self;
        let (before, begun) = (writer.at(), Instant::now());
        let frames: Vec<Append<'_>> = group.iter().map(Member::append).collect();
        let payload = |index: usize, frame: &mut Vec<u8>| group[index].payload(frame);
        match writer.append(&frames, payload, |number, length| shared.next_segment(number, length)) {
            Ok(heads) => {
                shared.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
                let turns: usize = self.group.iter().map(Member::turns).sum();
                if turns > 0 {
                    // No group has as many turns as a float cannot count.
                    #[allow(clippy::cast_precision_loss)]
                    shared.metrics.group_turns.observe(turns as f64);
                }
                if shared.committed(before, &self.writer, &self.group, &heads) {
                    for (member, head) in self.group.iter().zip(&heads) {
                        member.on_durable.iter().for_each(|on_durable| on_durable(Durable::Turn(head.turn)));
                    }
                }
            }
            Err(error) => {
                shared.poison(error);
            }
        }
    }
}

impl Member {
    fn append(&self) -> Append<'_> {
        let before = &self.before;
        let same = Append {
            keys: &self.keys,
            kind: Kind::Turns,
            before,
            turn: before.turn + self.turns() as u64,
            epoch: before.epoch,
            incarnation: before.incarnation,
        };
        match self.work {
            Work::Turns(_) => same,
            Work::Request(Request::Genesis) => Append { kind: Kind::Genesis, ..same },
            Work::Request(Request::Epoch(epoch, incarnation)) => {
                Append { kind: Kind::Epoch, epoch, incarnation, ..same }
            }
        }
    }

    fn payload(&self, frame: &mut Vec<u8>) {
        match &self.work {
            Work::Turns(queue) => {
                payload::append(frame, &queue.turns);
                frame.extend_from_slice(&queue.bytes);
            }
            Work::Request(Request::Genesis) => payload::append(frame, &payload::Genesis { vat: self.keys.vat() }),
            Work::Request(Request::Epoch(..)) => {
                payload::append(frame, &payload::Epoch { previous: self.before.epoch, turn: self.before.turn });
            }
        }
    }

    fn turns(&self) -> usize {
        match &self.work {
            Work::Turns(queue) => queue.turns,
            Work::Request(_) => 0,
        }
    }
}

impl State {
    /// Whether the committer would have something to do now; not while somebody has it, and not once the store has
    /// stopped.
    fn has_work(&self) -> bool {
        self.poison.is_none() && self.committer.is_some() && !self.ready.is_empty()
    }

    /// Moves what there is to commit into a group. Whoever was ready first is taken first.
    fn take_group(&mut self, committer: &mut Committer, group_vats: usize) {
        let mut ready = mem::replace(&mut self.ready, mem::take(&mut committer.ready));
        for (number, tag) in ready.drain(..).enumerate() {
            if number >= group_vats {
                self.ready.push(tag);
                continue;
            }
            let Some(vat) = self.vats.get_mut(&tag) else { continue };
            vat.ready = false;
            let work = if vat.queue.turns > 0 {
                let queue = mem::replace(&mut vat.queue, committer.queues.pop().unwrap_or_default());
                self.queued_turns -= queue.turns;
                self.queued_bytes -= queue.bytes.len();
                Work::Turns(queue)
            } else if let Some(request) = vat.request {
                Work::Request(request)
            } else {
                continue;
            };
            let after_turns = matches!(work, Work::Turns(_)) && vat.request.is_some();
            let (keys, on_durable) = (Arc::clone(&vat.keys), vat.on_durable.take());
            committer.group.push(Member { tag, keys, before: vat.durable, work, on_durable, opening: vat.opening });
            if after_turns {
                self.make_ready(&tag);
            }
        }
        committer.ready = ready;
    }

    /// Gives back what a group had taken, which is committed or never will be. What is left are callbacks of vats that
    /// were closed meanwhile.
    fn give_back(&mut self, committer: &mut Committer) -> Vec<OnDurable> {
        let mut left = Vec::new();
        for Member { tag, work, on_durable, opening, .. } in committer.group.drain(..) {
            if let Work::Turns(mut queue) = work
                && committer.queues.len() < SPARE_QUEUES
                && queue.bytes.capacity() <= SPARE_QUEUE_BYTES
            {
                queue.clear();
                committer.queues.push(queue);
            }
            match self.vats.get_mut(&tag).filter(|vat| vat.open && vat.opening == opening) {
                Some(vat) => vat.on_durable = on_durable,
                None => left.extend(on_durable),
            }
        }
        left
    }

    /// Whether the committer thread has to be told that there is something to do: not while somebody commits, who
    /// goes on by himself or tells it then.
    pub(super) fn call_committer(&mut self) -> bool {
        let needed = self.has_work() || (self.poison.is_some() && self.committer.is_some());
        needed && !mem::replace(&mut self.called, true)
    }

    /// The committer, if it will not be needed any more: after the store has stopped, or when everything is durable
    /// and nothing more will come.
    fn take_for_good(&mut self) -> Option<Box<Committer>> {
        if self.closing || self.poison.is_some() { self.committer.take() } else { None }
    }
}

impl State {
    /// Compares a group that is durable with the fold under way: whether the fold can go on.
    ///
    /// It can once every turn that it ends with is durable. Replay will begin after the last of these, or else before
    /// the first group that also has a later turn: then it will read turns again that the base has already.
    fn advance_mark(&mut self, group: &[Member], heads: &[Head], before: (Place, u64)) -> bool {
        let Self { fold, vats, at, .. } = self;
        let after = (*at, fold.written);
        let Some(mark) = fold.mark.as_mut().filter(|mark| mark.waiting > 0) else { return false };
        let members = || group.iter().zip(heads);
        let known = |mark: &Mark, member: &Member| mark.vats.get(&member.tag).map(|position| position.turn);
        let reached = |mark: &Mark, member: &Member, head: &Head| {
            known(mark, member).is_some_and(|turn| (member.before.turn + 1..=head.turn).contains(&turn))
        };
        mark.waiting -= members().filter(|(member, head)| reached(mark, member, head)).count();
        if mark.from.is_none() {
            let later =
                |(member, head): (&Member, &Head)| head.turn > known(mark, member).unwrap_or(member.before.turn);
            if members().any(later) {
                mark.from = Some(before);
                mark.take_heads(vats);
                for member in group {
                    mark.vats.entry(member.tag).and_modify(|position| position.head = member.before);
                }
            } else {
                // What the group has of a vat that had nothing to fold is no row, but its next frame follows on it.
                for (member, head) in members() {
                    let position = VatPosition { vat: member.keys.vat(), turn: head.turn, head: *head };
                    mark.vats.entry(member.tag).or_insert(position);
                }
            }
        }
        if mark.waiting > 0 {
            return false;
        }
        if mark.from.is_none() {
            mark.from = Some(after);
            mark.take_heads(vats);
        }
        true
    }
}

impl Shared {
    /// For a thread that can only wait for a commit: does it, unless somebody is at it; then it waits for a change.
    pub(super) fn commit_or_wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if !state.has_work() {
            return self.wait_for_change(state);
        }
        let mut state = self.commit(state);
        if state.call_committer() {
            self.work.notify_one();
        }
        state
    }

    /// Takes the committer, commits, and gives it back. The lock is not held meanwhile.
    fn commit<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(mut committer) = state.committer.take() else { return state };
        // Only then can anybody be waiting for room, and nothing else has changed yet.
        let was_full = state.is_full(&self.limits);
        state.take_group(&mut committer, self.limits.group_vats);
        drop(state);
        if was_full {
            self.changed.notify_all();
        }
        debug_assert!(!committer.group.is_empty(), "whoever is ready has something to commit");
        if catch_unwind(AssertUnwindSafe(|| committer.commit(self))).is_err() {
            self.poison(StoreError::Panicked { thread: "committer" });
        }
        let mut state = self.lock();
        let left = state.give_back(&mut committer);
        state.committer = Some(committer);
        if left.is_empty() {
            return state;
        }
        let poisoned = state.poison.is_some();
        drop(state);
        if poisoned {
            report_poisoned(&left);
        }
        drop(left);
        self.lock()
    }

    /// Takes note of a group that is durable. Whether that may be reported: not after the store has stopped.
    fn committed(&self, before: Place, writer: &Writer, group: &[Member], heads: &[Head]) -> bool {
        let (after, (filled, length)) = (writer.at(), writer.filled());
        let mut state = self.lock();
        if state.poison.is_some() {
            return false;
        }
        state.at = after;
        for (member, head) in group.iter().zip(heads) {
            let Some(vat) = state.vats.get_mut(&member.tag) else { continue };
            vat.durable = *head;
            if matches!(member.work, Work::Request(_)) {
                vat.request = None;
                state.touch(&member.tag);
            }
        }
        let start = if after.segment == before.segment { before.offset } else { 0 };
        let written_before = state.fold.written;
        state.fold.written += after.offset - start;
        // The background thread is woken only if it has something new to do or to wait for: on a machine with few
        // cores a needless switch for each group is dear.
        let mut wake = state.fold.unfolded() >= self.limits.fold_bytes;
        if state.fold.first_unfolded.is_none() {
            state.fold.first_unfolded = Some(Instant::now());
            wake = true;
        }
        wake |= state.advance_mark(group, heads, (before, written_before));
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
