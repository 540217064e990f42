//! What lies between the machines: ways that can be cut, and an observer who reads what is readable.
//!
//! Cold lookups are: so what a finder was told, and when, is known without asking the finder.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use schemas::{
    Address, SignedRecord, State, Timestamp, VatId,
    datagram::{LookupAnswer, LookupQuestion, Nonce},
    limits::MAX_CLOCK_AHEAD,
};
use simulation::finding::{Machine, Standing, Trace, Version, What};

use crate::{clock::wall, radio::Tap};

/// Who is at an address: a machine, and of a vat with which epoch; none for a stranger.
pub(crate) type Occupant = Option<(Machine, u64)>;

#[derive(Default)]
pub(crate) struct Wire {
    state: Mutex<State_>,
}

#[derive(Default)]
struct State_ {
    trace: Trace,
    /// From whom nothing comes to whom; none: everybody.
    cuts: Vec<(Option<Machine>, Option<Machine>)>,
    occupants: HashMap<SocketAddr, Occupant>,
    /// Who has been at an address before, and until when.
    left: HashMap<SocketAddr, (Duration, Occupant)>,
    /// What vats have really signed.
    signed: HashMap<Vec<u8>, Signed>,
    searching: HashMap<u8, Searching>,
    searches: u32,
    clocks: HashMap<Machine, Arc<AtomicI64>>,
}

#[derive(Clone, Copy)]
struct Signed {
    id: VatId,
    version: Version,
    expires: Timestamp,
}

/// What a finder is at.
#[derive(Default)]
struct Searching {
    current: Option<(u32, VatId)>,
    /// Which search has asked which server with which number.
    questions: HashMap<Nonce, (u32, u8, VatId)>,
    /// Which servers the current search has sent something.
    touched: HashSet<SocketAddr>,
    /// What its attempts to connect are named by in their first packets.
    dials: HashSet<Vec<u8>>,
}

pub(crate) fn version(record: &SignedRecord) -> Version {
    let said = record.record();
    let place = said.addresses.iter().find_map(|address| match address {
        Address::Quic { host, port } => Some(SocketAddr::new(host.parse().ok()?, *port)),
        _ => None,
    });
    let place = place.filter(|_| said.state == State::Live);
    Version { epoch: said.epoch, signed: record.timestamp().as_micros(), place }
}

fn now() -> Duration {
    // A process that is being taken down is on no host any more.
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State_> {
        self.state.lock().unwrap()
    }

    pub(crate) fn see(&self, machine: Machine, what: What) {
        self.lock().trace.push(now(), machine, what);
    }

    pub(crate) fn see_at(&self, at: Duration, machine: Machine, what: What) {
        self.lock().trace.push(at, machine, what);
    }

    pub(crate) fn take_trace(&self) -> Trace {
        std::mem::take(&mut self.lock().trace)
    }

    pub(crate) fn cut(&self, from: Option<Machine>, to: Option<Machine>) {
        self.lock().cuts.push((from, to));
    }

    /// Ends one of the cuts of this way.
    pub(crate) fn mend(&self, from: Option<Machine>, to: Option<Machine>) {
        let cuts = &mut self.lock().cuts;
        if let Some(position) = cuts.iter().position(|cut| *cut == (from, to)) {
            cuts.remove(position);
        }
    }

    pub(crate) fn mend_all(&self) {
        self.lock().cuts.clear();
    }

    pub(crate) fn occupy(&self, place: SocketAddr, occupant: Occupant) {
        let mut state = self.lock();
        if let Some(before) = state.occupants.insert(place, occupant) {
            state.left.insert(place, (now(), before));
        }
    }

    /// Who has sent what comes now from an address and has been on its way for at most so long: who is there, or has
    /// left while it was on its way. A stranger who has come since cannot be told from whoever left for that long; he stays for
    /// longer.
    pub(crate) fn sender(&self, place: SocketAddr, most_latency: Duration) -> Occupant {
        let state = self.lock();
        let left = state.left.get(&place).filter(|(until, _)| now() <= *until + most_latency);
        let occupant = state.occupants.get(&place).copied().flatten();
        occupant.or_else(|| left.and_then(|(_, occupant)| *occupant))
    }

    /// How far a machine's wall clock is ahead, in microseconds.
    pub(crate) fn clock(&self, machine: Machine) -> Arc<AtomicI64> {
        self.lock().clocks.entry(machine).or_default().clone()
    }

    pub(crate) fn jump(&self, machine: Machine, ahead: bool, by: Duration) {
        let by = i64::try_from(by.as_micros()).unwrap();
        self.clock(machine).fetch_add(if ahead { by } else { -by }, Ordering::SeqCst);
    }

    pub(crate) fn set_right(&self, machine: Machine) {
        self.clock(machine).store(0, Ordering::SeqCst);
    }

    pub(crate) fn signed(&self, vat: Machine, record: &SignedRecord) {
        self.see(vat, What::Signed { version: version(record) });
        let signed = Signed { id: record.id(), version: version(record), expires: record.record().expires };
        self.lock().signed.insert(record.packet().to_vec(), signed);
    }

    /// What a packet is that a server holds; it holds nothing that was not signed.
    pub(crate) fn version_of(&self, packet: &[u8]) -> Version {
        self.lock().signed.get(packet).expect("a server holds what a vat has signed").version
    }

    /// What an honest server knows, as far as it is of use by a machine's clock.
    pub(crate) fn as_usable(&self, machine: Machine, standing: Standing, packet: Option<&[u8]>) -> Standing {
        let ahead = self.clock(machine).load(Ordering::SeqCst);
        let state = self.lock();
        let signed = packet.and_then(|packet| state.signed.get(packet));
        if signed.is_some_and(|signed| signed.is_usable(ahead)) { standing } else { Standing::Missing }
    }

    pub(crate) fn begin_search(&self, finder: u8, vat: VatId) -> u32 {
        let mut state = self.lock();
        state.searches += 1;
        let number = state.searches;
        let searching = state.searching.entry(finder).or_default();
        searching.current = Some((number, vat));
        searching.touched.clear();
        number
    }

    fn finder_sends(&self, finder: u8, datagram: &[u8], to: SocketAddr) {
        let mut state = self.lock();
        let occupant = state.occupants.get(&to).copied().flatten();
        let state = &mut *state;
        let Some(searching) = state.searching.get_mut(&finder) else { return };
        let Some((search, id)) = searching.current else { return };
        let question = LookupQuestion::read(datagram, datagram.len());
        if let (Some(question), Some((Machine::Server(server), _))) = (&question, occupant) {
            // Repeated, it belongs to the search that asked first.
            let asked = searching.questions.entry(question.nonce).or_insert((search, server, id));
            if asked.0 != search {
                return;
            }
        }
        if let Some((Machine::Server(server), _)) = occupant {
            if name_of_dial(datagram).is_some() {
                state.trace.push(now(), Machine::Finder(finder), What::Unreadable { server, comes: false });
            }
            if searching.touched.insert(to) {
                state.trace.push(now(), Machine::Finder(finder), What::Asked { search, server });
            }
        } else if let Some(name) = name_of_dial(datagram)
            && searching.dials.insert(name.to_vec())
        {
            state.trace.push(now(), Machine::Finder(finder), What::Dialled { search, place: to });
        }
    }

    fn finder_receives(&self, finder: u8, datagram: &[u8], from: SocketAddr) {
        let ahead = self.clock(Machine::Finder(finder)).load(Ordering::SeqCst);
        let mut state = self.lock();
        let Some(answer) = LookupAnswer::read(datagram) else {
            if let Some(Some((Machine::Server(server), _))) = state.occupants.get(&from).copied() {
                state.trace.push(now(), Machine::Finder(finder), What::Unreadable { server, comes: true });
            }
            return;
        };
        let asked = state.searching.get(&finder).and_then(|searching| searching.questions.get(&answer.nonce));
        let Some((search, server, id)) = asked.copied() else { return };
        let known = answer.known.and_then(|known| Some((state.signed.get(known.packet)?, known.expired)));
        let known = known.filter(|(signed, _)| signed.id == id && !signed.is_early(ahead));
        // One that has ended says where the vat is not any more: whatever is older is out of date.
        let version = known.map(|(signed, _)| {
            let place = signed.version.place.filter(|_| !signed.is_over(ahead));
            Version { place, ..signed.version }
        });
        let lapsed = known.is_some_and(|(_, lapsed)| lapsed);
        state.trace.push(now(), Machine::Finder(finder), What::Heard { search, server, version, lapsed });
    }

    fn is_cut(&self, from: Machine, to: SocketAddr) -> bool {
        let state = self.lock();
        let to = state.occupants.get(&to).copied().flatten().map(|(machine, _)| machine);
        let is_of = |cut: Option<Machine>, machine| cut.is_none() || cut == machine;
        state.cuts.iter().any(|(cut_from, cut_to)| is_of(*cut_from, Some(from)) && is_of(*cut_to, to))
    }
}

impl Signed {
    fn is_usable(&self, ahead: i64) -> bool {
        !self.is_early(ahead) && !self.is_over(ahead)
    }

    /// Whether it is dated too far ahead of a clock.
    fn is_early(&self, ahead: i64) -> bool {
        self.version.signed > wall(now(), ahead).saturating_add(MAX_CLOCK_AHEAD).as_micros()
    }

    fn is_over(&self, ahead: i64) -> bool {
        self.expires <= wall(now(), ahead)
    }
}

/// By what a client names its connection in its first packets (RFC 9000 §17.2: the source connection id of an Initial
/// packet).
fn name_of_dial(datagram: &[u8]) -> Option<&[u8]> {
    let (first, rest) = datagram.split_first()?;
    let destination = rest.get(4..)?;
    let (length, destination) = destination.split_first()?;
    let (length, source) = destination.get(usize::from(*length)..)?.split_first()?;
    source.get(..usize::from(*length)).filter(|_| first & 0xf0 == 0xc0)
}

/// The wire at one machine.
pub(crate) struct WireTap {
    pub(crate) wire: Arc<Wire>,
    pub(crate) machine: Machine,
}

impl Tap for WireTap {
    fn lets_out(&self, datagram: &[u8], to: SocketAddr) -> bool {
        if let Machine::Finder(finder) = self.machine {
            self.wire.finder_sends(finder, datagram, to);
        }
        !self.wire.is_cut(self.machine, to)
    }

    fn comes_in(&self, datagram: &[u8], from: SocketAddr) {
        if let Machine::Finder(finder) = self.machine {
            self.wire.finder_receives(finder, datagram, from);
        }
    }
}
