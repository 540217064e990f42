//! A vat that is awake: what it consists of, and its life from the first registration to its sleep.

use std::{cell::Cell, convert::Infallible, rc::Rc, sync::Arc};

use checkpoint::{Durable, Position, StoreMetrics};
use schemas::{Address, State, Timestamp, vat_capnp};
use tokio::sync::{Notify, mpsc};
use transport::{Endpoint, LocalListener, OutputGate, watchdog::Watchdog};
use vls_client::{EntryReport, Expected, Publisher, PublisherConfig, Resolver};

use super::{
    Live, Opened, Report, RunError, addresses,
    backups::Backups,
    clock_warning,
    outside::Outside,
    registration::{self, OwnRecord, Seen, Standing},
    sessions::Sessions,
    strangers::{Strangers, certificate_file},
};
use crate::{
    config::Config,
    core::{Swept, Vat, VatError},
    home::{Home, Name, make_folder},
    limits::{ANNOUNCE_DEADLINE, DRAIN_DEADLINE, REVIEW_INTERVAL},
    object::wire_error,
    service::{OwnerService, VatService},
};

/// A vat that is awake.
pub(crate) struct Awake {
    pub(super) name: Name,
    pub(super) vat: Rc<Vat>,
    gate: OutputGate,
    /// Told of every turn that waits to be committed.
    has_turns: Rc<Notify>,
    /// Told of every fold, by another thread.
    folded: Arc<Notify>,
    pub(super) store_metrics: StoreMetrics,
    pub(super) endpoint: Endpoint,
    record: Rc<OwnRecord>,
    publisher: Publisher,
    resolver: Resolver,
    advertise: Vec<Address>,
    outside: Outside,
    /// The vat has other addresses than before.
    has_moved: Notify,
    pub(super) sessions: Sessions,
    /// Those who come over TLS, if they may.
    strangers: Option<Strangers>,
    /// Where the checkpoint stood when the vat woke.
    begun_at: Position,
    pub(super) epoch: u64,
    pub(super) started_at: Timestamp,
    /// Set by the owner's wish to put the vat to sleep.
    sleep: Notify,
    /// Set when the disk failed.
    poisoned: Notify,
    /// The durable turn that the last published record told.
    published_turn: Cell<u64>,
    pub(super) backups: Backups,
}

impl Awake {
    #[allow(clippy::too_many_arguments)] // Called once; a struct of its arguments would be `Awake` again.
    pub(super) async fn new(
        name: Name,
        opened: Opened,
        endpoint: Endpoint,
        resolver: Resolver,
        config: &Config,
        begun_at: Position,
        epoch: u64,
        incarnation: [u8; 16],
        backups: Backups,
        strangers: Option<Strangers>,
    ) -> Rc<Self> {
        let Opened { vat, gate, has_turns, folded, metrics: store_metrics } = opened;
        let advertise = config.advertise.value.clone();
        let addresses = addresses::find(&endpoint, &resolver, &advertise).await;
        let path = resolver.path().to_vec();
        let record = Rc::new(OwnRecord::new(vat.clone(), epoch, incarnation, addresses, path));
        let mut publishing = PublisherConfig::default();
        publishing.invites = config.invites.clone();
        let publisher = Publisher::sharing(&resolver, record.clone(), publishing);
        let sessions = Sessions::new(endpoint.id(), gate.clone(), epoch, incarnation);
        let started_at = vat.engine().now();
        Rc::new(Self {
            name,
            vat,
            gate,
            has_turns,
            folded,
            store_metrics,
            endpoint,
            record,
            publisher,
            resolver,
            advertise,
            outside: Outside::default(),
            has_moved: Notify::new(),
            sessions,
            strangers,
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
    pub(super) async fn start_commits(self: Rc<Self>) {
        loop {
            self.has_turns.notified().await;
            self.vat.engine().start_commit();
        }
    }

    /// Opens the gate as the committer makes turns durable, and shuts it for good when the disk fails.
    pub(super) async fn follow_committer(self: Rc<Self>, mut durable: mpsc::UnboundedReceiver<Durable>) {
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

    /// Removes what nothing leads to any more, whenever the checkpoint was folded: then something has happened, and not
    /// too long ago. Between two folds garbage only takes room.
    async fn sweep_at_folds(self: Rc<Self>) {
        loop {
            self.folded.notified().await;
            match self.sweep().await {
                Ok(swept) if swept.turns == 0 => {}
                Ok(swept) => tracing::info!(objects = swept.objects, rows = swept.rows, "garbage was removed"),
                // A disk that failed stops the vat by itself; whatever else it is, the vat works on with its garbage.
                Err(error) => tracing::warn!(%error, "garbage could not be removed"),
            }
        }
    }

    /// One turn at a time, so that no call waits for more than that.
    async fn sweep(&self) -> Result<Swept, VatError> {
        let mut swept = Swept::default();
        loop {
            let part = self.vat.sweep_part()?;
            if part.turns == 0 {
                return Ok(swept);
            }
            swept += part;
            // What has come in meanwhile is carried out first, and what was removed is durable before more is: a sweep
            // never fills the queue of the checkpoint, behind which every call would wait.
            tokio::task::yield_now().await;
            if self.gate.wait(self.vat.engine().newest_turn()).await.is_err() {
                return Ok(swept);
            }
        }
    }

    /// Publishes the vat, and serves until it has to stop.
    ///
    /// Nobody is let in before the first registration was tried everywhere: of two copies that wake at once, the
    /// one that loses must not have acknowledged anything.
    pub(super) async fn live(
        self: Rc<Self>,
        home: &Home,
        seen: &Seen,
        stop: std::pin::Pin<&mut impl Future<Output = ()>>,
        report: &mut dyn FnMut(Report),
    ) -> Result<(), RunError> {
        let (registrations, skew) = futures::join!(self.announce(seen.expected()), self.publisher.clock_skew());
        let registrations = registrations?;
        if let Some(skew) = skew {
            report(Report::Notice(clock_warning(&skew)));
        }
        make_folder(&home.root().join("run"))?;
        let socket = home.places(&self.name).socket;
        let listener = LocalListener::bind(&socket)?;
        let tls = self.strangers.as_ref().map(|strangers| strangers.describe(certificate_file(&socket))).transpose()?;
        let public: vat_capnp::vat::Client = capnp_rpc::new_client(VatService::new(self.vat.clone()));
        let owner: vat_capnp::owner::Client =
            capnp_rpc::new_client(OwnerService { public: public.clone(), awake: self.clone() });
        // From here on strangers are served. What came before may block for as long as the disk takes.
        let _watchdog = Watchdog::of_a_program();
        let accepting = tokio::task::spawn_local({
            let awake = self.clone();
            async move { awake.sessions.accept(&awake.endpoint, &awake.vat, listener, &owner).await }
        });
        let accepting_strangers = tokio::task::spawn_local({
            let awake = self.clone();
            async move {
                if let Some(strangers) = &awake.strangers {
                    strangers.accept(&awake.vat, &public, &awake.gate).await;
                }
            }
        });
        // A turn like any other, so not before it is certain that no other copy was faster.
        let sweeping = tokio::task::spawn_local(self.clone().sweep_at_folds());
        report(Report::Live(Live {
            id: self.vat.id(),
            addresses: self.record.addresses(),
            epoch: self.epoch,
            turn: self.vat.engine().durable().turn,
            registrations,
            tls,
        }));
        let outcome = tokio::select! {
            () = stop => Ok(()),
            () = self.sleep.notified() => Ok(()),
            () = self.poisoned.notified() => Err(self.disk_failure()),
            superseded = self.publisher.run() => registration::fence(&self.name, self.standing(), &superseded.record),
            outcome = self.review() => outcome,
            never = self.look_from_outside() => match never {},
        };
        accepting.abort();
        accepting_strangers.abort();
        sweeping.abort();
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
            let turn = self.vat.engine().durable().turn;
            let moved = self.record.set_addresses(self.addresses().await);
            if moved {
                self.has_moved.notify_one();
            }
            if moved || self.published_turn.replace(turn) != turn {
                self.publisher.nudge();
            }
        }
    }

    /// What to publish: where the vat is, and first of all where it was dialled from outside, if that is another place.
    async fn addresses(&self) -> Vec<Address> {
        let mut addresses = addresses::find(&self.endpoint, &self.resolver, &self.advertise).await;
        let outside =
            self.outside.address().filter(|outside| self.advertise.is_empty() && !addresses.contains(outside));
        addresses.splice(..0, outside);
        addresses
    }

    /// Finds out, now and then and when the vat has moved, whether others can dial it.
    async fn look_from_outside(&self) -> Infallible {
        let local = self.endpoint.local_address();
        let advertised = self.advertise.iter().find_map(|address| match address {
            Address::Quic { port, .. } => Some(Some(*port)),
            Address::Gateway { .. } | Address::Relayed => None,
        });
        // A router may have another port for what goes out than for what it passes on.
        let ports = advertised.map_or(vec![None, Some(local.port())], |port| vec![port]);
        loop {
            if self.outside.look(&self.resolver, &ports).await {
                if let Some(warning) = self.outside.warning(local) {
                    tracing::warn!("{warning}");
                }
                if self.record.set_addresses(self.addresses().await) {
                    self.publisher.nudge();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.outside.again_after()) => {}
                () = self.has_moved.notified() => {}
            }
        }
    }

    /// Ends every session after its last answer, publishes that the vat sleeps, and closes the checkpoint.
    pub(super) async fn fall_asleep(&self) -> Result<(), RunError> {
        tokio::join!(self.sessions.drain(), async {
            if let Some(strangers) = &self.strangers {
                strangers.drain().await;
            }
        });
        // No session can begin another turn.
        let newest = self.vat.engine().newest_turn();
        // A disk that does not answer must not keep the process alive; the error below tells the rest.
        let durable = tokio::time::timeout(DRAIN_DEADLINE, self.gate.wait(newest)).await;
        if !matches!(durable, Ok(Ok(()))) {
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
        let fold = engine.store().last_fold();
        status.set_folded_turn(fold.turn);
        status.set_last_fold(fold.ago.map_or(0, |ago| engine.now().as_seconds().saturating_sub(ago.as_secs())));
        status.set_id(self.vat.id().as_bytes());
        status.set_object(self.vat.root_kind()?.name());
        status.set_epoch(self.epoch);
        status.set_turn(engine.newest_turn());
        status.set_durable_turn(durable.turn);
        status.set_process_id(std::process::id());
        status.set_journal_bytes(sizes.journal_bytes);
        status.set_base_bytes(sizes.base_bytes);
        let sessions = self.sessions.count() + self.strangers.as_ref().map_or(0, Strangers::count);
        status.set_sessions(u32::try_from(sessions).unwrap_or(u32::MAX));
        status.set_objects(self.vat.object_count()?);
        status.set_grants(self.vat.grants()?.len() as u64);
        status.set_started_at(self.started_at.as_seconds());
        let addresses: Vec<String> = self.record.addresses().iter().map(ToString::to_string).collect();
        status.set_addresses(&addresses[..])?;
        self.outside.describe(status.reborrow().init_outside());
        let reports = self.publisher.reports();
        let count = u32::try_from(reports.len()).unwrap_or(u32::MAX);
        let mut list = status.init_registrations(count);
        for (index, report) in (0..count).zip(&reports) {
            registration::describe(report, list.reborrow().get(index));
        }
        Ok(())
    }
}
