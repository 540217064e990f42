//! When a peer is silent: it was asked for a sign of life and gave none (DESIGN §6).
//!
//! A sign of life is that something is acknowledged that was sent after the question. That something comes from the
//! peer is none: on a path that is cut only towards it, it is heard for as long as it repeats what it never learns to
//! have arrived, old acknowledgements among it.
//!
//! A connection is dead after the idle timeout, forty seconds without a packet. What has been cut for less than
//! that lives on, and comes back by itself, but late: a sender whose window is full of what was never acknowledged
//! sends nothing but probes, each after twice the time of the one before (RFC 9002 §6.2.1). After thirty seconds
//! of silence the next one may be thirty seconds away, with the network long whole again. A new connection does
//! not have that past. So who holds a live reference attempts another one while its peer is silent. And a session does
//! not take a silent peer for one that waits for it to read.

use std::time::Duration;

use crate::Traffic;

/// How long the peer of one session has been silent.
#[derive(Debug)]
pub struct Silence {
    /// When the traffic was looked at last, and what it was.
    last: (Duration, Traffic),
    /// The looks after which something was asked, the oldest first, as long as nothing that was sent after them is
    /// known to have arrived: when, and the last packet that had been sent. One for each look at most, until the
    /// connection is dead.
    open: Vec<(Duration, u64)>,
}

impl Silence {
    /// Begins to look at `now`, by any clock that does not go back.
    #[must_use]
    pub fn new(now: Duration, traffic: Traffic) -> Self {
        Self { last: (now, traffic), open: Vec::new() }
    }

    /// For how long, as far as it is known at `now`; zero if it is not silent.
    pub fn after(&mut self, now: Duration, traffic: Traffic) -> Duration {
        let (before, last) = std::mem::replace(&mut self.last, (now, traffic));
        if traffic.asked != last.asked {
            self.open.push((before, last.sent));
        }
        self.open.retain(|(_, sent)| traffic.acknowledged <= *sent);
        self.open.first().map_or(Duration::ZERO, |(since, _)| now.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn traffic(asked: u64, sent: u64, acknowledged: u64) -> Traffic {
        Traffic { asked, sent, acknowledged }
    }

    #[test]
    fn a_peer_that_nobody_asks_anything_is_not_silent_and_one_that_answers_is_not_either() {
        let mut silence = Silence::new(seconds(0), traffic(3, 9, 9));
        for second in 1..30 {
            assert_eq!(silence.after(seconds(second), traffic(3, 9, 9)), Duration::ZERO);
        }
        for second in 30..60 {
            assert_eq!(silence.after(seconds(second), traffic(second, second, second)), Duration::ZERO);
        }
    }

    #[test]
    fn silence_begins_with_the_first_question_and_ends_with_a_word() {
        let mut silence = Silence::new(seconds(10), traffic(3, 9, 9));
        assert_eq!(silence.after(seconds(12), traffic(4, 10, 9)), seconds(2));
        assert_eq!(silence.after(seconds(15), traffic(9, 15, 9)), seconds(5));
        assert_eq!(silence.after(seconds(16), traffic(9, 15, 15)), Duration::ZERO);
        assert_eq!(silence.after(seconds(30), traffic(9, 15, 15)), Duration::ZERO);
    }

    #[test]
    fn a_word_about_what_was_sent_before_the_question_ends_no_silence() {
        let mut silence = Silence::new(seconds(0), traffic(3, 9, 7));
        assert_eq!(silence.after(seconds(2), traffic(4, 10, 7)), seconds(2));
        // What was on its way when the path was cut.
        assert_eq!(silence.after(seconds(4), traffic(4, 11, 9)), seconds(4));
        // Nothing is asked any more, because nothing more fits.
        assert_eq!(silence.after(seconds(8), traffic(4, 14, 9)), seconds(8));
        // A question that was answered counts no more; the one after it does.
        assert_eq!(silence.after(seconds(10), traffic(5, 15, 9)), seconds(10));
        assert_eq!(silence.after(seconds(12), traffic(5, 15, 14)), seconds(4));
        assert_eq!(silence.after(seconds(14), traffic(5, 15, 15)), Duration::ZERO);
    }
}
