//! What the carriers count, for monitoring (the text form of Prometheus, which is OpenMetrics).
//!
//! Nothing here names an id, an address or a network: what is counted may be shown to everybody.

use std::{cell::RefCell, collections::BTreeMap, fmt, sync::atomic::Ordering::Relaxed, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use transport::HandshakeCounts;

/// Bounds of times, in seconds: from an answer out of memory to one that waited for a slow disk.
const SECONDS: [f64; 14] =
    [0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1.0, 10.0];

/// The outcome of what was refused for how much came, as most carriers name it.
pub(crate) const QUOTA: &str = "quota";

/// The outcome of a question in a datagram that is not answered because too many come.
pub(super) const DROPPED: &str = "dropped";

/// The outcomes that tell somebody that he asks too much: of QUIC, HTTP, DNS, and cold lookups.
const LIMITED: [&str; 4] = [QUOTA, "429", "slowed", DROPPED];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    carrier: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CameTo {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    carrier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Became {
    outcome: &'static str,
}

/// The counts of one server.
pub(crate) struct Metrics {
    registry: Registry,
    answers: Family<Answered, Counter>,
    seconds: Family<Of, Histogram>,
    /// Looked up in `answers` and `seconds` before; an answer costs an increment and no search by text.
    known: RefCell<Vec<(&'static str, &'static str, Counter)>>,
    timed: RefCell<Vec<(&'static str, Histogram)>>,
    connections: Family<Of, Gauge>,
    peers: Family<CameTo, Counter>,
    dht: Family<CameTo, Counter>,
    records: Gauge,
    work: Gauge,
    sessions: Gauge,
    handshakes: Family<Became, Counter>,
    turn: Gauge,
    durable_turn: Gauge,
    uptime: Gauge,
}

/// What is read at the moment of showing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readings {
    pub(super) records: usize,
    pub(super) work: Option<u8>,
    pub(super) sessions: usize,
    pub(super) handshakes: HandshakeCounts,
    pub(super) turn: u64,
    pub(super) durable_turn: u64,
    pub(super) uptime: Duration,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("vls");
        let answers = Family::<Answered, Counter>::default();
        let seconds = Family::<Of, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let connections = Family::<Of, Gauge>::default();
        let gauge = |registry: &mut Registry, name, help| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        registry.register("answers", "Answers given, by carrier and outcome", answers.clone());
        registry.register_with_unit(
            "answer",
            "From a whole question to its answer, waiting for the disk included",
            Unit::Seconds,
            seconds.clone(),
        );
        let peers = Family::<CameTo, Counter>::default();
        registry.register(
            "peers",
            "What was asked of other servers, and records that they were told of, by what it came to",
            peers.clone(),
        );
        let dht = Family::<CameTo, Counter>::default();
        let help = "What was looked up in the Mainline DHT, and packets that were put there, by what it came to";
        registry.register("dht", help, dht.clone());
        registry.register("connections", "TCP connections that are open, by carrier", connections.clone());
        let records = gauge(&mut registry, "records", "Records held, live and expired");
        let help = "Bits of work that a new id costs because the table is nearly full; 0 while it costs none";
        let work = gauge(&mut registry, "work_bits", help);
        let sessions = gauge(&mut registry, "sessions", "QUIC sessions that are open");
        let handshakes = Family::<Became, Counter>::default();
        let help = "QUIC handshakes begun, attempts asked for a proof of their address, and attempts refused";
        registry.register("handshakes", help, handshakes.clone());
        let turn = gauge(&mut registry, "turn", "The newest turn that was decided");
        let durable_turn = gauge(&mut registry, "durable_turn", "The newest turn that is durable");
        let uptime = gauge(&mut registry, "uptime_seconds", "For how long the server has been running");
        let (known, timed) = (RefCell::default(), RefCell::default());
        Self {
            registry,
            answers,
            seconds,
            known,
            timed,
            connections,
            peers,
            dht,
            records,
            work,
            sessions,
            handshakes,
            turn,
            durable_turn,
            uptime,
        }
    }

    /// Counts an answer. `outcome` is one of a few dozen.
    pub(crate) fn answered(&self, carrier: &'static str, outcome: &'static str, took: Duration) {
        let mut known = self.known.borrow_mut();
        let counter = match known.iter().position(|(of, with, _)| (*of, *with) == (carrier, outcome)) {
            Some(position) => &known[position].2,
            None => {
                known.push((carrier, outcome, self.answers.get_or_create_owned(&Answered { carrier, outcome })));
                // Just pushed.
                &known[known.len() - 1].2
            }
        };
        counter.inc();
        let mut timed = self.timed.borrow_mut();
        let position = timed.iter().position(|(of, _)| *of == carrier).unwrap_or_else(|| {
            timed.push((carrier, self.seconds.get_or_create_owned(&Of { carrier })));
            timed.len() - 1
        });
        timed[position].1.observe(took.as_secs_f64());
    }

    /// The counter of one outcome, for who counts more than it can measure.
    pub(super) fn counter(&self, carrier: &'static str, outcome: &'static str) -> Counter {
        let counter = self.answers.get_or_create_owned(&Answered { carrier, outcome });
        self.known.borrow_mut().push((carrier, outcome, counter.clone()));
        counter
    }

    /// What each carrier has answered, and how many of all those answers were that somebody asks too much.
    pub(super) fn totals(&self) -> (BTreeMap<&'static str, u64>, u64) {
        let (mut carriers, mut limited) = (BTreeMap::new(), 0);
        for (carrier, outcome, counter) in self.known.borrow().iter() {
            *carriers.entry(*carrier).or_default() += counter.get();
            if LIMITED.contains(outcome) {
                limited += counter.get();
            }
        }
        (carriers, limited)
    }

    /// Counts what was asked of other servers or told to them.
    pub(super) fn of_peers(&self, outcome: &'static str, count: u64) {
        self.peers.get_or_create(&CameTo { outcome }).inc_by(count);
    }

    /// Counts what was looked up in the DHT or put there.
    pub(super) fn of_dht(&self, outcome: &'static str) {
        self.dht.get_or_create(&CameTo { outcome }).inc();
    }

    /// The number of a carrier's connections.
    pub(super) fn set_connections(&self, carrier: &'static str, count: usize) {
        self.connections.get_or_create(&Of { carrier }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Everything, in the text form.
    ///
    /// # Errors
    /// None: writing into a string does not fail.
    pub(super) fn show(&self, readings: Readings) -> Result<String, fmt::Error> {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.records.set(number(readings.records as u64));
        self.work.set(readings.work.unwrap_or(0).into());
        self.sessions.set(number(readings.sessions as u64));
        let HandshakeCounts { begun, asked, refused, .. } = readings.handshakes;
        for (outcome, count) in [("begun", begun), ("asked", asked), ("refused", refused)] {
            // Counted where they happen, which only ever goes up.
            self.handshakes.get_or_create(&Became { outcome }).inner().store(count, Relaxed);
        }
        self.turn.set(number(readings.turn));
        self.durable_turn.set(number(readings.durable_turn));
        self.uptime.set(number(readings.uptime.as_secs()));
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
