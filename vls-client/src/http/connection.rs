//! One connection to a server of the HTTP form, and what is bounded on it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    body::{Body, Bytes},
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use schemas::VatId;
use tokio::{
    net::TcpStream,
    task::{AbortHandle, spawn_local},
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsConnector;

use super::{Answered, Request};
use crate::{carriers::TrustRoots, dial::resolve, dial_schedule::Target, failure::Failure, limits, wave::Wave};

/// What relays of pkarr call a packet.
const PACKET: &str = "application/pkarr.org/relays#payload";

const SCHEME: &str = "https://";
const DEFAULT_PORT: u16 = 443;

/// Where a server of the HTTP form is, and the path below which it keeps records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// `host[:port]`, as it stands in the URL.
    authority: String,
    /// Without the slash at its end; empty for none.
    path: String,
}

impl Place {
    /// Of an entry's URL, which is canonical.
    pub(super) fn of(url: &str) -> Result<Self, Failure> {
        let rest = url.strip_prefix(SCHEME).ok_or(Failure::Place)?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        Ok(Self { authority: authority.to_owned(), path: path.to_owned() })
    }

    /// The path of a vat's record.
    pub(super) fn path_of(&self, id: VatId, query: &str) -> String {
        format!("{}/pkarr/{id}{query}", self.path)
    }

    /// The path of the entry itself.
    pub(super) fn root(&self) -> &str {
        if self.path.is_empty() { "/" } else { &self.path }
    }

    fn target(&self) -> Result<Target, Failure> {
        let (host, port) = match self.authority.rsplit_once(':') {
            // The last colon of an IPv6 address without a port stands inside its brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| Failure::Place)?),
            _ => (self.authority.as_str(), DEFAULT_PORT),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Target { host: host.to_owned(), port })
    }
}

/// Whom to trust, read once.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    pub(super) fn new(trust: &TrustRoots) -> Result<Self, Failure> {
        let roots = match trust {
            TrustRoots::Given(roots) => roots.clone(),
            TrustRoots::System => {
                let mut roots = RootCertStore::empty();
                let found = rustls_native_certs::load_native_certs();
                // Single ones that are unreadable or of no known kind are no reason to do without the others.
                let (used, _) = roots.add_parsable_certificates(found.certs);
                if used == 0 {
                    return Err(Failure::NoTrust);
                }
                Arc::new(roots)
            }
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        // Files on any web server will do, and not all of them speak TLS 1.3. What they show proves itself.
        let config = config.with_protocol_versions(&[&TLS13, &TLS12]);
        let config = config.map_err(|error| tls_failure(io::Error::other(error)))?;
        Ok(Self(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
    }

    /// Connects to the first of the addresses that answers, with staggered starts (RFC 8305).
    pub(super) async fn connect(&self, place: &Place) -> Result<Open, Failure> {
        let target = place.target()?;
        let name = ServerName::try_from(target.host.clone()).map_err(|_| Failure::Place)?;
        let stream = connect_any(resolve(&target).await?).await?;
        // Requests are written in one piece: waiting for more to send would only delay them.
        stream.set_nodelay(true).map_err(connect_failure)?;
        let stream = TlsConnector::from(self.0.clone()).connect(name, stream).await.map_err(tls_failure)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(limits::MAX_HTTP_HEAD)
            .max_headers(limits::MAX_HTTP_FIELDS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(http_failure)?;
        let task = spawn_local(async move {
            // Whoever asks over it learns what was wrong with it.
            let _ = connection.await;
        });
        Ok(Open { sender, task: task.abort_handle(), exhausted: false })
    }
}

async fn connect_any(addresses: Vec<SocketAddr>) -> Result<TcpStream, Failure> {
    let began = Instant::now();
    let mut wave = Wave::new(Duration::ZERO, 1);
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        while waiting.len() > 0 && wave.may_start(began.elapsed(), limits::DIAL_HEDGE) {
            running.extend(waiting.next().map(TcpStream::connect));
        }
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    last = error;
                    wave.attempt_failed();
                }
            },
            () = sleep_until(began + wave.next()), if waiting.len() > 0 => {}
            else => return Err(connect_failure(last)),
        }
    }
}

/// An open connection, which ends when this is dropped.
pub(super) struct Open {
    sender: SendRequest<Full<Bytes>>,
    task: AbortHandle,
    /// An answer was not read to its end.
    exhausted: bool,
}

impl Open {
    /// One exchange. Has no deadline of its own.
    pub(super) async fn ask(&mut self, place: &Place, request: &Request) -> Result<Answered, Failure> {
        self.sender.ready().await.map_err(http_failure)?;
        let mut head = hyper::Request::builder()
            .method(&request.method)
            .uri(&request.path)
            .header(HOST, &place.authority)
            .header(USER_AGENT, concat!("vls-client/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &request.fields {
            head = head.header(name, value);
        }
        if !request.body.is_empty() {
            head = head.header(CONTENT_TYPE, PACKET);
        }
        // Proof: entries are canonical URLs, ids are 52 letters, and the values of fields were parsed as such.
        let head = head.body(Full::new(request.body.clone())).map_err(|_| Failure::Place)?;
        self.exhausted = true;
        let (parts, body) = self.sender.send_request(head).await.map_err(http_failure)?.into_parts();
        let too_long = Failure::Protocol { what: "an answer over HTTP that is longer than any record" };
        if body.size_hint().lower() > limits::MAX_HTTP_BODY as u64 {
            return Err(too_long);
        }
        let body = match Limited::new(body, limits::MAX_HTTP_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_long),
            Err(error) => return Err(Failure::Http { reason: error.to_string().into() }),
        };
        self.exhausted = false;
        Ok(Answered { status: parts.status, fields: parts.headers, body })
    }

    /// Whether it may serve the next request.
    pub(super) fn can_be_kept(&self) -> bool {
        !self.exhausted && !self.sender.is_closed()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn connect_failure(error: io::Error) -> Failure {
    Failure::Connect { source: Arc::new(error) }
}

fn tls_failure(error: io::Error) -> Failure {
    Failure::Tls { source: Arc::new(error) }
}

// By value, as `map_err` gives it.
#[allow(clippy::needless_pass_by_value)]
fn http_failure(error: hyper::Error) -> Failure {
    Failure::Http { reason: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_a_vat_stands_below_the_path_of_the_entry() {
        let id = schemas::IdentityKey::from_seed(&[1; 32]).id();
        for (url, host, port, path, root) in [
            ("https://vls.example.org", "vls.example.org", 443, "/pkarr/", "/"),
            ("https://vls.example.org:8443/a/b", "vls.example.org", 8443, "/a/b/pkarr/", "/a/b"),
            ("https://[2001:db8::1]", "2001:db8::1", 443, "/pkarr/", "/"),
            ("https://[2001:db8::1]:8443", "2001:db8::1", 8443, "/pkarr/", "/"),
        ] {
            let place = Place::of(url).unwrap();
            assert_eq!(place.target().unwrap(), Target { host: host.to_owned(), port }, "{url}");
            assert_eq!(place.path_of(id, "?x"), format!("{path}{id}?x"), "{url}");
            assert_eq!(place.root(), root);
        }
    }
}
