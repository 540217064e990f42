//! The calls of one peer that are under way here, counted so that a peer cannot pile up work without bound.

use std::collections::HashMap;

use crate::SessionLimits;

/// Which calls were delivered and not yet answered or given up by the peer, with their sizes.
#[derive(Debug, Default)]
pub(super) struct CallLedger {
    open: HashMap<u32, usize>,
    bytes: usize,
}

impl CallLedger {
    /// Counts a call of `bytes` bytes; `false`, and not counted, if it would be one too many. A single call
    /// always fits, whatever its size: the message limit has judged that.
    pub(super) fn admit(&mut self, question: u32, bytes: usize, limits: &SessionLimits) -> bool {
        if self.open.contains_key(&question) {
            // A question number that is in use: the RPC layer ends the session over it.
            return true;
        }
        let fits = self.open.len() < limits.calls_in_flight
            && (self.open.is_empty() || self.bytes.saturating_add(bytes) <= limits.call_bytes_in_flight);
        if fits {
            self.open.insert(question, bytes);
            self.bytes += bytes;
        }
        fits
    }

    /// The call was answered, or the peer does not wait for the answer any more.
    pub(super) fn remove(&mut self, question: u32) {
        if let Some(bytes) = self.open.remove(&question) {
            self.bytes -= bytes;
            if self.open.is_empty() {
                // Idle sessions hold no table.
                self.open = HashMap::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_admitted_up_to_both_limits_and_again_after_an_answer() {
        let limits = SessionLimits { calls_in_flight: 3, call_bytes_in_flight: 100, ..SessionLimits::default() };
        let mut ledger = CallLedger::default();
        assert!(ledger.admit(1, 500, &limits), "one call alone always fits");
        assert!(!ledger.admit(2, 1, &limits));
        ledger.remove(1);
        for question in 1..=3 {
            assert!(ledger.admit(question, 10, &limits));
        }
        assert!(!ledger.admit(4, 10, &limits), "the fourth at once");
        ledger.remove(2);
        ledger.remove(2);
        assert!(!ledger.admit(4, 81, &limits), "too many bytes at once");
        assert!(ledger.admit(4, 80, &limits));
        assert_eq!(ledger.bytes, 100);
    }
}
