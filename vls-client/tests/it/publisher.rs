//! The publisher against real location servers.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use schemas::{Coded, ErrorCode, RecordError, SearchPathEntry, SignedRecord, State, Timestamp};
use tokio::task::spawn_local;
use transport::Endpoint;
use vls_client::{
    Disproof, Expected, Publisher, PublisherConfig, Reading, RecordSource, Refused, RegisterError, Registered,
    Resolver, ResolverConfig,
};

use crate::support::{
    net::{Replies, Server, dead_entry, finder, run, server, until},
    records::{Ahead, altered, draft, foreign, key, now, vat},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3600);

/// A vat of one epoch that signs whenever it is asked, each time a little later.
struct Vat {
    epoch: u64,
    state: Cell<State>,
    last: Cell<Timestamp>,
    broken: Cell<bool>,
    signed: RefCell<Vec<SignedRecord>>,
}

fn vat_of_epoch(epoch: u64) -> Rc<Vat> {
    let (state, last) = (Cell::new(State::Live), Cell::new(Timestamp::default()));
    Rc::new(Vat { epoch, state, last, broken: Cell::new(false), signed: RefCell::default() })
}

impl RecordSource for Vat {
    fn current(&self, now: Reading) -> Result<SignedRecord, RecordError> {
        if self.broken.get() {
            return Err(RecordError::Timestamp);
        }
        let timestamp = match now {
            Reading::Own(now) => now.max(self.last.get() + Duration::from_micros(1)),
            Reading::Server(now) => now,
        };
        self.last.set(timestamp);
        let record = draft(self.epoch, timestamp).state(self.state.get()).at(&["quic:127.0.0.1:9"]).sign();
        self.signed.borrow_mut().push(record.clone());
        Ok(record)
    }

    fn is_own(&self, record: &SignedRecord) -> bool {
        self.signed.borrow().iter().any(|own| own.packet() == record.packet())
    }
}

fn publisher(path: &[&SearchPathEntry], vat: &Rc<Vat>) -> Publisher {
    publisher_with(path, vat, PublisherConfig::default())
}

fn publisher_with(path: &[&SearchPathEntry], vat: &Rc<Vat>, config: PublisherConfig) -> Publisher {
    Publisher::new(finder(), path.iter().copied().cloned().collect(), vat.clone(), config)
}

/// Renews as fast as leases allow, and retries at once.
fn hasty() -> PublisherConfig {
    let mut config = PublisherConfig::default();
    let soon = Duration::from_millis(1);
    config.timing.min_renewal = soon;
    config.timing.retry_base = soon;
    config.timing.retry_cap = soon;
    config
}

async fn until_arrived(server: &Server, count: usize) {
    server.until(|server| server.arrived.borrow().len() >= count).await;
}

#[test]
fn an_announcement_reaches_every_entry_and_a_dead_one_is_reported_at_the_deadline() {
    run(async {
        let (one, other, dead) = (server(50), server(51), dead_entry());
        let no_carrier: SearchPathEntry = "dht:".parse().unwrap();
        let publisher = publisher(&[&dead.entry, &one.entry, &no_carrier, &other.entry], &vat_of_epoch(3));
        let reports = publisher.announce(Expected::Anything, SECOND).await;
        let registered: Vec<bool> = reports.iter().map(|report| report.is_registered()).collect();
        assert_eq!(registered, [false, true, false, true]);
        assert_eq!(reports[0].error().unwrap().code(), ErrorCode::NetTimeout);
        assert_eq!(reports[2].error().unwrap().code(), ErrorCode::VlsNoCarrier);
        assert_eq!((one.arrived().len(), other.arrived().len()), (1, 1));

        // Half of an hour, give or take a tenth.
        let next = reports[1].next_attempt.unwrap().saturating_since(now());
        assert!(next > SECOND * 1600 && next < SECOND * 2000, "{next:?}");
        assert!(reports[0].next_attempt.is_some(), "the dead one is tried again");
        assert_eq!(reports[2].next_attempt, None);
        assert!(reports[0].to_string().contains("never registered there; next attempt at"), "{}", reports[0]);
        assert!(reports[1].to_string().contains("registered for 3600 s"), "{}", reports[1]);
    });
}

#[test]
fn the_records_own_end_bounds_the_lease() {
    run(async {
        let server = server(50);
        server.reply(Replies::Honestly(1_000_000));
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        // The record itself is valid for an hour.
        assert!(report.leased_until.unwrap() <= now() + LONG);
        assert!(report.next_attempt.unwrap() <= now() + LONG * 56 / 100);
    });
}

#[test]
fn renewals_go_on_by_themselves_each_with_a_fresh_record() {
    run(async {
        let (server, dead) = (server(50), dead_entry());
        server.reply(Replies::Honestly(0));
        let publisher = publisher_with(&[&dead.entry, &server.entry], &vat_of_epoch(3), hasty());
        let running = spawn_local({
            let publisher = publisher.clone();
            async move { publisher.run().await }
        });
        until_arrived(&server, 5).await;
        let arrived = server.arrived();
        for pair in arrived.windows(2) {
            assert!(pair[0].record.timestamp() < pair[1].record.timestamp());
        }
        // Each renewal expects what the last one left, so a second copy cannot overwrite it unnoticed.
        assert!(!arrived[0].conditional && arrived[1..].iter().all(|arrived| arrived.conditional));
        running.abort();
    });
}

#[test]
fn a_record_that_has_not_changed_is_renewed_by_its_order_over_the_vats_own_session() {
    /// Signs once.
    struct Settled(SignedRecord);
    impl RecordSource for Settled {
        fn current(&self, _now: Reading) -> Result<SignedRecord, RecordError> {
            Ok(self.0.clone())
        }
        fn is_own(&self, record: &SignedRecord) -> bool {
            record.packet() == self.0.packet()
        }
    }
    run(async {
        let source = || Rc::new(Settled(draft(3, now()).at(&["quic:127.0.0.1:9"]).sign()));
        let publisher = |endpoint, server: &Server| {
            Publisher::new(endpoint, vec![server.entry.clone()], source(), PublisherConfig::default())
        };
        let run_nudged = |publisher: &Rc<Publisher>| {
            let running = spawn_local({
                let publisher = publisher.clone();
                async move { publisher.run().await }
            });
            publisher.nudge();
            running
        };
        // Anybody may forward the record, and has to bring it each time.
        let server = server(50);
        let stranger = Rc::new(publisher(finder(), &server));
        stranger.announce(Expected::Anything, SECOND * 20).await;
        let running = run_nudged(&stranger);
        until_arrived(&server, 2).await;
        assert_eq!(server.state.renewals.get(), 0);
        running.abort();
        // The vat itself only says that it still holds; a server that has lost it is given it again.
        let own = Rc::new(publisher(Endpoint::client(&key(1)).unwrap(), &server));
        own.announce(Expected::Anything, SECOND * 20).await;
        let running = run_nudged(&own);
        server.until(|server| server.renewals.get() == 1).await;
        assert_eq!(server.arrived().len(), 3);
        server.forget();
        own.nudge();
        // First as the one that it had, then whatever it has.
        until_arrived(&server, 5).await;
        own.nudge();
        server.until(|server| server.renewals.get() == 2).await;
        assert_eq!(server.arrived().len(), 5);
        running.abort();
    });
}

#[test]
fn a_nudge_registers_at_once_what_has_changed() {
    run(async {
        let server = server(50);
        let vat = vat_of_epoch(3);
        let publisher = publisher(&[&server.entry], &vat);
        let running = publisher.clone();
        spawn_local(async move { running.run().await });
        until_arrived(&server, 1).await;
        // The next renewal is half an hour away.
        vat.state.set(State::Dormant);
        publisher.nudge();
        until_arrived(&server, 2).await;
        assert_eq!(server.arrived()[1].record.record().state, State::Dormant);
    });
}

#[test]
fn a_failed_registration_is_tried_again_until_it_succeeds() {
    run(async {
        let server = server(50);
        server.reply(Replies::Refused { code: "vls.quota", retry_after: 0 });
        let publisher = publisher_with(&[&server.entry], &vat_of_epoch(3), hasty());
        let running = publisher.clone();
        spawn_local(async move { running.run().await });
        until_arrived(&server, 3).await;
        let report = publisher.reports().remove(0);
        assert_eq!(report.error().unwrap().code(), ErrorCode::VlsQuota);
        assert_eq!(report.last_success, None);
        server.reply(Replies::Honestly(3600));
        until(|| publisher.reports()[0].is_registered()).await;
        assert!(publisher.reports()[0].last_success.is_some());
    });
}

#[test]
fn a_source_that_has_nothing_to_sign_is_asked_again() {
    run(async {
        let server = server(50);
        let vat = vat_of_epoch(3);
        vat.broken.set(true);
        let publisher = publisher_with(&[&server.entry], &vat, hasty());
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert!(matches!(report.error(), Some(RegisterError::Source(_))));
        vat.broken.set(false);
        let running = publisher.clone();
        spawn_local(async move { running.run().await });
        until_arrived(&server, 1).await;
    });
}

#[test]
fn compare_and_swap_shows_the_record_that_was_there_instead() {
    run(async {
        let server = server(50);
        let before = draft(2, now() - SECOND).sign();
        server.put(&before);
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        let report = publisher.announce(Expected::Absent, LONG).await.remove(0);
        match report.error() {
            Some(RegisterError::Unexpected { current: Some(current) }) => assert_eq!(current.record(), Some(&before)),
            other => panic!("{other:?}"),
        }
        assert_eq!(report.error().unwrap().code(), ErrorCode::RecordUnexpected);
        // Ours is of a later epoch, so the record that was there proves nothing against it.
        assert!(publisher.superseded().is_none());
        let report = publisher.announce(Expected::Order(before.order()), LONG).await.remove(0);
        assert!(matches!(report.outcome, Some(Ok(Registered::Stored { lease })) if lease == LONG));
        assert!(server.arrived().iter().all(|arrived| arrived.conditional));
    });
}

#[test]
fn what_another_program_published_with_the_key_gives_way_to_one_copy_of_the_vat_and_not_to_two() {
    run(async {
        let server = server(50);
        server.put_foreign(vat(), &foreign(now() + SECOND));
        // Both copies have seen that there is no vat.
        let first = publisher(&[&server.entry], &vat_of_epoch(3));
        let report = first.announce(Expected::Absent, LONG).await.remove(0);
        assert!(matches!(report.outcome, Some(Ok(Registered::Stored { .. }))), "{report:?}");
        let second = publisher(&[&server.entry], &vat_of_epoch(4));
        let report = second.announce(Expected::Absent, LONG).await.remove(0);
        assert_eq!(report.error().unwrap().code(), ErrorCode::RecordUnexpected);
        assert_eq!(server.arrived().len(), 3, "the first one came twice");
        assert!(server.arrived().iter().all(|arrived| arrived.conditional), "in place of exactly what was there");
    });
}

#[test]
fn a_proof_of_a_later_epoch_ends_the_publisher() {
    run(async {
        let server = server(50);
        let newer = draft(9, now() - SECOND).sign();
        server.reply(Replies::Stale(newer.packet().to_vec()));
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        let superseded = publisher.run().await;
        assert_eq!((superseded.record, superseded.entry), (newer, server.entry.clone()));
        assert_eq!(publisher.reports()[0].error().unwrap().code(), ErrorCode::RecordStale);
        assert!(publisher.superseded().is_some());
    });
}

#[test]
fn a_record_of_the_same_epoch_that_another_start_signed_ends_the_publisher() {
    run(async {
        let server = server(50);
        let other = draft(3, now() + SECOND * 60).sign();
        server.reply(Replies::Stale(other.packet().to_vec()));
        let publisher = publisher_with(&[&server.entry], &vat_of_epoch(3), hasty());
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert!(matches!(report.error(), Some(RegisterError::Stale { newer: Some(_) })));
        assert_eq!(publisher.superseded().unwrap().record, other);
    });
}

#[test]
fn a_servers_word_without_proof_is_not_believed() {
    run(async {
        let server = server(50);
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        let newer = draft(9, now()).sign();
        let lower = draft(2, now()).sign().packet().to_vec();
        let another = draft(9, now()).by(2).sign().packet().to_vec();
        let lies = [
            (Replies::Stale(altered(&newer)), ErrorCode::RecordForged),
            (Replies::Stale(another), ErrorCode::RecordForged),
            // Below every vat that was started, whatever its time.
            (Replies::Stale(foreign(now() + SECOND)), ErrorCode::RecordNoVat),
            (Replies::Conflict(foreign(now())), ErrorCode::RecordNoVat),
            (Replies::Stale(lower.clone()), ErrorCode::SessionProtocol),
            (Replies::Conflict(newer.packet().to_vec()), ErrorCode::SessionProtocol),
            (Replies::Conflict(vec![]), ErrorCode::SessionProtocol),
            // Nothing was expected, so nothing can be unexpected.
            (Replies::Unexpected(newer.packet().to_vec()), ErrorCode::SessionProtocol),
            (Replies::Unexpected(vec![]), ErrorCode::SessionProtocol),
        ];
        for (lie, code) in lies {
            server.reply(lie);
            let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
            match report.error() {
                Some(error @ RegisterError::FalseEvidence { reason, .. }) => {
                    assert_eq!(error.code(), code, "{error}");
                    assert_eq!(matches!(reason, Disproof::Record(_)), code != ErrorCode::SessionProtocol);
                }
                other => panic!("{other:?}"),
            }
            assert!(publisher.superseded().is_none());
        }
        // A mark that outlived its record cannot be shown; it is reported, and ends nothing.
        server.reply(Replies::Stale(vec![]));
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert!(matches!(report.error(), Some(RegisterError::Stale { newer: None })));
        assert!(publisher.superseded().is_none());
    });
}

#[test]
fn a_refusal_keeps_its_code_and_clock_and_its_text_cannot_touch_the_terminal() {
    run(async {
        let server = server(50);
        server.reply(Replies::Refused { code: "record.future", retry_after: 7200 });
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        match report.error() {
            Some(RegisterError::Refused(Refused { code, message, server_time, retry_after, task: None })) => {
                assert_eq!(*code, ErrorCode::RecordFuture);
                assert_eq!(message, "not today\u{fffd}[2J");
                assert_eq!(*server_time, Some(Timestamp::from_seconds(12)));
                assert_eq!(*retry_after, Some(SECOND * 7200));
            }
            other => panic!("{other:?}"),
        }
        let next = report.next_attempt.unwrap().saturating_since(now());
        assert!(next > SECOND * 3500 && next <= LONG, "a server cannot silence a vat for longer: {next:?}");
        server.reply(Replies::Refused { code: "of.a.later.version", retry_after: 0 });
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert_eq!(report.error().unwrap().code(), ErrorCode::VlsRefused);
    });
}

/// An hour: a vat whose clock is that far ahead, and waits for the servers' to come after it, is lost with its lease.
#[test]
fn what_a_server_refuses_as_ahead_of_its_clock_is_dated_by_its_clock_and_taken() {
    run(async {
        let server = server(51);
        let its_time = now().saturating_sub(LONG);
        server.reply(Replies::Behind(its_time));
        let vat = vat_of_epoch(3);
        let publisher = publisher(&[&server.entry], &vat);
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert!(report.is_registered(), "{report}");
        let dates: Vec<Timestamp> = server.arrived().iter().map(|arrived| arrived.record.timestamp()).collect();
        assert_eq!(dates.len(), 2);
        assert!(dates[0] > its_time && dates[1] == its_time, "{dates:?}");

        // One that refuses that as well is not offered a third one.
        server.reply(Replies::Refused { code: "record.future", retry_after: 0 });
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert_eq!(report.error().map(Coded::code), Some(ErrorCode::RecordFuture));
        assert_eq!(server.arrived().len(), 4);

        // Nor is one that refuses what by the time that it names is not dated too far ahead: it would be a later one.
        server.reply(Replies::Ahead(now().saturating_sub(MINUTE)));
        let report = publisher.announce(Expected::Anything, LONG).await.remove(0);
        assert_eq!(report.error().map(Coded::code), Some(ErrorCode::RecordFuture));
        assert_eq!(server.arrived().len(), 5);
    });
}

#[test]
fn a_clock_that_is_hours_ahead_does_not_make_the_vat_renew_without_end() {
    run(async {
        let server = server(51);
        server.reply(Replies::Behind(now()));
        let mut config = PublisherConfig::default();
        config.clock = Rc::new(Ahead(2 * LONG));
        let report =
            publisher_with(&[&server.entry], &vat_of_epoch(3), config).announce(Expected::Anything, LONG).await;
        let its_now = now() + 2 * LONG;
        assert!(report[0].is_registered(), "{}", report[0]);
        assert!(report[0].next_attempt.unwrap() > its_now + LONG * 40 / 100, "{:?}", report[0]);
        assert!(report[0].leased_until.unwrap() > its_now + LONG * 90 / 100, "{:?}", report[0]);
    });
}

#[test]
fn a_lost_session_is_replaced_by_the_next_registration() {
    run(async {
        let server = server(50);
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        publisher.announce(Expected::Anything, LONG).await;
        server.close_sessions();
        assert!(publisher.announce(Expected::Anything, LONG).await[0].is_registered());
        assert_eq!(server.sessions(), 2);
        // And one that has fallen silent, by a second one beside it.
        server.mute_sessions();
        assert!(publisher.announce(Expected::Anything, LONG).await[0].is_registered());
        assert_eq!(server.sessions(), 3);
    });
}

#[test]
fn an_answer_that_was_lost_after_the_record_was_stored_is_no_conflict() {
    run(async {
        let server = server(50);
        let publisher = publisher(&[&server.entry], &vat_of_epoch(3));
        publisher.announce(Expected::Anything, LONG).await;
        let order = server.arrived()[0].record.order();
        // The session falls silent after the record was taken, so the same record is offered again.
        server.mute_sessions();
        let stored = server.state.clone();
        spawn_local({
            let server = server.clone();
            async move {
                until_arrived(&server, 2).await;
                let taken = stored.arrived.borrow()[1].record.clone();
                server.put(&taken);
            }
        });
        let report = publisher.announce(Expected::Order(order), LONG).await.remove(0);
        assert!(matches!(report.outcome, Some(Ok(Registered::Refreshed { .. }))), "{report}");
    });
}

#[test]
fn an_announcement_that_ends_at_its_deadline_counts_as_failed_and_is_tried_again() {
    run(async {
        let server = server(50);
        server.reply(Replies::Never);
        let publisher = publisher_with(&[&server.entry], &vat_of_epoch(3), hasty());
        let report = publisher.announce(Expected::Anything, Duration::from_millis(50)).await.remove(0);
        assert_eq!(report.error().unwrap().code(), ErrorCode::NetTimeout);
        server.reply(Replies::Honestly(3600));
        let running = publisher.clone();
        spawn_local(async move { running.run().await });
        let arrived = server.arrived().len();
        until_arrived(&server, arrived + 1).await;
    });
}

#[test]
fn dropping_a_run_half_way_loses_nothing() {
    run(async {
        let server = server(50);
        server.reply(Replies::Never);
        let publisher = publisher_with(&[&server.entry], &vat_of_epoch(3), hasty());
        let first = spawn_local({
            let publisher = publisher.clone();
            async move { publisher.run().await }
        });
        until_arrived(&server, 1).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert!(publisher.reports()[0].next_attempt.is_some());
        spawn_local(async move { publisher.run().await });
        until_arrived(&server, 2).await;
    });
}

#[test]
fn a_publisher_can_share_the_sessions_of_a_resolver() {
    run(async {
        let server = server(50);
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], None, ResolverConfig::default());
        let publisher = Publisher::sharing(&resolver, vat_of_epoch(3), PublisherConfig::default());
        assert!(publisher.announce(Expected::Absent, LONG).await[0].is_registered());
        let found = resolver.resolve(vat(), &schemas::Hints::default()).await.unwrap();
        assert_eq!(found.record, server.arrived()[0].record);
        assert_eq!(server.sessions(), 1);
    });
}

#[test]
fn reports_have_one_stable_json_form() {
    run(async {
        let (server, dead) = (server(50), dead_entry());
        let publisher = publisher(&[&server.entry, &dead.entry], &vat_of_epoch(3));
        let reports = publisher.announce(Expected::Anything, SECOND).await;
        let json = serde_json::to_value(&reports).unwrap();
        let keys: Vec<&String> = json[0].as_object().unwrap().keys().collect();
        let expected = [
            "entry",
            "registered",
            "code",
            "reason",
            "last_attempt_us",
            "last_success_us",
            "leased_until_us",
            "next_attempt_us",
        ];
        assert_eq!(keys, expected);
        assert_eq!((&json[0]["registered"], &json[1]["registered"]), (&true.into(), &false.into()));
        assert_eq!(json[1]["code"], "net.timeout");
        assert!(json[1]["last_success_us"].is_null());
    });
}

#[test]
fn of_two_copies_of_one_epoch_the_one_that_was_overwritten_notices_at_its_next_renewal() {
    run(async {
        let server = server(50);
        let (first, second) = (vat_of_epoch(3), vat_of_epoch(3));
        let (first, second) = (publisher(&[&server.entry], &first), publisher(&[&server.entry], &second));
        assert!(first.announce(Expected::Anything, LONG).await[0].is_registered());
        assert!(second.announce(Expected::Anything, LONG).await[0].is_registered());
        assert!(first.superseded().is_none());
        assert!(!first.renew(LONG).await[0].is_registered());
        let proof = first.superseded().expect("another copy has signed");
        assert_eq!(proof.record.record().epoch, 3);
        assert!(second.renew(LONG).await[0].is_registered(), "one of the two goes on");
    });
}

#[test]
fn a_server_that_shows_us_our_own_record_or_has_lost_it_stops_nothing() {
    run(async {
        let server = server(50);
        let vat = vat_of_epoch(3);
        let publisher = publisher(&[&server.entry], &vat);
        assert!(publisher.announce(Expected::Absent, LONG).await[0].is_registered());
        // Somebody else forwards a record of ours that we believed to be lost.
        server.put(&vat.current(Reading::Own(now())).unwrap());
        assert!(publisher.renew(LONG).await[0].is_registered());
        server.forget();
        assert!(publisher.renew(LONG).await[0].is_registered());
        assert!(publisher.superseded().is_none());
    });
}
