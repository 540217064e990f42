//! Entries of every form, alone and beside each other, and entries of the DNS form against servers that lie or are silent.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use schemas::{Coded, ErrorCode, Hints, SearchPathEntry, SignedRecord};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::spawn_local,
    time::Instant,
};
use vls_client::{
    Attempt, Expected, Failure, LeftOut, LookupTiming, NameServers, Outcome, Resolver, ResolverConfig, limits,
};

use crate::support::{
    entries::{
        DEADLINE, Https, Shows, carriers, dns, failed, http_answer, https, https_that_says, live, publisher, register,
        resolver, server,
    },
    net::{dead_entry, finder, run},
    records::{Ahead, HOUR, altered, draft, now, vat},
};

/// As long as a record can be that a vat publishes.
fn long() -> SignedRecord {
    let addresses: Vec<String> = (0..10).map(|n| format!("quic:{}.example.org:{}", "x".repeat(40), 1000 + n)).collect();
    let record = draft(5, now()).at(&addresses.iter().map(String::as_str).collect::<Vec<_>>()).sign();
    assert!(record.packet().len() > 900, "{}", record.packet().len());
    record
}

#[test]
fn a_record_of_any_length_is_found_over_dns() {
    run(async {
        let server = server().await;
        let name_server = server.dns_address();
        let unknown = failed(&[dns()], carriers(name_server)).await;
        assert!(matches!(unknown.outcome, Outcome::Unknown), "{unknown}");
        let mut record = live(4);
        for next in [live(5), long()] {
            record = if next.compare(&record).is_gt() { next } else { panic!("signed in order") };
            register(&server, &record).await;
            let resolver = resolver(&[dns()], carriers(name_server));
            let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
            assert_eq!(found.record, record);
            assert!(matches!(found.attempts[0].outcome, Outcome::Record { age: None, .. }));
        }
        server.stop().await.unwrap();
    });
}

#[test]
fn an_answer_that_was_cut_short_is_asked_for_over_tcp() {
    run(async {
        let (streams, datagrams) = loop {
            let streams = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            // The same port may be taken by datagrams of somebody else.
            if let Ok(datagrams) = UdpSocket::bind(streams.local_addr().unwrap()).await {
                break (streams, datagrams);
            }
        };
        let (address, record) = (streams.local_addr().unwrap(), live(5));
        spawn_local(serve(datagrams, |query| vec![dns_answer(query, 0x0200, b"")]));
        let packet = record.packet().to_vec();
        spawn_local(async move {
            let (mut stream, _) = streams.accept().await.unwrap();
            let mut query = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut query).await.unwrap();
            let answer = dns_answer(&query, 0, &packet);
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        });
        let found = resolver(&[dns()], carriers(Some(address))).resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record, record);
    });
}

#[test]
fn dns_is_no_witness_whatever_it_shows_but_what_it_shows_is_known() {
    run(async {
        let server = server().await;
        let newest = resolver(&[dns()], carriers(server.dns_address())).newest(vat()).await;
        assert_eq!(newest.witnesses(), 0, "{}", newest.attempts[0]);
        let record = live(5);
        register(&server, &record).await;
        let newest = resolver(&[dns()], carriers(server.dns_address())).newest(vat()).await;
        assert_eq!((newest.witnesses(), newest.record), (0, Some(record)), "who stands on the way can show an old one");
        server.stop().await.unwrap();
    });
}

#[test]
fn nothing_can_be_registered_in_dns() {
    run(async {
        let publisher = publisher(&dns(), Rc::new(Shows(live(5))));
        let report = publisher.announce(Expected::Anything, DEADLINE).await.remove(0);
        assert_eq!(report.error().map(Coded::code), Some(ErrorCode::VlsNoCarrier), "{report}");
        assert!(report.to_string().contains("takes no registrations"), "{report}");
        assert_eq!(report.next_attempt, None);
    });
}

#[test]
fn what_has_no_clock_says_for_what_reason() {
    run(async {
        let resolver = resolver(&[], carriers(None));
        for (entry, reason) in [("dns:vls.example.org", "tells no time"), ("dht:", "the Mainline DHT")] {
            let error = resolver.time_at(&entry.parse().unwrap()).await.unwrap_err();
            assert!(error.to_string().contains(reason) && error.code() == ErrorCode::VlsNoCarrier, "{entry}: {error}");
        }
    });
}

/// An answer to `query` with these flags and strings.
fn dns_answer(query: &[u8], flags: u16, bytes: &[u8]) -> Vec<u8> {
    let question = &query[12..query.len() - 11];
    let data: Vec<u8> =
        bytes.chunks(255).flat_map(|part| [&[u8::try_from(part.len()).unwrap()], part].concat()).collect();
    let length = u16::try_from(data.len()).unwrap();
    let head = [0x8000 | flags, 1, 1, 0, 0].map(u16::to_be_bytes);
    let fixed = [0xC00C, 16, 1, 0, 30, length].map(u16::to_be_bytes);
    [&query[..2], head.as_flattened(), question, fixed.as_flattened(), &data].concat()
}

/// A name server that sends these answers to each query.
async fn name_server(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + 'static) -> SocketAddr {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = socket.local_addr().unwrap();
    spawn_local(serve(socket, answers));
    address
}

async fn serve(socket: UdpSocket, answers: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let mut query = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut query).await {
        for answer in answers(&query[..length]) {
            socket.send_to(&answer, from).await.unwrap();
        }
    }
}

#[test]
fn answers_to_other_questions_are_passed_over_and_forged_packets_refused() {
    run(async {
        let record = live(5);
        let packet = record.packet().to_vec();
        let guesses = name_server(move |query| {
            let right = dns_answer(query, 0, &packet);
            let mut wrong_number = dns_answer(query, 3, b"");
            wrong_number[0] ^= 1;
            let mut wrong_name = dns_answer(query, 3, b"");
            wrong_name[20] ^= 1;
            vec![b"x".to_vec(), wrong_number, wrong_name, query.to_vec(), right]
        });
        let found = resolver(&[dns()], carriers(Some(guesses.await))).resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record, record);

        let altered = altered(&record);
        let forger = name_server(move |query| vec![dns_answer(query, 0, &altered)]).await;
        let attempt = failed(&[dns()], carriers(Some(forger))).await;
        assert_eq!(attempt.outcome.code(), Some(ErrorCode::RecordForged), "{attempt}");
        let refuses = name_server(|query| vec![dns_answer(query, 5, b"")]).await;
        let attempt = failed(&[dns()], carriers(Some(refuses))).await;
        assert_eq!(attempt.outcome.code(), Some(ErrorCode::NetName), "{attempt}");
        let too_much = name_server(|query| vec![dns_answer(query, 0, &[7; 1200])]).await;
        let attempt = failed(&[dns()], carriers(Some(too_much))).await;
        assert_eq!(attempt.outcome.code(), Some(ErrorCode::SessionProtocol), "{attempt}");
        let nobody = failed(&[dns()], carriers(None)).await;
        assert_eq!(nobody.outcome.to_string(), "no name server is configured (net.name)");
    });
}

#[test]
fn a_name_server_that_is_silent_or_refuses_does_not_hide_the_next_one() {
    run(async {
        let server = server().await;
        register(&server, &live(5)).await;
        let silent = name_server(|_| Vec::new()).await;
        let refuses = name_server(|query| vec![dns_answer(query, 5, b"")]).await;
        let mut carriers = carriers(None);
        carriers.name_servers = NameServers::Given(vec![silent, refuses, server.dns_address().unwrap()]);
        resolver(&[dns()], carriers).resolve(vat(), &Hints::default()).await.unwrap();
        server.stop().await.unwrap();
    });
}

#[test]
fn the_dht_is_told_to_be_missing_in_one_line() {
    run(async {
        let attempt = failed(&["dht:".parse().unwrap()], carriers(None)).await;
        assert_eq!(
            attempt.outcome.to_string(),
            "needs the Mainline DHT, which this build does not have (vls.no_carrier)"
        );
    });
}

#[test]
fn a_vat_that_nobody_knows_is_not_asked_for_again_at_once_unless_that_is_wanted() {
    run(async {
        let server = server().await;
        let resolver = resolver(&[https(server.http_address().unwrap())], carriers(None));
        let hints = Hints::default();
        let unknown = |error: vls_client::ResolveError| error.code() == ErrorCode::VlsUnknownVat;
        assert!(resolver.resolve(vat(), &hints).await.is_err_and(unknown));
        register(&server, &live(5)).await;
        assert!(resolver.resolve(vat(), &hints).await.is_err_and(unknown), "remembered");
        // Somebody who was not asked may know.
        let hint = Hints { search_path: vec![dead_entry().entry], ..Hints::default() };
        assert!(resolver.resolve(vat(), &hint).await.is_ok());
        assert!(resolver.resolve(vat(), &hints).await.is_ok(), "what was found is not remembered as unknown");
        server.stop().await.unwrap();
    });
}

#[test]
fn what_is_wanted_anew_is_asked_for() {
    run(async {
        let server = server().await;
        let resolver = resolver(&[https(server.http_address().unwrap())], carriers(None));
        assert!(resolver.resolve(vat(), &Hints::default()).await.is_err());
        register(&server, &live(5)).await;
        assert!(resolver.resolve_anew(vat(), &Hints::default()).await.is_ok());
        server.stop().await.unwrap();
    });
}

#[test]
fn entries_are_scored_by_how_they_answer() {
    run(async {
        let server = server().await;
        let forger = https_that_says(b"220 ready\r\n".to_vec(), false).await;
        let good = https(server.http_address().unwrap());
        register(&server, &live(5)).await;
        let resolver = resolver(&[forger.clone(), good.clone()], carriers(None));
        // All are waited for.
        resolver.newest(vat()).await;
        let (good, bad) = (resolver.score(&good), resolver.score(&forger));
        assert_eq!((good.answers, good.failures, bad.answers, bad.failures), (1, 0, 0, 1));
        assert!(good.p50().is_some() && good.last_success_us.is_some() && good.rank() < bad.rank());
        server.stop().await.unwrap();
    });
}

#[test]
fn a_clock_that_several_servers_agree_on_being_wrong_is_told() {
    run(async {
        let servers = [server().await, server().await];
        let path: Vec<SearchPathEntry> = servers.iter().map(|server| https(server.http_address().unwrap())).collect();
        let skew = async |path: &[SearchPathEntry], ahead| {
            let mut config = ResolverConfig::default();
            (config.carriers, config.clock) = (carriers(None), Rc::new(Ahead(ahead)));
            Resolver::new(finder(), path.to_vec(), None, config).clock_skew().await
        };
        assert_eq!(skew(&path, Duration::ZERO).await, None);
        assert_eq!(skew(&path[..1], HOUR).await, None, "one server alone may be the wrong one");
        let told = skew(&path, HOUR).await.unwrap();
        assert!(told.ahead && told.servers == 2 && told.difference.abs_diff(HOUR) < DEADLINE, "{told:?}");
        assert_eq!(told.code(), ErrorCode::VlsClockSkew);
        for server in servers {
            server.stop().await.unwrap();
        }
    });
}

#[test]
fn local_only_mode_asks_and_dials_nobody_elsewhere_and_says_so() {
    run(async {
        let server = server().await;
        register(&server, &draft(5, now()).at(&["quic:192.0.2.1:9", "quic:example.org:9"]).sign()).await;
        let elsewhere = format!("vls://{}@192.0.2.7:1", vat());
        let path = [https(server.http_address().unwrap()), elsewhere.parse().unwrap(), dns()];
        let mut carriers = carriers(server.dns_address());
        carriers.local_only = true;
        let resolver = resolver(&path, carriers);
        let hints = Hints { addresses: vec!["198.51.100.1:7".to_owned()], ..Hints::default() };
        let error = resolver.connect(vat(), &hints).await.unwrap_err();
        let left_out = |attempt: &Attempt| match &attempt.outcome {
            Outcome::Failed(Failure::LeftOut(why)) => Some(*why),
            _ => None,
        };
        let why: Vec<_> = error.attempts().iter().map(left_out).collect();
        let (elsewhere, name) = (Some(LeftOut::Elsewhere), Some(LeftOut::Name));
        assert_eq!(why, [None, elsewhere, Some(LeftOut::HandedOn), elsewhere, elsewhere, name], "{error}");
        assert!(matches!(error.attempts()[0].outcome, Outcome::Record { .. }), "{error}");
        server.stop().await.unwrap();
    });
}

#[test]
fn where_servers_are_is_asked_for_those_alone_that_may_be_asked() {
    run(async {
        let place = |host: &str| format!("vls://{}@{host}:7", vat()).parse().unwrap();
        let path = [place("192.0.2.7"), place("127.0.0.3"), place("a.localhost"), dns()];
        let located = async |local_only| {
            let mut carriers = carriers(None);
            carriers.local_only = local_only;
            resolver(&path, carriers).locate_servers(DEADLINE).await
        };
        let (elsewhere, here): (SocketAddr, SocketAddr) =
            ("192.0.2.7:7".parse().unwrap(), "127.0.0.3:7".parse().unwrap());
        let (all, local) = (located(false).await, located(true).await);
        assert_eq!((all[0], &all[1..]), (elsewhere, &local[..]));
        // What is left out for its address is left out for its name by the same word, before it is looked up.
        assert!(local[0] == here && local.len() > 1 && local.iter().all(|address| address.ip().is_loopback()));
    });
}

#[test]
fn a_dead_entry_of_one_form_does_not_delay_another() {
    run(async {
        let server = server().await;
        register(&server, &live(5)).await;
        let dead = dead_entry();
        let silent = Https::new(|_, _| None).await;
        let good = [https(server.http_address().unwrap()), dns()];
        for (dead, good) in [&dead.entry, &silent.entry].into_iter().zip(good) {
            // One at a time, the dead one first; and no clock ends this lookup but that of an answer.
            let mut config = ResolverConfig::default();
            config.carriers = carriers(server.dns_address());
            config.lookup =
                LookupTiming { first_wave: 1, negative_grace: HOUR, deadline: HOUR, ..LookupTiming::default() };
            let hedge = config.lookup.hedge;
            let resolver = Resolver::new(finder(), vec![dead.clone(), good], None, config);
            let begun = Instant::now();
            let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
            assert!(matches!(found.attempts[0].outcome, Outcome::Waiting), "{}", found.attempts[0]);
            assert!(matches!(found.attempts[1].outcome, Outcome::Record { .. }), "{}", found.attempts[1]);
            // The dead one would be given up after this.
            assert!((hedge..limits::HTTP_DEADLINE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        }
        server.stop().await.unwrap();
    });
}

#[test]
fn an_entry_that_shows_a_record_older_than_the_known_one_is_scored_as_stale() {
    run(async {
        let shown = Rc::new(RefCell::new(live(6)));
        let says = shown.clone();
        let server = Https::new(move |_, _| Some(http_answer("200 OK", "", says.borrow().packet()))).await;
        let resolver = resolver(std::slice::from_ref(&server.entry), carriers(None));
        resolver.resolve(vat(), &Hints::default()).await.unwrap();
        shown.replace(live(5));
        let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record.record().epoch, 6);
        let score = resolver.score(&server.entry);
        assert_eq!((score.answers, score.failures, score.stale), (2, 0, 1));
    });
}
