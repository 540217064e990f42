//! Datagrams that are not QUIC's, on the port where QUIC is.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures::FutureExt;
use quinn::{
    AsyncUdpSocket, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use transport::{
    Endpoint, EndpointConfig, Session,
    beside::{DatagramsBeside, QUIC_FIXED_BIT},
    datagrams::Bunch,
    limits,
};

use crate::{
    memory,
    support::{PATIENCE, add, connect, key, loopback, new_counter, options, run, server, serving},
};

fn socket(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(loopback()).unwrap();
    // Takes only what comes from there.
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A first byte that is none of QUIC's.
const KIND: u8 = 0xbf;

/// The number of a datagram, behind its kind.
fn numbered(number: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![KIND; length];
    bytes[1..3].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Sends back what comes, `count` times.
async fn echo(beside: &DatagramsBeside, count: usize) {
    let (mut bunch, mut answers) = (Bunch::default(), Bunch::default());
    let mut seen = 0;
    while seen < count {
        beside.receive(&mut bunch).await;
        answers.clear();
        for datagram in bunch.iter() {
            answers.push(datagram.peer, datagram.local, |bytes| bytes.extend_from_slice(datagram.bytes));
        }
        seen += beside.send(&answers);
    }
}

#[test]
fn they_are_answered_in_bunches_while_quic_goes_on() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let kept = 8;
        let beside = server.datagrams_beside(KIND, kept);
        let (dialled, accepted) = connect(&server, &client).await;
        let (session, _served) =
            tokio::try_join!(Session::open(dialled, options()), Session::accept(accepted, serving(new_counter())))
                .unwrap();
        let counter = session.bootstrap();
        let sockets: Vec<UdpSocket> = (0..10).map(|_| socket(server.local_address())).collect();
        let mut expected = 0;
        for round in 0..20_u64 {
            for (number, socket) in (0..).zip(&sockets) {
                for length in [3, 8, 1200] {
                    socket.send(&numbered(number, length)).unwrap();
                }
            }
            let (sum, ()) = tokio::join!(add(&counter, round), echo(&beside, 30));
            expected += round;
            assert_eq!(sum.unwrap(), expected);
            for (number, socket) in (0..).zip(&sockets) {
                for length in [3, 8, 1200] {
                    let mut answer = [0; 1500];
                    let received = socket.recv(&mut answer).unwrap();
                    assert_eq!(answer[..received], numbered(number, length)[..length.min(kept)]);
                }
            }
        }
        assert_eq!(beside.dropped(), 0);
    });
}

#[test]
fn an_answer_leaves_from_the_address_that_was_asked() {
    run(async {
        let everywhere = SocketAddr::from(([0_u16; 8], 0));
        let server = Endpoint::bind(&key(), everywhere, EndpointConfig::default()).unwrap();
        let beside = server.datagrams_beside(KIND, 2000);
        // Every address of 127/8 is this machine's.
        for last in [1, 2, 77] {
            let socket = socket(([127, 0, 0, last], server.local_address().port()).into());
            socket.send(&numbered(9, 100)).unwrap();
            echo(&beside, 1).await;
            assert_eq!(socket.recv(&mut [0; 1500]).unwrap(), 100);
        }
    });
}

#[test]
fn nobody_who_is_not_there_can_be_sent_anything_and_the_rest_is_sent_all_the_same() {
    run(async {
        let server = server();
        let there = socket(server.local_address());
        let mut bunch = Bunch::default();
        for peer in [SocketAddr::from(([127, 0, 0, 1], 0)), there.local_addr().unwrap(), "[::1]:9".parse().unwrap()] {
            bunch.push(peer, None, |bytes| bytes.push(7));
        }
        bunch.push(there.local_addr().unwrap(), None, |_| {});
        assert_eq!(bunch.len(), 3, "what is empty is not sent");
        assert_eq!(server.datagrams_beside(KIND, 0).send(&bunch), 1);
        assert_eq!(there.recv(&mut [0; 10]).unwrap(), 1);
    });
}

#[test]
fn those_that_nobody_takes_are_dropped_and_so_are_those_beyond_the_limit() {
    run(async {
        // What has waited for long would be thrown away.
        tokio::time::pause();
        let server = server();
        let peer = socket(server.local_address());
        let flood = async |count: u16| {
            for number in 0..count {
                peer.send(&numbered(number, 100)).unwrap();
                if number.is_multiple_of(100) {
                    tokio::task::yield_now().await;
                }
            }
        };
        flood(200).await;
        // Behind all of them comes one that somebody takes.
        let (other, mut bunch) = (server.datagrams_beside(1, 100), Bunch::default());
        peer.send(&[1]).unwrap();
        other.receive(&mut bunch).await;
        let (first, second) = (server.datagrams_beside(KIND, 100), server.datagrams_beside(KIND, 3));
        flood(u16::try_from(limits::DATAGRAMS_WAITING).unwrap() + 10).await;
        peer.send(&[1]).unwrap();
        other.receive(&mut bunch).await;
        // Everybody who takes them has them; the oldest are kept: whoever sent the others asks again.
        for (beside, kept) in [(&first, 100), (&second, 3)] {
            assert_eq!(beside.dropped(), 10);
            beside.receive(&mut bunch).await;
            assert_eq!(bunch.len(), limits::DATAGRAMS_WAITING);
            for (datagram, number) in bunch.iter().zip(0..) {
                assert_eq!((datagram.bytes, datagram.length), (&numbered(number, 100)[..kept], 100));
            }
        }
        assert_eq!(other.dropped(), 0);
    });
}

#[test]
fn who_takes_them_has_a_turn_before_so_many_have_been_taken_that_they_wait() {
    const FLOOD: usize = 2_000;
    run(async {
        tokio::time::pause();
        let server = server();
        let peer = socket(server.local_address());
        let (beside, mut bunch) = (server.datagrams_beside(KIND, 3), Bunch::default());
        (0..).take(FLOOD).for_each(|number| assert!(peer.send(&numbered(number, 3)).is_ok()));
        let mut taken = 0;
        while taken < FLOOD {
            beside.receive(&mut bunch).await;
            // What the last call to the kernel gives goes over it.
            assert!(bunch.len() < limits::DATAGRAMS_PER_TURN + limits::DATAGRAMS_PER_CALL, "{}", bunch.len());
            taken += bunch.len();
        }
        assert_eq!((taken, beside.dropped()), (FLOOD, 0));
    });
}

#[test]
fn of_more_than_can_be_answered_those_are_that_came_last() {
    run(async {
        let server = server();
        let peer = socket(server.local_address());
        let (beside, mut bunch) = (server.datagrams_beside(KIND, 3), Bunch::default());
        tokio::time::pause();
        (0..2_000).for_each(|number| assert!(peer.send(&numbered(number, 3)).is_ok()));
        let mut taken = 0;
        while taken < limits::BACKLOG {
            beside.receive(&mut bunch).await;
            taken += bunch.len();
            // To answer them takes so long.
            tokio::time::advance(limits::BACKLOG_TIME).await;
        }
        peer.send(&[KIND, 0xff, 0xff]).unwrap();
        // The rest of the flood is thrown away, and this one with it.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(taken + beside.dropped(), 2_001);
        peer.send(&numbered(7, 3)).unwrap();
        beside.receive(&mut bunch).await;
        assert_eq!(bunch.iter().map(|datagram| datagram.bytes.to_vec()).collect::<Vec<_>>(), [numbered(7, 3)]);
    });
}

#[test]
fn a_flood_leaves_no_memory_behind() {
    run(async {
        tokio::time::pause();
        let server = server();
        let peer = socket(server.local_address());
        let (beside, mut bunch) = (server.datagrams_beside(KIND, 1000), Bunch::default());
        let echoed = async |bunch: &mut Bunch| {
            peer.send(&numbered(0, 1000)).unwrap();
            beside.receive(bunch).await;
            assert!(beside.receive(bunch).now_or_never().is_none(), "all have been taken");
        };
        echoed(&mut bunch).await;
        let before = memory::held();
        for _ in 0..2 {
            for number in 0..u16::try_from(limits::DATAGRAMS_WAITING).unwrap() {
                peer.send(&numbered(number, 1000)).unwrap();
                if number.is_multiple_of(100) {
                    tokio::task::yield_now().await;
                }
            }
            beside.receive(&mut bunch).await;
            assert!(memory::held() > before + 1_000_000);
        }
        echoed(&mut bunch).await;
        let held = memory::held() - before;
        assert!(held < 100_000, "{held} bytes more are held than before the flood");
    });
}

/// The kernel hands over in one piece what comes from one peer at once, if it is of one length.
#[cfg(target_os = "linux")]
#[test]
fn what_comes_together_with_packets_of_quic_is_taken_all_the_same() {
    use std::{io::IoSlice, os::fd::AsRawFd};

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    run(async {
        let server = server();
        let peer = socket(server.local_address());
        let (beside, mut bunch) = (server.datagrams_beside(KIND, 100), Bunch::default());
        let quic = vec![QUIC_FIXED_BIT; 100];
        let together = [numbered(0, 100), quic.clone(), numbered(1, 100), quic, numbered(2, 30)].concat();
        let length = [ControlMessage::UdpGsoSegments(&100)];
        sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(&together)], &length, MsgFlags::empty(), None).unwrap();
        let mut taken = Vec::new();
        while taken.len() < 3 {
            beside.receive(&mut bunch).await;
            taken.extend(bunch.iter().map(|datagram| datagram.bytes.to_vec()));
        }
        assert_eq!(taken, [numbered(0, 100), numbered(1, 100), numbered(2, 30)]);
    });
}

#[test]
fn what_has_the_fixed_bit_is_left_to_quic_whoever_asks_for_it() {
    run(async {
        let server = server();
        let peer = socket(server.local_address());
        let kinds: Vec<_> = (0..=u8::MAX).map(|kind| server.datagrams_beside(kind, 1)).collect();
        // What has no bytes is nobody's.
        peer.send(&[]).unwrap();
        for kind in (0..=u8::MAX).rev() {
            peer.send(&[kind, 1, 2, 3]).unwrap();
        }
        let mut bunch = Bunch::default();
        for kind in 0..=u8::MAX {
            if kind & QUIC_FIXED_BIT == 0 {
                kinds[usize::from(kind)].receive(&mut bunch).await;
                assert_eq!(bunch.iter().map(|datagram| datagram.bytes).collect::<Vec<_>>(), [[kind]]);
            } else {
                assert!(kinds[usize::from(kind)].receive(&mut bunch).now_or_never().is_none());
            }
        }
    });
}

/// A line on which datagrams have come already, and which counts what is said.
#[derive(Debug)]
struct Line {
    waiting: Mutex<VecDeque<Vec<u8>>>,
    said: AtomicUsize,
}

impl AsyncUdpSocket for Line {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, _transmit: &Transmit<'_>) -> io::Result<()> {
        self.said.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn poll_recv(
        &self,
        _context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(datagram) = self.waiting.lock().unwrap().pop_front() else { return Poll::Pending };
        let len = datagram.len();
        buffers[0][..len].copy_from_slice(&datagram);
        let addr = SocketAddr::from(([192, 0, 2, 1], 4433));
        metas[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(loopback())
    }
}

/// It takes whatever is to be sent.
#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_flood_of_what_could_begin_a_connection_is_answered_at_a_rate() {
    const FLOOD: usize = 20_000;
    run(async {
        // In a version that nobody speaks: each one would be told which are spoken.
        let datagram = [&[0xc0, 0x0a, 0x0a, 0x0a, 0x0a, 8][..], &[7; 1194]].concat();
        let waiting = Mutex::new(std::iter::repeat_n(datagram, FLOOD).collect());
        let line = Arc::new(Line { waiting, said: AtomicUsize::new(0) });
        let begun = Instant::now();
        let config = EndpointConfig::default();
        let _server = Endpoint::with_socket(&key(), line.clone(), Arc::new(TokioRuntime), config).unwrap();
        while !line.waiting.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let (said, later) = (line.said.load(Ordering::Relaxed), begun.elapsed().as_nanos());
        let burst = usize::try_from(limits::INITIALS_BURST).unwrap();
        let since = usize::try_from(later / limits::INITIALS_INTERVAL.as_nanos()).unwrap();
        assert!((burst..=burst + since + 1).contains(&said) && said < FLOOD, "{said} after {later} ns");
    });
}
