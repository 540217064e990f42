//! TLS over TCP, for foreign clients from other machines (DESIGN §6): the same key as over QUIC, and inside nothing
//! but Cap'n Proto's two-party protocol.
//!
//! A client decides by what it offers what it is shown:
//!
//! | it offers | it is shown | it may show |
//! |---|---|---|
//! | raw public keys (RFC 7250) | the vat's raw key | its own raw key, if it offers that too |
//! | nothing of the kind | a self-signed certificate over the same key ([`Certificate`]) | nothing |
//!
//! Who shows no key is anonymous, and gets the same as everyone: a bootstrap capability that gives no authority. TLS
//! is version 1.3 only. A client that names an application protocol has to name [`ALPN_CAPNP`]; one that names none is
//! taken at its word that it speaks it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt;
use rustls::server::Acceptor;
use schemas::IdentityKey;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::LazyConfigAcceptor;

use crate::{
    AcceptError, BindError, ForeignStream,
    endpoint::canonical,
    limits,
    tls::{Certificate, StreamConfigs, TlsIdentity, stream_peer_id},
};

/// A TCP port at which TLS with a vat's key is spoken.
#[derive(Debug)]
pub struct TlsListener {
    listener: TcpListener,
    local_address: SocketAddr,
    configs: Arc<StreamConfigs>,
    certificate: Certificate,
    handshake_deadline: Duration,
}

impl TlsListener {
    /// Listens on `listen` (TCP). `[::]` takes IPv4 too where the machine can; on a machine without IPv6 it becomes
    /// `0.0.0.0`. Port 0 takes a free port. A client has `handshake_deadline` ([`limits::TLS_HANDSHAKE_DEADLINE`]) for its
    /// part of the handshake.
    ///
    /// # Errors
    /// [`BindError`]. Must be called inside a tokio runtime.
    pub fn bind(key: &IdentityKey, listen: SocketAddr, handshake_deadline: Duration) -> Result<Self, BindError> {
        tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let refused = |source| BindError::Tcp { address: listen, source };
        let listener = bind(listen).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let listener = TcpListener::from_std(listener).map_err(refused)?;
        let certificate = Certificate::new(key);
        Ok(Self {
            local_address: listener.local_addr().map_err(refused)?,
            listener,
            configs: Arc::new(TlsIdentity::new(key).streams(&certificate).map_err(BindError::Setup)?),
            certificate,
            handshake_deadline,
        })
    }

    /// The address that it listens on, with the real port.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// What clients without raw keys are shown.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// What the operating system says, for instance when too many files are open.
    pub async fn accept(&self) -> io::Result<TlsIncoming> {
        let (stream, address) = self.listener.accept().await?;
        Ok(TlsIncoming {
            stream,
            address: canonical(address),
            configs: self.configs.clone(),
            deadline: self.handshake_deadline,
        })
    }
}

/// A connection on which nothing was said yet. Dropping it closes it.
#[derive(Debug)]
pub struct TlsIncoming {
    stream: TcpStream,
    address: SocketAddr,
    configs: Arc<StreamConfigs>,
    deadline: Duration,
}

impl TlsIncoming {
    /// Where it comes from.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.address
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn accept(self) -> Result<ForeignStream, AcceptError> {
        let (address, after) = (self.address, self.deadline);
        let failed = |source| AcceptError::Tls { address, source };
        let handshake = timeout(after, self.shake_hands()).await;
        handshake.map_err(|_| AcceptError::Timeout { address, after })?.map_err(failed)
    }

    async fn shake_hands(self) -> io::Result<ForeignStream> {
        keep_alive(&self.stream)?;
        let begun = LazyConfigAcceptor::new(Acceptor::default(), self.stream).await?;
        let config = self.configs.choose(&begun.client_hello());
        let stream = begun.into_stream(config).await?;
        let peer = stream_peer_id(stream.get_ref().1);
        let (input, output) = tokio::io::split(stream);
        Ok(ForeignStream { input: Box::new(input), output: Box::new(output), peer })
    }
}

fn bind(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    match std::net::TcpListener::bind(listen) {
        Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && rustix::io::Errno::from_io_error(&error) == NO_IPV6 => {
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, listen.port()))
        }
        bound => bound,
    }
}

/// The machine has no IPv6 at all.
const NO_IPV6: Option<rustix::io::Errno> = Some(rustix::io::Errno::AFNOSUPPORT);

/// A client that is gone without a word is noticed as it would be over QUIC, and small messages are not held back.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, limits::KEEP_ALIVE)?;
    sockopt::set_tcp_keepcnt(stream, limits::KEEP_ALIVES_LOST)?;
    Ok(())
}
