//! A client of the location service, as thin as can be: it believes nothing and checks nothing.

use std::{net::SocketAddr, time::Duration};

use capnp::capability::Promise;
use schemas::{
    Order, RemoteError, SearchPathEntry, SignedRecord, Task, VatId,
    location_capnp::{answer, location_service, order, outcome, watch, watcher},
};
use tokio::sync::{mpsc, oneshot};
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
    fn read(outcome: outcome::Reader<'_>) -> Self {
        use outcome::Which;
        match outcome.which().unwrap() {
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
        }
    }

    /// The code of a refusal.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// What the writer shows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shown<'a> {
    Work(u64),
    Invite(&'a [u8]),
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

    /// Shows `admission`; tells what work is asked for, too.
    pub(crate) async fn register_with(
        &self,
        record: &SignedRecord,
        admission: Shown<'_>,
    ) -> Result<(Wire, Option<Task>), RemoteError> {
        let mut request = self.service.register_request();
        let mut params = request.get();
        params.set_id(record.id().as_bytes());
        params.set_packet(record.packet());
        let mut shown = params.init_admission();
        match admission {
            Shown::Work(nonce) => shown.set_work(nonce),
            Shown::Invite(bytes) => shown.set_invite(bytes),
        }
        let response = answered(request.send().promise).await?;
        let outcome = response.get().unwrap().get_outcome().unwrap();
        let task = match outcome.which().unwrap() {
            outcome::Which::Refused(refusal) => {
                let refusal = refusal.unwrap();
                refusal.has_work().then(|| {
                    let work = refusal.get_work().unwrap();
                    Task { challenge: work.get_challenge().unwrap().try_into().unwrap(), bits: work.get_bits() }
                })
            }
            _ => None,
        };
        Ok((Wire::read(outcome), task))
    }

    pub(crate) async fn register_bytes(&self, id: &[u8], packet: &[u8], expect: Expect) -> Result<Wire, RemoteError> {
        let mut request = self.service.register_request();
        let mut params = request.get();
        params.set_id(id);
        params.set_packet(packet);
        let mut expected = params.init_expected();
        match expect {
            Expect::Anything => expected.set_anything(()),
            Expect::Absent => expected.set_absent(()),
            Expect::Order(order) => write_order(order, expected.init_order()),
        }
        let response = answered(request.send().promise).await?;
        Ok(Wire::read(response.get().unwrap().get_outcome().unwrap()))
    }

    pub(crate) async fn lookup(&self, id: &[u8]) -> Result<Found, RemoteError> {
        let mut request = self.service.lookup_request();
        request.get().set_id(id);
        let response = answered(request.send().promise).await?;
        Ok(read_answer(response.get().unwrap().get_answer().unwrap()))
    }

    pub(crate) async fn lookup_many(&self, ids: &[&[u8]]) -> Result<Vec<Found>, RemoteError> {
        let mut request = self.service.lookup_many_request();
        let mut list = request.get().init_ids(u32::try_from(ids.len()).unwrap());
        for (index, id) in (0..).zip(ids) {
            list.set(index, id);
        }
        let response = answered(request.send().promise).await?;
        let answers = response.get().unwrap().get_answers().unwrap();
        Ok(answers.iter().map(read_answer).collect())
    }

    /// Watches an id: what is told, and what ends the watch when it is dropped.
    pub(crate) async fn watch(&self, id: &[u8]) -> Result<(Told, watch::Client), RemoteError> {
        let (sender, told) = mpsc::unbounded_channel();
        let mut request = self.service.watch_request();
        request.get().set_id(id);
        request.get().set_watcher(capnp_rpc::new_client(Watcher(sender)));
        let response = answered(request.send().promise).await?;
        Ok((Told(told), response.get().unwrap().get_watch().unwrap()))
    }

    /// Renews the caller's own record.
    pub(crate) async fn renew(&self, order: Order) -> Result<Wire, RemoteError> {
        let mut request = self.service.renew_request();
        write_order(order, request.get().init_order());
        let response = answered(request.send().promise).await?;
        Ok(Wire::read(response.get().unwrap().get_outcome().unwrap()))
    }

    /// Has the server dial back to a port: where it did, and the code of why nobody was there.
    pub(crate) async fn dial_back(&self, port: u16) -> Result<(String, Option<String>), RemoteError> {
        use schemas::location_capnp::dial_back::Which;
        let mut request = self.service.dial_back_request();
        request.get().set_port(port);
        let response = answered(request.send().promise).await?;
        let result = response.get().unwrap().get_result().unwrap();
        let code = match result.which().unwrap() {
            Which::Reached(()) => None,
            Which::Failed(failed) => Some(failed.unwrap().get_code().unwrap().to_string().unwrap()),
        };
        Ok((result.get_address().unwrap().to_string().unwrap(), code))
    }

    /// The server's time in microseconds, and our address as it sees it.
    pub(crate) async fn now(&self) -> Result<(u64, String), RemoteError> {
        let response = answered(self.service.now_request().send().promise).await?;
        let results = response.get().unwrap();
        Ok((results.get_time(), results.get_address().unwrap().to_string().unwrap()))
    }
}

fn write_order(order: Order, mut builder: order::Builder<'_>) {
    builder.set_epoch(order.epoch);
    builder.set_timestamp(order.timestamp.as_micros());
    builder.set_digest(&order.digest);
}

fn read_answer(answer: answer::Reader<'_>) -> Found {
    (answer.get_packet().unwrap().to_vec(), answer.get_age(), answer.get_expired())
}

/// What a watch tells.
pub(crate) struct Told(mpsc::UnboundedReceiver<(Found, oneshot::Sender<()>)>);

impl Told {
    /// The next that is told. It is taken in when the second part is used, or dropped.
    pub(crate) async fn next(&mut self) -> (Found, oneshot::Sender<()>) {
        tokio::time::timeout(DEADLINE, self.0.recv()).await.expect("something is told").expect("the watch goes on")
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Watcher(mpsc::UnboundedSender<(Found, oneshot::Sender<()>)>);

impl watcher::Server for Watcher {
    async fn changed(
        self: capnp::capability::Rc<Self>,
        params: watcher::ChangedParams,
        _: watcher::ChangedResults,
    ) -> Result<(), capnp::Error> {
        let (sender, taken) = oneshot::channel();
        let _ = self.0.send((read_answer(params.get()?.get_answer()?), sender));
        let _ = taken.await;
        Ok(())
    }
}

/// The answer to a call, or the error that the server names.
async fn answered<T>(promise: Promise<T, capnp::Error>) -> Result<T, RemoteError> {
    let answer = tokio::time::timeout(DEADLINE, promise).await.expect("every call is answered");
    answer.map_err(|error| RemoteError::parse(&error.to_string()).unwrap_or_else(|| panic!("no code: {error}")))
}
