//! What an answer costs the processor of a server that holds a million records, carrier by carrier.
//!
//! Each server is a process of its own, on one processor; who asks has another one. Counted is the processor time that
//! the whole process took, its part of the kernel included, for each answer. So it does not matter how long anybody
//! waits, but it does how much comes at once: there are always as many questions on the way for what is measured as
//! for its baseline.

mod calls;
mod constant;
mod datagrams;
mod echo;
mod knot;
mod overload;
mod process;
mod requests;
mod server;
mod small_machine;

use std::{net::SocketAddr, path::Path, time::Instant};

use futures::executor::block_on;
use schemas::{
    VatId,
    datagram::{LookupAnswer, LookupQuestion, QUESTION_BYTES, QUESTION_HEAD_BYTES},
};

use self::{
    datagrams::{Asker, Questions},
    process::Process,
    server::Served,
};
use super::{
    names::{AGAINST_KNOT, LOOKUPS},
    records::{PACKET_BYTES, forged},
    told,
};
use crate::{
    Failure, Report,
    figure::Unit,
    note,
    rounds::{Comparison, Effort, compare, microseconds},
};

/// Ids that are looked at, spread over all that there are: about half of them are asked for.
const ASKED: u32 = 10_000;

/// Questions between two looks at the clock.
const BETWEEN_LOOKS: usize = 1_024;

/// Bytes of a cold answer that are not the packet (`schemas::datagram`).
const ANSWER_HEAD_BYTES: usize = 26;

/// The zone that the ids stand below.
const ORIGIN: [&str; 2] = ["bench", "example"];

/// The argument with which this program is one of the servers.
pub(crate) const SERVE: &str = "--serve";

/// Is a server until its standard input ends: for [`Process::of_this_program`]. Its first line is where it serves.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Failure> {
    match arguments {
        [kind] if kind == echo::KIND => echo::serve(),
        [kind] if kind == constant::KIND => constant::serve(),
        [kind, folder, records] if kind == server::KIND => server::serve(Path::new(folder), records.parse()?),
        _ => Err("nobody serves this".into()),
    }
}

/// Measures all figures that are wanted.
pub(super) fn measure(effort: Effort, folder: &Path, report: Report<'_>) -> Result<(), Failure> {
    if !effort.wants_any(LOOKUPS) {
        return Ok(());
    }
    let folder = folder.join("lookups");
    server::make(&folder, effort.records)?;
    let served = Served::start(&folder, effort.records)?;
    let ids = ids(effort.records);
    let names: Vec<String> = ids.iter().map(|id| VatId::from_stored(*id).to_string()).collect();
    let cold = cold_questions(&ids);
    // A neighbour on the same machine stays for some seconds, and slows down who has much in memory more than who has not.
    let long = Effort { rounds: 3 * effort.rounds, ..effort };
    measure_datagrams(long, &folder, &served, &cold, &names, report)?;
    if effort.wants("http_get") {
        told("http_get", Unit::Microseconds, requests::measure(long, &served, &names)?, report)?;
    }
    if effort.wants("lookup_many_64") {
        told("lookup_many_64", Unit::Microseconds, calls::measure(effort, &served, &ids)?, report)?;
    }
    if effort.wants("overload_p99") {
        told("overload_p99", Unit::Microseconds, overload::measure(effort, &served, &cold, &ids)?, report)?;
    }
    drop(served);
    if effort.wants("resident_1m") {
        told("resident_1m", Unit::Bytes, small_machine::measure(effort, &folder)?, report)?;
    }
    Ok(())
}

/// Cold lookups and DNS, each beside a server that does as much or less.
fn measure_datagrams(
    effort: Effort,
    folder: &Path,
    served: &Served,
    cold: &Questions,
    names: &[String],
    report: Report<'_>,
) -> Result<(), Failure> {
    let ours = || Exchange::with(&served.process, served.quic, cold, is_cold_answer);
    if effort.wants("lookup_cold_vs_echo") {
        let echo = Process::of_this_program(&[echo::KIND])?;
        let theirs = Exchange::with(&echo, echo.greeting().parse()?, cold, |answer| answer.len() == echo::ANSWER_BYTES);
        told("lookup_cold_vs_echo", Unit::Microseconds, compared(effort, ours()?, theirs?)?, report)?;
    }
    if !effort.wants_any(AGAINST_KNOT) {
        return Ok(());
    }
    let Some((knot, address)) = knot::start(folder, names)? else {
        let names = AGAINST_KNOT.join(", ");
        note(&format!("{names}: not measured, since there is no knotd (Debian's package knot)"));
        return Ok(());
    };
    let questions = dns_questions(names);
    let dns = |server, address| Exchange::with(server, address, &questions, is_dns_answer);
    if effort.wants("lookup_cold_vs_knot") {
        let comparison = compared(effort, ours()?, dns(&knot, address)?)?;
        told("lookup_cold_vs_knot", Unit::Microseconds, comparison, report)?;
    }
    if effort.wants("dns_udp") {
        let comparison = compared(effort, dns(&served.process, served.dns)?, dns(&knot, address)?)?;
        told("dns_udp", Unit::Microseconds, comparison, report)?;
    }
    Ok(())
}

/// Who asks a server in datagrams.
struct Exchange<'a> {
    server: &'a Process,
    asker: Asker,
    questions: &'a Questions,
    is_answer: fn(&[u8]) -> bool,
}

impl<'a> Exchange<'a> {
    fn with(
        server: &'a Process,
        address: SocketAddr,
        questions: &'a Questions,
        is_answer: fn(&[u8]) -> bool,
    ) -> Result<Self, Failure> {
        Ok(Self { server, asker: Asker::new(address)?, questions, is_answer })
    }

    fn per_answer(&mut self, effort: Effort) -> Result<f64, Failure> {
        per_answer(effort, self.server, || self.asker.ask(self.questions, BETWEEN_LOOKS, self.is_answer))
    }
}

fn compared(effort: Effort, mut measured: Exchange<'_>, mut baseline: Exchange<'_>) -> Result<Comparison, Failure> {
    block_on(compare(effort, async || measured.per_answer(effort), async || baseline.per_answer(effort)))
}

/// Microseconds of the server's processor for each answer, over a while.
fn per_answer(
    effort: Effort,
    server: &Process,
    mut ask: impl FnMut() -> Result<usize, Failure>,
) -> Result<f64, Failure> {
    let (before, begun, mut answers) = (server.processor_time()?, Instant::now(), 0);
    while answers == 0 || begun.elapsed() < effort.window {
        answers += ask()?;
    }
    Ok(microseconds(server.processor_time()? - before) / answers as f64)
}

fn ids(records: u32) -> Vec<[u8; 32]> {
    let asked = ASKED.min(records);
    // One after another they would lie side by side in the table, too. About half of what was made up could be keys; the
    // others are no names.
    let ids = (0..asked).map(|number| forged(number * (records / asked)).id);
    ids.filter(|id| VatId::from_bytes(*id).is_ok()).collect()
}

fn cold_questions(ids: &[[u8; 32]]) -> Questions {
    let mut questions = Questions::padded(QUESTION_BYTES);
    for (id, number) in ids.iter().zip(0_u64..) {
        let mut bytes = Vec::new();
        LookupQuestion { nonce: number.to_be_bytes(), id: *id }.write(&mut bytes);
        questions.push(&bytes[..QUESTION_HEAD_BYTES]);
    }
    questions
}

fn is_cold_answer(answer: &[u8]) -> bool {
    let known = LookupAnswer::read(answer).and_then(|answer| answer.known);
    known.is_some_and(|known| known.packet.len() == PACKET_BYTES && !known.expired)
}

/// Queries for the TXT records of all names, with EDNS (RFC 1035 §4, RFC 6891 §6.1.2).
fn dns_questions(names: &[String]) -> Questions {
    let mut questions = Questions::padded(0);
    for (name, number) in names.iter().zip(0_u32..) {
        let [_, _, high, low] = number.to_be_bytes();
        let mut query = vec![high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in ["_vat", name, ORIGIN[0], ORIGIN[1], ""] {
            query.push(u8::try_from(label.len()).unwrap_or(0));
            query.extend(label.as_bytes());
        }
        // TXT, IN; then OPT with 1232 bytes.
        query.extend([0, 16, 0, 1]);
        query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        questions.push(&query);
    }
    questions
}

/// One answer, no error, not cut short.
fn is_dns_answer(answer: &[u8]) -> bool {
    answer.len() > PACKET_BYTES / 2 && answer[2] & 2 == 0 && answer[3] & 15 == 0 && answer[6..8] == [0, 1]
}
