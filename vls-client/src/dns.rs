//! Records in DNS: search path entries of the form `dns:<origin>` (DESIGN §5).
//!
//! What a location server shows below its origin in readable strings is not signed, and DNS is forged easily. So the
//! whole signed packet is asked for, which the server has at `_signed.<id>.<origin>`, in the strings of one TXT record.
//! It may come from any cache on the way: it proves itself, and costs the location server nothing. That there is none
//! is not proved by anything; whoever needs to rely on that asks otherwise.
//!
//! One datagram with EDNS goes to a name server, from a port and with a number that nobody can guess, and again as long
//! as nothing comes; the next name server is asked when one fails or is silent. An answer that was cut short is asked
//! for again over TCP.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use schemas::VatId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{carriers::NameServers, failure::Failure, limits, schedule::Answer, wave::Wave};

mod message;

use message::{Question, Read};

const CONFIGURATION: &str = "/etc/resolv.conf";
/// Linux tells of its network interfaces here.
const INTERFACES: &str = "/sys/class/net";
const PORT: u16 = 53;

/// Asks name servers.
#[derive(Clone)]
pub(crate) struct DnsRecords {
    name_servers: Rc<NameServers>,
}

impl DnsRecords {
    pub(crate) fn new(name_servers: NameServers) -> Self {
        Self { name_servers: Rc::new(name_servers) }
    }

    /// Looks up the record of `id` below `origin`.
    ///
    /// # Errors
    /// [`Failure`], after [`limits::DNS_DEADLINE`] at the latest.
    pub(crate) async fn lookup(&self, origin: &str, id: VatId) -> Result<Answer, Failure> {
        let deadline = limits::DNS_DEADLINE;
        let began = Instant::now();
        let end = began + deadline;
        let name_servers = match &*self.name_servers {
            NameServers::Given(servers) => servers.clone(),
            NameServers::System => of_system(),
        };
        if name_servers.is_empty() {
            return Err(Failure::NoNameServer);
        }
        let mut waiting = name_servers.into_iter();
        let mut running = FuturesUnordered::new();
        let mut wave = Wave::new(Duration::ZERO, 1);
        let mut last = Failure::Timeout { after: deadline };
        loop {
            while waiting.len() > 0 && wave.may_start(began.elapsed(), limits::DNS_HEDGE) {
                running.extend(waiting.next().map(|server| timeout_at(end, ask(server, origin, id))));
            }
            tokio::select! {
                Some(result) = running.next() => match result.unwrap_or(Err(Failure::Timeout { after: deadline })) {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => {
                        last = failure;
                        wave.attempt_failed();
                    }
                },
                () = sleep_until(began + wave.next()), if waiting.len() > 0 => {}
                else => return Err(last),
            }
        }
    }
}

/// Asks one name server until it answers.
async fn ask(server: SocketAddr, origin: &str, id: VatId) -> Result<Answer, Failure> {
    let question = Question::new(id, origin, random_number()?).ok_or(Failure::Place)?;
    match over_udp(server, &question).await? {
        Read::Truncated => {}
        read => return answer(read),
    }
    // Another number: whoever saw the first one may have cut the answer short.
    let question = Question::new(id, origin, random_number()?).ok_or(Failure::Place)?;
    match over_tcp(server, &question).await? {
        Read::Truncated => Err(Failure::Protocol { what: "an answer over TCP that was cut short" }),
        read => answer(read),
    }
}

fn answer(read: Read) -> Result<Answer, Failure> {
    match read {
        Read::Packet(packet) => Ok(Answer::Packet { packet, age: None, lapsed: false }),
        Read::Nothing => Ok(Answer::Unknown),
        Read::Refused(code) => Err(Failure::NameServer { code }),
        Read::Truncated => Err(Failure::Protocol { what: "an answer that was cut short" }),
        Read::Malformed => Err(Failure::Protocol { what: "a text in DNS that can be no record of a vat" }),
    }
}

async fn over_udp(server: SocketAddr, question: &Question) -> Result<Read, Failure> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    // The system chooses a port at random; from others than `server` nothing is taken.
    let socket = UdpSocket::bind((any, 0)).await.map_err(failure)?;
    socket.connect(server).await.map_err(failure)?;
    let mut buffer = vec![0; limits::MAX_DNS_MESSAGE];
    let mut wait = limits::DNS_REPEAT;
    loop {
        socket.send(question.bytes()).await.map_err(failure)?;
        let until = Instant::now() + wait;
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            let length = received.map_err(failure)?;
            // What is no answer to this question may be a forger's: the right one may still come.
            if let Some(read) = question.read(buffer.get(..length).unwrap_or_default()) {
                return Ok(read);
            }
        }
        wait = wait.saturating_mul(2);
    }
}

async fn over_tcp(server: SocketAddr, question: &Question) -> Result<Read, Failure> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(question.bytes().len()).unwrap_or(u16::MAX);
        stream.write_all(&[&length.to_be_bytes()[..], question.bytes()].concat()).await?;
        let length = usize::from(stream.read_u16().await?);
        if length > limits::MAX_DNS_MESSAGE {
            return Err(io::Error::other("its answer is longer than any with one record"));
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        Ok(message)
    };
    let deadline = limits::DNS_DEADLINE;
    let message = timeout(deadline, exchange).await.map_err(|_| Failure::Timeout { after: deadline })?;
    let read = question.read(&message.map_err(failure)?);
    read.ok_or(Failure::Protocol { what: "an answer over TCP to another question" })
}

fn failure(error: io::Error) -> Failure {
    Failure::Connect { source: Arc::new(error) }
}

fn random_number() -> Result<u16, Failure> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(Failure::Random)?;
    Ok(u16::from_be_bytes(bytes))
}

/// The name servers of this machine.
fn of_system() -> Vec<SocketAddr> {
    // A small file of this machine; what cannot be read is empty (resolv.conf(5)).
    configured(&fs::read_to_string(CONFIGURATION).unwrap_or_default())
}

/// The name servers that a `resolv.conf` names, of which the system's own resolver takes the first few as well; this
/// machine, if it names none (resolv.conf(5)).
fn configured(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next()).flatten()?;
        name_server(address)
    });
    let mut found: Vec<SocketAddr> = named.take(limits::MAX_NAME_SERVERS).collect();
    if found.is_empty() {
        found.push(SocketAddr::from(([127, 0, 0, 1], PORT)));
    }
    found
}

/// A name server as `resolv.conf` has it: an address, and for a link-local one the interface behind a `%` (RFC 4007,
/// section 11), by its name or its number.
fn name_server(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let number = interface.parse().ok().or_else(|| number_of(interface))?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, number).into())
}

/// The number of a network interface of this machine.
fn number_of(interface: &str) -> Option<u32> {
    if interface.contains('/') {
        return None;
    }
    fs::read_to_string(Path::new(INTERFACES).join(interface).join("ifindex")).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_servers_of_the_machine_are_those_that_its_configuration_names() {
        let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver 192.0.2.2\n nameserver\t2001:db8::1 \n\
                    nameserver fe80::1%nothing\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        let expected = ["192.0.2.2:53", "[2001:db8::1]:53", "192.0.2.3:53"];
        assert_eq!(configured(text), expected.map(|text| text.parse().unwrap()));
        assert_eq!(configured("nameserver\n"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_name_server_on_a_link_is_asked_through_its_interface() {
        let of_loopback = number_of("lo").unwrap();
        for (text, number) in [("fe80::1%7", 7), ("fe80::1%lo", of_loopback)] {
            let expected = SocketAddrV6::new("fe80::1".parse().unwrap(), PORT, 0, number);
            assert_eq!(configured(&format!("nameserver {text}\n")), [expected.into()]);
        }
        assert_eq!(number_of("../net/lo"), None);
    }
}
