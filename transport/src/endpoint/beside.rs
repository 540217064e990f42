//! Datagrams beside QUIC on the same UDP port (DESIGN §5).
//!
//! The second highest bit of a QUIC packet's first byte, the fixed bit, is always set here (RFC 9000 §17; it is never
//! greased). A datagram without it is none of QUIC's, and is taken out before quinn sees it: it costs no lookup of a
//! connection, no allocation, and no answer. They are taken in bunches as they come from the kernel, and answered in
//! bunches: one system call for many in both directions.
//!
//! ```text
//!   kernel ── recvmmsg ──► QuicSide ── QUIC ──► quinn
//!                            └─ the rest ─► Bunch ──► DatagramsBeside::receive, send ──► sendmmsg
//! ```

use std::{
    fmt, io,
    io::IoSliceMut,
    net::{SocketAddr, UdpSocket},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{task::yield_now, time::Instant};

use super::{
    backlog::Backlog,
    initials::{Bucket, may_begin},
};
use crate::{
    datagrams::{Bunch, Datagram, batch},
    limits,
};

/// The fixed bit of QUIC (RFC 9000 §17.2 and §17.3).
pub const QUIC_FIXED_BIT: u8 = 0x40;

/// The datagrams of one kind that come to an endpoint and are not QUIC's
/// ([`Endpoint::datagrams_beside`](super::Endpoint::datagrams_beside)). Whoever else takes the same kind gets them, too;
/// once it is dropped, they are dropped.
pub struct DatagramsBeside {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

/// What is not QUIC's of one socket.
pub(super) struct Beside {
    shared: Arc<Shared>,
}

struct Shared {
    socket: Arc<dyn AsyncUdpSocket>,
    /// The same socket for many datagrams in one call; `None` on a simulated network.
    raw: Option<(UdpSocket, batch::Sender)>,
    queues: Mutex<Vec<Arc<Queue>>>,
}

/// What waits for one who takes datagrams.
struct Queue {
    /// The first byte of those that it takes.
    kind: u8,
    /// How much of each is kept.
    kept_bytes: usize,
    waiting: Mutex<Bunch>,
    receiver: AtomicWaker,
    dropped: AtomicUsize,
}

impl Beside {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, raw: Option<UdpSocket>) -> Self {
        let raw = raw.map(|socket| {
            let sender = batch::Sender::of(&socket);
            (socket, sender)
        });
        Self { shared: Arc::new(Shared { socket, raw, queues: Mutex::default() }) }
    }

    /// The socket for quinn, which sees nothing of what is taken out of it.
    /// One that accepts sees only so many beginnings of connections.
    pub(super) fn quic_side(&self, accepts: bool) -> Arc<dyn AsyncUdpSocket> {
        let bucket = || Mutex::new(Bucket::new(limits::INITIALS_BURST, limits::INITIALS_INTERVAL));
        let initials = accepts.then(bucket);
        let (shared, origin) = (self.shared.clone(), Instant::now());
        Arc::new(QuicSide { shared, taken: AtomicUsize::new(0), backlog: Mutex::default(), initials, origin })
    }

    pub(super) fn take(&self, kind: u8, kept_bytes: usize) -> DatagramsBeside {
        let queue = Arc::new(Queue {
            kind,
            kept_bytes,
            waiting: Mutex::default(),
            receiver: AtomicWaker::new(),
            dropped: AtomicUsize::new(0),
        });
        locked(&self.shared.queues).push(queue.clone());
        DatagramsBeside { shared: self.shared.clone(), queue }
    }
}

impl DatagramsBeside {
    /// Waits for some, and puts them into `bunch`, whose former content is forgotten.
    pub async fn receive(&self, bunch: &mut Bunch) {
        bunch.clear();
        std::future::poll_fn(|context| {
            self.queue.receiver.register(context.waker());
            let mut waiting = locked(&self.queue.waiting);
            if waiting.is_empty() {
                // Whoever sent very many may have gone.
                waiting.rest();
                bunch.rest();
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
            Some((socket, sender)) => sender.send(socket, bunch),
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

    /// How many were dropped because too many came.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.queue.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for DatagramsBeside {
    fn drop(&mut self) {
        locked(&self.shared.queues).retain(|queue| !Arc::ptr_eq(queue, &self.queue));
    }
}

impl fmt::Debug for DatagramsBeside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Queue { kind, dropped, .. } = &*self.queue;
        f.debug_struct("DatagramsBeside").field("kind", kind).field("dropped", dropped).finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes what is not QUIC's out of what was received: `metas` and `buffers` keep the rest in front. Returns how
    /// many were received for QUIC, and how many datagrams were taken. What `is_late` says of so many more is asked
    /// when there are any.
    fn divide(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
        received: usize,
        mut is_late: impl FnMut(usize) -> bool,
    ) -> (usize, usize) {
        let (mut kept, mut taken) = (0, 0);
        for index in 0..received {
            let meta = metas[index];
            // The kernel puts datagrams of one peer together that follow one another.
            let segments = || buffers[index][..meta.len].chunks(meta.stride.max(1));
            let others = || segments().filter(|segment| segment[0] & QUIC_FIXED_BIT == 0);
            let count = others().count();
            if count > 0 {
                let (queues, is_late) = (locked(&self.queues), is_late(count));
                queues.iter().for_each(|queue| others().for_each(|segment| queue.offer(&meta, segment, is_late)));
            }
            if count == segments().len() {
                taken += count.max(1);
            } else {
                // With what is QUIC's among them quinn gets all, and drops the others.
                buffers.swap(kept, index);
                metas[kept] = meta;
                kept += 1;
            }
        }
        (kept, taken)
    }
}

impl Queue {
    fn offer(&self, meta: &RecvMeta, datagram: &[u8], is_late: bool) {
        if datagram[0] != self.kind {
            return;
        }
        let mut waiting = locked(&self.waiting);
        if is_late || waiting.len() >= limits::DATAGRAMS_WAITING {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let bytes = &datagram[..datagram.len().min(self.kept_bytes)];
        let (peer, local, length) = (meta.addr, meta.dst_ip, datagram.len());
        waiting.push_copy(&Datagram { peer, local, bytes, length });
        if waiting.len() == 1 {
            self.receiver.wake();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks leaves anything half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What quinn reads from and writes to.
struct QuicSide {
    shared: Arc<Shared>,
    /// Datagrams that were taken since others had their turn.
    taken: AtomicUsize,
    backlog: Mutex<Backlog>,
    /// Of an endpoint that accepts.
    initials: Option<Mutex<Bucket>>,
    origin: Instant,
}

impl QuicSide {
    /// Leaves out what there are too many of. Returns how many were left in, which stand in front.
    fn admit(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta], received: usize, now: Duration) -> usize {
        let Some(initials) = &self.initials else { return received };
        let mut kept = 0;
        for index in 0..received {
            let meta = metas[index];
            let segments = || buffers[index][..meta.len].chunks(meta.stride.max(1));
            let beginnings = segments().filter(|segment| may_begin(segment)).count();
            let is_admitted = || locked(initials).take(now);
            // What the kernel put together stays together: all of it, or nothing.
            if (0..beginnings).all(|_| is_admitted()) {
                buffers.swap(kept, index);
                metas[kept] = meta;
                kept += 1;
            }
        }
        kept
    }
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
            let Poll::Ready(received) = self.shared.socket.poll_recv(context, buffers, metas) else {
                locked(&self.backlog).is_empty();
                return Poll::Pending;
            };
            // Read once: they came together.
            let now = self.origin.elapsed();
            let is_late = |count| locked(&self.backlog).is_late(now, count);
            let (kept, taken) = self.shared.divide(buffers, metas, received?, is_late);
            let admitted = self.admit(buffers, metas, kept, now);
            if admitted > 0 {
                return Poll::Ready(Ok(admitted));
            }
            let taken = taken + kept;
            // Nothing for quinn, however many come: whoever answers them, and everybody else, has a turn.
            if self.taken.fetch_add(taken, Ordering::Relaxed) + taken >= limits::DATAGRAMS_PER_TURN {
                self.taken.store(0, Ordering::Relaxed);
                // Woken at once, a task of the runtime would run dozens of times before those of a `LocalSet` do.
                return pin!(yield_now()).poll(context).map(|()| Ok(0));
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
