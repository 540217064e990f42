//! One run: the machines of a plan on turmoil's network, and what strikes them.
//!
//! Each server is a host of turmoil's, which can be crashed. All vats share one host, and all finders another, each with a
//! socket, a set of tasks and a clock of its own: seventy hosts would spend most of their time on passing time.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use checkpoint::simulated::SimulatedDisk;
use schemas::{IdentityKey, SearchPathEntry, VatId};
use simulation::{
    finding::{
        Breach, Judgement, Machine, Plan, Standing, Trace, What, judge,
        plan::{FINDERS, Fault, Lie, SERVERS, VATS},
    },
    plan::Way,
};
use transport::{Endpoint, EndpointConfig};
use turmoil::Sim;
use vls_server::{Seen, Server};

use super::{
    finder, server, vat,
    wire::{Wire, WireTap},
};
use crate::{
    clock::{Clock, SimulatedRuntime, WallClock},
    radio::{Air, Radio},
};

/// Where servers listen.
pub(crate) const PORT: u16 = 4433;

/// How long after its end something of a program may still run: a lookup goes on for five seconds to learn, and what closes
/// waits for the other side.
pub(crate) const DRAIN: Duration = Duration::from_secs(8);

/// A way in which programs are made wrong, to see that the laws notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// Finders use the first record that comes, whatever comes behind it.
    Trusting,
    /// Publishers register once and never renew.
    NoRenewal,
    /// Servers have room for a few records only, and make it by giving up others.
    Crowded,
}

/// What came of a run.
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) trace: Trace,
}

impl Report {
    pub(crate) fn judged(&self) -> Judgement {
        judge(&self.plan, &self.trace)
    }

    pub(crate) fn breaches(&self) -> Vec<Breach> {
        self.judged().breaches
    }
}

/// What the machines of a run share.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) mutation: Mutation,
    pub(crate) wire: Arc<Wire>,
    air: Arc<Air>,
    pub(crate) servers: RefCell<Vec<Place>>,
}

/// A server's machine.
#[derive(Default)]
pub(crate) struct Place {
    pub(crate) disk: Option<Arc<SimulatedDisk>>,
    pub(crate) running: Option<Rc<Server>>,
    pub(crate) radio: Option<Arc<Radio>>,
    pub(crate) starts: u64,
    pub(crate) lie: Option<Lie>,
    /// The packets that it had when it was replaced by one that lies.
    pub(crate) frozen: HashMap<[u8; 32], Vec<u8>>,
}

/// What a server knows of a vat.
pub(crate) struct Knowledge {
    pub(crate) standing: Standing,
    pub(crate) packet: Option<Vec<u8>>,
    /// How long ago its lease has begun.
    pub(crate) age: Option<Duration>,
}

/// What one program has of its machine.
pub(crate) struct Process {
    pub(crate) machine: Machine,
    pub(crate) endpoint: Endpoint,
    pub(crate) radio: Arc<Radio>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) ahead: Arc<AtomicI64>,
    pub(crate) random: RefCell<fastrand::Rng>,
    pub(crate) place: SocketAddr,
    pub(crate) world: Rc<World>,
}

/// Runs a plan to its end.
pub(crate) fn run(plan: Plan, mutation: Mutation) -> Report {
    let servers = (0..SERVERS).map(|_| Place { disk: Some(SimulatedDisk::new()), ..Place::default() }).collect();
    let (wire, air) = (Arc::default(), Arc::<Air>::default());
    let world = Rc::new(World { plan, mutation, wire, air, servers: RefCell::new(servers) });
    let plan = &world.plan;
    world.air.loss.store(plan.weather.loss, Ordering::SeqCst);
    world.air.duplication.store(plan.weather.duplication, Ordering::SeqCst);
    let mut simulation = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(plan.tick)
        .min_message_latency(plan.weather.least_latency)
        .max_message_latency(plan.weather.most_latency)
        .udp_capacity(4096)
        .simulation_duration(plan.ends_at + DRAIN * 2)
        .build();
    for number in 0..SERVERS {
        let world = world.clone();
        simulation.host(server_name(number), move || server::serve(world.clone(), number));
    }
    let vats = world.clone();
    simulation.host("vats", move || vat::live_all(vats.clone()));
    let finders = world.clone();
    simulation.host("finders", move || finder::search_all(finders.clone()));
    strike_and_step(&mut simulation, &world);
    for place in &mut *world.servers.borrow_mut() {
        close(place);
    }
    drop(simulation);
    Report { plan: world.plan.clone(), trace: world.wire.take_trace() }
}

/// What strikes from outside of the machines, as a list of things to do at given times; and the passing of time.
fn strike_and_step(simulation: &mut Sim<'_>, world: &World) {
    let mut actions: Vec<(Duration, Action)> = Vec::new();
    for &(at, fault) in &world.plan.faults {
        actions.push((at, Action::Begin(fault)));
        actions.push((at + fault.lasts(), Action::End(fault)));
    }
    actions.extend(world.plan.healed_at.map(|at| (at, Action::Heal)));
    actions.sort_by_key(|(at, _)| *at);
    let mut actions = actions.into_iter().peekable();
    while simulation.elapsed() < world.plan.ends_at + DRAIN {
        while let Some((_, action)) = actions.next_if(|(at, _)| *at <= simulation.elapsed()) {
            world.act(simulation, action);
        }
        simulation.step().expect("no program fails");
    }
}

enum Action {
    Begin(Fault),
    End(Fault),
    Heal,
}

impl World {
    fn act(&self, simulation: &mut Sim<'_>, action: Action) {
        match action {
            Action::Begin(fault) => {
                // What a vat's program does is told by itself.
                if fault.of_the_life_of().is_none() {
                    self.wire.see_at(simulation.elapsed(), struck(fault), What::Struck(fault));
                }
                self.begin(simulation, fault);
            }
            Action::End(Fault::Storm { .. }) => self.air.loss.store(self.plan.weather.loss, Ordering::SeqCst),
            Action::End(Fault::Crash { server, .. }) => self.start(simulation, server),
            Action::End(Fault::Lies { server, .. }) => {
                // Unless it was ended, or told to lie in another way, meanwhile.
                if self.servers.borrow()[usize::from(server)].lie.is_some() {
                    self.stop(simulation, server);
                    self.start(simulation, server);
                }
            }
            Action::End(fault) => ways(fault).into_iter().for_each(|(from, to)| self.wire.mend(from, to)),
            Action::Heal => {
                self.air.loss.store(0, Ordering::SeqCst);
                self.air.duplication.store(0, Ordering::SeqCst);
                self.wire.mend_all();
            }
        }
    }

    fn begin(&self, simulation: &mut Sim<'_>, fault: Fault) {
        match fault {
            Fault::Crash { server, empty, .. } => {
                self.stop(simulation, server);
                if empty {
                    self.servers.borrow_mut()[usize::from(server)].disk = Some(SimulatedDisk::new());
                }
            }
            Fault::Lies { server, lie, .. } => {
                let is_honest = self.servers.borrow()[usize::from(server)].running.is_some();
                if is_honest {
                    let frozen = self.packets(server);
                    self.stop(simulation, server);
                    let place = &mut self.servers.borrow_mut()[usize::from(server)];
                    (place.lie, place.frozen) = (Some(lie), frozen);
                    simulation.bounce(server_name(server));
                }
            }
            Fault::Jump { machine, ahead, by } => self.wire.jump(machine, ahead, by),
            Fault::SetRight { machine } => self.wire.set_right(machine),
            Fault::Storm { loss, .. } => self.air.loss.store(loss, Ordering::SeqCst),
            fault => ways(fault).into_iter().for_each(|(from, to)| self.wire.cut(from, to)),
        }
    }

    /// A server's power fails: what its disk has is what was synced, and by chance some of the rest.
    fn stop(&self, simulation: &mut Sim<'_>, server: u8) {
        let place = &mut self.servers.borrow_mut()[usize::from(server)];
        place.lie = None;
        if let Some(disk) = place.disk.as_ref().filter(|_| place.running.is_some()) {
            let mut history = disk.history();
            history.advance(history.len());
            place.disk = Some(history.crash(self.plan.seed ^ place.starts));
        }
        simulation.crash(server_name(server));
        close(place);
    }

    fn start(&self, simulation: &mut Sim<'_>, server: u8) {
        if !simulation.is_host_running(server_name(server)) {
            simulation.bounce(server_name(server));
        }
    }

    /// All packets that a server has.
    fn packets(&self, server: u8) -> HashMap<[u8; 32], Vec<u8>> {
        let packet = |vat| Some((*id(Machine::Vat(vat)).as_bytes(), self.knows(server, vat)?.packet?));
        (0..self.plan.vats).filter_map(packet).collect()
    }

    /// What a server knows of a vat; none if it is down or lies, or does not say so now.
    pub(crate) fn knows(&self, server: u8, vat: u8) -> Option<Knowledge> {
        let running = self.servers.borrow()[usize::from(server)].running.clone()?;
        let (registry, id) = (running.registry(), id(Machine::Vat(vat)));
        registry.see(id.as_bytes(), registry.clock().now(), |seen| match seen {
            Seen::Early => None,
            Seen::Nothing => Some(Knowledge { standing: Standing::Missing, packet: None, age: None }),
            Seen::Record { packet, expired, age, .. } => {
                let version = self.wire.version_of(packet);
                let standing = if expired { Standing::Lapsed(version) } else { Standing::Live(version) };
                Some(Knowledge { standing, packet: Some(packet.to_vec()), age: Some(age) })
            }
        })
    }

    /// Everybody's search path, beginning with one of the servers.
    pub(crate) fn path(&self, first: u8) -> Vec<SearchPathEntry> {
        let entry = |number: u8| {
            let number = (first + number) % SERVERS;
            let host = turmoil::lookup(server_name(number)).to_string();
            SearchPathEntry::Vls { id: id(Machine::Server(number)), host, port: PORT }
        };
        (0..SERVERS).map(entry).collect()
    }

    /// Starts a program: its socket, its endpoint, its clocks.
    pub(crate) async fn start_process(
        self: &Rc<Self>,
        machine: Machine,
        key: &IdentityKey,
        port: u16,
        start: u64,
    ) -> Process {
        let id = key.id();
        let machine_seed = u64::from(id.as_bytes()[0]) << 32 ^ u64::from(id.as_bytes()[1]) << 40 ^ start << 48;
        let mut random = fastrand::Rng::with_seed(self.plan.seed ^ machine_seed);
        let mut seed = [0; 32];
        random.fill(&mut seed);
        let tap = Box::new(WireTap { wire: self.wire.clone(), machine });
        let bound = Radio::bind_tapped(port, self.air.clone(), random.u64(..), Some(tap)).await;
        let radio = Arc::new(bound.expect("the port is free"));
        let place = SocketAddr::new(own_address(machine), radio.port());
        let clock = Arc::new(Clock::default());
        let mut config = EndpointConfig::default();
        config.random_seed = Some(seed);
        let runtime = Arc::new(SimulatedRuntime(clock.clone()));
        let endpoint = Endpoint::with_socket(key, radio.clone(), runtime, config).expect("the socket is bound");
        let (ahead, world) = (self.wire.clock(machine), self.clone());
        Process { machine, endpoint, radio, clock, ahead, random: RefCell::new(random), place, world }
    }
}

impl Process {
    pub(crate) fn wall_clock(&self) -> Rc<WallClock> {
        Rc::new(WallClock::of_machine(self.clock.clone(), self.ahead.clone()))
    }

    pub(crate) fn see(&self, what: What) {
        self.world.wire.see(self.machine, what);
    }

    pub(crate) fn number(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }
}

/// Ends a server whose machine is off, as far as it still is something.
fn close(place: &mut Place) {
    if let Some(server) = place.running.take() {
        // Commits what was queued to a disk that nobody will ever read; the threads of the store end.
        let _ = server.registry().close();
    }
}

/// The ways that a fault closes.
fn ways(fault: Fault) -> Vec<(Option<Machine>, Option<Machine>)> {
    let (server, other, way) = match fault {
        Fault::Cut { server, other, way, .. } => (server, Some(other), way),
        Fault::Isolate { server, way, .. } => (server, None, way),
        _ => return Vec::new(),
    };
    let server = Some(Machine::Server(server));
    match way {
        Way::Both => vec![(other, server), (server, other)],
        Way::Towards => vec![(other, server)],
        Way::Back => vec![(server, other)],
    }
}

fn struck(fault: Fault) -> Machine {
    match fault {
        Fault::Cut { server, .. }
        | Fault::Isolate { server, .. }
        | Fault::Crash { server, .. }
        | Fault::Lies { server, .. } => Machine::Server(server),
        Fault::Jump { machine, .. } | Fault::SetRight { machine } => machine,
        Fault::Moves { vat, .. }
        | Fault::Restarts { vat, .. }
        | Fault::Forks { vat }
        | Fault::Sleeps { vat, .. }
        | Fault::Departs { vat } => Machine::Vat(vat),
        // Everybody.
        Fault::Storm { .. } => Machine::Server(0),
    }
}

fn own_address(machine: Machine) -> IpAddr {
    turmoil::lookup(match machine {
        Machine::Server(number) => server_name(number),
        Machine::Vat(_) => "vats",
        Machine::Finder(_) => "finders",
    })
}

fn server_name(number: u8) -> &'static str {
    const NAMES: [&str; SERVERS as usize] = ["server-0", "server-1", "server-2"];
    NAMES[usize::from(number)]
}

pub(crate) fn key(machine: Machine) -> IdentityKey {
    IdentityKey::from_seed(&match machine {
        Machine::Server(number) => [10 + number; 32],
        Machine::Vat(number) => [40 + number; 32],
        Machine::Finder(number) => [100 + number; 32],
    })
}

/// The id of a machine's key. Computed once: it is asked for so often that it would take most of the time of a run.
pub(crate) fn id(machine: Machine) -> VatId {
    static IDS: LazyLock<HashMap<Machine, VatId>> = LazyLock::new(|| {
        let servers = (0..SERVERS).map(Machine::Server);
        let vats = (0..VATS).map(Machine::Vat);
        let finders = (0..FINDERS).map(Machine::Finder);
        servers.chain(vats).chain(finders).map(|machine| (machine, key(machine).id())).collect()
    });
    IDS[&machine]
}

/// Waits until a moment of the run.
pub(crate) async fn until(at: Duration) {
    let left = at.saturating_sub(turmoil::sim_elapsed().expect("on a host"));
    crate::world::pause(left).await;
}
