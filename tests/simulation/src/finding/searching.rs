//! What must hold of searches: what a finder was told is read from the wire, not asked of the finder.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use super::{
    counts::Counts,
    laws::{Breach, GRACE, LONGEST_HEDGE},
    plan::{Fault, LAST_SEARCHES, Machine, Plan, SERVERS},
    trace::{Event, Found, Standing, Trace, Version, What},
};

/// What a handshake may wait for its first timers (RFC 9002 §6.2: one second, then two).
const DIAL_TIMERS: Duration = Duration::from_secs(3);

/// Timers have milliseconds.
const TIMER: Duration = Duration::from_millis(2);

/// For how long a session is begun until that is given up: the resolver's.
const DIAL: Duration = Duration::from_secs(5);

/// Judges every search of a trace.
pub(super) fn judge_searches(plan: &Plan, trace: &Trace, breaches: &mut Vec<Breach>, counts: &mut Counts) {
    let searches = Searched::all(trace);
    let mut memories: HashMap<(Machine, u8), Memory> = HashMap::new();
    let (signed, unreadable) = (Signed::all(trace), Unreadable::all(trace));
    for (number, search) in &searches {
        let memory = memories.entry((search.finder, search.vat)).or_default();
        search.judge_records(plan, *number, memory, &unreadable, breaches);
        search.judge_dials(*number, memory, &signed, breaches);
        search.judge_end(plan, *number, memory, &unreadable, breaches, counts);
        search.judge_hedges(plan, *number, &unreadable, breaches, counts);
        search.judge_recovery(plan, *number, memory, &signed, breaches, counts);
        memory.heard.extend(search.heard.iter().filter_map(|heard| Some((heard.at, heard.version?))));
        memory.used = memory.used.max(search.used());
    }
}

/// What nobody could read: when packets of sessions went between finders and servers.
struct Unreadable(HashMap<Machine, Vec<(Duration, u8, bool)>>);

impl Unreadable {
    fn all(trace: &Trace) -> Self {
        let mut all: HashMap<Machine, Vec<(Duration, u8, bool)>> = HashMap::new();
        for event in &trace.events {
            if let What::Unreadable { server, comes } = event.what {
                all.entry(event.host).or_default().push((event.at, server, comes));
            }
        }
        Self(all)
    }

    fn between(&self, finder: Machine, from: Duration, to: Duration) -> impl Iterator<Item = (u8, bool)> {
        let packets = self.0.get(&finder).map_or(&[][..], Vec::as_slice);
        let first = packets.partition_point(|(at, ..)| *at < from);
        packets[first..].iter().take_while(move |(at, ..)| *at <= to).map(|(_, server, comes)| (*server, *comes))
    }

    /// Whether a finder may have been told something over a session.
    fn tells(&self, finder: Machine, from: Duration, to: Duration) -> bool {
        self.between(finder, from, to).any(|(_, comes)| comes)
    }

    /// Whether a finder begins a session with a server, or has just begun one: it may ask as soon as it stands.
    fn is_begun(&self, finder: Machine, server: u8, from: Duration, to: Duration) -> bool {
        self.between(finder, from.saturating_sub(DIAL), to).any(|(with, comes)| with == server && !comes)
    }
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
    pub(super) began: Duration,
    first_wave: usize,
    known: Vec<Option<Standing>>,
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
    pub(super) fn all(trace: &Trace) -> BTreeMap<u32, Self> {
        let mut all: BTreeMap<u32, Self> = BTreeMap::new();
        for Event { at, host, what } in &trace.events {
            let at = *at;
            if let What::Began { search, vat, first_wave, known } = what {
                let (vat, first_wave, known) = (*vat, *first_wave, known.clone());
                let (asked, heard, dialled) = (Vec::new(), Vec::new(), Vec::new());
                let (finder, began) = (*host, at);
                let (reached, ended) = (None, None);
                all.insert(
                    *search,
                    Self { finder, vat, began, first_wave, known, asked, heard, dialled, reached, ended },
                );
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
    fn judge_records(
        &self,
        plan: &Plan,
        number: u32,
        memory: &Memory,
        unreadable: &Unreadable,
        breaches: &mut Vec<Breach>,
    ) {
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
                let contradicted = contradicted || unreadable.tells(self.finder, self.began, *at);
                if shown.is_some_and(is_ignored) && !contradicted {
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

    /// Whether what the finder had seen by a moment shows that the vat is elsewhere.
    fn shows_left(&self, place: SocketAddr, at: Duration, memory: &Memory, signed: &Signed) -> bool {
        let best = self.highest(at).max(memory.highest(self.began));
        best.is_some_and(|best| signed.newest_at(self.vat, place).is_none_or(|newest| newest < best))
    }

    /// Only the vat is talked to, and only where a record has it that is as high as any that the finder had seen then.
    fn judge_dials(&self, number: u32, memory: &Memory, signed: &Signed, breaches: &mut Vec<Breach>) {
        let is_left = |place: SocketAddr, at: Duration| self.shows_left(place, at, memory, signed);
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

    /// It ends soon after it could.
    fn judge_end(
        &self,
        plan: &Plan,
        number: u32,
        memory: &Memory,
        unreadable: &Unreadable,
        breaches: &mut Vec<Breach>,
        counts: &mut Counts,
    ) {
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
        // A search that dials ends when somebody is reached.
        let Some(good) = self.heard.iter().find(is_good).filter(|_| self.dialled.is_empty()) else { return };
        let is_late = until > good.at + GRACE + TIMER;
        // What a finder is told over a session may contradict it, too, and nobody can read that.
        let is_contradicted = unreadable.tells(self.finder, self.began, good.at + GRACE + TIMER)
            && (self.used() > good.version || self.used().is_none());
        counts.settling.add(is_late && is_contradicted);
        if is_late && !is_contradicted {
            breaches.push(Breach::SlowToSettle(number));
        }
    }

    /// It asks the next in time.
    fn judge_hedges(
        &self,
        plan: &Plan,
        number: u32,
        unreadable: &Unreadable,
        breaches: &mut Vec<Breach>,
        counts: &mut Counts,
    ) {
        let until = self.ended.as_ref().map_or(plan.ends_at, |(at, ..)| *at);
        for further in 0..usize::from(SERVERS).saturating_sub(self.first_wave) {
            let hedges = u32::try_from(further + 1).unwrap_or(u32::MAX);
            let due = self.began + LONGEST_HEDGE * hedges + TIMER;
            if until <= due {
                break;
            }
            let is_asked = |server: &u8| self.asked.iter().any(|(at, asked)| asked == server && *at <= due);
            // A question that waits for a session to stand is seen as such by nobody.
            let may_be_asked =
                |server: &u8| is_asked(server) || unreadable.is_begun(self.finder, *server, self.began, due);
            let needed = self.first_wave + further + 1;
            let (asked, may_be) = ((0..SERVERS).filter(is_asked).count(), (0..SERVERS).filter(may_be_asked).count());
            counts.asking.add(asked < needed && may_be >= needed);
            if may_be < needed {
                breaches.push(Breach::SlowToAsk(number));
                break;
            }
        }
    }

    /// Once the network is whole, whoever a server knows is found, and at once.
    fn judge_recovery(
        &self,
        plan: &Plan,
        number: u32,
        memory: &Memory,
        signed: &Signed,
        breaches: &mut Vec<Breach>,
        counts: &mut Counts,
    ) {
        if plan.last_searches_at().is_none_or(|last| self.began < last) {
            return;
        }
        let is_gone = |fault: &Fault| *fault == Fault::Departs { vat: self.vat };
        if plan.faults.iter().any(|(_, fault)| is_gone(fault)) {
            return;
        }
        let live: Vec<Version> = self.known.iter().flatten().filter_map(live_at_a_place).collect();
        // Nothing that servers have is of use by this finder's clock, or it has seen what is dated by one that was ahead.
        let best = live.iter().max();
        let is_excused = best.is_none_or(|best| memory.highest(self.began).is_some_and(|seen| seen > *best));
        counts.finding.add(is_excused);
        if is_excused {
            return;
        }
        let all_agree = live.len() == usize::from(SERVERS)
            && live.windows(2).all(|pair| (pair[0].epoch, pair[0].place) == (pair[1].epoch, pair[1].place));
        // A question and its answer; of servers of which some do not know it, each may be asked after the one before. To
        // dial, as much again, and what it takes when packets of the handshake overtake one another.
        let questions = if all_agree { 1 } else { u32::from(SERVERS) };
        let dials = if self.dialled.is_empty() { Duration::ZERO } else { 2 * plan.longest_way() + DIAL_TIMERS };
        let due = self.began + questions * 2 * plan.longest_way() + dials + GRACE + TIMER;
        // A place that the finder remembers is dialled while servers are asked. A copy of the vat that has not been told yet
        // that it is one still answers there, and may do so as soon as any server: who is reached before an answer has come
        // that says otherwise is found, for nobody could know better. Who only looks up is not, nor who dials after it, nor
        // who asks nobody.
        let asked = self.asked.iter().filter(|(at, _)| *at <= self.began + TIMER).count();
        let found_by_memory = self.reached.is_some_and(|(at, place, occupant)| {
            let remembers = memory.highest(self.began).is_some_and(|remembered| remembered.place == Some(place));
            let is_used = remembers && self.used().is_some_and(|used| used.place == Some(place));
            is_used
                && asked >= self.first_wave
                && occupant.is_some_and(|(vat, _)| vat == self.vat)
                && !self.shows_left(place, at, memory, signed)
        });
        let in_time = self.ended.as_ref().is_some_and(|(at, found, _)| {
            let place = self.used().and_then(|used| used.place);
            let is_there = found_by_memory || live.iter().any(|live| live.place == place);
            matches!(found, Found::Record(_)) && is_there && *at <= due
        });
        if !in_time {
            breaches.push(Breach::NotFound(number));
        }
    }
}

fn live_at_a_place(standing: &Standing) -> Option<Version> {
    match standing {
        Standing::Live(version) => version.place.and(Some(*version)),
        _ => None,
    }
}
