//! The records over DNS, by UDP and by TCP (DESIGN §4, §5): for `dig`, for iroh, and for every resolver between.
//!
//! [`answer`] is pure: a query, what is known, an answer. Around it are two thin shells. UDP answers in bunches,
//! never longer than what every path carries, and so many per network; of the rest every second is told to come by
//! TCP, the others get nothing, so that whoever writes another's address on its questions cannot make this server send
//! more than a rate that is known. TCP has places, and who is idle gives them back (RFC 7766).

mod answer;
mod wire;
mod zone;

use std::{
    cell::{Cell, RefCell},
    io,
    pin::pin,
    rc::Rc,
};

use schemas::Network;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use transport::datagrams::{Bunch, Datagram, DatagramSocket};

pub(super) use self::wire::time_to_live;
pub use self::{
    answer::{Answer, Known, Transport, answer},
    zone::{DomainName, DomainNameError, Zone},
};
use super::{
    http::pause_after,
    places::{Place, Places},
    rates::Rates,
    sessions::{Stage, reached},
    shared::Shared,
};
use crate::{durable::Stopping, limits};

/// As metrics name them.
const UDP: &str = "dns_udp";
const TCP: &str = "dns_tcp";

/// Serves the records over DNS.
pub(super) struct DnsCarrier {
    shared: Rc<Shared>,
    zone: Rc<Zone>,
    places: Places,
    rates: RefCell<Rates>,
    /// Those of TCP, where who was slowed down has to be heard.
    stream_rates: RefCell<Rates>,
    /// Counts what came too fast.
    slip: Cell<u32>,
    limits: DnsLimits,
}

type Stages = watch::Receiver<Stage>;

/// What tests set smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsLimits {
    /// Answers per network, over UDP and over TCP each.
    pub answers: crate::registry::Rate,
    /// TCP connections at once, of everybody.
    pub connections: usize,
    /// TCP connections at once of one network.
    pub connections_per_network: usize,
    /// How long a TCP connection may stay without a whole question.
    pub idle: std::time::Duration,
}

impl Default for DnsLimits {
    fn default() -> Self {
        Self {
            answers: limits::DNS_ANSWERS,
            connections: limits::DNS_CONNECTIONS,
            connections_per_network: limits::DNS_CONNECTIONS_PER_NETWORK,
            idle: limits::DNS_IDLE,
        }
    }
}

impl DnsCarrier {
    pub(super) fn new(shared: Rc<Shared>, zone: Rc<Zone>, limits: DnsLimits, seed: u64) -> Self {
        let places = Places::new(limits.connections, limits.connections_per_network);
        let [rates, stream_rates] = [0, 1].map(|_| RefCell::new(Rates::new(limits.answers, seed)));
        Self { shared, zone, places, rates, stream_rates, slip: Cell::new(0), limits }
    }

    /// Answers datagrams until it is told to close, or nothing can be said any more.
    pub(super) async fn serve_datagrams(self: Rc<Self>, mut socket: DatagramSocket, mut stage: Stages) {
        let (mut queries, mut answers, mut early) = (Bunch::default(), Bunch::default(), Bunch::default());
        // Waits for what is decided when it begins, so it ends however many writes come after.
        let mut settling = pin!(None);
        loop {
            if settling.is_none() && !early.is_empty() {
                settling.set(Some(self.shared.registry.settled()));
            }
            let settled = async {
                match settling.as_mut().as_pin_mut() {
                    Some(settling) => settling.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = reached(&mut stage, Stage::Closing) => return,
                settled = settled => {
                    if settled.is_err() {
                        return;
                    }
                    settling.set(None);
                    for query in std::mem::take(&mut early).iter() {
                        self.answer_datagram(&query, &mut answers, &mut early);
                    }
                }
                received = socket.receive(&mut queries) => {
                    if let Err(error) = received {
                        pause_after(&error).await;
                        continue;
                    }
                    self.answer_datagrams(&queries, &mut answers, &mut early);
                }
            }
            // A full buffer loses some, as the network might; who asked asks again.
            socket.send(&answers);
            answers.rest();
            tokio::task::yield_now().await;
        }
    }

    fn answer_datagrams(&self, queries: &Bunch, answers: &mut Bunch, early: &mut Bunch) {
        let now = self.shared.registry.clock().now();
        let is_granted = |query: &Datagram<'_>| self.rates.borrow_mut().take(Network::of(query.peer.ip()), now).is_ok();
        let (granted, slowed): (Vec<_>, Vec<_>) = queries.iter().partition(is_granted);
        if granted.len() > 1 {
            let asked = granted.iter().filter_map(|query| answer::id_asked_for(&self.zone, query.bytes));
            self.shared.registry.approach(asked.collect::<Vec<_>>().iter());
        }
        granted.iter().for_each(|query| self.answer_datagram(query, answers, early));
        slowed.iter().for_each(|query| self.slow_down(query, answers));
    }

    fn slow_down(&self, query: &Datagram<'_>, answers: &mut Bunch) {
        let count = self.slip.get().wrapping_add(1);
        self.slip.set(count);
        if count.is_multiple_of(limits::DNS_SLIP)
            && let Some(message) = answer::slow_down(query.bytes)
        {
            answers.push(query.peer, query.local, |bytes| bytes.extend(message));
        }
        self.shared.metrics.answered(UDP, "slowed", std::time::Duration::ZERO);
    }

    fn answer_datagram(&self, query: &Datagram<'_>, answers: &mut Bunch, early: &mut Bunch) {
        let begun = Instant::now();
        match answer(&self.zone, query.bytes, Transport::Datagram, |id| self.shared.known(id)) {
            Answer::Reply { message, .. } => {
                answers.push(query.peer, query.local, |bytes| bytes.extend_from_slice(&message));
                self.shared.metrics.answered(UDP, outcome(&message), begun.elapsed());
            }
            Answer::Later if early.len() < limits::EARLY_QUESTIONS => early.push_copy(query),
            Answer::Later | Answer::None => self.shared.metrics.answered(UDP, "none", begun.elapsed()),
        }
    }

    /// Accepts connections until it is told to stop, then waits until every one has ended.
    pub(super) async fn serve_streams(self: Rc<Self>, listener: Rc<TcpListener>, mut stage: Stages) {
        let mut connections = JoinSet::new();
        loop {
            self.shared.metrics.set_connections(TCP, self.places.len());
            tokio::select! {
                _ = reached(&mut stage, Stage::Draining) => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let network = Network::of(address.ip());
                        let Some(place) = self.places.take(Some(network)) else { continue };
                        connections.spawn_local(Rc::clone(&self).serve_stream(stream, network, place, stage.clone()));
                    }
                    Err(error) => pause_after(&error).await,
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn serve_stream(self: Rc<Self>, stream: TcpStream, network: Network, place: Place, stage: Stages) {
        let mut closing = stage.clone();
        tokio::select! {
            () = self.answer_queries(stream, network, &place, stage) => {}
            () = place.evicted() => {}
            _ = reached(&mut closing, Stage::Closing) => {}
        }
    }

    async fn answer_queries(&self, mut stream: TcpStream, network: Network, place: &Place, mut stage: Stages) {
        // Answers are whole; waiting for more of them gains nothing. Refused only by a socket that is gone.
        let _ = stream.set_nodelay(true);
        for _ in 0..limits::DNS_QUERIES_PER_CONNECTION {
            place.set_idle(true);
            let query = tokio::select! {
                read = timeout(self.limits.idle, read_query(&mut stream)) => read,
                _ = reached(&mut stage, Stage::Draining) => return,
            };
            let Ok(Ok(query)) = query else { return };
            place.set_idle(false);
            let now = self.shared.registry.clock().now();
            if self.stream_rates.borrow_mut().take(network, now).is_err() {
                return;
            }
            let begun = Instant::now();
            let Ok(Some(message)) = self.answer_query(&query).await else { return };
            let Ok(length) = u16::try_from(message.len()) else { return };
            let framed = [&length.to_be_bytes()[..], &message].concat();
            match timeout(self.limits.idle, stream.write_all(&framed)).await {
                Ok(Ok(())) => self.shared.metrics.answered(TCP, outcome(&message), begun.elapsed()),
                _ => return,
            }
        }
    }

    async fn answer_query(&self, query: &[u8]) -> Result<Option<Vec<u8>>, Stopping> {
        let _under_way = self.shared.calls.begin().ok_or(Stopping)?;
        loop {
            match answer(&self.zone, query, Transport::Stream, |id| self.shared.known(id)) {
                Answer::Reply { message, .. } => return Ok(Some(message)),
                Answer::None => return Ok(None),
                Answer::Later => self.shared.registry.settled().await?,
            }
        }
    }
}

/// A query behind its length. One that is longer than any of ours ends the connection.
async fn read_query(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limits::DNS_QUERY_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

/// Codes as metrics name them.
fn outcome(message: &[u8]) -> &'static str {
    match message.get(3).map(|flags| flags & 0xf) {
        Some(0) if message.get(2).is_some_and(|flags| flags & 2 != 0) => "truncated",
        Some(0) => "noerror",
        Some(1) => "formerr",
        Some(2) => "servfail",
        Some(3) => "nxdomain",
        Some(4) => "notimp",
        Some(5) => "refused",
        _ => "other",
    }
}
