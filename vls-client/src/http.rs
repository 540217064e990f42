//! Records over HTTPS: search path entries of the form `https://<host>[:<port>][/<path>]` (DESIGN §5).
//!
//! The record of a vat is a resource at `<entry>/pkarr/<id>`: GET gives the signed packet, PUT offers one. Location
//! servers answer that, and so do the relays of pkarr, iroh's DNS servers, and files on any web server. What one
//! of ours says beyond the packet stands in header fields that others lack, and no lookup depends on them:
//!
//! | field | means |
//! |---|---|
//! | `Vls-Age` | seconds since the vat last registered there; without it nobody knows |
//! | `Vls-Expired` | the lease has ended for so many seconds. The packet is then asked for with `?policy=CacheOnly` |
//! | `Vls-Lease` | for how many seconds a registration holds |
//! | `Vls-Work` | of a refusal: what has to be computed for a place; of an offer: that it was |
//! | `Vls-Invite` | of an offer: an invite |
//! | `Vls-Time` | the server's clock, in microseconds; so it is a location server that answers, and can be a witness (R7) |
//!
//! The packet proves itself. What the certificate of the server adds is that nobody on the way sees who is looked for, or
//! shows an older packet in place of the newest. Redirects are not followed: who else may be asked is decided by the search path.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use futures::future::{Either, select};
use hyper::{
    Method, StatusCode,
    body::Bytes,
    header::{CACHE_CONTROL, DATE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER},
};
use schemas::{ErrorCode, RemoteError, SignedRecord, Timestamp, VatId};
use tokio::time::{Instant, timeout};

use crate::{
    admission::Admission,
    carriers::{Said, TrustRoots},
    failure::{Failure, remote_text},
    limits,
    register::{Expected, Refused, Reply},
    schedule::{Answer, Goal},
    service::bounded,
};

mod connection;

use connection::{Open, Place, Tls};

const AGE: HeaderName = HeaderName::from_static("vls-age");
const EXPIRED: HeaderName = HeaderName::from_static("vls-expired");
const LEASE: HeaderName = HeaderName::from_static("vls-lease");
const INVITE: HeaderName = HeaderName::from_static("vls-invite");
const TIME: HeaderName = HeaderName::from_static("vls-time");
const WORK: HeaderName = HeaderName::from_static("vls-work");

/// Asks servers of the HTTP form. Clones share connections.
#[derive(Clone)]
pub(crate) struct HttpRecords {
    inner: Rc<Inner>,
}

struct Inner {
    trust: TrustRoots,
    /// Made for the first of them: it reads the certificates of the machine.
    tls: OnceCell<Result<Tls, Failure>>,
    idle: RefCell<HashMap<Place, Kept>>,
}

/// A connection that nothing is asked over.
struct Kept {
    open: Open,
    since: Instant,
}

/// A request, of which a server may see any number.
struct Request {
    method: Method,
    path: String,
    fields: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

struct Answered {
    status: StatusCode,
    fields: HeaderMap,
    body: Bytes,
}

impl HttpRecords {
    pub(crate) fn new(trust: TrustRoots) -> Self {
        Self { inner: Rc::new(Inner { trust, tls: OnceCell::new(), idle: RefCell::default() }) }
    }

    /// Looks up the record of `id`. A witness (R7) is not asked through caches; and only a location server can be one, for
    /// any web server may have lost the newest record.
    ///
    /// # Errors
    /// [`Failure`]; each exchange, of which there are two at most, ends after [`limits::HTTP_DEADLINE`].
    pub(crate) async fn lookup(&self, url: &str, id: VatId, goal: Goal) -> Result<Said, Failure> {
        let place = Place::of(url)?;
        let fresh = (goal == Goal::Witness).then_some((CACHE_CONTROL, HeaderValue::from_static("no-cache")));
        let fresh = Vec::from_iter(fresh);
        let get = |query| Request { fields: fresh.clone(), ..Request::get(&place, id, query) };
        let answered = self.ask(&place, get("")).await?;
        let (answered, lapsed) = match answered.seconds(&EXPIRED) {
            Some(_) if answered.status == StatusCode::NOT_FOUND => {
                (self.ask(&place, get("?policy=CacheOnly")).await?, true)
            }
            lapsed => (answered, lapsed.is_some()),
        };
        let answer = match answered.status {
            StatusCode::OK => {
                let age = answered.seconds(&AGE).or_else(|| answered.seconds(&EXPIRED));
                Answer::Packet { packet: bounded(&answered.body)?.to_vec(), age, lapsed }
            }
            StatusCode::NOT_FOUND => Answer::Unknown,
            _ => return Err(answered.failure()),
        };
        Ok(Said::once(answer, answered.is_ours()))
    }

    /// Offers a record. Has no deadline of its own beyond that of each exchange.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn register(
        &self,
        url: &str,
        record: &SignedRecord,
        expected: Expected,
        admission: &Admission,
    ) -> Result<Reply, Failure> {
        let place = Place::of(url)?;
        let condition = match expected {
            Expected::Anything => None,
            Expected::Absent => Some((IF_NONE_MATCH, HeaderValue::from_static("*"))),
            // As pkarr's relays take it, and our servers too. Two packets of one moment it does not tell apart; but a server
            // takes neither of them in place of the other.
            Expected::Order(order) => Some((IF_MATCH, order.timestamp.as_micros().into())),
        };
        let mut fields = Vec::from_iter(condition);
        match admission {
            Admission::None => {}
            Admission::Work(nonce) => fields.push((WORK, value(&format!("{nonce:016x}"))?)),
            Admission::Invite(invite) => {
                let mut text = value(&invite.expose())?;
                text.set_sensitive(true);
                fields.push((INVITE, text));
            }
        }
        let body = Bytes::copy_from_slice(record.packet());
        let put = Request { method: Method::PUT, path: place.path_of(record.id(), ""), fields, body };
        let answered = self.ask(&place, put).await?;
        let code = answered.remote().map(|remote| remote.code);
        Ok(match answered.status {
            status if status.is_success() => {
                Reply::Stored { lease: answered.seconds(&LEASE).unwrap_or(limits::PLAIN_LEASE) }
            }
            StatusCode::CONFLICT if code == Some(ErrorCode::VlsConflict) => {
                Reply::Conflict(self.shown(&place, record.id()).await?)
            }
            StatusCode::CONFLICT => Reply::Stale(self.shown(&place, record.id()).await?),
            StatusCode::PRECONDITION_FAILED => Reply::Unexpected(self.shown(&place, record.id()).await?),
            _ => answered.refusal(),
        })
    }

    /// What time it is there: by its own field, or by the one of every server, which counts seconds.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn time(&self, url: &str) -> Result<Timestamp, Failure> {
        let place = Place::of(url)?;
        let head =
            Request { method: Method::HEAD, path: place.root().to_owned(), fields: Vec::new(), body: Bytes::new() };
        let answered = self.ask(&place, head).await?;
        answered.time().ok_or(Failure::Protocol { what: "an answer without a date" })
    }

    /// The evidence for a refusal, as pkarr's relays and our servers give it: the packet that is current. It is empty only
    /// if the server says that there is none. That it cannot be had just now proves neither that, on which a renewal would
    /// overwrite whatever is there, nor that the refusal was a lie: the registration has failed, and is tried again.
    async fn shown(&self, place: &Place, id: VatId) -> Result<Vec<u8>, Failure> {
        let current = self.ask(place, Request::get(place, id, "?policy=CacheOnly")).await?;
        match current.status {
            StatusCode::OK => Ok(bounded(&current.body)?.to_vec()),
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            _ => Err(current.failure()),
        }
    }

    /// One exchange, over a connection that was kept or over a new one. GET and PUT may be repeated without harm.
    async fn ask(&self, place: &Place, request: Request) -> Result<Answered, Failure> {
        let deadline = limits::HTTP_DEADLINE;
        let kept = self.inner.idle.borrow_mut().remove(place);
        let exchange = async {
            match kept.filter(|kept| kept.since.elapsed() < limits::HTTP_IDLE) {
                Some(kept) => self.over_kept_or_new(kept.open, place, &request).await,
                None => self.over_new(place, &request).await,
            }
        };
        let (open, answered) =
            timeout(deadline, exchange).await.map_err(|_| Failure::Timeout { after: deadline })??;
        if open.can_be_kept() {
            let mut idle = self.inner.idle.borrow_mut();
            // Which of them makes room does not matter: a new one is a round trip or two away.
            if idle.len() >= limits::MAX_IDLE_CONNECTIONS
                && let Some(any) = idle.keys().next().cloned()
            {
                idle.remove(&any);
            }
            idle.insert(place.clone(), Kept { open, since: Instant::now() });
        }
        Ok(answered)
    }

    async fn over_new(&self, place: &Place, request: &Request) -> Result<(Open, Answered), Failure> {
        let tls = self.inner.tls.get_or_init(|| Tls::new(&self.inner.trust)).clone()?;
        let mut open = tls.connect(place).await?;
        let answered = open.ask(place, request).await?;
        Ok((open, answered))
    }

    /// Over the connection that was kept; and when that has ended meanwhile, or is silent, over a new one too. What lies
    /// between may have forgotten it, or be another network by now: then nothing ever says that it has ended.
    async fn over_kept_or_new(
        &self,
        mut kept: Open,
        place: &Place,
        request: &Request,
    ) -> Result<(Open, Answered), Failure> {
        let over_kept = async {
            let answered = kept.ask(place, request).await?;
            Ok((kept, answered))
        };
        futures::pin_mut!(over_kept);
        match timeout(limits::HTTP_PATIENCE, &mut over_kept).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(_)) => return self.over_new(place, request).await,
            Err(_) => {}
        }
        let over_new = self.over_new(place, request);
        futures::pin_mut!(over_new);
        match select(over_kept, over_new).await {
            Either::Left((Err(_), over_new)) => over_new.await,
            Either::Left((done, _)) | Either::Right((done @ Ok(_), _)) => done,
            // The old connection may still answer; if it breaks, its reason adds nothing to that of the new one.
            Either::Right((Err(failure), over_kept)) => over_kept.await.map_err(|_: Failure| failure),
        }
    }
}

impl Request {
    fn get(place: &Place, id: VatId, query: &str) -> Self {
        Self { method: Method::GET, path: place.path_of(id, query), fields: Vec::new(), body: Bytes::new() }
    }
}

/// The value of a field of ours.
fn value(text: &str) -> Result<HeaderValue, Failure> {
    text.parse().map_err(|_| Failure::Protocol { what: "a field of the request" })
}

impl Answered {
    fn is_ours(&self) -> bool {
        self.fields.contains_key(&TIME)
    }

    fn text(&self, name: &HeaderName) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }

    fn seconds(&self, name: &HeaderName) -> Option<Duration> {
        self.text(name)?.parse().ok().map(Duration::from_secs)
    }

    fn time(&self) -> Option<Timestamp> {
        if let Some(micros) = self.text(&TIME).and_then(|text| text.parse().ok()) {
            return Some(Timestamp::from_micros(micros));
        }
        self.text(&DATE).and_then(date)
    }

    fn retry_after(&self) -> Option<Duration> {
        // Seconds, or a date (RFC 9110, section 10.2.3); counted from the server's own time.
        let until = || Some(self.text(&RETRY_AFTER).and_then(date)?.saturating_since(self.time()?));
        self.seconds(&RETRY_AFTER).or_else(until)
    }

    /// What a server of ours says in the body of an error.
    fn remote(&self) -> Option<RemoteError> {
        let remote = RemoteError::parse(std::str::from_utf8(&self.body).ok()?.trim_end())?;
        Some(RemoteError { code: remote.code, message: remote_text(&remote.message) })
    }

    fn failure(&self) -> Failure {
        Failure::Status { status: self.status.as_u16(), said: self.remote() }
    }

    fn refusal(&self) -> Reply {
        let (code, message) = match self.remote() {
            Some(remote) => (remote.code, remote.message),
            None => (ErrorCode::VlsRefused, format!("HTTP status {}", self.status.as_u16())),
        };
        // pkarr's relays ask for a retry while another write of the same key is under way.
        let busy = self.status == StatusCode::PRECONDITION_REQUIRED || self.status.is_server_error();
        let retry_after = self.retry_after().or(busy.then_some(limits::RETRY_BASE));
        let task = self.text(&WORK).and_then(|text| text.parse().ok());
        Reply::Refused(Refused { code, message, server_time: self.time(), retry_after, task })
    }
}

fn date(text: &str) -> Option<Timestamp> {
    let since_1970 = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_seconds(since_1970.as_secs()))
}
