//! A running location server: its identity, its records, and the carrier that serves them over QUIC.
//!
//! One task accepts; each session is a task of its own, on the thread of whoever started the server (DESIGN §6).
//! A stranger costs a bounded handshake, then a place among the sessions of its network; a session that asks
//! nothing for a while gives its place back, since dialling again is all that its peer loses.

mod back_dialler;
mod datagrams;
mod sessions;

use std::{
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
    sessions::{Call, Calls},
};
use self::{
    datagrams::ColdLookups,
    sessions::{Carrier, Stage},
};
use crate::{
    clock::Clock,
    durable::{DurableRegistry, RecordsError, holds_records},
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
    /// Sessions at once, of everybody.
    pub sessions: usize,
    /// Sessions at once of one source prefix.
    pub sessions_per_network: usize,
    /// After how long without a question a session is closed.
    pub idle_session: Duration,
    /// How often a watch looks whether a lease has ended.
    pub watch_interval: Duration,
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
            sessions: limits::SESSIONS,
            sessions_per_network: limits::SESSIONS_PER_NETWORK,
            idle_session: limits::IDLE_SESSION,
            watch_interval: limits::WATCH_INTERVAL,
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
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Data { .. } => Some("Name a folder that this user can write with --data.".to_owned()),
            Self::Identity(error) => error.next(),
            Self::Records(error) => error.next(),
            Self::Bind(error) => error.next(),
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
}

impl Server {
    /// Opens the data folder (the first start makes the server's key), listens, and serves. Blocks on the disk
    /// until the records are read. Must be called within a tokio `LocalSet`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(config: ServerConfig, clock: Rc<dyn Clock>) -> Result<Self, ServerError> {
        let store = config.data.join(STORE);
        let data = |source| ServerError::Data { path: config.data.clone(), source };
        make_folder(config.disk.as_ref(), &config.data).map_err(data)?;
        let has_records = holds_records(config.disk.as_ref(), &store).map_err(data)?;
        let key = identity_file::load(config.disk.as_ref(), &config.data, !has_records)?;
        // The records come before the address: their lock is what tells who else serves from this folder.
        let registry = open_records(&config, key.id(), clock)?;
        let mut endpoint = EndpointConfig::default();
        endpoint.connections = config.sessions.saturating_add(transport::limits::HANDSHAKES);
        endpoint.connections_before_retry = limits::CONNECTIONS_BEFORE_RETRY;
        let endpoint = Endpoint::bind(&key, config.listen, endpoint)?;
        let back = Endpoint::client(&key)?;
        Self::serve(endpoint, Some(back), registry, &config)
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
        Self::serve(endpoint, None, registry, &config)
    }

    fn serve(
        endpoint: Endpoint,
        back: Option<Endpoint>,
        registry: DurableRegistry,
        config: &ServerConfig,
    ) -> Result<Self, ServerError> {
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation).map_err(ServerError::Random)?;
        let id = endpoint.id();
        let carrier = Rc::new(Carrier::new(endpoint, registry, incarnation, back, config));
        let (stage, watched) = watch::channel(Stage::Serving);
        let accepting = tokio::task::spawn_local(Rc::clone(&carrier).accept(watched));
        let cold = ColdLookups::new(&carrier.endpoint, Rc::clone(&carrier.registry));
        let answering = tokio::task::spawn_local(async move { cold.answer().await });
        Ok(Self { id, carrier, stage, accepting, answering })
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

    /// The search path entry of this server, at a host by which others reach it.
    #[must_use]
    pub fn entry(&self, host: &str) -> SearchPathEntry {
        SearchPathEntry::Vls { id: self.id, host: host.to_owned(), port: self.local_address().port() }
    }

    /// The records themselves, for carriers in the same process.
    #[must_use]
    pub fn registry(&self) -> &DurableRegistry {
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
        self.stage.send_replace(Stage::Draining);
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

    async fn end(&mut self) {
        self.stage.send_replace(Stage::Closing);
        self.answering.abort();
        // Fails only if the task panicked; the sessions went with it then.
        let _ = (&mut self.accepting).await;
        self.carrier.close().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        self.answering.abort();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} on {})", self.id, self.local_address())
    }
}

/// The store's folder within the data folder.
const STORE: &str = "store";

fn open_records(config: &ServerConfig, id: VatId, clock: Rc<dyn Clock>) -> Result<DurableRegistry, RecordsError> {
    DurableRegistry::open(Arc::clone(&config.disk), &config.data.join(STORE), id, config.policy.clone(), clock)
}

/// Makes a folder with all above it, for this user only, unless it is there.
fn make_folder(disk: &dyn Disk, path: &Path) -> io::Result<()> {
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
