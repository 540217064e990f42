//! A router between a vat and the rest of the network: who is behind it is seen at another address.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// How long a thread waits for a datagram before it looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// Longer than any datagram here.
const DATAGRAM_BYTES: usize = 4096;

/// A router with one machine behind it and one server in front of it.
#[derive(Debug)]
pub struct Router {
    ways: Arc<Ways>,
}

#[derive(Debug)]
struct Ways {
    /// What the machine behind it takes for the server.
    inside: UdpSocket,
    /// Where everybody else sees the machine.
    outside: UdpSocket,
    server: SocketAddr,
    /// Whether what nobody behind it has asked for is passed on.
    lets_in: bool,
    machine: Mutex<Option<SocketAddr>>,
    /// How the machine sees those whom it did not talk to first.
    strangers: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
    is_over: AtomicBool,
}

impl Router {
    /// In front of which `server` is; `lets_in` says whether it passes on what comes from others, too.
    ///
    /// # Panics
    /// When the machine has no sockets.
    #[must_use]
    pub fn before(server: SocketAddr, lets_in: bool) -> Self {
        let bind = |address: [u8; 4]| {
            let socket = UdpSocket::bind(SocketAddr::from((address, 0))).expect("a socket");
            socket.set_read_timeout(Some(LOOK)).expect("a timeout");
            socket
        };
        let (inside, outside) = (bind([127, 0, 0, 1]), bind([127, 0, 0, 9]));
        let (machine, strangers, is_over) = Default::default();
        let ways = Arc::new(Ways { inside, outside, server, lets_in, machine, strangers, is_over });
        let (outward, inward) = (Arc::clone(&ways), Arc::clone(&ways));
        thread::spawn(move || {
            outward.carry(&outward.inside, |from, datagram| {
                *outward.machine.lock().expect("no thread panics") = Some(from);
                outward.outside.send_to(datagram, outward.server)
            });
        });
        thread::spawn(move || inward.carry(&inward.outside, |from, datagram| inward.let_in(from, datagram)));
        Self { ways }
    }

    /// Where the machine behind it finds the server.
    ///
    /// # Panics
    /// Never: it is bound.
    #[must_use]
    pub fn inside(&self) -> SocketAddr {
        self.ways.inside.local_addr().expect("a bound socket")
    }

    /// Where others see the machine behind it.
    ///
    /// # Panics
    /// Never: it is bound.
    #[must_use]
    pub fn outside(&self) -> SocketAddr {
        self.ways.outside.local_addr().expect("a bound socket")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.ways.is_over.store(true, Ordering::Relaxed);
    }
}

impl Ways {
    fn carry(&self, socket: &UdpSocket, pass: impl Fn(SocketAddr, &[u8]) -> io::Result<usize>) {
        let mut space = [0; DATAGRAM_BYTES];
        while !self.is_over.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut space) {
                // What is not taken is lost, as datagrams are.
                let _ = pass(from, &space[..length]);
            }
        }
    }

    fn let_in(self: &Arc<Self>, from: SocketAddr, datagram: &[u8]) -> io::Result<usize> {
        let Some(machine) = *self.machine.lock().expect("no thread panics") else { return Ok(0) };
        if from == self.server {
            return self.inside.send_to(datagram, machine);
        }
        if !self.lets_in {
            return Ok(0);
        }
        let mut strangers = self.strangers.lock().expect("no thread panics");
        let known = strangers.get(&from).cloned();
        let stranger = match known {
            Some(stranger) => stranger,
            None => {
                let stranger = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
                stranger.set_read_timeout(Some(LOOK))?;
                let (stranger, ways) = (Arc::new(stranger), Arc::clone(self));
                strangers.insert(from, Arc::clone(&stranger));
                let back = Arc::clone(&stranger);
                thread::spawn(move || ways.carry(&back, |_, datagram| ways.outside.send_to(datagram, from)));
                stranger
            }
        };
        stranger.send_to(datagram, machine)
    }
}
