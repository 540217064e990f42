//! What must hold of every trace, whatever befell the machines.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::SocketAddr,
    time::Duration,
};

use super::{
    plan::{Fault, LAST_SEARCHES, Machine, Plan, SERVERS, Search},
    standing::{excused_by_clocks, judge_standing},
    trace::{Event, Found, Standing, Trace, Version, What},
};

/// For how long after a first good answer a better one is waited for: the resolver's, which a test compares with this.
pub const GRACE: Duration = Duration::from_millis(50);

/// The longest hedge: likewise.
pub const LONGEST_HEDGE: Duration = Duration::from_millis(500);

/// What a handshake may wait for its first timers (RFC 9002 §6.2: one second, then two).
const DIAL_TIMERS: Duration = Duration::from_secs(3);

/// Timers have milliseconds.
const TIMER: Duration = Duration::from_millis(2);

/// A law that a trace breaks. Searches are named by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Breach {
    /// A search ended with an older record than an answer to it had shown.
    UsedOlder(u32),
    /// A search ended with an older record than the finder had seen in an earlier one.
    WentBack(u32),
    /// A search ended with nothing, although the highest record that the finder had ever seen said where the vat is, and
    /// came in an answer to it.
    Ignored(u32),
    /// A search ended at somebody who is not the vat.
    WrongPeer(u32),
    /// A search ended at a place that the vat had left, as an answer had shown.
    StalePeer(u32),
    /// A search dialled a place that the vat had left, as an answer had shown.
    DialledAfterBetter(u32),
    /// A search did not end within the grace after an answer with the highest record known.
    SlowToSettle(u32),
    /// A search did not ask the next server within one hedge.
    SlowToAsk(u32),
    /// On a network that is whole, a search for a vat that all servers know did not find it in time.
    NotFound(u32),
    /// A search did not end.
    NeverEnded(u32),
    /// Servers that all have heard from a vat since the healing say different things of it, as a search found.
    Disagree(u32),
    /// A server did not know a vat any more whose publisher could reach it.
    Lost {
        /// The vat.
        vat: u8,
        /// The server.
        server: u8,
        /// Since when.
        at: Duration,
    },
    /// A publisher believes that it is registered with a server that does not know it.
    FalseBelief {
        /// The vat.
        vat: u8,
        /// The server.
        server: u8,
    },
    /// A vat stopped for a proof that proves nothing.
    StoppedByALie(u8),
    /// Of two copies of a vat the old one was not stopped.
    TwoCopies(u8),
    /// Something of a program still ran after its end.
    Leaked(Machine),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Every law that `trace` breaks.
#[must_use]
pub fn judge(plan: &Plan, trace: &Trace) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let searches = Searched::all(trace);
    let mut memories: HashMap<(Machine, u8), Memory> = HashMap::new();
    let signed = Signed::all(trace);
    for (number, search) in &searches {
        let memory = memories.entry((search.finder, search.vat)).or_default();
        search.judge_records(plan, *number, memory, &mut breaches);
        search.judge_dials(*number, memory, &signed, &mut breaches);
        search.judge_times(plan, *number, memory, &mut breaches);
        search.judge_recovery(plan, *number, &mut breaches);
        memory.heard.extend(search.heard.iter().filter_map(|heard| Some((heard.at, heard.version?))));
        memory.used = memory.used.max(search.used());
    }
    judge_standing(plan, trace, &mut breaches);
    judge_copies(plan, trace, &mut breaches);
    for event in &trace.events {
        match (&event.what, event.host) {
            (What::Leaked, machine) => breaches.push(Breach::Leaked(machine)),
            (What::Believes { server, standing: Some(Standing::Missing | Standing::Lapsed(_)) }, Machine::Vat(vat)) => {
                breaches.push(Breach::FalseBelief { vat, server: *server });
            }
            _ => {}
        }
    }
    breaches
}

/// What vats have signed: by vat and place, the highest record that names it.
struct Signed(HashMap<(u8, SocketAddr), Version>);

impl Signed {
    fn all(trace: &Trace) -> Self {
        let mut newest: HashMap<(u8, SocketAddr), Version> = HashMap::new();
        for event in &trace.events {
            if let (What::Signed { version }, Machine::Vat(vat)) = (&event.what, event.host)
                && let Some(place) = version.place
            {
                let newest = newest.entry((vat, place)).or_insert(*version);
                *newest = (*newest).max(*version);
            }
        }
        Self(newest)
    }

    fn newest_at(&self, vat: u8, place: SocketAddr) -> Option<Version> {
        self.0.get(&(vat, place)).copied()
    }
}

/// An answer that came to a search.
struct Heard {
    at: Duration,
    version: Option<Version>,
    lapsed: bool,
}

/// A vat and its epoch; none: a stranger.
type Occupant = Option<(u8, u64)>;

/// One search, as far as it was seen.
pub(super) struct Searched {
    pub(super) finder: Machine,
    vat: u8,
    began: Duration,
    first_wave: usize,
    known: Vec<Option<Standing>>,
    /// The finder has had sessions with servers before the end.
    warm: bool,
    asked: Vec<(Duration, u8)>,
    heard: Vec<Heard>,
    dialled: Vec<(Duration, SocketAddr)>,
    /// When, where, and whose program was there.
    reached: Option<(Duration, SocketAddr, Occupant)>,
    pub(super) ended: Option<(Duration, Found, Vec<u8>)>,
}

/// What a finder has seen of a vat in earlier searches.
#[derive(Default)]
struct Memory {
    heard: Vec<(Duration, Version)>,
    used: Option<Version>,
}

impl Memory {
    /// The highest record of all that came before a moment.
    fn highest(&self, before: Duration) -> Option<Version> {
        self.heard.iter().filter(|(at, _)| *at < before).map(|(_, version)| *version).chain(self.used).max()
    }
}

impl Searched {
    /// By number, which is in the order of time.
    fn all(trace: &Trace) -> BTreeMap<u32, Self> {
        let mut all: BTreeMap<u32, Self> = BTreeMap::new();
        let mut warmed = HashSet::new();
        for Event { at, host, what } in &trace.events {
            let at = *at;
            if let What::Began { search, vat, first_wave, known } = what {
                let (vat, first_wave, known) = (*vat, *first_wave, known.clone());
                let (asked, heard, dialled) = (Vec::new(), Vec::new(), Vec::new());
                let (finder, began, warm) = (*host, at, warmed.contains(host));
                let (reached, ended) = (None, None);
                all.insert(
                    *search,
                    Self { finder, vat, began, first_wave, known, warm, asked, heard, dialled, reached, ended },
                );
            }
            if matches!(what, What::Warmed) {
                warmed.insert(*host);
                all.values_mut()
                    .filter(|search| search.finder == *host && search.ended.is_none())
                    .for_each(|search| search.warm = true);
            }
            let number = match what {
                What::Asked { search, .. }
                | What::Heard { search, .. }
                | What::Dialled { search, .. }
                | What::Reached { search, .. }
                | What::Ended { search, .. } => search,
                _ => continue,
            };
            let Some(search) = all.get_mut(number) else { continue };
            match what {
                What::Asked { server, .. } => search.asked.push((at, *server)),
                What::Heard { version, lapsed, .. } => {
                    search.heard.push(Heard { at, version: *version, lapsed: *lapsed });
                }
                What::Dialled { place, .. } => search.dialled.push((at, *place)),
                What::Reached { place, occupant, .. } => search.reached = Some((at, *place, *occupant)),
                What::Ended { found, answered, .. } => search.ended = Some((at, found.clone(), answered.clone())),
                _ => {}
            }
        }
        all
    }

    fn used(&self) -> Option<Version> {
        match &self.ended {
            Some((_, Found::Record(version), _)) => *version,
            _ => None,
        }
    }

    /// The highest record that came in an answer to it before a moment. Of answers that come at one moment it is not known
    /// which was read first.
    fn highest(&self, before: Duration) -> Option<Version> {
        self.heard.iter().filter(|heard| heard.at < before).filter_map(|heard| heard.version).max()
    }

    /// No record is used that is older than what the finder could know.
    fn judge_records(&self, plan: &Plan, number: u32, memory: &Memory, breaches: &mut Vec<Breach>) {
        let Some((at, found, answered)) = &self.ended else { return };
        let shown = self.highest(*at);
        let remembered = memory.highest(self.began);
        let witnessed = answered.iter().filter_map(|server| self.known_throughout(plan, *server, *at)).max();
        match found {
            Found::Record(Some(used)) => {
                if shown.max(witnessed).is_some_and(|better| better > *used) {
                    breaches.push(Breach::UsedOlder(number));
                }
                if remembered.is_some_and(|better| better > *used) {
                    breaches.push(Breach::WentBack(number));
                }
            }
            Found::Nothing { .. } if self.dialled.is_empty() => {
                let is_ignored =
                    |shown: Version| shown.place.is_some() && remembered.is_none_or(|better| better <= shown);
                let contradicted = self.highest(*at + TIMER).max(witnessed) > shown;
                if shown.is_some_and(is_ignored) && !contradicted && !self.warm {
                    breaches.push(Breach::Ignored(number));
                }
            }
            Found::Record(None) | Found::Nothing { .. } => {}
        }
    }

    /// What an honest server knew when the search began, and so for as long as it did not lose it.
    fn known_throughout(&self, plan: &Plan, server: u8, until: Duration) -> Option<Version> {
        let known = self.known.get(usize::from(server)).copied().flatten()?;
        let loses = |at: Duration, fault: &Fault| match *fault {
            Fault::Crash { server: struck, lasts, .. } | Fault::Lies { server: struck, lasts, .. } => {
                struck == server && at <= until && self.began <= at + lasts
            }
            _ => false,
        };
        (!plan.faults.iter().any(|(at, fault)| loses(*at, fault))).then(|| known.version()).flatten()
    }

    /// Only the vat is talked to, and only where a record has it that is as high as any that the finder had seen then.
    fn judge_dials(&self, number: u32, memory: &Memory, signed: &Signed, breaches: &mut Vec<Breach>) {
        let remembered = memory.highest(self.began);
        let is_left = |place: SocketAddr, at: Duration| {
            let best = self.highest(at).max(remembered);
            best.is_some_and(|best| signed.newest_at(self.vat, place).is_none_or(|newest| newest < best))
        };
        if self.dialled.iter().any(|(at, place)| is_left(*place, *at)) {
            breaches.push(Breach::DialledAfterBetter(number));
        }
        let Some((at, place, occupant)) = self.reached else { return };
        if occupant.is_none_or(|(vat, _)| vat != self.vat) {
            breaches.push(Breach::WrongPeer(number));
        }
        if is_left(place, at) {
            breaches.push(Breach::StalePeer(number));
        }
    }

    /// It ends soon after it could, and asks the next in time.
    fn judge_times(&self, plan: &Plan, number: u32, memory: &Memory, breaches: &mut Vec<Breach>) {
        let ended = self.ended.as_ref().map(|(at, ..)| *at);
        if ended.is_none() && self.began + LAST_SEARCHES * 2 < plan.ends_at {
            breaches.push(Breach::NeverEnded(number));
        }
        let until = ended.unwrap_or(plan.ends_at);
        let remembered = memory.highest(self.began);
        let is_good = |heard: &&Heard| {
            // Nor is it contradicted while it may be.
            let best = self.highest(heard.at + GRACE + TIMER).max(remembered);
            heard.version >= best && !heard.lapsed && heard.version.is_some_and(|version| version.place.is_some())
        };
        // What a finder is told over a session may contradict it, too, and nobody can read that.
        let contradicted_unseen = |good: &Heard| match &self.ended {
            Some((_, Found::Record(_), _)) => self.warm && self.used() > good.version,
            _ => self.warm,
        };
        // A search that dials ends when somebody is reached.
        if let Some(good) = self.heard.iter().find(is_good)
            && self.dialled.is_empty()
            && !contradicted_unseen(good)
            && until > good.at + GRACE + TIMER
        {
            breaches.push(Breach::SlowToSettle(number));
        }
        let cold = if self.warm { 0 } else { usize::from(SERVERS) };
        for further in 0..cold.saturating_sub(self.first_wave) {
            let hedges = u32::try_from(further + 1).unwrap_or(u32::MAX);
            let due = self.began + LONGEST_HEDGE * hedges + TIMER;
            let asked = self.asked.iter().filter(|(at, _)| *at <= due).count();
            if until > due && asked < self.first_wave + further + 1 {
                breaches.push(Breach::SlowToAsk(number));
                break;
            }
        }
    }

    /// Once the network is whole, everything is found, and at once.
    fn judge_recovery(&self, plan: &Plan, number: u32, breaches: &mut Vec<Breach>) {
        if plan.last_searches_at().is_none_or(|last| self.began < last) {
            return;
        }
        // A server whose clock is behind refuses what the vat has signed since, and keeps what it has.
        if (0..SERVERS).any(|server| excused_by_clocks(plan, server, self.vat).is_some()) {
            return;
        }
        let live = |standing: &Option<Standing>| match standing {
            Some(Standing::Live(version)) => version.place.map(|place| (version.epoch, place)),
            _ => None,
        };
        let Some(known) = self.known.iter().map(live).collect::<Option<Vec<_>>>() else { return };
        if known.windows(2).any(|pair| pair[0] != pair[1]) {
            breaches.push(Breach::Disagree(number));
        }
        // A question and its answer; to dial, as much again, and what it takes when packets of the handshake overtake one
        // another.
        let dials = if self.dialled.is_empty() { Duration::ZERO } else { 2 * plan.longest_way() + DIAL_TIMERS };
        let due = self.began + 2 * plan.longest_way() + dials + GRACE + TIMER;
        let in_time = self.ended.as_ref().is_some_and(|(at, found, _)| {
            let place = self.used().and_then(|used| used.place);
            let is_there = matches!(found, Found::Record(_)) && known.iter().all(|(_, known)| place == Some(*known));
            is_there && *at <= due
        });
        if !in_time {
            breaches.push(Breach::NotFound(number));
        }
    }
}

/// Of two copies the old one stops, and only for a proof.
fn judge_copies(plan: &Plan, trace: &Trace, breaches: &mut Vec<Breach>) {
    let mut woken = HashSet::new();
    let mut superseded = HashSet::new();
    for event in &trace.events {
        let Machine::Vat(vat) = event.host else { continue };
        match event.what {
            What::Woke { epoch } => _ = woken.insert((vat, epoch)),
            What::Superseded { epoch, by } => {
                superseded.insert(vat);
                if by <= epoch || !woken.contains(&(vat, by)) {
                    breaches.push(Breach::StoppedByALie(vat));
                }
            }
            _ => {}
        }
    }
    let forked = plan.faults.iter().filter_map(|(_, fault)| match fault {
        Fault::Forks { vat } if plan.healed_at.is_some() => Some(*vat),
        _ => None,
    });
    breaches.extend(forked.filter(|vat| !superseded.contains(vat)).map(Breach::TwoCopies));
}

/// How long each search for a record took, of those that found one, and how many found none.
#[must_use]
pub fn lookups(plan: &Plan, trace: &Trace) -> (Vec<Duration>, usize) {
    let is_lookup = |(_, search): &&(Duration, Search)| !search.connects;
    let expected = plan.searches.iter().filter(is_lookup).count();
    let searches = Searched::all(trace);
    let took = |search: &Searched| match &search.ended {
        Some((at, Found::Record(Some(_)), _)) => Some(*at - search.began),
        _ => None,
    };
    let found: Vec<Duration> = searches.values().filter_map(took).collect();
    let missed = expected.saturating_sub(found.len());
    (found, missed)
}

#[cfg(test)]
mod tests;
