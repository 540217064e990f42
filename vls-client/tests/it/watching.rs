//! Watching a vat through several entries.

use std::sync::LazyLock;

use schemas::{Coded, ErrorCode, Hints, SearchPathEntry, SignedRecord, Timestamp};
use vls_client::{Resolver, ResolverConfig, Sighting, Watching};

use crate::support::{
    net::{Says, Server, dead_entry, finder, run, server},
    records::{HOUR, altered, draft, foreign, now, vat},
};

fn watch(path: &[&SearchPathEntry]) -> (Resolver, Watching) {
    let path = path.iter().map(|entry| (*entry).clone()).collect();
    let resolver = Resolver::new(finder(), path, None, ResolverConfig::default());
    let watching = resolver.watch(vat(), &Hints::default()).unwrap();
    (resolver, watching)
}

/// The same for the same epoch, whenever it is asked for.
fn live(epoch: u64) -> SignedRecord {
    static START: LazyLock<Timestamp> = LazyLock::new(now);
    draft(epoch, *START).at(&["quic:127.0.0.1:9"]).sign()
}

fn put(server: &Server, record: &SignedRecord) {
    server.put(record);
    server.tell();
}

#[test]
fn it_tells_when_a_vat_comes_moves_and_goes_and_a_dead_entry_is_not_missed() {
    run(async {
        let (server, dead) = (server(50), dead_entry());
        let (_resolver, mut watching) = watch(&[&dead.entry, &server.entry]);
        assert_eq!(watching.next().await, Sighting::Gone);
        for epoch in 1..=3 {
            put(&server, &live(epoch));
            assert_eq!(watching.next().await, Sighting::Registered(live(epoch)));
        }
        server.say(Says::Lapsed(live(3).packet().to_vec()));
        server.tell();
        assert_eq!(watching.next().await, Sighting::Gone);
        server.say(Says::Truth);
        server.tell();
        assert_eq!(watching.next().await, Sighting::Registered(live(3)));
    });
}

#[test]
fn a_vat_that_was_seen_to_come_is_not_remembered_as_unknown() {
    run(async {
        let server = server(50);
        let (resolver, mut watching) = watch(&[&server.entry]);
        assert_eq!(watching.next().await, Sighting::Gone);
        let error = resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsUnknownVat);
        put(&server, &live(1));
        assert_eq!(watching.next().await, Sighting::Registered(live(1)));
        let found = resolver.resolve(vat(), &Hints::default()).await;
        assert_eq!(found.map(|found| found.record).map_err(|error| error.to_string()), Ok(live(1)));
    });
}

#[test]
fn that_no_entry_can_be_reached_is_told_and_ends_when_one_can() {
    run(async {
        let dead = dead_entry();
        let mut config = ResolverConfig::default();
        config.dial.dial_deadline = std::time::Duration::from_millis(50);
        let resolver = Resolver::new(finder(), vec![dead.entry.clone()], None, config.clone());
        assert_eq!(resolver.watch(vat(), &Hints::default()).unwrap().next().await, Sighting::Unreachable);
        let server = server(50);
        let resolver = Resolver::new(finder(), vec![dead.entry.clone(), server.entry.clone()], None, config);
        assert_eq!(resolver.watch(vat(), &Hints::default()).unwrap().next().await, Sighting::Gone);
    });
}

#[test]
fn of_several_entries_the_highest_record_counts_and_no_lower_one_ever_again() {
    run(async {
        let (one, other) = (server(50), server(51));
        let (_resolver, mut watching) = watch(&[&one.entry, &other.entry]);
        put(&one, &live(2));
        while watching.next().await != Sighting::Registered(live(2)) {}
        put(&other, &live(3));
        while watching.next().await != Sighting::Registered(live(3)) {}
        // What is known is higher than what the first one has.
        one.tell();
        other.say(Says::Lapsed(live(3).packet().to_vec()));
        other.tell();
        assert_eq!(watching.next().await, Sighting::Gone);
        put(&one, &live(4));
        assert_eq!(watching.next().await, Sighting::Registered(live(4)));
    });
}

#[test]
fn what_no_vat_has_signed_and_what_has_expired_is_no_sighting() {
    run(async {
        let server = server(50);
        server.say(Says::Packet(altered(&live(9))));
        let (_resolver, mut watching) = watch(&[&server.entry]);
        assert_eq!(watching.next().await, Sighting::Gone);
        server.say(Says::Packet(foreign(now())));
        server.tell();
        server.say(Says::Packet(draft(8, now() - HOUR).valid_for(HOUR / 2).sign().packet().to_vec()));
        server.tell();
        server.say(Says::Truth);
        put(&server, &live(9));
        assert_eq!(watching.next().await, Sighting::Registered(live(9)));
    });
}

#[test]
fn a_session_that_ends_is_opened_again_and_what_was_missed_is_told() {
    run(async {
        let server = server(50);
        server.put(&live(1));
        let (_resolver, mut watching) = watch(&[&server.entry]);
        assert_eq!(watching.next().await, Sighting::Registered(live(1)));
        server.put(&live(2));
        server.close_sessions();
        assert_eq!(watching.next().await, Sighting::Registered(live(2)));
        assert_eq!(server.sessions(), 2);
    });
}

#[test]
fn with_nobody_to_ask_it_says_why_and_does_not_wait() {
    run(async {
        let hints = Hints { addresses: vec!["127.0.0.1:9".to_owned()], ..Hints::default() };
        let why = |path: &[&str]| {
            let path = path.iter().map(|text| text.parse().unwrap()).collect();
            let mut config = ResolverConfig::default();
            config.carriers.local_only = true;
            Resolver::new(finder(), path, None, config).watch(vat(), &hints).unwrap_err()
        };
        assert_eq!(why(&[]).code(), ErrorCode::VlsEmptyPath);
        let error = why(&["https://vls.example.org", "dht:"]);
        assert_eq!((error.code(), error.attempts().len()), (ErrorCode::VlsNoAnswer, 2));
        assert_eq!(error.to_string().matches("(vls.left_out)").count(), 2, "{error}");
    });
}

#[test]
fn an_entry_that_cannot_watch_is_asked() {
    run(async {
        let server = server(50);
        server.forbid_watching();
        server.put(&live(1));
        let (_resolver, mut watching) = watch(&[&server.entry]);
        assert_eq!(watching.next().await, Sighting::Registered(live(1)));
    });
}

#[test]
fn who_drops_it_is_told_nothing_and_keeps_no_session_open() {
    run(async {
        let server = server(50);
        let (resolver, mut watching) = watch(&[&server.entry]);
        assert_eq!(watching.next().await, Sighting::Gone);
        drop(watching);
        drop(resolver);
        server.until_closed().await;
    });
}
