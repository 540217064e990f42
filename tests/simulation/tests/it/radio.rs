//! A UDP socket of the simulated network, with weather: datagrams are lost and repeated by the seed. That they
//! take their time and overtake one another is turmoil's part.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use turmoil::net::UdpSocket;

/// Longest datagram that is received: what Ethernet carries, and a little.
const DATAGRAM_BYTES: usize = 2048;

/// Chances in thousandths. The storms of the plan change them while sockets are in use.
#[derive(Debug, Default)]
pub(crate) struct Air {
    pub(crate) loss: AtomicU16,
    pub(crate) duplication: AtomicU16,
}

/// Somebody between a socket and the network, who sees what passes.
pub(crate) trait Tap: Send + Sync {
    /// A datagram is about to leave; whether it does.
    fn lets_out(&self, datagram: &[u8], to: SocketAddr) -> bool;

    /// A datagram has come.
    fn comes_in(&self, datagram: &[u8], from: SocketAddr);
}

pub(crate) struct Radio {
    air: Arc<Air>,
    tap: Option<Box<dyn Tap>>,
    random: Mutex<fastrand::Rng>,
    state: Mutex<State>,
    address: SocketAddr,
}

struct State {
    /// `None` once the process is dead.
    socket: Option<Arc<UdpSocket>>,
    receiving: Option<Pin<Box<dyn Future<Output = io::Result<Datagram>> + Send>>>,
    receiver: Option<Waker>,
}

struct Datagram {
    bytes: Vec<u8>,
    from: SocketAddr,
}

impl Radio {
    pub(crate) async fn bind(port: u16, air: Arc<Air>, seed: u64) -> io::Result<Self> {
        Self::bind_tapped(port, air, seed, None).await
    }

    pub(crate) async fn bind_tapped(
        port: u16,
        air: Arc<Air>,
        seed: u64,
        tap: Option<Box<dyn Tap>>,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", port)).await?;
        let address = socket.local_addr()?;
        let state = State { socket: Some(Arc::new(socket)), receiving: None, receiver: None };
        Ok(Self { air, tap, random: Mutex::new(fastrand::Rng::with_seed(seed)), state: Mutex::new(state), address })
    }

    /// Sends and receives on another port from now on, and does not say so: what a router does that forgets a
    /// mapping. What is still on its way to the old port is lost. Gives the new port.
    pub(crate) async fn rebind(&self) -> io::Result<u16> {
        let socket = Arc::new(UdpSocket::bind("0.0.0.0:0").await?);
        let port = socket.local_addr()?.port();
        let mut state = self.state.lock().unwrap();
        state.receiving = None;
        state.socket = Some(socket);
        if let Some(waker) = state.receiver.take() {
            waker.wake();
        }
        Ok(port)
    }

    /// Gives the port back. A process that was killed cannot: what it held is kept alive by references that lead
    /// in a circle through the RPC layer, which an operating system would not care about.
    pub(crate) fn unplug(&self) {
        let mut state = self.state.lock().unwrap();
        state.receiving = None;
        state.socket = None;
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    fn happens(&self, chance: &AtomicU16) -> bool {
        self.random.lock().unwrap().u16(0..1000) < chance.load(Ordering::SeqCst)
    }
}

impl AsyncUdpSocket for Radio {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(socket) = self.state.lock().unwrap().socket.clone() else { return Ok(()) };
        let length = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(length) {
            if self.tap.as_ref().is_some_and(|tap| !tap.lets_out(datagram, transmit.destination)) {
                continue;
            }
            let copies = match (self.happens(&self.air.loss), self.happens(&self.air.duplication)) {
                (true, _) => 0,
                (false, true) => 2,
                (false, false) => 1,
            };
            for _ in 0..copies {
                // A way that is cut, or a host that is down, is no error to who sends.
                let _ = socket.try_send_to(datagram, transmit.destination);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state.lock().unwrap();
        state.receiver = Some(context.waker().clone());
        let State { socket, receiving, .. } = &mut *state;
        let Some(socket) = socket.clone() else { return Poll::Pending };
        let receive = receiving.get_or_insert_with(|| Box::pin(receive(socket)));
        let received = ready!(receive.as_mut().poll(context));
        *receiving = None;
        let Datagram { bytes, from } = received?;
        if let Some(tap) = &self.tap {
            tap.comes_in(&bytes, from);
        }
        buffers[0][..bytes.len()].copy_from_slice(&bytes);
        metas[0] = RecvMeta { addr: from, len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

async fn receive(socket: Arc<UdpSocket>) -> io::Result<Datagram> {
    let mut bytes = vec![0; DATAGRAM_BYTES];
    let (length, from) = socket.recv_from(&mut bytes).await?;
    bytes.truncate(length);
    Ok(Datagram { bytes, from })
}

impl fmt::Debug for Radio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Radio({})", self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
