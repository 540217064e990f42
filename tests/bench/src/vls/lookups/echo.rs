//! The least that anybody can do who answers datagrams: one system call takes many, another one answers them, and
//! nothing is looked at.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use super::{ANSWER_HEAD_BYTES, datagrams::WINDOW, process::until_unwanted};
use crate::{Failure, vls::records::PACKET_BYTES};

/// Its name among the servers of this program.
pub(super) const KIND: &str = "echo";

/// Bytes of its answers: those of a cold lookup.
pub(super) const ANSWER_BYTES: usize = ANSWER_HEAD_BYTES + PACKET_BYTES;

const ROOM: usize = 1_500;

/// Serves until nobody wants it.
pub(super) fn serve() -> Result<(), Failure> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    super::server::say(&socket.local_addr()?.to_string())?;
    std::thread::spawn(move || until_unwanted().map(|()| std::process::exit(0)));
    let mut buffers = vec![[0; ROOM]; WINDOW];
    let mut questions = MultiHeaders::<SockaddrIn>::preallocate(WINDOW, None);
    let mut answers = MultiHeaders::<SockaddrIn>::preallocate(WINDOW, None);
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        let received = recvmmsg(socket.as_raw_fd(), &mut questions, slices.iter_mut(), flags, None)?;
        let askers: Vec<Option<SockaddrIn>> = received.map(|message| message.address).collect();
        let slices: Vec<_> =
            buffers.iter().take(askers.len()).map(|buffer| [IoSlice::new(&buffer[..ANSWER_BYTES])]).collect();
        // What does not fit into a queue is lost, as everywhere.
        let _ = sendmmsg(socket.as_raw_fd(), &mut answers, &slices, askers, [], MsgFlags::empty())?.count();
    }
}
