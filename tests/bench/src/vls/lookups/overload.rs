//! Twice as many questions as the server can answer, half of them hostile: how long those wait who mean it.
//!
//! How many it can answer is measured first, with questions only. Then as many come as that, at even intervals and whether
//! they are answered or not, and as many hostile datagrams between them: questions for ids that nobody has, questions
//! cut short, and what looks like the beginning of a QUIC connection. What there is no time for is lost in the kernel,
//! as it would be in a network; who is answered should not have waited in a long queue for it.

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::{errno::Errno, sys::socket::MsgFlags};
use schemas::datagram::{LookupAnswer, LookupQuestion, QUESTION_BYTES};

use super::{
    BETWEEN_LOOKS,
    datagrams::{ANSWER_BYTES, Asker, Questions, WINDOW, receive_together, send_together},
    is_cold_answer,
    server::Served,
};
use crate::{
    Failure, note,
    rounds::{Comparison, Effort, microseconds},
};

/// Rounds, each of so many windows.
const ROUNDS: usize = 5;
const WINDOWS: u32 = 10;

/// How often datagrams are sent: so many at once as come meanwhile.
const TICK: Duration = Duration::from_micros(250);

/// How long after the last question answers are taken.
const AFTERWARDS: Duration = Duration::from_millis(50);

/// The time within which 99 of 100 honest questions are answered, of those that are; beside it the same with a quarter
/// of what the server can answer, and nobody hostile.
pub(super) fn measure(
    effort: Effort,
    served: &Served,
    questions: &Questions,
    ids: &[[u8; 32]],
) -> Result<Comparison, Failure> {
    let mut asker = Asker::new(served.quic)?;
    let (begun, mut answers) = (Instant::now(), 0);
    while answers == 0 || begun.elapsed() < effort.window * WINDOWS {
        answers += asker.ask(questions, BETWEEN_LOOKS, is_cold_answer)?;
    }
    let capacity = answers as f64 / begun.elapsed().as_secs_f64();
    let mut pairs = Vec::new();
    for _ in 0..ROUNDS.min(effort.rounds) {
        let quiet = load(effort, served.quic, ids, capacity / 4.0, 0.0)?;
        let overloaded = load(effort, served.quic, ids, capacity, capacity)?;
        note(&format!(
            "overload_p99: {:.0} questions a second, of {capacity:.0} that can be answered, and as many hostile datagrams; \
             {:.0} in 100 were answered, half of them within {:.0} us",
            overloaded.asked_per_second,
            overloaded.answered * 100.0,
            overloaded.percentile(50)
        ));
        pairs.push((overloaded.percentile(99), quiet.percentile(99)));
    }
    Ok(Comparison::of(pairs))
}

/// What became of the honest questions.
struct Outcome {
    /// In microseconds, in order.
    times: Vec<f64>,
    /// Of all that were asked.
    answered: f64,
    asked_per_second: f64,
}

impl Outcome {
    fn percentile(&self, hundredths: usize) -> f64 {
        self.times.get(self.times.len() * hundredths / 100).copied().unwrap_or(f64::NAN)
    }
}

/// Datagrams a second of both kinds, for a while.
fn load(effort: Effort, server: SocketAddr, ids: &[[u8; 32]], honest: f64, hostile: f64) -> Result<Outcome, Failure> {
    let sockets = [Sender::new(server)?, Sender::new(server)?];
    let [asking, attacking] = &sockets;
    let attacks = attacks();
    let (begun, duration) = (Instant::now(), effort.window * WINDOWS);
    let (mut asked, mut attacked, mut times) = (0_usize, 0_usize, Vec::new());
    let mut questions = Vec::new();
    // What the asker was too late for is not sent later: its pauses are no load, and no burst after them either.
    let mut last = Duration::ZERO;
    let (mut honest_due, mut hostile_due) = (0.0, 0.0);
    // Nothing is waited for after the end but what is on its way.
    while begun.elapsed() < duration + AFTERWARDS {
        let now = begun.elapsed();
        let passed = now.saturating_sub(last).min(TICK * 2).as_secs_f64();
        last = now;
        if now < duration {
            honest_due += honest * passed;
            hostile_due += hostile * passed;
            // Proof: below the number of datagrams that a second has room for.
            #[allow(clippy::cast_possible_truncation)]
            let (honest_due, hostile_due) = (honest_due as usize, hostile_due as usize);
            questions.clear();
            for number in asked..honest_due {
                let nonce = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX).to_be_bytes();
                LookupQuestion { nonce, id: ids[number % ids.len()] }.write(&mut questions);
            }
            asking.send(questions.chunks_exact(QUESTION_BYTES))?;
            attacking.send((attacked..hostile_due).map(|number| attacks[number % attacks.len()].as_slice()))?;
            (asked, attacked) = (honest_due, hostile_due);
        }
        loop {
            asking.receive(|answer| {
                let nonce = LookupAnswer::read(answer).map(|answer| u64::from_be_bytes(answer.nonce));
                let time = nonce.map(|nonce| begun.elapsed().saturating_sub(Duration::from_nanos(nonce)));
                times.extend(time.map(microseconds));
            })?;
            if begun.elapsed() >= now + TICK {
                break;
            }
        }
    }
    times.sort_by(f64::total_cmp);
    let answered = times.len() as f64 / asked.max(1) as f64;
    let asked_per_second = asked as f64 / duration.as_secs_f64();
    if times.is_empty() { Err("nobody was answered".into()) } else { Ok(Outcome { times, answered, asked_per_second }) }
}

fn attacks() -> Vec<Vec<u8>> {
    (0..300_u32)
        .map(|number| {
            let mut id = [0xa7; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let mut datagram = Vec::new();
            LookupQuestion { nonce: [0; 8], id }.write(&mut datagram);
            match number % 3 {
                0 => {}
                1 => datagram.truncate(QUESTION_BYTES / 2),
                _ => {
                    // A long header, version 1, a connection id of 8 bytes that changes (RFC 9000 §17.2.2); the rest is noise.
                    datagram.resize(1_200, 0x5a);
                    datagram[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
                    datagram[6..10].copy_from_slice(&number.to_be_bytes());
                }
            }
            datagram
        })
        .collect()
}

/// A socket that never waits.
struct Sender(UdpSocket);

impl Sender {
    fn new(server: SocketAddr) -> Result<Self, Failure> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// What the kernel does not take is lost.
    fn send<'a>(&self, datagrams: impl Iterator<Item = &'a [u8]>) -> Result<(), Failure> {
        let slices: Vec<_> = datagrams.map(|datagram| [IoSlice::new(datagram)]).collect();
        for slices in slices.chunks(WINDOW) {
            match send_together(&self.0, slices) {
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// All that has come.
    fn receive(&self, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
        let mut space = [[0; ANSWER_BYTES]; WINDOW];
        loop {
            let lengths = receive_together(&self.0, &mut space, MsgFlags::MSG_DONTWAIT)?;
            lengths.iter().zip(&space).for_each(|(length, part)| each(&part[..*length]));
            if lengths.len() < WINDOW {
                return Ok(());
            }
        }
    }
}
