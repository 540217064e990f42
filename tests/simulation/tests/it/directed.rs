//! One fault at a time, and what must come of it.

use std::time::Duration;

use simulation::{
    Host, Outcome, Plan, What,
    plan::{Fault, IDLE_TIMEOUT, KEEP_ALIVE, Way, Weather},
};
use transport::EndpointConfig;

use crate::world::{LIVE_CALLER, Mutation, Report, run};

const SECOND: Duration = Duration::from_secs(1);

/// A run without a breach.
fn lawful(plan: Plan) -> Report {
    let report = run(plan, Mutation::None);
    assert_eq!(report.breaches(), [], "{}", report.plan);
    report
}

fn sessions(report: &Report, caller: u8) -> usize {
    let of_caller = |what: &What| matches!(what, What::Began { .. });
    report.trace.events.iter().filter(|event| event.host == Host::Caller(caller) && of_caller(&event.what)).count()
}

fn answered(report: &Report) -> usize {
    report.trace.count(|what| matches!(what, What::Ended { outcome: Outcome::Answered, .. }))
}

fn called(report: &Report) -> usize {
    report.trace.count(|what| matches!(what, What::Called { .. }))
}

/// When a caller had a session again after `fault`.
fn back_after(report: &Report, caller: u8, fault: Duration) -> Duration {
    let began = |what: &What| matches!(what, What::Began { .. });
    let back = report
        .trace
        .events
        .iter()
        .find(|event| event.at > fault && event.host == Host::Caller(caller) && began(&event.what));
    back.expect("a session after the fault").at - fault
}

#[test]
fn the_times_of_a_plan_are_those_of_the_transport() {
    let config = EndpointConfig::default();
    assert_eq!((KEEP_ALIVE, IDLE_TIMEOUT), (config.keep_alive, config.idle_timeout));
}

#[test]
fn on_a_quiet_network_every_call_is_answered_in_one_session() {
    let report = lawful(Plan::quiet(1, Vec::new()));
    assert_eq!((sessions(&report, 0), sessions(&report, 1)), (1, 1));
    assert!(called(&report) > 50);
    assert_eq!(answered(&report), called(&report));
    assert_eq!(report.durable.len(), called(&report));
}

#[test]
fn datagrams_that_all_arrive_twice_and_out_of_order_carry_each_call_out_once() {
    let most_latency = Duration::from_millis(200);
    let weather = Weather { least_latency: Duration::from_millis(1), most_latency, loss: 0, duplication: 1000 };
    let report = lawful(Plan { weather, ..Plan::quiet(2, Vec::new()) });
    assert_eq!((sessions(&report, 0), answered(&report)), (1, called(&report)));
    assert_eq!(report.durable.len(), called(&report));
}

#[test]
fn one_datagram_in_five_is_lost_and_no_call() {
    let weather = Weather { loss: 200, ..Plan::quiet(3, Vec::new()).weather };
    let storm = Fault::Storm { loss: 200, lasts: 20 * SECOND };
    let report = lawful(Plan { weather, ..Plan::quiet(3, vec![(SECOND, storm)]) });
    assert_eq!((sessions(&report, 0), answered(&report)), (1, called(&report)));
}

#[test]
fn a_session_outlives_a_cut_that_is_shorter_than_anyone_notices() {
    for way in [Way::Both, Way::Towards, Way::Back] {
        let cut = Fault::Cut { caller: 0, way, lasts: 4 * SECOND };
        let report = lawful(Plan::quiet(4, vec![(2 * SECOND, cut)]));
        assert_eq!((sessions(&report, 0), sessions(&report, 1)), (1, 1), "{way:?}");
        assert_eq!(answered(&report), called(&report));
    }
}

#[test]
fn a_long_cut_breaks_the_session_of_that_caller_alone() {
    let cut = Fault::Cut { caller: 0, way: Way::Both, lasts: IDLE_TIMEOUT + 5 * SECOND };
    let report = lawful(Plan::quiet(5, vec![(2 * SECOND, cut)]));
    assert_eq!((sessions(&report, 0), sessions(&report, 1)), (2, 1));
    assert!(back_after(&report, 0, 2 * SECOND + IDLE_TIMEOUT + 5 * SECOND) < 3 * SECOND);
}

/// Nearly the idle timeout, so that the session lives on, with its next probe half a minute away. What comes from the vat
/// meanwhile, as it repeats itself, is no sign that it is there.
#[test]
fn a_live_reference_is_back_within_a_keep_alive_after_its_calls_were_cut_off_for_nearly_the_idle_timeout() {
    for way in [Way::Towards, Way::Back, Way::Both] {
        let cut = Fault::Cut { caller: LIVE_CALLER, way, lasts: IDLE_TIMEOUT - SECOND };
        for seed in 20..24 {
            // That every caller recovers in time is a law.
            lawful(Plan::quiet(seed, vec![(2 * SECOND, cut)]));
        }
    }
}

#[test]
fn an_address_changes_in_mid_session_and_no_call_is_lost() {
    let rebind = |at| (at, Fault::Rebind { caller: 0 });
    let report = lawful(Plan::quiet(6, vec![rebind(2 * SECOND), rebind(5 * SECOND), rebind(6 * SECOND)]));
    assert_eq!((sessions(&report, 0), answered(&report)), (1, called(&report)));
    assert_eq!(report.trace.count(|what| matches!(what, What::Struck(Fault::Rebind { .. }))), 3);
}

/// Its sessions died without a word, and it has a higher epoch; whoever talks to it is told at once, and does not
/// wait for an idle timeout.
#[test]
fn a_vat_that_was_killed_is_back_with_its_callers_a_moment_after_its_restart() {
    let down = 2 * SECOND;
    let report = lawful(Plan::quiet(7, vec![(3 * SECOND, Fault::Crash { host: Host::Vat, lasts: down })]));
    for caller in 0..2 {
        assert_eq!(sessions(&report, caller), 2);
        assert!(back_after(&report, caller, 3 * SECOND + down) < 4 * SECOND, "caller {caller}");
    }
    let epochs: Vec<u64> = report
        .trace
        .events
        .iter()
        .filter_map(|event| match event.what {
            What::Began { epoch, .. } => Some(epoch),
            _ => None,
        })
        .collect();
    assert_eq!(epochs, [1, 1, 2, 2]);
}

#[test]
fn a_caller_that_was_killed_begins_anew_and_the_other_does_not_notice() {
    let crash = Fault::Crash { host: Host::Caller(0), lasts: SECOND };
    let report = lawful(Plan::quiet(8, vec![(3 * SECOND, crash)]));
    assert_eq!((sessions(&report, 0), sessions(&report, 1)), (2, 1));
    assert!(back_after(&report, 0, 4 * SECOND) < SECOND);
}

#[test]
fn a_clock_that_jumps_past_the_idle_timeout_breaks_sessions_and_both_ends_recover() {
    for host in [Host::Vat, Host::Caller(0)] {
        let jump = Fault::Jump { host, by: IDLE_TIMEOUT * 2 };
        let report = lawful(Plan::quiet(9, vec![(3 * SECOND, jump)]));
        assert_eq!(sessions(&report, 0), 2, "{host:?}");
        assert!(back_after(&report, 0, 3 * SECOND) < 2 * SECOND, "{host:?}");
    }
}

#[test]
fn a_clock_that_jumps_a_little_breaks_nothing() {
    let jumps = [(3 * SECOND, Host::Vat), (4 * SECOND, Host::Caller(0))];
    let jumps = jumps.map(|(at, host)| (at, Fault::Jump { host, by: 20 * SECOND }));
    let report = lawful(Plan::quiet(10, jumps.to_vec()));
    assert_eq!((sessions(&report, 0), answered(&report)), (1, called(&report)));
}
