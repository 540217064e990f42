//! Negative caching: a vat that everybody who was asked has just denied to know is not asked for again at once. A program
//! in a loop then costs the location servers nothing.
//!
//! Only a lookup that all of its entries have answered so is remembered, for a few seconds, and only for lookups that
//! would ask none but these.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use schemas::{SearchPathEntry, VatId};

use crate::{
    attempt::{Attempt, Candidate, Outcome},
    limits,
};

/// Who was not known, to whom, and when.
#[derive(Debug, Default)]
pub(crate) struct Absent(RefCell<HashMap<VatId, Denied>>);

#[derive(Debug, Clone)]
struct Denied {
    until: Duration,
    attempts: Rc<[Attempt]>,
}

impl Absent {
    /// What came of the last lookup, if asking `entries` again would be of no use. `now` is the monotonic time.
    pub(crate) fn recall(
        &self,
        id: VatId,
        mut entries: impl Iterator<Item = SearchPathEntry>,
        now: Duration,
    ) -> Option<Vec<Attempt>> {
        let table = self.0.borrow();
        let denied = table.get(&id).filter(|denied| now < denied.until)?;
        let was_asked = |entry: SearchPathEntry| denied.attempts.iter().any(|attempt| asked(attempt) == Some(&entry));
        entries.all(was_asked).then(|| denied.attempts.to_vec())
    }

    /// Somebody knows it.
    pub(crate) fn forget(&self, id: VatId) {
        self.0.borrow_mut().remove(&id);
    }

    /// Remembers a lookup for `memory`, if all that were asked have denied to know the vat; else forgets what was
    /// remembered of it.
    pub(crate) fn learn(&self, id: VatId, attempts: &[Attempt], memory: Duration, now: Duration) {
        let mut table = self.0.borrow_mut();
        let all = !attempts.is_empty() && attempts.iter().all(|attempt| matches!(attempt.outcome, Outcome::Unknown));
        if !all || memory.is_zero() {
            table.remove(&id);
            return;
        }
        if table.len() >= limits::MAX_ABSENT {
            table.retain(|_, denied| now < denied.until);
        }
        // With so many in so few seconds, the next one is asked for as if it were the first.
        if table.len() < limits::MAX_ABSENT {
            table.insert(id, Denied { until: now.saturating_add(memory), attempts: attempts.into() });
        }
    }
}

fn asked(attempt: &Attempt) -> Option<&SearchPathEntry> {
    match &attempt.candidate {
        Candidate::Entry(entry) | Candidate::HintEntry(entry) => Some(entry),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Duration = Duration::from_secs(3);

    fn id(number: usize) -> VatId {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        schemas::IdentityKey::from_seed(&seed).id()
    }

    fn attempt(name: &str, outcome: Outcome) -> Attempt {
        let candidate = Candidate::Entry(name.parse().unwrap());
        Attempt { candidate, elapsed: Duration::ZERO, outcome, vouched: false }
    }

    fn recalls(absent: &Absent, number: usize, entries: &[&str], now: Duration) -> bool {
        absent.recall(id(number), entries.iter().map(|text| text.parse().unwrap()), now).is_some()
    }

    #[test]
    fn what_all_have_denied_is_remembered_for_a_while_and_for_those_who_were_asked() {
        let absent = Absent::default();
        let denied = [attempt("dns:a.example", Outcome::Unknown), attempt("dns:b.example", Outcome::Unknown)];
        absent.learn(id(1), &denied, MEMORY, MEMORY);
        let just_before = MEMORY * 2 - Duration::from_nanos(1);
        assert!(recalls(&absent, 1, &["dns:a.example", "dns:b.example"], just_before));
        assert!(!recalls(&absent, 1, &["dns:a.example", "dns:b.example"], MEMORY * 2));
        assert!(!recalls(&absent, 1, &["dns:a.example", "dns:c.example"], MEMORY), "somebody else may know");
        assert!(!recalls(&absent, 2, &["dns:a.example"], MEMORY));
    }

    #[test]
    fn silence_of_one_is_no_denial_and_forgets_an_earlier_one() {
        let absent = Absent::default();
        absent.learn(id(1), &[attempt("dns:a.example", Outcome::Unknown)], MEMORY, Duration::ZERO);
        let silent = [attempt("dns:a.example", Outcome::Unknown), attempt("dns:b.example", Outcome::Waiting)];
        absent.learn(id(1), &silent, MEMORY, Duration::ZERO);
        assert!(!recalls(&absent, 1, &["dns:a.example"], Duration::ZERO));
        absent.learn(id(1), &[], MEMORY, Duration::ZERO);
        assert!(!recalls(&absent, 1, &[], Duration::ZERO));
    }

    #[test]
    fn its_memory_is_bounded_and_the_past_makes_room() {
        let absent = Absent::default();
        let denied = [attempt("dns:a.example", Outcome::Unknown)];
        for number in 0..=limits::MAX_ABSENT {
            absent.learn(id(number), &denied, MEMORY, Duration::ZERO);
        }
        assert_eq!(absent.0.borrow().len(), limits::MAX_ABSENT);
        absent.learn(id(usize::MAX), &denied, MEMORY, MEMORY);
        assert!(recalls(&absent, usize::MAX, &["dns:a.example"], MEMORY));
        assert_eq!(absent.0.borrow().len(), 1);
    }
}
