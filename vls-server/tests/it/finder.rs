//! A client of the location service, as thin as can be: it believes nothing and checks nothing.

use std::{net::SocketAddr, time::Duration};

use capnp::capability::Promise;
use schemas::{Order, RemoteError, SearchPathEntry, SignedRecord, VatId, location_capnp::location_service};
use transport::{Endpoint, Greeting, OutputGate, Session, SessionError, SessionLimits, SessionOptions};

use crate::local::key;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a registration came to, as the wire has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wire {
    Stored(u32),
    Refreshed(u32),
    Stale(Vec<u8>),
    Conflict(Vec<u8>),
    Unexpected(Vec<u8>),
    Refused { code: String, message: String, server_time: u64, retry_after: u32 },
}

impl Wire {
    /// The code of a refusal.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// What the writer expects.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expect {
    Anything,
    Absent,
    Order(Order),
}

/// An answer: packet, age in seconds, expired.
pub(crate) type Found = (Vec<u8>, u32, bool);

pub(crate) struct Finder {
    pub(crate) endpoint: Endpoint,
    pub(crate) session: Session,
    pub(crate) service: location_service::Client,
}

impl Finder {
    /// Dials a server; proves the key number `n`.
    pub(crate) async fn dial(n: u32, id: VatId, address: SocketAddr) -> Self {
        Self::try_dial(n, id, address).await.unwrap()
    }

    pub(crate) async fn try_dial(n: u32, id: VatId, address: SocketAddr) -> Result<Self, SessionError> {
        let endpoint = Endpoint::client(&key(n)).unwrap();
        let connection = endpoint.dial(id, address, DEADLINE).await.unwrap();
        let options = SessionOptions {
            greeting: Greeting { epoch: 0, incarnation: [7; 16], program: "test".to_owned() },
            bootstrap: None,
            gate: OutputGate::always_open(),
            limits: SessionLimits::default(),
        };
        let session = Session::open(connection, options).await?;
        let service = session.bootstrap();
        Ok(Self { endpoint, session, service })
    }

    /// Dials the entry that a server has printed.
    pub(crate) async fn dial_entry(n: u32, entry: &str) -> Self {
        let SearchPathEntry::Vls { id, host, port } = entry.parse().unwrap() else { panic!("{entry}") };
        Self::dial(n, id, SocketAddr::new(host.parse().unwrap(), port)).await
    }

    pub(crate) async fn register(&self, record: &SignedRecord) -> Result<Wire, RemoteError> {
        self.register_bytes(record.id().as_bytes(), record.packet(), Expect::Anything).await
    }

    pub(crate) async fn register_bytes(&self, id: &[u8], packet: &[u8], expect: Expect) -> Result<Wire, RemoteError> {
        use schemas::location_capnp::outcome::Which;
        let mut request = self.service.register_request();
        let mut params = request.get();
        params.set_id(id);
        params.set_packet(packet);
        let mut expected = params.init_expected();
        match expect {
            Expect::Anything => expected.set_anything(()),
            Expect::Absent => expected.set_absent(()),
            Expect::Order(order) => {
                let mut builder = expected.init_order();
                builder.set_epoch(order.epoch);
                builder.set_timestamp(order.timestamp.as_micros());
                builder.set_digest(&order.digest);
            }
        }
        let response = answered(request.send().promise).await?;
        let outcome = response.get().unwrap().get_outcome().unwrap();
        Ok(match outcome.which().unwrap() {
            Which::Stored(lease) => Wire::Stored(lease.unwrap().get_seconds()),
            Which::Refreshed(lease) => Wire::Refreshed(lease.unwrap().get_seconds()),
            Which::Stale(packet) => Wire::Stale(packet.unwrap().to_vec()),
            Which::Conflict(packet) => Wire::Conflict(packet.unwrap().to_vec()),
            Which::Unexpected(packet) => Wire::Unexpected(packet.unwrap().to_vec()),
            Which::Refused(refusal) => {
                let refusal = refusal.unwrap();
                Wire::Refused {
                    code: refusal.get_code().unwrap().to_string().unwrap(),
                    message: refusal.get_message().unwrap().to_string().unwrap(),
                    server_time: refusal.get_server_time(),
                    retry_after: refusal.get_retry_after(),
                }
            }
        })
    }

    pub(crate) async fn lookup(&self, id: &[u8]) -> Result<Found, RemoteError> {
        let mut request = self.service.lookup_request();
        request.get().set_id(id);
        let response = answered(request.send().promise).await?;
        let answer = response.get().unwrap().get_answer().unwrap();
        Ok((answer.get_packet().unwrap().to_vec(), answer.get_age(), answer.get_expired()))
    }

    pub(crate) async fn lookup_many(&self, ids: &[&[u8]]) -> Result<Vec<Found>, RemoteError> {
        let mut request = self.service.lookup_many_request();
        let mut list = request.get().init_ids(u32::try_from(ids.len()).unwrap());
        for (index, id) in (0..).zip(ids) {
            list.set(index, id);
        }
        let response = answered(request.send().promise).await?;
        let answers = response.get().unwrap().get_answers().unwrap();
        let found = |answer: schemas::location_capnp::answer::Reader<'_>| {
            (answer.get_packet().unwrap().to_vec(), answer.get_age(), answer.get_expired())
        };
        Ok(answers.iter().map(found).collect())
    }

    /// The server's time in microseconds, and our address as it sees it.
    pub(crate) async fn now(&self) -> Result<(u64, String), RemoteError> {
        let response = answered(self.service.now_request().send().promise).await?;
        let results = response.get().unwrap();
        Ok((results.get_time(), results.get_address().unwrap().to_string().unwrap()))
    }
}

/// The answer to a call, or the error that the server names.
async fn answered<T>(promise: Promise<T, capnp::Error>) -> Result<T, RemoteError> {
    let answer = tokio::time::timeout(DEADLINE, promise).await.expect("every call is answered");
    answer.map_err(|error| RemoteError::parse(&error.to_string()).unwrap_or_else(|| panic!("no code: {error}")))
}
