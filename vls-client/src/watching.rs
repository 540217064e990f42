//! Watching a vat: being told the moment it comes, moves or goes (DESIGN §5).
//!
//! Every entry of the search path is asked to tell what it knows, now and whenever it changes; what they tell is judged
//! like any other answer. A session that ends is opened again, ever more slowly as long as that fails; meanwhile what was
//! seen last stands, until the first attempt fails. An entry that cannot watch is asked from time to time.

use std::{
    cell::RefCell,
    fmt,
    rc::{Rc, Weak},
    time::Duration,
};

use schemas::{
    Hints, SearchPathEntry, SignedRecord, VatId,
    location_capnp::{watch, watcher},
};
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::sleep,
};

use crate::{
    attempt::{Attempt, Outcome},
    carriers::server,
    error::ResolveError,
    failure::{Carrier, Failure},
    judge::{Verdict, judge},
    limits,
    lookup::entries,
    pool::Server,
    resolver::{Inner, not_found},
    schedule::{Answer, Entry, Found, Goal},
    service,
};

/// What is seen of a vat that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sighting {
    /// It is registered, with this record: verified, valid, and as high as any that is known.
    Registered(SignedRecord),
    /// No entry that can be reached has a lease of it: it has never come, or has not renewed.
    Gone,
    /// No entry can be reached: where the vat is now, nobody tells.
    Unreachable,
}

/// Watches one vat until it is dropped.
pub struct Watching {
    shared: Rc<Shared>,
    told: Option<Sighting>,
    tasks: Vec<AbortHandle>,
}

struct Shared {
    id: VatId,
    resolver: Rc<Inner>,
    seen: RefCell<Vec<Seen>>,
    changed: Notify,
}

/// What one entry has told last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Nothing yet.
    Unasked,
    /// It is not to be reached.
    Silent,
    /// It has no lease of the vat, or of a record that is of no use.
    Nothing,
    Live(SignedRecord),
}

impl Watching {
    pub(crate) fn begin(resolver: &Rc<Inner>, id: VatId, hints: &Hints) -> Result<Self, ResolveError> {
        let mut asked = Vec::new();
        let mut attempts = Vec::new();
        for Entry { entry, candidate, left_out, .. } in entries(resolver, hints) {
            let missing = || Carrier::missing_for_entry(&entry).map(|carrier| Failure::NoCarrier { carrier });
            match left_out.map(Failure::LeftOut).or_else(missing) {
                None => asked.push(entry),
                Some(failure) => attempts.push(Attempt {
                    candidate,
                    elapsed: Duration::ZERO,
                    outcome: Outcome::Failed(failure),
                    vouched: false,
                }),
            }
        }
        if asked.is_empty() {
            return Err(not_found(id, Found::NobodyToAsk, attempts));
        }
        asked.truncate(limits::MAX_WATCHED);
        let seen = RefCell::new(vec![Seen::Unasked; asked.len()]);
        let shared = Rc::new(Shared { id, resolver: resolver.clone(), seen, changed: Notify::new() });
        let tasks = (0..)
            .zip(asked)
            .map(|(slot, entry)| spawn_local(keep_watching(shared.clone(), slot, entry)).abort_handle())
            .collect();
        Ok(Self { shared, told: None, tasks })
    }

    /// Waits until what is seen has changed; the first time, until something is. Of several changes only the last is told.
    /// May be dropped without losing one.
    pub async fn next(&mut self) -> Sighting {
        loop {
            match self.shared.sighting().filter(|now| self.told.as_ref() != Some(now)) {
                Some(now) => return self.told.insert(now).clone(),
                // A change that came meanwhile is kept for whoever waits next.
                None => self.shared.changed.notified().await,
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watching(vat://{})", self.shared.id)
    }
}

impl Shared {
    /// What all entries together show; `None` as long as none has said anything.
    fn sighting(&self) -> Option<Sighting> {
        let seen = self.seen.borrow();
        let live = seen.iter().filter_map(|seen| match seen {
            Seen::Live(record) => Some(record),
            _ => None,
        });
        let highest = live.max_by(|one, other| one.compare(other)).cloned();
        match highest {
            Some(record) => Some(Sighting::Registered(record)),
            None if seen.contains(&Seen::Nothing) => Some(Sighting::Gone),
            None if seen.contains(&Seen::Unasked) => None,
            None => Some(Sighting::Unreachable),
        }
    }

    fn see(&self, slot: usize, seen: Seen) {
        // Proof of the index: one slot for each task.
        self.seen.borrow_mut()[slot] = seen;
        // Whether that changes anything, whoever waits sees.
        self.changed.notify_one();
    }

    /// Takes what an entry tells.
    fn hear(&self, slot: usize, answer: &Answer) {
        let now = self.resolver.clock.now();
        let Answer::Packet { packet, lapsed, .. } = answer else { return self.see(slot, Seen::Nothing) };
        let (known, _) = self.resolver.known.get(self.id, now.wall);
        match judge(self.id, packet, known.as_ref(), Some(now.wall)) {
            Verdict::Usable(record) => {
                self.resolver.learn(&record, now.wall);
                self.forget_lower(&record);
                self.see(slot, if *lapsed { Seen::Nothing } else { Seen::Live(record) });
            }
            Verdict::Expired(record, _) => {
                self.resolver.learn(&record, now.wall);
                self.see(slot, Seen::Nothing);
            }
            Verdict::Foreign(_) => self.see(slot, Seen::Nothing),
            Verdict::Behind(refusal) | Verdict::Refused(refusal) => {
                tracing::debug!(id = %self.id, %refusal, "a watched entry told something of no use");
                self.see(slot, Seen::Nothing);
            }
        }
    }

    /// What is lower than a record that was signed since is of no use any more, whoever has a lease of it.
    fn forget_lower(&self, record: &SignedRecord) {
        for seen in &mut *self.seen.borrow_mut() {
            if matches!(seen, Seen::Live(lower) if lower.compare(record).is_lt()) {
                *seen = Seen::Nothing;
            }
        }
    }
}

/// Keeps one entry telling.
async fn keep_watching(shared: Rc<Shared>, slot: usize, entry: SearchPathEntry) {
    let server = server(&entry);
    let mut wait = limits::RETRY_BASE;
    loop {
        let watched = match &server {
            Some(server) => watch_once(&shared, slot, server).await.map(|()| true),
            None => Ok(false),
        };
        match watched {
            Ok(true) => wait = limits::RETRY_BASE,
            // It does not know how to watch.
            Ok(false) | Err(Failure::Remote(_)) => {
                let patience = shared.resolver.lookup_timing.cold_patience;
                match shared.resolver.carriers.lookup(&entry, shared.id, Goal::Reach, patience).await {
                    Ok(said) => shared.hear(slot, &said.answer),
                    Err(_) => shared.see(slot, Seen::Silent),
                }
                wait = limits::WATCH_POLL;
            }
            Err(failure) => {
                tracing::debug!(id = %shared.id, %failure, "an entry of the search path cannot be watched now");
                shared.see(slot, Seen::Silent);
            }
        }
        // Spread: a server that restarts has all of its watchers back.
        let spread = shared.resolver.randomness.borrow_mut().next_u64() % 1000;
        sleep(wait.mul_f64(0.5 + spread as f64 / 1000.0)).await;
        wait = (wait * 2).min(limits::RETRY_CAP);
    }
}

/// Watches over one session, until that ends.
async fn watch_once(shared: &Rc<Shared>, slot: usize, server: &Server) -> Result<(), Failure> {
    let (session, client) = shared.resolver.carriers.pool.session(server).await?;
    let mut request = client.watch_request();
    request.get().set_id(shared.id.as_bytes());
    request.get().set_watcher(capnp_rpc::new_client(Watcher { shared: Rc::downgrade(shared), slot }));
    let answered = session.or_ended(request.send().promise).await;
    let Ok(answered) = answered else { return Ok(()) };
    let response = answered.map_err(|error| Failure::of_call(&error))?;
    let malformed = |_| Failure::Protocol { what: "the answer to a watch" };
    // Held: the server tells as long as it is.
    let _watch: watch::Client = response.get().and_then(|results| results.get_watch()).map_err(malformed)?;
    session.closed().await;
    Ok(())
}

/// What a server has of us. It keeps nothing here alive: whoever does not let go of it must not keep its own session
/// open.
struct Watcher {
    shared: Weak<Shared>,
    slot: usize,
}

impl watcher::Server for Watcher {
    async fn changed(
        self: capnp::capability::Rc<Self>,
        params: watcher::ChangedParams,
        _: watcher::ChangedResults,
    ) -> Result<(), capnp::Error> {
        let answer = service::read_answer(params.get()?.get_answer()?);
        // What is no answer ends nothing: the next one may be.
        if let (Some(shared), Ok(answer)) = (self.shared.upgrade(), answer) {
            shared.hear(self.slot, &answer);
        }
        Ok(())
    }
}
