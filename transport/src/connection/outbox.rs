//! What waits to be written to one peer: in order, and only as far as the output gate has released it.
//!
//! All waiting messages lie behind one another in one buffer, so everything that may leave is one write.

use std::collections::VecDeque;

use crate::{OutputGate, frames, limits};

/// Where one message ends in the stream of everything ever queued.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The newest turn when the message was sent: it waits until that turn is durable. Not said yet of the last
    /// [`untagged`](Outbox::untagged).
    turn: u64,
    /// Position behind its last byte, counted from the beginning of the session.
    end: u64,
    /// Its size, if it is an answer to the peer and not a call of our own.
    answer_bytes: usize,
}

/// The queue of one session. First in, first out; see [`OutputGate`] for the invariant that it keeps.
#[derive(Debug)]
pub(crate) struct Outbox {
    gate: OutputGate,
    /// Queued and not yet written, from `start` on; what is before was written.
    bytes: Vec<u8>,
    start: usize,
    /// One for each message that is not completely written.
    marks: VecDeque<Mark>,
    /// How many of `marks`, from the front, were released.
    released_marks: usize,
    /// How many of `marks`, from the back, were sent in the turn that runs.
    untagged: usize,
    /// Bytes ever written, queued and released. `written <= released <= queued`.
    written: u64,
    released: u64,
    queued: u64,
    /// Bytes of answers among `marks`.
    answer_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(gate: OutputGate) -> Self {
        Self {
            gate,
            bytes: Vec::new(),
            start: 0,
            marks: VecDeque::new(),
            released_marks: 0,
            untagged: 0,
            written: 0,
            released: 0,
            queued: 0,
            answer_bytes: 0,
        }
    }

    /// Queues what is said before all messages.
    pub(crate) fn push_greeting(&mut self, greeting: &[u8]) {
        debug_assert_eq!(self.queued, 0, "it comes first");
        self.bytes.extend_from_slice(greeting);
        self.mark(greeting.len(), false);
    }

    /// Queues a message, tagged with the newest turn.
    pub(crate) fn push(&mut self, segments: &[&[u8]], is_answer: bool) {
        if self.start > self.bytes.len() / 2 {
            // Moves less than it frees, so each byte is moved once at most on average.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let before = self.bytes.len();
        frames::encode(segments, &mut self.bytes);
        self.mark(self.bytes.len() - before, is_answer);
    }

    /// The last `length` bytes are a message.
    fn mark(&mut self, length: usize, is_answer: bool) {
        self.tag();
        self.queued += length as u64;
        // The code of a turn calls nobody, but what it lets go of is released, and the peer can tell.
        self.untagged += usize::from(self.gate.is_in_turn());
        let turn = self.gate.newest();
        debug_assert!(self.marks.back().is_none_or(|last| last.turn <= turn), "tags never fall");
        let answer_bytes = if is_answer { length } else { 0 };
        self.answer_bytes += answer_bytes;
        self.marks.push_back(Mark { turn, end: self.queued, answer_bytes });
    }

    /// Gives messages that were sent in a turn its number, once it has ended.
    fn tag(&mut self) {
        if self.untagged > 0 && !self.gate.is_in_turn() {
            let newest = self.gate.newest();
            self.marks.iter_mut().rev().take(self.untagged).for_each(|mark| mark.turn = newest);
            self.untagged = 0;
        }
    }

    /// What may be written now: whole messages, in order, each one released. Nothing after a poisoning.
    pub(crate) fn released(&mut self) -> &[u8] {
        if self.gate.is_poisoned() {
            return &[];
        }
        self.tag();
        let durable = self.gate.durable();
        let tagged = self.marks.len() - self.untagged;
        while self.released_marks < tagged
            && let Some(mark) = self.marks.get(self.released_marks)
            && mark.turn <= durable
        {
            self.released = mark.end;
            self.released_marks += 1;
        }
        // Proof of the cast: it is a part of a buffer in memory.
        #[allow(clippy::cast_possible_truncation)]
        let length = (self.released - self.written) as usize;
        &self.bytes[self.start..self.start + length]
    }

    /// The first `length` bytes of [`released`](Self::released) were written.
    pub(crate) fn written(&mut self, length: usize) {
        self.written += length as u64;
        debug_assert!(self.written <= self.released, "only what was released can have been written");
        self.start += length;
        while let Some(mark) = self.marks.front().filter(|mark| mark.end <= self.written) {
            self.answer_bytes -= mark.answer_bytes;
            self.released_marks -= 1;
            self.marks.pop_front();
        }
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            if self.bytes.capacity() > limits::KEPT_BUFFER_BYTES {
                self.bytes = Vec::new();
                self.marks = VecDeque::new();
            }
        }
    }

    /// The turn that the next byte waits for, if any waits. Not asked while a turn runs.
    pub(crate) fn next_turn(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.turn)
    }

    /// Drops everything that is not released now: the session ends, and what waits will not be said.
    pub(crate) fn drop_unreleased(&mut self) {
        let length = self.released().len();
        self.bytes.truncate(self.start + length);
        let dropped = self.marks.drain(self.released_marks..).map(|mark| mark.answer_bytes).sum::<usize>();
        self.answer_bytes -= dropped;
        self.untagged = 0;
        self.queued = self.released;
    }

    /// Bytes that wait, of all kinds.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Bytes of messages that answer the peer and are not completely written.
    pub(crate) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{FrameDecoder, FrameLimits};

    #[derive(Debug, Clone)]
    enum Step {
        Produce,
        /// A turn lets go of something, and changes something or not.
        Turn {
            words: usize,
            changes: bool,
        },
        Send {
            words: usize,
        },
        Release {
            behind: u64,
        },
        Write {
            at_most: usize,
        },
        Poison,
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Produce),
            3 => (0_usize..9, any::<bool>()).prop_map(|(words, changes)| Step::Turn { words, changes }),
            6 => (0_usize..9).prop_map(|words| Step::Send { words }),
            4 => (0_u64..4).prop_map(|behind| Step::Release { behind }),
            6 => (1_usize..200).prop_map(|at_most| Step::Write { at_most }),
            1 => Just(Step::Poison),
            1 => Just(Step::Close),
        ]
    }

    /// The content of the message with this number: it can be told apart, and its length is known.
    fn content(number: u64, words: usize) -> Vec<u8> {
        let mut bytes = vec![0; 8 + words * 8];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    fn messages(stream: &[u8]) -> Vec<u64> {
        let mut decoder = FrameDecoder::new(FrameLimits { message_bytes: 1 << 20, segments: 1 });
        let mut rest = stream;
        let mut numbers = Vec::new();
        while let Some(frame) = decoder.push(&mut rest).unwrap() {
            numbers.push(u64::from_le_bytes(frame.as_bytes()[..8].try_into().unwrap()));
        }
        numbers
    }

    proptest! {
        /// The rule of the whole system, under every interleaving: a message tagged n has no byte out before n
        /// is durable; messages leave in order, whole, each once; nothing leaves after poison.
        #[test]
        fn nothing_leaves_early_out_of_order_or_after_poison(steps in prop::collection::vec(step(), 1..200)) {
            let gate = OutputGate::new(0);
            let mut outbox = Outbox::new(gate.clone());
            let (mut turn, mut durable, mut poisoned) = (0_u64, 0_u64, false);
            let mut sent: Vec<(u64, usize)> = Vec::new(); // tag and length of each message
            let mut stream = Vec::new();
            let mut closed = false;
            for step in steps {
                match step {
                    Step::Produce => { turn += 1; gate.produced(turn); }
                    Step::Turn { words, changes } if !closed => {
                        let content = content(sent.len() as u64, words);
                        gate.turn_begins();
                        outbox.push(&[&content], false);
                        let in_turn = outbox.released().len();
                        gate.turn_ends();
                        turn += u64::from(changes);
                        if changes { gate.produced(turn); }
                        sent.push((turn, 8 + content.len()));
                        prop_assert!(in_turn + stream.len() <= sent[..sent.len() - 1].iter().map(|(_, length)| length).sum());
                    }
                    Step::Turn { .. } => {}
                    Step::Send { words } if !closed => {
                        let content = content(sent.len() as u64, words);
                        outbox.push(&[&content], words % 2 == 0);
                        sent.push((turn, 8 + content.len()));
                    }
                    Step::Send { .. } => {}
                    Step::Release { behind } => {
                        let to = turn.saturating_sub(behind);
                        gate.release(to);
                        durable = durable.max(to);
                    }
                    Step::Write { at_most } => {
                        let released = outbox.released();
                        prop_assert!(!poisoned || released.is_empty());
                        let length = released.len().min(at_most);
                        stream.extend_from_slice(&released[..length]);
                        if length > 0 { outbox.written(length); }
                    }
                    Step::Poison => { gate.poison(); poisoned = true; }
                    Step::Close => { outbox.drop_unreleased(); closed = true; }
                }
                // How much of the stream may be out: every message up to the first one that must wait.
                let allowed: usize = sent.iter().take_while(|(tag, _)| *tag <= durable).map(|(_, length)| length).sum();
                prop_assert!(stream.len() <= allowed, "{} bytes are out, {allowed} may be", stream.len());
            }
            let numbers = messages(&stream);
            prop_assert_eq!(&numbers, &(0..numbers.len() as u64).collect::<Vec<_>>());
            // And nothing that may leave is forgotten.
            if !poisoned && !closed {
                gate.release(turn);
                let rest = outbox.released().to_vec();
                stream.extend(&rest);
                if !rest.is_empty() { outbox.written(rest.len()); }
                prop_assert_eq!(messages(&stream).len(), sent.len());
                prop_assert_eq!((outbox.waiting_bytes(), outbox.answer_bytes()), (0, 0));
                prop_assert_eq!(outbox.next_turn(), None);
            }
        }
    }

    #[test]
    fn everything_that_is_ready_is_one_piece() {
        let gate = OutputGate::new(0);
        let mut outbox = Outbox::new(gate.clone());
        for turn in 1..=3 {
            gate.produced(turn);
            outbox.push(&[&content(turn, 1)], true);
        }
        assert!(outbox.released().is_empty());
        assert_eq!(outbox.next_turn(), Some(1));
        gate.release(2);
        assert_eq!(outbox.released().len(), 2 * 24);
        outbox.written(48);
        assert_eq!((outbox.next_turn(), outbox.answer_bytes()), (Some(3), 24));
    }

    #[test]
    fn an_empty_queue_gives_its_memory_back() {
        let mut outbox = Outbox::new(OutputGate::always_open());
        outbox.push(&[&vec![0; 1 << 20]], true);
        let length = outbox.released().len();
        outbox.written(length);
        assert_eq!((outbox.bytes.capacity(), outbox.marks.capacity()), (0, 0));
    }
}
