//! What a new vat shows where a location server does not take everybody at once: work, or an invite.
//!
//! A record is always offered without either first. So an invite leaves this machine only for the server that it was made
//! for, only when that server says that it needs one, and never again once the vat is known there; and it goes over a
//! session with that server's own key, or over HTTPS: there is no other way by which anything is registered.
//!
//! What a server asks for as work is bounded here, and done once for each registration that its schedule asks for, on a
//! thread of its own beside the one that serves, one task at a time: a server that lies about how full it is costs a
//! few seconds of one processor a minute at most.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use schemas::{Invite, SearchPathEntry, Task, VatId};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::limits;

/// What is shown with a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Nothing: mostly nothing is needed.
    #[default]
    None,
    /// The solution of a task.
    Work(u64),
    /// An invite.
    Invite(Invite),
}

/// The invites that were given to this user, each for the server that it was made for.
#[derive(Clone, Default)]
pub struct Invites(HashMap<SearchPathEntry, Invite>);

impl Invites {
    /// The one for this entry.
    #[must_use]
    pub fn of(&self, entry: &SearchPathEntry) -> Option<&Invite> {
        self.0.get(entry)
    }
}

impl FromIterator<(SearchPathEntry, Invite)> for Invites {
    fn from_iter<T: IntoIterator<Item = (SearchPathEntry, Invite)>>(invites: T) -> Self {
        Self(invites.into_iter().collect())
    }
}

impl fmt::Debug for Invites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Does the work that servers ask for, one task at a time.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    busy: Mutex<()>,
}

impl Worker {
    /// A solution; `None` if the task is too hard, or if there are no random numbers to begin with. Whoever drops the
    /// future ends the search.
    pub(crate) async fn solve(&self, task: Task, id: VatId) -> Option<u64> {
        if task.bits > limits::MAX_WORK_BITS {
            return None;
        }
        let _one_at_a_time = self.busy.lock().await;
        let first = getrandom::u64().ok()?;
        let stop = Stop::default();
        let stopped = Arc::clone(&stop.0);
        // A thread that panics or a runtime that ends leaves the registration for later.
        spawn_blocking(move || task.solve(&id, first, || !stopped.load(Ordering::Relaxed))).await.ok().flatten()
    }
}

/// Ends a search when nobody waits for it any more.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll, time::Duration};

    use schemas::IdentityKey;

    use super::*;

    fn task(bits: u8) -> Task {
        Task { challenge: [7; 16], bits }
    }

    fn id() -> VatId {
        IdentityKey::from_seed(&[1; 32]).id()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_task_is_solved_beside_the_thread_that_serves() {
        block_on(async {
            let nonce = Worker::default().solve(task(8), id()).await.unwrap();
            assert!(task(8).is_solved_by(&id(), nonce));
        });
    }

    #[test]
    fn a_task_that_is_too_hard_is_not_begun() {
        block_on(async { assert_eq!(Worker::default().solve(task(limits::MAX_WORK_BITS + 1), id()).await, None) });
    }

    #[test]
    fn a_search_that_nobody_waits_for_ends_and_the_next_one_begins() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let worker = Worker::default();
            {
                // Sixteen years of work, were it not for the bound: the search itself is begun here.
                let stop = Stop::default();
                let stopped = Arc::clone(&stop.0);
                let search = spawn_blocking(move || task(64).solve(&id(), 0, || !stopped.load(Ordering::Relaxed)));
                let mut search = pin!(search);
                assert!(futures::poll!(search.as_mut()).is_pending());
                drop(stop);
                assert_eq!(search.await.unwrap(), None);
            }
            {
                let mut abandoned = pin!(worker.solve(task(limits::MAX_WORK_BITS), id()));
                assert!(matches!(futures::poll!(abandoned.as_mut()), Poll::Pending));
            }
            assert!(worker.solve(task(4), id()).await.is_some());
        });
        // Returns at once only if no thread is searching any more.
        runtime.shutdown_timeout(Duration::from_secs(60));
    }

    #[test]
    fn no_part_of_an_invite_is_shown() {
        let invite = Invite::from_slice(&[0xab; 16]).unwrap();
        let entry: SearchPathEntry = "https://vls.example.org".parse().unwrap();
        let invites: Invites = [(entry.clone(), invite.clone())].into_iter().collect();
        assert_eq!(invites.of(&entry), Some(&invite));
        let shown = format!("{invites:?} {:?}", Admission::Invite(invite.clone()));
        let text = invite.expose();
        assert!(
            shown.contains("vls.example.org") && !shown.contains("171") && !shown.contains(&text[10..16]),
            "{shown}"
        );
    }
}
