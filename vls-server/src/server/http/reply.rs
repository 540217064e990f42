//! Answers and errors as HTTP has them, with what every one of them carries.

use std::{borrow::Cow, sync::LazyLock, time::Duration};

use http_body_util::Full;
use hyper::{
    StatusCode,
    body::Bytes,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE,
        DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
    },
};
use schemas::{Coded, ErrorCode, Timestamp};

use super::dates::Dates;
use crate::{durable::Stopping, limits, registry::seconds};

pub(super) type Response = hyper::Response<Full<Bytes>>;

/// The server's clock, in microseconds since 1970.
const TIME: HeaderName = HeaderName::from_static("vls-time");

/// How many headers the answer to a GET has.
const USUAL_HEADERS: usize = 11;

/// For how long caches may keep an answer, by whole seconds: there are so few of these texts that each is written once.
static KEPT: LazyLock<Box<[HeaderValue]>> = LazyLock::new(|| {
    let longest = limits::HTTP_CACHE.as_secs();
    let of = |seconds| match seconds {
        0 => HeaderValue::from_static("no-cache"),
        _ => written(format!("public, max-age={seconds}")),
    };
    (0..=longest).map(of).collect()
});

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::with_capacity(USUAL_HEADERS), body: Bytes::new() }
    }

    /// An answer with a body.
    pub(super) fn of(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let reply = Self { body: body.into(), ..Self::new(StatusCode::OK) };
        reply.with(CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// What browsers ask before they send a request that a form could not.
    pub(super) fn preflight() -> Self {
        Self::new(StatusCode::NO_CONTENT)
            .with(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, PUT, POST, OPTIONS"))
            .with(
                ACCESS_CONTROL_ALLOW_HEADERS,
                HeaderValue::from_static(
                    "Content-Type, If-Match, If-None-Match, If-Modified-Since, Cache-Control, Vls-Work, Vls-Invite",
                ),
            )
            .with(ACCESS_CONTROL_MAX_AGE, limits::CORS_SECONDS.into())
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// How long caches may keep it: at most [`limits::HTTP_CACHE`].
    pub(super) fn cached_for(self, time: Duration) -> Self {
        let longest = KEPT.len() - 1;
        let seconds = usize::try_from(time.as_secs()).map_or(longest, |seconds| seconds.min(longest));
        self.with(CACHE_CONTROL, KEPT[seconds].clone())
    }

    pub(super) fn not_cached(self) -> Self {
        self.with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
    }

    pub(super) fn into_response(self, now: Timestamp, dates: &Dates, head: bool) -> Response {
        let Self { status, mut headers, body } = self;
        // Records are public: a script of any page may read them, with all that is said of them.
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(TIME, number(now.as_micros()));
        headers.insert(DATE, dates.now(now));
        // Of a body that is sent, hyper tells the length. Neither of the two answers may have one, nor tell how long it
        // would be (RFC 9110, sections 8.6 and 15.4.5).
        if head && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            headers.insert(CONTENT_LENGTH, body.len().into());
        }
        let mut response = Response::new(Full::new(if head { Bytes::new() } else { body }));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// An error, with its stable code.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: ErrorCode,
    message: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    /// The request itself is wrong.
    pub(super) fn request(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, ErrorCode::HttpRequest, message)
    }

    pub(super) fn method(allowed: &'static str) -> Self {
        let message = format!("this can be asked for with {allowed} only");
        Self::request(StatusCode::METHOD_NOT_ALLOWED, message).with(ALLOW, HeaderValue::from_static(allowed))
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// At least one second: less would be none.
    pub(super) fn retry_after(self, wait: Duration) -> Self {
        self.with(RETRY_AFTER, seconds(wait).max(1).into())
    }

    pub(super) fn into_reply(self) -> Reply {
        let mut text = self.code.to_wire(&self.message);
        text.push('\n');
        let mut reply = Reply::of("text/plain; charset=utf-8", text);
        reply.status = self.status;
        reply.headers.extend(self.headers);
        // What is wrong now may be right in a moment.
        reply.not_cached()
    }
}

impl From<Stopping> for Problem {
    fn from(stopping: Stopping) -> Self {
        // Who asks again within the second meets the next process.
        Self::new(StatusCode::SERVICE_UNAVAILABLE, stopping.code(), stopping.to_string())
            .retry_after(Duration::from_secs(1))
    }
}

/// A header that is a number.
pub(super) fn number(number: u64) -> HeaderValue {
    // Shorter than with the library's own conversion, which keeps room for the longest number, and notes that apart.
    written(itoa::Buffer::new().format(number).to_owned())
}

/// A header of text that is ours: letters, digits and punctuation.
pub(super) fn written(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| {
        debug_assert!(false, "ours has no control characters");
        HeaderValue::from_static("")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_keep_an_answer_for_whole_seconds_and_never_longer_than_a_minute() {
        for (time, kept) in [
            (Duration::ZERO, "no-cache"),
            (Duration::from_millis(999), "no-cache"),
            (Duration::from_secs(1), "public, max-age=1"),
            (Duration::from_millis(59_999), "public, max-age=59"),
            (Duration::from_secs(60), "public, max-age=60"),
            (Duration::from_secs(61), "public, max-age=60"),
            (Duration::MAX, "public, max-age=60"),
        ] {
            assert_eq!(Reply::new(StatusCode::OK).cached_for(time).headers[CACHE_CONTROL], kept);
        }
    }

    #[test]
    fn a_number_is_written_as_it_is() {
        for (value, text) in [(0, "0"), (1_800_000_000_000_007, "1800000000000007"), (u64::MAX, "18446744073709551615")]
        {
            assert_eq!(number(value), text);
        }
    }
}
