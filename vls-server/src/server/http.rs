//! The records over HTTP and HTTPS (DESIGN §4, §5): what pkarr relays and iroh's DNS server offer, for their
//! clients, for browsers and for `curl`.
//!
//! | path | |
//! |---|---|
//! | `/pkarr/<id>`, `/<id>` | the record: GET, HEAD, PUT ([`records`]) |
//! | `/dns-query` | DNS over HTTPS, RFC 8484 ([`doh`]) |
//! | `/` | what this is, for people |
//! | `/healthz`, `/metrics` | for monitors |
//!
//! HTTP/1.1 and, because DNS over HTTPS asks for it, HTTP/2 with small windows and few streams; by its first bytes, so
//! also without TLS. Behind a proxy that is named as trusted, quotas go by those that it speaks for ([`client`]).
//!
//! Every answer has the server's `Date` and, in microseconds, `Vls-Time`: a client with a wrong clock can tell.
//! Errors are text, `code: message`, with the stable codes of every other carrier.

mod client;
mod dates;
mod doh;
mod pages;
mod preconditions;
mod records;
mod reply;
mod tls;
mod validity;

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use hyper::{
    Method, Request, StatusCode, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    rt::Executor,
    service::service_fn,
};
use hyper_util::{rt::TokioIo, server::conn::auto};
use schemas::{ErrorCode, IdText, IdentityError, Network, Timestamp};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::{JoinSet, spawn_local},
    time::{Instant, sleep, sleep_until, timeout},
};

pub(crate) use self::tls::Inspected;
pub(super) use self::{client::TrustedProxies, tls::Tls};
pub use self::{
    client::{ProxyNetwork, ProxyNetworkError},
    tls::{CertificateError, CertificateFiles},
};
use self::{
    dates::Dates,
    reply::{Problem, Reply},
};
use super::{
    places::{Place, Places},
    rates::Rates,
    sessions::{Stage, reached},
    shared::Shared,
};
use crate::{
    limits,
    registry::{Id, Now, Rate, seconds},
};

/// As metrics name it.
const CARRIER: &str = "http";

/// Serves the records over HTTP.
pub(super) struct HttpCarrier {
    shared: Rc<Shared>,
    tls: Option<Tls>,
    proxies: TrustedProxies,
    places: Places,
    rates: RefCell<Rates>,
    dates: Dates,
    limits: HttpLimits,
}

/// What tests set smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpLimits {
    /// Connections at once, of everybody.
    pub connections: usize,
    /// Connections at once of one network.
    pub connections_per_network: usize,
    /// How long a connection may stay without the whole head of a request.
    pub idle: Duration,
    /// How long a body may take.
    pub body: Duration,
    /// Requests on one connection.
    pub requests_per_connection: u32,
    /// Requests per network.
    pub requests: Rate,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: limits::HTTP_CONNECTIONS,
            connections_per_network: limits::HTTP_CONNECTIONS_PER_NETWORK,
            idle: limits::HTTP_IDLE,
            body: limits::HTTP_BODY_DEADLINE,
            requests_per_connection: limits::HTTP_REQUESTS_PER_CONNECTION,
            requests: limits::HTTP_REQUESTS,
        }
    }
}

/// One connection, as far as its requests are concerned.
struct Connection {
    address: IpAddr,
    place: Place,
    requests: Cell<u32>,
    /// There were as many as there may be.
    used_up: Notify,
    /// With HTTP/2, more than one.
    under_way: Cell<u32>,
    idle_since: Cell<Instant>,
}

impl HttpCarrier {
    pub(super) fn new(
        shared: Rc<Shared>,
        tls: Option<Tls>,
        proxies: TrustedProxies,
        limits: HttpLimits,
        seed: u64,
    ) -> Self {
        let places = Places::new(limits.connections, limits.connections_per_network);
        let rates = RefCell::new(Rates::new(limits.requests, seed));
        Self { shared, tls, proxies, places, rates, dates: Dates::default(), limits }
    }

    /// Takes up the certificate's files now, if they have changed.
    pub(super) fn refresh_certificate(&self) {
        if let Some(tls) = &self.tls {
            tls.refresh();
        }
    }

    /// The last moment at which the certificate that is shown now is valid, if it says so.
    pub(super) fn certificate_end(&self) -> Option<Timestamp> {
        self.tls.as_ref().and_then(|tls| tls.validity()).map(|validity| validity.not_after)
    }

    /// Accepts until it is told to stop, then waits until every connection has ended.
    pub(super) async fn serve(self: Rc<Self>, listener: Rc<TcpListener>, mut stage: watch::Receiver<Stage>) {
        let mut connections = JoinSet::new();
        let renewing = async {
            match &self.tls {
                Some(tls) => tls.keep_current().await,
                None => std::future::pending().await,
            }
        };
        let mut renewing = pin!(renewing);
        loop {
            self.shared.metrics.set_connections(CARRIER, self.places.len());
            tokio::select! {
                _ = reached(&mut stage, Stage::Draining) => break,
                Some(_) = connections.join_next() => {}
                () = &mut renewing => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let Some(connection) = self.connection(address) else { continue };
                        connections.spawn_local(Rc::clone(&self).serve_connection(stream, connection, stage.clone()));
                    }
                    Err(error) => pause_after(&error).await,
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    fn connection(&self, address: SocketAddr) -> Option<Connection> {
        let address = address.ip().to_canonical();
        let network = (!self.proxies.contains(address)).then(|| Network::of(address));
        Some(Connection {
            address,
            place: self.places.take(network)?,
            requests: Cell::new(0),
            used_up: Notify::new(),
            under_way: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        })
    }

    async fn serve_connection(
        self: Rc<Self>,
        stream: TcpStream,
        connection: Connection,
        mut stage: watch::Receiver<Stage>,
    ) {
        // Answers are one small packet: waiting for more of them gains nothing. Refused only by a socket that is gone.
        let _ = stream.set_nodelay(true);
        let connection = Rc::new(connection);
        let Some(tls) = &self.tls else {
            return self.serve_stream(stream, &connection, stage).await;
        };
        if !self.proxies.contains(connection.address) && self.take_token(connection.address, self.now()).is_err() {
            return;
        }
        let stream = tokio::select! {
            shaken = timeout(self.limits.idle, tls.accept(stream)) => shaken,
            () = connection.place.evicted() => return,
            _ = reached(&mut stage, Stage::Draining) => return,
        };
        if let Ok(Ok(stream)) = stream {
            connection.idle_since.set(Instant::now());
            self.serve_stream(stream, &connection, stage).await;
        }
    }

    async fn serve_stream<S>(self: &Rc<Self>, stream: S, connection: &Rc<Connection>, mut stage: watch::Receiver<Stage>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let service = service_fn(|request| Rc::clone(self).answer(request, Rc::clone(connection)));
        let builder = builder();
        let served = builder.serve_connection(TokioIo::new(stream), service);
        let mut served = pin!(served);
        let mut draining = stage.clone();
        let finish = async {
            tokio::select! {
                () = connection.used_up.notified() => {}
                () = reached(&mut draining, Stage::Draining) => {}
            }
            Told::Finish
        };
        let leave = async {
            tokio::select! {
                () = connection.place.evicted() => {}
                () = self.idle(connection) => {}
                () = reached(&mut stage, Stage::Closing) => {}
            }
            Told::Leave
        };
        // These are asked only when there is something to tell; a select would ask each of them at every request.
        let mut told: FuturesUnordered<_> = [finish.boxed_local(), leave.boxed_local()].into_iter().collect();
        loop {
            tokio::select! {
                // What it is told comes first: a peer that always has more to say would have it never heard.
                biased;
                Some(told) = told.next() => match told {
                    Told::Finish => served.as_mut().graceful_shutdown(),
                    Told::Leave => return,
                },
                // An error is the peer's: it went away, or spoke something else.
                _ = served.as_mut() => return,
            }
        }
    }

    /// Waits until the connection has had no whole request for too long.
    async fn idle(&self, connection: &Connection) {
        loop {
            let now = Instant::now();
            let since = if connection.under_way.get() > 0 { now } else { connection.idle_since.get() };
            let end = since + self.limits.idle;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        connection: Rc<Connection>,
    ) -> Result<reply::Response, Infallible> {
        let (begun, under_way) = (Instant::now(), UnderWay::begin(&connection));
        let head = request.method() == Method::HEAD;
        let doh = request.uri().path() == doh::PATH;
        let version = request.version();
        let mut now = self.now();
        let reply = match self.begin(&request, connection.address, now) {
            Ok(Begun::Answered(reply)) => Ok(reply),
            Ok(Begun::Waiting(page)) => {
                // In a place of its own: it is large, and what is answered at once need not carry it about.
                let reply = Box::pin(self.finish(page, request)).await;
                now = self.now();
                reply
            }
            Err(problem) => Err(problem),
        };
        let reply = reply.unwrap_or_else(Problem::into_reply);
        let status = reply.status();
        let mut response = reply.into_response(now.wall, &self.dates, head);
        if connection.requests.get() >= self.limits.requests_per_connection {
            connection.used_up.notify_one();
            if version <= Version::HTTP_11 {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        let ended = Instant::now();
        under_way.end(ended);
        let carrier = if doh { doh::CARRIER } else { CARRIER };
        self.shared.metrics.answered(carrier, outcome(status), ended - begun);
        Ok(response)
    }

    fn now(&self) -> Now {
        self.shared.registry.clock().now()
    }

    /// Takes a token of an address's network.
    ///
    /// # Errors
    /// How long until there is one.
    fn take_token(&self, address: IpAddr, now: Now) -> Result<(), Duration> {
        self.rates.borrow_mut().take(Network::of(address), now)
    }

    /// Answers what needs neither a body nor the disk nor other servers, which is nearly everything.
    fn begin(&self, request: &Request<Incoming>, peer: IpAddr, now: Now) -> Result<Begun, Problem> {
        let client = self.proxies.client(peer, request.headers());
        if let Err(wait) = self.take_token(client, now) {
            let message =
                format!("too many requests came from this network; the next is answered in {} s", seconds(wait));
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::VlsQuota, message).retry_after(wait));
        }
        if request.method() == Method::OPTIONS {
            return Ok(Begun::Answered(Reply::preflight()));
        }
        match request.uri().path() {
            "/" => pages::status(&self.shared, only_read(request)?).map(Begun::Answered),
            "/metrics" => pages::metrics(&self.shared, only_read(request)?).map(Begun::Answered),
            "/healthz" => Ok(Begun::Waiting(Page::Health(only_read(request)?))),
            doh::PATH => Ok(Begun::Waiting(Page::Doh)),
            path => {
                let id = id_of(path)?;
                let answered = records::at_once(&self.shared, &id, request, client, (now, &self.dates))?;
                Ok(answered.map_or(Begun::Waiting(Page::Record { id, client }), Begun::Answered))
            }
        }
    }

    async fn finish(&self, page: Page, request: Request<Incoming>) -> Result<Reply, Problem> {
        let body_deadline = self.limits.body;
        match page {
            Page::Health(read_only) => pages::health(&self.shared, read_only).await,
            Page::Doh => doh::answer(&self.shared, request, body_deadline).await,
            Page::Record { id, client } => {
                records::answer(&self.shared, &id, request, client, (body_deadline, &self.dates)).await
            }
        }
    }
}

/// What a request has come to before anything was waited for.
enum Begun {
    Answered(Reply),
    Waiting(Page),
}

/// What a connection is told, beside its requests.
enum Told {
    /// To answer what it has begun, and to take no more.
    Finish,
    /// To go at once.
    Leave,
}

/// Which page is waited for.
enum Page {
    Health(ReadOnly),
    Doh,
    Record { id: Id, client: IpAddr },
}

/// A request that is being answered, until it is dropped: HTTP/2 lets its asker take it back in the middle.
struct UnderWay {
    connection: Rc<Connection>,
    /// When it was answered, if it was.
    ended: Option<Instant>,
}

impl UnderWay {
    fn begin(connection: &Rc<Connection>) -> Self {
        connection.requests.set(connection.requests.get().saturating_add(1));
        connection.under_way.set(connection.under_way.get() + 1);
        connection.place.set_idle(false);
        Self { connection: Rc::clone(connection), ended: None }
    }

    fn end(mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let connection = &*self.connection;
        connection.under_way.set(connection.under_way.get() - 1);
        if connection.under_way.get() == 0 {
            connection.idle_since.set(self.ended.unwrap_or_else(Instant::now));
            connection.place.set_idle(true);
        }
    }
}

/// The protocol, within our limits.
fn builder() -> auto::Builder<LocalTasks> {
    let mut builder = auto::Builder::new(LocalTasks);
    builder
        .http1()
        // Ours comes from the server's clock.
        .auto_date_header(false)
        // An answer is a few hundred bytes: to copy them together costs less than to name their parts to the kernel.
        .writev(false)
        .half_close(true)
        .max_buf_size(limits::HTTP_HEAD_BYTES);
    builder
        .http2()
        .auto_date_header(false)
        .max_concurrent_streams(limits::HTTP_STREAMS)
        .initial_stream_window_size(limits::HTTP_WINDOW)
        .initial_connection_window_size(limits::HTTP_WINDOW)
        .max_send_buf_size(limits::HTTP_HEAD_BYTES)
        .max_header_list_size(u32::try_from(limits::HTTP_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits::HTTP_RESETS)
        .max_local_error_reset_streams(limits::HTTP_RESETS);
    builder
}

/// Where the requests of an HTTP/2 connection are answered: on the thread of the server, as everything is.
#[derive(Debug, Clone, Copy)]
struct LocalTasks;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalTasks {
    fn execute(&self, request: F) {
        spawn_local(request);
    }
}

/// A page that can only be read.
struct ReadOnly;

fn only_read(request: &Request<Incoming>) -> Result<ReadOnly, Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(ReadOnly),
        _ => Err(Problem::method("GET, HEAD, OPTIONS")),
    }
}

/// The id in the path of a record. What cannot be meant as one is a page that is not here.
fn id_of(path: &str) -> Result<Id, Problem> {
    let (text, certain) = match path.strip_prefix("/pkarr/") {
        Some(text) => (text, true),
        None => (path.strip_prefix('/').unwrap_or(path), false),
    };
    IdText::read(text.as_bytes()).map_err(|error| {
        if !certain && matches!(error, IdentityError::Text) && text.len() != IdText::LENGTH {
            return Problem::new(StatusCode::NOT_FOUND, ErrorCode::HttpRequest, "there is no such page".to_owned());
        }
        Problem::new(StatusCode::BAD_REQUEST, ErrorCode::RefIdMalformed, error.to_string())
    })
}

/// Statuses as metrics name them.
fn outcome(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        204 => "204",
        304 => "304",
        400 => "400",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        412 => "412",
        413 => "413",
        415 => "415",
        429 => "429",
        503 => "503",
        _ => "other",
    }
}

/// A connection that could not be accepted stays in the queue, so asking again at once would only burn the processor.
pub(super) async fn pause_after(error: &io::Error) {
    let of_the_peer = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !of_the_peer {
        tracing::warn!(%error, "a TCP connection could not be accepted");
        sleep(limits::ACCEPT_PAUSE).await;
    }
}
