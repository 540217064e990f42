//! Many datagrams with one system call (`sendmmsg(2)`, `recvmmsg(2)`), where the system has it.
//!
//! Most of what a datagram costs is its way through the kernel. Those that go to one peer one behind another, and have one
//! length, go it together, and are cut apart at its end (`UDP_SEGMENT`, `udp(7)`): a gateway asks for many vats at once.

use std::{io, net::UdpSocket};

#[cfg(target_os = "linux")]
use linux::{receive, send, tell_local_addresses};
#[cfg(not(target_os = "linux"))]
use one_by_one::{receive, send, tell_local_addresses};

use super::Bunch;

/// Sends bunches over a socket.
#[derive(Debug)]
pub(crate) struct Sender {
    /// The socket stands for several addresses of ours, so each datagram has to say from which it leaves. Where there
    /// is one, the kernel needs not be told, and finds its way faster.
    names_source: bool,
}

impl Sender {
    pub(crate) fn of(socket: &UdpSocket) -> Self {
        Self { names_source: has_several_addresses(socket) }
    }

    /// Sends what the socket takes now; tells how many it took.
    pub(crate) fn send(&self, socket: &impl Socket, bunch: &Bunch) -> usize {
        send(socket, bunch, self.names_source)
    }
}

/// Takes bunches from a socket.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// One behind the other, for as many as are taken at once.
    space: Vec<u8>,
    kept_bytes: usize,
}

impl Receiver {
    /// Keeps `kept_bytes` of each datagram.
    pub(crate) fn new(socket: &UdpSocket, kept_bytes: usize) -> Self {
        if has_several_addresses(socket) {
            tell_local_addresses(socket);
        }
        Self { space: Vec::new(), kept_bytes: kept_bytes.max(1) }
    }

    /// Adds what has come, at least one.
    pub(crate) fn receive(&mut self, socket: &impl Socket, bunch: &mut Bunch) -> io::Result<()> {
        self.space.resize(self.kept_bytes * crate::limits::DATAGRAMS_PER_CALL, 0);
        receive(socket, &mut self.space, self.kept_bytes, bunch)
    }
}

fn has_several_addresses(socket: &UdpSocket) -> bool {
    // Unknown is as good as several: it costs little.
    socket.local_addr().map_or(true, |address| address.ip().is_unspecified())
}

#[cfg(target_os = "linux")]
pub(crate) use std::os::fd::AsRawFd as Socket;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io::{self, IoSlice, IoSliceMut},
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    };

    use nix::{
        cmsg_space,
        errno::Errno,
        libc,
        sys::socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
            setsockopt,
            sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
        },
    };

    use super::Socket;
    use crate::{
        datagrams::{Bunch, Datagram, Train},
        limits,
    };

    /// Sends what the socket takes now; tells how many it took.
    pub(super) fn send(socket: &impl Socket, bunch: &Bunch, names_source: bool) -> usize {
        let source = |train: &Train<'_>| train.local.filter(|_| names_source);
        let trains: Vec<Train<'_>> = bunch.trains(limits::DATAGRAMS_PER_TRAIN, limits::TRAIN_BYTES).collect();
        // The kernel is told the address of ours, and where to cut, once for a call. Nearly always one address stands for
        // all, and nothing is to be cut.
        let runs = trains.chunk_by(|one, next| (source(one), cut(one)) == (source(next), cut(next)));
        let parts = runs.flat_map(|run| run.chunks(limits::DATAGRAMS_PER_CALL));
        parts.map(|part| send_part(socket, part, part.first().and_then(source))).sum()
    }

    /// Where a train is to be cut, if it is one.
    fn cut(train: &Train<'_>) -> Option<u16> {
        u16::try_from(train.segment).ok().filter(|_| train.len() > 1)
    }

    /// Sends trains that leave from one address of ours and are cut in the same way.
    fn send_part(socket: &impl Socket, trains: &[Train<'_>], source: Option<IpAddr>) -> usize {
        let slices: Vec<[IoSlice<'_>; 1]> = trains.iter().map(|train| [IoSlice::new(train.bytes)]).collect();
        let peers: Vec<Option<SockaddrStorage>> = trains.iter().map(|train| Some(train.peer.into())).collect();
        let (v4, v6);
        let mut control = match source {
            None => Vec::new(),
            Some(IpAddr::V4(address)) => {
                let s_addr = u32::from_ne_bytes(address.octets());
                v4 = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                vec![ControlMessage::Ipv4PacketInfo(&v4)]
            }
            Some(IpAddr::V6(address)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: address.octets() };
                v6 = libc::in6_pktinfo { ipi6_ifindex: 0, ipi6_addr };
                vec![ControlMessage::Ipv6PacketInfo(&v6)]
            }
        };
        let segment = trains.first().and_then(cut);
        control.extend(segment.as_ref().map(ControlMessage::UdpGsoSegments));
        let (mut done, mut taken) = (0, 0);
        while done < trains.len() {
            // Room for the larger of the two addresses. What is left over has to be too small for anything else: the kernel
            // would look for it there.
            let space = match (source, segment) {
                (None, None) => None,
                (None, Some(_)) => Some(cmsg_space!(u16)),
                (Some(_), None) => Some(cmsg_space!(libc::in6_pktinfo)),
                (Some(_), Some(_)) => Some(cmsg_space!(libc::in6_pktinfo, u16)),
            };
            let mut headers = MultiHeaders::preallocate(trains.len() - done, space);
            let outcome = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices[done..].iter(),
                &peers[done..],
                &control,
                MsgFlags::MSG_DONTWAIT,
            );
            match outcome.map(Iterator::count) {
                Ok(count) if count > 0 => {
                    taken += trains[done..done + count].iter().map(Train::len).sum::<usize>();
                    done += count;
                }
                Err(Errno::EINTR) => {}
                // The queue of the socket is full: the rest is lost, as datagrams are.
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => break,
                // The first of them cannot be sent: its peer is not to be reached from here, or its address is none. Or it
                // cannot be cut: by an old kernel, a device that makes no checksums, or because the parts are too long for
                // the way, and each by itself is cut in another manner.
                Err(_) => {
                    if segment.is_some() {
                        let apart: Vec<Train<'_>> = trains[done].apart().collect();
                        taken += send_part(socket, &apart, source);
                    }
                    done += 1;
                }
            }
        }
        taken
    }

    /// Has the kernel say of each datagram to which address of ours it came.
    pub(super) fn tell_local_addresses(socket: &UdpSocket) {
        // Only one of them fits the socket, or both. A system that does not know them has answers leave from the address
        // of the way back, as all programs do that do not ask.
        let _ = setsockopt(socket, Ipv4PacketInfo, &true);
        let _ = setsockopt(socket, Ipv6RecvPacketInfo, &true);
    }

    /// Adds what has come.
    pub(super) fn receive(
        socket: &impl Socket,
        space: &mut [u8],
        kept_bytes: usize,
        bunch: &mut Bunch,
    ) -> io::Result<()> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            space.chunks_exact_mut(kept_bytes).map(|part| [IoSliceMut::new(part)]).collect();
        let control = cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(slices.len(), Some(control));
        // With MSG_TRUNC the length is that of the datagram, however much of it was kept.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)?;
        let told: Vec<_> = received
            .map(|message| {
                let local = message.cmsgs().ok().and_then(|mut told| told.find_map(|told| local_address(&told)));
                (message.address.and_then(peer), local, message.bytes)
            })
            .collect();
        for (part, (peer, local, length)) in space.chunks_exact(kept_bytes).zip(told) {
            let Some(peer) = peer else { continue };
            bunch.push_copy(&Datagram { peer, local, bytes: &part[..length.min(kept_bytes)], length });
        }
        Ok(())
    }

    fn peer(address: SockaddrStorage) -> Option<SocketAddr> {
        let v4 = address.as_sockaddr_in().map(|&address| SocketAddr::V4(address.into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|&address| SocketAddr::V6(address.into())))
    }

    fn local_address(told: &ControlMessageOwned) -> Option<IpAddr> {
        match told {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                // The address that an answer should leave from, which is not always the one in the packet.
                Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into())
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // On a socket for both families.
                Some(address.to_canonical())
            }
            _ => None,
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod one_by_one {
    use std::{io, net::UdpSocket};

    use super::Socket;
    use crate::datagrams::{Bunch, Datagram};

    pub(super) fn send(socket: &impl Socket, bunch: &Bunch, _names_source: bool) -> usize {
        bunch.iter().filter(|datagram| socket.send_one(datagram).is_ok()).count()
    }

    pub(super) fn tell_local_addresses(_socket: &UdpSocket) {}

    pub(super) fn receive(
        socket: &impl Socket,
        space: &mut [u8],
        kept_bytes: usize,
        bunch: &mut Bunch,
    ) -> io::Result<()> {
        let space = &mut space[..kept_bytes];
        let (length, peer) = socket.receive_one(space)?;
        bunch.push_copy(&Datagram { peer, local: None, bytes: &space[..length], length });
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) use one_socket::Socket;

#[cfg(not(target_os = "linux"))]
mod one_socket {
    use std::{
        io,
        net::{SocketAddr, UdpSocket},
    };

    use crate::datagrams::Datagram;

    /// A socket that takes and gives one datagram at a time.
    pub(crate) trait Socket {
        fn send_one(&self, datagram: &Datagram<'_>) -> io::Result<usize>;
        fn receive_one(&self, space: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
    }

    impl Socket for UdpSocket {
        fn send_one(&self, datagram: &Datagram<'_>) -> io::Result<usize> {
            self.send_to(datagram.bytes, datagram.peer)
        }

        fn receive_one(&self, space: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
            self.recv_from(space)
        }
    }

    impl Socket for tokio::net::UdpSocket {
        fn send_one(&self, datagram: &Datagram<'_>) -> io::Result<usize> {
            self.try_send_to(datagram.bytes, datagram.peer)
        }

        fn receive_one(&self, space: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
            self.try_recv_from(space)
        }
    }
}
