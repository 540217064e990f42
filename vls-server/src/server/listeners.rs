//! The sockets of the carriers that the operator has named addresses for, and their tasks.
//!
//! All of them are bound before anything is answered: a server that starts has every port that it was told to have. A
//! change of the configuration goes the same way: first everything that could fail, then what cannot, so that it is
//! made whole or not at all. Who is being answered meanwhile is answered by the carrier that began with it.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    rc::{Rc, Weak},
};

use schemas::Timestamp;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use transport::datagrams::DatagramSocket;

use super::{
    CertificateFiles, DnsLimits, HttpLimits, ProxyNetwork, ServerConfig, ServerError,
    dns::{DnsCarrier, DomainName, Zone},
    http::{HttpCarrier, Tls, TrustedProxies},
    sessions::Stage,
    shared::Shared,
};
use crate::limits;

/// The carriers that the operator has named addresses for.
pub(super) struct Listeners {
    shared: Rc<Shared>,
    http: Option<Http>,
    dns: Option<Dns>,
    /// Carriers that take nobody any more, until those are gone whom they have taken.
    retired: Vec<Running>,
    /// What those listened to, which their successors may do now.
    given_up: Vec<Weak<TcpListener>>,
}

struct Http {
    settings: HttpSettings,
    listener: Rc<TcpListener>,
    carrier: Rc<HttpCarrier>,
    running: Running,
}

struct Dns {
    settings: DnsSettings,
    sockets: Sockets,
    running: Running,
}

/// What HTTP is served with. If any of it changes, another carrier takes those who come.
#[derive(Debug, Clone, PartialEq)]
struct HttpSettings {
    address: SocketAddr,
    certificate: Option<CertificateFiles>,
    proxies: Vec<ProxyNetwork>,
    limits: HttpLimits,
}

/// The same for DNS.
#[derive(Debug, Clone, PartialEq)]
struct DnsSettings {
    address: SocketAddr,
    origin: DomainName,
    server: Option<DomainName>,
    limits: DnsLimits,
}

#[derive(Debug, Clone)]
struct Sockets {
    /// Each carrier has a handle of its own to this.
    datagrams: Rc<UdpSocket>,
    streams: Rc<TcpListener>,
}

/// What is to become of a carrier.
enum Step<T> {
    Keep,
    Close,
    Serve(T),
}

/// A change that was found possible.
pub(super) struct Change {
    http: Step<(HttpSettings, Rc<TcpListener>, Option<Tls>, u64)>,
    dns: Step<(DnsSettings, Sockets, DatagramSocket, u64)>,
    zone: Option<Rc<Zone>>,
}

impl Listeners {
    /// None yet.
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self { shared, http: None, dns: None, retired: Vec::new(), given_up: Vec::new() }
    }

    /// Whatever can fail of a change: binds the addresses and reads the certificate. Nothing is different until
    /// [`Self::make`].
    pub(super) async fn prepare(&self, config: &ServerConfig) -> Result<Change, ServerError> {
        let zone = zone(config).map(Rc::new);
        Ok(Change { http: self.prepare_http(config).await?, dns: self.prepare_dns(config).await?, zone })
    }

    async fn prepare_http(
        &self,
        config: &ServerConfig,
    ) -> Result<Step<(HttpSettings, Rc<TcpListener>, Option<Tls>, u64)>, ServerError> {
        let Some(settings) = HttpSettings::of(config) else { return Ok(Step::Close) };
        // A certificate that cannot be used is said before anybody could be answered without it.
        let tls = settings.certificate.clone().map(Tls::new).transpose()?;
        let listener = match &self.http {
            Some(http) if http.settings == settings => return Ok(Step::Keep),
            Some(http) if http.settings.address == settings.address => Rc::clone(&http.listener),
            _ => {
                let address = settings.address;
                Rc::new(TcpListener::bind(address).await.map_err(listen("http", address))?)
            }
        };
        Ok(Step::Serve((settings, listener, tls, seed()?)))
    }

    async fn prepare_dns(
        &self,
        config: &ServerConfig,
    ) -> Result<Step<(DnsSettings, Sockets, DatagramSocket, u64)>, ServerError> {
        let Some(settings) = DnsSettings::of(config)? else { return Ok(Step::Close) };
        let sockets = match &self.dns {
            Some(dns) if dns.settings == settings => return Ok(Step::Keep),
            Some(dns) if dns.settings.address == settings.address => dns.sockets.clone(),
            _ => {
                let address = settings.address;
                let (datagrams, streams) = bind_both(address).await.map_err(listen("dns", address))?;
                Sockets { datagrams: Rc::new(datagrams), streams: Rc::new(streams) }
            }
        };
        let datagrams = sockets.datagrams.try_clone();
        let datagrams = datagrams.and_then(|socket| DatagramSocket::new(socket, limits::DNS_QUERY_BYTES));
        let datagrams = datagrams.map_err(listen("dns", settings.address))?;
        Ok(Step::Serve((settings, sockets, datagrams, seed()?)))
    }

    /// Makes a change.
    pub(super) fn make(&mut self, change: Change) {
        self.retired.retain(|retired| !retired.is_over());
        self.shared.zone.replace(change.zone.clone());
        match change.http {
            Step::Keep => {
                if let Some(http) = &self.http {
                    http.carrier.refresh_certificate();
                }
            }
            Step::Close => self.retire_http(),
            Step::Serve((settings, listener, tls, seed)) => {
                self.retire_http();
                let (shared, limits) = (Rc::clone(&self.shared), settings.limits);
                let proxies = TrustedProxies::new(&settings.proxies);
                let carrier = Rc::new(HttpCarrier::new(shared, tls, proxies, limits, seed));
                let (stage, watched) = watch::channel(Stage::Serving);
                let serving = Rc::clone(&carrier).serve(Rc::clone(&listener), watched);
                let running = Running { stage, tasks: vec![tokio::task::spawn_local(serving)] };
                self.http = Some(Http { settings, listener, carrier, running });
            }
        }
        match (change.dns, change.zone) {
            (Step::Serve((settings, sockets, datagrams, seed)), Some(zone)) => {
                self.retire_dns();
                let carrier = Rc::new(DnsCarrier::new(Rc::clone(&self.shared), zone, settings.limits, seed));
                let (stage, watched) = watch::channel(Stage::Serving);
                let datagrams = Rc::clone(&carrier).serve_datagrams(datagrams, watched.clone());
                let streams = carrier.serve_streams(Rc::clone(&sockets.streams), watched);
                let tasks = vec![tokio::task::spawn_local(datagrams), tokio::task::spawn_local(streams)];
                self.dns = Some(Dns { settings, sockets, running: Running { stage, tasks } });
            }
            (Step::Keep, _) => {}
            // Nobody serves DNS without a zone.
            (Step::Close | Step::Serve(_), _) => self.retire_dns(),
        }
    }

    /// Waits until the ports that a change has given up are closed: until the carriers that had them have had a turn.
    pub(super) async fn closed(&mut self) {
        let served = [
            self.http.as_ref().map(|http| Rc::as_ptr(&http.listener)),
            self.dns.as_ref().map(|dns| Rc::as_ptr(&dns.sockets.streams)),
        ];
        self.given_up.retain(|listener| !served.contains(&Some(listener.as_ptr())));
        for _ in 0..limits::STEPS_TO_ANSWER {
            self.given_up.retain(|listener| listener.strong_count() > 0);
            if self.given_up.is_empty() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    fn retire_http(&mut self) {
        if let Some(http) = self.http.take() {
            http.running.reach(Stage::Draining);
            self.given_up.push(Rc::downgrade(&http.listener));
            self.retired.push(http.running);
        }
    }

    /// Its datagrams are the next one's at once; who has a connection is answered what was asked.
    fn retire_dns(&mut self) {
        if let Some(mut dns) = self.dns.take() {
            if let Some(datagrams) = dns.running.tasks.first() {
                datagrams.abort();
            }
            dns.running.tasks.drain(..1.min(dns.running.tasks.len()));
            dns.running.reach(Stage::Draining);
            self.given_up.push(Rc::downgrade(&dns.sockets.streams));
            self.retired.push(dns.running);
        }
    }

    pub(super) fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|http| http.listener.local_addr().ok())
    }

    pub(super) fn dns_address(&self) -> Option<SocketAddr> {
        self.dns.as_ref().and_then(|dns| dns.sockets.datagrams.local_addr().ok())
    }

    /// The last moment at which the certificate that is shown now is valid.
    pub(super) fn certificate_end(&self) -> Option<Timestamp> {
        self.http.as_ref().and_then(|http| http.carrier.certificate_end())
    }

    /// Goes that far in ending. The ports are closed as soon as their carriers take nobody any more.
    pub(super) fn reach(&mut self, stage: Stage) {
        self.retired.extend(self.http.take().map(|http| http.running));
        self.retired.extend(self.dns.take().map(|dns| dns.running));
        self.retired.iter().for_each(|running| running.reach(stage));
    }

    /// Waits until all have ended.
    pub(super) async fn ended(&mut self) {
        for mut running in self.retired.drain(..) {
            for task in &mut running.tasks {
                // Fails only if the task panicked; its connections went with it then.
                let _ = task.await;
            }
        }
    }
}

impl HttpSettings {
    fn of(config: &ServerConfig) -> Option<Self> {
        Some(Self {
            address: config.http?,
            certificate: config.certificate.clone(),
            proxies: config.trusted_proxies.clone(),
            limits: config.http_limits,
        })
    }
}

impl DnsSettings {
    fn of(config: &ServerConfig) -> Result<Option<Self>, ServerError> {
        let Some(address) = config.dns else { return Ok(None) };
        let origin = config.dns_origin.clone().ok_or(ServerError::NoOrigin { address })?;
        Ok(Some(Self { address, origin, server: config.dns_server.clone(), limits: config.dns_limits }))
    }
}

/// The tasks of a carrier. They end when they are told to, or with this.
struct Running {
    stage: watch::Sender<Stage>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    fn reach(&self, stage: Stage) {
        self.stage.send_if_modified(|reached| {
            let further = stage > *reached;
            if further {
                *reached = stage;
            }
            further
        });
    }

    fn is_over(&self) -> bool {
        self.tasks.iter().all(JoinHandle::is_finished)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The same port for both. One that the system chose for UDP may be taken for TCP, so another is tried then.
async fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    const ATTEMPTS: usize = 16;
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let datagrams = UdpSocket::bind(address)?;
        datagrams.set_nonblocking(true)?;
        match TcpListener::bind(datagrams.local_addr()?).await {
            Ok(streams) => return Ok((datagrams, streams)),
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

fn seed() -> Result<u64, ServerError> {
    getrandom::u64().map_err(ServerError::Random)
}

fn listen(what: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> ServerError {
    move |source| ServerError::Listen { what, address, source }
}

fn zone(config: &ServerConfig) -> Option<Zone> {
    let origin = config.dns_origin.clone()?;
    let server = config.dns_server.clone().unwrap_or_else(|| origin.clone());
    // Nobody copies the zone, so its version need not tell anything.
    Some(Zone::new(origin, server, 1))
}
