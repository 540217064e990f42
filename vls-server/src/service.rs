//! The location service as Cap'n Proto over a session (`schemas/capnp/location.capnp`; DESIGN §5).
//!
//! Offered to whoever dials: records verify themselves, and quotas go by where the caller is, not by who it
//! is. Nothing is decided here. Errors of a call, as opposed to outcomes, are exceptions `code: message`.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use capnp::Error;
use futures::future::try_join_all;
use schemas::{
    Coded, ErrorCode, Order, Timestamp,
    location_capnp::{answer, expected, location_service, outcome},
};
use tokio::time::Instant;

use crate::{
    durable::{DurableRegistry, Stopping},
    limits,
    registry::{Answer, Expected, Id, Outcome, seconds},
    server::{Call, Calls},
};

/// What one caller talks to.
pub(crate) struct Service {
    registry: Rc<DurableRegistry>,
    calls: Rc<Calls>,
    caller: Rc<Caller>,
}

/// The caller, as far as the service is concerned.
pub(crate) struct Caller {
    address: Box<dyn Fn() -> SocketAddr>,
    last_call: Cell<Instant>,
}

impl Caller {
    /// `address` tells where the caller is now: a caller may move to another network.
    pub(crate) fn new(address: impl Fn() -> SocketAddr + 'static) -> Self {
        Self { address: Box::new(address), last_call: Cell::new(Instant::now()) }
    }

    /// When it last asked something.
    pub(crate) fn last_call(&self) -> Instant {
        self.last_call.get()
    }

    fn network(&self) -> IpAddr {
        (self.address)().ip()
    }
}

impl Service {
    pub(crate) fn new(registry: Rc<DurableRegistry>, calls: Rc<Calls>, caller: Rc<Caller>) -> Self {
        Self { registry, calls, caller }
    }

    /// Begins a call, unless the server is stopping.
    fn begin(&self) -> Result<Call, Error> {
        self.caller.last_call.set(Instant::now());
        self.calls.begin().ok_or_else(|| stopping(Stopping))
    }

    async fn answer_to(&self, id: Id) -> Result<Answer, Error> {
        self.registry.lookup(&id).await.map_err(stopping)
    }
}

impl location_service::Server for Service {
    async fn register(
        self: capnp::capability::Rc<Self>,
        params: location_service::RegisterParams,
        mut results: location_service::RegisterResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let outcome = {
            let params = params.get()?;
            let expected = read_expected(params.get_expected()?)?;
            let source = Some(self.caller.network());
            let (id, packet) = (params.get_id()?, params.get_packet()?);
            self.registry.register(source, id, packet, &expected).await.map_err(stopping)?
        };
        write_outcome(outcome, results.get().init_outcome());
        Ok(())
    }

    async fn lookup(
        self: capnp::capability::Rc<Self>,
        params: location_service::LookupParams,
        mut results: location_service::LookupResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let id = read_id(params.get()?.get_id()?)?;
        let answer = self.answer_to(id).await?;
        write_answer(&answer, results.get().init_answer());
        Ok(())
    }

    async fn lookup_many(
        self: capnp::capability::Rc<Self>,
        params: location_service::LookupManyParams,
        mut results: location_service::LookupManyResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let ids = {
            let ids = params.get()?.get_ids()?;
            let (found, limit) = (ids.len(), limits::MAX_LOOKUPS_PER_CALL);
            if found > limit {
                return Err(argument(&format!("one call may ask for {limit} ids, this one asks for {found}")));
            }
            ids.iter().map(|id| read_id(id?)).collect::<Result<Vec<_>, Error>>()?
        };
        let answers = try_join_all(ids.into_iter().map(|id| self.answer_to(id))).await?;
        let mut list = results.get().init_answers(u32::try_from(answers.len()).unwrap_or(0));
        for (index, answer) in (0..).zip(&answers) {
            write_answer(answer, list.reborrow().get(index));
        }
        Ok(())
    }

    async fn now(
        self: capnp::capability::Rc<Self>,
        _: location_service::NowParams,
        mut results: location_service::NowResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let mut results = results.get();
        results.set_time(self.registry.clock().now().wall.as_micros());
        results.set_address((self.caller.address)().to_string());
        Ok(())
    }
}

fn stopping(error: Stopping) -> Error {
    Error::failed(error.code().to_wire(&error.to_string()))
}

fn argument(message: &str) -> Error {
    Error::failed(ErrorCode::ObjectArgument.to_wire(message))
}

fn read_id(id: &[u8]) -> Result<Id, Error> {
    let message = || ErrorCode::RefIdMalformed.to_wire(&format!("an id has 32 bytes, this has {}", id.len()));
    id.try_into().map_err(|_| Error::failed(message()))
}

fn read_expected(expected: expected::Reader<'_>) -> Result<Expected, Error> {
    let which = expected.which().map_err(|_| argument("this server does not know this kind of expectation"))?;
    Ok(match which {
        expected::Anything(()) => Expected::Anything,
        expected::Absent(()) => Expected::Absent,
        expected::Order(order) => {
            let order = order?;
            let digest = order.get_digest()?;
            let found = digest.len();
            let digest =
                digest.try_into().map_err(|_| argument(&format!("a digest has 32 bytes, this has {found}")))?;
            let timestamp = Timestamp::from_micros(order.get_timestamp());
            Expected::Order(Order { epoch: order.get_epoch(), timestamp, digest })
        }
    })
}

fn write_outcome(outcome: Outcome, mut builder: outcome::Builder<'_>) {
    match outcome {
        Outcome::Stored { lease } => builder.init_stored().set_seconds(whole_seconds(lease)),
        Outcome::Refreshed { lease } => builder.init_refreshed().set_seconds(whole_seconds(lease)),
        Outcome::Stale { current } => builder.set_stale(current.as_deref().unwrap_or_default()),
        Outcome::Conflict { other } => builder.set_conflict(&other),
        Outcome::Unexpected { current } => builder.set_unexpected(current.as_deref().unwrap_or_default()),
        Outcome::Refused(refusal) => {
            let mut builder = builder.init_refused();
            builder.set_code(refusal.reason.code().as_str());
            builder.set_message(refusal.reason.to_string());
            builder.set_server_time(refusal.server_time.as_micros());
            // At least 1: 0 means never.
            let retry_after = refusal.reason.retry_after().map_or(0, |after| seconds(after).max(1));
            builder.set_retry_after(u32::try_from(retry_after).unwrap_or(u32::MAX));
        }
    }
}

fn write_answer(answer: &Answer, mut builder: answer::Builder<'_>) {
    builder.set_packet(answer.packet.as_deref().unwrap_or_default());
    builder.set_age(whole_seconds(answer.age));
    builder.set_expired(answer.expired);
}

/// Rounded down: a lease is not promised for longer than it lasts.
fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
