//! The resolver against real location servers, honest, lying and dead.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
    time::Duration,
};

use schemas::{Coded, ErrorCode, Hints, SearchPathEntry, SignedRecord, State};
use tempfile::TempDir;
use vls_client::{
    Candidate, Clock, EntryScores, Freshness, LookupTiming, Moment, Outcome, RecordCache, ResolveError, Resolver,
    ResolverConfig, SystemClock,
};

use crate::support::{
    net::{Says, Server, codes, dead_entry, finder, run, server, server_that_says},
    records::{HOUR, altered, draft, foreign, now, vat},
};

const SECOND: Duration = Duration::from_secs(1);

/// Nothing but an answer ends a lookup.
fn patient() -> LookupTiming {
    LookupTiming {
        negative_grace: HOUR,
        cold_patience: Duration::ZERO,
        cache_patience: HOUR,
        deadline: HOUR,
        ..LookupTiming::default()
    }
}

/// Silence ends a lookup soon.
fn impatient() -> LookupTiming {
    let soon = Duration::from_millis(100);
    LookupTiming {
        negative_grace: soon,
        cold_patience: Duration::ZERO,
        cache_patience: soon,
        deadline: soon * 3,
        ..LookupTiming::default()
    }
}

fn config(lookup: LookupTiming) -> ResolverConfig {
    let mut config = ResolverConfig::default();
    config.lookup = lookup;
    config
}

fn resolver(path: &[&SearchPathEntry], timing: LookupTiming) -> Resolver {
    Resolver::new(finder(), path.iter().copied().cloned().collect(), None, config(timing))
}

fn cache_with(record: &SignedRecord) -> (TempDir, RecordCache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = RecordCache::open(folder.path(), 10).unwrap();
    assert!(cache.put(record, now()).unwrap());
    (folder, cache)
}

fn live() -> SignedRecord {
    draft(5, now()).at(&["quic:127.0.0.1:9"]).sign()
}

#[test]
fn a_vat_is_found_through_a_server_that_knows_it() {
    run(async {
        let server = server(50);
        let record = live();
        server.put(&record);
        let found = resolver(&[&server.entry], patient()).resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!((&found.record, found.freshness), (&record, Freshness::Answered));
        assert_eq!(found.attempts.len(), 1);
        assert!(found.attempts[0].to_string().starts_with(&server.entry.to_string()));
        assert!(found.to_string().contains("live, epoch 5, turn 7"));
    });
}

#[test]
fn a_dead_entry_is_not_waited_for() {
    run(async {
        let (dead, server) = (dead_entry(), server(50));
        server.put(&live());
        let resolver = resolver(&[&dead.entry, &server.entry], patient());
        for _ in 0..2 {
            let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
            // By now nothing else has ended: the only other end is an hour away.
            let attempt =
                found.attempts.iter().find(|attempt| attempt.candidate == Candidate::Entry(dead.entry.clone()));
            assert!(matches!(attempt.unwrap().outcome, Outcome::Waiting), "{found}");
        }
    });
}

/// The clock of this machine, and so much later.
struct Later(SystemClock, Cell<Duration>);

impl Clock for Later {
    fn now(&self) -> Moment {
        let now = self.0.now();
        Moment { wall: now.wall, elapsed: now.elapsed + self.1.get() }
    }
}

#[test]
fn an_entry_that_is_silent_until_the_process_ends_is_remembered_for_it() {
    let (folder, dead) = (tempfile::tempdir().unwrap(), dead_entry());
    let alive = Rc::new(OnceCell::new());
    run({
        let (folder, dead, alive) = (folder.path().to_owned(), dead.entry.clone(), alive.clone());
        async move {
            let server = server(50);
            server.put(&live());
            let path = vec![dead, server.entry.clone()];
            alive.set(server.entry.clone()).unwrap();
            let cache = RecordCache::open(&folder, 10).unwrap();
            let clock = Rc::new(Later(SystemClock::default(), Cell::default()));
            let mut config = config(patient());
            config.clock = clock.clone();
            let resolver = Resolver::new(finder(), path, Some(cache), config);
            resolver.resolve(vat(), &Hints::default()).await.unwrap();
            // What the program does with its answer takes this long.
            clock.1.set(patient().hedge + SECOND);
        }
    });
    let scores = EntryScores::open(folder.path());
    let of = |entry| (scores.of(entry).answers, scores.of(entry).failures);
    assert_eq!((of(&dead.entry), of(alive.get().unwrap())), ((0, 1), (1, 0)));
}

#[test]
fn an_entry_that_is_silent_until_the_end_of_a_lookup_is_scored_once() {
    run(async {
        let dead = dead_entry();
        let resolver = resolver(&[&dead.entry], impatient());
        resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
        let score = resolver.score(&dead.entry);
        assert_eq!((score.answers, score.failures), (0, 1));
    });
}

#[test]
fn with_all_servers_dead_the_cached_record_is_used_and_the_result_says_so() {
    run(async {
        let (one, other) = (dead_entry(), dead_entry());
        let record = live();
        let (_folder, cache) = cache_with(&record);
        let path = vec![one.entry.clone(), other.entry.clone()];
        let timing = LookupTiming { deadline: HOUR, ..impatient() };
        let found = Resolver::new(finder(), path, Some(cache), config(timing)).resolve(vat(), &Hints::default()).await;
        let found = found.unwrap();
        assert_eq!((&found.record, found.freshness), (&record, Freshness::Cached));
        assert!(found.to_string().contains("(cached)"));
        assert!(matches!(found.attempts[0].outcome, Outcome::Record { age: None, .. }));
    });
}

#[test]
fn with_all_servers_dead_and_nothing_cached_there_is_one_reason_for_each() {
    run(async {
        let (one, other) = (dead_entry(), dead_entry());
        let resolver = resolver(&[&one.entry, &other.entry], impatient());
        let error = resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsNoAnswer);
        assert_eq!(codes(error.attempts()), [Some(ErrorCode::NetTimeout); 2]);
        let text = error.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].contains(&one.entry.to_string()) && lines[2].contains(&other.entry.to_string()));
        assert!(lines[1].contains("no answer within 300 ms (net.timeout)"), "{text}");
    });
}

/// Asks one lying server, knowing `known`, and gives the code with which its answer was refused.
async fn refusal(says: Says, known: Option<&SignedRecord>) -> Option<ErrorCode> {
    let liar = server_that_says(50, says);
    let cache = known.map(cache_with);
    let (_folder, cache) = cache.map_or((None, None), |(folder, cache)| (Some(folder), Some(cache)));
    let resolver = Resolver::new(finder(), vec![liar.entry.clone()], cache, config(impatient()));
    let error = resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
    assert!(matches!(error, ResolveError::NoAnswer { .. }), "{error}");
    error.attempts().last().unwrap().outcome.code()
}

#[test]
fn every_kind_of_lie_is_refused_under_its_own_code() {
    run(async {
        let packet = |record: SignedRecord| Says::Packet(record.packet().to_vec());
        // Known, but expired, so that it cannot be the answer itself.
        let known = draft(5, now() - HOUR).valid_for(SECOND).sign();

        let mut content = live().packet().to_vec();
        let last = content.len() - 1;
        content[last] ^= 1;
        let forged_by_another = {
            // Everything as the vat would write it, but the signature of somebody else.
            let (mut packet, other) = (live().packet().to_vec(), draft(5, now()).by(2).sign());
            packet[..64].copy_from_slice(&other.packet()[..64]);
            packet
        };
        let lies = [
            (Says::Packet(altered(&live())), None, ErrorCode::RecordForged),
            (Says::Packet(forged_by_another), None, ErrorCode::RecordForged),
            (packet(draft(5, now() - HOUR).valid_for(SECOND).sign()), None, ErrorCode::RecordExpired),
            (packet(draft(5, now() + SECOND * 600).sign()), None, ErrorCode::RecordFuture),
            (packet(draft(5, now()).by(2).sign()), None, ErrorCode::RecordForged),
            (Says::Packet(foreign(now() + SECOND * 600)), None, ErrorCode::RecordFuture),
            (packet(draft(5, now() - HOUR * 2).valid_for(HOUR * 9).sign()), Some(&known), ErrorCode::RecordStale),
            (packet(draft(4, now()).sign()), Some(&known), ErrorCode::RecordLowerEpoch),
            (Says::Packet(vec![7; 5]), None, ErrorCode::RecordMalformed),
            (Says::Packet(vec![7; 100_000]), None, ErrorCode::SessionProtocol),
            (Says::Error("no"), None, ErrorCode::ObjectFailed),
            (Says::Error("vls.quota: slowly"), None, ErrorCode::VlsQuota),
        ];
        for (says, known, code) in lies {
            assert_eq!(refusal(says, known).await, Some(code));
        }
        let refused = refusal(Says::Packet(content), None).await;
        assert!(matches!(refused, Some(ErrorCode::RecordForged | ErrorCode::RecordMalformed)), "{refused:?}");
    });
}

#[test]
fn a_lying_server_beside_an_honest_one_changes_nothing() {
    run(async {
        let record = live();
        let lies = [
            Says::Packet(altered(&draft(9, now()).sign())),
            Says::Packet(draft(9, now() + SECOND * 600).sign().packet().to_vec()),
            Says::Packet(draft(9, now()).by(2).sign().packet().to_vec()),
            Says::Packet(draft(9, now() - HOUR).by(2).valid_for(SECOND).sign().packet().to_vec()),
        ];
        for lie in lies {
            let (liar, honest) = (server_that_says(50, lie), server(51));
            honest.put(&record);
            // The honest one answers only after the liar was asked.
            let release = honest.hold();
            let resolver = resolver(&[&liar.entry, &honest.entry], patient());
            let resolving = tokio::task::spawn_local(async move { resolver.resolve(vat(), &Hints::default()).await });
            liar.until(|liar| liar.lookups.get() == 1).await;
            release.send(true).unwrap();
            assert_eq!(resolving.await.unwrap().unwrap().record, record);
        }
    });
}

#[test]
fn a_replayed_old_record_does_not_win_against_a_higher_one_that_is_known() {
    run(async {
        let cached = live();
        let old = draft(5, now() - SECOND * 60).at(&["quic:127.0.0.1:10"]).sign();
        let liar = server_that_says(50, Says::Packet(old.packet().to_vec()));
        let (_folder, cache) = cache_with(&cached);
        let resolver = Resolver::new(finder(), vec![liar.entry.clone()], Some(cache), config(patient()));
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!((found.record, found.freshness), (cached, Freshness::Cached));
        assert_eq!(codes(&found.attempts), [None, Some(ErrorCode::RecordStale)]);
    });
}

#[test]
fn what_was_verified_is_remembered_on_disk_for_the_next_process() {
    run(async {
        let server = server(50);
        let record = live();
        server.put(&record);
        let folder = tempfile::tempdir().unwrap();
        let cache = RecordCache::open(folder.path(), 10).unwrap();
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], Some(cache), config(patient()));
        resolver.resolve(vat(), &Hints::default()).await.unwrap();
        let reopened = RecordCache::open(folder.path(), 10).unwrap();
        assert_eq!(reopened.get(vat(), now()).unwrap(), Some(record));
    });
}

#[test]
fn a_damaged_cache_file_is_reported_and_harmless() {
    run(async {
        let server = server(50);
        server.put(&live());
        let (folder, cache) = cache_with(&live());
        std::fs::write(folder.path().join(format!("{}.record", vat())), altered(&live())).unwrap();
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], Some(cache), config(patient()));
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(codes(&found.attempts), [Some(ErrorCode::RecordForged), None]);
        assert!(found.attempts[0].to_string().contains("is damaged and was ignored"));
    });
}

#[test]
fn servers_that_know_nothing_and_servers_that_are_dead_are_told_apart() {
    run(async {
        let (ignorant, dead) = (server(50), dead_entry());
        let error = resolver(&[&ignorant.entry, &dead.entry], impatient()).resolve(vat(), &Hints::default()).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsUnknownVat);
        assert_eq!(error.attempts()[0].outcome.kind(), "unknown");
        assert_eq!(error.attempts()[1].outcome.kind(), "waiting");
    });
}

#[test]
fn an_empty_path_dead_ends_with_its_own_code_and_hints_make_up_for_it() {
    run(async {
        let resolver = resolver(&[], patient());
        let error = resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsEmptyPath);

        let server = server(50);
        server.put(&live());
        let hints = Hints { search_path: vec![server.entry.clone()], ..Hints::default() };
        let found = resolver.resolve(vat(), &hints).await.unwrap();
        assert_eq!(found.attempts[0].candidate.kind(), "hint_entry");
    });
}

#[test]
fn entries_without_a_carrier_get_their_line_beside_one_that_answers() {
    run(async {
        let server = server(50);
        server.put(&live());
        let resolver = resolver(&[&SearchPathEntry::Dht, &server.entry], patient());
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(codes(&found.attempts), [Some(ErrorCode::VlsNoCarrier), None]);
    });
}

#[test]
fn a_sleeping_vat_is_said_to_sleep_unless_somebody_shows_a_higher_record() {
    run(async {
        let asleep = server(50);
        asleep.put(&draft(5, now()).state(State::Dormant).sign());
        let error = resolver(&[&asleep.entry], patient()).resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VlsDormant);
        assert!(error.to_string().contains("sleeps (epoch 5"), "{error}");

        let awake = server(51);
        let record = draft(6, now()).sign();
        awake.put(&record);
        let found = resolver(&[&asleep.entry, &awake.entry], patient()).resolve(vat(), &Hints::default()).await;
        assert_eq!(found.unwrap().record, record);
    });
}

#[test]
fn a_lapsed_record_is_used_only_as_a_last_resort_and_said_to_be_one() {
    run(async {
        let old = draft(5, now() - SECOND).sign();
        let lapsed = server_that_says(50, Says::Lapsed(old.packet().to_vec()));
        let found = resolver(&[&lapsed.entry], patient()).resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!((found.record, found.freshness), (old, Freshness::Lapsed));
        assert_eq!(found.attempts[0].outcome.kind(), "lapsed");
    });
}

#[test]
fn lookups_share_one_session_and_a_broken_one_is_replaced() {
    run(async {
        let server = server(50);
        server.put(&live());
        let resolver = resolver(&[&server.entry], patient());
        for _ in 0..5 {
            resolver.resolve(vat(), &Hints::default()).await.unwrap();
        }
        assert_eq!(server.sessions(), 1);
        server.close_sessions();
        resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(server.sessions(), 2);
    });
}

#[test]
fn a_session_whose_server_was_killed_without_a_word_is_replaced_within_the_lookup() {
    run(async {
        let server = server(50);
        server.put(&live());
        let resolver = resolver(&[&server.entry], patient());
        // Enough answers for the session to have a usual answer time.
        for _ in 0..3 {
            resolver.resolve(vat(), &Hints::default()).await.unwrap();
        }
        server.mute_sessions();
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.freshness, Freshness::Answered);
        assert_eq!(server.sessions(), 2);
    });
}

#[test]
fn what_a_slow_entry_says_after_the_result_is_learned_for_the_next_time() {
    run(async {
        let (fast, slow) = (server(50), server(51));
        let (lower, higher) = (draft(5, now()).sign(), draft(6, now()).sign());
        fast.put(&lower);
        slow.put(&higher);
        let release = slow.hold();
        let resolver = resolver(&[&fast.entry, &slow.entry], patient());
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record, lower);
        release.send(true).unwrap();
        // Its answer travels while we ask again; from the moment that it arrives the lower one never wins again.
        slow.say(Says::Nothing);
        while resolver.resolve(vat(), &Hints::default()).await.unwrap().record != higher {}
        assert_eq!(resolver.resolve(vat(), &Hints::default()).await.unwrap().record, higher);
    });
}

#[test]
fn host_names_are_resolved_and_those_that_do_not_resolve_are_named() {
    run(async {
        let server = server(50);
        server.put(&live());
        let named = |host: &str| match &server.entry {
            SearchPathEntry::Vls { id, port, .. } => {
                SearchPathEntry::Vls { id: *id, host: host.to_owned(), port: *port }
            }
            other => other.clone(),
        };
        let local = named("localhost");
        resolver(&[&local], patient()).resolve(vat(), &Hints::default()).await.unwrap();
        // RFC 6761: never resolves.
        let nowhere = named("vls.invalid");
        let timing = LookupTiming { deadline: SECOND * 30, ..patient() };
        let error = resolver(&[&nowhere], timing).resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(codes(error.attempts()), [Some(ErrorCode::NetName)]);
        assert!(error.to_string().contains("vls.invalid"));
    });
}

#[test]
fn somebody_else_at_a_servers_address_is_not_believed() {
    run(async {
        let server = server(50);
        server.put(&live());
        let SearchPathEntry::Vls { host, port, .. } = server.entry.clone() else { unreachable!() };
        let other_key = SearchPathEntry::Vls { id: crate::support::records::key(60).id(), host, port };
        let error = resolver(&[&other_key], patient()).resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(codes(error.attempts()), [Some(ErrorCode::SessionWrongPeer)]);
        assert_eq!(server.state.lookups.get(), 0);
    });
}

#[test]
fn a_witness_has_the_highest_record_of_all_entries_expired_ones_included() {
    run(async {
        let servers: Vec<Server> = (50..54).map(server).collect();
        servers[0].put(&draft(5, now()).sign());
        let expired = draft(6, now() - HOUR).valid_for(SECOND).sign();
        servers[1].say(Says::Lapsed(expired.packet().to_vec()));
        servers[2].say(Says::Packet(altered(&draft(9, now()).sign())));
        let dead = dead_entry();
        let path: Vec<&SearchPathEntry> = servers.iter().map(|server| &server.entry).chain([&dead.entry]).collect();
        let newest = resolver(&path, impatient()).newest(vat()).await;
        assert_eq!(newest.record, Some(expired));
        assert_eq!(newest.witnesses(), 3, "the liar and the dead one are none");
        assert_eq!(newest.attempts.len(), 5);

        // What another program has signed with the key is an answer, as "unknown" is one, and says nothing of an epoch.
        let foreign_server = server(60);
        foreign_server.put_foreign(vat(), &foreign(now()));
        let newest = resolver(&[&foreign_server.entry, &servers[0].entry], impatient()).newest(vat()).await;
        assert_eq!((newest.record.as_ref().map(|record| record.record().epoch), newest.witnesses()), (Some(5), 2));
        let newest = resolver(&[&foreign_server.entry], impatient()).newest(vat()).await;
        assert_eq!((&newest.record, newest.witnesses()), (&None, 1));

        let alone = resolver(&[&dead.entry], impatient()).newest(vat()).await;
        assert_eq!((alone.witnesses(), alone.record), (0, None));
    });
}

#[test]
fn what_another_program_signed_with_the_key_is_named_as_such_and_never_dialled() {
    run(async {
        let (foreign_server, ignorant) = (server(50), server(51));
        foreign_server.put_foreign(vat(), &foreign(now()));
        let resolver = resolver(&[&ignorant.entry, &foreign_server.entry], patient());
        for error in [
            resolver.resolve(vat(), &Hints::default()).await.unwrap_err(),
            resolver.connect(vat(), &Hints::default()).await.unwrap_err(),
        ] {
            assert!(matches!(error, ResolveError::NoVat { .. }), "{error}");
            assert_eq!((error.code(), error.code().exit()), (ErrorCode::RecordNoVat, schemas::Exit::NotFound));
            let expected = [Some(ErrorCode::VlsUnknownVat), Some(ErrorCode::RecordNoVat)];
            assert_eq!(codes(error.attempts()), expected, "and no address among them");
            assert!(error.to_string().contains("says nothing of a vat: another program made it"), "{error}");
        }
        // A server that knows the vat is believed, whatever the others hold.
        ignorant.put(&live());
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record.id(), vat());
        // And a record that is kept from before is used, although this server has never heard of the vat.
        ignorant.forget();
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.freshness, Freshness::Cached);
    });
}

#[test]
fn attempts_have_one_stable_json_form() {
    run(async {
        let (server, ignorant) = (server(50), server(51));
        server.put(&live());
        let found = resolver(&[&server.entry], patient()).resolve(vat(), &Hints::default()).await.unwrap();
        let json = serde_json::to_value(&found.attempts[0]).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        let expected = [
            "candidate",
            "kind",
            "outcome",
            "code",
            "reason",
            "elapsed_us",
            "epoch",
            "turn",
            "timestamp_us",
            "state",
            "age_s",
        ];
        assert_eq!(keys, expected);
        assert_eq!(json["candidate"], server.entry.to_string());
        assert_eq!((&json["epoch"], &json["state"], &json["age_s"]), (&5.into(), &"live".into(), &5.into()));
        assert!(json["code"].is_null());

        let error = resolver(&[&ignorant.entry], patient()).resolve(vat(), &Hints::default()).await.unwrap_err();
        let json = serde_json::to_value(error.attempts()).unwrap();
        assert_eq!((&json[0]["outcome"], &json[0]["code"]), (&"unknown".into(), &"vls.unknown_vat".into()));
    });
}

#[test]
fn the_clock_is_a_parameter_and_decides_what_has_expired() {
    struct Tomorrow(SystemClock);
    impl Clock for Tomorrow {
        fn now(&self) -> Moment {
            let now = self.0.now();
            Moment { wall: now.wall + HOUR * 24, ..now }
        }
    }
    run(async {
        let server = server(50);
        server.put(&live());
        let mut config = config(patient());
        config.clock = Rc::new(Tomorrow(SystemClock::default()));
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], None, config);
        let error = resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(codes(error.attempts()), [Some(ErrorCode::RecordExpired)]);
    });
}
