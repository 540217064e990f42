//! The location server itself, with all records and no bounds on what one network may ask: here all are asked from one.

use std::{io::Write, net::Ipv4Addr, net::SocketAddr, path::Path, rc::Rc, sync::Arc, time::Duration};

use checkpoint::{FileDisk, Protection, Store, StoreOptions};
use schemas::{IdentityKey, SearchPathEntry, location_capnp::location_service::Client};
use serde_json::{Value, json};
use transport::{Endpoint, EndpointConfig, Greeting, OutputGate, Session, SessionLimits, SessionOptions};
use vls_server::{
    Clock, Server, ServerConfig, SystemClock,
    registry::{Now, Policy, Rate},
};

use super::{
    ORIGIN,
    process::{Process, until_unwanted},
};
use crate::{
    Failure, location_server,
    program::run,
    vls::records::{BEGINNING, fill},
};

/// Its name among the servers of this program.
pub(super) const KIND: &str = "vls";

/// How long a client may take to connect: the server does one handshake after the other.
const DIAL_DEADLINE: Duration = Duration::from_secs(60);

/// One that serves.
pub(super) struct Served {
    pub(super) process: Process,
    pub(super) entry: SearchPathEntry,
    pub(super) quic: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) dns: SocketAddr,
}

impl Served {
    /// Starts one with the records that [`make`] has put into the folder.
    pub(super) fn start(folder: &Path, records: u32) -> Result<Self, Failure> {
        Self::start_in(folder, records, None)
    }

    /// The same in a control group, named by its file of processes.
    pub(super) fn start_in(folder: &Path, records: u32, group: Option<&Path>) -> Result<Self, Failure> {
        let folder = folder.to_str().ok_or("the folder has a name that is no text")?;
        let (records, kind) = (records.to_string(), KIND);
        let arguments = [kind, folder, &records];
        let process = match group {
            Some(group) => Process::of_this_program_in(group, &arguments)?,
            None => Process::of_this_program(&arguments)?,
        };
        let said: Value = serde_json::from_str(process.greeting())?;
        let said = |name: &str| said[name].as_str().ok_or("the server did not say where it serves");
        let (entry, quic) = (said("entry")?.parse()?, said("quic")?.parse()?);
        let (http, dns) = (said("http")?.parse()?, said("dns")?.parse()?);
        Ok(Self { process, entry, quic, http, dns })
    }
}

/// Begins a session with a server, from an address of this machine.
pub(super) async fn session(served: &Served, from: SocketAddr) -> Result<(Endpoint, Session, Client), Failure> {
    let SearchPathEntry::Vls { id, .. } = served.entry else { return Err("no entry of a server".into()) };
    let endpoint = Endpoint::bind(&IdentityKey::generate()?, from, EndpointConfig::default())?;
    let connection = endpoint.dial(id, served.quic, DIAL_DEADLINE).await?;
    let greeting = Greeting { epoch: 0, incarnation: [7; 16], program: "bench".to_owned() };
    let (gate, limits) = (OutputGate::always_open(), SessionLimits::default());
    let session = Session::open(connection, SessionOptions { greeting, bootstrap: None, gate, limits }).await?;
    let service = session.bootstrap();
    Ok((endpoint, session, service))
}

/// Makes the folder of a server that holds all records.
pub(super) fn make(folder: &Path, records: u32) -> Result<(), Failure> {
    let server = location_server::start(folder.to_owned())?;
    let SearchPathEntry::Vls { id, .. } = *server.greeting() else { return Err("no entry of a server".into()) };
    server.stop()?;
    let (disk, options) = (Arc::new(FileDisk), StoreOptions::default());
    let store = Store::open(disk, &folder.join("store"), id.as_bytes(), &Protection::Plain, options)?;
    fill(&store, records)?;
    Ok(store.close()?)
}

/// The time of the records, going on from when the server started.
#[derive(Debug)]
struct ClockOfRecords {
    started: Duration,
}

impl Clock for ClockOfRecords {
    fn now(&self) -> Now {
        let monotonic = SystemClock.now().monotonic;
        Now { wall: BEGINNING + (monotonic - self.started), monotonic }
    }
}

/// Serves until nobody wants it.
pub(super) fn serve(folder: &Path, records: u32) -> Result<(), Failure> {
    run(async {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let without_end = Rate { burst: u32::MAX, interval: Duration::from_nanos(1) };
        let mut config = ServerConfig::new(any, folder.to_owned());
        config.policy = Policy { max_records: records as usize, work: None, ..Policy::default() };
        (config.http, config.dns) = (Some(any), Some(any));
        config.http_limits.requests = without_end;
        config.http_limits.requests_per_connection = u32::MAX;
        config.dns_origin = Some(ORIGIN.join(".").parse()?);
        config.dns_limits.answers = without_end;
        let clock = ClockOfRecords { started: SystemClock.now().monotonic };
        let server = Server::start(config, Rc::new(clock)).await?;
        say(&json!({
            "entry": server.entry(&Ipv4Addr::LOCALHOST.to_string()).to_string(),
            "quic": server.local_address().to_string(),
            "http": server.http_address().ok_or("no HTTP")?.to_string(),
            "dns": server.dns_address().ok_or("no DNS")?.to_string(),
        })
        .to_string())?;
        tokio::task::spawn_blocking(until_unwanted).await??;
        Ok(server.stop().await?)
    })
}

/// Says in one line where a server is.
pub(super) fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
