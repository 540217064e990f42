//! When to register where: the publisher's pure core (DESIGN §5).
//!
//! Every entry has its own clock, so a dead one delays nobody. After a success the next registration comes at
//! half the time that both the server's lease and the record itself still last, moved by up to 10 % either
//! way; after a failure it comes after a wait that doubles up to a cap; after a nudge (a new address, sleep)
//! it comes at once, or right after the one that is under way.

use std::time::Duration;

use crate::{clock::Randomness, limits};

/// The pace of registrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishTiming {
    /// The shortest time between renewals.
    pub min_renewal: Duration,
    /// The longest time between renewals.
    pub max_renewal: Duration,
    /// The wait after a first failure.
    pub retry_base: Duration,
    /// The longest wait after failures.
    pub retry_cap: Duration,
    /// The longest wait that a server can ask for.
    pub max_retry_after: Duration,
    /// The end of one registration, dialling included.
    pub register_deadline: Duration,
}

impl Default for PublishTiming {
    fn default() -> Self {
        Self {
            min_renewal: limits::MIN_RENEWAL,
            max_renewal: limits::MAX_RENEWAL,
            retry_base: limits::RETRY_BASE,
            retry_cap: limits::RETRY_CAP,
            max_retry_after: limits::MAX_RETRY_AFTER,
            register_deadline: limits::REGISTER_DEADLINE,
        }
    }
}

/// What happened. `entry` is an index into the search path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishEvent {
    /// What is to be published has changed.
    Nudge,
    /// A registration begins that the schedule did not ask for (an announcement).
    Begun {
        /// Where.
        entry: usize,
    },
    /// A registration has succeeded.
    Registered {
        /// Where.
        entry: usize,
        /// For how long: the shorter of the server's lease and the record's own validity.
        lease: Duration,
    },
    /// A registration has failed.
    Failed {
        /// Where.
        entry: usize,
        /// The server named a time for the next attempt.
        retry_after: Option<Duration>,
    },
    /// No registration at this entry can ever succeed.
    Impossible {
        /// Where.
        entry: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// The next registration is due.
    Waiting(Duration),
    /// One is under way; `again`: something has changed since it began.
    Running { again: bool },
    /// Its carrier is not part of this build.
    Impossible,
}

#[derive(Debug)]
struct Entry {
    status: Status,
    failures: u32,
}

/// When each entry is due.
#[derive(Debug)]
pub struct PublishSchedule {
    timing: PublishTiming,
    entries: Vec<Entry>,
}

impl PublishSchedule {
    /// `entries` places to register at, all due at `now` (monotonic).
    pub fn new(entries: usize, timing: PublishTiming, now: Duration) -> Self {
        let entry = || Entry { status: Status::Waiting(now), failures: 0 };
        Self { timing, entries: std::iter::repeat_with(entry).take(entries).collect() }
    }

    /// Takes note of one event at the monotonic time `now`.
    pub fn handle(&mut self, now: Duration, event: PublishEvent, random: &mut dyn Randomness) {
        match event {
            PublishEvent::Nudge => self.nudge(now),
            PublishEvent::Begun { entry } => self.entries[entry].begin(),
            PublishEvent::Registered { entry, lease } => {
                self.entries[entry].failures = 0;
                let half = (lease / limits::RENEWAL_DIVISOR).min(self.timing.max_renewal);
                self.finish(entry, now, jittered(half, random).max(self.timing.min_renewal));
            }
            PublishEvent::Failed { entry, retry_after } => {
                let wait = self.backoff(entry, retry_after, random);
                self.finish(entry, now, wait);
            }
            PublishEvent::Impossible { entry } => self.entries[entry].status = Status::Impossible,
        }
    }

    /// The entries to register at now. They count as under way.
    pub fn begin_due(&mut self, now: Duration) -> Vec<usize> {
        let is_due = |entry: &Entry| entry.due().is_some_and(|due| due <= now);
        let due: Vec<usize> = (0..self.entries.len()).filter(|index| is_due(&self.entries[*index])).collect();
        due.iter().for_each(|index| self.entries[*index].begin());
        due
    }

    /// When to call [`PublishSchedule::begin_due`], if nothing happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        self.entries.iter().filter_map(|entry| entry.due()).min()
    }

    /// When the next registration at this entry is due; none while one is under way, or if none can succeed.
    pub fn due(&self, entry: usize) -> Option<Duration> {
        self.entries[entry].due()
    }

    fn nudge(&mut self, now: Duration) {
        for entry in &mut self.entries {
            match &mut entry.status {
                Status::Waiting(due) => *due = now.min(*due),
                Status::Running { again } => *again = true,
                Status::Impossible => {}
            }
        }
    }

    /// The registration under way has ended: the next comes after `wait`, or now if something has changed.
    fn finish(&mut self, entry: usize, now: Duration, wait: Duration) {
        let entry = &mut self.entries[entry];
        let wait = if entry.status == (Status::Running { again: true }) { Duration::ZERO } else { wait };
        entry.status = Status::Waiting(now.saturating_add(wait));
    }

    fn backoff(&mut self, entry: usize, retry_after: Option<Duration>, random: &mut dyn Randomness) -> Duration {
        let failures = self.entries[entry].failures;
        self.entries[entry].failures = failures.saturating_add(1);
        let doubled = self.timing.retry_base.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX));
        let asked_for = retry_after.unwrap_or_default().min(self.timing.max_retry_after);
        jittered(doubled.min(self.timing.retry_cap), random).max(asked_for)
    }
}

impl Entry {
    fn due(&self) -> Option<Duration> {
        match self.status {
            Status::Waiting(due) => Some(due),
            Status::Running { .. } | Status::Impossible => None,
        }
    }

    fn begin(&mut self) {
        if self.status != Status::Impossible {
            self.status = Status::Running { again: false };
        }
    }
}

/// `duration`, moved by up to [`limits::JITTER_PER_MILLE`] either way.
fn jittered(duration: Duration, random: &mut dyn Randomness) -> Duration {
    let spread = 2 * limits::JITTER_PER_MILLE + 1;
    // The remainder favours low numbers by one part in 2^55: of no account for spreading load.
    let per_mille = 1000 - limits::JITTER_PER_MILLE + random.next_u64() % spread;
    duration.saturating_mul(u32::try_from(per_mille).unwrap_or(1000)) / 1000
}
