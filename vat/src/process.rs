//! A vat awake: the process of `vat run`.
//!
//! Waking (R7): lock, open and verify the checkpoint; ask the search path for the vat's own record, the
//! only witness against an older copy of the folder; refuse if it knows more than the checkpoint; make the
//! next epoch durable; listen; publish with compare-and-swap, so that of two copies that wake at once one
//! loses. Only then is anyone served.
//!
//! The witness is asked *before* the next epoch is made durable. The other way round, the second attempt
//! of a refused copy would find its own epoch higher than the witness's and be believed.
//!
//! Awake: each event is a turn of the engine; its number is told to the output gate, and the committer's
//! word that it is durable opens the gate (R3). The first error of the disk poisons the gate and ends the
//! process (R5).
//!
//! Sleep: no new sessions, what was answered is flushed, a dormant record is published, the checkpoint is
//! closed.

mod addresses;
mod backups;
mod registration;
mod sessions;

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use checkpoint::{Durable, FileDisk, Position, Protection, Store, StoreError, StoreOptions};
use schemas::{Address, Coded, ErrorCode, State, Timestamp, VatId, vat_capnp};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use transport::{BindError, Endpoint, EndpointConfig, LocalListener, OutputGate};
use vls_client::{EntryReport, Expected, Publisher, PublisherConfig, Resolver, ResolverConfig};

pub(crate) use addresses::publishable_addresses;
use backups::Backups;
use registration::{OwnRecord, Seen, Standing};
use sessions::Sessions;

use crate::{
    Kinds,
    backup::{BackupError, Plan},
    config::{Config, Witness},
    core::{Vat, VatError},
    engine::{Clock, CommitStart, Outputs},
    home::{Home, HomeError, Name, make_folder},
    limits::{ANNOUNCE_DEADLINE, DRAIN_DEADLINE, REVIEW_INTERVAL, WITNESS_DEADLINE},
    object::wire_error,
    service::{OwnerService, VatService},
};

/// The machine's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Rc::new(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    })
}

/// How to wake a vat.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Go on although a location server knows more than the checkpoint.
    pub take_over: bool,
}

/// What a waking or running vat has to say.
#[derive(Debug)]
pub enum Report {
    /// Something that the owner should know.
    Notice(String),
    /// It is live.
    Live(Live),
}

/// The state of a vat that has just become live.
#[derive(Debug, Clone)]
pub struct Live {
    /// Its id.
    pub id: VatId,
    /// The addresses that it published.
    pub addresses: Vec<Address>,
    /// The epoch that it began.
    pub epoch: u64,
    /// The turn that it goes on from.
    pub turn: u64,
    /// How each search path entry took the registration.
    pub registrations: Vec<EntryReport>,
}

/// Why a vat did not wake, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Its places cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Its checkpoint cannot be opened, or stopped taking turns.
    #[error(transparent)]
    Checkpoint(#[from] StoreError),
    /// The disk failed while the vat was awake.
    #[error("the vat stopped: {0}")]
    Disk(Arc<StoreError>),
    /// The disk did not answer when the vat was to go to sleep.
    #[error("the disk did not make the newest turns durable within {seconds} s; they were not acknowledged")]
    DiskSilent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// It cannot be opened as a vat.
    #[error(transparent)]
    Vat(#[from] VatError),
    /// It cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It cannot listen on its local socket.
    #[error("the local socket: {0}")]
    Local(#[from] transport::LocalError),
    /// A location server knows a later turn.
    #[error(
        "the checkpoint of {name} stands at turn {own_turn} (epoch {own_epoch}), but the vat itself has signed that it \
         reached turn {seen_turn} (epoch {seen_epoch}), as {witness} shows: this folder is an older copy, or \
         another copy is alive"
    )]
    RolledBack {
        /// The vat's name here.
        name: Name,
        /// Turn of the checkpoint.
        own_turn: u64,
        /// Epoch of the checkpoint.
        own_epoch: u64,
        /// Turn of the record.
        seen_turn: u64,
        /// Epoch of the record.
        seen_epoch: u64,
        /// Who showed the record.
        witness: String,
    },
    /// A location server knows a later epoch.
    #[error(
        "{name} was started somewhere else: epoch {seen_epoch} (turn {seen_turn}) is registered, this copy has epoch \
         {own_epoch} (turn {own_turn})"
    )]
    Fenced {
        /// The vat's name here.
        name: Name,
        /// Epoch of this copy.
        own_epoch: u64,
        /// Turn of this copy.
        own_turn: u64,
        /// Epoch of the record.
        seen_epoch: u64,
        /// Turn of the record.
        seen_turn: u64,
    },
    /// The witness is required and nobody answered.
    #[error("witness = \"required\", and no location server said whether a newer copy exists:\n{reasons}")]
    NoWitness {
        /// One line per entry.
        reasons: String,
    },
    /// The operating system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Coded for RunError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Home(error) => error.code(),
            Self::Checkpoint(error) => error.code(),
            Self::Disk(error) => error.code(),
            Self::Vat(error) => error.code(),
            Self::Bind(error) => error.code(),
            Self::Local(error) => error.code(),
            Self::DiskSilent { .. } => ErrorCode::CheckpointDisk,
            Self::RolledBack { .. } => ErrorCode::VatRolledBack,
            Self::Fenced { .. } => ErrorCode::VatFenced,
            Self::NoWitness { .. } => ErrorCode::VlsNoAnswer,
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::RolledBack { name, own_turn, seen_turn, .. } => Some(format!(
                "Find the newer copy. Only if it is lost: `vat run {name} --take-over` goes on from turn {own_turn} and \
                 gives up what turns {} to {seen_turn} did.",
                own_turn + 1
            )),
            Self::Fenced { name, .. } => {
                Some(format!("Put the other copy to sleep. Only if it is lost: `vat run {name} --take-over`."))
            }
            Self::Home(error) => error.next(),
            Self::Checkpoint(error) => error.next(),
            Self::Disk(error) => error.next(),
            Self::Vat(error) => error.next(),
            Self::Bind(error) => error.next(),
            Self::Local(error) => error.next(),
            Self::NoWitness { .. } | Self::DiskSilent { .. } | Self::Random(_) => None,
        }
    }
}

/// Runs a vat until `stop` resolves, its owner puts it to sleep, or it has to stop.
///
/// # Errors
/// [`RunError`]: whatever the reason, nothing that was acknowledged is lost.
pub async fn run(
    home: &Home,
    name: &Name,
    config: &Config,
    kinds: Kinds,
    options: RunOptions,
    stop: impl Future<Output = ()>,
    report: &mut dyn FnMut(Report),
) -> Result<(), RunError> {
    tokio::pin!(stop);
    let (awake, seen, durable) = tokio::select! {
        woken = wake(home, name, config, kinds, &options, report) => woken?,
        // Nothing was promised to anyone yet.
        () = &mut stop => return Ok(()),
    };
    let committing = [
        tokio::task::spawn_local(awake.clone().start_commits()),
        tokio::task::spawn_local(awake.clone().follow_committer(durable)),
        tokio::task::spawn_local(awake.clone().back_up()),
    ];
    let outcome = match awake.clone().live(home, &seen, stop, report).await {
        Ok(()) => awake.fall_asleep().await,
        Err(error) => Err(error),
    };
    committing.iter().for_each(JoinHandle::abort);
    awake.endpoint.close().await;
    outcome
}

/// Locks, opens, asks the witness, and makes the next epoch durable (R7).
async fn wake(
    home: &Home,
    name: &Name,
    config: &Config,
    kinds: Kinds,
    options: &RunOptions,
    report: &mut dyn FnMut(Report),
) -> Result<(Rc<Awake>, Seen, mpsc::UnboundedReceiver<Durable>), RunError> {
    let (opened, durable) = open(home, name, kinds)?;
    let endpoint = Endpoint::bind(opened.vat.key(), options.listen, EndpointConfig::default())?;
    let resolver = witness_resolver(&endpoint, config);
    let seen =
        ask_witness(name, config, opened.vat.id(), opened.vat.engine().store(), &resolver, options.take_over, report)
            .await?;
    let mut begun_at = opened.vat.engine().durable();
    if options.take_over {
        // What was given up with the owner's consent is not held against the vat again.
        begun_at.turn = begun_at.turn.max(seen.turn());
    }
    let (epoch, incarnation) = begin_epoch_after(opened.vat.engine().store(), seen.epoch())?;
    let backups = match Plan::of(home, config, None) {
        Ok(plan) => Backups::new(Some(plan)),
        Err(BackupError::NoFolder) => Backups::new(None),
        Err(BackupError::Image(error)) => return Err(error.into()),
        Err(BackupError::Home(error)) => return Err(error.into()),
    };
    let awake =
        Awake::new(name.clone(), opened, endpoint, resolver, config, begun_at, epoch, incarnation, backups).await;
    Ok((awake, seen, durable))
}

/// Makes an epoch durable that is higher than that of the checkpoint and than `known`.
pub(crate) fn begin_epoch_after(store: &Store, known: u64) -> Result<(u64, [u8; 16]), RunError> {
    let epoch = store.durable().epoch.max(known) + 1;
    let mut incarnation = [0; 16];
    getrandom::fill(&mut incarnation)?;
    store.begin_epoch(epoch, incarnation)?;
    Ok((epoch, incarnation))
}

/// Asks the whole search path, and waits for all of it, but not for long.
pub(crate) fn witness_resolver(endpoint: &Endpoint, config: &Config) -> Resolver {
    let mut timing = ResolverConfig::default();
    timing.lookup.deadline = WITNESS_DEADLINE;
    Resolver::new(endpoint.clone(), config.search_path.value.clone(), None, timing)
}

/// A checkpoint that is open and locked, before anyone was asked about it.
struct Opened {
    vat: Rc<Vat>,
    gate: OutputGate,
    /// Told of every turn that waits to be committed.
    has_turns: Rc<Notify>,
}

fn open(home: &Home, name: &Name, kinds: Kinds) -> Result<(Opened, mpsc::UnboundedReceiver<Durable>), RunError> {
    let (places, id) = home.vat(name)?;
    let (sender, durable) = mpsc::unbounded_channel();
    let options = StoreOptions {
        on_durable: Some(Box::new(move |event| {
            // The receiver lives as long as the vat; once it is gone nobody waits for the news.
            let _ = sender.send(event);
        })),
        ..StoreOptions::default()
    };
    let protection = Protection::KeyFile(places.key_file);
    let store = Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, options)?;
    let gate = OutputGate::new(store.durable().turn);
    let has_turns = Rc::new(Notify::new());
    let outputs = GateOutputs { gate: gate.clone(), has_turns: has_turns.clone() };
    let vat = Rc::new(Vat::open(store, id, kinds, system_clock(), Box::new(outputs))?);
    Ok((Opened { vat, gate, has_turns }, durable))
}

/// What the engine tells the output gate, and whoever starts the commits.
struct GateOutputs {
    gate: OutputGate,
    has_turns: Rc<Notify>,
}

impl Outputs for GateOutputs {
    fn turn_begins(&self) {
        self.gate.turn_begins();
    }

    fn turn_ends(&self) {
        self.gate.turn_ends();
    }

    fn produced(&self, turn: u64) -> CommitStart {
        self.gate.produced(turn);
        self.has_turns.notify_one();
        CommitStart::ByHost
    }
}

/// Asks every entry of the search path what it knows of this vat, and refuses to go on if any of them proves
/// that the checkpoint is not the newest (R7).
///
/// Also asked before a vat that sleeps takes a turn: a turn of an older copy would make it look newer.
#[allow(clippy::too_many_arguments)] // Each is another part of the question.
pub(crate) async fn ask_witness(
    name: &Name,
    config: &Config,
    id: VatId,
    store: &Store,
    resolver: &Resolver,
    take_over: bool,
    report: &mut dyn FnMut(Report),
) -> Result<Seen, RunError> {
    let required = config.witness.value == Witness::Required;
    if resolver.path().is_empty() {
        if required {
            return Err(RunError::NoWitness { reasons: "  the search path is empty".to_owned() });
        }
        report(Report::Notice(format!(
            "The search path is empty: {name} can be found on this machine only. Add a location server with: vat vls add \
             vls://<id>@<host>:<port>"
        )));
        return Ok(Seen::nothing());
    }
    let seen = Seen::ask(resolver, id).await;
    if !seen.anyone_answered() {
        if required {
            return Err(RunError::NoWitness { reasons: seen.reasons() });
        }
        report(Report::Notice(format!(
            "No location server said whether a newer copy of {name} exists; going on without a witness:\n{}",
            seen.reasons()
        )));
    }
    if let Err(refusal) = seen.compare(name, store) {
        if !take_over {
            return Err(refusal);
        }
        report(Report::Notice(format!("Taking over, as you asked, although {refusal}.")));
    }
    Ok(seen)
}

/// A vat that is awake.
pub(crate) struct Awake {
    name: Name,
    vat: Rc<Vat>,
    gate: OutputGate,
    /// Told of every turn that waits to be committed.
    has_turns: Rc<Notify>,
    endpoint: Endpoint,
    record: Rc<OwnRecord>,
    publisher: Publisher,
    resolver: Resolver,
    advertise: Vec<Address>,
    sessions: Sessions,
    /// Where the checkpoint stood when the vat woke.
    begun_at: Position,
    epoch: u64,
    started_at: Timestamp,
    /// Set by the owner's wish to put the vat to sleep.
    sleep: Notify,
    /// Set when the disk failed.
    poisoned: Notify,
    /// The durable turn that the last published record told.
    published_turn: Cell<u64>,
    backups: Backups,
}

impl Awake {
    #[allow(clippy::too_many_arguments)] // Called once; a struct of its arguments would be `Awake` again.
    async fn new(
        name: Name,
        opened: Opened,
        endpoint: Endpoint,
        resolver: Resolver,
        config: &Config,
        begun_at: Position,
        epoch: u64,
        incarnation: [u8; 16],
        backups: Backups,
    ) -> Rc<Self> {
        let Opened { vat, gate, has_turns } = opened;
        let advertise = config.advertise.value.clone();
        let addresses = addresses::find(&endpoint, resolver.path(), &advertise).await;
        let path = resolver.path().to_vec();
        let record = Rc::new(OwnRecord::new(vat.clone(), epoch, incarnation, addresses, path));
        let publisher = Publisher::sharing(&resolver, record.clone(), PublisherConfig::default());
        let sessions = Sessions::new(gate.clone(), epoch, incarnation);
        let started_at = vat.engine().now();
        Rc::new(Self {
            name,
            vat,
            gate,
            has_turns,
            endpoint,
            record,
            publisher,
            resolver,
            advertise,
            sessions,
            begun_at,
            epoch,
            started_at,
            sleep: Notify::new(),
            poisoned: Notify::new(),
            published_turn: Cell::new(0),
            backups,
        })
    }

    /// Starts commits. It is woken by the first turn, but scheduled behind the session whose calls are being
    /// carried out: all that came in one piece is committed in one frame (R4).
    async fn start_commits(self: Rc<Self>) {
        loop {
            self.has_turns.notified().await;
            self.vat.engine().start_commit();
        }
    }

    /// Opens the gate as the committer makes turns durable, and shuts it for good when the disk fails.
    async fn follow_committer(self: Rc<Self>, mut durable: mpsc::UnboundedReceiver<Durable>) {
        while let Some(event) = durable.recv().await {
            match event {
                Durable::Turn(turn) => self.gate.release(turn),
                Durable::Poisoned => {
                    self.gate.poison();
                    self.poisoned.notify_one();
                }
            }
        }
    }

    /// Publishes the vat, and serves until it has to stop.
    ///
    /// Nobody is let in before the first registration was tried everywhere: of two copies that wake at once, the
    /// one that loses must not have acknowledged anything.
    async fn live(
        self: Rc<Self>,
        home: &Home,
        seen: &Seen,
        stop: std::pin::Pin<&mut impl Future<Output = ()>>,
        report: &mut dyn FnMut(Report),
    ) -> Result<(), RunError> {
        let registrations = self.announce(seen.expected()).await?;
        make_folder(&home.root().join("run"))?;
        let listener = LocalListener::bind(&home.places(&self.name).socket)?;
        let public: vat_capnp::vat::Client = capnp_rpc::new_client(VatService::new(self.vat.clone()));
        let owner: vat_capnp::owner::Client =
            capnp_rpc::new_client(OwnerService { public: public.clone(), awake: self.clone() });
        let accepting = tokio::task::spawn_local({
            let awake = self.clone();
            async move { awake.sessions.accept(&awake.endpoint, &public, listener, &owner).await }
        });
        report(Report::Live(Live {
            id: self.vat.id(),
            addresses: self.record.addresses(),
            epoch: self.epoch,
            turn: self.vat.engine().durable().turn,
            registrations,
        }));
        let outcome = tokio::select! {
            () = stop => Ok(()),
            () = self.sleep.notified() => Ok(()),
            () = self.poisoned.notified() => Err(self.disk_failure()),
            superseded = self.publisher.run() => registration::fence(&self.name, self.standing(), &superseded.record),
            outcome = self.review() => outcome,
        };
        accepting.abort();
        outcome
    }

    /// Registers everywhere, and refuses to go on if another copy was faster.
    async fn announce(&self, expected: Expected) -> Result<Vec<EntryReport>, RunError> {
        self.published_turn.set(self.vat.engine().durable().turn);
        let mut reports = self.publisher.announce(expected, ANNOUNCE_DEADLINE).await;
        self.check_rivals(&reports)?;
        if registration::has_older_record(&reports) {
            reports = self.publisher.announce(Expected::Anything, ANNOUNCE_DEADLINE).await;
            self.check_rivals(&reports)?;
        }
        Ok(reports)
    }

    fn check_rivals(&self, reports: &[EntryReport]) -> Result<(), RunError> {
        registration::check_rivals(&self.name, self.standing(), self.begun_at, &self.record, reports)
    }

    fn standing(&self) -> Standing {
        Standing { epoch: self.epoch, turn: self.vat.engine().durable().turn }
    }

    /// Looks now and then whether the world has changed: another copy at the search path, new addresses, or
    /// turns that the witness should hear of. Ends only with a reason to stop.
    async fn review(&self) -> Result<(), RunError> {
        let mut review = tokio::time::interval(REVIEW_INTERVAL);
        review.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        review.tick().await;
        loop {
            review.tick().await;
            let newest = self.resolver.newest(self.vat.id()).await;
            registration::check_newest(&self.name, self.standing(), &self.record, &newest)?;
            let addresses = addresses::find(&self.endpoint, self.resolver.path(), &self.advertise).await;
            let turn = self.vat.engine().durable().turn;
            let moved = self.record.set_addresses(addresses);
            if moved || self.published_turn.replace(turn) != turn {
                self.publisher.nudge();
            }
        }
    }

    /// Ends every session after its last answer, publishes that the vat sleeps, and closes the checkpoint.
    async fn fall_asleep(&self) -> Result<(), RunError> {
        let newest = self.vat.engine().newest_turn();
        // A disk that does not answer must not keep the process alive; the error below tells the rest.
        let drained = tokio::time::timeout(DRAIN_DEADLINE, self.gate.wait(newest)).await;
        self.sessions.close_all().await;
        if !matches!(drained, Ok(Ok(()))) {
            return Err(self.disk_failure());
        }
        self.record.set_state(State::Dormant);
        // Whoever was not told finds out by dialling; the lease ends by itself.
        self.publisher.renew(ANNOUNCE_DEADLINE).await;
        Ok(())
    }

    fn disk_failure(&self) -> RunError {
        match self.vat.engine().store().poisoned() {
            Some(cause) => RunError::Disk(cause),
            // The disk has not failed, it does not answer: nothing is lost, and nothing more can be promised.
            None => RunError::DiskSilent { seconds: DRAIN_DEADLINE.as_secs() },
        }
    }

    /// What its owner calls it.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// The vat.
    pub(crate) fn vat(&self) -> &Vat {
        &self.vat
    }

    /// Ends the process as Ctrl-C does.
    pub(crate) fn put_to_sleep(&self) {
        self.sleep.notify_one();
    }

    /// Tells the owner how the vat stands.
    pub(crate) fn describe(&self, mut status: vat_capnp::status::Builder<'_>) -> capnp::Result<()> {
        let engine = self.vat.engine();
        let (durable, sizes) = (engine.durable(), engine.store().sizes().map_err(|error| wire_error(&error))?);
        self.backups.describe(self, status.reborrow());
        status.set_id(self.vat.id().as_bytes());
        status.set_object(self.vat.root_kind()?.name());
        status.set_epoch(self.epoch);
        status.set_turn(engine.newest_turn());
        status.set_durable_turn(durable.turn);
        status.set_process_id(std::process::id());
        status.set_journal_bytes(sizes.journal_bytes);
        status.set_base_bytes(sizes.base_bytes);
        status.set_sessions(u32::try_from(self.sessions.count()).unwrap_or(u32::MAX));
        status.set_objects(self.vat.object_count()?);
        status.set_grants(self.vat.grants()?.len() as u64);
        status.set_started_at(self.started_at.as_seconds());
        let addresses: Vec<String> = self.record.addresses().iter().map(ToString::to_string).collect();
        status.set_addresses(&addresses[..])?;
        let reports = self.publisher.reports();
        let count = u32::try_from(reports.len()).unwrap_or(u32::MAX);
        let mut list = status.init_registrations(count);
        for (index, report) in (0..count).zip(&reports) {
            registration::describe(report, list.reborrow().get(index));
        }
        Ok(())
    }
}
