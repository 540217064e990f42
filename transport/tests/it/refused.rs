//! Who is refused: wrong ids, clients without a key, clients and servers with certificates, other protocols.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use schemas::{Coded, ErrorCode};
use transport::{AcceptError, DialError, Endpoint, EndpointConfig, tls::ALPN};

use crate::{
    raw::bare_endpoint,
    support::{PATIENCE, connect, key, loopback, run, server},
};

/// A certificate that nobody should trust, and its key, which is no secret.
const CERTIFICATE: &[u8] = include_bytes!("fixtures/x509-certificate.der");
const CERTIFICATE_KEY: &[u8] = include_bytes!("fixtures/x509-key.der");

fn certificate() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (vec![CERTIFICATE.into()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(CERTIFICATE_KEY)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Believes everyone: a client that would talk to any server.
#[derive(Debug)]
pub(crate) struct Gullible {
    pub(crate) raw_keys: bool,
}

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw_keys
    }
}

/// Has `client` dial `server` and returns why the server refused it.
async fn refusal(server: &Endpoint, mut client: rustls::ClientConfig) -> AcceptError {
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.enable_sni = false;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let dialler = bare_endpoint(None);
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = dialler.connect_with(config, server.local_address(), "localhost").unwrap();
    let dial = async {
        // A client may think for a moment that it is connected; it never gets anywhere.
        if let Ok(connection) = connecting.await {
            connection.closed().await;
        }
    };
    let ((), accepted) = tokio::join!(dial, async { server.accept().await.unwrap().accept().await });
    accepted.unwrap_err()
}

fn client_builder(raw_keys: bool) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible { raw_keys }))
}

fn assert_refused(error: &AcceptError) {
    assert!(matches!(error, AcceptError::Handshake { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::SessionWrongPeer);
}

#[test]
fn a_client_without_a_key_is_refused() {
    run(async {
        let server = server();
        assert_refused(&refusal(&server, client_builder(true).with_no_client_auth()).await);
        assert_refused(&refusal(&server, client_builder(false).with_no_client_auth()).await);
    });
}

#[test]
fn a_client_with_a_certificate_is_refused() {
    run(async {
        let server = server();
        let (chain, private_key) = certificate();
        for raw_keys in [true, false] {
            let client =
                client_builder(raw_keys).with_client_auth_cert(chain.clone(), private_key.clone_key()).unwrap();
            assert_refused(&refusal(&server, client).await);
        }
        // The same server goes on with those who have a key.
        let (_dialled, accepted) = connect(&server, &Endpoint::client(&key()).unwrap()).await;
        assert!(accepted.close_reason().is_none());
    });
}

#[test]
fn who_answers_with_another_key_is_not_connected_to_and_is_named() {
    run(async {
        let (server, client, other) = (server(), Endpoint::client(&key()).unwrap(), key().id());
        let accept = async { server.accept().await.unwrap().accept().await };
        let dial = client.dial(other, server.local_address(), PATIENCE);
        let (dialled, accepted) = tokio::join!(dial, accept);
        let error = dialled.unwrap_err();
        let DialError::WrongPeer { expected, found, address } = &error else { panic!("{error}") };
        assert_eq!((*expected, *found, *address), (other, Some(server.id()), server.local_address()));
        assert_eq!(error.code(), ErrorCode::SessionWrongPeer);
        assert!(accepted.is_err());
    });
}

fn bare_server(alpn: &[u8]) -> quinn::Endpoint {
    let (chain, private_key) = certificate();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    bare_endpoint(Some(config))
}

#[test]
fn a_server_with_a_certificate_is_refused() {
    run(async {
        let (server, client, id) = (bare_server(ALPN), Endpoint::client(&key()).unwrap(), key().id());
        let accept = async { server.accept().await.unwrap().await };
        let dial = client.dial(id, server.local_addr().unwrap(), PATIENCE);
        let (dialled, accepted) = tokio::join!(dial, accept);
        let error = dialled.unwrap_err();
        assert!(matches!(error, DialError::WrongPeer { found: None, .. } | DialError::Version { .. }), "{error:?}");
        assert!(accepted.is_err());
    });
}

#[test]
fn a_server_of_another_protocol_is_told_apart() {
    run(async {
        let (server, client, id) = (bare_server(b"h3"), Endpoint::client(&key()).unwrap(), key().id());
        let accept = async { server.accept().await.unwrap().await };
        let dial = client.dial(id, server.local_addr().unwrap(), PATIENCE);
        let (dialled, _) = tokio::join!(dial, accept);
        let error = dialled.unwrap_err();
        assert!(matches!(error, DialError::Version { .. }), "{error:?}");
        assert_eq!(error.code(), ErrorCode::SessionVersion);
    });
}

#[test]
fn an_endpoint_may_dial_itself_and_is_told_who_it_is() {
    run(async {
        let both = Endpoint::bind(&key(), loopback(), EndpointConfig::default()).unwrap();
        let (dialled, accepted) = connect(&both, &both).await;
        assert_eq!((dialled.peer(), accepted.peer()), (both.id(), both.id()));
    });
}
