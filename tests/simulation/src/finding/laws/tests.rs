//! Traces that break a law, made by hand: the judge sees each.

use std::net::SocketAddr;

use super::*;
use crate::{
    finding::{
        plan::{BEGINNING, Fault, SERVERS},
        trace::Version,
    },
    plan::Way,
};

const FINDER: Machine = Machine::Finder(0);
const VAT: Machine = Machine::Vat(0);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn version(epoch: u64, port: u16) -> Version {
    let signed = u64::try_from((BEGINNING + millis(epoch)).as_micros()).unwrap();
    Version { epoch, signed, place: Some(place(port)) }
}

fn place(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 168, 0, 4], port))
}

fn heard(server: u8, version: Version) -> What {
    What::Heard { search: 1, server, version: Some(version), lapsed: false }
}

fn ended(version: Version) -> What {
    What::Ended { search: 1, found: Found::Record(Some(version)), answered: vec![0] }
}

/// One vat that moved with its second epoch and one search for it, which is told both records and dials the better.
fn lawful() -> Vec<(u64, Machine, What)> {
    let (old, new) = (version(1, 1), version(2, 2));
    let known = vec![Some(Standing::Live(new)); 3];
    let mut events = vec![
        (0, VAT, What::Woke { epoch: 1 }),
        (0, VAT, What::Settled { epoch: 1, place: place(1) }),
        (0, VAT, What::Signed { version: old }),
        (500, VAT, What::Woke { epoch: 2 }),
        (500, VAT, What::Settled { epoch: 2, place: place(2) }),
        (500, VAT, What::Signed { version: new }),
    ];
    events.extend(
        (0..SERVERS)
            .map(|server| (600, Machine::Server(server), What::Knows { vat: 0, standing: Standing::Live(new) })),
    );
    events.push((1_000, FINDER, What::Began { search: 1, vat: 0, first_wave: 3, known }));
    events.extend((0..SERVERS).map(|server| (1_000, FINDER, What::Asked { search: 1, server })));
    events.extend([
        (1_040, FINDER, heard(1, old)),
        (1_060, FINDER, heard(0, new)),
        (1_060, FINDER, What::Dialled { search: 1, place: place(2) }),
        (1_100, FINDER, What::Reached { search: 1, place: place(2), occupant: Some((0, 2)) }),
        (1_100, FINDER, ended(new)),
        (50_000, VAT, What::Believes { server: 0, standing: Some(Standing::Live(new)) }),
    ]);
    events
}

/// What is said of the lawful run after `alter` has made it unlawful.
fn breaches(alter: impl FnOnce(&mut Vec<(u64, Machine, What)>)) -> Vec<Breach> {
    breaches_of(Plan { vats: 1, ..Plan::quiet(0, Vec::new()) }, alter)
}

fn breaches_of(plan: Plan, alter: impl FnOnce(&mut Vec<(u64, Machine, What)>)) -> Vec<Breach> {
    judge_of(plan, alter).breaches
}

fn judge_of(plan: Plan, alter: impl FnOnce(&mut Vec<(u64, Machine, What)>)) -> Judgement {
    let mut events = lawful();
    alter(&mut events);
    events.sort_by_key(|(at, ..)| *at);
    let mut trace = Trace::default();
    events.into_iter().for_each(|(at, machine, what)| trace.push(millis(at), machine, what));
    judge(&plan, &trace)
}

fn position(events: &[(u64, Machine, What)], is: impl Fn(&What) -> bool) -> usize {
    events.iter().position(|(.., what)| is(what)).unwrap()
}

fn is_end(what: &What) -> bool {
    matches!(what, What::Ended { .. })
}

fn is_reached(what: &What) -> bool {
    matches!(what, What::Reached { .. })
}

/// Makes the search one that does not dial.
fn only_look_up(events: &mut Vec<(u64, Machine, What)>) {
    events.retain(|(.., what)| !matches!(what, What::Dialled { .. } | What::Reached { .. }));
    let end = position(events, is_end);
    events[end].0 = 1_080;
}

#[test]
fn a_lawful_run_passes() {
    assert_eq!(breaches(|_| {}), []);
    assert_eq!(breaches(only_look_up), []);
}

#[test]
fn a_record_is_seen_that_is_older_than_what_an_answer_showed() {
    let found = breaches(|events| {
        only_look_up(events);
        let end = position(events, is_end);
        events[end].2 = ended(version(1, 1));
    });
    assert_eq!(found, [Breach::UsedOlder(1)]);
}

#[test]
fn a_record_is_seen_that_is_older_than_what_a_server_knew_that_is_said_to_have_answered() {
    let found = breaches(|events| {
        only_look_up(events);
        events.retain(|(at, _, what)| *at != 1_060 || !matches!(what, What::Heard { .. }));
        let end = position(events, is_end);
        events[end].2 = ended(version(1, 1));
    });
    assert_eq!(found, [Breach::UsedOlder(1)]);
}

#[test]
fn a_record_is_seen_that_is_older_than_one_of_an_earlier_search() {
    let found = breaches(|events| {
        let old = version(1, 1);
        let known = vec![None; 3];
        events.push((2_000, FINDER, What::Began { search: 2, vat: 0, first_wave: 3, known }));
        let found = Found::Record(Some(old));
        events.push((2_010, FINDER, What::Ended { search: 2, found, answered: vec![] }));
    });
    assert_eq!(found, [Breach::WentBack(2)]);
}

#[test]
fn an_answer_that_is_ignored_is_seen() {
    let found = breaches(|events| {
        only_look_up(events);
        let end = position(events, is_end);
        let found = Found::Nothing { code: "vls.unknown-vat".to_owned() };
        events[end].2 = What::Ended { search: 1, found, answered: vec![0] };
    });
    assert_eq!(found, [Breach::Ignored(1)]);
}

#[test]
fn another_peer_than_the_vat_is_seen() {
    for occupant in [None, Some((1, 2))] {
        let found = breaches(|events| {
            let reached = position(events, is_reached);
            events[reached].2 = What::Reached { search: 1, place: place(2), occupant };
        });
        assert_eq!(found, [Breach::WrongPeer(1)]);
    }
}

#[test]
fn a_place_that_the_vat_has_left_is_seen_when_it_is_dialled_and_when_it_answers() {
    let dialled = breaches(|events| events.push((1_070, FINDER, What::Dialled { search: 1, place: place(1) })));
    assert_eq!(dialled, [Breach::DialledAfterBetter(1)]);
    let reached = breaches(|events| {
        let reached = position(events, is_reached);
        events[reached].2 = What::Reached { search: 1, place: place(1), occupant: Some((0, 1)) };
    });
    assert_eq!(reached, [Breach::StalePeer(1)]);
    let before = breaches(|events| events.push((1_050, FINDER, What::Dialled { search: 1, place: place(1) })));
    assert_eq!(before, [], "nothing better was known then");
}

#[test]
fn a_search_that_waits_after_a_good_answer_is_seen() {
    let found = breaches(|events| {
        only_look_up(events);
        let end = position(events, is_end);
        events[end].0 = 1_120;
    });
    assert_eq!(found, [Breach::SlowToSettle(1)]);
}

#[test]
fn a_search_that_does_not_ask_the_next_server_within_a_hedge_is_seen() {
    let alter = |asked_at: u64| {
        breaches(|events| {
            only_look_up(events);
            events.retain(|(.., what)| !matches!(what, What::Heard { .. } | What::Asked { .. }));
            let began = position(events, |what| matches!(what, What::Began { .. }));
            let known = vec![None; 3];
            events[began].2 = What::Began { search: 1, vat: 0, first_wave: 1, known };
            events.push((1_000, FINDER, What::Asked { search: 1, server: 0 }));
            events.push((asked_at, FINDER, What::Asked { search: 1, server: 1 }));
            events.push((1_990, FINDER, What::Asked { search: 1, server: 2 }));
            let end = position(events, is_end);
            events[end].0 = 1_995;
        })
    };
    assert_eq!(alter(1_500), []);
    assert_eq!(alter(1_600), [Breach::SlowToAsk(1)]);
}

/// The search of the lawful run, after the network is whole.
fn at_the_end(events: &mut [(u64, Machine, What)]) {
    events.iter_mut().filter(|(_, machine, _)| *machine == FINDER).for_each(|(at, ..)| *at += 44_000);
}

#[test]
fn a_search_on_a_whole_network_that_finds_nothing_or_late_or_not_at_all_is_seen() {
    assert_eq!(breaches(|events| at_the_end(events)), []);
    let nothing = breaches(|events| {
        only_look_up(events);
        at_the_end(events);
        events.retain(|(.., what)| !matches!(what, What::Heard { .. }));
        let end = position(events, is_end);
        let found = Found::Nothing { code: "vls.unknown-vat".to_owned() };
        events[end].2 = What::Ended { search: 1, found, answered: vec![] };
    });
    assert_eq!(nothing, [Breach::NotFound(1)]);
    let late = breaches(|events| {
        only_look_up(events);
        at_the_end(events);
        events.retain(|(.., what)| !matches!(what, What::Heard { .. }));
        let end = position(events, is_end);
        events[end].0 = 45_400;
    });
    assert_eq!(late, [Breach::NotFound(1)]);
    let never = breaches(|events| {
        only_look_up(events);
        let end = position(events, is_end);
        events.remove(end);
    });
    assert_eq!(never, [Breach::NeverEnded(1), Breach::SlowToSettle(1)]);
}

#[test]
fn a_copy_that_runs_still_is_found_where_it_is_remembered_until_an_answer_says_that_there_is_a_newer_one() {
    let (old, new) = (version(1, 1), version(2, 2));
    let searched = |asks: bool, remembers: bool, dials: bool, used: Version, heard_at: u64| {
        breaches(move |events| {
            events.retain(|(at, machine, what)| {
                *machine != FINDER || *at <= 1_000 && (asks || !matches!(what, What::Asked { .. }))
            });
            at_the_end(events);
            let end = |search, used| {
                let found = Found::Record(Some(used));
                What::Ended { search, found, answered: vec![] }
            };
            let began = What::Began { search: 0, vat: 0, first_wave: 3, known: vec![None; 3] };
            let earlier = [(100, FINDER, began), (110, FINDER, end(0, old))];
            events.extend(earlier.into_iter().filter(|_| remembers));
            let occupant = Some((0, 1));
            let dial = [
                (45_000, FINDER, What::Dialled { search: 1, place: place(1) }),
                (45_060, FINDER, What::Reached { search: 1, place: place(1), occupant }),
            ];
            events.extend(dial.into_iter().filter(|_| dials));
            events.extend([(heard_at, FINDER, heard(0, new)), (45_060, FINDER, end(1, used))]);
        })
    };
    let by_memory = |remembers, dials, heard_at| searched(true, remembers, dials, old, heard_at);
    let is_not_found = |breaches: Vec<Breach>| breaches.contains(&Breach::NotFound(1));
    assert!(is_not_found(searched(false, true, true, old, 45_060)), "who asks nobody knows nothing");
    assert!(is_not_found(searched(true, true, true, version(1, 3), 45_060)), "it says that the vat is elsewhere");
    assert_eq!(by_memory(true, true, 45_060), [], "of what comes at one moment it is not known which was first");
    let too_late = [Breach::UsedOlder(1), Breach::StalePeer(1), Breach::NotFound(1)];
    assert_eq!(by_memory(true, true, 45_050), too_late);
    assert_eq!(by_memory(false, true, 45_060), [Breach::NotFound(1)], "nobody has told it of that place");
    assert_eq!(by_memory(true, false, 45_060), [Breach::NotFound(1)], "a lookup has to ask");
}

#[test]
fn a_server_that_does_not_know_where_a_vat_is_some_time_after_the_healing_is_seen() {
    let knows = |standing| {
        move |events: &mut Vec<_>| events.push((32_000, Machine::Server(2), What::Knows { vat: 0, standing }))
    };
    let (at, elsewhere) = (Plan::quiet(0, Vec::new()).last_searches_at().unwrap(), Standing::Live(version(1, 1)));
    assert_eq!(breaches(knows(elsewhere)), [Breach::NotBack { vat: 0, server: 2, at }]);
    assert_eq!(breaches(knows(Standing::Live(version(2, 2)))), []);
    let never = breaches(|events| events.retain(|(_, machine, _)| *machine != Machine::Server(2)));
    assert_eq!(never, [Breach::NotBack { vat: 0, server: 2, at }]);
}

#[test]
fn a_registration_that_ends_is_seen_unless_its_server_or_the_way_to_it_was_struck() {
    let back_at = |back: u64| {
        move |events: &mut Vec<_>| {
            let (lapsed, live) = (Standing::Lapsed(version(2, 2)), Standing::Live(version(2, 2)));
            events.push((25_000, Machine::Server(1), What::Knows { vat: 0, standing: lapsed }));
            events.push((back, Machine::Server(1), What::Knows { vat: 0, standing: live }));
        }
    };
    let (at, lasts) = (millis(25_000), millis(10_000));
    assert_eq!(breaches(back_at(26_000)), [Breach::Lost { vat: 0, server: 1, at }]);
    let struck = |fault| Plan { vats: 1, ..Plan::quiet(0, vec![(millis(10_000), fault)]) };
    let crash = struck(Fault::Crash { server: 1, empty: true, lasts });
    assert_eq!(breaches_of(crash.clone(), back_at(39_000)), []);
    // It has some tries after the healing to be back, and no more.
    let recovered_at = crash.last_searches_at().unwrap();
    let (lost, not_back) =
        (Breach::Lost { vat: 0, server: 1, at }, Breach::NotBack { vat: 0, server: 1, at: recovered_at });
    assert_eq!(breaches_of(crash, back_at(41_000)), [lost.clone(), not_back]);
    let elsewhere = struck(Fault::Crash { server: 0, empty: true, lasts });
    assert_eq!(breaches_of(elsewhere, back_at(26_000)), std::slice::from_ref(&lost));
    // What a short cut interrupts goes on: the lease lasts longer.
    let cut = |lasts| {
        let cut = Fault::Cut { server: 1, other: VAT, way: Way::Both, lasts };
        Plan { vats: 1, ..Plan::quiet(0, vec![(millis(7_000), cut)]) }
    };
    assert_eq!(breaches_of(cut(millis(100)), back_at(26_000)), [lost]);
    assert_eq!(breaches_of(cut(lasts), back_at(26_000)), []);
}

#[test]
fn a_wrong_clock_is_no_excuse_but_for_a_server_that_is_behind_what_it_has_and_only_as_long_as_it_is() {
    let (hour, set_right) = (millis(3_600_000), |machine| (millis(15_000), Fault::SetRight { machine }));
    let jump = |machine, ahead| (millis(10_000), Fault::Jump { machine, ahead, by: hour });
    let lapses = |events: &mut Vec<_>| {
        let (lapsed, live) = (Standing::Lapsed(version(2, 2)), Standing::Live(version(2, 2)));
        events.push((29_500, Machine::Server(1), What::Knows { vat: 0, standing: lapsed }));
        events.push((35_000, Machine::Server(1), What::Knows { vat: 0, standing: live }));
    };
    let judged = |faults| judge_of(Plan { vats: 1, ..Plan::quiet(0, faults) }, lapses);
    let lost = [Breach::Lost { vat: 0, server: 1, at: millis(29_500) }];
    for faults in [vec![], vec![jump(VAT, true)], vec![jump(VAT, false)], vec![jump(Machine::Server(1), true)]] {
        assert_eq!(judged(faults).breaches, lost);
    }
    let behind = jump(Machine::Server(1), false);
    assert_eq!(judged(vec![behind]).breaches, lost, "the vat can offer what the server has");
    let for_good = judged(vec![jump(VAT, true), behind]);
    assert_eq!((for_good.breaches, for_good.counts.back.excused), (vec![], 1));
    let for_a_while = judged(vec![jump(VAT, true), behind, set_right(Machine::Server(1))]);
    assert_eq!((for_a_while.breaches, for_a_while.counts.back.excused), (lost.to_vec(), 0));
    assert!(for_a_while.counts.standing.excused < for_good.counts.standing.excused);
}

#[test]
fn a_storm_of_renewals_is_seen_at_the_server_and_at_the_vat() {
    let every = |interval: usize, what: What, machine| {
        let times = (10_000..40_000).step_by(interval);
        breaches(move |events| events.extend(times.map(|at| (at, machine, what.clone()))))
    };
    let (renewed, server) = (What::Renewed { vat: 0 }, Machine::Server(1));
    assert_eq!(every(14_000, renewed.clone(), server), []);
    assert!(matches!(every(3_000, renewed, server)[..], [Breach::RenewedTooOften { vat: 0, server: 1, .. }]));
    assert_eq!(every(4_500, What::Offers, VAT), []);
    assert!(matches!(every(700, What::Offers, VAT)[..], [Breach::TriedTooOften { vat: 0, .. }]));
}

#[test]
fn a_clock_that_is_set_is_a_reason_to_register_once_more_and_only_the_servers_or_the_vats() {
    let is_storm = |faults| {
        let often = |events: &mut Vec<_>| {
            let times = (0..8).map(|number| 20_000 + number * 4_000);
            events.extend(times.map(|at| (at, Machine::Server(1), What::Renewed { vat: 0 })));
        };
        let plan = Plan { vats: 1, ..Plan::quiet(0, faults) };
        breaches_of(plan, often).iter().any(|breach| matches!(breach, Breach::RenewedTooOften { .. }))
    };
    let set = |machine| vec![(millis(30_000), Fault::Jump { machine, ahead: true, by: millis(1) })];
    assert!(is_storm(vec![]) && is_storm(set(Machine::Server(2))));
    assert!(!is_storm(set(Machine::Server(1))) && !is_storm(set(VAT)));
}

#[test]
fn a_publisher_that_believes_what_is_not_so_is_seen() {
    let found = breaches(|events| {
        events.push((50_000, VAT, What::Believes { server: 2, standing: Some(Standing::Missing) }));
    });
    assert_eq!(found, [Breach::FalseBelief { vat: 0, server: 2 }]);
}

#[test]
fn a_vat_that_stops_without_proof_and_a_copy_that_does_not_stop_are_seen() {
    for by in [2, 3] {
        let found = breaches(|events| events.push((2_000, VAT, What::Superseded { epoch: 2, by })));
        assert_eq!(found, [Breach::StoppedByALie(0)]);
    }
    let forked = || Plan { vats: 1, ..Plan::quiet(0, vec![(millis(500), Fault::Forks { vat: 0 })]) };
    assert_eq!(breaches_of(forked(), |_| {}), [Breach::TwoCopies(0)]);
    // Of which no server knew until then: the old one learns of it with its next renewal.
    let late = breaches_of(forked(), |events| {
        events.retain(|(.., what)| !matches!(what, What::Knows { .. } | What::Began { .. }));
        let standing = Standing::Live(version(2, 2));
        events.extend((0..SERVERS).map(|server| (31_000, Machine::Server(server), What::Knows { vat: 0, standing })));
    });
    assert_eq!(late, []);
    let stopped = breaches_of(forked(), |events| events.push((2_000, VAT, What::Superseded { epoch: 1, by: 2 })));
    assert_eq!(stopped, []);
}

#[test]
fn what_is_left_of_a_program_is_seen() {
    let found = breaches(|events| events.push((60_000, FINDER, What::Leaked)));
    assert_eq!(found, [Breach::Leaked(FINDER)]);
}
