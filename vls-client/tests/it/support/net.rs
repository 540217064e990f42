//! Location servers, honest and lying, and vats, all in this process and on real sockets.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    net::{SocketAddr, UdpSocket},
    rc::Rc,
    time::Duration,
};

use capnp::Error;
use schemas::{
    ErrorCode, IdentityKey, SearchPathEntry, SignedPacket, SignedRecord, Timestamp, VatId,
    limits::MAX_CLOCK_AHEAD,
    location_capnp::{self, answer, expected, location_service, outcome, watcher},
};
use tokio::{
    sync::{Notify, watch},
    task::{LocalSet, spawn_local},
};
use transport::{
    Endpoint, EndpointConfig, Greeting, OutputGate, PeerConnection, Session, SessionLimits, SessionOptions,
};

use super::records::key;

/// No test waits this long for anything; one that hangs fails with it instead of for ever.
const HANG: Duration = Duration::from_secs(60);

/// Runs a test on a thread of its own kind: one `LocalSet`.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(HANG, test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, test);
}

/// Waits until something holds that nobody announces.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn finder() -> Endpoint {
    Endpoint::client(&IdentityKey::generate().unwrap()).unwrap()
}

/// An entry behind which nobody ever answers: the port is taken, and nothing is read from it.
pub(crate) struct DeadEntry {
    pub(crate) entry: SearchPathEntry,
    _socket: UdpSocket,
}

pub(crate) fn dead_entry() -> DeadEntry {
    let socket = UdpSocket::bind(loopback()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let entry = SearchPathEntry::Vls { id: key(99).id(), host: "127.0.0.1".to_owned(), port };
    DeadEntry { entry, _socket: socket }
}

/// A vat, or whoever else listens at an address. Accepts everybody, and keeps the connections open.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    /// How many have tried to connect.
    pub(crate) attempts: watch::Receiver<usize>,
}

pub(crate) fn host(key: &IdentityKey) -> Host {
    host_at(Endpoint::bind(key, loopback(), EndpointConfig::default()).unwrap())
}

pub(crate) fn host_at(endpoint: Endpoint) -> Host {
    let (count, attempts) = watch::channel(0);
    let listening = endpoint.clone();
    spawn_local(async move {
        let mut open: Vec<PeerConnection> = Vec::new();
        while let Some(incoming) = listening.accept().await {
            count.send_modify(|count| *count += 1);
            open.extend(incoming.accept().await);
        }
    });
    Host { endpoint, attempts }
}

impl Host {
    pub(crate) fn port(&self) -> u16 {
        self.endpoint.local_address().port()
    }

    /// `127.0.0.1:<port>`
    pub(crate) fn place(&self) -> String {
        self.endpoint.local_address().to_string()
    }

    /// `quic:127.0.0.1:<port>`
    pub(crate) fn address(&self) -> String {
        format!("quic:{}", self.place())
    }
}

/// What a server says to a lookup.
#[derive(Clone)]
pub(crate) enum Says {
    /// What it was told by registrations.
    Truth,
    Packet(Vec<u8>),
    Lapsed(Vec<u8>),
    /// Fails the call.
    Error(&'static str),
    /// Never answers.
    Nothing,
}

/// What a server replies to a registration.
#[derive(Clone)]
pub(crate) enum Replies {
    /// By the rules, as far as a test needs them, with this lease in seconds.
    Honestly(u32),
    Stale(Vec<u8>),
    Conflict(Vec<u8>),
    Unexpected(Vec<u8>),
    Refused {
        code: &'static str,
        retry_after: u32,
    },
    /// Honestly, with a clock that shows this.
    Behind(Timestamp),
    /// Refuses everything as dated ahead of this.
    Ahead(Timestamp),
    /// Never.
    Never,
}

/// A registration as it arrived.
#[derive(Clone)]
pub(crate) struct Arrived {
    pub(crate) record: SignedRecord,
    pub(crate) conditional: bool,
}

/// A location server.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    pub(crate) entry: SearchPathEntry,
    pub(crate) state: Rc<State>,
}

pub(crate) struct State {
    says: RefCell<Says>,
    replies: RefCell<Replies>,
    table: RefCell<HashMap<VatId, SignedPacket>>,
    pub(crate) arrived: RefCell<Vec<Arrived>>,
    /// Raised at every lookup and registration.
    changed: Notify,
    pub(crate) lookups: Cell<usize>,
    sessions: RefCell<Vec<Rc<Session>>>,
    /// Sessions below this number are never answered any more, as if their process had been killed.
    mute_below: Cell<usize>,
    /// Lookups wait for it while it is there.
    hold: RefCell<Option<watch::Receiver<bool>>>,
    /// Those who watch, and whether anybody may.
    watchers: RefCell<Vec<(VatId, watcher::Client)>>,
    can_watch: Cell<bool>,
    /// How often the caller's own record was renewed by its order.
    pub(crate) renewals: Cell<usize>,
}

/// A server that answers with what it was told.
pub(crate) fn server(seed: u8) -> Server {
    server_at(seed, loopback())
}

fn server_at(seed: u8, listen: SocketAddr) -> Server {
    let key = key(seed);
    let endpoint = Endpoint::bind(&key, listen, EndpointConfig::default()).unwrap();
    let address = endpoint.local_address();
    let entry = SearchPathEntry::Vls { id: key.id(), host: address.ip().to_string(), port: address.port() };
    let state = Rc::new(State {
        says: RefCell::new(Says::Truth),
        replies: RefCell::new(Replies::Honestly(3600)),
        table: RefCell::default(),
        arrived: RefCell::default(),
        changed: Notify::new(),
        lookups: Cell::new(0),
        sessions: RefCell::default(),
        mute_below: Cell::new(0),
        hold: RefCell::new(None),
        watchers: RefCell::default(),
        can_watch: Cell::new(true),
        renewals: Cell::new(0),
    });
    let (serving, listening) = (state.clone(), endpoint.clone());
    spawn_local(async move {
        while let Some(incoming) = listening.accept().await {
            let state = serving.clone();
            spawn_local(async move {
                // A finder that gave up is no concern of the server's.
                let Ok(connection) = incoming.accept().await else { return };
                state.serve(connection).await;
            });
        }
    });
    Server { endpoint, entry, state }
}

/// A server that says this to every lookup.
pub(crate) fn server_that_says(seed: u8, says: Says) -> Server {
    let server = server(seed);
    server.say(says);
    server
}

impl Server {
    pub(crate) fn say(&self, says: Says) {
        *self.state.says.borrow_mut() = says;
    }

    pub(crate) fn reply(&self, replies: Replies) {
        *self.state.replies.borrow_mut() = replies;
    }

    pub(crate) fn put(&self, record: &SignedRecord) {
        self.state.put(record.clone().into());
    }

    /// Has what another program has published with the key of `id`.
    pub(crate) fn put_foreign(&self, id: VatId, packet: &[u8]) {
        self.state.put(SignedPacket::verify(id, packet).unwrap());
    }

    /// Tells everybody who watches what it says now.
    pub(crate) fn tell(&self) {
        for (id, watcher) in &*self.state.watchers.borrow() {
            self.state.tell(*id, watcher);
        }
    }

    /// Knows nothing of watching.
    pub(crate) fn forbid_watching(&self) {
        self.state.can_watch.set(false);
    }

    /// Loses everything that it knew.
    pub(crate) fn forget(&self) {
        self.state.table.borrow_mut().clear();
    }

    /// Lookups wait until the sender says true.
    pub(crate) fn hold(&self) -> watch::Sender<bool> {
        let (sender, receiver) = watch::channel(false);
        *self.state.hold.borrow_mut() = Some(receiver);
        sender
    }

    /// All sessions so far fall silent, like those of a process that was killed.
    pub(crate) fn mute_sessions(&self) {
        self.state.mute_below.set(self.sessions());
    }

    /// Closes all sessions.
    pub(crate) fn close_sessions(&self) {
        self.state.sessions.borrow().iter().for_each(|session| session.close());
    }

    /// Waits until the other side has ended every session.
    pub(crate) async fn until_closed(&self) {
        let sessions = self.state.sessions.borrow().clone();
        for session in sessions {
            session.closed().await;
        }
    }

    /// How many sessions were opened.
    pub(crate) fn sessions(&self) -> usize {
        self.state.sessions.borrow().len()
    }

    /// Waits until something holds.
    pub(crate) async fn until(&self, holds: impl Fn(&State) -> bool) {
        while !holds(&self.state) {
            self.state.changed.notified().await;
        }
    }

    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.state.arrived.borrow().clone()
    }
}

impl State {
    /// What it says of a vat, and whether its lease has ended; `None`: nothing, ever.
    fn said_of(&self, id: VatId, says: Says) -> Result<Option<(Vec<u8>, bool)>, Error> {
        Ok(Some(match says {
            Says::Truth => {
                let table = self.table.borrow();
                (table.get(&id).map(|record| record.packet().to_vec()).unwrap_or_default(), false)
            }
            Says::Packet(packet) => (packet, false),
            Says::Lapsed(packet) => (packet, true),
            Says::Error(text) => return Err(Error::failed(text.to_owned())),
            Says::Nothing => return Ok(None),
        }))
    }

    fn tell(&self, id: VatId, watcher: &watcher::Client) {
        let Ok(Some(said)) = self.said_of(id, self.says.borrow().clone()) else { return };
        let mut request = watcher.changed_request();
        write_answer(&said, request.get().init_answer());
        spawn_local(request.send().promise);
    }

    async fn serve(self: Rc<Self>, connection: PeerConnection) {
        let number = self.sessions.borrow().len();
        let service: location_service::Client = capnp_rpc::new_client(Service { state: self.clone(), number });
        let options = SessionOptions {
            greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "a server of a test".to_owned() },
            bootstrap: Some(service.client),
            gate: OutputGate::always_open(),
            limits: SessionLimits::default(),
        };
        if let Ok(session) = Session::accept(connection, options).await {
            self.sessions.borrow_mut().push(Rc::new(session));
        }
    }

    async fn wait_for_release(&self) {
        let hold = self.hold.borrow().clone();
        if let Some(mut hold) = hold {
            // A test that has ended releases everything.
            let _ = hold.wait_for(|released| *released).await;
        }
    }
}

struct Service {
    state: Rc<State>,
    number: usize,
}

struct Watched;
impl location_capnp::watch::Server for Watched {}

fn write_answer((packet, lapsed): &(Vec<u8>, bool), mut answer: answer::Builder<'_>) {
    answer.set_packet(packet);
    answer.set_age(5);
    answer.set_expired(*lapsed);
}

impl Service {
    fn is_mute(&self) -> bool {
        self.number < self.state.mute_below.get()
    }
}

impl location_service::Server for Service {
    async fn lookup(
        self: Rc<Self>,
        params: location_service::LookupParams,
        mut results: location_service::LookupResults,
    ) -> Result<(), Error> {
        let id = VatId::from_slice(params.get()?.get_id()?).map_err(|error| Error::failed(error.to_string()))?;
        self.state.lookups.set(self.state.lookups.get() + 1);
        self.state.changed.notify_waiters();
        if self.is_mute() {
            std::future::pending::<()>().await;
        }
        let says = self.state.says.borrow().clone();
        self.state.wait_for_release().await;
        let Some(said) = self.state.said_of(id, says)? else { std::future::pending().await };
        write_answer(&said, results.get().init_answer());
        Ok(())
    }

    async fn watch(
        self: Rc<Self>,
        params: location_service::WatchParams,
        mut results: location_service::WatchResults,
    ) -> Result<(), Error> {
        if !self.state.can_watch.get() {
            return Err(Error::unimplemented("no such method".to_owned()));
        }
        let params = params.get()?;
        let id = VatId::from_slice(params.get_id()?).map_err(|error| Error::failed(error.to_string()))?;
        let watcher = params.get_watcher()?;
        self.state.tell(id, &watcher);
        self.state.watchers.borrow_mut().push((id, watcher));
        results.get().set_watch(capnp_rpc::new_client(Watched));
        Ok(())
    }

    async fn renew(
        self: Rc<Self>,
        params: location_service::RenewParams,
        mut results: location_service::RenewResults,
    ) -> Result<(), Error> {
        let order = params.get()?.get_order()?;
        let table = self.state.table.borrow();
        let held = table.values().find(|record| record.order().digest == order.get_digest().unwrap_or_default());
        let mut outcome = results.get().init_outcome();
        match held {
            Some(_) => outcome.init_refreshed().set_seconds(3600),
            None => outcome.set_unexpected(&[]),
        }
        self.state.renewals.set(self.state.renewals.get() + usize::from(held.is_some()));
        self.state.changed.notify_waiters();
        Ok(())
    }

    async fn register(
        self: Rc<Self>,
        params: location_service::RegisterParams,
        mut results: location_service::RegisterResults,
    ) -> Result<(), Error> {
        let failed = |error: schemas::RecordError| Error::failed(error.to_string());
        let params = params.get()?;
        let id = VatId::from_slice(params.get_id()?).map_err(|error| Error::failed(error.to_string()))?;
        let record = SignedRecord::verify(id, params.get_packet()?).map_err(failed)?;
        let expected = params.get_expected()?;
        let conditional = !matches!(expected.which()?, expected::Anything(()));
        self.state.arrived.borrow_mut().push(Arrived { record: record.clone(), conditional });
        self.state.changed.notify_waiters();
        if self.is_mute() {
            std::future::pending::<()>().await;
        }
        let replies = self.state.replies.borrow().clone();
        let mut outcome = results.get().init_outcome();
        match replies {
            Replies::Honestly(lease) => self.state.register(record, expected, lease, outcome)?,
            Replies::Stale(packet) => outcome.set_stale(&packet),
            Replies::Conflict(packet) => outcome.set_conflict(&packet),
            Replies::Unexpected(packet) => outcome.set_unexpected(&packet),
            Replies::Refused { code, retry_after } => {
                let mut refused = outcome.init_refused();
                refused.set_code(code);
                refused.set_message("not today\x1b[2J");
                refused.set_server_time(12_000_000);
                refused.set_retry_after(retry_after);
            }
            Replies::Behind(time) if record.timestamp() <= time.saturating_add(MAX_CLOCK_AHEAD) => {
                self.state.register(record, expected, 3600, outcome)?;
            }
            Replies::Behind(time) | Replies::Ahead(time) => {
                let mut refused = outcome.init_refused();
                refused.set_code(ErrorCode::RecordFuture.as_str());
                refused.set_server_time(time.as_micros());
            }
            Replies::Never => std::future::pending().await,
        }
        Ok(())
    }
}

impl State {
    fn register(
        &self,
        record: SignedRecord,
        expected: expected::Reader<'_>,
        lease: u32,
        mut outcome: outcome::Builder<'_>,
    ) -> Result<(), Error> {
        let current = self.table.borrow().get(&record.id()).cloned();
        let met = match expected.which()? {
            expected::Anything(()) => true,
            expected::Absent(()) => current.is_none(),
            expected::Order(order) => {
                let digest = order?.get_digest()?;
                current.as_ref().is_some_and(|current| current.order().digest == digest)
            }
        };
        let record = SignedPacket::from(record);
        match current {
            current if !met => outcome.set_unexpected(current.as_ref().map_or(&[], SignedPacket::packet)),
            Some(current) if record == current => outcome.init_refreshed().set_seconds(lease),
            Some(current) if record.compare(&current).is_lt() => outcome.set_stale(current.packet()),
            _ => {
                self.put(record);
                outcome.init_stored().set_seconds(lease);
            }
        }
        Ok(())
    }

    fn put(&self, packet: SignedPacket) {
        self.table.borrow_mut().insert(packet.id(), packet);
    }
}

/// The codes of what was wrong, in the order of the attempts.
pub(crate) fn codes(attempts: &[vls_client::Attempt]) -> Vec<Option<ErrorCode>> {
    attempts.iter().map(|attempt| attempt.outcome.code()).collect()
}
