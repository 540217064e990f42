//! The location service as Cap'n Proto over a session (`schemas/capnp/location.capnp`; DESIGN §5).
//!
//! Offered to whoever dials: records verify themselves, and quotas go by where the caller is, not by who it
//! is. Nothing is decided here. Errors of a call, as opposed to outcomes, are exceptions `code: message`.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use capnp::Error;
use futures::future::join_all;
use schemas::{
    Coded, ErrorCode, Invite, Order, Timestamp, UnverifiedPacket, VatId,
    location_capnp::{DialBackOver, admission, answer, expected, location_service, order, outcome},
};
use tokio::time::Instant;

use crate::{
    durable::{DurableRegistry, Seen, Stopping},
    limits,
    peering::Share,
    registry::{Admission, Answer, Claim, Expected, Id, Now, Outcome, RefusalReason, seconds},
    server::{Asker, BackDialler, Call, Calls, Metrics, Peers, QUOTA},
    watches::Watch,
};

/// As metrics name it.
const CARRIER: &str = "quic";

/// What other servers tell.
const CARRIER_OF_SERVERS: &str = "peer";

/// What one caller talks to.
pub(crate) struct Service {
    registry: Rc<DurableRegistry>,
    calls: Rc<Calls>,
    metrics: Rc<Metrics>,
    caller: Rc<Caller>,
    back: Rc<BackDialler>,
    peers: Rc<Peers>,
    watch_interval: Duration,
}

/// The caller, as far as the service is concerned.
pub(crate) struct Caller {
    id: VatId,
    address: Box<dyn Fn() -> SocketAddr>,
    last_call: Cell<Instant>,
    watches: Cell<usize>,
    dialled_back: Cell<Option<Instant>>,
}

impl Caller {
    /// Has proven `id`; `address` tells where it is now: a caller may move to another network.
    pub(crate) fn new(id: VatId, address: impl Fn() -> SocketAddr + 'static) -> Self {
        let (last_call, watches, dialled_back) = (Cell::new(Instant::now()), Cell::new(0), Cell::new(None));
        Self { id, address: Box::new(address), last_call, watches, dialled_back }
    }

    /// When it last asked something; now, as long as it watches.
    pub(crate) fn last_call(&self) -> Instant {
        if self.watches.get() > 0 { Instant::now() } else { self.last_call.get() }
    }

    /// `None` if it watches too much already.
    pub(crate) fn begin_watch(&self) -> Option<()> {
        let watches = self.watches.get() + 1;
        (watches <= limits::WATCHES_PER_SESSION).then(|| self.watches.set(watches))
    }

    pub(crate) fn end_watch(&self) {
        self.watches.set(self.watches.get() - 1);
        self.last_call.set(Instant::now());
    }

    fn network(&self) -> IpAddr {
        (self.address)().ip()
    }
}

impl Service {
    pub(crate) fn new(
        registry: Rc<DurableRegistry>,
        calls: Rc<Calls>,
        metrics: Rc<Metrics>,
        caller: Rc<Caller>,
        back: Rc<BackDialler>,
        peers: Rc<Peers>,
        watch_interval: Duration,
    ) -> Self {
        Self { registry, calls, metrics, caller, back, peers, watch_interval }
    }

    /// Begins a call, unless the server is stopping.
    fn begin(&self) -> Result<Call, Error> {
        self.caller.last_call.set(Instant::now());
        self.calls.begin().ok_or_else(|| stopping(Stopping))
    }

    fn asker(&self, hops: u8) -> Asker {
        Asker { id: Some(self.caller.id), network: self.caller.network(), hops }
    }

    /// Writes what is known of an id; tells whether anything is.
    async fn answer_to(&self, id: &Id, now: Now, mut builder: answer::Builder<'_>) -> Result<bool, Error> {
        let found = self.registry.see(id, now, |seen| match seen {
            Seen::Early => None,
            Seen::Nothing => Some(false),
            Seen::Record { packet, age, left, expired } => {
                write_answer(packet, (age, left), expired, builder.reborrow());
                Some(true)
            }
        });
        if let Some(found) = found {
            return Ok(found);
        }
        let Answer { packet, age, left, expired } = self.registry.lookup(id).await.map_err(stopping)?;
        write_answer(packet.as_deref().unwrap_or_default(), (age, left), expired, builder);
        Ok(packet.is_some())
    }
}

impl location_service::Server for Service {
    async fn register(
        self: capnp::capability::Rc<Self>,
        params: location_service::RegisterParams,
        mut results: location_service::RegisterResults,
    ) -> Result<(), Error> {
        let (_under_way, begun) = (self.begin()?, Instant::now());
        let outcome = {
            let params = params.get()?;
            let expected = read_expected(params.get_expected()?)?;
            let source = Some(self.caller.network());
            let admission = read_admission(params.get_admission()?)?;
            let (id, packet) = (params.get_id()?, params.get_packet()?);
            self.registry.register(source, id, packet, &expected, &admission).await.map_err(stopping)?
        };
        self.metrics.answered(CARRIER, outcome_name(&outcome), begun.elapsed());
        write_outcome(outcome, results.get().init_outcome());
        Ok(())
    }

    async fn lookup(
        self: capnp::capability::Rc<Self>,
        params: location_service::LookupParams,
        mut results: location_service::LookupResults,
    ) -> Result<(), Error> {
        let (_under_way, begun) = (self.begin()?, Instant::now());
        let (id, hops) = {
            let params = params.get()?;
            (read_id(params.get_id()?)?, params.get_hops())
        };
        self.peers.seek(&id, self.asker(hops)).await;
        let now = self.registry.clock().now();
        let is_found = self.answer_to(&id, now, results.get().init_answer()).await?;
        self.metrics.answered(CARRIER, if is_found { "found" } else { "unknown" }, begun.elapsed());
        Ok(())
    }

    async fn lookup_many(
        self: capnp::capability::Rc<Self>,
        params: location_service::LookupManyParams,
        mut results: location_service::LookupManyResults,
    ) -> Result<(), Error> {
        let (_under_way, begun) = (self.begin()?, Instant::now());
        let hops = params.get()?.get_hops();
        let ids = {
            let ids = params.get()?.get_ids()?;
            let (found, limit) = (ids.len(), limits::MAX_LOOKUPS_PER_CALL);
            if found > limit {
                return Err(argument(&format!("one call may ask for {limit} ids, this one asks for {found}")));
            }
            ids.iter().map(|id| read_id(id?)).collect::<Result<Vec<_>, Error>>()?
        };
        self.registry.approach(ids.iter());
        let asker = self.asker(hops);
        let asked =
            ids.iter().filter_map(|id| self.peers.inquire(id, self.registry.clock().now(), asker, Share::Whole));
        join_all(asked).await;
        let now = self.registry.clock().now();
        let mut list = results.get().init_answers(u32::try_from(ids.len()).unwrap_or(0));
        for (index, id) in (0..).zip(&ids) {
            self.answer_to(id, now, list.reborrow().get(index)).await?;
        }
        // One call, however many it asks for.
        self.metrics.answered(CARRIER, "many", begun.elapsed());
        Ok(())
    }

    async fn watch(
        self: capnp::capability::Rc<Self>,
        params: location_service::WatchParams,
        mut results: location_service::WatchResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let params = params.get()?;
        let (id, watcher) = (read_id(params.get_id()?)?, params.get_watcher()?);
        // What comes of it, the watch sees.
        drop(self.peers.inquire(&id, self.registry.clock().now(), self.asker(0), Share::Part));
        let (registry, caller) = (Rc::clone(&self.registry), Rc::clone(&self.caller));
        let watches = Rc::clone(self.registry.watches());
        let watch = Watch::begin(registry, &watches, caller, id, watcher, self.watch_interval)
            .ok_or_else(|| too_many("too many watches; drop some, or ask instead"))?;
        results.get().set_watch(capnp_rpc::new_client(watch));
        Ok(())
    }

    async fn renew(
        self: capnp::capability::Rc<Self>,
        params: location_service::RenewParams,
        mut results: location_service::RenewResults,
    ) -> Result<(), Error> {
        let (_under_way, begun) = (self.begin()?, Instant::now());
        let order = read_order(params.get()?.get_order()?)?;
        let id = self.caller.id;
        let held = self.registry.lookup(id.as_bytes()).await.map_err(stopping)?.packet;
        let is_it = |packet: &Arc<[u8]>| UnverifiedPacket::parse(id, packet).is_ok_and(|held| held.order() == order);
        let outcome = match held {
            Some(packet) if is_it(&packet) => {
                let source = Some(self.caller.network());
                // Bit-identical to what is held, unless something higher has come meanwhile, which is then told.
                let (id, expected) = (id.as_bytes(), Expected::Anything);
                let renewed = self.registry.register(source, id, &packet, &expected, &Admission::None);
                renewed.await.map_err(stopping)?
            }
            current => Outcome::Unexpected { current },
        };
        self.metrics.answered(CARRIER, outcome_name(&outcome), begun.elapsed());
        write_outcome(outcome, results.get().init_outcome());
        Ok(())
    }

    async fn dial_back(
        self: capnp::capability::Rc<Self>,
        params: location_service::DialBackParams,
        mut results: location_service::DialBackResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let params = params.get()?;
        let address = SocketAddr::new(self.caller.network(), params.get_port());
        let over = params.get_over().map_err(|_| argument("this server does not know what to dial with"))?;
        let now = Instant::now();
        let last = self.caller.dialled_back.replace(Some(now));
        if last.is_some_and(|last| now - last < limits::DIAL_BACK_INTERVAL) {
            return Err(too_many("dialled back a moment ago; ask again in ten seconds"));
        }
        let dialled = match over {
            DialBackOver::Quic => self.back.dial(self.caller.id, address).await,
            DialBackOver::Tcp => self.back.connect(address).await,
        };
        let mut result = results.get().init_result();
        result.set_address(address.to_string());
        result.set_over(over);
        match dialled {
            Ok(()) => result.set_reached(()),
            Err(remote) => {
                let mut failed = result.init_failed();
                failed.set_code(remote.code.as_str());
                failed.set_message(&remote.message);
                failed.set_server_time(self.registry.clock().now().wall.as_micros());
            }
        }
        Ok(())
    }

    async fn learn(
        self: capnp::capability::Rc<Self>,
        params: location_service::LearnParams,
        _: location_service::LearnResults,
    ) -> Result<(), Error> {
        let _under_way = self.begin()?;
        let records = params.get()?.get_records()?;
        let (found, limit) = (records.len(), limits::MAX_LEARNED_PER_CALL);
        if found > limit {
            return Err(argument(&format!("one call may tell of {limit} records, this one tells of {found}")));
        }
        let source = self.peers.source_of(self.caller.id, self.caller.network());
        let records = records.iter().map(|known| {
            let answer = known.get_answer()?;
            Ok((known.get_id()?, answer.get_packet()?, read_claim(answer)))
        });
        let records = records.collect::<Result<Vec<_>, Error>>()?;
        let learned = records.into_iter().map(|(id, packet, claim)| self.registry.learn(source, id, packet, claim));
        for outcome in join_all(learned).await {
            // The caller has nothing to do about what is refused.
            self.metrics.answered(CARRIER_OF_SERVERS, outcome_name(&outcome.map_err(stopping)?), Duration::ZERO);
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

fn too_many(message: &str) -> Error {
    Error::failed(ErrorCode::VlsQuota.to_wire(message))
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
        expected::Order(order) => Expected::Order(read_order(order?)?),
    })
}

fn read_admission(admission: admission::Reader<'_>) -> Result<Admission, Error> {
    let which = admission.which().map_err(|_| argument("this server does not know this kind of admission"))?;
    Ok(match which {
        admission::None(()) => Admission::None,
        admission::Work(nonce) => Admission::Work(nonce),
        admission::Invite(bytes) => {
            let invite = Invite::from_slice(bytes?);
            Admission::Invite(invite.map_err(|error| Error::failed(error.code().to_wire(&error.to_string())))?.hash())
        }
    })
}

fn read_order(order: order::Reader<'_>) -> Result<Order, Error> {
    let digest = order.get_digest()?;
    let found = digest.len();
    let digest = digest.try_into().map_err(|_| argument(&format!("a digest has 32 bytes, this has {found}")))?;
    Ok(Order { epoch: order.get_epoch(), timestamp: Timestamp::from_micros(order.get_timestamp()), digest })
}

/// Outcomes as metrics name them.
fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Stored { .. } => "stored",
        Outcome::Refreshed { .. } => "refreshed",
        Outcome::Stale { .. } => "stale",
        Outcome::Conflict { .. } => "conflict",
        Outcome::Unexpected { .. } => "unexpected",
        Outcome::Refused(refusal) if refusal.reason.code() == ErrorCode::VlsQuota => QUOTA,
        Outcome::Refused(refusal) if refusal.reason.code() == ErrorCode::VlsWork => "work",
        Outcome::Refused(refusal) if refusal.reason.code() == ErrorCode::VlsInvite => "invite",
        Outcome::Refused(_) => "refused",
    }
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
            if let RefusalReason::Work { task } = refusal.reason {
                let mut work = builder.init_work();
                work.set_challenge(&task.challenge);
                work.set_bits(task.bits);
            }
        }
    }
}

/// `lease` is the time since the vat was last seen, and that until its lease ends.
pub(crate) fn write_answer(
    packet: &[u8],
    lease: (Duration, Duration),
    expired: bool,
    mut builder: answer::Builder<'_>,
) {
    let (age, left) = lease;
    builder.set_packet(packet);
    builder.set_age(whole_seconds(age));
    builder.set_expired(expired);
    builder.set_elapsed(micros(age));
    builder.set_left(micros(left));
}

/// What another server says of a lease. One that does not say when it ends has it end now.
pub(crate) fn read_claim(answer: answer::Reader<'_>) -> Claim {
    let age = Duration::from_micros(answer.get_elapsed()).max(Duration::from_secs(answer.get_age().into()));
    let left = if answer.get_expired() { Duration::ZERO } else { Duration::from_micros(answer.get_left()) };
    Claim { age, left }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Rounded down: a lease is not promised for longer than it lasts.
fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
