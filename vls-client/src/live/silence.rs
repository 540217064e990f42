//! When a peer is silent: it was asked for a sign of life and gave none (DESIGN §6).
//!
//! A connection is dead after the idle timeout, forty seconds without a packet. What has been cut for less than
//! that lives on, and comes back by itself, but late: a sender whose window is full of what was never acknowledged
//! sends nothing but probes, each after twice the time of the one before (RFC 9002 §6.2.1). After thirty seconds
//! of silence the next one may be thirty seconds away, with the network long whole again. A new connection does
//! not have that past. So while a peer is silent another one is attempted, and if it succeeds the old one is given
//! up, with everything that waited in it.

use std::time::Duration;

use transport::Traffic;

/// How long the peer of one session has been silent.
#[derive(Debug)]
pub(super) struct Silence {
    /// When it was heard last.
    heard: Traffic,
    /// Since when it was asked and not heard.
    since: Option<Duration>,
}

impl Silence {
    pub(super) fn new(traffic: Traffic) -> Self {
        Self { heard: traffic, since: None }
    }

    /// For how long, as far as it is known at `now`.
    pub(super) fn after(&mut self, now: Duration, traffic: Traffic) -> Duration {
        if traffic.heard != self.heard.heard {
            *self = Self::new(traffic);
        } else if traffic.asked != self.heard.asked {
            self.since.get_or_insert(now);
        }
        self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_peer_that_nobody_asks_anything_is_not_silent_and_one_that_answers_is_not_either() {
        let mut silence = Silence::new(Traffic { asked: 3, heard: 5 });
        for second in 0..30 {
            assert_eq!(silence.after(seconds(second), Traffic { asked: 3, heard: 5 }), Duration::ZERO);
        }
        for second in 30..60 {
            let traffic = Traffic { asked: second, heard: second };
            assert_eq!(silence.after(seconds(second), traffic), Duration::ZERO);
        }
    }

    #[test]
    fn silence_begins_with_the_first_question_and_ends_with_a_word() {
        let mut silence = Silence::new(Traffic { asked: 3, heard: 5 });
        assert_eq!(silence.after(seconds(10), Traffic { asked: 4, heard: 5 }), Duration::ZERO);
        assert_eq!(silence.after(seconds(12), Traffic { asked: 4, heard: 5 }), seconds(2));
        assert_eq!(silence.after(seconds(15), Traffic { asked: 9, heard: 5 }), seconds(5));
        assert_eq!(silence.after(seconds(16), Traffic { asked: 9, heard: 6 }), Duration::ZERO);
        assert_eq!(silence.after(seconds(30), Traffic { asked: 9, heard: 6 }), Duration::ZERO);
    }
}
