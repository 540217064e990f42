//! Who asks by HTTP: some connections that stay open, and on each one request after the other.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use futures::executor::block_on;

use super::{Process, constant, per_answer, server::Served};
use crate::{
    Failure,
    rounds::{Comparison, Effort, compare},
    vls::records::PACKET_BYTES,
};

/// Connections, and so requests on the way: what a network may have (`vls_server`'s limits).
const CONNECTIONS: usize = 32;

/// After this time nobody answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// A record, against a constant of its size.
pub(super) fn measure(effort: Effort, served: &Served, names: &[String]) -> Result<Comparison, Failure> {
    let constant = Process::of_this_program(&[constant::KIND])?;
    let request = |name| format!("GET /pkarr/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let requests: Vec<String> = names.iter().map(request).collect();
    let mut ours = Asker::connect(served.http)?;
    let mut theirs = Asker::connect(constant.greeting().parse()?)?;
    block_on(compare(
        effort,
        async || per_answer(effort, &served.process, || ours.ask(&requests)),
        async || per_answer(effort, &constant, || theirs.ask(&requests)),
    ))
}

struct Asker {
    streams: Vec<TcpStream>,
    next: usize,
    answer: Vec<u8>,
}

impl Asker {
    fn connect(server: SocketAddr) -> Result<Self, Failure> {
        let streams = (0..CONNECTIONS).map(|_| {
            let stream = TcpStream::connect(server)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok::<_, Failure>(stream)
        });
        Ok(Self { streams: streams.collect::<Result<_, _>>()?, next: 0, answer: vec![0; 4_096] })
    }

    /// One request on each connection.
    fn ask(&mut self, requests: &[String]) -> Result<usize, Failure> {
        for stream in &mut self.streams {
            stream.write_all(requests[self.next % requests.len()].as_bytes())?;
            self.next += 1;
        }
        for stream in &mut self.streams {
            read_answer(stream, &mut self.answer)?;
        }
        Ok(self.streams.len())
    }
}

/// Reads one answer, with a body as long as a packet. Never sleeps: to be woken costs whoever writes, a slow server more
/// often than a fast one, and over a real network nobody pays that.
fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<(), Failure> {
    let (mut length, begun) = (0, Instant::now());
    loop {
        let read = match stream.read(&mut buffer[length..]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => continue,
            read => read?,
        };
        length += read;
        let answer = &buffer[..length];
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        match head {
            Some(head) if length >= head + 4 + PACKET_BYTES && answer.starts_with(b"HTTP/1.1 200 ") => return Ok(()),
            _ if read == 0 => return Err(format!("no answer: {}", String::from_utf8_lossy(answer)).into()),
            _ => {}
        }
    }
}
