//! Reaching a vat: whom the resolver dials, and whom it accepts.

use std::time::Duration;

use schemas::{Coded, ErrorCode, Hints, SearchPathEntry, SignedRecord, State};
use vls_client::{Connected, DialTiming, Freshness, LookupTiming, RecordCache, ResolveError, Resolver, ResolverConfig};

use crate::support::{
    net::{codes, dead_entry, finder, host, run, server},
    records::{HOUR, draft, key, now, vat},
};

/// Nothing but an event ends anything.
fn patient() -> ResolverConfig {
    let mut config = ResolverConfig::default();
    config.lookup = LookupTiming {
        negative_grace: HOUR,
        cold_patience: Duration::ZERO,
        cache_patience: HOUR,
        deadline: HOUR,
        ..config.lookup
    };
    config.dial = DialTiming { dial_deadline: HOUR, deadline: HOUR, ..config.dial };
    config
}

/// Silence ends everything soon.
fn impatient() -> ResolverConfig {
    let soon = Duration::from_millis(300);
    let mut config = ResolverConfig::default();
    config.lookup = LookupTiming {
        negative_grace: soon,
        cold_patience: Duration::ZERO,
        cache_patience: soon,
        deadline: soon * 2,
        ..config.lookup
    };
    config.dial = DialTiming { dial_deadline: soon, deadline: soon * 4, ..config.dial };
    config
}

fn resolver(path: &[&SearchPathEntry], config: ResolverConfig) -> Resolver {
    Resolver::new(finder(), path.iter().copied().cloned().collect(), None, config)
}

fn record_at(epoch: u64, addresses: &[&str]) -> SignedRecord {
    draft(epoch, now()).at(addresses).sign()
}

fn hint_addresses(addresses: &[&str]) -> Hints {
    Hints { addresses: addresses.iter().map(ToString::to_string).collect(), ..Hints::default() }
}

fn is_connected(connected: &Connected) -> bool {
    connected.connection.close_reason().is_none() && connected.connection.peer() == vat()
}

#[test]
fn a_vat_is_found_and_reached() {
    run(async {
        let (server, vat_host) = (server(50), host(&key(1)));
        server.put(&record_at(5, &[&vat_host.address()]));
        let connected = resolver(&[&server.entry], patient()).connect(vat(), &Hints::default()).await.unwrap();
        assert!(is_connected(&connected));
        assert_eq!(connected.address.port(), vat_host.port());
        assert!(matches!(connected.record, Some((_, Freshness::Answered))));
        assert_eq!(connected.attempts.last().unwrap().outcome.kind(), "connected");
    });
}

#[test]
fn an_address_where_somebody_else_answers_is_not_accepted() {
    run(async {
        let (server, impostor) = (server(50), host(&key(2)));
        server.put(&record_at(5, &[&impostor.address()]));
        let error = resolver(&[&server.entry], impatient()).connect(vat(), &Hints::default()).await.unwrap_err();
        assert!(matches!(error, ResolveError::NoDial { record: Some(_), .. }), "{error}");
        assert_eq!(codes(error.attempts()), [None, Some(ErrorCode::SessionWrongPeer)]);
        assert_eq!(error.to_string().lines().count(), 3, "one line per candidate and per address");
        assert_eq!(*impostor.attempts.borrow(), 1);
    });
}

#[test]
fn addresses_are_raced_and_those_that_lead_nowhere_delay_nothing() {
    run(async {
        let (server, vat_host, impostor, silent) = (server(50), host(&key(1)), host(&key(2)), dead_entry());
        let SearchPathEntry::Vls { port, .. } = silent.entry else { unreachable!() };
        let silent = format!("quic:127.0.0.1:{port}");
        server.put(&record_at(5, &[&silent, &impostor.address(), "https://example.org/vat", &vat_host.address()]));
        let connected = resolver(&[&server.entry], patient()).connect(vat(), &Hints::default()).await.unwrap();
        assert!(is_connected(&connected));
        let kinds: Vec<&str> = connected.attempts.iter().map(|attempt| attempt.outcome.kind()).collect();
        assert_eq!(kinds, ["record", "waiting", "failed", "failed", "connected"]);
    });
}

#[test]
fn a_hinted_address_and_the_id_are_enough_when_no_server_answers() {
    run(async {
        let (dead, vat_host) = (dead_entry(), host(&key(1)));
        let hints = hint_addresses(&[&vat_host.place()]);
        for path in [vec![&dead.entry], vec![]] {
            let connected = resolver(&path, patient()).connect(vat(), &hints).await.unwrap();
            assert!(is_connected(&connected));
            assert!(connected.record.is_none());
        }
        // The same by name.
        let by_name = hint_addresses(&[&format!("localhost:{}", vat_host.port())]);
        assert!(is_connected(&resolver(&[], patient()).connect(vat(), &by_name).await.unwrap()));
    });
}

#[test]
fn hinted_addresses_that_lead_nowhere_are_reported_as_such() {
    run(async {
        let impostor = host(&key(2));
        let hints = hint_addresses(&[&impostor.place(), "nonsense"]);
        let error = resolver(&[], impatient()).connect(vat(), &hints).await.unwrap_err();
        assert!(matches!(error, ResolveError::NoDial { record: None, .. }), "{error}");
        let expected = [Some(ErrorCode::SessionWrongPeer), Some(ErrorCode::VlsEntryMalformed)];
        assert_eq!(codes(error.attempts()), expected);
        let error = resolver(&[], impatient()).connect(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsEmptyPath);
    });
}

#[test]
fn a_cached_address_is_dialled_at_once_when_all_servers_are_dead() {
    run(async {
        let (one, other, vat_host) = (dead_entry(), dead_entry(), host(&key(1)));
        let folder = tempfile::tempdir().unwrap();
        let cache = RecordCache::open(folder.path(), 10).unwrap();
        cache.put(&record_at(5, &[&vat_host.address()]), now()).unwrap();
        let path = vec![one.entry.clone(), other.entry.clone()];
        let resolver = Resolver::new(finder(), path, Some(cache), patient());
        let connected = resolver.connect(vat(), &Hints::default()).await.unwrap();
        assert!(is_connected(&connected));
        assert!(matches!(connected.record, Some((_, Freshness::Cached))));
    });
}

#[test]
fn a_higher_record_that_comes_while_dialling_leads_to_the_new_address() {
    run(async {
        let (replaying, honest, vat_host, mut decoy) = (server(50), server(51), host(&key(1)), host(&key(2)));
        // Once true, now replayed: the address belongs to somebody else today.
        replaying.put(&record_at(5, &[&decoy.address()]));
        honest.put(&record_at(6, &[&vat_host.address()]));
        let release = honest.hold();
        let resolver = resolver(&[&replaying.entry, &honest.entry], patient());
        let connecting = tokio::task::spawn_local(async move { resolver.connect(vat(), &Hints::default()).await });
        decoy.attempts.wait_for(|attempts| *attempts == 1).await.unwrap();
        release.send(true).unwrap();
        let connected = connecting.await.unwrap().unwrap();
        assert!(is_connected(&connected));
        assert_eq!(connected.record.unwrap().0.record().epoch, 6);
    });
}

#[test]
fn a_vat_that_sleeps_is_not_dialled_unless_a_hint_reaches_it() {
    run(async {
        let (server, mut vat_host) = (server(50), host(&key(1)));
        server.put(&draft(5, now()).state(State::Dormant).at(&[&vat_host.address()]).sign());
        let resolver = resolver(&[&server.entry], patient());
        let error = resolver.connect(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsDormant);
        assert_eq!(*vat_host.attempts.borrow_and_update(), 0);
        // Whoever proves the key is the vat, whatever records say.
        let connected = resolver.connect(vat(), &hint_addresses(&[&vat_host.place()])).await.unwrap();
        assert!(is_connected(&connected));
    });
}

#[test]
fn a_dead_entry_does_not_hold_up_the_bad_news_for_long() {
    run(async {
        let (ignorant, dead) = (server(50), dead_entry());
        let mut config = impatient();
        config.lookup.deadline = HOUR;
        config.dial.deadline = HOUR;
        let resolver = resolver(&[&ignorant.entry, &dead.entry], config);
        let error = resolver.connect(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsUnknownVat);

        let impostor = host(&key(2));
        ignorant.put(&record_at(5, &[&impostor.address()]));
        let error = resolver.connect(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsNoDial);
    });
}
