//! HTTP/1.1 as bytes: a client that sends what a test tells it to, right or wrong.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct HttpClient<S = TcpStream> {
    stream: S,
    /// Read, and not taken yet.
    rest: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let first = found.next();
        assert_eq!(found.next(), None, "{name} is there twice");
        first
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    /// The stable code of an error.
    pub(crate) fn code(&self) -> &str {
        assert!(self.status >= 400, "{self:?}");
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
        self.text().split_once(": ").expect("`code: message`").0
    }
}

impl HttpClient {
    pub(crate) async fn to(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HttpClient<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, rest: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: vls.example.org\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        self.send(&[head.as_bytes(), b"\r\n", body].concat()).await;
        self.response(method == "HEAD").await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response {
        self.ask("GET", path, &[], b"").await
    }

    pub(crate) async fn put(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.ask("PUT", path, headers, body).await
    }

    pub(crate) async fn response(&mut self, head: bool) -> Response {
        let end = loop {
            if let Some(end) = self.rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.read().await > 0, "closed within a head: {:?}", String::from_utf8_lossy(&self.rest));
        };
        let text = String::from_utf8(self.rest.drain(..end).collect()).unwrap();
        let mut lines = text.lines();
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut response = Response { status, headers, body: Vec::new() };
        let length: usize = response.header("content-length").map_or(0, |length| length.parse().unwrap());
        if matches!(status, 204 | 304) {
            assert_eq!(response.header("content-length"), None, "{status} has no length");
        }
        if !head {
            while self.rest.len() < length {
                assert!(self.read().await > 0, "closed within a body");
            }
            response.body = self.rest.drain(..length).collect();
        }
        response
    }

    /// Waits until the other side has closed.
    pub(crate) async fn closed(&mut self) {
        while self.read().await > 0 {}
        assert!(self.rest.is_empty(), "{:?}", String::from_utf8_lossy(&self.rest));
    }

    async fn read(&mut self) -> usize {
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, self.stream.read(&mut bytes)).await.expect("an answer, or the end");
        // A connection that was closed with something unread is reset.
        let length = read.unwrap_or(0);
        self.rest.extend_from_slice(&bytes[..length]);
        length
    }
}
