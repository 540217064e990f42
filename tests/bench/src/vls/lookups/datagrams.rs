//! Who asks in datagrams: always the same number of questions on the way, and as few system calls as can be.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg},
};

use crate::Failure;

/// Questions on the way.
pub(super) const WINDOW: usize = 64;

/// Room for one answer.
pub(super) const ANSWER_BYTES: usize = 1_500;

/// After this time without any answer, those on the way are lost: the queue of a socket was full.
const LOST_AFTER: Duration = Duration::from_millis(100);

/// After this time without any answer, nobody answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Datagrams with different fronts, and zeros up to their common length.
pub(super) struct Questions {
    fronts: Vec<Vec<u8>>,
    zeros: Vec<u8>,
}

impl Questions {
    /// None yet. `length` is that of all that are shorter.
    pub(super) fn padded(length: usize) -> Self {
        Self { fronts: Vec::new(), zeros: vec![0; length] }
    }

    pub(super) fn push(&mut self, front: &[u8]) {
        self.fronts.push(front.to_vec());
    }

    fn get(&self, number: usize) -> [IoSlice<'_>; 2] {
        let front = &self.fronts[number % self.fronts.len()];
        [IoSlice::new(front), IoSlice::new(self.zeros.get(front.len()..).unwrap_or_default())]
    }
}

/// Asks one server.
pub(super) struct Asker {
    socket: UdpSocket,
    next: usize,
    answers: Vec<[u8; ANSWER_BYTES]>,
}

impl Asker {
    pub(super) fn new(server: SocketAddr) -> Result<Self, Failure> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(LOST_AFTER))?;
        Ok(Self { socket, next: 0, answers: vec![[0; ANSWER_BYTES]; WINDOW] })
    }

    /// Asks until there are `count` answers; tells how many there were.
    ///
    /// # Errors
    /// When an answer is none, or none come.
    pub(super) fn ask(
        &mut self,
        questions: &Questions,
        count: usize,
        is_answer: impl Fn(&[u8]) -> bool,
    ) -> Result<usize, Failure> {
        let (mut asked, mut answered, mut last) = (0, 0, Instant::now());
        let mut on_the_way = 0;
        while answered < count {
            let free = (WINDOW - on_the_way).min(count.saturating_sub(answered + on_the_way));
            if free > 0 {
                self.send(questions, free)?;
                (asked, on_the_way) = (asked + free, on_the_way + free);
            }
            match self.receive(&is_answer)? {
                0 if last.elapsed() > PATIENCE => {
                    return Err(format!("{answered} answers to {asked} questions, and no more").into());
                }
                0 => on_the_way = 0,
                received => {
                    (answered, last) = (answered + received, Instant::now());
                    // More than none only if some came late.
                    on_the_way = on_the_way.saturating_sub(received);
                }
            }
        }
        Ok(answered)
    }

    fn send(&mut self, questions: &Questions, count: usize) -> Result<(), Failure> {
        let slices: Vec<_> = (self.next..self.next + count).map(|number| questions.get(number)).collect();
        self.next += count;
        let mut sent = 0;
        while sent < count {
            sent += send_together(&self.socket, &slices[sent..])?;
        }
        Ok(())
    }

    /// What has come, at least one; none after a while without.
    fn receive(&mut self, is_answer: impl Fn(&[u8]) -> bool) -> Result<usize, Failure> {
        let lengths = receive_together(&self.socket, &mut self.answers, MsgFlags::MSG_WAITFORONE)?;
        let wrong = lengths.iter().zip(&self.answers).find(|(length, answer)| !is_answer(&answer[..**length]));
        match wrong {
            Some((length, answer)) => Err(format!("no answer: {:?}", &answer[..*length]).into()),
            None => Ok(lengths.len()),
        }
    }
}

/// Sends datagrams, each of `PARTS` parts, over a connected socket with one system call; tells how many it took.
pub(super) fn send_together<const PARTS: usize>(
    socket: &UdpSocket,
    datagrams: &[[IoSlice<'_>; PARTS]],
) -> Result<usize, Errno> {
    let mut headers = MultiHeaders::<()>::preallocate(datagrams.len(), None);
    let addresses = vec![None; datagrams.len()];
    Ok(sendmmsg(socket.as_raw_fd(), &mut headers, datagrams, addresses, [], MsgFlags::empty())?.count())
}

/// Takes datagrams with one system call; tells how long each is. None if none have come, within what the socket waits.
pub(super) fn receive_together(
    socket: &UdpSocket,
    space: &mut [[u8; ANSWER_BYTES]],
    flags: MsgFlags,
) -> Result<Vec<usize>, Errno> {
    let mut headers = MultiHeaders::<()>::preallocate(space.len(), None);
    let mut slices: Vec<_> = space.iter_mut().map(|part| [IoSliceMut::new(part)]).collect();
    match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
        Ok(received) => Ok(received.map(|message| message.bytes).collect()),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}
