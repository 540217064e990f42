//! Lookups without a session.

use std::{cell::Cell, rc::Rc, time::Duration};

use schemas::{
    Coded, ErrorCode, Hints, SearchPathEntry, SignedRecord, Timestamp,
    datagram::{Known, LookupAnswer, LookupQuestion, QUESTION_HEAD_BYTES, QUESTION_KIND},
};
use tokio::task::spawn_local;
use transport::{Endpoint, EndpointConfig, datagrams::Bunch};
use vls_client::{DialTiming, Freshness, LookupTiming, Resolver, ResolverConfig, limits::COLD_ANSWERS};

use crate::support::{
    net::{Host, Says, dead_entry, finder, host, host_at, run, server_that_says},
    records::{HOUR, draft, key, now, vat},
};

/// What a server makes of each question: the answers that it sends.
type Manner = Box<dyn Fn(usize, LookupQuestion) -> Vec<Vec<u8>>>;

/// A server that answers cold lookups, and counts those who open sessions.
struct ColdServer {
    host: Host,
    entry: SearchPathEntry,
    questions: Rc<Cell<usize>>,
}

fn cold_server(manner: Manner) -> ColdServer {
    cold_server_at(host(&key(50)), manner)
}

fn cold_server_at(host: Host, manner: Manner) -> ColdServer {
    let entry = SearchPathEntry::Vls { id: key(50).id(), host: "127.0.0.1".to_owned(), port: host.port() };
    let questions = Rc::new(Cell::new(0));
    let datagrams = host.endpoint.datagrams_beside(QUESTION_KIND, QUESTION_HEAD_BYTES);
    let count = questions.clone();
    spawn_local(async move {
        let (mut bunch, mut answers) = (Bunch::default(), Bunch::default());
        loop {
            datagrams.receive(&mut bunch).await;
            answers.clear();
            for datagram in bunch.iter() {
                let question = LookupQuestion::read(datagram.bytes, datagram.length).expect("a question");
                count.set(count.get() + 1);
                for answer in manner(count.get(), question) {
                    answers.push(datagram.peer, datagram.local, |bytes| bytes.extend(answer));
                }
            }
            datagrams.send(&answers);
        }
    });
    ColdServer { host, entry, questions }
}

fn answer(question: LookupQuestion, packet: &[u8], expired: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let known = Some(Known { packet, age: 5, expired }).filter(|known| !known.packet.is_empty());
    LookupAnswer { nonce: question.nonce, known, time: Timestamp::from_seconds(0) }.write(&mut bytes);
    bytes
}

fn truth(record: &SignedRecord) -> Manner {
    let packet = record.packet().to_vec();
    Box::new(move |_, question| vec![answer(question, &packet, false)])
}

/// Nothing but an answer ends anything, and no session is ever opened for silence.
fn without_sessions() -> LookupTiming {
    LookupTiming { negative_grace: HOUR, cold_patience: HOUR, deadline: HOUR, ..LookupTiming::default() }
}

fn resolver(server: &ColdServer, timing: LookupTiming) -> Resolver {
    let mut config = ResolverConfig::default();
    config.lookup = timing;
    Resolver::new(finder(), vec![server.entry.clone()], None, config)
}

fn live() -> SignedRecord {
    draft(5, now()).at(&["quic:127.0.0.1:9"]).sign()
}

#[test]
fn a_server_is_asked_in_one_datagram_and_not_dialled() {
    run(async {
        let record = live();
        let server = cold_server(truth(&record));
        let resolver = resolver(&server, without_sessions());
        for asked in 1..=3 {
            let found = resolver.resolve(vat(), &Hints::default()).await.unwrap();
            assert_eq!(found.record, record);
            assert_eq!(server.questions.get(), asked);
        }
        assert_eq!(*server.host.attempts.borrow(), 0);
    });
}

#[test]
fn a_question_that_is_lost_is_asked_again_and_an_answer_that_comes_twice_counts_once() {
    run(async {
        let record = live();
        let packet = record.packet().to_vec();
        let server = cold_server(Box::new(move |number, question| {
            let copies = if number < 3 { 0 } else { 2 };
            vec![answer(question, &packet, false); copies]
        }));
        let resolver = resolver(&server, without_sessions());
        for asked in [3, 4] {
            assert_eq!(resolver.resolve(vat(), &Hints::default()).await.unwrap().record, record);
            assert_eq!(server.questions.get(), asked);
        }
        assert_eq!(*server.host.attempts.borrow(), 0);
    });
}

#[test]
fn who_answers_before_the_server_does_not_silence_it_while_others_are_waited_for() {
    run(async {
        let record = live();
        let packet = record.packet().to_vec();
        let server = cold_server(Box::new(move |_, question| {
            vec![answer(question, &[], false), answer(question, &packet, false), answer(question, &[], false)]
        }));
        let silent = dead_entry();
        let mut config = ResolverConfig::default();
        config.lookup = without_sessions();
        let path = vec![server.entry.clone(), silent.entry.clone()];
        let found = Resolver::new(finder(), path, None, config).resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record, record);
        assert_eq!(server.questions.get(), 1);
    });
}

#[test]
fn a_vat_is_reached_where_a_second_answer_to_the_same_question_says_that_it_has_moved() {
    run(async {
        let (silent, vat_host) = (dead_entry(), host(&key(1)));
        let SearchPathEntry::Vls { port, .. } = silent.entry else { unreachable!() };
        let (left, place) = (format!("quic:127.0.0.1:{port}"), vat_host.address());
        let old = draft(5, now()).at(&[&left]).sign().packet().to_vec();
        let new = draft(6, now()).at(&[&place]).sign();
        let packet = new.packet().to_vec();
        let server = cold_server(Box::new(move |_, question| {
            vec![answer(question, &old, false), answer(question, &packet, false)]
        }));
        // With the first of them all have answered, and where it leads nobody is: nothing but the second ends this.
        let mut config = ResolverConfig::default();
        config.lookup = without_sessions();
        config.dial = DialTiming { dial_deadline: HOUR, deadline: HOUR, ..config.dial };
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], None, config);
        let connected = resolver.connect(vat(), &Hints::default()).await.unwrap();
        assert_eq!(connected.address.port(), vat_host.port());
        assert_eq!(connected.record.map(|(record, _)| record), Some(new));
    });
}

#[test]
fn only_so_many_different_answers_to_one_question_are_read() {
    for (different, is_reached) in [(COLD_ANSWERS, false), (COLD_ANSWERS - 1, true)] {
        run(async move {
            let vat_host = host(&key(1));
            let silent = dead_entry();
            let SearchPathEntry::Vls { port, .. } = silent.entry else { unreachable!() };
            let old = draft(5, now()).at(&[&format!("quic:127.0.0.1:{port}")]).sign().packet().to_vec();
            let new = draft(6, now()).at(&[&vat_host.address()]).sign().packet().to_vec();
            let server = cold_server(Box::new(move |_, question| {
                // One that is right, and what somebody makes up who has seen the question.
                let made_up = (1..u8::try_from(different).unwrap()).map(|number| {
                    let mut forged = old.clone();
                    forged[0] ^= number;
                    forged
                });
                let mut packets: Vec<Vec<u8>> = std::iter::once(old.clone()).chain(made_up).collect();
                // Said again, it is nothing new.
                packets.extend(packets.clone());
                packets.push(new.clone());
                packets.iter().map(|packet| answer(question, packet, false)).collect()
            }));
            let soon = Duration::from_millis(300);
            let mut config = ResolverConfig::default();
            config.lookup = without_sessions();
            config.dial = DialTiming { dial_deadline: soon, ..config.dial };
            let resolver = Resolver::new(finder(), vec![server.entry.clone()], None, config);
            let connected = resolver.connect(vat(), &Hints::default()).await;
            assert_eq!(connected.is_ok(), is_reached);
            assert_eq!(*vat_host.attempts.borrow(), usize::from(is_reached));
        });
    }
}

#[test]
fn who_answers_with_a_forgery_first_does_not_make_the_server_a_forger() {
    run(async {
        let packet = live().packet().to_vec();
        let server = cold_server(Box::new(move |_, question| {
            let mut forged = packet.clone();
            forged[0] ^= 1;
            vec![answer(question, &forged, false), answer(question, &[], false)]
        }));
        let silent = dead_entry();
        let mut config = ResolverConfig::default();
        let negative_grace = LookupTiming::default().negative_grace;
        config.lookup = LookupTiming { negative_grace, ..without_sessions() };
        let path = vec![server.entry.clone(), silent.entry.clone()];
        let resolver = Resolver::new(finder(), path, None, config);
        let failed = resolver.resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(failed.code(), ErrorCode::VlsUnknownVat);
    });
}

#[test]
fn answers_to_what_was_not_asked_are_not_heard() {
    run(async {
        let record = live();
        let packet = record.packet().to_vec();
        let server = cold_server(Box::new(move |_, question| {
            let mut other = question;
            other.nonce[7] ^= 1;
            let unknown = answer(other, &[], false);
            vec![unknown.clone(), unknown[..20].to_vec(), vec![9; 1200], answer(question, &packet, false)]
        }));
        let found = resolver(&server, without_sessions()).resolve(vat(), &Hints::default()).await.unwrap();
        assert_eq!(found.record, record);
    });
}

#[test]
fn lies_are_refused_as_they_are_over_a_session() {
    run(async {
        let forged = {
            let mut packet = live().packet().to_vec();
            packet[70] ^= 1;
            packet
        };
        let server = cold_server(Box::new(move |_, question| vec![answer(question, &forged, false)]));
        let error = resolver(&server, without_sessions()).resolve(vat(), &Hints::default()).await.unwrap_err();
        assert_eq!(error.attempts()[0].outcome.code(), Some(ErrorCode::RecordForged));
    });
}

#[test]
fn who_hears_nothing_opens_a_session() {
    run(async {
        let record = live();
        // It speaks nothing but QUIC.
        let server = server_that_says(50, Says::Packet(record.packet().to_vec()));
        let mut config = ResolverConfig::default();
        let patience = Duration::from_millis(20);
        config.lookup = LookupTiming { cold_patience: patience, ..without_sessions() };
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], None, config);
        assert_eq!(resolver.resolve(vat(), &Hints::default()).await.unwrap().record, record);
    });
}

#[test]
fn what_a_server_says_over_a_session_no_datagram_takes_back() {
    run(async {
        let vat_endpoint = Endpoint::bind(&key(1), "127.0.0.1:0".parse().unwrap(), EndpointConfig::default()).unwrap();
        let place = format!("quic:{}", vat_endpoint.local_address());
        let packet = draft(5, now()).at(&[&place]).sign().packet().to_vec();
        let server = server_that_says(50, Says::Lapsed(packet.clone()));
        let datagrams = server.endpoint.datagrams_beside(QUESTION_KIND, QUESTION_HEAD_BYTES);
        let mut config = ResolverConfig::default();
        config.lookup = LookupTiming { cold_patience: Duration::ZERO, ..without_sessions() };
        let resolver = Resolver::new(finder(), vec![server.entry.clone()], None, config);
        let hints = Hints::default();
        let somebody_who_has_seen_the_question = async {
            let (mut bunch, mut answers) = (Bunch::default(), Bunch::default());
            datagrams.receive(&mut bunch).await;
            // The vat is dialled: the session has been answered.
            let incoming = vat_endpoint.accept().await.unwrap();
            for datagram in bunch.iter() {
                let question = LookupQuestion::read(datagram.bytes, datagram.length).expect("a question");
                let still_there = answer(question, &packet, false);
                answers.push(datagram.peer, datagram.local, |bytes| bytes.extend(still_there));
            }
            datagrams.send(&answers);
            // Whatever comes to the finder's socket after it is read after it.
            resolver.resolve(key(2).id(), &hints).await.unwrap_err();
            incoming.accept().await.unwrap()
        };
        let (connected, _open) = tokio::join!(resolver.connect(vat(), &hints), somebody_who_has_seen_the_question);
        assert_eq!(connected.unwrap().record.map(|(_, freshness)| freshness), Some(Freshness::Lapsed));
    });
}

#[test]
fn an_answer_is_waited_for_also_by_who_is_given_no_session() {
    run(async {
        let record = live();
        let packet = record.packet().to_vec();
        // It has no place for another session, and two datagrams are lost.
        let mut full = EndpointConfig::default();
        full.connections = 0;
        let endpoint = Endpoint::bind(&key(50), "127.0.0.1:0".parse().unwrap(), full).unwrap();
        let server = cold_server_at(
            host_at(endpoint),
            Box::new(move |number, question| {
                let copies = if number < 3 { 0 } else { 1 };
                vec![answer(question, &packet, false); copies]
            }),
        );
        let timing = LookupTiming { cold_patience: Duration::from_millis(20), ..without_sessions() };
        assert_eq!(resolver(&server, timing).resolve(vat(), &Hints::default()).await.unwrap().record, record);
        assert_eq!(server.questions.get(), 3);
    });
}

#[test]
fn a_witness_is_asked_over_a_session_alone() {
    run(async {
        let server = cold_server(truth(&live()));
        let timing = LookupTiming { deadline: Duration::from_millis(300), ..without_sessions() };
        let newest = resolver(&server, timing).newest(vat()).await;
        // It takes connections and opens no session: nobody has witnessed anything.
        assert_eq!((newest.record, newest.attempts.len(), server.questions.get()), (None, 1, 0));
        assert_eq!(*server.host.attempts.borrow(), 1);
    });
}
