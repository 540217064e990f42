//! The resolver's pure core against a model, with simulated time.
use std::{cmp::Ordering, collections::BTreeSet, sync::LazyLock, time::Duration};

use crate::support::records::{HOUR, altered, draft, foreign, key, noon, vat};
use proptest::prelude::*;
use schemas::{ErrorCode, SearchPathEntry, SignedRecord, State};
use vls_client::{
    Candidate, Failure, Freshness, LeftOut, LookupTiming, Moment, Outcome,
    schedule::{Action, Answer, Entry, Event, Found, Goal, Schedule},
};

const MILLISECOND: Duration = Duration::from_millis(1);

/// What one simulated server does.
#[derive(Debug, Clone)]
enum Server {
    /// Answers with a record of the vat.
    Shows { record: usize, lapsed: bool },
    /// Answers with an altered record.
    Forges { record: usize },
    /// Answers with a record that is dated ahead.
    ShowsFuture,
    /// Answers with a record of another vat.
    ShowsAnother,
    /// Answers with what another program has signed with the vat's key.
    ShowsForeign,
    /// Knows nothing.
    Unknown,
    /// Fails.
    Fails,
    /// Never answers.
    Silent,
}

/// What the vat has signed in its life, in no order: epochs, times, states, valid and expired.
static SIGNED: LazyLock<Vec<SignedRecord>> = LazyLock::new(|| {
    let mut signed = Vec::new();
    for epoch in 1..=3 {
        for minutes in [0_u32, 2, 4] {
            for (validity, state) in [(HOUR, State::Live), (MILLISECOND, State::Live), (HOUR, State::Dormant)] {
                let timestamp = noon() - Duration::from_secs(60) * minutes - Duration::from_secs(60);
                signed.push(draft(epoch, timestamp).valid_for(validity).state(state).sign());
            }
        }
    }
    signed
});

static FUTURE: LazyLock<SignedRecord> = LazyLock::new(|| draft(9, noon() + HOUR).sign());
static ANOTHER: LazyLock<SignedRecord> = LazyLock::new(|| draft(9, noon()).by(2).sign());

fn at(elapsed: Duration) -> Moment {
    Moment { wall: noon() + elapsed, elapsed }
}

fn entry(number: u16) -> SearchPathEntry {
    SearchPathEntry::Vls { id: key(100).id(), host: "127.0.0.1".to_owned(), port: number + 1 }
}

fn entries(count: usize) -> Vec<Entry> {
    let entry = |number| {
        let entry = entry(u16::try_from(number).unwrap());
        Entry {
            candidate: Candidate::Entry(entry.clone()),
            entry,
            expected: None,
            suspect: false,
            rank: 0,
            left_out: None,
        }
    };
    (0..count).map(entry).collect()
}

impl Server {
    fn event(&self, slot: usize) -> Option<Event> {
        let packet = |packet: &[u8], lapsed| Answer::Packet { packet: packet.to_vec(), age: Some(MILLISECOND), lapsed };
        let answer = match self {
            Self::Shows { record, lapsed } => packet(SIGNED[*record].packet(), *lapsed),
            Self::Forges { record } => packet(&altered(&SIGNED[*record]), false),
            Self::ShowsFuture => packet(FUTURE.packet(), false),
            Self::ShowsAnother => packet(ANOTHER.packet(), false),
            Self::ShowsForeign => packet(&foreign(noon()), false),
            Self::Unknown => Answer::Unknown,
            Self::Fails => return Some(Event::Failed { slot, failure: Failure::Timeout { after: MILLISECOND } }),
            Self::Silent => return None,
        };
        Some(Event::Answered { slot, answer, vouched: true })
    }
}

/// What happened in one simulated lookup.
#[derive(Debug)]
struct Run {
    /// When each entry was asked.
    asked: Vec<Option<Duration>>,
    /// Who answered, in order.
    arrived: Vec<usize>,
    best: Vec<Option<SignedRecord>>,
    settled: Vec<(Duration, Found)>,
    finished: Vec<(Duration, Found)>,
    /// How many had arrived when the result was settled, and when all was finished.
    arrived_by: Vec<usize>,
    outcomes: Vec<Outcome>,
}

/// Runs a lookup to its end. Each server answers after its latency, counted from when it is asked.
fn run(mut schedule: Schedule, servers: &[(Duration, Server)]) -> Run {
    let mut run = Run {
        asked: vec![None; servers.len()],
        arrived: vec![],
        best: vec![],
        settled: vec![],
        finished: vec![],
        arrived_by: vec![],
        outcomes: vec![],
    };
    // (when, tie-breaker) so that equal times keep an order.
    let mut pending: BTreeSet<(Duration, usize)> = BTreeSet::new();
    let mut now = Duration::ZERO;
    let mut event = Event::Begin;
    loop {
        for action in schedule.handle(at(now), event) {
            match action {
                Action::Ask(slot) => {
                    assert_eq!(run.asked[slot], None, "asked twice");
                    run.asked[slot] = Some(now);
                    pending.insert((now + servers[slot].0, slot));
                }
                Action::Best(record) => run.best.push(record),
                Action::Learned(_) => {}
                Action::Settled => {
                    run.settled.push((now, schedule.verdict()));
                    run.arrived_by.push(run.arrived.len());
                }
                Action::Finished => {
                    run.finished.push((now, schedule.verdict()));
                    run.arrived_by.push(run.arrived.len());
                }
            }
        }
        let Some(wake_at) = schedule.wake_at() else { break };
        match pending.first().copied().filter(|(when, _)| *when < wake_at) {
            Some((when, slot)) => {
                pending.pop_first();
                now = when;
                event = match servers[slot].1.event(slot) {
                    Some(event) => {
                        run.arrived.push(slot);
                        event
                    }
                    None => Event::Tick,
                };
            }
            None => {
                assert!(wake_at >= now, "time stands still");
                now = wake_at;
                event = Event::Tick;
            }
        }
    }
    run.outcomes = schedule.attempts(at(now)).into_iter().map(|attempt| attempt.outcome).collect();
    run
}

fn reach(entries: Vec<Entry>, known: Option<SignedRecord>) -> Schedule {
    Schedule::new(vat(), Goal::Reach, entries, known, None, LookupTiming::default(), at(Duration::ZERO))
}

/// The highest record that the vat itself signed among the cached one and those that these servers show.
fn highest(servers: &[(Duration, Server)], arrived: &[usize], known: Option<&SignedRecord>) -> Option<SignedRecord> {
    let shown = arrived.iter().filter_map(|slot| match servers[*slot].1 {
        Server::Shows { record, .. } => Some(&SIGNED[record]),
        _ => None,
    });
    shown.chain(known).max_by(|one, other| one.compare(other)).cloned()
}

fn server() -> impl Strategy<Value = Server> {
    let record = 0..SIGNED.len();
    prop_oneof![
        4 => (record.clone(), any::<bool>()).prop_map(|(record, lapsed)| Server::Shows { record, lapsed }),
        1 => record.prop_map(|record| Server::Forges { record }),
        1 => Just(Server::ShowsFuture),
        1 => Just(Server::ShowsAnother),
        1 => Just(Server::ShowsForeign),
        1 => Just(Server::Unknown),
        1 => Just(Server::Fails),
        2 => Just(Server::Silent),
    ]
}

fn servers() -> impl Strategy<Value = Vec<(Duration, Server)>> {
    proptest::collection::vec(((1_u64..6000).prop_map(Duration::from_millis), server()), 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_highest_record_that_the_vat_signed_wins_and_nothing_else_counts(
        servers in servers(),
        known in proptest::option::of(0..SIGNED.len()),
    ) {
        let timing = LookupTiming::default();
        let known = known.map(|known| SIGNED[known].clone());
        let run = run(reach(entries(servers.len()), known.clone()), &servers);

        prop_assert_eq!(run.settled.len(), 1);
        prop_assert_eq!(run.finished.len(), 1);
        prop_assert!(run.settled[0].0 <= run.finished[0].0);
        prop_assert!(run.finished[0].0 <= timing.deadline);
        for ((end, found), arrived) in [&run.settled[0], &run.finished[0]].into_iter().zip(&run.arrived_by) {
            let expected = highest(&servers, &run.arrived[..*arrived], known.as_ref());
            let is_foreign = |slot: &usize| matches!(servers[*slot].1, Server::ShowsForeign);
            let arrived_foreign = run.arrived[..*arrived].iter().any(is_foreign);
            match (expected.filter(|record| record.check_time(at(*end).wall).is_ok()), found) {
                (Some(expected), Found::Record(found, _)) => prop_assert_eq!(&expected, found),
                (None, Found::Foreign) => prop_assert!(arrived_foreign),
                (None, Found::Unknown | Found::NoAnswer | Found::NobodyToAsk) => prop_assert!(!arrived_foreign),
                (expected, found) => prop_assert!(false, "expected {expected:?}, found {found:?}"),
            }
        }
        // What is dialled only ever gets higher.
        for pair in run.best.iter().flatten().collect::<Vec<_>>().windows(2) {
            prop_assert_eq!(pair[0].compare(pair[1]), Ordering::Less);
        }
        // One line each.
        prop_assert_eq!(run.outcomes.len(), servers.len() + usize::from(known.is_some()));
    }

    #[test]
    fn of_all_that_one_entry_answers_to_a_question_the_highest_counts_in_whatever_order_it_comes(
        said in proptest::collection::vec(server(), 1..5),
        other_is_silent in any::<bool>(),
    ) {
        let said: Vec<(Duration, Server)> = said.into_iter().map(|said| (MILLISECOND, said)).collect();
        // With nobody else to wait for, the first answer is the end of the lookup, but not of what is learned.
        let mut schedule = reach(entries(if other_is_silent { 2 } else { 1 }), None);
        let mut events = vec![Event::Begin];
        for (_, said) in &said {
            let Some(Event::Answered { slot, answer, vouched }) = said.event(0) else { continue };
            let is_first = events.len() == 1;
            let again = Event::AnsweredAgain { slot, answer: answer.clone() };
            events.push(if is_first { Event::Answered { slot, answer, vouched } } else { again });
        }
        let mut best = None;
        for action in events.into_iter().flat_map(|event| schedule.handle(at(MILLISECOND), event)) {
            if let Action::Best(record) = action {
                best = record;
            }
        }
        let all: Vec<usize> = (0..said.len()).collect();
        let usable = highest(&said, &all, None).filter(|record| record.check_time(at(MILLISECOND).wall).is_ok());
        prop_assert_eq!(&best, &usable);
        let is_live = |said: &(Duration, Server)| match said.1 {
            Server::Shows { record, lapsed } => !lapsed && Some(&SIGNED[record]) == usable.as_ref(),
            _ => false,
        };
        let freshness = if said.iter().any(is_live) { Freshness::Answered } else { Freshness::Lapsed };
        match (usable, schedule.verdict()) {
            (Some(usable), found) => prop_assert_eq!(found, Found::Record(usable, freshness)),
            (None, found) => prop_assert!(!matches!(found, Found::Record(..))),
        }
    }

    #[test]
    fn no_number_of_dead_or_lying_entries_delays_a_good_answer(
        others in proptest::collection::vec(0_usize..6, 0..4),
        position in 0_usize..4,
        latency in (1_u64..1000).prop_map(Duration::from_millis),
    ) {
        let bad = |kind: &usize| match kind {
            0 => (latency / 2, Server::Fails),
            1 => (latency / 2, Server::Forges { record: 0 }),
            2 => (latency / 2, Server::ShowsFuture),
            3 => (latency / 2, Server::ShowsAnother),
            4 => (latency / 2, Server::ShowsForeign),
            _ => (latency, Server::Silent),
        };
        let mut servers: Vec<_> = others.iter().take(3).map(bad).collect();
        let position = position.min(servers.len());
        servers.insert(position, (latency, Server::Shows { record: 0, lapsed: false }));
        let run = run(reach(entries(servers.len()), None), &servers);
        // All of them fit the first wave; entries of which nothing is known get a grace no longer than the
        // answer itself took, and never one that a person would see.
        prop_assert_eq!(run.asked[position], Some(Duration::ZERO));
        prop_assert!(run.settled[0].0 <= latency + latency.min(Duration::from_millis(50)));
        let found = Found::Record(SIGNED[0].clone(), Freshness::Answered);
        prop_assert_eq!(&run.settled[0].1, &found);
    }
}

/// Position in [`SIGNED`] of a record that has not expired.
fn signed(epoch: u64, minutes: u64, state: State) -> usize {
    let timestamp = noon() - Duration::from_secs(60 * minutes + 60);
    let wanted = |record: &SignedRecord| {
        record.record().epoch == epoch
            && record.timestamp() == timestamp
            && record.record().state == state
            && record.check_time(noon()).is_ok()
    };
    SIGNED.iter().position(wanted).unwrap()
}

fn shows(latency: u64, record: usize) -> (Duration, Server) {
    (Duration::from_millis(latency), Server::Shows { record, lapsed: false })
}

#[test]
fn an_entry_known_to_be_silent_costs_not_even_the_grace() {
    let mut entries = entries(2);
    entries[0].suspect = true;
    let servers = [(HOUR, Server::Silent), shows(40, signed(2, 0, State::Live))];
    let run = run(reach(entries, None), &servers);
    assert_eq!(run.settled[0].0, 40 * MILLISECOND);
}

#[test]
fn an_entry_that_usually_answers_may_improve_on_the_first_answer() {
    let mut entries = entries(2);
    entries[1].expected = Some(60 * MILLISECOND);
    let higher = signed(3, 0, State::Live);
    let servers = [shows(40, signed(2, 0, State::Live)), shows(55, higher)];
    let run = run(reach(entries, None), &servers);
    assert_eq!(run.settled[0], (55 * MILLISECOND, Found::Record(SIGNED[higher].clone(), Freshness::Answered)));
    assert_eq!(run.best.len(), 2, "the first was dialled at once");
}

#[test]
fn more_entries_than_a_wave_start_one_per_hedge_or_as_soon_as_one_fails() {
    let silent = || (HOUR, Server::Silent);
    let servers = [silent(), silent(), silent(), (10 * MILLISECOND, Server::Fails), silent(), silent(), silent()];
    let run = run(reach(entries(7), None), &servers);
    let hedge = LookupTiming::default().hedge;
    let asked: Vec<Duration> = run.asked.into_iter().flatten().collect();
    assert_eq!(asked[..4], [Duration::ZERO; 4]);
    assert_eq!(asked[4..], [10 * MILLISECOND, 10 * MILLISECOND + hedge, 10 * MILLISECOND + 2 * hedge]);
}

#[test]
fn a_measured_p95_replaces_the_hedge_delay() {
    let mut entries = entries(5);
    entries[3].expected = Some(20 * MILLISECOND);
    let servers = vec![(HOUR, Server::Silent); 5];
    assert_eq!(run(reach(entries, None), &servers).asked[4], Some(20 * MILLISECOND));
}

#[test]
fn silent_servers_are_waited_for_only_so_long_when_a_valid_record_is_cached() {
    let cached = SIGNED[signed(2, 0, State::Live)].clone();
    let run = run(reach(entries(2), Some(cached.clone())), &[(HOUR, Server::Silent), (HOUR, Server::Silent)]);
    assert_eq!(run.best, [Some(cached.clone())], "dialling begins at once");
    let patience = LookupTiming::default().cache_patience;
    assert_eq!(run.settled[0], (patience, Found::Record(cached, Freshness::Cached)));
    let kinds: Vec<&str> = run.outcomes.iter().map(Outcome::kind).collect();
    assert_eq!(kinds, ["record", "failed", "failed"], "at the deadline");
}

#[test]
fn a_server_that_was_told_less_recently_confirms_what_is_cached() {
    let cached = SIGNED[signed(2, 0, State::Live)].clone();
    let servers = [shows(30, signed(2, 4, State::Live)), (HOUR, Server::Silent)];
    let run = run(reach(entries(2), Some(cached.clone())), &servers);
    assert_eq!(run.settled[0], (60 * MILLISECOND, Found::Record(cached, Freshness::Cached)));
    assert_eq!(run.outcomes[1].code(), Some(ErrorCode::RecordStale));
}

#[test]
fn anybody_may_contradict_that_the_vat_sleeps_within_the_grace() {
    let (asleep, awake) = (signed(2, 2, State::Dormant), signed(2, 0, State::Live));
    let answers = run(reach(entries(2), None), &[shows(10, asleep), shows(700, awake)]);
    assert_eq!(answers.settled[0].1, Found::Record(SIGNED[awake].clone(), Freshness::Answered));
    let silent = run(reach(entries(2), None), &[shows(10, asleep), (HOUR, Server::Silent)]);
    let grace = LookupTiming::default().negative_grace;
    let found = Found::Record(SIGNED[asleep].clone(), Freshness::Answered);
    assert_eq!(silent.settled[0], (10 * MILLISECOND + grace, found));
}

#[test]
fn an_expired_record_of_a_later_epoch_makes_an_earlier_one_unusable() {
    let expired = SIGNED.iter().position(|record| record.record().epoch == 3 && record.check_time(noon()).is_err());
    let servers = [shows(10, signed(2, 0, State::Live)), shows(15, expired.unwrap())];
    let run = run(reach(entries(2), None), &servers);
    assert_eq!(run.best.len(), 2);
    assert_eq!(run.best[1], None, "what was dialled is given up");
    assert_eq!(run.finished[0].1, Found::NoAnswer);
    assert_eq!(run.outcomes[1].code(), Some(ErrorCode::RecordExpired));
}

#[test]
fn who_is_silent_for_longer_than_usual_is_overdue_until_it_answers() {
    let mut entries = entries(5);
    entries[1].expected = Some(MILLISECOND * 20);
    let timing = LookupTiming { first_wave: 3, ..LookupTiming::default() };
    let mut schedule = Schedule::new(vat(), Goal::Reach, entries, None, None, timing, at(Duration::ZERO));
    schedule.handle(at(Duration::ZERO), Event::Begin);
    schedule.handle(at(MILLISECOND), Server::Unknown.event(2).unwrap());
    let overdue = |schedule: &Schedule, now| schedule.overdue(at(now)).collect::<Vec<_>>();
    let last = MILLISECOND / 1000;
    // The third has answered, upon which the fourth was asked; the fifth is not asked yet.
    assert!(overdue(&schedule, MILLISECOND * 20).is_empty());
    assert_eq!(overdue(&schedule, MILLISECOND * 20 + last), [1]);
    assert_eq!(overdue(&schedule, timing.hedge), [1]);
    assert_eq!(overdue(&schedule, timing.hedge + last), [0, 1]);
    assert_eq!(overdue(&schedule, timing.hedge + MILLISECOND + last), [0, 1, 3]);
    schedule.handle(at(timing.hedge), Server::Unknown.event(0).unwrap());
    assert_eq!(overdue(&schedule, timing.hedge + last), [1]);
}

#[test]
fn what_is_left_out_or_has_no_carrier_is_reported_and_not_asked() {
    let entry = |text: &str, left_out| {
        let entry: SearchPathEntry = text.parse().unwrap();
        Entry { candidate: Candidate::Entry(entry.clone()), entry, expected: None, suspect: false, rank: 0, left_out }
    };
    let path = vec![entry("https://example.org/vls", Some(LeftOut::Name)), entry("dht:", None)];
    let run = run(reach(path, None), &vec![(MILLISECOND, Server::Silent); 2]);
    assert_eq!(run.asked, [None; 2]);
    assert_eq!(run.finished[0], (Duration::ZERO, Found::NoAnswer));
    let lines: Vec<String> = run.outcomes.iter().map(ToString::to_string).collect();
    assert!(lines[0].contains("local-only") && lines[0].ends_with("(vls.left_out)"), "{}", lines[0]);
    assert_eq!(lines[1], "needs the Mainline DHT, which this build does not have (vls.no_carrier)");
}

#[test]
fn the_best_entry_is_asked_first_and_a_bad_one_last_but_not_never() {
    let mut path = entries(4);
    (path[0].suspect, path[1].rank, path[2].rank, path[3].rank) = (true, 3, 0, 1);
    let timing = LookupTiming { first_wave: 1, ..LookupTiming::default() };
    let schedule = Schedule::new(vat(), Goal::Reach, path, None, None, timing, at(Duration::ZERO));
    let run = run(schedule, &vec![(HOUR, Server::Silent); 4]);
    let mut order: Vec<usize> = (0..4).collect();
    order.sort_by_key(|slot| run.asked[*slot].expect("asked"));
    assert_eq!(order, [2, 3, 1, 0]);
}

#[test]
fn a_path_of_any_length_is_asked_only_so_far() {
    let most = vls_client::limits::MAX_CANDIDATES;
    let run = run(reach(entries(most + 3), None), &vec![(MILLISECOND, Server::Fails); most + 3]);
    assert_eq!(run.asked.iter().flatten().count(), most);
    assert!(run.outcomes[most..].iter().all(|outcome| outcome.kind() == "too_many"));
}

#[test]
fn a_witness_asks_all_at_once_waits_for_all_and_takes_records_of_any_time() {
    let expired = SIGNED.iter().position(|record| record.record().epoch == 3 && record.check_time(noon()).is_err());
    let mut servers = vec![shows(10, signed(2, 0, State::Live)); 5];
    servers.push(shows(4000, expired.unwrap()));
    servers.push((HOUR, Server::Silent));
    let timing = LookupTiming::default();
    let witness = |servers: &[(Duration, Server)]| {
        let now = at(Duration::ZERO);
        let schedule = Schedule::new(vat(), Goal::Witness, entries(servers.len()), None, None, timing, now);
        run(schedule, servers)
    };
    let run = witness(&servers);
    assert!(run.asked.iter().all(|asked| *asked == Some(Duration::ZERO)));
    assert_eq!(run.finished[0].0, timing.deadline);
    assert!(matches!(&run.finished[0].1, Found::Record(record, _) if *record == SIGNED[expired.unwrap()]));

    servers.pop();
    assert_eq!(witness(&servers).finished[0].0, 4000 * MILLISECOND, "all have answered");

    // Also one that is dated ahead: it is this machine's clock that may be wrong.
    let ahead = witness(&[(MILLISECOND, Server::ShowsFuture)]);
    assert!(matches!(&ahead.finished[0].1, Found::Record(record, _) if *record == *FUTURE));
    let forged = witness(&[(MILLISECOND, Server::Forges { record: 0 })]);
    assert_eq!(forged.finished[0].1, Found::NoAnswer);
}

#[test]
fn late_and_repeated_events_change_nothing() {
    let mut schedule = reach(entries(1), None);
    let record = signed(2, 0, State::Live);
    let answer = || shows(0, record).1.event(0).unwrap();
    schedule.handle(at(Duration::ZERO), Event::Begin);
    assert!(schedule.handle(at(MILLISECOND), answer()).contains(&Action::Finished));
    assert_eq!(schedule.handle(at(2 * MILLISECOND), answer()), []);
    let failed = Event::Failed { slot: 0, failure: Failure::Timeout { after: MILLISECOND } };
    assert_eq!(schedule.handle(at(3 * MILLISECOND), failed), []);
    assert!(matches!(schedule.attempts(at(HOUR))[0].outcome, Outcome::Record { .. }));
    assert_eq!(schedule.wake_at(), None);
}
