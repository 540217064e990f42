//! Datagrams in bunches: one system call takes many from the kernel, and another one gives it the answers.
//!
//! A datagram of a few hundred bytes costs less to look at than to ask the kernel for. So what has come since the last
//! look is taken together ([`recvmmsg(2)`](https://man7.org/linux/man-pages/man2/recvmmsg.2.html)), and what is to be said
//! leaves together, each from the address of ours that was asked: a machine may have several, and an answer from
//! another one is an answer from a stranger.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use tokio::io::Interest;

use crate::limits;

pub(crate) mod batch;

/// Some datagrams, one behind another in one buffer. Used again and again, it allocates nothing.
#[derive(Debug, Default)]
pub struct Bunch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    peer: SocketAddr,
    /// Our own address of that exchange, if the system told.
    local: Option<IpAddr>,
    /// Where its bytes end; they begin where those before it end.
    end: usize,
    /// How long it was, if not all of it was kept.
    length: usize,
}

/// One datagram of a [`Bunch`].
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// From where, or to where.
    pub peer: SocketAddr,
    /// Our own address of that exchange, if the system told: an answer should leave from there.
    pub local: Option<IpAddr>,
    /// Its bytes, as far as they were kept.
    pub bytes: &'a [u8],
    /// How long it was.
    pub length: usize,
}

/// Datagrams of a bunch that go the same way one behind another, all of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Train<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    /// All of them.
    pub(crate) bytes: &'a [u8],
    /// How long each is; 1 for one that is empty.
    pub(crate) segment: usize,
}

impl<'a> Train<'a> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        (self.bytes.len() / self.segment).max(1)
    }

    /// Each by itself.
    pub(crate) fn apart(self) -> impl Iterator<Item = Train<'a>> {
        self.bytes.chunks(self.segment).map(move |bytes| Train { bytes, ..self })
    }
}

impl Bunch {
    /// Adds a datagram to be sent to `peer`; `write` appends its bytes. Nothing is added if it appends none.
    pub fn push(&mut self, peer: SocketAddr, local: Option<IpAddr>, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len().saturating_sub(before);
        if length > 0 {
            self.entries.push(Entry { peer, local, end: self.bytes.len(), length });
        }
    }

    /// Adds one of another bunch, as it is.
    pub fn push_copy(&mut self, datagram: &Datagram<'_>) {
        self.bytes.extend_from_slice(datagram.bytes);
        let Datagram { peer, local, length, .. } = *datagram;
        self.entries.push(Entry { peer, local, end: self.bytes.len(), length });
    }

    /// Those that are in it.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let bytes = &self.bytes[start..entry.end];
            start = entry.end;
            Datagram { peer: entry.peer, local: entry.local, bytes, length: entry.length }
        })
    }

    /// The same in trains of at most `most` datagrams and `most_bytes` bytes.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn trains(&self, most: usize, most_bytes: usize) -> impl Iterator<Item = Train<'_>> {
        let (mut next, mut start) = (0, 0);
        std::iter::from_fn(move || {
            let Entry { peer, local, end, .. } = *self.entries.get(next)?;
            let (begin, segment) = (start, end - start);
            let most = most.min(most_bytes / segment.max(1)).max(1);
            let mut count = 0;
            while count < most
                && let Some(entry) = self.entries.get(next)
                && (entry.peer, entry.local, entry.end - start) == (peer, local, segment)
            {
                (next, start, count) = (next + 1, entry.end, count + 1);
            }
            Some(Train { peer, local, bytes: &self.bytes[begin..start], segment: segment.max(1) })
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets them, and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    /// Forgets them, and keeps no more memory than what is usual needs.
    pub fn rest(&mut self) {
        self.clear();
        self.bytes.shrink_to(limits::DATAGRAM_BYTES_KEPT);
        self.entries.shrink_to(limits::DATAGRAM_BYTES_KEPT / size_of::<Entry>());
    }
}

/// A UDP socket of its own, for what is not QUIC.
pub struct DatagramSocket {
    socket: tokio::net::UdpSocket,
    sender: batch::Sender,
    receiver: batch::Receiver,
}

impl DatagramSocket {
    /// Takes over a socket that is bound and does not block. Of each datagram `kept_bytes` are kept.
    ///
    /// # Errors
    /// The operating system's.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(socket: UdpSocket, kept_bytes: usize) -> io::Result<Self> {
        let sender = batch::Sender::of(&socket);
        let receiver = batch::Receiver::new(&socket, kept_bytes);
        Ok(Self { socket: tokio::net::UdpSocket::from_std(socket)?, sender, receiver })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The operating system's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for datagrams, and puts those that have come into `bunch`, whose former content is forgotten: as many as
    /// one call gives. May be dropped at any time, and nothing is lost.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn receive(&mut self, bunch: &mut Bunch) -> io::Result<()> {
        bunch.rest();
        let Self { socket, receiver, .. } = self;
        loop {
            socket.readable().await?;
            match socket.try_io(Interest::READABLE, || receiver.receive(&*socket, bunch)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }

    /// Sends them, as far as the socket takes them now: like all datagrams, any of them may be lost. Tells how many it
    /// took.
    pub fn send(&self, bunch: &Bunch) -> usize {
        self.sender.send(&self.socket, bunch)
    }
}

impl fmt::Debug for DatagramSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatagramSocket").field(&self.socket).finish()
    }
}
