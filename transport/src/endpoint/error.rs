//! Why an endpoint could not be opened, a peer not be dialled, or an attempt not be accepted.

use std::{io, net::SocketAddr, time::Duration};

use quinn::{ConnectError, ConnectionError, TransportErrorCode};
use schemas::{Coded, ErrorCode, RemoteError, VatId};

use crate::{peer_connection::remote_error, text::seconds, tls::TlsSetupError};

/// TLS alert `no_application_protocol` (RFC 7301).
const ALERT_NO_APPLICATION_PROTOCOL: u8 = 120;

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address cannot be bound.
    #[error("cannot listen on {address} (UDP): {}", in_plain_words(source))]
    Address {
        /// What was asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The same for TLS over TCP.
    #[error("cannot listen on {address} (TCP): {}", in_plain_words(source))]
    Tcp {
        /// What was asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A socket that was handed in cannot be used.
    #[error("the socket cannot be used: {0}")]
    Socket(#[source] io::Error),
    /// Called outside of a tokio runtime.
    #[error("an endpoint needs a running tokio runtime")]
    NoRuntime,
    /// The TLS library refused its configuration.
    #[error(transparent)]
    Setup(TlsSetupError),
}

impl BindError {
    pub(super) fn address(address: SocketAddr, source: io::Error) -> Self {
        Self::Address { address, source }
    }
}

impl Coded for BindError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Address { .. } | Self::Tcp { .. } | Self::Socket(_) => ErrorCode::NetBind,
            Self::NoRuntime | Self::Setup(_) => ErrorCode::Internal,
        }
    }
}

fn in_plain_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses this port".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not use this port".to_owned(),
        _ => error.to_string(),
    }
}

/// Why a peer could not be dialled. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Nobody answered in time.
    #[error("no answer from {address} within {}", seconds(after))]
    Timeout {
        /// Where it was tried.
        address: SocketAddr,
        /// For how long.
        after: Duration,
    },
    /// Nothing can be sent there.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was tried.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// The socket has not the address family of the peer.
    #[error("{address} cannot be reached from a socket bound to {local}: not the same family of addresses")]
    Family {
        /// Where it was tried.
        address: SocketAddr,
        /// What the endpoint is bound to.
        local: SocketAddr,
    },
    /// Somebody else answers there.
    #[error("{address} is not {expected}: {}", found_instead(found))]
    WrongPeer {
        /// Who was dialled.
        expected: VatId,
        /// The id that the other side showed, if it showed one. It did not have to prove it.
        found: Option<VatId>,
        /// Where it was tried.
        address: SocketAddr,
    },
    /// The peer, or a server that stands there, refused the connection.
    #[error("{address} refused the connection: {remote}")]
    Refused {
        /// Where it was tried.
        address: SocketAddr,
        /// What it said.
        remote: RemoteError,
    },
    /// A QUIC server that speaks none of our protocols.
    #[error("{address} does not speak this protocol: {reason}")]
    Version {
        /// Where it was tried.
        address: SocketAddr,
        /// How that showed.
        reason: String,
    },
    /// The endpoint is closed.
    #[error("this endpoint is closed")]
    Closed,
    /// The TLS library refused its configuration.
    #[error(transparent)]
    Setup(TlsSetupError),
}

impl DialError {
    pub(super) fn from_connect(address: SocketAddr, error: ConnectError) -> Self {
        match error {
            ConnectError::EndpointStopping => Self::Closed,
            error => Self::Unreachable { address, reason: error.to_string() },
        }
    }

    pub(super) fn from_handshake(
        expected: VatId,
        found: Option<VatId>,
        address: SocketAddr,
        deadline: Duration,
        error: ConnectionError,
    ) -> Self {
        let refused =
            |code, message: &str| Self::Refused { address, remote: RemoteError { code, message: message.to_owned() } };
        match error {
            ConnectionError::TimedOut => Self::Timeout { address, after: deadline },
            ConnectionError::LocallyClosed => Self::Closed,
            ConnectionError::VersionMismatch => Self::Version { address, reason: error.to_string() },
            ConnectionError::ApplicationClosed(close) => Self::Refused { address, remote: remote_error(&close.reason) },
            // Our own verifier or the library refused what the other side showed.
            ConnectionError::TransportError(ref fault) if is_handshake(fault.code) => {
                Self::WrongPeer { expected, found: found.filter(|id| *id != expected), address }
            }
            ConnectionError::ConnectionClosed(ref close) => match close.error_code {
                code if code == TransportErrorCode::crypto(ALERT_NO_APPLICATION_PROTOCOL) => {
                    Self::Version { address, reason: "its QUIC server offers other protocols".to_owned() }
                }
                code if is_handshake(code) => {
                    Self::Version { address, reason: "it does not accept a raw public key".to_owned() }
                }
                TransportErrorCode::CONNECTION_REFUSED => {
                    refused(ErrorCode::SessionLimit, "it accepts no more connections now")
                }
                _ => Self::Unreachable { address, reason: error.to_string() },
            },
            error => Self::Unreachable { address, reason: error.to_string() },
        }
    }
}

fn is_handshake(code: TransportErrorCode) -> bool {
    // RFC 9001 §4.8: 0x100 and the TLS alert.
    (0x100..0x200).contains(&u64::from(code))
}

impl Coded for DialError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Timeout { .. } => ErrorCode::NetTimeout,
            Self::Unreachable { .. } | Self::Family { .. } | Self::Closed => ErrorCode::NetUnreachable,
            Self::WrongPeer { .. } => ErrorCode::SessionWrongPeer,
            Self::Refused { remote, .. } => remote.code,
            Self::Version { .. } => ErrorCode::SessionVersion,
            Self::Setup(_) => ErrorCode::Internal,
        }
    }
}

/// Why a connection attempt was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The peer did not shake hands in time.
    #[error("{address} did not finish its handshake within {}", seconds(after))]
    Timeout {
        /// Where it came from.
        address: SocketAddr,
        /// How long it had.
        after: Duration,
    },
    /// The handshake failed: no raw public key, a bad signature, another protocol, or it gave up.
    #[error("the handshake with {address} failed: {source}")]
    Handshake {
        /// Where it came from.
        address: SocketAddr,
        /// What the QUIC library reports.
        source: ConnectionError,
    },
    /// The same on TCP: not TLS 1.3, another application protocol, a bad signature, or it gave up.
    #[error("the handshake with {address} failed: {source}")]
    Tls {
        /// Where it came from.
        address: SocketAddr,
        /// What the TLS library or the operating system reports.
        source: io::Error,
    },
    /// The handshake was complete without a usable key. The verifier does not let this happen.
    #[error("{address} showed no usable key")]
    NoKey {
        /// Where it came from.
        address: SocketAddr,
    },
}

impl Coded for AcceptError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Timeout { .. } => ErrorCode::NetTimeout,
            Self::Handshake { .. } | Self::Tls { .. } | Self::NoKey { .. } => ErrorCode::SessionWrongPeer,
        }
    }
}

fn found_instead(found: &Option<VatId>) -> String {
    match found {
        Some(id) => format!("{id} answers there"),
        None => "whoever answers there shows no such key".to_owned(),
    }
}
