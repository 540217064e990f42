//! A real location server behind entries of every form, and web servers that say whatever a test wants.

use std::{cell::Cell, net::SocketAddr, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use rustls::{RootCertStore, ServerConfig as TlsConfig, SupportedProtocolVersion, crypto::ring, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use schemas::{Hints, RecordError, SearchPathEntry, SignedRecord};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::spawn_local,
};
use tokio_rustls::TlsAcceptor;
use vls_client::{
    Attempt, CarrierConfig, Expected, LookupTiming, NameServers, Publisher, PublisherConfig, Reading, RecordSource,
    Resolver, ResolverConfig, TrustRoots,
};
use vls_server::{CertificateFiles, Server, ServerConfig, SystemClock, registry::Policy};

use super::{
    net::finder,
    records::{HOUR, draft, now, vat},
};

const ORIGIN: &str = "vls.example.org";
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn certificate() -> CertificateFiles {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vls-server/tests/certificates");
    CertificateFiles { certificate: folder.join("localhost.pem"), key: folder.join("localhost.key") }
}

pub(crate) async fn server() -> Server {
    server_with(Policy::default()).await
}

pub(crate) async fn server_with(policy: Policy) -> Server {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = ServerConfig::new(any, "/data".into());
    config.policy = policy;
    config.disk = SimulatedDisk::new();
    config.http = Some(any);
    config.certificate = Some(certificate());
    config.dns = Some(any);
    config.dns_origin = Some(ORIGIN.parse().unwrap());
    Server::start(config, Rc::new(SystemClock)).await.unwrap()
}

pub(crate) fn https(address: SocketAddr) -> SearchPathEntry {
    format!("https://localhost:{}", address.port()).parse().unwrap()
}

pub(crate) fn dns() -> SearchPathEntry {
    format!("dns:{ORIGIN}").parse().unwrap()
}

pub(crate) fn carriers(name_server: Option<SocketAddr>) -> CarrierConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate().certificate).unwrap()).unwrap();
    let mut carriers = CarrierConfig::default();
    carriers.trust = TrustRoots::Given(Arc::new(roots));
    carriers.name_servers = NameServers::Given(name_server.into_iter().collect());
    carriers
}

/// Nothing but an answer, or a carrier's own deadline, ends a lookup.
pub(crate) fn resolver(path: &[SearchPathEntry], carriers: CarrierConfig) -> Resolver {
    let mut config = ResolverConfig::default();
    config.lookup = LookupTiming { negative_grace: HOUR, deadline: HOUR, ..LookupTiming::default() };
    config.carriers = carriers;
    Resolver::new(finder(), path.to_vec(), None, config)
}

pub(crate) fn publisher(entry: &SearchPathEntry, source: Rc<dyn RecordSource>) -> Publisher {
    let mut config = PublisherConfig::default();
    config.carriers = carriers(None);
    Publisher::new(finder(), vec![entry.clone()], source, config)
}

/// Shows one record.
pub(crate) struct Shows(pub(crate) SignedRecord);

impl RecordSource for Shows {
    fn current(&self, _: Reading) -> Result<SignedRecord, RecordError> {
        Ok(self.0.clone())
    }

    fn is_own(&self, record: &SignedRecord) -> bool {
        *record == self.0
    }
}

pub(crate) fn live(epoch: u64) -> SignedRecord {
    draft(epoch, now()).at(&["quic:127.0.0.1:9"]).sign()
}

pub(crate) async fn register(server: &Server, record: &SignedRecord) {
    let publisher = publisher(&https(server.http_address().unwrap()), Rc::new(Shows(record.clone())));
    let reports = publisher.announce(Expected::Anything, DEADLINE).await;
    assert!(reports[0].is_registered(), "{}", reports[0]);
}

/// What came of the only entry of `path`.
pub(crate) async fn failed(path: &[SearchPathEntry], carriers: CarrierConfig) -> Attempt {
    let error = resolver(path, carriers).resolve(vat(), &Hints::default()).await.unwrap_err();
    error.attempts()[0].clone()
}

/// A server that reads a request and then sends `answer`; with `endless`, and then zeros without end.
pub(crate) async fn https_that_says(answer: Vec<u8>, endless: bool) -> SearchPathEntry {
    let then = if endless { Then::SendsOn } else { Then::Reads };
    let server = Https::with(&[&TLS13], move |_, _| Some(answer.clone()), then).await;
    server.entry
}

/// What a server of the HTTP form does after an answer.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// Waits for the next request.
    Reads,
    /// Sends zeros without end.
    SendsOn,
    /// Reads the next request, and ends the connection without an answer.
    Closes,
}

/// Any server of the HTTP form.
pub(crate) struct Https {
    pub(crate) entry: SearchPathEntry,
    /// How many connections were made.
    pub(crate) connections: Rc<Cell<usize>>,
}

impl Https {
    /// Answers what `answers` says to the head of each request, of which it is also told on which connection it came; to
    /// `None` it is silent for ever.
    pub(crate) async fn new(answers: impl Fn(usize, &str) -> Option<Vec<u8>> + 'static) -> Self {
        Self::with(&[&TLS13], answers, Then::Reads).await
    }

    pub(crate) async fn with(
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
                            Then::Closes => {
                                read_request(&mut stream).await?;
                                break;
                            }
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
pub(crate) fn http_answer(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}
