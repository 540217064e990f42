//! Other location servers, as far as this program asks them: what time it is, whether they reach this machine, and
//! whether they take a record.

use std::future::Future;

use console::Failure;
use schemas::{
    ErrorCode, RemoteError, SearchPathEntry, Timestamp, VatId,
    location_capnp::{DialBackOver, dial_back, location_service, outcome},
};
use tokio::time::timeout;
use transport::{Endpoint, Greeting, OutputGate, Session, SessionLimits, SessionOptions};

use crate::limits;

/// A session with another location server.
pub(super) struct Remote {
    service: location_service::Client,
    session: Session,
}

/// What another server says of time and place.
pub(super) struct Seen {
    pub(super) time: Timestamp,
    pub(super) address: String,
}

/// What came of dialling back.
pub(super) enum DialledBack {
    /// Somebody answered at this address.
    Reached(String),
    /// Nobody did at this address, for this reason.
    Failed(String, String),
    /// The server does not know how.
    Unsupported,
}

impl Remote {
    /// Dials the server of a search path entry.
    pub(super) async fn dial(endpoint: &Endpoint, entry: &SearchPathEntry) -> Result<Self, Failure> {
        let SearchPathEntry::Vls { id, host, port } = entry else {
            let message = format!("{entry} is not of the form vls://<id>@<host>:<port>");
            return Err(Failure::new(ErrorCode::VlsEntryMalformed, message));
        };
        let addresses = tokio::net::lookup_host((host.as_str(), *port))
            .await
            .map_err(|error| Failure::new(ErrorCode::NetName, format!("{host}: {error}")))?;
        let mut last = Failure::new(ErrorCode::NetName, format!("{host} has no address"));
        for address in addresses {
            match endpoint.dial(*id, address, limits::REMOTE_DEADLINE).await {
                Ok(connection) => {
                    let session = Session::open(connection, options()?).await?;
                    return Ok(Self { service: session.bootstrap(), session });
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Its clock, and where it sees this machine.
    pub(super) async fn now(&self) -> Result<Seen, Failure> {
        let response = within(self.service.now_request().send().promise).await?;
        let results = response.get().map_err(failure)?;
        let address = results.get_address().and_then(|text| Ok(text.to_string()?)).map_err(failure)?;
        Ok(Seen { time: Timestamp::from_micros(results.get_time()), address })
    }

    /// Has it dial this machine at a port.
    pub(super) async fn dial_back(&self, port: u16, over: DialBackOver) -> Result<DialledBack, Failure> {
        let mut request = self.service.dial_back_request();
        request.get().set_port(port);
        request.get().set_over(over);
        let response = within(request.send().promise).await?;
        let result = response.get().and_then(|results| results.get_result()).map_err(failure)?;
        read_dialled_back(result, over).map_err(failure)
    }

    /// Registers a record; tells what came of it.
    pub(super) async fn register(&self, id: VatId, packet: &[u8]) -> Result<String, Failure> {
        let mut request = self.service.register_request();
        let mut params = request.get();
        params.set_id(id.as_bytes());
        params.set_packet(packet);
        params.init_expected().set_anything(());
        let response = within(request.send().promise).await?;
        let outcome = response.get().and_then(|results| results.get_outcome()).map_err(failure)?;
        read_outcome(outcome).map_err(failure)?
    }

    pub(super) async fn close(self) {
        self.session.close();
        self.session.closed().await;
    }
}

fn read_dialled_back(result: dial_back::Reader<'_>, over: DialBackOver) -> capnp::Result<DialledBack> {
    // One that does not know TCP has dialled QUIC, which tells nothing of what was asked.
    if result.get_over() != Ok(over) {
        return Ok(DialledBack::Unsupported);
    }
    let address = result.get_address()?.to_string()?;
    Ok(match result.which()? {
        dial_back::Reached(()) => DialledBack::Reached(address),
        dial_back::Failed(refusal) => {
            let refusal = refusal?;
            match refusal.get_code()?.to_str()?.parse() {
                Ok(ErrorCode::SessionUnsupported) => DialledBack::Unsupported,
                _ => DialledBack::Failed(address, refusal.get_message()?.to_string()?),
            }
        }
    })
}

fn read_outcome(outcome: outcome::Reader<'_>) -> capnp::Result<Result<String, Failure>> {
    let for_seconds = |what: &str, seconds: u32| Ok(format!("{what}, answered for {seconds} s"));
    Ok(match outcome.which()? {
        outcome::Stored(lease) => for_seconds("stored", lease?.get_seconds()),
        outcome::Refreshed(lease) => for_seconds("was there", lease?.get_seconds()),
        outcome::Stale(_) => Err(Failure::new(ErrorCode::VlsStale, "the server has a higher record")),
        outcome::Conflict(_) => {
            Err(Failure::new(ErrorCode::VlsConflict, "the server has another record of the same epoch and time"))
        }
        outcome::Unexpected(_) => Err(Failure::new(ErrorCode::VlsUnexpected, "the server has another record")),
        outcome::Refused(refusal) => {
            let refusal = refusal?;
            let code = refusal.get_code()?.to_str()?.parse().unwrap_or(ErrorCode::VlsRefused);
            Err(Failure::new(code, refusal.get_message()?.to_string()?))
        }
    })
}

async fn within<T>(call: impl Future<Output = capnp::Result<T>>) -> Result<T, Failure> {
    match timeout(limits::REMOTE_DEADLINE, call).await {
        Ok(result) => result.map_err(failure),
        Err(_) => Err(Failure::new(ErrorCode::NetTimeout, "the other server did not answer in time")),
    }
}

/// What a call has ended with, by its code if it has one.
fn failure(error: capnp::Error) -> Failure {
    match RemoteError::parse(&error.to_string()) {
        Some(error) => error.into(),
        None => Failure::new(ErrorCode::SessionClosed, error.to_string()),
    }
}

fn options() -> Result<SessionOptions, Failure> {
    let mut incarnation = [0; 16];
    getrandom::fill(&mut incarnation)
        .map_err(|error| Failure::new(ErrorCode::SystemRandom, format!("no random numbers: {error}")))?;
    let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(SessionOptions {
        // Epoch 0: not a vat.
        greeting: Greeting { epoch: 0, incarnation, program },
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    })
}
