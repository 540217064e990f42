//! Entries of every form against a real location server, and against servers that lie, stall or never end.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use checkpoint::simulated::SimulatedDisk;
use rustls::{
    RootCertStore, ServerConfig as TlsConfig, SupportedProtocolVersion,
    crypto::ring,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use schemas::{Coded, ErrorCode, Hints, RecordError, SearchPathEntry, SignedRecord};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    sync::Notify,
    task::spawn_local,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use vls_client::{
    Attempt, CarrierConfig, Expected, Failure, LeftOut, LookupTiming, NameServers, Outcome, Publisher, PublisherConfig,
    Reading, RecordSource, RegisterError, Resolver, ResolverConfig, TrustRoots, limits,
};
use vls_server::{CertificateFiles, Server, ServerConfig, SystemClock};

use crate::support::{
    net::{dead_entry, finder, run},
    records::{Ahead, HOUR, draft, now, vat},
};

const ORIGIN: &str = "vls.example.org";
const DEADLINE: Duration = Duration::from_secs(30);

fn certificate() -> CertificateFiles {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vls-server/tests/certificates");
    CertificateFiles { certificate: folder.join("localhost.pem"), key: folder.join("localhost.key") }
}

async fn server() -> Server {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = ServerConfig::new(any, "/data".into());
    config.disk = SimulatedDisk::new();
    config.http = Some(any);
    config.certificate = Some(certificate());
    config.dns = Some(any);
    config.dns_origin = Some(ORIGIN.parse().unwrap());
    Server::start(config, Rc::new(SystemClock)).await.unwrap()
}

fn https(address: SocketAddr) -> SearchPathEntry {
    format!("https://localhost:{}", address.port()).parse().unwrap()
}

fn dns() -> SearchPathEntry {
    format!("dns:{ORIGIN}").parse().unwrap()
}

fn carriers(name_server: Option<SocketAddr>) -> CarrierConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate().certificate).unwrap()).unwrap();
    let mut carriers = CarrierConfig::default();
    carriers.trust = TrustRoots::Given(Arc::new(roots));
    carriers.name_servers = NameServers::Given(name_server.into_iter().collect());
    carriers
}

/// Nothing but an answer, or a carrier's own deadline, ends a lookup.
fn resolver(path: &[SearchPathEntry], carriers: CarrierConfig) -> Resolver {
    let mut config = ResolverConfig::default();
    config.lookup = LookupTiming { negative_grace: HOUR, deadline: HOUR, ..LookupTiming::default() };
    config.carriers = carriers;
    Resolver::new(finder(), path.to_vec(), None, config)
}

fn publisher(entry: &SearchPathEntry, source: Rc<dyn RecordSource>) -> Publisher {
    let mut config = PublisherConfig::default();
    config.carriers = carriers(None);
    Publisher::new(finder(), vec![entry.clone()], source, config)
}

/// Shows one record.
struct Shows(SignedRecord);

impl RecordSource for Shows {
    fn current(&self, _: Reading) -> Result<SignedRecord, RecordError> {
        Ok(self.0.clone())
    }

    fn is_own(&self, record: &SignedRecord) -> bool {
        *record == self.0
    }
}

fn live(epoch: u64) -> SignedRecord {
    draft(epoch, now()).at(&["quic:127.0.0.1:9"]).sign()
}

/// As long as a record can be that a vat publishes.
fn long() -> SignedRecord {
    let addresses: Vec<String> = (0..10).map(|n| format!("quic:{}.example.org:{}", "x".repeat(40), 1000 + n)).collect();
    let record = draft(5, now()).at(&addresses.iter().map(String::as_str).collect::<Vec<_>>()).sign();
    assert!(record.packet().len() > 900, "{}", record.packet().len());
    record
}

async fn register(server: &Server, record: &SignedRecord) {
    let publisher = publisher(&https(server.http_address().unwrap()), Rc::new(Shows(record.clone())));
    let reports = publisher.announce(Expected::Anything, DEADLINE).await;
    assert!(reports[0].is_registered(), "{}", reports[0]);
}

/// What came of the only entry of `path`.
async fn failed(path: &[SearchPathEntry], carriers: CarrierConfig) -> Attempt {
    let error = resolver(path, carriers).resolve(vat(), &Hints::default()).await.unwrap_err();
    error.attempts()[0].clone()
}

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

/// A server that reads a request and then sends `answer`; with `endless`, and then zeros without end.
async fn https_that_says(answer: Vec<u8>, endless: bool) -> SearchPathEntry {
    let then = if endless { Then::SendsOn } else { Then::Reads };
    let server = Https::with(&[&TLS13], move |_, _| Some(answer.clone()), then).await;
    server.entry
}

/// What a server of the HTTP form does after an answer.
#[derive(Clone, Copy)]
enum Then {
    /// Waits for the next request.
    Reads,
    /// Sends zeros without end.
    SendsOn,
    /// Ends the connection.
    Closes,
}

/// Any server of the HTTP form.
struct Https {
    entry: SearchPathEntry,
    /// How many connections were made.
    connections: Rc<Cell<usize>>,
}

impl Https {
    /// Answers what `answers` says to the head of each request, of which it is also told on which connection it came; to
    /// `None` it is silent for ever.
    async fn new(answers: impl Fn(usize, &str) -> Option<Vec<u8>> + 'static) -> Self {
        Self::with(&[&TLS13], answers, Then::Reads).await
    }

    async fn with(
        versions: &[&'static SupportedProtocolVersion],
        answers: impl Fn(usize, &str) -> Option<Vec<u8>> + 'static,
        then: Then,
    ) -> Self {
        let files = certificate();
        let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let tls = TlsConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_protocol_versions(versions).unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(tls.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let entry = https(listener.local_addr().unwrap());
        let (connections, answers) = (Rc::new(Cell::new(0)), Rc::new(answers));
        let count = connections.clone();
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.set(count.get() + 1);
                let (acceptor, answers, number) = (acceptor.clone(), answers.clone(), count.get());
                spawn_local(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    while let Some(head) = read_request(&mut stream).await? {
                        let Some(answer) = answers(number, &head) else { return std::future::pending().await };
                        stream.write_all(&answer).await?;
                        stream.flush().await?;
                        match then {
                            Then::Reads => {}
                            Then::SendsOn => drop(tokio::io::copy(&mut tokio::io::repeat(0), &mut stream).await?),
                            Then::Closes => break,
                        }
                    }
                    std::io::Result::Ok(())
                });
            }
        });
        Self { entry, connections }
    }
}

/// The head of a request, after its body has been read too; `None` at the end of the connection.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let Some(end) = text.find("\r\n\r\n") else { continue };
        let length = text.split_once("content-length: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
        if request.len() >= end + 4 + length.unwrap_or(0) {
            return Ok(Some(text[..end].to_owned()));
        }
    }
}

/// An answer with this status, such as `200 OK`, these fields and this body.
fn http_answer(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

#[test]
fn servers_of_the_http_form_can_neither_forge_nor_flood_nor_lead_elsewhere() {
    run(async {
        let ok = |body: &[u8]| {
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
        };
        let record = live(5);
        let altered = crate::support::records::altered(&record);
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
        // Says that it goes on, and does not.
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

        let altered = crate::support::records::altered(&record);
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
