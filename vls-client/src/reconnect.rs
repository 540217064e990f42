//! When to connect to a vat again, and which session counts: the pure core of [`LiveRef`](crate::LiveRef)
//! (DESIGN §6).
//!
//! One of these stands for one vat, however many hold references to its objects: they share its session and its
//! attempts. Rules:
//!
//! * somebody has to want it: with nobody who waits or watches there is no attempt, and no session is replaced;
//! * after a session has ended the first attempt comes soon, moved at random within
//!   [`base`](ReconnectTiming::base), because a server that restarts has many peers; after attempts that failed
//!   it comes after a wait that doubles up to [`cap`](ReconnectTiming::cap), of which half is random. A session
//!   that did not last for [`steady`](ReconnectTiming::steady) counts as an attempt that failed;
//! * a session whose peer is silent is kept, and an attempt is made beside it; if that succeeds, the old session is
//!   ended, and when it has ended, the new one takes its place;
//! * the epoch never falls: a peer that greets with a lower one than was seen is an old copy of the vat, and is
//!   left; news of a higher one ends the session with the copy that was superseded (R8).

use std::time::Duration;

use crate::{clock::Randomness, limits};

/// The pace of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconnectTiming {
    /// The wait after a first failure; the first attempt after a session has ended comes within it.
    pub base: Duration,
    /// The longest wait.
    pub cap: Duration,
    /// How long a session has to last for its end not to count as a failure.
    pub steady: Duration,
    /// The end of one attempt: lookup, dial and greeting together.
    pub attempt: Duration,
}

impl Default for ReconnectTiming {
    fn default() -> Self {
        Self {
            base: limits::RECONNECT_BASE,
            cap: limits::RECONNECT_CAP,
            steady: limits::RECONNECT_STEADY,
            attempt: limits::RECONNECT_DEADLINE,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectEvent {
    /// Somebody waits for the vat, or watches it.
    Wanted,
    /// Nobody does any more.
    Unwanted,
    /// The attempt has brought a session with a peer that greeted with this epoch.
    Connected {
        /// Its epoch; 0 if it is not a vat.
        epoch: u64,
    },
    /// The attempt has failed.
    Failed,
    /// The session has ended.
    Ended,
    /// The peer of the session has been silent for too long.
    Silent,
    /// Somebody knows by other means, such as its signed record, that the vat has come to this epoch.
    Seen {
        /// The epoch.
        epoch: u64,
    },
    /// Time has passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectAction {
    /// Begin an attempt; its outcome is an event.
    Connect,
    /// The session is the one that counts from now on.
    Keep {
        /// Counts the sessions with this vat, from 1.
        generation: u64,
    },
    /// The new session is one with an old copy of the vat: end it.
    Discard {
        /// The epoch that the vat is known to have come to.
        known: u64,
    },
    /// The session that counts is one with a copy that was superseded: end it. That it has ended is an event.
    Break,
    /// The session that counts is given up for the one that has come: end it, and say that the other is connected
    /// when it has ended.
    Replace,
}

/// Whether one vat is connected, and when that is tried again.
#[derive(Debug, Clone)]
pub struct Reconnect {
    timing: ReconnectTiming,
    state: State,
    wanted: bool,
    generation: u64,
    /// In a row.
    failures: u32,
    /// No attempt before.
    not_before: Duration,
    highest_epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    Connecting,
    Up {
        since: Duration,
        epoch: u64,
    },
    /// The same, and its peer is silent: an attempt is under way beside it.
    Doubted {
        since: Duration,
        epoch: u64,
    },
}

impl Reconnect {
    /// A vat that nobody has asked for yet.
    #[must_use]
    pub fn new(timing: ReconnectTiming) -> Self {
        Self {
            timing,
            state: State::Down,
            wanted: false,
            generation: 0,
            failures: 0,
            not_before: Duration::ZERO,
            highest_epoch: 0,
        }
    }

    /// Takes what happened at `now`, which never goes back, and says what is to be done, in this order.
    pub fn handle(
        &mut self,
        now: Duration,
        event: ReconnectEvent,
        random: &mut dyn Randomness,
    ) -> Vec<ReconnectAction> {
        let mut actions = Vec::new();
        match (event, self.state) {
            (ReconnectEvent::Wanted, _) => self.wanted = true,
            (ReconnectEvent::Unwanted, _) => self.wanted = false,
            (ReconnectEvent::Connected { epoch }, State::Connecting) if epoch >= self.highest_epoch => {
                self.generation += 1;
                self.highest_epoch = epoch;
                self.state = State::Up { since: now, epoch };
                actions.push(ReconnectAction::Keep { generation: self.generation });
            }
            (ReconnectEvent::Silent, State::Up { since, epoch }) if self.wanted => {
                self.state = State::Doubted { since, epoch };
                actions.push(ReconnectAction::Connect);
            }
            (ReconnectEvent::Connected { epoch }, State::Doubted { .. }) if epoch >= self.highest_epoch => {
                actions.push(ReconnectAction::Replace);
            }
            (ReconnectEvent::Connected { .. }, State::Doubted { since, epoch }) => {
                self.state = State::Up { since, epoch };
                actions.push(ReconnectAction::Discard { known: self.highest_epoch });
            }
            (ReconnectEvent::Failed, State::Doubted { since, epoch }) => self.state = State::Up { since, epoch },
            // Whatever is under way beside it is the next attempt, or has come.
            (ReconnectEvent::Ended, State::Doubted { .. }) => self.state = State::Connecting,
            (ReconnectEvent::Connected { .. }, State::Connecting) => {
                self.fall_back(now, random);
                actions.push(ReconnectAction::Discard { known: self.highest_epoch });
            }
            (ReconnectEvent::Failed, State::Connecting) => self.fall_back(now, random),
            (ReconnectEvent::Ended, State::Up { since, epoch }) => {
                let superseded = epoch < self.highest_epoch;
                if now.saturating_sub(since) < self.timing.steady && !superseded {
                    self.fall_back(now, random);
                } else {
                    self.failures = 0;
                    self.state = State::Down;
                    self.not_before = now.saturating_add(within(Duration::ZERO, self.timing.base, random));
                }
            }
            (ReconnectEvent::Seen { epoch }, state) if epoch > self.highest_epoch => {
                self.highest_epoch = epoch;
                if matches!(state, State::Up { .. } | State::Doubted { .. }) {
                    actions.push(ReconnectAction::Break);
                }
            }
            // News that is known, time, and outcomes of what is not under way.
            _ => {}
        }
        if self.wanted && self.state == State::Down && self.not_before <= now {
            self.state = State::Connecting;
            actions.push(ReconnectAction::Connect);
        }
        actions
    }

    /// When to [`Tick`](ReconnectEvent::Tick), if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        (self.wanted && self.state == State::Down).then_some(self.not_before)
    }

    /// The highest epoch that the vat is known to have come to; 0 if none is known.
    #[must_use]
    pub fn highest_epoch(&self) -> u64 {
        self.highest_epoch
    }

    /// An attempt more has failed.
    fn fall_back(&mut self, now: Duration, random: &mut dyn Randomness) {
        let doubled = self.timing.base.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let longest = doubled.min(self.timing.cap);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down;
        self.not_before = now.saturating_add(within(longest / 2, longest, random));
    }
}

/// A random time from `least` to `most`.
fn within(least: Duration, most: Duration, random: &mut dyn Randomness) -> Duration {
    // A fraction of 2³²: exact enough for spreading load.
    let part = u32::try_from(random.next_u64() >> 32).unwrap_or(u32::MAX);
    least + (most - least).mul_f64(f64::from(part) / f64::from(u32::MAX))
}
