//! Datagrams beside QUIC on the same UDP port (DESIGN §5).
//!
//! The second highest bit of a QUIC packet's first byte, the fixed bit, is always set here (RFC 9000 §17; it is never
//! greased). A datagram without it is none of QUIC's, and is taken out before quinn sees it: it costs no lookup of a
//! connection, no allocation, and no answer. They are taken in bunches as they come from the kernel, and answered in
//! bunches: one system call for many in both directions.
//!
//! ```text
//!   kernel ── recvmmsg ──► BesideQuic ── QUIC ──► quinn
//!                              └─ the rest ─► Bunch ──► DatagramsBeside::receive ──► sendmmsg
//! ```

use std::{
    fmt, io,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::batch;
use crate::limits;

/// The fixed bit of QUIC (RFC 9000 §17.2 and §17.3).
pub const QUIC_FIXED_BIT: u8 = 0x40;

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
}

/// The datagrams that are not QUIC's of one endpoint ([`Endpoint::datagrams_beside`](super::Endpoint::datagrams_beside)).
#[derive(Clone)]
pub struct DatagramsBeside {
    shared: Arc<Shared>,
}

struct Shared {
    socket: Arc<dyn AsyncUdpSocket>,
    /// The same socket for many datagrams in one call; `None` on a simulated network.
    raw: Option<UdpSocket>,
    /// How many wait at most; 0 as long as nobody takes any.
    capacity: AtomicUsize,
    /// How much of each is kept.
    kept_bytes: AtomicUsize,
    waiting: Mutex<Bunch>,
    receiver: AtomicWaker,
    dropped: AtomicUsize,
}

impl DatagramsBeside {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, raw: Option<UdpSocket>) -> Self {
        let shared = Shared {
            socket,
            raw,
            capacity: AtomicUsize::new(0),
            kept_bytes: AtomicUsize::new(0),
            waiting: Mutex::default(),
            receiver: AtomicWaker::new(),
            dropped: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The socket for quinn, which sees nothing of what is taken out of it.
    pub(super) fn quic_side(&self) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(QuicSide { shared: self.shared.clone(), taken: AtomicUsize::new(0) })
    }

    /// Takes them from now on: of each the first `kept_bytes` bytes. Until then they are dropped.
    pub fn open(&self, kept_bytes: usize) {
        self.shared.kept_bytes.store(kept_bytes, Ordering::Relaxed);
        self.shared.capacity.store(limits::DATAGRAMS_WAITING, Ordering::Relaxed);
    }

    /// Waits for some, and puts them into `bunch`, whose former content is forgotten. For one receiver.
    pub async fn receive(&self, bunch: &mut Bunch) {
        bunch.clear();
        std::future::poll_fn(|context| {
            self.shared.receiver.register(context.waker());
            let mut waiting = self.shared.waiting();
            if waiting.is_empty() {
                return Poll::Pending;
            }
            std::mem::swap(&mut *waiting, bunch);
            Poll::Ready(())
        })
        .await;
    }

    /// Sends them, as far as the socket takes them now: like all datagrams, any of them may be lost. Tells how many it
    /// took.
    pub fn send(&self, bunch: &Bunch) -> usize {
        match &self.shared.raw {
            Some(socket) => batch::send(socket, bunch),
            None => bunch.iter().filter(|datagram| self.send_one(datagram).is_ok()).count(),
        }
    }

    fn send_one(&self, datagram: &Datagram<'_>) -> io::Result<()> {
        self.shared.socket.try_send(&Transmit {
            destination: datagram.peer,
            ecn: None,
            contents: datagram.bytes,
            segment_size: None,
            src_ip: datagram.local,
        })
    }

    /// How many were dropped because too many waited.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for DatagramsBeside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramsBeside").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Bunch> {
        // What a panicking thread left is a bunch like any other.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is not QUIC's out of what was received: `metas` and `buffers` keep the rest in front. Returns how
    /// many were received for QUIC, and how many datagrams were taken.
    fn divide(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta], received: usize) -> (usize, usize) {
        let (mut kept, mut taken) = (0, 0);
        for index in 0..received {
            let meta = metas[index];
            let stride = meta.stride.max(1);
            let content = &buffers[index][..meta.len];
            // The kernel puts datagrams of one peer together that follow one another. Should some of them be QUIC's,
            // all are left to quinn, which drops the others.
            let is_other = |segment: &[u8]| segment.first().is_none_or(|first| first & QUIC_FIXED_BIT == 0);
            if content.chunks(stride).all(is_other) {
                taken += self.take(&meta, content.chunks(stride));
            } else {
                buffers.swap(kept, index);
                metas[kept] = meta;
                kept += 1;
            }
        }
        (kept, taken)
    }

    fn take<'a>(&self, meta: &RecvMeta, segments: impl Iterator<Item = &'a [u8]>) -> usize {
        let (capacity, kept_bytes) = (self.capacity.load(Ordering::Relaxed), self.kept_bytes.load(Ordering::Relaxed));
        let mut waiting = self.waiting();
        let mut taken = 0;
        for segment in segments {
            taken += 1;
            if waiting.len() >= capacity {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            waiting.bytes.extend_from_slice(&segment[..segment.len().min(kept_bytes)]);
            let end = waiting.bytes.len();
            waiting.entries.push(Entry { peer: meta.addr, local: meta.dst_ip, end, length: segment.len() });
        }
        taken
    }
}

/// What quinn reads from and writes to.
struct QuicSide {
    shared: Arc<Shared>,
    /// Datagrams that were taken since others had their turn.
    taken: AtomicUsize,
}

impl AsyncUdpSocket for QuicSide {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.shared.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.shared.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.shared.socket.poll_recv(context, buffers, metas))?;
            let (kept, taken) = self.shared.divide(buffers, metas, received);
            if taken > 0 {
                self.shared.receiver.wake();
            }
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
            // Nothing for quinn, however many come: whoever answers them, and everybody else, has a turn.
            if self.taken.fetch_add(taken, Ordering::Relaxed) + taken >= limits::DATAGRAMS_PER_TURN {
                self.taken.store(0, Ordering::Relaxed);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.shared.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.shared.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.shared.socket.may_fragment()
    }
}

impl fmt::Debug for QuicSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QuicSide").field(&self.shared.socket).finish()
    }
}
