//! Who may take a place (rule 9): ids that are known always; others by the operator's invitation where the server is
//! closed, and by work where it is nearly full.
//!
//! All of it is decided before a signature is looked at, costs no token, and is asked of new ids alone, so it is never in
//! the way of a vat that is registered here. Neither is asked of the server's owner. Of other servers work is not asked,
//! since they have a share of their own of the table that they cannot exceed; but a closed server learns nothing from
//! them of ids that it does not know, or the vats that it turns away would come in by the next door.

use std::{fmt, time::Duration};

use schemas::{InviteHash, Task, VatId};
use sha2::{Digest, Sha256};

use super::{Now, Origin, RefusalReason, Registry, SourcePrefix};
use crate::limits;

/// What a registration of a new id shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admission {
    /// Nothing.
    #[default]
    None,
    /// The solution of a [`Task`].
    Work(u64),
    /// An invite.
    Invite(InviteHash),
}

/// Why an invite does not admit anybody, or none was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotInvited {
    /// None was shown.
    #[error("this server takes new vats by invitation only")]
    Missing,
    /// It is not, or not any more, among those that the operator has made.
    #[error("this invite is not known here: it was used up, revoked, or made for another server")]
    Unknown,
    /// Its time is over.
    #[error("this invite has ended")]
    Ended,
}

/// The secret of a registry, which nobody outside of its process knows. Two registries must not have the same.
#[derive(Clone, Copy)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Of 32 random bytes.
    #[must_use]
    pub const fn of(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// What hash tables are kept unpredictable with.
    pub(super) fn of_tables(&self) -> u64 {
        let hash: [u8; 32] = Sha256::new().chain_update(b"vls tables").chain_update(self.0).finalize().into();
        let (words, _) = hash.as_chunks();
        u64::from_le_bytes(words[0])
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed")
    }
}

/// What a place costs where the table is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Above which share of live records, per mille, it costs anything.
    pub above: u32,
    /// The bits of work that it costs at first.
    pub bits: u8,
    /// The bits of work that it costs where every place is taken; no fewer.
    pub bits_full: u8,
}

impl Default for Price {
    fn default() -> Self {
        Self { above: limits::WORK_ABOVE, bits: limits::WORK_BITS, bits_full: limits::WORK_BITS_FULL }
    }
}

/// Makes tasks and recognises them, without keeping any.
#[derive(Debug)]
pub(super) struct Tasks {
    seed: Seed,
}

impl Tasks {
    pub(super) fn new(seed: Seed) -> Self {
        Self { seed }
    }

    /// The task for an id, now. Nobody can have worked on it before it was asked for, and not at another server either: the
    /// secret is this process's own.
    pub(super) fn task(&self, now: Now, id: &VatId, bits: u8) -> Task {
        self.of_window(window(now.monotonic), id, bits)
    }

    /// Whether a nonce solves the task as it is now, or as it was a window ago: what was begun may be finished.
    pub(super) fn is_solved(&self, now: Now, id: &VatId, bits: u8, nonce: u64) -> bool {
        let window = window(now.monotonic);
        let windows = [Some(window), window.checked_sub(1)];
        windows.into_iter().flatten().any(|window| self.of_window(window, id, bits).is_solved_by(id, nonce))
    }

    /// All parts have fixed lengths, and half of the hash is kept back: nothing can be added at its end.
    fn of_window(&self, window: u64, id: &VatId, bits: u8) -> Task {
        let hash = Sha256::new().chain_update(b"vls task").chain_update(self.seed.0).chain_update(id.as_bytes());
        let hash: [u8; 32] = hash.chain_update(window.to_be_bytes()).finalize().into();
        let (halves, _) = hash.as_chunks();
        Task { challenge: halves[0], bits }
    }
}

fn window(monotonic: Duration) -> u64 {
    monotonic.as_secs() / limits::WORK_WINDOW.as_secs()
}

impl Price {
    /// The bits of work that a place costs if `live` of `capacity` are taken; none while there is room.
    fn bits(&self, live: usize, capacity: usize) -> Option<u8> {
        let most = self.bits_full.max(self.bits);
        if live >= capacity {
            return Some(most);
        }
        // Far below what would overflow: there are at most some millions of places.
        let (live, capacity) = (live as u64 * 1000, capacity as u64 * 1000);
        let free_until = capacity / 1000 * u64::from(self.above.min(1000));
        // The newcomer counts.
        if live + 1000 <= free_until {
            return None;
        }
        let (into, width) = (live.saturating_sub(free_until), capacity - free_until);
        let steps = u64::from(most - self.bits);
        // Proof: at most the difference of two u8.
        let step = u8::try_from((into * (steps + 1) / width).min(steps)).unwrap_or(u8::MAX);
        Some(self.bits.saturating_add(step))
    }
}

impl Registry {
    /// What a new id costs now, in bits of work; nothing while there is room, or if the policy asks for none.
    #[must_use]
    pub fn work(&self) -> Option<u8> {
        self.policy.work?.bits(self.table.live(), self.policy.max_records)
    }

    /// Whether a new id may have its signature checked.
    pub(super) fn may_enter(&self, now: Now, origin: &Origin, id: &VatId) -> Result<(), RefusalReason> {
        if origin.source == SourcePrefix::LOCAL {
            return Ok(());
        }
        if self.policy.closed {
            return self.invitation(now, origin).map(drop);
        }
        match (self.work().filter(|_| !origin.source.is_server()), origin.admission) {
            (None, _) => Ok(()),
            (Some(bits), Admission::Work(nonce)) if self.tasks.is_solved(now, id, bits, nonce) => Ok(()),
            (Some(bits), _) => Err(RefusalReason::Work { task: self.tasks.task(now, id, bits) }),
        }
    }

    /// The invite by which a new id is stored, if one is needed; it is used by that.
    pub(super) fn invitation(&self, now: Now, origin: &Origin) -> Result<Option<InviteHash>, RefusalReason> {
        if !self.policy.closed || origin.source == SourcePrefix::LOCAL {
            return Ok(None);
        }
        let Admission::Invite(hash) = origin.admission else { return Err(NotInvited::Missing.into()) };
        self.invites.holds(&hash, now.wall)?;
        Ok(Some(hash))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{IdentityKey, Timestamp};

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { wall: Timestamp::from_seconds(0), monotonic: Duration::from_secs(seconds) }
    }

    fn id(number: u8) -> VatId {
        IdentityKey::from_seed(&[number; 32]).id()
    }

    fn bits(live: usize, capacity: usize, above: u32) -> Option<u8> {
        Price { above, ..Price::default() }.bits(live, capacity)
    }

    #[test]
    fn work_begins_above_the_share_and_is_hardest_where_the_table_is_full() {
        assert_eq!(bits(874, 1000, 875), None);
        assert_eq!(bits(875, 1000, 875), Some(limits::WORK_BITS));
        assert_eq!(bits(999, 1000, 875), Some(limits::WORK_BITS_FULL));
        assert_eq!(bits(1000, 1000, 875), Some(limits::WORK_BITS_FULL));
        assert_eq!(bits(2000, 1000, 875), Some(limits::WORK_BITS_FULL), "the operator has made the table smaller");
        assert_eq!(bits(0, 1000, 0), Some(limits::WORK_BITS));
        assert_eq!(bits(999, 1000, 1000), None);
        assert_eq!(bits(1000, 1000, 1000), Some(limits::WORK_BITS_FULL));
        assert_eq!((bits(6, 8, 875), bits(7, 8, 875)), (None, Some(limits::WORK_BITS)));
        assert_eq!(bits(0, 0, 875), Some(limits::WORK_BITS_FULL));
    }

    #[test]
    fn a_task_is_solved_for_this_window_and_the_next_and_not_later() {
        let tasks = Tasks::new(Seed::of([1; 32]));
        let window = limits::WORK_WINDOW.as_secs();
        let begun = 10 * window + 1;
        let task = tasks.task(at(begun), &id(1), 16);
        let nonce = task.solve(&id(1), 0, || true).unwrap();
        for (when, is_solved) in
            [(begun, true), (11 * window - 1, true), (12 * window - 1, true), (12 * window, false), (9 * window, false)]
        {
            assert_eq!(tasks.is_solved(at(when), &id(1), 16, nonce), is_solved, "{when}");
        }
        assert_eq!(tasks.task(at(0), &id(1), 16), tasks.task(at(window - 1), &id(1), 16));
        assert!(!Tasks::new(Seed::of([2; 32])).is_solved(at(begun), &id(1), 16, nonce), "another server");
        assert!(!tasks.is_solved(at(begun), &id(2), 16, nonce), "another id");
        assert!(!tasks.is_solved(at(begun), &id(1), 40, nonce), "it has become dearer");
    }

    #[test]
    fn no_part_of_a_seed_is_shown() {
        let shown = format!("{:?} {:?}", Seed::of([0xab; 32]), Tasks::new(Seed::of([0xab; 32])));
        assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_fuller_table_never_asks_for_less(
            live in 0..5_000_000_usize, more in 0..5_000_000_usize, capacity in 0..=limits::MOST_RECORDS, above in 0..=1_200_u32,
        ) {
            let (one, other) = (bits(live, capacity, above), bits(live.saturating_add(more), capacity, above));
            prop_assert!(one <= other, "{one:?} {other:?}");
            let range = limits::WORK_BITS..=limits::WORK_BITS_FULL;
            prop_assert!(one.is_none_or(|bits| range.contains(&bits)));
            prop_assert!(one.is_some() || live < capacity, "a full table always asks");
        }

        #[test]
        fn challenges_differ_by_secret_id_and_window(one: [u8; 32], other: [u8; 32], windows in (0..1_000_u64, 0..1_000_u64)) {
            prop_assume!(one != other && windows.0 != windows.1);
            let when = |window: u64| at(window * limits::WORK_WINDOW.as_secs());
            let (tasks, others) = (Tasks::new(Seed::of(one)), Tasks::new(Seed::of(other)));
            let task = tasks.task(when(windows.0), &id(1), 20);
            prop_assert_eq!(task, tasks.task(when(windows.0), &id(1), 20));
            prop_assert_ne!(task, tasks.task(when(windows.1), &id(1), 20));
            prop_assert_ne!(task, tasks.task(when(windows.0), &id(2), 20));
            prop_assert_ne!(task, others.task(when(windows.0), &id(1), 20));
        }
    }
}
