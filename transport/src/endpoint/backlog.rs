//! Whether what is in a socket's queue is still worth an answer: pure, with time as an argument.
//!
//! When more comes than can be answered, the queue is as full as the kernel lets it be, and whoever is answered has
//! waited for all that stood before him: tens of milliseconds, in which he has asked somebody else. As many would be
//! answered, and in a fraction of that time, if the queue were short. So a queue that has not been empty for a while
//! is thrown away, which costs much less than answering it, and those who come then are answered at once. (That it is
//! the time since a queue was empty last which tells a burst from an overload is from CoDel: RFC 8289, section 3.)

use std::time::Duration;

use crate::limits;

/// The queue of one socket.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// When the first was taken that came after it was last empty.
    since: Option<Duration>,
    /// How many were taken since then, and how many of those thrown away.
    taken: usize,
    discarded: usize,
}

impl Backlog {
    /// Some were taken from the queue at `now`, which never goes back: whether they are to be thrown away.
    pub(super) fn is_late(&mut self, now: Duration, count: usize) -> bool {
        let since = *self.since.get_or_insert(now);
        // Both: a burst that can be answered is no overload, however slow the machine is.
        let is_long = self.taken >= limits::BACKLOG && now.saturating_sub(since) >= limits::BACKLOG_TIME;
        self.taken += count;
        if !is_long {
            return false;
        }
        self.discarded += count;
        // So many come that it is never empty: some are to be answered nevertheless.
        if self.discarded > limits::BACKLOG_DISCARDED {
            *self = Self::default();
        }
        true
    }

    /// Nothing is left in the queue.
    pub(super) fn is_empty(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// One comes every `between` into a queue with so many places, for a second; to answer it takes 5 us, to throw it away
    /// half of one. Gives how many parts in a hundred were answered, and what the slowest of them waited.
    fn served(between: u32, places: usize, backlog: &mut Option<Backlog>) -> (usize, Duration) {
        let (mut now, mut came, mut answered, mut longest) = (Duration::ZERO, 0_u32, 0, Duration::ZERO);
        let mut queue = VecDeque::new();
        while now < Duration::from_secs(1) {
            while came * between * US <= now {
                if queue.len() < places {
                    queue.push_back(came * between * US);
                }
                came += 1;
            }
            let Some(at) = queue.pop_front() else {
                backlog.iter_mut().for_each(Backlog::is_empty);
                now += US;
                continue;
            };
            if backlog.as_mut().is_some_and(|backlog| backlog.is_late(now, 1)) {
                now += US / 2;
            } else {
                now += 5 * US;
                answered += 1;
                longest = longest.max(now - at);
            }
        }
        (answered * 100 / came as usize, longest)
    }

    #[test]
    fn with_twice_as_many_as_can_be_answered_those_who_are_do_not_wait_for_long() {
        let (answered, longest) = served(2, 4000, &mut None);
        assert!(answered >= 39 && longest > 19_000 * US, "{answered} {longest:?}");
        let (answered, longest) = served(2, 4000, &mut Some(Backlog::default()));
        assert!(answered >= 30 && longest < 2500 * US, "{answered} {longest:?}");
    }

    #[test]
    fn a_burst_that_can_be_answered_is() {
        assert_eq!(served(6, 4000, &mut Some(Backlog::default())).0, 100);
        let mut backlog = Backlog::default();
        // On a machine that takes a millisecond for each.
        assert!((0..limits::BACKLOG).all(|_| !backlog.is_late(Duration::from_secs(60), 1)));
        assert!(backlog.is_late(Duration::from_secs(61), 1));
    }

    #[test]
    fn where_even_throwing_away_takes_too_long_some_are_answered() {
        let mut backlog = Backlog::default();
        let late = (0..100_000_u32).filter(|number| backlog.is_late(*number * US, 1)).count();
        assert!((50_000..99_000).contains(&late), "{late}");
    }
}
