//! Who stays and who goes: the pure core, and two of them against each other.

use std::{collections::HashMap, sync::OnceLock, time::Duration};

use proptest::prelude::*;
use schemas::{ErrorCode, IdentityKey, VatId};
use transport::{
    ResumeToken,
    peers::{Admission, Arrival, Begun, Direction, PeerLimits, Peers},
};

const SECOND: Duration = Duration::from_secs(1);

/// Derived once: a key costs more than everything else here.
fn id(seed: u8) -> VatId {
    static IDS: OnceLock<Vec<VatId>> = OnceLock::new();
    let ids = IDS.get_or_init(|| (0..100).map(|seed| IdentityKey::from_seed(&[seed; 32]).id()).collect());
    ids[usize::from(seed)]
}

/// Two ids, the smaller one first.
fn smaller_and_larger() -> (VatId, VatId) {
    let (one, other) = (id(1), id(2));
    if one.as_bytes() < other.as_bytes() { (one, other) } else { (other, one) }
}

fn token(number: u64) -> Option<ResumeToken> {
    let bytes = [number.to_le_bytes(), number.to_le_bytes()].concat();
    ResumeToken::from_slice(&bytes)
}

fn vat(peer: VatId, epoch: u64, direction: Direction) -> Arrival<u8> {
    Arrival { peer: Some(peer), network: 0, direction, epoch, incarnation: [1; 16], token: None, resumes: None }
}

fn tool(peer: VatId) -> Arrival<u8> {
    vat(peer, 0, Direction::Accepted)
}

/// A client that proves no id.
fn anonymous(network: u8) -> Arrival<u8> {
    Arrival { peer: None, network, ..tool(id(0)) }
}

fn never_idle(_: u64) -> Option<Duration> {
    None
}

/// Every session is idle since the second of its number.
fn by_number(number: u64) -> Option<Duration> {
    Some(SECOND * u32::try_from(number).unwrap())
}

fn kept(number: u64) -> Result<Admission, ErrorCode> {
    Ok(Admission { number, ends: vec![] })
}

fn instead_of(number: u64, old: u64, code: ErrorCode) -> Result<Admission, ErrorCode> {
    Ok(Admission { number, ends: vec![(old, code)] })
}

#[test]
fn a_vat_that_dials_again_replaces_its_dead_session_at_once() {
    let mut peers = Peers::new(id(9), PeerLimits::default());
    assert_eq!(peers.admit(SECOND, vat(id(1), 5, Direction::Accepted), never_idle), kept(0));
    let again = peers.admit(SECOND, vat(id(1), 5, Direction::Accepted), never_idle);
    assert_eq!(again, instead_of(1, 0, ErrorCode::SessionSuperseded));
    assert_eq!((peers.len(), peers.newest(&id(1))), (1, Some(1)));
}

#[test]
fn an_old_copy_does_not_end_a_newer_session_whose_epoch_is_forgotten() {
    let mut limits = PeerLimits::default();
    limits.remembered_epochs = 2;
    let mut peers = Peers::new(id(9), limits);
    assert_eq!(peers.admit(SECOND, vat(id(1), 6, Direction::Accepted), never_idle), kept(0));
    // Keys cost a stranger nothing, and each of them is a vat that greets with an epoch.
    for stranger in 2..6 {
        peers.admit(SECOND, vat(id(stranger), 1, Direction::Accepted), never_idle).unwrap();
    }
    for direction in [Direction::Accepted, Direction::Dialled] {
        assert_eq!(peers.admit(SECOND, vat(id(1), 5, direction), never_idle), Err(ErrorCode::SessionSuperseded));
    }
    assert_eq!(peers.newest(&id(1)), Some(0));
}

#[test]
fn a_vat_that_was_started_again_replaces_its_old_session_and_the_old_one_does_not_come_back() {
    let mut peers = Peers::new(id(9), PeerLimits::default());
    peers.admit(SECOND, vat(id(1), 5, Direction::Accepted), never_idle).unwrap();
    let newer = peers.admit(SECOND, vat(id(1), 6, Direction::Dialled), never_idle);
    assert_eq!(newer, instead_of(1, 0, ErrorCode::SessionSuperseded));
    let old = peers.admit(SECOND, vat(id(1), 5, Direction::Accepted), never_idle);
    assert_eq!(old, Err(ErrorCode::SessionSuperseded));
    peers.ended(1);
    assert!(peers.is_empty());
    let old = peers.admit(SECOND, vat(id(1), 5, Direction::Accepted), never_idle);
    assert_eq!(old, Err(ErrorCode::SessionSuperseded), "remembered when the newer one has gone");
}

#[test]
fn of_two_that_crossed_both_sides_keep_the_one_that_the_smaller_id_dialled() {
    let (smaller, larger) = smaller_and_larger();
    for first in [Direction::Dialled, Direction::Accepted] {
        let second = if first == Direction::Dialled { Direction::Accepted } else { Direction::Dialled };
        for (ours, peer, keeps) in [(smaller, larger, Direction::Dialled), (larger, smaller, Direction::Accepted)] {
            let mut peers = Peers::new(ours, PeerLimits::default());
            assert_eq!(peers.admit(SECOND, vat(peer, 5, first), never_idle), kept(0));
            let outcome = peers.admit(2 * SECOND, vat(peer, 5, second), never_idle);
            if keeps == first {
                assert_eq!(outcome, Err(ErrorCode::SessionCrossed));
            } else {
                assert_eq!(outcome, instead_of(1, 0, ErrorCode::SessionCrossed));
            }
            assert_eq!(peers.len(), 1);
        }
    }
}

#[test]
fn a_dial_from_the_other_side_that_cannot_have_crossed_replaces_the_session() {
    let (smaller, larger) = smaller_and_larger();
    let limits = PeerLimits::default();
    let begin = || {
        let mut peers = Peers::new(smaller, limits.clone());
        let dialled = Arrival { token: token(1), ..vat(larger, 5, Direction::Dialled) };
        peers.admit(SECOND, dialled, never_idle).unwrap();
        peers
    };
    let accepted = |resumes| Arrival { resumes, token: token(2), ..vat(larger, 5, Direction::Accepted) };
    let replaced = instead_of(1, 0, ErrorCode::SessionSuperseded);
    // Its peer says that it lost it.
    assert_eq!(begin().admit(SECOND, accepted(token(1)), never_idle), replaced);
    // It is too old to have crossed anything, whatever token is shown.
    let late = 2 * SECOND + limits.crossing_window;
    for resumes in [None, token(1), token(77)] {
        assert_eq!(begin().admit(late, accepted(resumes), never_idle), replaced);
    }
    // Another process of the vat knows nothing of it.
    let restarted = Arrival { incarnation: [2; 16], ..accepted(None) };
    assert_eq!(begin().admit(SECOND, restarted, never_idle), replaced);
    // It lost to this one, was told so, and dials again: then it does not have this one.
    let mut peers = begin();
    assert_eq!(peers.admit(SECOND, accepted(None), never_idle), Err(ErrorCode::SessionCrossed));
    assert_eq!(peers.admit(SECOND, accepted(token(77)), never_idle), Err(ErrorCode::SessionCrossed));
    assert_eq!(peers.admit(SECOND, accepted(token(2)), never_idle), replaced);
}

#[test]
fn who_is_no_vat_may_have_a_few_sessions_and_then_loses_its_oldest() {
    let mut limits = PeerLimits::default();
    limits.sessions_per_peer = 2;
    let mut peers = Peers::new(id(9), limits);
    assert_eq!(peers.admit(SECOND, tool(id(1)), never_idle), kept(0));
    assert_eq!(peers.admit(SECOND, tool(id(1)), never_idle), kept(1));
    assert_eq!(peers.admit(SECOND, tool(id(1)), never_idle), Err(ErrorCode::SessionLimit), "both are busy");
    assert_eq!(peers.admit(SECOND, tool(id(1)), by_number), instead_of(2, 0, ErrorCode::SessionEvicted));
    // One that it says it lost makes the room itself.
    let shows = Arrival { token: token(3), ..tool(id(2)) };
    peers.admit(SECOND, shows, never_idle).unwrap();
    peers.admit(SECOND, tool(id(2)), never_idle).unwrap();
    let resumes = Arrival { resumes: token(3), ..tool(id(2)) };
    assert_eq!(peers.admit(SECOND, resumes, never_idle), instead_of(5, 3, ErrorCode::SessionSuperseded));
}

#[test]
fn a_full_table_evicts_who_was_idle_for_the_longest_and_nobody_who_was_not() {
    let mut limits = PeerLimits::default();
    (limits.sessions, limits.sessions_per_network) = (3, 3);
    let late = limits.evictable_after + 10 * SECOND;
    let mut peers = Peers::new(id(9), limits);
    // Our own, idle for ever, and two strangers.
    peers.admit(SECOND, vat(id(1), 1, Direction::Dialled), by_number).unwrap();
    peers.admit(SECOND, tool(id(2)), by_number).unwrap();
    peers.admit(SECOND, tool(id(3)), by_number).unwrap();
    assert_eq!(
        peers.admit(5 * SECOND, tool(id(4)), by_number),
        Err(ErrorCode::SessionLimit),
        "a pause is not idleness"
    );
    assert_eq!(peers.admit(late, tool(id(4)), never_idle), Err(ErrorCode::SessionLimit));
    assert_eq!(peers.admit(late, tool(id(4)), by_number), instead_of(3, 1, ErrorCode::SessionEvicted));
    assert_eq!(peers.len(), 3);
    assert!(peers.newest(&id(1)).is_some(), "what this side dialled is never evicted");
    // What this side dials is let in all the same.
    assert_eq!(peers.admit(late, vat(id(5), 1, Direction::Dialled), never_idle), kept(4));
}

#[test]
fn a_network_that_has_its_share_makes_room_among_its_own() {
    let mut limits = PeerLimits::default();
    (limits.sessions, limits.sessions_per_network) = (4, 2);
    let late = limits.evictable_after + 10 * SECOND;
    let mut peers = Peers::new(id(9), limits);
    let of = |network, seed| Arrival { network, ..tool(id(seed)) };
    peers.admit(SECOND, of(7, 1), by_number).unwrap();
    peers.admit(SECOND, of(8, 2), by_number).unwrap();
    peers.admit(SECOND, of(8, 3), by_number).unwrap();
    // The oldest of all is number 0, of another network.
    assert_eq!(peers.admit(late, of(8, 4), by_number), instead_of(3, 1, ErrorCode::SessionEvicted));
    assert_eq!(peers.admit(late, of(8, 5), never_idle), Err(ErrorCode::SessionLimit));
    assert_eq!(peers.admit(late, of(7, 5), never_idle), kept(4), "the other has a place of its own");
}

#[test]
fn a_full_table_evicts_in_the_network_that_has_the_most_and_not_who_came_alone() {
    let mut limits = PeerLimits::default();
    (limits.sessions, limits.sessions_per_network) = (4, 4);
    let late = limits.evictable_after + 10 * SECOND;
    let mut peers = Peers::new(id(9), limits);
    for network in [7, 8, 8, 8] {
        peers.admit(SECOND, anonymous(network), by_number).unwrap();
    }
    // The oldest of all is number 0; it is alone.
    assert_eq!(peers.admit(late, anonymous(6), by_number), instead_of(4, 1, ErrorCode::SessionEvicted));
    // Now network 7 would have as many as 8, and the one that is idle for the longest is its own.
    assert_eq!(peers.admit(late, anonymous(7), by_number), instead_of(5, 0, ErrorCode::SessionEvicted));
    // Of the most crowded only those who are idle go; if they are not, somebody else does.
    let only = |idle: u64| move |number| (number == idle).then_some(SECOND);
    assert_eq!(peers.admit(late, anonymous(6), only(5)), instead_of(6, 5, ErrorCode::SessionEvicted));
    assert_eq!(peers.admit(late, anonymous(6), never_idle), Err(ErrorCode::SessionLimit));
}

#[test]
fn clients_without_an_id_are_counted_by_their_network_alone() {
    let mut limits = PeerLimits::default();
    (limits.sessions_per_peer, limits.sessions_per_network) = (1, 3);
    let late = limits.evictable_after + 10 * SECOND;
    let mut peers = Peers::new(id(9), limits);
    for number in 0..3 {
        assert_eq!(peers.admit(SECOND, anonymous(7), by_number), kept(number), "none is another session of the same");
    }
    assert_eq!(peers.admit(SECOND, anonymous(7), by_number), Err(ErrorCode::SessionLimit), "a pause is not idleness");
    assert_eq!(peers.admit(late, anonymous(7), by_number), instead_of(3, 0, ErrorCode::SessionEvicted));
    (1..4).for_each(|number| peers.ended(number));
    assert!(peers.is_empty());
}

#[test]
fn a_handshake_too_many_takes_the_place_of_the_oldest_where_most_are() {
    let mut limits = PeerLimits::default();
    (limits.handshakes, limits.handshakes_per_network) = (4, 3);
    let mut peers = Peers::new(id(9), limits);
    let begin = |peers: &mut Peers<u8>, network| peers.begin_handshake(network);
    let begun = |number, drops| Begun { number, drops };
    assert_eq!(begin(&mut peers, 2), begun(0, None), "the oldest of all, and alone");
    for number in 1..4 {
        assert_eq!(begin(&mut peers, 1), begun(number, None));
    }
    assert_eq!(begin(&mut peers, 1), begun(4, Some(1)), "network 1 has its three: the oldest of its own");
    assert_eq!(begin(&mut peers, 3), begun(5, Some(2)), "all four are taken: the oldest of network 1");
    assert_eq!(begin(&mut peers, 2), begun(6, Some(0)), "network 2 would have as many as network 1");
    // Two have 2, 3 has one: who ends makes room, and once only.
    peers.end_handshake(5);
    peers.end_handshake(5);
    peers.end_handshake(0);
    assert_eq!(begin(&mut peers, 3), begun(7, None));
    assert_eq!(begin(&mut peers, 3), begun(8, Some(3)));
    assert_eq!(peers.admit(SECOND, tool(id(1)), never_idle), kept(9), "and none takes one from sessions");
}

// ---- two sides against each other

/// One connection between the two sides, and what each has of it.
#[derive(Debug, Clone, Default)]
struct Line {
    /// Side 0 or 1.
    dialler: usize,
    resumes: Option<u64>,
    /// The number at each side, while it holds its half.
    halves: [Option<u64>; 2],
    begun: [bool; 2],
    /// Whether word is on its way to a side that the other has ended it, and whether it has arrived.
    told: [bool; 2],
    heard: [bool; 2],
    /// Nothing passes any more, and nobody says so.
    broken: bool,
}

struct World {
    sides: [Peers<u8>; 2],
    ids: [VatId; 2],
    lines: Vec<Line>,
    /// The line that a side has lost, and not named yet.
    lost: [Option<u64>; 2],
    now: Duration,
}

impl World {
    fn new() -> Self {
        let ids = [id(1), id(2)];
        let side = |ours| Peers::new(ours, PeerLimits::default());
        Self { sides: ids.map(side), ids, lines: vec![], lost: [None; 2], now: Duration::ZERO }
    }

    /// Begins a dial, if the side has no session and none is under way.
    fn dial(&mut self, side: usize) {
        let under_way = |line: &Line| line.dialler == side && !(line.begun[side] || line.heard[side] || line.broken);
        if self.sides[side].is_empty() && !self.lines.iter().any(under_way) {
            let resumes = self.lost[side].take();
            self.lines.push(Line { dialler: side, resumes, ..Line::default() });
        }
    }

    /// The greeting of a line is complete at a side.
    fn begin(&mut self, line: usize, side: usize) {
        let Line { dialler, resumes, begun, broken, heard, .. } = self.lines[line].clone();
        // The dialler's greeting arrives first or second; neither waits for the other.
        if broken || begun[side] || heard[side] {
            return;
        }
        self.lines[line].begun[side] = true;
        let direction = if dialler == side { Direction::Dialled } else { Direction::Accepted };
        let arrival = Arrival {
            token: token(line as u64),
            resumes: resumes.and_then(token),
            ..vat(self.ids[1 - side], 5, direction)
        };
        match self.sides[side].admit(self.now, arrival, never_idle) {
            Ok(Admission { number, ends }) => {
                self.lines[line].halves[side] = Some(number);
                ends.iter().for_each(|(ended, _)| self.end(*ended, side));
            }
            Err(code) => {
                assert_eq!(code, ErrorCode::SessionCrossed);
                self.tell(line, 1 - side);
            }
        }
    }

    fn end(&mut self, number: u64, side: usize) {
        let line = self.lines.iter().position(|line| line.halves[side] == Some(number)).unwrap();
        self.lines[line].halves[side] = None;
        self.tell(line, 1 - side);
    }

    fn tell(&mut self, line: usize, side: usize) {
        self.lines[line].told[side] = true;
    }

    /// A side hears that the other has ended a line, or finds out by itself that it is broken.
    fn hear(&mut self, line: usize, side: usize) {
        let Line { halves, told, broken, .. } = self.lines[line];
        self.lines[line].heard[side] = told[side] && !broken;
        if let Some(number) = halves[side]
            && (broken || told[side])
        {
            self.sides[side].ended(number);
            self.lines[line].halves[side] = None;
            self.lost[side] = Some(line as u64);
        }
    }

    /// Lets everything arrive that can, and everybody find out what they can.
    fn settle(&mut self) {
        for _ in 0..4 {
            for line in 0..self.lines.len() {
                for side in [0, 1] {
                    self.begin(line, side);
                    self.hear(line, side);
                }
            }
        }
    }

    /// The lines of which each side holds its half.
    fn held(&self, side: usize) -> Vec<usize> {
        (0..self.lines.len()).filter(|line| self.lines[*line].halves[side].is_some()).collect()
    }
}

/// Dials of one run.
const LINES: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Dial(usize),
    Begin(usize, usize),
    Hear(usize, usize),
    Break(usize),
    /// A side forgets which session it lost.
    Forget(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (line, side) = (0..LINES, 0_usize..2);
    prop_oneof![
        3 => side.clone().prop_map(Step::Dial),
        6 => (line.clone(), side.clone()).prop_map(|(line, side)| Step::Begin(line, side)),
        3 => (line.clone(), side).prop_map(|(line, side)| Step::Hear(line, side)),
        1 => line.prop_map(Step::Break),
        1 => (0_usize..2).prop_map(Step::Forget),
        1 => (0_u64..30).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// In whatever order dials, greetings, goodbyes and losses happen: each side has at most one session, when all is
    /// quiet both have the same one, and whoever has none gets one by dialling.
    #[test]
    fn two_sides_come_to_the_same_session(calm: bool, steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        (0..2).for_each(|side| world.dial(side));
        for step in steps {
            match step {
                // Calm: each side dials once, nothing is lost, and greetings take no longer than they may.
                Step::Dial(_) | Step::Break(_) | Step::Wait(_) if calm => {}
                Step::Dial(side) if world.lines.len() < LINES => world.dial(side),
                Step::Begin(line, side) if line < world.lines.len() => world.begin(line, side),
                Step::Hear(line, side) if line < world.lines.len() => world.hear(line, side),
                Step::Break(line) if line < world.lines.len() => world.lines[line].broken = true,
                Step::Forget(side) => world.lost[side] = None,
                Step::Wait(seconds) => world.now += Duration::from_secs(seconds),
                _ => {}
            }
            prop_assert!(world.sides.iter().all(|side| side.len() <= 1));
        }
        // A vat comes back while the other side still holds a dead half: it is let in, at the latest when nothing can
        // have crossed any more. At once if it names what it lost.
        for (holder, comer) in [(0, 1), (1, 0)] {
            let held = world.held(holder);
            if let [line] = held[..] && world.lines[line].broken && world.sides[comer].is_empty() {
                let names_it = world.lost[comer] == Some(line as u64);
                if !names_it {
                    world.now += PeerLimits::default().crossing_window + SECOND;
                }
                let again = world.lines.len();
                let resumes = world.lost[comer].take();
                world.lines.push(Line { dialler: comer, resumes, ..Line::default() });
                world.begin(again, holder);
                prop_assert_eq!(world.held(holder), vec![again]);
            }
        }
        world.settle();
        prop_assert_eq!(world.held(0), world.held(1));
        if calm {
            prop_assert_eq!(world.held(0).len(), 1, "of those that crossed one is left");
        }
        if world.held(0).is_empty() {
            world.now += PeerLimits::default().crossing_window + SECOND;
            let again = world.lines.len();
            world.dial(0);
            world.settle();
            prop_assert_eq!(world.held(0), vec![again]);
            prop_assert_eq!(world.held(1), vec![again]);
        }
    }

    /// Whoever comes and goes: no cap is exceeded, counts are those of the sessions that there are, and nothing is left
    /// when all have gone.
    #[test]
    fn caps_hold_and_counts_are_true(
        steps in prop::collection::vec((0_u8..12, 0_u8..3, any::<bool>(), any::<bool>(), 0_u64..20), 0..120)
    ) {
        let mut limits = PeerLimits::default();
        (limits.sessions, limits.sessions_per_network, limits.sessions_per_peer) = (6, 4, 2);
        let mut peers = Peers::new(id(99), limits);
        let mut open: HashMap<u64, (u8, u8, Duration)> = HashMap::new();
        let mut now = Duration::ZERO;
        for (seed, network, leaves, idle, seconds) in steps {
            now += Duration::from_secs(seconds);
            if leaves {
                if let Some(number) = open.keys().min().copied() {
                    peers.ended(number);
                    peers.ended(number);
                    open.remove(&number);
                }
                continue;
            }
            let arrival = Arrival { network, ..tool(id(seed)) };
            let since = |number| open.get(&number).filter(|_| idle).map(|(_, _, since)| *since);
            let Ok(Admission { number, ends }) = peers.admit(now, arrival, since) else { continue };
            for (ended, code) in ends {
                prop_assert_eq!(code, ErrorCode::SessionEvicted);
                prop_assert!(idle);
                prop_assert!(open.remove(&ended).is_some(), "one that there is");
            }
            prop_assert!(open.insert(number, (seed, network, now)).is_none());
            prop_assert_eq!(peers.len(), open.len());
            prop_assert!(open.len() <= 6);
            for value in 0..12 {
                prop_assert!(open.values().filter(|(peer, ..)| *peer == value).count() <= 2);
                prop_assert!(open.values().filter(|(_, from, _)| *from == value).count() <= 4);
            }
        }
        for number in open.into_keys() {
            peers.ended(number);
        }
        prop_assert!(peers.is_empty());
        prop_assert_eq!(peers.admit(now, tool(id(1)), never_idle).map(|admission| admission.ends), Ok(vec![]));
    }

    /// Whoever begins: the newest is always in, no cap is exceeded, and a network loses none to one that would then have
    /// more than it.
    #[test]
    fn no_network_is_robbed_of_its_handshakes(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..80)) {
        let mut limits = PeerLimits::default();
        (limits.handshakes, limits.handshakes_per_network) = (6, 4);
        let mut peers = Peers::new(id(99), limits);
        let mut open: Vec<(u64, u8)> = Vec::new();
        for (network, ends) in steps {
            if ends {
                if !open.is_empty() {
                    peers.end_handshake(open.remove(open.len() / 2).0);
                }
                continue;
            }
            let Begun { number, drops } = peers.begin_handshake(network);
            let of = |open: &[(u64, u8)], network| open.iter().filter(|(_, of)| *of == network).count();
            let (own, all) = (of(&open, network), open.len());
            prop_assert_eq!(drops.is_some(), own == 4 || all == 6);
            if let Some(dropped) = drops {
                let place = open.iter().position(|(number, _)| *number == dropped).expect("one that there is");
                let (_, robbed) = open[place];
                prop_assert!(of(&open, robbed) > own || robbed == network);
                prop_assert!(open[..place].iter().all(|(_, of)| *of != robbed), "the oldest of its network");
                open.remove(place);
            }
            open.push((number, network));
        }
    }
}
