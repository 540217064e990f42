//! One run: the hosts of a plan on turmoil's network, and what strikes them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use schemas::IdentityKey;
use simulation::{
    Breach, Host, Plan, Trace, What, judge,
    plan::{CALLERS, Fault, Way},
};
use transport::{Endpoint, EndpointConfig, Greeting, OutputGate, SessionLimits, SessionOptions};
use turmoil::Sim;

use crate::{
    caller,
    clock::{Clock, SimulatedRuntime},
    live,
    radio::{Air, Radio},
    vat,
};

/// How finely time passes. A datagram arrives at the next whole one; within it, timers are exact.
const TICK: Duration = Duration::from_millis(4);

/// The caller that has live references; the other keeps its session itself.
pub(crate) const LIVE_CALLER: u8 = 1;

/// Where the vat listens.
pub(crate) const PORT: u16 = 4433;

/// A way in which the programs are made wrong, to see that the laws notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// The vat says what is not durable yet.
    GateAlwaysOpen,
    /// A caller silently repeats a call that failed with its session.
    SilentRetry,
}

/// What came of a run.
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) trace: Trace,
    pub(crate) durable: Vec<u64>,
}

impl Report {
    pub(crate) fn breaches(&self) -> Vec<Breach> {
        judge(&self.plan, &self.trace, &self.durable)
    }
}

/// What the hosts of a run share: the observer's notebook, and what outlives a process.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) mutation: Mutation,
    trace: RefCell<Trace>,
    /// The vat's disk: the calls it has carried out and made durable.
    pub(crate) disk: RefCell<Vec<u64>>,
    /// Each host's: how often it was started.
    epochs: RefCell<HashMap<Host, u64>>,
    sessions: Cell<u32>,
    calls: Cell<u64>,
    air: Arc<Air>,
    /// Each host's socket.
    radios: RefCell<HashMap<Host, Arc<Radio>>>,
}

/// One start of a host's program.
pub(crate) struct Process {
    pub(crate) host: Host,
    pub(crate) epoch: u64,
    pub(crate) endpoint: Endpoint,
    pub(crate) clock: Arc<Clock>,
    incarnation: [u8; 16],
    random: RefCell<fastrand::Rng>,
    pub(crate) world: Rc<World>,
}

/// Runs a plan to its end.
pub(crate) fn run(plan: Plan, mutation: Mutation) -> Report {
    let world = Rc::new(World {
        mutation,
        trace: RefCell::default(),
        disk: RefCell::default(),
        epochs: RefCell::default(),
        sessions: Cell::new(0),
        calls: Cell::new(0),
        air: Arc::default(),
        radios: RefCell::default(),
        plan,
    });
    let plan = &world.plan;
    world.air.loss.store(plan.weather.loss, Ordering::SeqCst);
    world.air.duplication.store(plan.weather.duplication, Ordering::SeqCst);
    let mut simulation = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(TICK)
        .min_message_latency(plan.weather.least_latency)
        .max_message_latency(plan.weather.most_latency)
        .udp_capacity(4096)
        .simulation_duration(plan.ends_at + TICK)
        .build();
    add_host(&mut simulation, &world, Host::Vat, vat::serve);
    for caller in 0..CALLERS {
        let host = Host::Caller(caller);
        if caller == LIVE_CALLER {
            add_host(&mut simulation, &world, host, live::call);
        } else {
            add_host(&mut simulation, &world, host, caller::call);
        }
    }
    strike_and_step(&mut simulation, &world);
    drop(simulation);
    let (trace, durable) = (world.trace.take(), world.disk.take());
    Report { plan: world.plan.clone(), trace, durable }
}

fn add_host<F>(simulation: &mut Sim<'_>, world: &Rc<World>, host: Host, program: impl Fn(Process) -> F + Copy + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let world = world.clone();
    simulation.host(name(host), move || {
        let world = world.clone();
        async move {
            program(world.start(host).await?).await;
            Ok(())
        }
    });
}

/// What strikes from outside of the hosts, as a list of things to do at given times; and the passing of time.
fn strike_and_step(simulation: &mut Sim<'_>, world: &World) {
    let mut actions: Vec<(Duration, Action)> = Vec::new();
    for &(at, fault) in &world.plan.faults {
        actions.push((at, Action::Begin(fault)));
        actions.push((at + fault.lasts(), Action::End(fault)));
    }
    actions.push((world.plan.healed_at, Action::Heal));
    actions.sort_by_key(|(at, _)| *at);
    let mut actions = actions.into_iter().peekable();
    while simulation.elapsed() < world.plan.ends_at {
        while let Some((_, action)) = actions.next_if(|(at, _)| *at <= simulation.elapsed()) {
            act(simulation, world, action);
        }
        simulation.step().expect("no program ends by itself");
    }
}

enum Action {
    Begin(Fault),
    End(Fault),
    Heal,
}

fn act(simulation: &mut Sim<'_>, world: &World, action: Action) {
    let air = &world.air;
    match action {
        // These strike from within the host.
        Action::Begin(Fault::Rebind { .. } | Fault::Jump { .. })
        | Action::End(Fault::Rebind { .. } | Fault::Jump { .. }) => {}
        Action::Begin(fault) => {
            let host = match fault {
                Fault::Crash { host, .. } => host,
                Fault::Cut { caller, .. } => Host::Caller(caller),
                _ => Host::Vat,
            };
            world.trace.borrow_mut().push(simulation.elapsed(), host, What::Struck(fault));
            match fault {
                Fault::Cut { caller, way, .. } => {
                    let (caller, vat) = (name(Host::Caller(caller)), name(Host::Vat));
                    match way {
                        Way::Both => simulation.partition(caller, vat),
                        Way::Towards => simulation.partition_oneway(caller, vat),
                        Way::Back => simulation.partition_oneway(vat, caller),
                    }
                }
                Fault::Crash { host, .. } => simulation.crash(name(host)),
                Fault::Storm { loss, .. } => air.loss.store(loss, Ordering::SeqCst),
                Fault::Rebind { .. } | Fault::Jump { .. } => {}
            }
        }
        // Of faults that overlap the first end ends them all, but for a start that finds the host running.
        Action::End(Fault::Cut { caller, .. }) => simulation.repair(name(Host::Caller(caller)), name(Host::Vat)),
        Action::End(Fault::Crash { host, .. }) => {
            if !simulation.is_host_running(name(host)) {
                simulation.bounce(name(host));
            }
        }
        Action::End(Fault::Storm { .. }) => air.loss.store(world.plan.weather.loss, Ordering::SeqCst),
        Action::Heal => {
            air.loss.store(0, Ordering::SeqCst);
            for caller in 0..CALLERS {
                simulation.repair(name(Host::Caller(caller)), name(Host::Vat));
            }
        }
    }
}

fn name(host: Host) -> &'static str {
    const CALLER_NAMES: [&str; CALLERS as usize] = ["caller-0", "caller-1"];
    match host {
        Host::Vat => "vat",
        Host::Caller(number) => CALLER_NAMES[usize::from(number)],
    }
}

pub(crate) fn key(host: Host) -> IdentityKey {
    IdentityKey::from_seed(&match host {
        Host::Vat => [1; 32],
        Host::Caller(number) => [2 + number; 32],
    })
}

/// Where the vat is.
pub(crate) fn vat_address() -> SocketAddr {
    (turmoil::lookup(name(Host::Vat)), PORT).into()
}

impl World {
    pub(crate) fn see(&self, host: Host, what: What) {
        let now = turmoil::sim_elapsed().expect("a host sees it");
        self.trace.borrow_mut().push(now, host, what);
    }

    pub(crate) fn next_session(&self) -> u32 {
        self.sessions.set(self.sessions.get() + 1);
        self.sessions.get()
    }

    pub(crate) fn next_call(&self) -> u64 {
        self.calls.set(self.calls.get() + 1);
        self.calls.get()
    }

    async fn start(self: Rc<Self>, host: Host) -> io::Result<Process> {
        let epoch = {
            let mut epochs = self.epochs.borrow_mut();
            let epoch = epochs.entry(host).or_default();
            *epoch += 1;
            *epoch
        };
        self.see(host, What::Woke { epoch });
        let mut random =
            fastrand::Rng::with_seed(self.plan.seed ^ (key(host).id().as_bytes()[0] as u64) << 32 ^ epoch << 48);
        let (mut seed, mut incarnation) = ([0; 32], [0; 16]);
        random.fill(&mut seed);
        random.fill(&mut incarnation);
        let clock = Arc::new(Clock::default());
        let port = if host == Host::Vat { PORT } else { 0 };
        if let Some(dead) = self.radios.borrow_mut().remove(&host) {
            dead.unplug();
        }
        let radio = Arc::new(Radio::bind(port, self.air.clone(), random.u64(..)).await?);
        self.radios.borrow_mut().insert(host, radio.clone());
        let mut config = EndpointConfig::default();
        config.random_seed = Some(seed);
        let runtime = Arc::new(SimulatedRuntime(clock.clone()));
        let endpoint = Endpoint::with_socket(&key(host), radio.clone(), runtime, config).expect("the socket is bound");
        tokio::task::spawn_local(self.clone().fate(host, radio, clock.clone()));
        Ok(Process { host, epoch, endpoint, clock, incarnation, random: RefCell::new(random), world: self })
    }

    /// What strikes one host from within.
    async fn fate(self: Rc<Self>, host: Host, radio: Arc<Radio>, clock: Arc<Clock>) {
        for &(at, fault) in &self.plan.faults {
            let now = turmoil::sim_elapsed().expect("on a host");
            let is_ours = match fault {
                Fault::Rebind { caller } => host == Host::Caller(caller),
                Fault::Jump { host: struck, .. } => host == struck,
                _ => false,
            };
            let Some(left) = at.checked_sub(now).filter(|_| is_ours) else { continue };
            pause(left).await;
            self.see(host, What::Struck(fault));
            match fault {
                Fault::Rebind { .. } => _ = radio.rebind().await.expect("a free port"),
                Fault::Jump { by, .. } => clock.jump(by),
                _ => {}
            }
        }
    }
}

impl Process {
    pub(crate) fn see(&self, what: What) {
        self.world.see(self.host, what);
    }

    pub(crate) fn options(&self, bootstrap: Option<capnp::capability::Client>, gate: OutputGate) -> SessionOptions {
        SessionOptions {
            greeting: Greeting { epoch: self.epoch, incarnation: self.incarnation, program: "simulation".to_owned() },
            bootstrap,
            gate,
            limits: SessionLimits::default(),
        }
    }

    /// Any number, drawn from this process's part of the seed.
    pub(crate) fn draw_number(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    /// A small number, drawn from this process's part of the seed.
    pub(crate) fn draw(&self, range: RangeInclusive<u8>) -> u8 {
        self.random.borrow_mut().u8(range)
    }

    /// A duration in milliseconds, drawn from this process's part of the seed.
    pub(crate) fn draw_millis(&self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.random.borrow_mut().u64(range))
    }
}

/// Lets simulated time pass.
pub(crate) async fn pause(duration: Duration) {
    use tokio::time::sleep;
    sleep(duration).await;
}
