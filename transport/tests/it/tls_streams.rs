//! TLS over TCP: what clients offer, what they are shown, and who is refused. The clients are rustls alone, none of
//! our code.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use capnp::{
    capability::Promise,
    message::{Builder, ReaderOptions},
};
use capnp_rpc::rpc_capnp::message;
use rustls::{
    ClientConfig, RootCertStore,
    client::{AlwaysResolvesClientRawPublicKeys, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    sign::CertifiedKey,
};
use schemas::{Coded, ErrorCode, IdentityKey, VatId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::{JoinHandle, spawn_local},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use transport::{
    AcceptError, BindError, ForeignOptions, ForeignStream, OutputGate, Session, SessionLimits, Sessions, TlsListener,
    peers::PeerLimits,
    tls::{ALPN, ALPN_CAPNP, CERTIFICATE_NAME},
};

use crate::{
    refused::Gullible,
    support::{PATIENCE, loopback, new_counter, run},
};

const SEED: [u8; 32] = [9; 32];

fn listener() -> TlsListener {
    TlsListener::bind(&IdentityKey::from_seed(&[7; 32]), loopback(), PATIENCE).unwrap()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Trusts the listener's certificate and no other.
fn pinned(listener: &TlsListener) -> Arc<dyn ServerCertVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(listener.certificate().der().to_vec())).unwrap();
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap()
}

/// A raw key of the client's own.
fn own_key() -> Arc<CertifiedKey> {
    // The head of an Ed25519 key in PKCS #8 (RFC 8410 §7).
    let head = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from([&head[..], &SEED].concat())).unwrap();
    let public = key.public_key().unwrap().as_ref().to_vec();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], key))
}

fn client(verifier: Arc<dyn ServerCertVerifier>, own: Option<Arc<CertifiedKey>>) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match own {
        Some(key) => config.with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key))),
        None => config.with_no_client_auth(),
    }
}

/// Shakes hands, asks for the bootstrap capability, and sees that there is an answer.
async fn ask(stream: TcpStream, client: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(CERTIFICATE_NAME).unwrap();
    let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    let mut question = Builder::new_default();
    question.init_root::<message::Builder<'_>>().init_bootstrap();
    stream.write_all(&capnp::serialize::write_message_to_words(&question)).await?;
    let mut answer = vec![0; 8];
    stream.read_exact(&mut answer).await?;
    // Messages of ours that are so small have one segment, whose length in words this is.
    let words = u32::from_le_bytes(answer[4..].try_into().unwrap()) as usize;
    answer.resize(8 + 8 * words, 0);
    stream.read_exact(&mut answer[8..]).await?;
    let answer = capnp::serialize::read_message(&answer[..], ReaderOptions::new()).unwrap();
    match answer.get_root::<message::Reader<'_>>().and_then(|root| Ok(root.which()?)) {
        Ok(message::Return(_)) => Ok(stream),
        _ => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Connects, asks for the bootstrap capability, and returns whom the other side takes the client for.
async fn served(listener: &TlsListener, client: ClientConfig) -> Result<Option<VatId>, AcceptError> {
    let dial = async {
        let stream = TcpStream::connect(listener.local_address()).await.unwrap();
        ask(stream, client).await.map(drop)
    };
    let accept = async {
        let stream = listener.accept().await.unwrap().accept().await?;
        let session = session(stream);
        let peer = session.peer_id();
        session.closed().await;
        Ok(peer)
    };
    let (dialled, accepted) = tokio::join!(dial, accept);
    assert_eq!(dialled.is_ok(), accepted.is_ok(), "{dialled:?}, {accepted:?}");
    accepted
}

fn session(stream: ForeignStream) -> Session {
    Session::accept_foreign(stream, options())
}

fn options() -> ForeignOptions {
    ForeignOptions {
        bootstrap: new_counter(),
        restore: Rc::new(|_| Promise::err(capnp::Error::failed(String::new()))),
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

/// A port that serves everybody for whom there is a place, until it is dropped.
struct Port {
    address: SocketAddr,
    verifier: Arc<dyn ServerCertVerifier>,
    table: Sessions,
    accepting: JoinHandle<()>,
    /// Told of every connection that has come.
    came: Rc<Notify>,
}

impl Port {
    fn new(limits: PeerLimits) -> Self {
        let listener = listener();
        let (address, verifier) = (listener.local_address(), pinned(&listener));
        let (table, came) = (Sessions::new(IdentityKey::from_seed(&[7; 32]).id(), limits), Rc::new(Notify::new()));
        let (serving, told) = (table.clone(), came.clone());
        let accepting = spawn_local(async move {
            while let Ok(incoming) = listener.accept().await {
                let handshake = serving.begin_tls(incoming).unwrap();
                spawn_local(handshake.finish(options()));
                told.notify_one();
            }
        });
        Self { address, verifier, table, accepting, came }
    }

    /// A connection on which nothing is said.
    async fn half_open(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.came.notified().await;
        stream
    }

    /// One that has shaken hands and been answered.
    async fn open(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        ask(stream, client(self.verifier.clone(), None)).await
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[test]
fn a_client_that_knows_no_raw_keys_is_shown_a_certificate_that_it_can_check() {
    run(async {
        let listener = listener();
        assert_eq!(served(&listener, client(pinned(&listener), None)).await.unwrap(), None);
        // Another vat's certificate is not taken for it.
        let other = TlsListener::bind(&IdentityKey::from_seed(&[8; 32]), loopback(), PATIENCE).unwrap();
        let refused = served(&listener, client(pinned(&other), None)).await.unwrap_err();
        assert!(matches!(refused, AcceptError::Tls { .. }), "{refused}");
    });
}

#[test]
fn raw_keys_are_proven_on_either_side_whatever_the_other_shows() {
    run(async {
        let listener = listener();
        let own = IdentityKey::from_seed(&SEED).id();
        let raw = || Arc::new(Gullible { raw_keys: true });
        assert_eq!(served(&listener, client(raw(), Some(own_key()))).await.unwrap(), Some(own));
        assert_eq!(served(&listener, client(raw(), None)).await.unwrap(), None);
        assert_eq!(served(&listener, client(pinned(&listener), Some(own_key()))).await.unwrap(), Some(own));
    });
}

#[test]
fn another_application_protocol_is_refused_and_none_is_ours() {
    run(async {
        let listener = listener();
        for (protocol, ours) in [(ALPN_CAPNP, true), (ALPN, false), (b"http/1.1", false)] {
            let mut client = client(pinned(&listener), None);
            client.alpn_protocols = vec![protocol.to_vec()];
            match served(&listener, client).await {
                Ok(peer) => assert!(ours && peer.is_none()),
                Err(error) => assert!(!ours && error.code() == ErrorCode::SessionWrongPeer, "{error}"),
            }
        }
    });
}

#[test]
fn a_client_that_says_nothing_or_nonsense_is_dropped() {
    run(async {
        let deadline = Duration::from_millis(100);
        let listener = TlsListener::bind(&IdentityKey::from_seed(&[7; 32]), loopback(), deadline).unwrap();
        let silent = TcpStream::connect(listener.local_address()).await.unwrap();
        let refused = listener.accept().await.unwrap().accept().await.unwrap_err();
        assert!(matches!(refused, AcceptError::Timeout { after, .. } if after == deadline), "{refused}");
        assert_eq!(refused.code(), ErrorCode::NetTimeout);
        drop(silent);
        let mut stray = TcpStream::connect(listener.local_address()).await.unwrap();
        stray.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let refused = listener.accept().await.unwrap().accept().await.unwrap_err();
        assert!(matches!(refused, AcceptError::Tls { .. }), "{refused}");
    });
}

#[test]
fn a_network_with_its_share_of_idle_clients_makes_room_among_them_for_the_next() {
    run(async {
        let mut limits = PeerLimits::default();
        (limits.sessions_per_network, limits.evictable_after) = (3, Duration::ZERO);
        let port = Port::new(limits);
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(port.open().await.unwrap());
        }
        let next = port.open().await.expect("it is let in");
        // The first is told why, and hung up on; the others stay.
        let mut rest = Vec::new();
        // It may or may not end in the way of TLS.
        let _ = clients[0].read_to_end(&mut rest).await;
        assert!(String::from_utf8_lossy(&rest).contains(ErrorCode::SessionEvicted.as_str()));
        assert_eq!(port.table.count(), 3);
        drop((clients, next));
    });
}

#[test]
fn handshakes_that_nobody_finishes_keep_nobody_out() {
    run(async {
        let mut limits = PeerLimits::default();
        (limits.handshakes, limits.handshakes_per_network) = (4, 2);
        let port = Port::new(limits);
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(port.half_open().await);
        }
        // All but the newest two were hung up on, long before their deadline.
        for stream in &mut silent[..6] {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
        port.open().await.expect("it takes the place of the oldest");
        assert_eq!(silent[6].read(&mut [0]).await.unwrap(), 0);
        assert_eq!(silent[7].try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "the newest stays");
    });
}

#[test]
fn a_port_that_is_taken_is_not_listened_on() {
    run(async {
        let listener = listener();
        let error = TlsListener::bind(&IdentityKey::from_seed(&SEED), listener.local_address(), PATIENCE).unwrap_err();
        assert!(matches!(error, BindError::Tcp { .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::NetBind);
    });
}

#[test]
fn the_fingerprint_is_that_of_the_key_in_the_certificate() {
    run(async {
        let listener = listener();
        // As `openssl pkey -pubout -outform DER | openssl dgst -sha256 -binary | base64` has it for this seed.
        assert_eq!(listener.certificate().key_fingerprint(), "sha256//Mkvi3qi8REYbAjPlH6SJAu1rHMZx53Oa8lUeC/5o9U4=");
    });
}
