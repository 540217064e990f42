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
mod awake;
mod backups;
mod error;
mod metrics;
mod outside;
mod registration;
mod sessions;
mod strangers;

use std::{
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use checkpoint::{Durable, FileDisk, Store, StoreMetrics, StoreOptions};
use schemas::{Address, Coded, Timestamp, VatId};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use transport::{Endpoint, EndpointConfig, OutputGate, TlsListener, limits::TLS_HANDSHAKE_DEADLINE};
use vls_client::{ClockSkew, EntryReport, Resolver, ResolverConfig};

pub use crate::opener::OpenerError;
pub(crate) use addresses::publishable_addresses;
pub(crate) use awake::Awake;
use backups::Backups;
pub use error::RunError;
pub(crate) use outside::let_others_in;
use registration::Seen;
use strangers::Strangers;

use crate::{
    Kinds,
    backup::Plan,
    config::{Config, Witness},
    core::Vat,
    engine::{Clock, CommitStart, Outputs},
    home::{Home, Name},
    limits::WITNESS_DEADLINE,
    opener::Opener,
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
    /// Where to listen for TLS over TCP as well, if anywhere: for programs that have no QUIC.
    pub listen_tls: Option<SocketAddr>,
    /// Go on although a location server knows more than the checkpoint.
    pub take_over: bool,
    /// Make the backups that the configuration asks for, when they are due.
    pub back_up: bool,
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
    /// Its TLS port, if it has one.
    pub tls: Option<LiveTls>,
}

/// Where a vat listens for TLS over TCP, and how a client can tell that it is this vat. Not in its record: whoever is
/// to come this way is told by the owner.
#[derive(Debug, Clone)]
pub struct LiveTls {
    /// The address.
    pub address: SocketAddr,
    /// SHA-256 of the key, as clients pin it: `sha256//` and base64. It follows from the vat's id.
    pub key_fingerprint: String,
    /// The file with the vat's certificate, for clients without raw keys.
    pub certificate: PathBuf,
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
    let mut meanwhile = vec![
        tokio::task::spawn_local(awake.clone().start_commits()),
        tokio::task::spawn_local(awake.clone().follow_committer(durable)),
    ];
    if options.back_up {
        meanwhile.push(tokio::task::spawn_local(awake.clone().back_up()));
    }
    let outcome = match awake.clone().live(home, &seen, stop, report).await {
        Ok(()) => awake.fall_asleep().await,
        Err(error) => Err(error),
    };
    meanwhile.iter().for_each(JoinHandle::abort);
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
    let (opened, durable) = open(home, name, config, kinds)?;
    let endpoint = Endpoint::bind(opened.vat.key(), options.listen, EndpointConfig::default())?;
    let strangers = match options.listen_tls {
        Some(listen) => {
            let listener = TlsListener::bind(opened.vat.key(), listen, TLS_HANDSHAKE_DEADLINE)?;
            Some(Strangers::new(opened.vat.id(), listener))
        }
        None => None,
    };
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
    // A vat without backups is better than none: what is wrong with them stands in the status.
    let backups = Backups::new(Plan::of(home, config, None));
    let awake =
        Awake::new(name.clone(), opened, endpoint, resolver, config, begun_at, epoch, incarnation, backups, strangers)
            .await;
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

/// Whether a location server has a record that says that this vat is awake.
pub(crate) async fn is_live(config: &Config, id: VatId, endpoint: &Endpoint) -> bool {
    Seen::ask(&witness_resolver(endpoint, config), id).await.is_live(system_clock()())
}

/// Asks the whole search path, and waits for all of it, but not for long.
pub(crate) fn witness_resolver(endpoint: &Endpoint, config: &Config) -> Resolver {
    let mut timing = ResolverConfig::default();
    timing.lookup.deadline = WITNESS_DEADLINE;
    timing.carriers = config.carriers();
    Resolver::new(endpoint.clone(), config.search_path.value.clone(), None, timing)
}

/// That this machine's clock is wrong, in one line with its code.
pub(crate) fn clock_warning(skew: &ClockSkew) -> String {
    format!("{skew} ({}). {}", skew.code(), skew.code().next())
}

/// A checkpoint that is open and locked, before anyone was asked about it.
struct Opened {
    vat: Rc<Vat>,
    gate: OutputGate,
    /// Told of every turn that waits to be committed.
    has_turns: Rc<Notify>,
    /// Told of every fold, by another thread.
    folded: Arc<Notify>,
    metrics: StoreMetrics,
}

fn open(
    home: &Home,
    name: &Name,
    config: &Config,
    kinds: Kinds,
) -> Result<(Opened, mpsc::UnboundedReceiver<Durable>), RunError> {
    let (places, id) = home.vat(name)?;
    let (sender, durable) = mpsc::unbounded_channel();
    let metrics = StoreMetrics::default();
    let folded = Arc::new(Notify::new());
    let options = StoreOptions {
        metrics: metrics.clone(),
        on_fold: Some(Box::new({
            let folded = folded.clone();
            move || folded.notify_one()
        })),
        on_durable: Some(Box::new(move |event| {
            // The receiver lives as long as the vat; once it is gone nobody waits for the news.
            let _ = sender.send(event);
        })),
        ..StoreOptions::default()
    };
    let protection = Opener::of(config, name, &places).protection()?;
    let store = Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, options)?;
    let gate = OutputGate::new(store.durable().turn);
    let has_turns = Rc::new(Notify::new());
    let outputs = GateOutputs { gate: gate.clone(), has_turns: has_turns.clone() };
    let vat = Rc::new(Vat::open(store, id, kinds, system_clock(), Box::new(outputs))?);
    Ok((Opened { vat, gate, has_turns, folded, metrics }, durable))
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
