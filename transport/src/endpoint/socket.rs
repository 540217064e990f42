//! The UDP socket below an endpoint: dual-stack where the machine can.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind as bind_socket, socket_with, sockopt},
};

use super::BindError;
use crate::limits;

/// Binds `listen`; `[::]` means every address of the machine, whichever families it has.
pub(super) fn bind(listen: SocketAddr) -> Result<UdpSocket, BindError> {
    match open(listen) {
        Ok(socket) => Ok(socket),
        // A machine without IPv6 has neither the family nor the address.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if listen.is_ipv6() && listen.ip().is_unspecified() => {
            let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
            open(everywhere).map_err(|errno| BindError::address(everywhere, errno.into()))
        }
        Err(errno) => Err(BindError::address(listen, io::Error::from(errno))),
    }
}

fn open(address: SocketAddr) -> Result<UdpSocket, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6()
        && let Err(error) = sockopt::set_ipv6_v6only(&socket, false)
    {
        tracing::debug!(%error, "this system has no dual-stack sockets; only IPv6 peers will be reached");
    }
    // The kernel grants what its own limit allows; a smaller buffer only loses more datagrams under a burst.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, limits::SOCKET_BUFFER_BYTES);
    let _ = sockopt::set_socket_send_buffer_size(&socket, limits::SOCKET_BUFFER_BYTES);
    bind_socket(&socket, &address)?;
    Ok(UdpSocket::from(socket))
}
