//! Which sessions a process has with whom, and which has to go: a pure state machine (DESIGN §6).
//!
//! It is told who has come and how, by which clock, and answers which session is kept and which ones end, with the
//! code that their peer is told. The shell is [`Sessions`](crate::Sessions). Rules, first to last:
//!
//! 1. **Fence.** A vat that greets with a lower epoch than it has greeted with before is an old copy, and refused.
//! 2. **Lost.** A session whose token the newcomer shows is one that its dialler has lost, and ends. So does one that was
//!    kept over the session of that token: who dials again after a refusal does not have the one that was kept.
//! 3. **One per vat.** Of two sessions with the same vat the one of the higher epoch stays. At equal epochs the newer one
//!    stays: whoever dials again has a reason, and a dead session must not keep its peer out until it times out. The
//!    exception is two that *crossed*, dialled from both ends before either knew of the other's: both sides keep
//!    the one that the smaller id has dialled. Two can have crossed only if they are of opposite directions, the newcomer
//!    shows no token of the older one, and the older is no older than a dial can take.
//! 4. **Caps.** Who is no vat (epoch 0) may have a few sessions; a network, and all together, may have so many. Beyond
//!    that a session is evicted, of the same peer or network where those are what is full: of those that have been idle
//!    for long enough, one of the network that has the most, the newcomer counted, and of these the one that has been idle
//!    for the longest. If there is none, the newcomer is refused. A session that this side has dialled is never evicted.
//!    Peers without an id (foreign clients) are known by their network alone.
//! 5. **Handshakes.** Connections that have not proven a key yet are counted apart, so that strangers take no place from
//!    those who have. They too have a share for each network. One more is always let in, and the oldest of the network
//!    that has the most, the newcomer counted, is dropped for it: whoever means it needs a moment only, and whoever lets
//!    handshakes lie keeps nobody out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use schemas::{ErrorCode, VatId};

use crate::{ResumeToken, limits};

/// How many of everything. The default is right for a small machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerLimits {
    /// Sessions at once ([`limits::SESSIONS`]).
    pub sessions: usize,
    /// Sessions at once of one peer that is no vat ([`limits::SESSIONS_PER_PEER`]).
    pub sessions_per_peer: usize,
    /// Sessions at once from one network ([`limits::SESSIONS_PER_NETWORK`]).
    pub sessions_per_network: usize,
    /// Connections at once that have not proven their key ([`limits::HANDSHAKES`]).
    pub handshakes: usize,
    /// The same from one network ([`limits::HANDSHAKES_PER_NETWORK`]).
    pub handshakes_per_network: usize,
    /// How long a session must have been idle to make room for somebody else ([`limits::EVICTABLE_AFTER`]).
    pub evictable_after: Duration,
    /// How long after a session began one of the other direction may have crossed it ([`limits::CROSSING_WINDOW`]).
    pub crossing_window: Duration,
    /// Vats whose epoch is remembered after their last session ([`limits::REMEMBERED_EPOCHS`]).
    pub remembered_epochs: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            sessions: limits::SESSIONS,
            sessions_per_peer: limits::SESSIONS_PER_PEER,
            sessions_per_network: limits::SESSIONS_PER_NETWORK,
            handshakes: limits::HANDSHAKES,
            handshakes_per_network: limits::HANDSHAKES_PER_NETWORK,
            evictable_after: limits::EVICTABLE_AFTER,
            crossing_window: limits::CROSSING_WINDOW,
            remembered_epochs: limits::REMEMBERED_EPOCHS,
        }
    }
}

/// Who has dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// This side.
    Dialled,
    /// The peer.
    Accepted,
}

/// A session that has just begun.
#[derive(Debug, Clone)]
pub struct Arrival<N> {
    /// The id that the peer has proven; `None` if it has proven none, and is no vat then.
    pub peer: Option<VatId>,
    /// The network that it comes from, as far as it is counted.
    pub network: N,
    /// Who has dialled.
    pub direction: Direction,
    /// The epoch that the peer greeted with; 0 if it is no vat.
    pub epoch: u64,
    /// The random bytes of its process.
    pub incarnation: [u8; 16],
    /// What this session will be called when it is lost.
    pub token: Option<ResumeToken>,
    /// The session that whoever dialled this one has lost.
    pub resumes: Option<ResumeToken>,
}

/// A newcomer is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Its number from now on; never used again.
    pub number: u64,
    /// The sessions that end for it, and what their peers are told.
    pub ends: Vec<(u64, ErrorCode)>,
}

/// A connection may shake hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Its number from now on; never used again.
    pub number: u64,
    /// The handshake that is dropped for it.
    pub drops: Option<u64>,
}

/// Every session of a process that is counted. `N` names networks.
#[derive(Debug)]
pub struct Peers<N> {
    ours: VatId,
    limits: PeerLimits,
    next: u64,
    sessions: HashMap<u64, Entry<N>>,
    by_peer: HashMap<VatId, Vec<u64>>,
    by_network: HashMap<N, usize>,
    /// Handshakes under way, the oldest first.
    shaking: BTreeMap<u64, N>,
    shaking_by_network: HashMap<N, usize>,
    epochs: Epochs,
}

#[derive(Debug)]
struct Entry<N> {
    arrival: Arrival<N>,
    since: Duration,
    /// Tokens by which the peer may say that it does not have this session: its own, and that of one that crossed it.
    names: Vec<ResumeToken>,
}

impl<N: Clone + Eq + Hash> Peers<N> {
    /// Nobody yet. `ours` is the id that this side proves.
    #[must_use]
    pub fn new(ours: VatId, limits: PeerLimits) -> Self {
        Self {
            ours,
            epochs: Epochs { capacity: limits.remembered_epochs, ..Epochs::default() },
            limits,
            next: 0,
            sessions: HashMap::new(),
            by_peer: HashMap::new(),
            by_network: HashMap::new(),
            shaking: BTreeMap::new(),
            shaking_by_network: HashMap::new(),
        }
    }

    /// Takes other limits from now on; how many epochs are remembered stays as it was. Nobody ends because of it.
    pub fn set_limits(&mut self, limits: PeerLimits) {
        self.limits = limits;
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The newest session with a peer.
    #[must_use]
    pub fn newest(&self, peer: &VatId) -> Option<u64> {
        self.by_peer.get(peer)?.iter().copied().max()
    }

    // ---- before a key is proven

    /// A connection from `network` begins to shake hands, in the place of another if there are too many.
    pub fn begin_handshake(&mut self, network: N) -> Begun {
        let drops = self.handshake_to_drop(&network);
        if let Some(number) = drops {
            self.end_handshake(number);
        }
        let number = self.next;
        self.next += 1;
        *self.shaking_by_network.entry(network.clone()).or_default() += 1;
        self.shaking.insert(number, network);
        Begun { number, drops }
    }

    /// A handshake that was begun is over, whatever came of it. One that was dropped for another is known to be.
    pub fn end_handshake(&mut self, number: u64) {
        if let Some(network) = self.shaking.remove(&number) {
            uncount(&mut self.shaking_by_network, &network);
        }
    }

    /// The handshake that makes room for another one from `network`, if there is none (rule 5).
    ///
    /// Looks at every one when they are too many: some hundred, which is a hundredth of what a handshake costs.
    fn handshake_to_drop(&self, network: &N) -> Option<u64> {
        let count = |of: &N| self.shaking_by_network.get(of).copied().unwrap_or(0) + usize::from(of == network);
        if count(network) > self.limits.handshakes_per_network {
            return self.shaking.iter().find(|(_, of)| *of == network).map(|(number, _)| *number);
        }
        if self.shaking.len() < self.limits.handshakes {
            return None;
        }
        self.shaking.iter().min_by_key(|(number, of)| (Reverse(count(of)), **number)).map(|(number, _)| *number)
    }

    // ---- after

    /// Judges a session that has just begun. `idle_since` tells of a session by its number since when, if nothing is
    /// under way in it, by the clock of `now`.
    ///
    /// # Errors
    /// The newcomer is not let in, and its peer is told why by this code. No other session ends then.
    pub fn admit(
        &mut self,
        now: Duration,
        arrival: Arrival<N>,
        idle_since: impl Fn(u64) -> Option<Duration>,
    ) -> Result<Admission, ErrorCode> {
        if arrival.peer.is_some_and(|peer| arrival.epoch > 0 && arrival.epoch < self.highest_epoch(&peer)) {
            return Err(ErrorCode::SessionSuperseded);
        }
        let mut ends = Ends::default();
        for number in self.numbers(arrival.peer) {
            // Proof of the index: the numbers of a peer are those of its sessions.
            match self.rival(now, &self.sessions[&number], &arrival) {
                Rival::Stays => {}
                Rival::Ends(code) => ends.push(number, code),
                Rival::Wins => {
                    let names = self.sessions.get_mut(&number).map(|entry| &mut entry.names);
                    if let Some(names) = names {
                        // Its own name stays; of those that it was kept over the last is the one that counts.
                        names.truncate(1);
                        names.extend(arrival.token);
                    }
                    return Err(ErrorCode::SessionCrossed);
                }
            }
        }
        if arrival.direction == Direction::Accepted {
            self.make_room(now, &arrival, &mut ends, &idle_since)?;
        }
        let mut names: Vec<ResumeToken> = arrival.token.into_iter().collect();
        for (number, code) in &ends.list {
            if *code == ErrorCode::SessionCrossed {
                names.extend(self.sessions.get(number).and_then(|entry| entry.arrival.token));
            }
            self.ended(*number);
        }
        let number = self.next;
        self.next += 1;
        if let Some(peer) = arrival.peer {
            if arrival.epoch > 0 {
                self.epochs.saw(peer, arrival.epoch);
            }
            self.by_peer.entry(peer).or_default().push(number);
        }
        *self.by_network.entry(arrival.network.clone()).or_default() += 1;
        self.sessions.insert(number, Entry { arrival, since: now, names });
        Ok(Admission { number, ends: ends.list })
    }

    /// A session has ended. One that ended for another is known to have.
    pub fn ended(&mut self, number: u64) {
        let Some(Entry { arrival, .. }) = self.sessions.remove(&number) else { return };
        uncount(&mut self.by_network, &arrival.network);
        if let Some(peer) = arrival.peer
            && let Some(own) = self.by_peer.get_mut(&peer)
        {
            own.retain(|other| *other != number);
            if own.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
    }

    /// The sessions with a peer; none of those with peers that have no id.
    fn numbers(&self, peer: Option<VatId>) -> Vec<u64> {
        peer.and_then(|peer| self.by_peer.get(&peer)).cloned().unwrap_or_default()
    }

    /// The highest epoch that a peer has greeted with (rule 1), as long as it has a session or is remembered.
    fn highest_epoch(&self, peer: &VatId) -> u64 {
        let now = self.numbers(Some(*peer)).into_iter().map(|number| self.sessions[&number].arrival.epoch).max();
        now.unwrap_or(0).max(self.epochs.of(peer))
    }

    /// What becomes of an older session with the same peer (rules 2 and 3).
    fn rival(&self, now: Duration, old: &Entry<N>, new: &Arrival<N>) -> Rival {
        if new.resumes.is_some_and(|token| old.names.contains(&token)) {
            return Rival::Ends(ErrorCode::SessionSuperseded);
        }
        let (since, old) = (old.since, &old.arrival);
        if old.epoch == 0 || new.epoch == 0 {
            return Rival::Stays;
        }
        let may_have_crossed = old.direction != new.direction
            && (old.epoch, old.incarnation) == (new.epoch, new.incarnation)
            && now.saturating_sub(since) <= self.limits.crossing_window;
        if !may_have_crossed {
            // Of a higher epoch, or dialled again; a lower epoch is fenced off before.
            return Rival::Ends(ErrorCode::SessionSuperseded);
        }
        let ours_is_smaller = new.peer.is_some_and(|peer| self.ours.as_bytes() < peer.as_bytes());
        let smaller_dials = if ours_is_smaller { Direction::Dialled } else { Direction::Accepted };
        if new.direction == smaller_dials { Rival::Ends(ErrorCode::SessionCrossed) } else { Rival::Wins }
    }

    /// Sees to it that there is a place (rule 4).
    fn make_room(
        &self,
        now: Duration,
        arrival: &Arrival<N>,
        ends: &mut Ends,
        idle_since: &impl Fn(u64) -> Option<Duration>,
    ) -> Result<(), ErrorCode> {
        let stay = |ends: &Ends| self.numbers(arrival.peer).iter().filter(|number| !ends.has(**number)).count();
        if stay(ends) >= self.limits.sessions_per_peer {
            // Its own sessions: there is nobody to protect from it.
            self.evict(&arrival.network, ends, |_, entry| entry.arrival.peer == arrival.peer, idle_since)?;
        }
        let patient = |since: Duration| now.saturating_sub(since) >= self.limits.evictable_after;
        let leaving = |ends: &Ends, network: &N| {
            ends.list.iter().filter(|(number, _)| self.sessions[number].arrival.network == *network).count()
        };
        let own = self.by_network.get(&arrival.network).copied().unwrap_or(0);
        if own - leaving(ends, &arrival.network) >= self.limits.sessions_per_network {
            let may_go = |idle, entry: &Entry<N>| patient(idle) && entry.arrival.network == arrival.network;
            self.evict(&arrival.network, ends, may_go, idle_since)?;
        }
        if self.sessions.len() - ends.list.len() >= self.limits.sessions {
            self.evict(&arrival.network, ends, |idle, _| patient(idle), idle_since)?;
        }
        Ok(())
    }

    /// Has a session end for a newcomer from `network`: of those that the peer dialled and `may_go` allows, one of the
    /// network that has the most, and of these the one that has been idle for the longest.
    ///
    /// Looks at every session: a table that is full costs each newcomer some microseconds, a handshake costs hundreds.
    fn evict(
        &self,
        network: &N,
        ends: &mut Ends,
        may_go: impl Fn(Duration, &Entry<N>) -> bool,
        idle_since: &impl Fn(u64) -> Option<Duration>,
    ) -> Result<(), ErrorCode> {
        let count = |of: &N| self.by_network.get(of).copied().unwrap_or(0) + usize::from(of == network);
        let candidates = self.sessions.iter().filter_map(|(number, entry)| {
            let idle = idle_since(*number)?;
            let may_go = entry.arrival.direction == Direction::Accepted && !ends.has(*number) && may_go(idle, entry);
            may_go.then(|| (Reverse(count(&entry.arrival.network)), idle, *number))
        });
        let (_, _, number) = candidates.min().ok_or(ErrorCode::SessionLimit)?;
        ends.push(number, ErrorCode::SessionEvicted);
        Ok(())
    }
}

/// What becomes of an older session with the newcomer's peer.
enum Rival {
    Stays,
    Ends(ErrorCode),
    /// They crossed, it stays, and the newcomer goes.
    Wins,
}

/// The sessions that end for a newcomer.
#[derive(Default)]
struct Ends {
    list: Vec<(u64, ErrorCode)>,
    set: HashSet<u64>,
}

impl Ends {
    fn push(&mut self, number: u64, code: ErrorCode) {
        self.set.insert(number);
        self.list.push((number, code));
    }

    fn has(&self, number: u64) -> bool {
        self.set.contains(&number)
    }
}

/// The highest epoch of each vat that was ever here, as long as there is room (R8).
#[derive(Debug, Default)]
struct Epochs {
    capacity: usize,
    highest: HashMap<VatId, (u64, u64)>,
    /// Counts what was seen: orders vats by when they were here last.
    clock: u64,
}

impl Epochs {
    fn of(&self, peer: &VatId) -> u64 {
        self.highest.get(peer).map_or(0, |(epoch, _)| *epoch)
    }

    fn saw(&mut self, peer: VatId, epoch: u64) {
        self.clock += 1;
        if !self.highest.contains_key(&peer) && self.highest.len() >= self.capacity {
            let oldest = self.highest.iter().min_by_key(|(_, (_, seen))| *seen).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| self.highest.remove(&oldest));
        }
        let known = self.of(&peer);
        self.highest.insert(peer, (epoch.max(known), self.clock));
    }
}

/// Counts one less.
fn uncount<N: Eq + Hash>(counts: &mut HashMap<N, usize>, key: &N) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
