//! Entries of the HTTP form: location servers, relays and files on any web server, honest, lying, and dead.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use rustls::{
    RootCertStore,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use schemas::{Coded, ErrorCode, Hints, SignedRecord};
use tokio::{sync::Notify, time::Instant};
use vls_client::{Expected, Failure, Outcome, RegisterError, TrustRoots, limits};

use crate::support::{
    entries::{
        DEADLINE, Https, Shows, Then, carriers, certificate, failed, http_answer, https, https_that_says, live,
        publisher, register, resolver, server,
    },
    net::run,
    records::{altered, draft, now, vat},
};

#[test]
fn what_is_registered_over_https_is_found_over_https() {
    run(async {
        let server = server().await;
        let entry = https(server.http_address().unwrap());
        let resolver = resolver(std::slice::from_ref(&entry), carriers(None));
        let unknown = resolver.newest(vat()).await;
        assert_eq!((unknown.witnesses(), unknown.record), (1, None));

        let record = live(5);
        let publisher = publisher(&entry, Rc::new(Shows(record.clone())));
        let reports = publisher.announce(Expected::Absent, DEADLINE).await;
        assert!(reports[0].is_registered(), "{}", reports[0]);
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record, record);
        assert!(
            matches!(found.attempts[0].outcome, Outcome::Record { age: Some(age), .. } if age < DEADLINE),
            "{}",
            found.attempts[0]
        );
        assert_eq!(resolver.newest(vat()).await.record, Some(record));
        server.stop().await.unwrap();
    });
}

#[test]
fn a_swap_over_https_demands_exactly_the_record_that_was_there() {
    run(async {
        let server = server().await;
        let entry = https(server.http_address().unwrap());
        let announce = async |record: &SignedRecord, expected| {
            let publisher = publisher(&entry, Rc::new(Shows(record.clone())));
            publisher.announce(expected, DEADLINE).await.remove(0)
        };
        let (first, second, third) = (live(5), live(6), live(7));
        assert!(announce(&first, Expected::Absent).await.is_registered());
        let swapped = announce(&second, Expected::Order(first.order())).await;
        assert!(swapped.is_registered(), "{swapped}");
        for (expected, shown) in [(Expected::Absent, &second), (Expected::Order(first.order()), &second)] {
            match announce(&third, expected).await.error() {
                Some(RegisterError::Unexpected { current: Some(current) }) => assert_eq!(current.record(), Some(shown)),
                other => panic!("{other:?}"),
            }
        }
        match announce(&first, Expected::Anything).await.error() {
            Some(RegisterError::Stale { newer: Some(newer) }) => assert_eq!(newer.record(), Some(&second)),
            other => panic!("{other:?}"),
        }
        server.stop().await.unwrap();
    });
}

#[test]
fn two_copies_that_renew_over_https_do_not_overwrite_each_other_unnoticed() {
    run(async {
        let server = server().await;
        let entry = https(server.http_address().unwrap());
        let (one, other) = (live(5), draft(5, now()).at(&["quic:127.0.0.1:10"]).sign());
        let publisher = publisher(&entry, Rc::new(Shows(one.clone())));
        assert!(publisher.announce(Expected::Absent, DEADLINE).await[0].is_registered());
        register(&server, &other).await;
        publisher.renew(DEADLINE).await;
        assert_eq!(publisher.superseded().expect("another copy has signed").record, other);
        server.stop().await.unwrap();
    });
}

#[test]
fn a_swap_over_https_is_one_request_that_relays_of_pkarr_understand_too() {
    run(async {
        let heads = Rc::new(RefCell::new(Vec::new()));
        let seen = heads.clone();
        let server = Https::new(move |_, head| {
            seen.borrow_mut().push(head.to_owned());
            Some(http_answer("204 No Content", "", b""))
        });
        let (first, second) = (live(5), live(6));
        let publisher = publisher(&server.await.entry, Rc::new(Shows(second)));
        assert!(publisher.announce(Expected::Order(first.order()), DEADLINE).await[0].is_registered());
        let heads = heads.borrow();
        let condition = format!("if-match: {}", first.timestamp().as_micros());
        assert!(heads.len() == 1 && heads[0].lines().any(|line| line == condition), "{heads:?}");
    });
}

#[test]
fn what_cannot_be_shown_just_now_is_neither_lost_nor_a_lie() {
    run(async {
        let then = now();
        let at = |address: &str| draft(5, then).at(&[address]).sign();
        let (record, rival) = (at("quic:127.0.0.1:9"), at("quic:127.0.0.1:10"));
        let (puts, busy) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(true)));
        let (seen, is_busy, shown) = (puts.clone(), busy.clone(), rival.packet().to_vec());
        let server = Https::new(move |_, head| {
            let answer = match head.starts_with("put") {
                true => {
                    seen.set(seen.get() + 1);
                    match seen.get() {
                        1 => http_answer("204 No Content", "", b""),
                        2 => http_answer("412 Precondition Failed", "", b""),
                        _ => http_answer("409 Conflict", "", b"vls.conflict: another\n"),
                    }
                }
                false if is_busy.get() => http_answer("503 Service Unavailable", "", b""),
                false => http_answer("200 OK", "", &shown),
            };
            Some(answer)
        });
        let publisher = publisher(&server.await.entry, Rc::new(Shows(record)));
        assert!(publisher.announce(Expected::Anything, DEADLINE).await[0].is_registered());
        for (what, puts_so_far) in [("a swap", 2), ("a conflict", 3)] {
            let report = publisher.renew(DEADLINE).await.remove(0);
            assert_eq!(report.error().map(Coded::code), Some(ErrorCode::VlsRefused), "{what}: {report}");
            assert_eq!(puts.get(), puts_so_far, "{what}: nothing is overwritten that may be there");
            assert!(report.next_attempt.is_some() && publisher.superseded().is_none(), "{what}");
        }
        busy.set(false);
        publisher.renew(DEADLINE).await;
        assert_eq!(publisher.superseded().expect("the evidence").record, rival);
    });
}

#[test]
fn a_server_whose_certificate_is_not_trusted_is_not_asked() {
    run(async {
        let server = server().await;
        let entry = https(server.http_address().unwrap());
        let mut nobody = carriers(None);
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(certificate().certificate.with_file_name("other.pem")).unwrap())
            .unwrap();
        nobody.trust = TrustRoots::Given(Arc::new(roots));
        let attempt = failed(&[entry], nobody).await;
        assert_eq!(attempt.outcome.code(), Some(ErrorCode::NetTls), "{attempt}");
        server.stop().await.unwrap();
    });
}

#[test]
fn servers_of_the_http_form_can_neither_forge_nor_flood_nor_lead_elsewhere() {
    run(async {
        let ok = |body: &[u8]| {
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
        };
        let record = live(5);
        let altered = altered(&record);
        let other = draft(5, now()).by(2).sign();
        let redirect = b"HTTP/1.1 302 Found\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n".to_vec();
        let busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 18\r\n\r\nvls.full: no room\n".to_vec();
        let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(10_000)).into_bytes();
        for (what, answer, endless, code) in [
            ("a packet that was altered", ok(&altered), false, ErrorCode::RecordForged),
            ("another vat's", ok(other.packet()), false, ErrorCode::RecordForged),
            ("no packet", ok(b"hello"), false, ErrorCode::RecordMalformed),
            ("a long body", ok(&[7; 5000]), false, ErrorCode::SessionProtocol),
            ("a body without end", b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), true, ErrorCode::SessionProtocol),
            ("fields without end", fields, false, ErrorCode::SessionProtocol),
            ("no HTTP", b"220 ready\r\n".to_vec(), false, ErrorCode::SessionProtocol),
            ("a redirect", redirect, false, ErrorCode::VlsRefused),
            ("its reason", busy, false, ErrorCode::VlsFull),
        ] {
            let entry = https_that_says(answer, endless).await;
            let attempt = failed(&[entry], carriers(None)).await;
            assert_eq!(attempt.outcome.code(), Some(code), "{what}: {attempt}");
        }
        // Any web server has no record of anything.
        let entry = https_that_says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), false).await;
        let attempt = failed(std::slice::from_ref(&entry), carriers(None)).await;
        assert_eq!(attempt.outcome.code(), Some(ErrorCode::VlsUnknownVat), "{attempt}");
        assert_eq!(resolver(&[entry], carriers(None)).newest(vat()).await.witnesses(), 0);
        // One that only stores files: no field says anything of the record.
        let entry = https_that_says(ok(record.packet()), false).await;
        let found =
            resolver(std::slice::from_ref(&entry), carriers(None)).resolve(vat(), &Hints::default()).await.unwrap();
        assert!(matches!(found.attempts[0].outcome, Outcome::Record { age: None, .. }), "{}", found.attempts[0]);
        let newest = resolver(&[entry], carriers(None)).newest(vat()).await;
        assert_eq!(
            (newest.witnesses(), newest.record),
            (0, Some(record)),
            "nor can it know whether there is a newer one"
        );
    });
}

#[test]
fn a_silent_server_of_the_http_form_ends_with_a_timeout_of_its_own() {
    run(async {
        let asked = Rc::new(Notify::new());
        let told = asked.clone();
        let server = Https::new(move |_, _| {
            told.notify_one();
            None
        });
        // Nothing else ends this lookup: it would wait for an hour.
        let resolver = resolver(&[server.await.entry], carriers(None));
        let hints = Hints::default();
        let (found, ()) = futures::join!(resolver.resolve(vat(), &hints), async {
            asked.notified().await;
            // Nobody but the clock has anything to do now.
            tokio::time::pause();
        });
        let error = found.unwrap_err();
        let outcome = &error.attempts()[0].outcome;
        assert!(
            matches!(outcome, Outcome::Failed(Failure::Timeout { after }) if *after == limits::HTTP_DEADLINE),
            "{error}"
        );
    });
}

/// A server that has this record, as far as it answers.
async fn https_with(record: &SignedRecord, answers: impl Fn(usize) -> bool + 'static) -> Https {
    let packet = record.packet().to_vec();
    Https::new(move |connection, _| answers(connection).then(|| http_answer("200 OK", "", &packet))).await
}

#[test]
fn one_connection_serves_several_requests_and_is_not_kept_for_long() {
    run(async {
        let server = https_with(&live(5), |_| true).await;
        let resolver = resolver(std::slice::from_ref(&server.entry), carriers(None));
        for _ in 0..3 {
            resolver.resolve(vat(), &Hints::default()).await.unwrap();
        }
        assert_eq!(server.connections.get(), 1);
        tokio::time::pause();
        tokio::time::advance(limits::HTTP_IDLE).await;
        tokio::time::resume();
        resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(server.connections.get(), 2);
    });
}

#[test]
fn a_kept_connection_that_is_dead_costs_a_moment_and_one_that_has_ended_nothing() {
    run(async {
        // On the first connection only the first request is ever answered.
        let requests = Rc::new(Cell::new(0));
        let record = live(5);
        let server = https_with(&record, move |connection| {
            requests.set(requests.get() + 1);
            connection > 1 || requests.get() == 1
        });
        let server = server.await;
        let resolver = resolver(std::slice::from_ref(&server.entry), carriers(None));
        for connections in [1, 2, 2] {
            resolver.resolve(vat(), &Hints::default()).await.unwrap();
            assert_eq!(server.connections.get(), connections);
        }
    });
    run(async {
        let record = live(5);
        let packet = record.packet().to_vec();
        let server = Https::with(&[&TLS13], move |_, _| Some(http_answer("200 OK", "", &packet)), Then::Closes).await;
        let resolver = resolver(std::slice::from_ref(&server.entry), carriers(None));
        for connections in 1..=3 {
            let begun = Instant::now();
            resolver.resolve(vat(), &Hints::default()).await.unwrap();
            assert_eq!(server.connections.get(), connections);
            assert!(begun.elapsed() < limits::HTTP_PATIENCE, "nothing was waited for");
        }
    });
}

#[test]
fn a_web_server_that_speaks_only_tls_1_2_will_do() {
    run(async {
        let (record, other) = (live(5), draft(5, now()).by(2).sign());
        let says = |packet: &[u8]| http_answer("200 OK", "", packet);
        for (packet, finds) in [(record.packet(), true), (other.packet(), false)] {
            let answer = says(packet);
            let server = Https::with(&[&TLS12], move |_, _| Some(answer.clone()), Then::Reads).await;
            let found = resolver(&[server.entry], carriers(None)).resolve(vat(), &Hints::default()).await;
            assert_eq!(found.is_ok_and(|found| found.record == record), finds);
        }
    });
}

#[test]
fn a_witness_of_the_http_form_is_not_asked_through_caches() {
    run(async {
        let (record, heads) = (live(5), Rc::new(RefCell::new(Vec::new())));
        let (packet, seen) = (record.packet().to_vec(), heads.clone());
        let server = Https::new(move |_, head| {
            seen.borrow_mut().push(head.contains("cache-control: no-cache"));
            Some(http_answer("200 OK", "Vls-Time: 1800000000000000\r\n", &packet))
        });
        let resolver = resolver(&[server.await.entry], carriers(None));
        resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(resolver.newest(vat()).await.witnesses(), 1);
        assert_eq!(*heads.borrow(), [false, true]);
    });
}
