//! HTTPS with a certificate that the operator gives.
//!
//! The files are looked at again and again, so a certificate that something else renews is taken up without a
//! restart, and a pair that cannot be used leaves the one before in place.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use rustls::{
    ServerConfig,
    client::verify_server_name,
    crypto::ring,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use schemas::{Coded, ErrorCode, Timestamp};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::validity::Validity;
use crate::limits;

/// Where the certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and those between it and one that everybody knows, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why there is no HTTPS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is larger than any certificate.
    #[error("{} is no certificate and no key: it has {found} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// A file is not PEM, or has nothing of its kind in it. What is wrong in detail is not told: it may be a key.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The key is of an unknown kind, or of another certificate.
    #[error("the key {} cannot be used with the certificate {}: {source}", key.display(), certificate.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the TLS library said.
        source: rustls::Error,
    },
}

impl Coded for CertificateError {
    fn code(&self) -> ErrorCode {
        ErrorCode::ServerCertificate
    }
}

/// Shakes hands with who comes over HTTPS.
pub(in crate::server) struct Tls {
    files: CertificateFiles,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

/// The certificate that is shown now.
struct Current(RwLock<Arc<CertifiedKey>>);

impl Tls {
    /// Reads the files; blocks on the disk.
    pub(in crate::server) fn new(files: CertificateFiles) -> Result<Self, CertificateError> {
        let current = Arc::new(Current(RwLock::new(Arc::new(read(&files)?))));
        let unusable =
            |source| CertificateError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Current>::clone(&current);
        let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { files, current, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Takes up what was renewed, for ever.
    pub(super) async fn keep_current(&self) {
        let mut ticks = interval(limits::CERTIFICATE_CHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.refresh();
        }
    }

    /// When the certificate that is shown now is valid, if it says so.
    pub(super) fn validity(&self) -> Option<Validity> {
        self.current.get().cert.first().and_then(|certificate| Validity::of(certificate))
    }

    pub(super) fn refresh(&self) {
        match read(&self.files) {
            Ok(pair) => {
                let before = self.current.get();
                if before.cert != pair.cert {
                    self.current.set(pair);
                    tracing::info!("the certificate was renewed");
                }
            }
            Err(error) => tracing::warn!(%error, "the certificate's files cannot be used; the one before stays"),
        }
    }
}

impl Current {
    fn get(&self) -> Arc<CertifiedKey> {
        // Nobody panics while holding it; and if, what it guards is whole.
        Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn set(&self, pair: CertifiedKey) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(pair);
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey, CertificateError> {
    let pem = |path: &Path, what| CertificateError::Pem { path: path.to_owned(), what };
    let chain = CertificateDer::pem_slice_iter(&contents(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| pem(&files.certificate, "certificate"))?;
    let key = zeroize::Zeroizing::new(contents(&files.key)?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| pem(&files.key, "private key"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| CertificateError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let file = |source| CertificateError::File { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(file)?;
    if !metadata.is_file() {
        // A pipe would keep everybody waiting for as long as nobody writes into it.
        return Err(file(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
    }
    let found = metadata.len();
    if found > limits::CERTIFICATE_BYTES {
        return Err(CertificateError::TooLarge { path: path.to_owned(), found });
    }
    fs::read(path).map_err(file)
}

/// A certificate, for who wants to know whether it will do.
pub(crate) struct Inspected {
    pair: CertifiedKey,
}

impl Inspected {
    /// Reads the files as the server does.
    pub(crate) fn read(files: &CertificateFiles) -> Result<Self, CertificateError> {
        Ok(Self { pair: read(files)? })
    }

    /// The first and the last moment at which it is valid.
    pub(crate) fn valid(&self) -> Option<(Timestamp, Timestamp)> {
        let validity = Validity::of(self.pair.cert.first()?)?;
        Some((validity.not_before, validity.not_after))
    }

    /// Whether it is for this host.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let (Some(certificate), Ok(name)) = (self.pair.cert.first(), ServerName::try_from(host)) else { return false };
        ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }
}
