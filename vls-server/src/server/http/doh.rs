//! DNS over HTTPS (RFC 8484): the questions and answers of [`dns`](crate::dns), as bodies.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
};
use schemas::ErrorCode;

use super::{
    records::body,
    reply::{Problem, Reply},
};
use crate::{
    durable::Stopping,
    limits,
    server::{
        dns::{self, Answer, Transport},
        shared::Shared,
    },
};

pub(super) const PATH: &str = "/dns-query";

/// As metrics name it.
pub(super) const CARRIER: &str = "doh";

/// The media type of both directions.
const MESSAGE: &str = "application/dns-message";

pub(super) async fn answer(
    shared: &Shared,
    request: Request<Incoming>,
    body_deadline: Duration,
) -> Result<Reply, Problem> {
    let Some(zone) = shared.zone() else {
        let message = "this server has no DNS zone: its operator has not named one";
        return Err(Problem::new(StatusCode::NOT_FOUND, ErrorCode::HttpRequest, message));
    };
    let _under_way = shared.calls.begin().ok_or(Stopping)?;
    let query = query(request, body_deadline).await?;
    loop {
        match dns::answer(&zone, &query, Transport::Stream, |id| shared.known(id)) {
            Answer::Reply { message, time_to_live } => {
                let time = Duration::from_secs(time_to_live.into());
                return Ok(Reply::of(MESSAGE, message).cached_for(time));
            }
            Answer::None => return Err(Problem::request(StatusCode::BAD_REQUEST, "this is not a DNS query")),
            Answer::Later => shared.registry.settled().await?,
        }
    }
}

async fn query(request: Request<Incoming>, body_deadline: Duration) -> Result<Bytes, Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => {
            let mut parameters = request.uri().query().unwrap_or_default().split('&');
            let encoded = parameters.find_map(|parameter| parameter.strip_prefix("dns="));
            let encoded = encoded.filter(|encoded| encoded.len() <= limits::DNS_QUERY_BYTES * 4 / 3 + 1);
            let decoded = encoded.and_then(|encoded| BASE64URL_NOPAD.decode(encoded.as_bytes()).ok());
            let message = "the parameter `dns` has to be a DNS query in base64url without padding";
            decoded.map(Bytes::from).ok_or_else(|| Problem::request(StatusCode::BAD_REQUEST, message))
        }
        Method::POST => {
            if request.headers().get(CONTENT_TYPE).is_none_or(|kind| kind != MESSAGE) {
                let message = "the body has to be of the type application/dns-message";
                return Err(Problem::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
            }
            body(request, limits::DNS_QUERY_BYTES, body_deadline).await
        }
        _ => Err(Problem::method("GET, HEAD, POST, OPTIONS")),
    }
}
