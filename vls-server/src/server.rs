//! A running location server: its identity, its records, and the carriers that serve them: QUIC with the cold
//! lookups beside it, and, if the operator names an address for them, HTTP and DNS.
//!
//! One task accepts; each session is a task of its own, on the thread of whoever started the server (DESIGN §6).
//! A stranger costs a bounded handshake, then a place among the sessions of its network; a session that asks
//! nothing for a while gives its place back, since dialling again is all that its peer loses.

mod back_dialler;
mod datagrams;
mod dht;
pub mod dns;
mod http;
mod listeners;
mod metrics;
mod peers;
mod places;
mod rates;
mod sessions;
mod shared;
mod status;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use checkpoint::{Disk, FileDisk};
use schemas::{Coded, ErrorCode, SearchPathEntry, VatId};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use transport::{BindError, Endpoint, EndpointConfig};

pub(crate) use self::{
    back_dialler::BackDialler,
    http::Inspected,
    metrics::{Metrics, QUOTA},
    peers::{Asker, Peers},
    sessions::{Call, Calls},
};
use self::{
    datagrams::ColdLookups,
    dns::{DnsLimits, DomainName},
    listeners::Listeners,
    sessions::{Carrier, Stage},
    shared::Shared,
};
pub use self::{
    dht::{Bootstrap, BootstrapError, DhtConfig},
    http::{CertificateError, CertificateFiles, HttpLimits, ProxyNetwork, ProxyNetworkError},
    peers::{Peer, PeerError},
    status::{DhtStatus, PeerStatus, Reached, Status},
};
use crate::{
    clock::Clock,
    durable::{DurableRegistry, Journaling, RecordsError},
    identity_file::{self, IdentityFileError},
    limits,
    registry::Policy,
};

/// What a server is made of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The folder of the key and the records; made if it is not there.
    pub data: PathBuf,
    /// What the operator decides.
    pub policy: Policy,
    /// Where the folder is.
    pub disk: Arc<dyn Disk>,
    /// How registrations are made durable there.
    pub journaling: Journaling,
    /// Sessions at once, of everybody.
    pub sessions: usize,
    /// Sessions at once of one source prefix.
    pub sessions_per_network: usize,
    /// After how long without a question a session is closed.
    pub idle_session: Duration,
    /// How often a watch looks whether a lease has ended.
    pub watch_interval: Duration,
    /// Other servers that are asked for what is not held here, and told what is registered here; at most
    /// [`limits::MOST_PEERS`].
    pub peers: Vec<Peer>,
    /// For how long they are asked before a finder is answered.
    pub peers_deadline: Duration,
    /// Taking part in the Mainline DHT.
    pub dht: Option<DhtConfig>,
    /// The TCP address for HTTP.
    pub http: Option<SocketAddr>,
    /// With it, HTTP is HTTPS.
    pub certificate: Option<CertificateFiles>,
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<ProxyNetwork>,
    /// The bounds of HTTP.
    pub http_limits: HttpLimits,
    /// The address for DNS, UDP and TCP. Needs [`dns_origin`](Self::dns_origin).
    pub dns: Option<SocketAddr>,
    /// The name of the zone. With it alone, DNS is answered over HTTP only.
    pub dns_origin: Option<DomainName>,
    /// The name of this host to which the zone above delegates; the origin itself unless given.
    pub dns_server: Option<DomainName>,
    /// The bounds of DNS.
    pub dns_limits: DnsLimits,
}

impl ServerConfig {
    /// The usual server, on this machine's disk.
    #[must_use]
    pub fn new(listen: SocketAddr, data: PathBuf) -> Self {
        Self {
            listen,
            data,
            policy: Policy::default(),
            disk: Arc::new(FileDisk),
            journaling: Journaling::default(),
            sessions: limits::SESSIONS,
            sessions_per_network: limits::SESSIONS_PER_NETWORK,
            idle_session: limits::IDLE_SESSION,
            watch_interval: limits::WATCH_INTERVAL,
            peers: Vec::new(),
            peers_deadline: limits::PEERS_DEADLINE,
            dht: None,
            http: None,
            certificate: None,
            trusted_proxies: Vec::new(),
            http_limits: HttpLimits::default(),
            dns: None,
            dns_origin: None,
            dns_server: None,
            dns_limits: DnsLimits::default(),
        }
    }
}

/// Why a server does not serve, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The data folder cannot be made or looked into.
    #[error("cannot use the data folder {}: {source}", path.display())]
    Data {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The server's key.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The address to listen on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address to listen on for HTTP or DNS.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// Which carrier.
        what: &'static str,
        /// What was asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// An address for DNS, and no zone to answer for.
    #[error("there is an address for DNS, {address}, and no zone to answer for")]
    NoOrigin {
        /// The address.
        address: SocketAddr,
    },
    /// The certificate for HTTPS.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(getrandom::Error),
}

impl Coded for ServerError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Data { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::CheckpointDiskFull,
                _ => ErrorCode::SystemIo,
            },
            Self::Identity(error) => error.code(),
            Self::Records(error) => error.code(),
            Self::Bind(error) => error.code(),
            Self::Listen { .. } => ErrorCode::NetBind,
            Self::NoOrigin { .. } => ErrorCode::CliUsage,
            Self::Certificate(error) => error.code(),
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Data { .. } => Some("Name a folder that this user can write with --data.".to_owned()),
            Self::Identity(error) => error.next(),
            Self::Records(error) => error.next(),
            Self::Bind(error) => error.next(),
            Self::Listen { what, address, .. } if address.port() < 1024 => Some(format!(
                "Ports below 1024 need a right: AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit. Or name \
                 another port with --{what}."
            )),
            Self::Listen { what, .. } => {
                Some(format!("Name another address with --{what}, or port 0 for any free one."))
            }
            Self::NoOrigin { .. } => Some("Name the zone with --dns-origin.".to_owned()),
            Self::Certificate(error) => error.next(),
            Self::Random(_) => None,
        }
    }
}

/// A server that serves. Dropped without [`stop`](Server::stop), it ends as if its process was killed: whatever
/// it acknowledged is there at the next start.
pub struct Server {
    id: VatId,
    carrier: Rc<Carrier>,
    stage: watch::Sender<Stage>,
    accepting: JoinHandle<()>,
    answering: JoinHandle<()>,
    shared: Rc<Shared>,
    /// HTTP and DNS.
    listeners: Listeners,
    /// What it was started with, as far as nothing can change it.
    fixed: Fixed,
}

/// What a server keeps until it is started again.
struct Fixed {
    listen: SocketAddr,
    data: PathBuf,
    sessions: usize,
}

impl Server {
    /// Opens the data folder (the first start makes the server's key), listens, and serves. Blocks on the disk
    /// until the records are read. Must be called within a tokio `LocalSet`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(config: ServerConfig, clock: Rc<dyn Clock>) -> Result<Self, ServerError> {
        let store = config.data.join(STORE);
        let key = identity_file::prepare(config.disk.as_ref(), &config.data, &store)?;
        // The records come before the address: their lock is what tells who else serves from this folder.
        let registry = open_records(&config, key.id(), clock)?;
        let mut endpoint = EndpointConfig::default();
        endpoint.connections = config.sessions.saturating_add(transport::limits::HANDSHAKES);
        endpoint.connections_before_retry = limits::CONNECTIONS_BEFORE_RETRY;
        let endpoint = Endpoint::bind(&key, config.listen, endpoint)?;
        let back = Endpoint::client(&key)?;
        Self::serve(endpoint, Some(back), registry, &config).await
    }

    /// The same on an endpoint of the caller's, such as one in a simulated network. The identity is the
    /// endpoint's; `config.listen` and the key in the data folder are not used.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_on(endpoint: Endpoint, config: ServerConfig, clock: Rc<dyn Clock>) -> Result<Self, ServerError> {
        let data = |source| ServerError::Data { path: config.data.clone(), source };
        make_folder(config.disk.as_ref(), &config.data).map_err(data)?;
        let registry = open_records(&config, endpoint.id(), clock)?;
        Self::serve(endpoint, None, registry, &config).await
    }

    async fn serve(
        endpoint: Endpoint,
        back: Option<Endpoint>,
        registry: DurableRegistry,
        config: &ServerConfig,
    ) -> Result<Self, ServerError> {
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation).map_err(ServerError::Random)?;
        let id = endpoint.id();
        let seed = getrandom::u64().map_err(ServerError::Random)?;
        let carrier = Rc::new(Carrier::new(endpoint, registry, incarnation, back, config, seed));
        let (stage, watched) = watch::channel(Stage::Serving);
        let shared = shared(&carrier, config);
        let mut listeners = Listeners::new(Rc::clone(&shared));
        listeners.make(listeners.prepare(config).await?);
        carrier.peers.follow(&config.peers, config.peers_deadline);
        carrier.peers.join(config.dht.as_ref());
        let accepting = tokio::task::spawn_local(Rc::clone(&carrier).accept(watched));
        let cold = ColdLookups::new(&carrier.endpoint, &shared);
        let answering = tokio::task::spawn_local(async move { cold.answer().await });
        let fixed = Fixed { listen: config.listen, data: config.data.clone(), sessions: config.sessions };
        Ok(Self { id, carrier, stage, accepting, answering, shared, listeners, fixed })
    }

    /// Goes by another configuration from now on: policy, limits, HTTP and DNS with all that belongs to them. Sessions
    /// and watches go on, and so does whoever is being answered. Gives the settings that cannot change before the next
    /// start, and stay as they are.
    ///
    /// # Errors
    /// [`ServerError`]; nothing has changed then.
    pub async fn reload(&mut self, config: &ServerConfig) -> Result<Vec<&'static str>, ServerError> {
        let change = self.listeners.prepare(config).await?;
        self.listeners.make(change);
        self.listeners.closed().await;
        self.carrier.registry.set_policy(config.policy.clone());
        self.carrier.set_limits(config);
        self.carrier.peers.follow(&config.peers, config.peers_deadline);
        self.carrier.peers.join(config.dht.as_ref());
        self.shared.lease.set(config.policy.lease);
        let kept = [
            ("listen", config.listen != self.fixed.listen),
            ("data", config.data != self.fixed.data),
            // The socket has places for so many.
            ("limits.sessions", config.sessions > self.fixed.sessions),
        ];
        Ok(kept.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect())
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let (registry, readings) = (&self.carrier.registry, self.shared.readings());
        let (answers, limited) = self.shared.metrics.totals();
        let (work, closed, invites) = registry.admissions();
        Status {
            id: self.id,
            time: self.shared.now(),
            uptime: readings.uptime,
            listen: self.local_address(),
            http: self.http_address(),
            dns: self.dns_address(),
            peers: self.carrier.peers.states(),
            dht: self.carrier.peers.dht(),
            records: readings.records,
            capacity: registry.capacity(),
            closed,
            invites,
            work,
            lease: self.shared.lease.get(),
            sessions: readings.sessions,
            handshakes_refused: readings.handshakes.refused,
            watches: registry.watches().count(),
            turn: readings.turn,
            durable_turn: readings.durable_turn,
            last_sync: registry.last_sync().map(|at| at.elapsed()),
            // A status without this is better than none.
            store: registry.sizes().ok().flatten(),
            certificate_end: self.listeners.certificate_end(),
            answers,
            limited,
        }
    }

    /// The server's id, which it proves to whoever dials it.
    #[must_use]
    pub fn id(&self) -> VatId {
        self.id
    }

    /// The address that it listens on, with the real port.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.carrier.endpoint.local_address()
    }

    /// The TCP address of HTTP, with the real port.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.listeners.http_address()
    }

    /// The address of DNS, with the real port, the same for UDP and TCP.
    #[must_use]
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.listeners.dns_address()
    }

    /// The search path entry of this server, at a host by which others reach it.
    #[must_use]
    pub fn entry(&self, host: &str) -> SearchPathEntry {
        SearchPathEntry::Vls { id: self.id, host: host.to_owned(), port: self.local_address().port() }
    }

    /// The records themselves, for carriers in the same process.
    #[must_use]
    pub fn registry(&self) -> &Rc<DurableRegistry> {
        &self.carrier.registry
    }

    /// Waits until the disk fails; tells how. The server answers nothing more then and should be ended with
    /// [`abandon`](Self::abandon).
    pub async fn failed(&self) -> ServerError {
        self.carrier.registry.failed().await.into()
    }

    /// Ends in good order: takes no more sessions and calls, answers the calls that are under way, makes
    /// everything durable, tells every peer. Takes a few seconds at most.
    ///
    /// # Errors
    /// [`ServerError::Records`] if the disk failed meanwhile: what was acknowledged is durable all the same.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.reach(Stage::Draining);
        if timeout(limits::DRAIN_DEADLINE, self.carrier.calls.finished()).await.is_err() {
            tracing::warn!("some calls were not answered in time");
        }
        self.end().await;
        Ok(self.carrier.registry.close()?)
    }

    /// Ends at once, without making anything more durable.
    pub async fn abandon(mut self) {
        self.end().await;
        // Its error is the one that led here.
        let _ = self.carrier.registry.close();
    }

    fn reach(&mut self, stage: Stage) {
        self.stage.send_replace(stage);
        self.listeners.reach(stage);
    }

    async fn end(&mut self) {
        self.reach(Stage::Closing);
        self.answering.abort();
        self.carrier.peers.forget();
        // Fails only if the task panicked; the sessions went with it then.
        let _ = (&mut self.accepting).await;
        self.listeners.ended().await;
        self.carrier.close().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        self.answering.abort();
        self.carrier.peers.forget();
    }
}

fn shared(carrier: &Rc<Carrier>, config: &ServerConfig) -> Rc<Shared> {
    let sessions = Rc::clone(carrier);
    Rc::new(Shared {
        id: carrier.endpoint.id(),
        registry: Rc::clone(&carrier.registry),
        calls: Rc::clone(&carrier.calls),
        metrics: Rc::clone(&carrier.metrics),
        peers: Rc::clone(&carrier.peers),
        started: carrier.registry.clock().now(),
        lease: Cell::new(config.policy.lease),
        // With the listeners.
        zone: RefCell::new(None),
        sessions: Box::new(move || sessions.sessions()),
        handshakes: Box::new({
            let endpoint = carrier.endpoint.clone();
            move || endpoint.handshakes()
        }),
    })
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} on {})", self.id, self.local_address())
    }
}

/// The store's folder within the data folder.
pub(crate) const STORE: &str = "store";

fn open_records(config: &ServerConfig, id: VatId, clock: Rc<dyn Clock>) -> Result<DurableRegistry, RecordsError> {
    let (disk, store) = (Arc::clone(&config.disk), config.data.join(STORE));
    DurableRegistry::open_with(disk, &store, id, config.policy.clone(), clock, config.journaling)
}

/// Makes a folder with all above it, for this user only, unless it is there.
pub(crate) fn make_folder(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match (disk.create_directory(path), parent) {
        (Err(error), _) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(disk, parent)?;
            disk.create_directory(path)?;
            disk.sync_directory(parent)
        }
        (Err(error), _) => Err(error),
        (Ok(()), parent) => disk.sync_directory(parent.unwrap_or(Path::new("."))),
    }
}
