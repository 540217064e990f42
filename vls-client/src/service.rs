//! The calls that this crate makes to a location server, with everything that comes back checked for its
//! form. What it *says* is judged elsewhere: [`crate::judge`] for lookups, [`crate::register`] for evidence.

use std::time::Duration;

use schemas::{
    ErrorCode, Order, SignedRecord, Timestamp, VatId,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
    location_capnp::{answer, location_service, order, outcome},
};

use crate::{
    failure::{Failure, remote_text},
    register::{Expected, Reply},
    schedule::Answer,
};

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

/// Offers a record. Has no deadline of its own.
pub(crate) async fn register(
    client: location_service::Client,
    record: SignedRecord,
    expected: Expected,
) -> Result<Reply, Failure> {
    let mut request = client.register_request();
    let mut params = request.get();
    params.set_id(record.id().as_bytes());
    params.set_packet(record.packet());
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
            let message = refusal.get_message()?.to_str().unwrap_or("(a message that is not text)");
            Reply::Refused {
                // A code of a later version, or none: the meaning is then in the message alone.
                code: refusal
                    .get_code()?
                    .to_str()
                    .ok()
                    .and_then(|code| code.parse().ok())
                    .unwrap_or(ErrorCode::VlsRefused),
                message: remote_text(message),
                server_time: Some(Timestamp::from_micros(refusal.get_server_time())),
                retry_after: match refusal.get_retry_after() {
                    0 => None,
                    seconds => Some(lease(seconds)),
                },
            }
        }
    }))
}

pub(crate) fn bounded(packet: &[u8]) -> Result<&[u8], Failure> {
    if packet.len() > MAX_PACKET {
        Err(Failure::Protocol { what: "a packet longer than any record" })
    } else {
        Ok(packet)
    }
}
