//! TLS 1.3 with raw Ed25519 public keys on both sides (RFC 7250): the channel itself proves who is at each end.
//!
//! There are no certificates, no names, no authorities and no dates: a vat's id *is* its public key (DESIGN
//! §3), so "is this the peer that I dialled" is a comparison of 32 bytes. Who has no raw key, or comes with an
//! X.509 certificate, is refused in the handshake.
//!
//! * Signatures are verified strictly, through [`VatId::verify_raw`]. Both sides sign what RFC 8446 §4.4.3
//!   fixes: 64 spaces, a context string of TLS, and the hash of the handshake. That is a context of its own;
//!   no other signature by a vat key can be mistaken for it.
//! * No server name is sent: it would tell every observer which vat is dialled. The library still keys its
//!   caches by a server name, so each id has its own, and nothing of one peer can be offered to another.
//! * Over TCP, for foreign clients, neither is asked for: see [`TlsListener`](crate::TlsListener).
//! * No session tickets. Measured on this stack, resumption saves none of the handshake's CPU, and a resumed
//!   handshake would take the peer's word of an earlier day instead of a fresh proof of its key.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, alg_id},
    server::{
        AlwaysResolvesServerRawPublicKeys, ClientHello, NoServerSessionStorage, ResolvesServerCert,
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey, public_key_to_spki},
};
use schemas::{IdentityKey, VatId};

pub(crate) use accepted::AcceptConfig;
pub use certificate::{CERTIFICATE_NAME, Certificate, key_digest};

mod accepted;
mod certificate;

/// The application protocol of sessions on QUIC.
pub const ALPN: &[u8] = b"vat/1";

/// The application protocol of Cap'n Proto's two-party protocol on TLS over TCP. It is registered nowhere; clients may
/// leave it out.
pub const ALPN_CAPNP: &[u8] = b"capnp";

/// One identity, ready to shake hands.
#[derive(Debug)]
pub(crate) struct TlsIdentity {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl TlsIdentity {
    pub(crate) fn new(key: &IdentityKey) -> Self {
        let public_key = CertificateDer::from(subject_public_key_info(&key.id()).to_vec());
        Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            key: Arc::new(CertifiedKey::new(vec![public_key], Arc::new(HandshakeKey(key.clone())))),
        }
    }

    /// For accepting: any peer that proves a key of its own.
    pub(crate) fn server(&self) -> Result<AcceptConfig, TlsSetupError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyVat { must_prove: true }))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        AcceptConfig::new(config)
    }

    /// For accepting foreign clients on TCP, one configuration for each thing that they may offer.
    pub(crate) fn streams(&self, certificate: &Certificate) -> Result<StreamConfigs, TlsSetupError> {
        let certificate = CertificateDer::from(certificate.der().to_vec());
        let certified = Arc::new(CertifiedKey::new(vec![certificate], self.key.key.clone()));
        let certificate: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(certified));
        let raw: Arc<dyn ResolvesServerCert> = Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone()));
        let config = |verifier: Arc<dyn ClientCertVerifier>, shown: &Arc<dyn ResolvesServerCert>| {
            let mut config = ServerConfig::builder_with_provider(self.provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(shown.clone());
            config.alpn_protocols = vec![ALPN_CAPNP.to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, TlsSetupError>(Arc::new(config))
        };
        let nobody = WebPkiClientVerifier::no_client_auth;
        let anybody = || Arc::new(AnyVat { must_prove: false });
        Ok(StreamConfigs {
            raw_to_raw: config(anybody(), &raw)?,
            raw_to_anonymous: config(nobody(), &raw)?,
            certificate_to_raw: config(anybody(), &certificate)?,
            certificate_to_anonymous: config(nobody(), &certificate)?,
        })
    }

    /// For dialling: only the peer that proves `expected`. Who answered instead is left in `found`.
    pub(crate) fn client(
        &self,
        expected: VatId,
        found: Arc<OnceLock<VatId>>,
    ) -> Result<QuicClientConfig, TlsSetupError> {
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OnlyVat { expected, found }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(QuicClientConfig::try_from(config)?)
    }
}

/// RawPublicKey among the TLS certificate types (RFC 7250 §7).
const RAW_KEY: u8 = 2;

/// How foreign clients are met: what they are shown, and whether they are asked for a key.
#[derive(Debug)]
pub(crate) struct StreamConfigs {
    raw_to_raw: Arc<ServerConfig>,
    raw_to_anonymous: Arc<ServerConfig>,
    certificate_to_raw: Arc<ServerConfig>,
    certificate_to_anonymous: Arc<ServerConfig>,
}

impl StreamConfigs {
    /// The one for a client that says this.
    pub(crate) fn choose(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        // The library does not name the type of these, so the number that stands on the wire is compared.
        let shown = hello.server_cert_types().is_some_and(|types| types.iter().any(|kind| u8::from(*kind) == RAW_KEY));
        let own = hello.client_cert_types().is_some_and(|types| types.iter().any(|kind| u8::from(*kind) == RAW_KEY));
        let config = match (shown, own) {
            (true, true) => &self.raw_to_raw,
            (true, false) => &self.raw_to_anonymous,
            (false, true) => &self.certificate_to_raw,
            (false, false) => &self.certificate_to_anonymous,
        };
        config.clone()
    }
}

/// The id that a foreign client has proven, if it has. The verifier lets nothing but a raw key through.
pub(crate) fn stream_peer_id(connection: &rustls::ServerConnection) -> Option<VatId> {
    match connection.peer_certificates()? {
        [key] => vat_id(key),
        _ => None,
    }
}

/// The TLS library refused a configuration: a defect of this program, not of a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    /// rustls refused it.
    #[error("the TLS library refused its configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// The cipher suite that QUIC needs is missing.
    #[error("the TLS library has no cipher suite for QUIC: {0}")]
    CipherSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The name under which the TLS library files what it knows about a peer. Never sent.
pub(crate) fn server_name(id: &VatId) -> String {
    format!("{id}.vat.invalid")
}

/// The id that a raw public key stands for, if it is a usable Ed25519 key in its one encoding.
pub(crate) fn vat_id(public_key: &[u8]) -> Option<VatId> {
    let id = VatId::from_slice(public_key.get(public_key.len().checked_sub(32)?..)?).ok()?;
    (subject_public_key_info(&id).as_ref() == public_key).then_some(id)
}

/// Who is at the other end of a connection whose handshake is complete.
pub(crate) fn peer_id(connection: &quinn::Connection) -> Option<VatId> {
    let keys = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match keys.as_slice() {
        [key] => vat_id(key),
        _ => None,
    }
}

fn subject_public_key_info(id: &VatId) -> SubjectPublicKeyInfoDer<'static> {
    public_key_to_spki(&alg_id::ED25519, id.as_bytes())
}

/// Signs handshakes. The library calls it with the complete message of RFC 8446 §4.4.3.
#[derive(Debug)]
struct HandshakeKey(IdentityKey);

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(Self(self.0.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(subject_public_key_info(&self.0.id()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for HandshakeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(self.0.sign_raw(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Accepts the one peer that was dialled.
#[derive(Debug)]
struct OnlyVat {
    expected: VatId,
    found: Arc<OnceLock<VatId>>,
}

impl OnlyVat {
    /// Compared as bytes: a key has one encoding, and to read it again costs as much as a tenth of a signature.
    fn is_expected(&self, key: &[u8]) -> bool {
        subject_public_key_info(&self.expected).as_ref() == key
    }
}

impl ServerCertVerifier for OnlyVat {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_expected(end_entity) && intermediates.is_empty() {
            let _ = self.found.set(self.expected);
            return Ok(ServerCertVerified::assertion());
        }
        let id = only_key(end_entity, intermediates)?;
        // What it claims to be; whether it has the key is not known, and no matter if it is another's.
        let _ = self.found.set(id);
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !self.is_expected(key) {
            return Err(CertificateError::NotValidForName.into());
        }
        verify_by(&self.expected, message, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts every peer that proves a key of its own. Who it is, is asked after the handshake.
#[derive(Debug)]
struct AnyVat {
    /// Whether one that shows none is refused.
    must_prove: bool,
}

impl ClientCertVerifier for AnyVat {
    fn client_auth_mandatory(&self) -> bool {
        self.must_prove
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        only_key(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn only_key(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<VatId, rustls::Error> {
    vat_id(end_entity).filter(|_| intermediates.is_empty()).ok_or_else(|| CertificateError::BadEncoding.into())
}

fn verify_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_by(&vat_id(key).ok_or(CertificateError::BadEncoding)?, message, signature)
}

fn verify_by(
    id: &VatId,
    message: &[u8],
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let bytes: &[u8; 64] = signature.signature().try_into().map_err(|_| CertificateError::BadSignature)?;
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(CertificateError::BadSignature.into());
    }
    id.verify_raw(message, bytes).map_err(|_| CertificateError::BadSignature)?;
    Ok(HandshakeSignatureValid::assertion())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> VatId {
        IdentityKey::generate().unwrap().id()
    }

    #[test]
    fn a_key_survives_its_encoding() {
        let id = id();
        let encoded = subject_public_key_info(&id);
        assert_eq!(encoded.len(), 44, "RFC 8410: a fixed head of 12 bytes, then the key");
        assert_eq!(vat_id(&encoded), Some(id));
    }

    #[test]
    fn any_other_encoding_is_refused() {
        let encoded = subject_public_key_info(&id()).to_vec();
        for length in 0..encoded.len() {
            assert_eq!(vat_id(&encoded[..length]), None);
        }
        for position in 0..12 {
            for bit in 0..8 {
                let mut altered = encoded.clone();
                altered[position] ^= 1 << bit;
                assert_eq!(vat_id(&altered), None, "byte {position}, bit {bit}");
            }
        }
        let mut small_order = encoded[..12].to_vec();
        small_order.extend([0; 32]);
        assert_eq!(vat_id(&small_order), None);
        assert_eq!(vat_id(&[encoded, vec![0]].concat()), None);
    }

    #[test]
    fn every_id_has_its_own_server_name_that_the_library_accepts() {
        let (one, other) = (id(), id());
        assert_ne!(server_name(&one), server_name(&other));
        assert!(ServerName::try_from(server_name(&one)).is_ok());
    }
}
