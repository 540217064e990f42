//! The record of an id: what pkarr's relays and iroh's DNS server offer, and how they differ.
//!
//! * PUT of 72 to 1,072 bytes, whatever their content type and whether or not they say anything of a vat: 204, also for the bytes that are there already. 400 for an
//!   id or a packet that is wrong, 409 for one that is older or contradicts another of its time, 412 where `If-Match`
//!   does not hold, 413 for one that is too long, 429 and 503 with `Retry-After`. pkarr's relays answer 428 to a
//!   write while another of the same key is under way in the DHT; here writes have an order, so one of the two is
//!   the older and gets 409. Their client takes both for the same.
//! * GET: the packet, with the media type of pkarr's relays (their clients and iroh's look at none), when it was
//!   signed as `Last-Modified`, and for how many seconds it has not been registered again as `Vls-Age`.
//! * `Memento-Datetime` is the time until which the server vouches for the packet: now, as long as its lease runs; else
//!   when it was last registered. pkarr's client takes what is older than its time to live, five minutes at least, for
//!   expired and asks elsewhere; so were this the last registration, it would find a vat for the first minutes of each
//!   lease only.
//! * A vat whose lease has ended is nowhere: 404, so that a finder asks elsewhere rather than dial a dead address, with
//!   `Vls-Expired`, which tells for how long. Who wants the old record all the same, to learn how far the vat had come
//!   (DESIGN §7 R7) or to publish it again, asks with pkarr's `?policy=CacheOnly`, "even if expired", and gets it with
//!   the same header.
//!
//! * An id that is not known here may need an admission. Where the server is nearly full, a PUT of one gets 503 with
//!   `Vls-Work: <bits> <challenge>`, and succeeds with a nonce that solves it ([`schemas::Task`]), again as `Vls-Work`, in
//!   sixteen hexadecimal digits. Where the server is closed it gets 403, and succeeds with an invite as `Vls-Invite`, which
//!   nobody should send but over HTTPS. Whoever knows neither, as pkarr's and iroh's programs, is told in words, and in
//!   `Retry-After` when there may be room.
//!
//! Nothing is answered, neither to a writer nor to a reader, before what it tells is durable (rule 8).

use std::{net::IpAddr, time::Duration};

use data_encoding::HEXLOWER;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{CONNECTION, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED},
};
use schemas::{
    Coded, ErrorCode, Invite, RecordError, Timestamp, UnverifiedPacket, VatId, limits::MAX_ACCEPTED_VALUE,
    limits::PACKET_HEADER,
};
use tokio::time::timeout;

use super::{
    dates::Dates,
    preconditions::{self, Demand, Tag},
    reply::{Problem, Reply, number, written},
};
use crate::{
    durable::{Seen, Stopping},
    limits,
    peering::Share,
    registry::{Admission, Answer, Expected, Id, Now, Outcome, Refusal, RefusalReason},
    server::{dns, peers::Asker, shared::Shared},
};

/// The media type of pkarr's design page on relays.
const PACKET: &str = "application/pkarr.org/relays#payload";

/// Until when the server vouches for the packet (RFC 7089; pkarr's client reads it).
const MEMENTO: HeaderName = HeaderName::from_static("memento-datetime");

/// For how many seconds a record will be answered without another registration.
const LEASE: HeaderName = HeaderName::from_static("vls-lease");

/// For how many seconds the packet has not been registered again.
const AGE: HeaderName = HeaderName::from_static("vls-age");

/// For how many seconds the vat has not been seen, where that is longer than its lease.
const EXPIRED: HeaderName = HeaderName::from_static("vls-expired");

/// Of an answer: a [`Task`](schemas::Task). Of a request: the nonce that solves it.
pub(super) const WORK: HeaderName = HeaderName::from_static("vls-work");

/// An invite.
const INVITE: HeaderName = HeaderName::from_static("vls-invite");

/// What is held of an id, as far as a reader may know.
struct Held<'a> {
    packet: &'a [u8],
    /// The time since the vat was last seen.
    age: Duration,
    /// The time until its lease ends.
    left: Duration,
    expired: bool,
}

/// Answers who asks for the record of an id, if what is to be told is durable and no other server is asked first. If one
/// is, it has been asked when there is no answer, and [`answer`] waits with who asked.
pub(super) fn at_once(
    shared: &Shared,
    id: &Id,
    request: &Request<Incoming>,
    client: IpAddr,
    (now, dates): (Now, &Dates),
) -> Result<Option<Reply>, Problem> {
    let Some(wish) = Wish::of(request) else { return Ok(None) };
    let _under_way = shared.calls.begin().ok_or(Stopping)?;
    // Who is asked already is not asked a second time when this request waits.
    let is_sought = || shared.peers.inquire(id, now, by_http(client), Share::Whole).is_some();
    if !wish.even_expired && is_sought() {
        return Ok(None);
    }
    shared.registry.see(id, now, |seen| match seen {
        Seen::Early => Ok(None),
        Seen::Nothing => Err(unknown()),
        Seen::Record { packet, age, left, expired } => {
            let held = Held { packet, age, left, expired };
            shown(&held, request.headers(), wish, (now.wall, dates)).map(Some)
        }
    })
}

/// Answers a request for the record of an id.
pub(super) async fn answer(
    shared: &Shared,
    id: &Id,
    request: Request<Incoming>,
    client: IpAddr,
    (body_deadline, dates): (Duration, &Dates),
) -> Result<Reply, Problem> {
    let _under_way = shared.calls.begin().ok_or(Stopping)?;
    if let Some(wish) = Wish::of(&request) {
        if !wish.even_expired {
            shared.peers.seek(id, by_http(client)).await;
        }
        let Answer { packet, age, left, expired, .. } = shared.registry.lookup(id).await?;
        let packet = packet.ok_or_else(unknown)?;
        let held = Held { packet: &packet, age, left, expired };
        return shown(&held, request.headers(), wish, (shared.now(), dates));
    }
    if *request.method() != Method::PUT {
        return Err(Problem::method("GET, HEAD, PUT, OPTIONS"));
    }
    let demand = Demand::read(request.headers())
        .map_err(|error| Problem::request(StatusCode::BAD_REQUEST, error.to_string()))?;
    let admission = admission(request.headers())?;
    let packet = body(request, PACKET_HEADER + MAX_ACCEPTED_VALUE, body_deadline).await?;
    put(shared, id, &packet, client, (demand, admission)).await
}

/// What somebody who reads wishes to see.
#[derive(Clone, Copy)]
struct Wish {
    /// Also a record whose lease has ended.
    even_expired: bool,
}

impl Wish {
    /// None of who does not read.
    fn of(request: &Request<Incoming>) -> Option<Self> {
        let query = || request.uri().query().unwrap_or_default();
        let even_expired = || query().split('&').any(|parameter| parameter == "policy=CacheOnly");
        matches!(*request.method(), Method::GET | Method::HEAD).then(|| Self { even_expired: even_expired() })
    }
}

fn by_http(client: IpAddr) -> Asker {
    Asker { id: None, network: client, hops: 0 }
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, ErrorCode::VlsUnknownVat, "no record of this vat is held here")
}

fn shown(
    held: &Held<'_>,
    headers: &HeaderMap,
    wish: Wish,
    (now, dates): (Timestamp, &Dates),
) -> Result<Reply, Problem> {
    let Held { packet, age, left, expired } = *held;
    if expired && !wish.even_expired {
        let message = format!("the vat was last seen {} s ago, and its lease has ended", age.as_secs());
        return Err(
            Problem::new(StatusCode::NOT_FOUND, ErrorCode::VlsExpired, message).with(EXPIRED, number(age.as_secs()))
        );
    }
    let tag = Tag::of(packet);
    let reply = if preconditions::is_known(headers, &tag) {
        Reply::new(StatusCode::NOT_MODIFIED)
    } else {
        Reply::of(PACKET, Bytes::copy_from_slice(packet))
    };
    let reply = reply
        .with(ETAG, written(tag.into_text()))
        .with(LAST_MODIFIED, dates.of(preconditions::timestamp(packet).min(now)))
        .with(MEMENTO, if expired { dates.of(now.saturating_sub(age)) } else { dates.now(now) })
        .with(AGE, number(age.as_secs()));
    if expired {
        return Ok(reply.with(EXPIRED, number(age.as_secs())).not_cached());
    }
    let ttl = dns::time_to_live(packet.get(PACKET_HEADER..).unwrap_or_default());
    let ttl = ttl.map_or(limits::HTTP_CACHE, |seconds| Duration::from_secs(seconds.into()));
    Ok(reply.cached_for(ttl.min(left)))
}

async fn put(
    shared: &Shared,
    id: &Id,
    packet: &[u8],
    client: IpAddr,
    (demand, admission): (Demand, Admission),
) -> Result<Reply, Problem> {
    let expected = expected(shared, id, packet, demand).await?;
    let outcome = shared.registry.register(Some(client), id, packet, &expected, &admission).await?;
    match outcome {
        Outcome::Stored { lease } | Outcome::Refreshed { lease } => Ok(Reply::new(StatusCode::NO_CONTENT)
            .with(ETAG, written(Tag::of(packet).into_text()))
            .with(LEASE, number(lease.as_secs()))),
        Outcome::Stale { current } => {
            let message = "a record that is higher than this one was registered before";
            Err(with_tag(Problem::new(StatusCode::CONFLICT, ErrorCode::VlsStale, message), current.as_deref()))
        }
        // Without a tag: which of the two is current now is decided by their bytes.
        Outcome::Conflict { .. } => {
            let message = "another record of the same epoch and time was registered: two copies of this vat have signed, \
                 or two programs with its key";
            Err(Problem::new(StatusCode::CONFLICT, ErrorCode::VlsConflict, message))
        }
        Outcome::Unexpected { current } => Err(unexpected(current.as_deref())),
        Outcome::Refused(refusal) => Err(refused(&refusal)),
    }
}

/// What a PUT shows of why a new id should be taken.
fn admission(headers: &HeaderMap) -> Result<Admission, Problem> {
    let wrong = |code, message: String| Problem::new(StatusCode::BAD_REQUEST, code, message);
    if let Some(value) = headers.get(INVITE) {
        let invite = value.to_str().unwrap_or_default().parse::<Invite>();
        return invite
            .map(|invite| Admission::Invite(invite.hash()))
            .map_err(|error| wrong(error.code(), error.to_string()));
    }
    let Some(value) = headers.get(WORK) else { return Ok(Admission::None) };
    let nonce = HEXLOWER.decode(value.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let malformed = || wrong(ErrorCode::HttpRequest, "Vls-Work is a nonce of sixteen hexadecimal digits".to_owned());
    nonce.map(|nonce| Admission::Work(u64::from_be_bytes(nonce))).ok_or_else(malformed)
}

/// What the registry is to demand. It knows one record by its full order; which one the writer names is found
/// here, and if another takes its place before the registry decides, it does not hold any more.
async fn expected(shared: &Shared, id: &Id, packet: &[u8], demand: Demand) -> Result<Expected, Problem> {
    let named = match demand {
        Demand::None => return Ok(Expected::Anything),
        Demand::Absent => return Ok(Expected::Absent),
        Demand::OneOf(named) => named,
    };
    let current = shared.registry.lookup(id).await?.packet;
    match current {
        // Bit-identical: it succeeds whatever is demanded, since an answer that was lost can be asked for again.
        Some(current) if *current == *packet => Ok(Expected::Anything),
        Some(current) if named.iter().any(|named| named.names(&Tag::of(&current))) => {
            // It was verified when it was stored, so it can be read.
            let record = VatId::from_bytes(*id).ok().and_then(|id| UnverifiedPacket::parse(id, &current).ok());
            record.map(|record| Expected::Order(record.order())).ok_or_else(|| unexpected(Some(&current)))
        }
        current => Err(unexpected(current.as_deref())),
    }
}

fn unexpected(current: Option<&[u8]>) -> Problem {
    let message = match current {
        Some(_) => "the current record is not the one that was expected; its ETag comes with this answer",
        None => "a record was expected, and there is none",
    };
    with_tag(Problem::new(StatusCode::PRECONDITION_FAILED, ErrorCode::VlsUnexpected, message), current)
}

fn with_tag(problem: Problem, current: Option<&[u8]>) -> Problem {
    let tag = current.and_then(|packet| HeaderValue::try_from(Tag::of(packet).into_text()).ok());
    match tag {
        Some(tag) => problem.with(ETAG, tag),
        None => problem,
    }
}

fn refused(refusal: &Refusal) -> Problem {
    let status = match &refusal.reason {
        RefusalReason::Record(RecordError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalReason::NewIds { .. } | RefusalReason::SignatureChecks { .. } | RefusalReason::Writes { .. } => {
            StatusCode::TOO_MANY_REQUESTS
        }
        RefusalReason::Full { .. } | RefusalReason::Work { .. } => StatusCode::SERVICE_UNAVAILABLE,
        RefusalReason::Invite(_) => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_REQUEST,
    };
    let mut problem = Problem::new(status, refusal.reason.code(), refusal.reason.to_string());
    if let RefusalReason::Work { task } = refusal.reason {
        problem = problem.with(WORK, written(task.to_string()));
    }
    match refusal.reason.retry_after() {
        Some(wait) => problem.retry_after(wait),
        None => problem,
    }
}

/// Reads a body of at most `limit` bytes. One that announces more is not read at all.
pub(super) async fn body(request: Request<Incoming>, limit: usize, deadline: Duration) -> Result<Bytes, Problem> {
    let too_large = || {
        let message = format!("the body has more than the {limit} bytes that it may have");
        // What is not read would be taken for the next request.
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::RecordTooLarge, message)
            .with(CONNECTION, HeaderValue::from_static("close"))
    };
    let body = request.into_body();
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match timeout(deadline, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::request(StatusCode::BAD_REQUEST, "the body ended before its announced length")),
        Err(_) => Err(Problem::request(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
            .with(CONNECTION, HeaderValue::from_static("close"))),
    }
}
