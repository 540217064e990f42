//! Many datagrams to many peers with one system call (`sendmmsg(2)`), where the system has it.

#[cfg(target_os = "linux")]
pub(super) use linux::send;

/// Sends what the socket takes now; tells how many it took.
#[cfg(not(target_os = "linux"))]
pub(super) fn send(socket: &std::net::UdpSocket, bunch: &super::beside::Bunch) -> usize {
    bunch.iter().filter(|datagram| socket.send_to(datagram.bytes, datagram.peer).is_ok()).count()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io::IoSlice,
        net::{IpAddr, UdpSocket},
        os::fd::AsRawFd,
    };

    use nix::{
        cmsg_space,
        errno::Errno,
        libc,
        sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg},
    };

    use crate::{
        endpoint::beside::{Bunch, Datagram},
        limits,
    };

    /// Sends what the socket takes now; tells how many it took.
    pub(in crate::endpoint) fn send(socket: &UdpSocket, bunch: &Bunch) -> usize {
        let datagrams: Vec<Datagram<'_>> = bunch.iter().collect();
        // Nearly always one address of ours stands for all of them.
        let runs = datagrams.chunk_by(|one, next| one.local == next.local);
        runs.flat_map(|run| run.chunks(limits::DATAGRAMS_PER_CALL)).map(|part| send_part(socket, part)).sum()
    }

    /// Sends datagrams that leave from one address of ours.
    fn send_part(socket: &UdpSocket, datagrams: &[Datagram<'_>]) -> usize {
        let slices: Vec<[IoSlice<'_>; 1]> = datagrams.iter().map(|datagram| [IoSlice::new(datagram.bytes)]).collect();
        let peers: Vec<Option<SockaddrStorage>> = datagrams.iter().map(|datagram| Some(datagram.peer.into())).collect();
        let (v4, v6);
        let control = match datagrams.first().and_then(|datagram| datagram.local) {
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
        let (mut done, mut taken) = (0, 0);
        while done < datagrams.len() {
            // Room for the larger of the two addresses; nothing is written to it when there is none.
            let space = (!control.is_empty()).then(|| cmsg_space!(libc::in6_pktinfo));
            let mut headers = MultiHeaders::preallocate(datagrams.len() - done, space);
            let outcome = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices[done..].iter(),
                &peers[done..],
                &control,
                MsgFlags::MSG_DONTWAIT,
            );
            match outcome.map(Iterator::count) {
                Ok(count) if count > 0 => (done, taken) = (done + count, taken + count),
                Err(Errno::EINTR) => {}
                // The queue of the socket is full: the rest is lost, as datagrams are.
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => break,
                // The first of them cannot be sent: its peer is not to be reached from here, or its address is none.
                Err(_) => done += 1,
            }
        }
        taken
    }
}
