//! Datagrams on a socket of their own, in bunches.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use proptest::prelude::*;
use transport::datagrams::{Bunch, DatagramSocket};

use crate::support::run;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with what was said, and how long it was; tells in how many bunches it came.
async fn echo(socket: &mut DatagramSocket, expected: usize) -> usize {
    let (mut asked, mut answers, mut taken, mut bunches) = (Bunch::default(), Bunch::default(), 0, 0);
    while taken < expected {
        tokio::time::timeout(PATIENCE, socket.receive(&mut asked)).await.expect("datagrams").unwrap();
        bunches += 1;
        answers.clear();
        for datagram in asked.iter() {
            answers.push(datagram.peer, datagram.local, |bytes| {
                bytes.extend_from_slice(datagram.bytes);
                bytes.extend_from_slice(&(datagram.length as u64).to_be_bytes());
            });
        }
        taken += asked.len();
        assert_eq!(socket.send(&answers), asked.len());
    }
    bunches
}

/// Who asks, and does not wait for ever for what was lost.
fn asker() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn server(address: SocketAddr, kept_bytes: usize) -> (DatagramSocket, u16) {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = DatagramSocket::new(socket, kept_bytes).unwrap();
    let port = socket.local_address().unwrap().port();
    (socket, port)
}

#[test]
fn many_come_together_each_with_its_length_and_as_much_as_is_kept() {
    run(async {
        let (mut socket, port) = server((Ipv4Addr::LOCALHOST, 0).into(), 4);
        let asker = asker();
        for length in 0..100_u8 {
            asker.send_to(&vec![length; length.into()], (Ipv4Addr::LOCALHOST, port)).unwrap();
        }
        // An empty one says nothing, and is answered like any other.
        let bunches = echo(&mut socket, 100).await;
        assert!(bunches <= 100 / 2 || !cfg!(target_os = "linux"), "{bunches}");
        for length in 0..100_u8 {
            let mut answer = [0; 100];
            let received = asker.recv(&mut answer).unwrap();
            let kept = usize::from(length.min(4));
            assert_eq!(&answer[..kept], &vec![length; kept]);
            assert_eq!(answer[kept..received], u64::from(length).to_be_bytes());
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Also those that go together arrive each by itself, in their order, whoever else is written to in between.
    #[test]
    fn every_peer_gets_each_datagram_that_was_sent_to_it(
        runs in prop::collection::vec((0..3_usize, prop_oneof![Just(1), Just(226), Just(1_200)], 1..12_usize), 1..8),
        everywhere: bool,
    ) {
        run(async {
            let address = if everywhere { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
            let (socket, _) = server((address, 0).into(), 1);
            let peers = [asker(), asker(), asker()];
            let (mut bunch, mut sent) = (Bunch::default(), Vec::new());
            for (peer, length, count) in runs {
                for _ in 0..count {
                    let number = u8::try_from(sent.len()).unwrap();
                    let local = Some(Ipv4Addr::LOCALHOST.into());
                    bunch.push(peers[peer].local_addr().unwrap(), local, |bytes| {
                        bytes.resize(bytes.len() + length, number);
                    });
                    sent.push((peer, vec![number; length]));
                }
            }
            assert_eq!(socket.send(&bunch), sent.len());
            for (peer, expected) in sent {
                let mut received = [0; 2_000];
                let length = peers[peer].recv(&mut received).unwrap();
                assert_eq!(received[..length], expected);
            }
        });
    }
}

#[cfg(target_os = "linux")]
#[test]
fn datagrams_of_one_length_to_one_peer_go_through_the_kernel_together() {
    use nix::sys::socket::{setsockopt, sockopt::UdpGroSegment};
    run(async {
        let (socket, _) = server((Ipv4Addr::LOCALHOST, 0).into(), 1);
        let peer = asker();
        // It takes what came together as it came: uncut.
        setsockopt(&peer, UdpGroSegment, &true).unwrap();
        let mut bunch = Bunch::default();
        for number in 0..100_u8 {
            bunch.push(peer.local_addr().unwrap(), None, |bytes| bytes.extend([number; 300]));
        }
        assert_eq!(socket.send(&bunch), 100);
        let (mut received, mut taken) = (vec![0; 65_536], Vec::new());
        while taken.iter().sum::<usize>() < 100 * 300 {
            taken.push(peer.recv(&mut received).unwrap());
        }
        assert_eq!(taken, [64 * 300, 36 * 300]);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn an_answer_leaves_from_the_address_that_was_asked_on_a_machine_with_several() {
    for everywhere in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))] {
        run(async {
            let (mut socket, port) = server(everywhere, 100);
            for host in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)] {
                // The kernel itself would answer from the address that the way back has, 127.0.0.1.
                let asker = asker();
                asker.send_to(b"where?", (host, port)).unwrap();
                echo(&mut socket, 1).await;
                let mut answer = [0; 100];
                let (_, from) = asker.recv_from(&mut answer).unwrap();
                assert_eq!(from, (host, port).into());
            }
        });
    }
}
