//! The calls that this crate makes to a location server, with everything that comes back checked for its
//! form. What it *says* is judged elsewhere: [`crate::judge`] for lookups, [`crate::register`] for evidence.

use std::{net::SocketAddr, time::Duration};

use schemas::{
    ErrorCode, Order, RemoteError, SignedRecord, Task, Timestamp, VatId,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
    location_capnp::{DialBackOver, answer, dial_back, location_service, order, outcome, refusal},
};

use crate::{
    admission::Admission,
    failure::{Failure, remote_text},
    register::{Expected, Refused, Reply},
    schedule::Answer,
};

/// What a location server says of where this endpoint is, and of dialling it there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DialledBack {
    /// Where it sees the session come from: behind a router, the address of that.
    pub seen: SocketAddr,
    /// Where it has dialled.
    pub dialled: SocketAddr,
    /// Whether somebody answered there who has this endpoint's key.
    pub reached: Result<(), RemoteError>,
}

/// Longer than any record: not worth copying.
const MAX_PACKET: usize = PACKET_HEADER + MAX_ACCEPTED_VALUE;

/// Asks for the record of `id`. Has no deadline of its own.
pub(crate) async fn lookup(client: location_service::Client, id: VatId) -> Result<Answer, Failure> {
    let mut request = client.lookup_request();
    request.get().set_id(id.as_bytes());
    let response = request.send().promise.await.map_err(|error| Failure::of_call(&error))?;
    let malformed = |_| Failure::Protocol { what: "the answer to a lookup" };
    read_answer(response.get().and_then(|results| results.get_answer()).map_err(malformed)?)
}

/// What a server knows of a vat, as it says.
pub(crate) fn read_answer(answer: answer::Reader<'_>) -> Result<Answer, Failure> {
    let malformed = |_| Failure::Protocol { what: "the packet of an answer" };
    let packet = bounded(answer.get_packet().map_err(malformed)?)?;
    if packet.is_empty() {
        return Ok(Answer::Unknown);
    }
    let age = Some(Duration::from_secs(answer.get_age().into()));
    Ok(Answer::Packet { packet: packet.to_vec(), age, lapsed: answer.get_expired() })
}

/// Asks for the time. Has no deadline of its own.
pub(crate) async fn time(client: location_service::Client) -> Result<Timestamp, Failure> {
    let response = client.now_request().send().promise.await.map_err(|error| Failure::of_call(&error))?;
    let malformed = |_| Failure::Protocol { what: "the answer to what time it is" };
    Ok(Timestamp::from_micros(response.get().map_err(malformed)?.get_time()))
}

/// Asks where the server sees this endpoint, and to be dialled there, at `port` if it is another one: from elsewhere, and
/// for the key of this endpoint. Has no deadline of its own.
pub(crate) async fn dial_back(client: location_service::Client, port: Option<u16>) -> Result<DialledBack, Failure> {
    let malformed = |what| move |_| Failure::Protocol { what };
    let address = |text: capnp::Result<capnp::text::Reader<'_>>| {
        let address = text.ok().and_then(|text| text.to_str().ok()?.parse::<SocketAddr>().ok());
        address.ok_or(Failure::Protocol { what: "the address that a server sees" })
    };
    let seen = client.now_request().send().promise.await.map_err(|error| Failure::of_call(&error))?;
    let seen = address(seen.get().and_then(|results| results.get_address()))?;
    let mut request = client.dial_back_request();
    request.get().set_port(port.unwrap_or(seen.port()));
    request.get().set_over(DialBackOver::Quic);
    let response = request.send().promise.await.map_err(|error| Failure::of_call(&error))?;
    let result = response.get().and_then(|results| results.get_result());
    let result = result.map_err(malformed("the result of dialling back"))?;
    let dialled = address(result.get_address())?;
    let reached = match result.which().map_err(|_| Failure::Protocol { what: "the result of dialling back" })? {
        dial_back::Reached(()) => Ok(()),
        dial_back::Failed(refusal) => {
            let refused = refusal.and_then(|refusal| remote(refusal, ErrorCode::NetUnreachable));
            Err(refused.map_err(malformed("why dialling back failed"))?)
        }
    };
    Ok(DialledBack { seen, dialled, reached })
}

/// Offers a record. Has no deadline of its own.
pub(crate) async fn register(
    client: location_service::Client,
    record: SignedRecord,
    expected: Expected,
    admission: Admission,
) -> Result<Reply, Failure> {
    let mut request = client.register_request();
    let mut params = request.get();
    params.set_id(record.id().as_bytes());
    params.set_packet(record.packet());
    match &admission {
        Admission::None => {}
        Admission::Work(nonce) => params.reborrow().init_admission().set_work(*nonce),
        Admission::Invite(invite) => params.reborrow().init_admission().set_invite(invite.as_bytes()),
    }
    let mut wanted = params.init_expected();
    match expected {
        Expected::Anything => wanted.set_anything(()),
        Expected::Absent => wanted.set_absent(()),
        Expected::Order(order) => write_order(order, wanted.init_order()),
    }
    let response = request.send().promise.await.map_err(|error| Failure::of_call(&error))?;
    let outcome = response.get().and_then(|results| results.get_outcome());
    let malformed = Failure::Protocol { what: "the outcome of a registration" };
    reply(outcome.map_err(|_| malformed.clone())?).map_err(|_| malformed)?
}

/// Renews the caller's own record, if the server has exactly the one of this order. Has no deadline of its own.
pub(crate) async fn renew(client: location_service::Client, order: Order) -> Result<Reply, Failure> {
    let mut request = client.renew_request();
    write_order(order, request.get().init_order());
    let response = request.send().promise.await.map_err(|error| Failure::of_call(&error))?;
    let outcome = response.get().and_then(|results| results.get_outcome());
    let malformed = Failure::Protocol { what: "the outcome of a renewal" };
    reply(outcome.map_err(|_| malformed.clone())?).map_err(|_| malformed)?
}

fn write_order(Order { epoch, timestamp, digest }: Order, mut order: order::Builder<'_>) {
    order.set_epoch(epoch);
    order.set_timestamp(timestamp.as_micros());
    order.set_digest(&digest);
}

fn reply(outcome: outcome::Reader<'_>) -> capnp::Result<Result<Reply, Failure>> {
    let packet = |packet: capnp::Result<&[u8]>| packet.map(|packet| bounded(packet).map(<[u8]>::to_vec));
    let lease = |seconds: u32| Duration::from_secs(seconds.into());
    Ok(Ok(match outcome.which()? {
        outcome::Stored(granted) => Reply::Stored { lease: lease(granted?.get_seconds()) },
        outcome::Refreshed(granted) => Reply::Refreshed { lease: lease(granted?.get_seconds()) },
        outcome::Stale(shown) => return Ok(packet(shown)?.map(Reply::Stale)),
        outcome::Conflict(shown) => return Ok(packet(shown)?.map(Reply::Conflict)),
        outcome::Unexpected(shown) => return Ok(packet(shown)?.map(Reply::Unexpected)),
        outcome::Refused(refusal) => {
            let refusal = refusal?;
            let RemoteError { code, message } = remote(refusal, ErrorCode::VlsRefused)?;
            Reply::Refused(Refused {
                code,
                message,
                server_time: Some(Timestamp::from_micros(refusal.get_server_time())),
                retry_after: match refusal.get_retry_after() {
                    0 => None,
                    seconds => Some(lease(seconds)),
                },
                task: task(refusal)?,
            })
        }
    }))
}

/// What a server says of why; `unknown` stands for a code of a later version, or none: the meaning is then in the message
/// alone.
fn remote(refusal: refusal::Reader<'_>, unknown: ErrorCode) -> capnp::Result<RemoteError> {
    let code = refusal.get_code()?.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(unknown);
    let message = refusal.get_message()?.to_str().unwrap_or("(a message that is not text)");
    Ok(RemoteError { code, message: remote_text(message) })
}

/// What is to be computed, if the refusal asks for that in a form that is understood.
fn task(refusal: refusal::Reader<'_>) -> capnp::Result<Option<Task>> {
    if !refusal.has_work() {
        return Ok(None);
    }
    let work = refusal.get_work()?;
    let challenge = work.get_challenge()?.try_into().ok();
    Ok(challenge.map(|challenge| Task { challenge, bits: work.get_bits() }))
}

pub(crate) fn bounded(packet: &[u8]) -> Result<&[u8], Failure> {
    if packet.len() > MAX_PACKET {
        Err(Failure::Protocol { what: "a packet longer than any record" })
    } else {
        Ok(packet)
    }
}
