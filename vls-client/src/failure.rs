//! Why one candidate gave nothing: typed, with a code, in one line (DESIGN §5: one line of reason each).

use std::{fmt, io, sync::Arc, time::Duration};

use schemas::{Address, Coded, ErrorCode, RemoteError, SearchPathEntry};
use transport::{DialError, SessionError};

use crate::{limits::MAX_REMOTE_TEXT, locality::LeftOut};

/// A form of entry or address whose carrier is not part of this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Carrier {
    /// Records on the Mainline DHT.
    Dht,
    /// A gateway that takes batches.
    Gateway,
    /// Sessions relayed by a location server.
    Relay,
}

impl Carrier {
    /// The carrier that an entry needs, unless it is one that this build has.
    pub(crate) fn missing_for_entry(entry: &SearchPathEntry) -> Option<Self> {
        match entry {
            SearchPathEntry::Vls { .. } | SearchPathEntry::Http { .. } | SearchPathEntry::Dns { .. } => None,
            SearchPathEntry::Dht => Some(Self::Dht),
        }
    }

    /// The carrier that an address needs, unless it is one that this build has.
    pub(crate) fn missing_for_address(address: &Address) -> Option<Self> {
        match address {
            Address::Quic { .. } => None,
            Address::Gateway { .. } => Some(Self::Gateway),
            Address::Relayed => Some(Self::Relay),
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dht => "the Mainline DHT",
            Self::Gateway => "the gateway form",
            Self::Relay => "relaying through a location server",
        })
    }
}

/// Why one candidate gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Its carrier is not part of this build.
    #[error("needs {carrier}, which this build does not have")]
    NoCarrier {
        /// What it needs.
        carrier: Carrier,
    },
    /// It is an entry that lookups alone can use.
    #[error("DNS can be asked for other vats, but takes no registrations and tells no time")]
    OnlyLookups,
    /// It is asked over HTTP, and this needs a session.
    #[error("this can be asked over a session alone, of an entry that begins with vls://")]
    OnlySessions,
    /// It is not asked or dialled in local-only mode.
    #[error("left out: {0}")]
    LeftOut(LeftOut),
    /// No TCP connection, or a datagram was refused.
    #[error("no connection: {source}")]
    Connect {
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// No TLS session: mostly for its certificate.
    #[error("no TLS session: {source}")]
    Tls {
        /// What rustls said.
        source: Arc<io::Error>,
    },
    /// This machine trusts nobody.
    #[error("this machine has no list of certificate authorities, so no HTTPS server can be trusted")]
    NoTrust,
    /// The exchange over HTTP broke off or is not HTTP.
    #[error("not HTTP: {reason}")]
    Http {
        /// What was wrong.
        reason: Arc<str>,
    },
    /// A server of the HTTP form answered with another status than those of a lookup.
    #[error("it answered with HTTP status {status}{}", Said(.said.as_ref()))]
    Status {
        /// The status.
        status: u16,
        /// What it said, if it is a server of ours.
        said: Option<RemoteError>,
    },
    /// A name server has not answered the question.
    #[error("the name server cannot or will not answer (DNS response code {code})")]
    NameServer {
        /// The response code of DNS.
        code: u8,
    },
    /// There is nobody to ask for names.
    #[error("no name server is configured")]
    NoNameServer,
    /// A hint that is no `<host>:<port>`.
    #[error("not of the form <host>:<port>")]
    Place,
    /// The host name does not resolve.
    #[error("the name {host} does not resolve: {source}")]
    Name {
        /// The name.
        host: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The host name resolves to nothing.
    #[error("the name {host} has no address")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// Nobody there proved to have the key.
    #[error("{}", OneLine(.0))]
    Dial(Vec<Arc<DialError>>),
    /// The connection stands, but no session could be opened on it.
    #[error("no session: {0}")]
    Session(Arc<SessionError>),
    /// The session ended before the answer came.
    #[error("the session ended before the answer came: {}", .0.message)]
    Ended(RemoteError),
    /// The server answered with an error.
    #[error("it answered: {} ({})", .0.message, .0.code)]
    Remote(RemoteError),
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(getrandom::Error),
    /// The server answered something that is not part of the protocol.
    #[error("its answer is not part of the protocol: {what}")]
    Protocol {
        /// Which part of the answer.
        what: &'static str,
    },
    /// No answer in time.
    #[error("no answer within {}", Seconds(*.after))]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// The disk cache could not be used.
    #[error("{0}")]
    Cache(Arc<crate::CacheError>),
}

impl Coded for Failure {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoCarrier { .. } | Self::OnlyLookups | Self::OnlySessions => ErrorCode::VlsNoCarrier,
            Self::LeftOut(_) => ErrorCode::VlsLeftOut,
            Self::Connect { source } if source.kind() == io::ErrorKind::TimedOut => ErrorCode::NetTimeout,
            Self::Connect { .. } => ErrorCode::NetUnreachable,
            Self::Tls { .. } | Self::NoTrust => ErrorCode::NetTls,
            Self::Http { .. } => ErrorCode::SessionProtocol,
            Self::Status { said, .. } => said.as_ref().map_or(ErrorCode::VlsRefused, |said| said.code),
            Self::NameServer { .. } | Self::NoNameServer => ErrorCode::NetName,
            Self::Place => ErrorCode::VlsEntryMalformed,
            Self::Name { .. } | Self::NoAddress { .. } => ErrorCode::NetName,
            // Somebody who answers with a wrong key says more than silence elsewhere.
            Self::Dial(failures) => {
                let codes = || failures.iter().map(|failure| failure.code());
                let wrong_peer = codes().find(|code| *code == ErrorCode::SessionWrongPeer);
                wrong_peer.or(codes().next()).unwrap_or(ErrorCode::NetUnreachable)
            }
            Self::Session(error) => error.code(),
            Self::Ended(error) | Self::Remote(error) => error.code,
            Self::Random(_) => ErrorCode::SystemRandom,
            Self::Protocol { .. } => ErrorCode::SessionProtocol,
            Self::Timeout { .. } => ErrorCode::NetTimeout,
            Self::Cache(error) => error.code(),
        }
    }
}

impl Failure {
    /// Why registering with an entry can never succeed, or asking it for the time, if that is so.
    pub(crate) fn beyond_lookups(entry: &SearchPathEntry) -> Option<Self> {
        match entry {
            SearchPathEntry::Dns { .. } => Some(Self::OnlyLookups),
            other => Carrier::missing_for_entry(other).map(|carrier| Self::NoCarrier { carrier }),
        }
    }

    /// What an error of a call says about the server.
    pub(crate) fn of_call(error: &capnp::Error) -> Self {
        let ended = error.kind == capnp::ErrorKind::Disconnected;
        let unknown = if ended { ErrorCode::SessionClosed } else { ErrorCode::ObjectFailed };
        let text = error.to_string();
        let remote = RemoteError::parse(&text).unwrap_or(RemoteError { code: unknown, message: text });
        let remote = RemoteError { code: remote.code, message: remote_text(&remote.message) };
        if ended { Self::Ended(remote) } else { Self::Remote(remote) }
    }
}

/// A text that a server wrote, made fit to be shown on a terminal: one line, bounded, nothing that moves the
/// cursor.
pub(crate) fn remote_text(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_REMOTE_TEXT).map(printable).collect();
    if text.chars().nth(MAX_REMOTE_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters, and those that reverse or hide what follows (Unicode's bidirectional controls), are
/// shown as a replacement character.
fn printable(character: char) -> char {
    let misleading = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if character.is_control() || misleading { '\u{fffd}' } else { character }
}

struct Said<'a>(Option<&'a RemoteError>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |said| write!(f, ": {}", said.message))
    }
}

struct OneLine<'a>(&'a [Arc<DialError>]);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no address could be dialled");
        }
        for (index, failure) in self.0.iter().enumerate() {
            write!(f, "{}{failure}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// A duration for people: `3 s`, `1.5 s`, `12 ms`, `80 µs`.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        match micros {
            0..1_000 => write!(f, "{micros} µs"),
            1_000..1_000_000 => write!(f, "{} ms", micros / 1_000),
            _ if self.0.subsec_millis() == 0 => write!(f, "{} s", self.0.as_secs()),
            _ => write!(f, "{}.{} s", self.0.as_secs(), self.0.subsec_millis() / 100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_text_cannot_move_the_cursor_or_fill_the_screen() {
        assert_eq!(remote_text("no\r\n\x1b[2Jquota\u{202e}"), "no\u{fffd}\u{fffd}\u{fffd}[2Jquota\u{fffd}");
        assert_eq!(remote_text(&"x".repeat(100_000)).chars().count(), MAX_REMOTE_TEXT + 1);
    }

    #[test]
    fn durations_are_short_and_rounded_down() {
        let shown = |micros| Seconds(Duration::from_micros(micros)).to_string();
        assert_eq!(shown(80), "80 µs");
        assert_eq!(shown(12_900), "12 ms");
        assert_eq!(shown(3_000_000), "3 s");
        assert_eq!(shown(1_570_000), "1.5 s");
        assert_eq!(shown(1_050_000), "1.0 s");
    }
}
