//! Whether a connection attempt may shake hands: pure, and asked before anything is spent on it.
//!
//! A handshake costs half a millisecond of CPU, a Retry packet some twenty microseconds. Whoever has not proven its address may
//! be anywhere, and be one machine under a million addresses; so such attempts have a rate, and above it, or when many
//! connections are open, their address is asked for first. Honest diallers then need one more round trip, unless they
//! were here before: each connection is given a token with which the next one proves its address at once (RFC 9000,
//! section 8.1.3).

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use quinn::{TokenLog, TokenReuseError};

use super::initials::Bucket;
use crate::limits;

/// What to do with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    /// Ask for a proof of its address first.
    Retry,
    Refuse,
}

#[derive(Debug)]
pub(super) struct Admission {
    pub(super) connections: usize,
    pub(super) before_retry: usize,
    /// For handshakes of unproven addresses.
    unproven: Bucket,
}

impl Admission {
    pub(super) fn new(connections: usize, before_retry: usize, burst: u32, interval: Duration) -> Self {
        Self { connections, before_retry, unproven: Bucket::new(burst, interval) }
    }

    /// Judges an attempt at `now`, which never goes back, while `open` connections are open.
    pub(super) fn judge(&mut self, now: Duration, open: usize, has_proven_address: bool) -> Verdict {
        if open >= self.connections {
            return Verdict::Refuse;
        }
        if has_proven_address {
            return Verdict::Accept;
        }
        if open >= self.before_retry || !self.unproven.take(now) {
            return Verdict::Retry;
        }
        Verdict::Accept
    }
}

/// The tokens that were used, so that none proves an address twice.
///
/// Of bounded size without ever forgetting one that could come again: when it is full the oldest goes, and with it every
/// token of its age and older. Who holds such a one proves its address by a Retry.
#[derive(Debug, Default)]
pub(super) struct UsedTokens {
    state: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// By the time of their issue.
    tokens: BTreeSet<(SystemTime, u128)>,
    /// None of this age or older counts any more.
    floor: Option<SystemTime>,
}

impl TokenLog for UsedTokens {
    fn check_and_insert(&self, nonce: u128, issued: SystemTime, _lifetime: Duration) -> Result<(), TokenReuseError> {
        // What a panicking thread left is a set of tokens like any other.
        let mut used = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if used.floor.is_some_and(|floor| issued <= floor) || !used.tokens.insert((issued, nonce)) {
            return Err(TokenReuseError);
        }
        if used.tokens.len() > limits::USED_TOKENS
            && let Some((oldest, _)) = used.tokens.pop_first()
        {
            used.floor = Some(oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_let_in_then_addresses_are_asked_for_until_it_is_quieter() {
        let mut admission = Admission::new(100, 100, 3, 10 * MS);
        let judged: Vec<Verdict> = (0..5).map(|_| admission.judge(MS, 0, false)).collect();
        assert_eq!(judged, [Verdict::Accept, Verdict::Accept, Verdict::Accept, Verdict::Retry, Verdict::Retry]);
        assert_eq!(admission.judge(MS, 0, true), Verdict::Accept, "who has proven its address does not count");
        assert_eq!(admission.judge(10 * MS, 0, false), Verdict::Retry);
        assert_eq!(admission.judge(11 * MS, 0, false), Verdict::Accept, "one per interval");
        assert_eq!(admission.judge(11 * MS, 0, false), Verdict::Retry);
        let judged: Vec<Verdict> = (0..4).map(|_| admission.judge(1000 * MS, 0, false)).collect();
        assert_eq!(
            judged,
            [Verdict::Accept, Verdict::Accept, Verdict::Accept, Verdict::Retry],
            "no more than the burst"
        );
    }

    #[test]
    fn with_many_connections_open_addresses_are_asked_for_and_with_too_many_nobody_is_let_in() {
        let mut admission = Admission::new(4, 2, 100, MS);
        assert_eq!(admission.judge(MS, 1, false), Verdict::Accept);
        assert_eq!(admission.judge(MS, 2, false), Verdict::Retry);
        assert_eq!(admission.judge(MS, 3, true), Verdict::Accept);
        assert_eq!(admission.judge(MS, 4, true), Verdict::Refuse);
        assert_eq!(admission.judge(MS, 4, false), Verdict::Refuse);
    }

    #[test]
    fn a_token_counts_once_also_when_more_were_used_than_are_kept() {
        let log = UsedTokens::default();
        let count = u64::try_from(limits::USED_TOKENS).unwrap() + 100;
        let use_it =
            |second: u64| log.check_and_insert(7, SystemTime::UNIX_EPOCH + Duration::from_secs(second), Duration::MAX);
        for second in 0..count {
            assert!(use_it(second).is_ok());
        }
        for second in 0..count {
            assert!(use_it(second).is_err(), "{second}");
        }
        assert_eq!(log.state.lock().unwrap().tokens.len(), limits::USED_TOKENS);
    }
}
