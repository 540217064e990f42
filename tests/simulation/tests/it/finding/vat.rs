//! Vats that keep themselves registered with the real publisher, and what becomes of them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use schemas::{Address, IdentityKey, LocationRecord, RecordError, SearchPathEntry, SignedRecord, State};
use simulation::finding::{
    Machine, What,
    plan::{Fault, REGISTER_DEADLINE, RETRY_CAP, SERVERS, VALIDITY},
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, LocalSet, spawn_local},
    time::timeout,
};
use transport::Endpoint;
use vls_client::{Expected, Publisher, PublisherConfig, Reading, RecordDates, RecordSource};

use super::world::{DRAIN, Mutation, Process, World, id, key, until};

/// Within what time all vats start.
const STARTS_WITHIN: Duration = Duration::from_secs(1);

/// Signed records that are kept to be offered again: as many as the program `vat` keeps.
const KEPT_RECORDS: usize = 4;

/// What a running copy of a vat is told.
enum Command {
    Move {
        stranger: bool,
    },
    /// Register everywhere now.
    Nudge,
    /// Say so, and end.
    End(State),
    /// Write down what its publisher believes, and end.
    Finish,
}

/// A running program of a vat.
struct Copy {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
    radio: std::sync::Arc<crate::radio::Radio>,
}

pub(crate) async fn live_all(world: Rc<World>) -> turmoil::Result {
    for number in 0..world.plan.vats {
        spawn_local(live(world.clone(), number));
    }
    std::future::pending().await
}

/// The life of one vat, as the plan has it.
async fn live(world: Rc<World>, number: u8) {
    let machine = Machine::Vat(number);
    let mut epoch = 1;
    let starts_at = fastrand::Rng::with_seed(world.plan.seed ^ u64::from(number)).u32(0..1000);
    until(STARTS_WITHIN * starts_at / 1000).await;
    let mut copies = vec![Copy::start(&world, number, epoch).await];
    for (at, fault) in world.plan.faults.clone() {
        if fault.of_the_life_of() != Some(number) {
            continue;
        }
        until(at).await;
        world.wire.see(machine, What::Struck(fault));
        match fault {
            Fault::Moves { stranger, .. } => copies.iter().for_each(|copy| copy.tell(Command::Move { stranger })),
            Fault::Restarts { .. } => copies.drain(..).for_each(Copy::kill),
            Fault::Sleeps { .. } => copies.iter().for_each(|copy| copy.tell(Command::End(State::Dormant))),
            Fault::Departs { .. } => copies.iter().for_each(|copy| copy.tell(Command::End(State::Departed))),
            _ => {}
        }
        until(at + fault.lasts()).await;
        if !matches!(fault, Fault::Moves { .. } | Fault::Departs { .. }) {
            epoch += 1;
            copies.push(Copy::start(&world, number, epoch).await);
        }
    }
    if let Some(healed_at) = world.plan.healed_at {
        until(healed_at).await;
        copies.iter().for_each(|copy| copy.tell(Command::Nudge));
    }
    until(world.plan.ends_at).await;
    copies.iter().for_each(|copy| copy.tell(Command::Finish));
    for copy in copies {
        copy.task.await.expect("a vat does not panic");
    }
}

impl Copy {
    async fn start(world: &Rc<World>, number: u8, epoch: u64) -> Self {
        let machine = Machine::Vat(number);
        let process = world.start_process(machine, &key(machine), 0, epoch).await;
        world.wire.occupy(process.place, Some((machine, epoch)));
        process.see(What::Woke { epoch });
        process.see(What::Settled { epoch, place: process.place });
        let (commands, told) = mpsc::unbounded_channel();
        let (radio, world) = (process.radio.clone(), world.clone());
        let task = spawn_local(async move {
            let local = LocalSet::new();
            local.run_until(run(process, number, epoch, told)).await;
            if timeout(DRAIN, local).await.is_err() {
                world.wire.see(machine, What::Leaked);
            }
        });
        Self { commands, task, radio }
    }

    fn tell(&self, command: Command) {
        // One that was superseded has ended.
        let _ = self.commands.send(command);
    }

    fn kill(self) {
        self.task.abort();
        self.radio.unplug();
    }
}

/// The program of a vat, as far as it concerns finding.
async fn run(process: Process, number: u8, epoch: u64, mut told: mpsc::UnboundedReceiver<Command>) {
    spawn_local(accept_all(process.endpoint.clone()));
    let source = Rc::new(OwnRecord::new(&process, epoch));
    let publisher = publisher(&process, number, &source);
    let renews = process.world.mutation != Mutation::NoRenewal;
    if !renews {
        publisher.announce(Expected::Anything, REGISTER_DEADLINE).await;
    }
    if let Some(state) = serve(&process, &source, &publisher, &mut told, renews).await {
        source.state.set(state);
        publisher.renew(REGISTER_DEADLINE).await;
    }
    for stranger in source.strangers.take() {
        stranger.close().await;
    }
    drop((publisher, source));
    process.endpoint.close().await;
}

/// Keeps registered, and does what it is told. Gives what it shall say of itself before it ends.
async fn serve(
    process: &Process,
    source: &OwnRecord,
    publisher: &Publisher,
    told: &mut mpsc::UnboundedReceiver<Command>,
    renews: bool,
) -> Option<State> {
    // What is under way is not given up for a command.
    let running = publisher.run();
    tokio::pin!(running);
    loop {
        tokio::select! {
            biased;
            command = told.recv() => match command {
                Some(Command::Move { stranger }) => {
                    source.place.set(settle_elsewhere(process, source, stranger).await);
                    publisher.nudge();
                }
                Some(Command::Nudge) => publisher.nudge(),
                Some(Command::End(state)) => return Some(state),
                Some(Command::Finish) | None => {
                    believe(process, publisher);
                    return None;
                }
            },
            superseded = &mut running, if renews => {
                process.see(What::Superseded { epoch: source.epoch, by: superseded.record.record().epoch });
                return None;
            }
        }
    }
}

fn publisher(process: &Process, number: u8, source: &Rc<OwnRecord>) -> Publisher {
    let mut config = PublisherConfig::default();
    (config.timing.retry_cap, config.timing.register_deadline) = (RETRY_CAP, REGISTER_DEADLINE);
    config.clock = process.wall_clock();
    let mut random = process.random.borrow_mut().fork();
    config.random = Box::new(move || random.u64(..));
    let path = process.world.path(number % SERVERS);
    Publisher::new(process.endpoint.clone(), path, source.clone(), config)
}

/// Takes everybody in, and keeps the connections.
async fn accept_all(endpoint: Endpoint) {
    let mut connections = Vec::new();
    while let Some(incoming) = endpoint.accept().await {
        connections.extend(incoming.accept().await);
    }
}

/// Takes another address; a stranger may take the old one.
async fn settle_elsewhere(process: &Process, source: &OwnRecord, stranger: bool) -> SocketAddr {
    let old = source.place.get();
    let port = process.radio.rebind().await.expect("a free port");
    let place = SocketAddr::new(old.ip(), port);
    process.world.wire.occupy(place, Some((process.machine, source.epoch)));
    process.world.wire.occupy(old, None);
    process.see(What::Settled { epoch: source.epoch, place });
    if stranger {
        let its_key = IdentityKey::from_seed(&[id(process.machine).as_bytes()[0]; 32]);
        let start = u64::from(port);
        let stranger = process.world.start_process(process.machine, &its_key, old.port(), start).await;
        spawn_local(accept_all(stranger.endpoint.clone()));
        source.strangers.borrow_mut().push(stranger.endpoint);
    }
    place
}

/// Writes down with whom the publisher believes to be registered.
fn believe(process: &Process, publisher: &Publisher) {
    let Machine::Vat(number) = process.machine else { return };
    let now = vls_client::Clock::now(&*process.wall_clock()).wall;
    for report in publisher.reports() {
        let is_leased = report.leased_until.is_some_and(|until| until > now);
        let SearchPathEntry::Vls { id: its, .. } = report.entry else { continue };
        let server = (0..SERVERS).find(|server| id(Machine::Server(*server)) == its);
        if let Some(server) = server.filter(|_| report.is_registered() && is_leased) {
            let standing = process.world.knows(server, number).map(|known| known.standing);
            process.see(What::Believes { server, standing });
        }
    }
}

/// Signs what a vat says of itself, by the rules of the program `vat`.
struct OwnRecord {
    machine: Machine,
    key: IdentityKey,
    wire: std::sync::Arc<super::wire::Wire>,
    epoch: u64,
    place: Cell<SocketAddr>,
    state: Cell<State>,
    /// The last one first: by the vat's clock, and by those of servers.
    newest: RefCell<VecDeque<SignedRecord>>,
    dates: RecordDates,
    /// Who has its former places.
    strangers: RefCell<Vec<Endpoint>>,
}

impl OwnRecord {
    fn new(process: &Process, epoch: u64) -> Self {
        Self {
            machine: process.machine,
            key: key(process.machine),
            wire: process.world.wire.clone(),
            epoch,
            place: Cell::new(process.place),
            state: Cell::new(State::Live),
            newest: RefCell::default(),
            dates: RecordDates::default(),
            strangers: RefCell::default(),
        }
    }
}

impl RecordSource for OwnRecord {
    fn current(&self, now: Reading) -> Result<SignedRecord, RecordError> {
        if let Reading::Own(_) = now {
            self.wire.see(self.machine, What::Offers);
        }
        let (place, state) = (self.place.get(), self.state.get());
        let address = Address::Quic { host: place.ip().to_string(), port: place.port() };
        let addresses = if state == State::Live { vec![address] } else { Vec::new() };
        let still_says = |newest: &&SignedRecord| {
            let said = newest.record();
            let is_same = said.state == state && said.addresses == addresses;
            let lasts = said.expires.saturating_since(now.time()) >= VALIDITY / 2;
            is_same && lasts && self.dates.may_offer(newest.timestamp(), now)
        };
        if let Some(newest) = self.newest.borrow().iter().find(still_says) {
            return Ok(newest.clone());
        }
        let timestamp = self.dates.next(now);
        let record = LocationRecord {
            epoch: self.epoch,
            turn: 1,
            chain_head: None,
            state,
            expires: timestamp.saturating_add(VALIDITY),
            addresses,
            search_path: Vec::new(),
            document: None,
        };
        let signed = SignedRecord::sign(&self.key, &record, timestamp)?;
        self.wire.signed(self.machine, &signed);
        let mut newest = self.newest.borrow_mut();
        newest.truncate(KEPT_RECORDS - 1);
        newest.push_front(signed.clone());
        Ok(signed)
    }

    /// Each start of a vat has an epoch of its own here.
    fn is_own(&self, record: &SignedRecord) -> bool {
        record.record().epoch == self.epoch
    }

    fn accepted(&self, record: &SignedRecord) {
        self.dates.accepted(record.timestamp());
    }
}
