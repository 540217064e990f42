//! `vls-server run`: serves until it is told to end, and reads its configuration again when it is told to.
//!
//! SIGINT and SIGTERM end it in good order. SIGHUP has it read its file again: what can change without disturbing
//! anybody changes, of the rest the log says that it stays, and a file with a mistake changes nothing at all.

use std::{future::pending, io, rc::Rc};

use checkpoint::FileDisk;
use console::{Failure, Output};
use schemas::{ErrorCode, Exit, SearchPathEntry};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{Interval, MissedTickBehavior, interval},
};
use transport::{LocalListener, watchdog::Watchdog};

use super::{
    advertise,
    config::{Configuration, Flags},
    control::{self, StatusRequest},
    files,
    logging::Logging,
    notify::Notifier,
    sandbox::{self, Confinement, Places},
    status, system,
};
use crate::{
    clock::SystemClock,
    limits,
    server::{Server, ServerError, make_folder},
};

/// `vls-server run`
pub(super) async fn run(flags: &Flags, output: Output) -> Result<Exit, Failure> {
    let configuration = Configuration::load(flags)?;
    let logging = Logging::start(&configuration, output);
    // The identity key will be in memory.
    if let Err(error) = checkpoint::forbid_core_dumps() {
        tracing::warn!(%error, "core dumps could not be forbidden");
    }
    files::raise_limit(&configuration);
    // Before the line is printed that says that it serves: whoever reads it may send a signal.
    let mut signals = Signals::listen()?;
    // The only folder that is made outside it, which can be done before and not after.
    make_folder(&FileDisk, &configuration.data.value)
        .map_err(|source| ServerError::Data { path: configuration.data.value.clone(), source })?;
    // While there is no other thread: those that come have what this one has.
    let places = Places::of(&configuration);
    let confinement = Confinement::of(&configuration, &places);
    confinement.log();
    let server = Server::start(files::fitted(configuration.server()), Rc::new(SystemClock)).await?;
    // Not before the records are read, which blocks for as long as it takes.
    let _watchdog = Watchdog::of_a_program();
    let mut running = Running::new(server, configuration, flags, logging, (confinement, places));
    if let Err(failure) = running.say_that_it_serves(output) {
        running.server.stop().await?;
        return Err(failure);
    }
    let failed = running.serve(&mut signals).await;
    running.notifier.stopping();
    running.control.abort();
    if let Some(failure) = failed {
        // What cannot be made durable is not worth waiting for.
        running.server.abandon().await;
        return Err(failure);
    }
    running.server.stop().await?;
    tracing::info!("everything that was acknowledged is durable");
    Ok(Exit::Ok)
}

struct Running<'a> {
    server: Server,
    configuration: Configuration,
    flags: &'a Flags,
    logging: Logging,
    notifier: Notifier,
    control: JoinHandle<()>,
    requests: mpsc::Receiver<StatusRequest>,
    confinement: Confinement,
    /// What it is confined to.
    places: Places,
}

impl<'a> Running<'a> {
    fn new(
        server: Server,
        configuration: Configuration,
        flags: &'a Flags,
        logging: Logging,
        (confinement, places): (Confinement, Places),
    ) -> Self {
        let (sender, requests) = mpsc::channel(limits::CONTROL_CONNECTIONS);
        let socket = control::socket(&configuration.data.value);
        let control = match LocalListener::bind(&socket) {
            Ok(listener) => {
                let registry = Rc::clone(server.registry());
                tokio::task::spawn_local(control::serve(listener, registry, sender))
            }
            // It serves others all the same. The sender is kept, so that nobody seems to have hung up.
            Err(error) => {
                tracing::warn!(%error, "`vls-server status` will not be answered");
                tokio::task::spawn_local(async move {
                    let _sender = sender;
                    pending().await
                })
            }
        };
        let notifier = Notifier::from_environment();
        Self { server, configuration, flags, logging, notifier, control, requests, confinement, places }
    }

    fn entry(&self) -> SearchPathEntry {
        let host = self.configuration.advertise.value.clone();
        self.server.entry(&advertise::host(host, self.server.local_address().ip()))
    }

    fn say_that_it_serves(&self, output: Output) -> Result<(), Failure> {
        let (entry, listen) = (self.entry().to_string(), self.server.local_address().to_string());
        let id = self.server.id().to_string();
        let mut data = json!({"entry": entry, "id": id, "listen": listen});
        for (carrier, address) in self.others() {
            data[carrier] = address.to_string().into();
            tracing::info!(%address, "serving {carrier} too");
        }
        output.result(&entry, &data)?;
        tracing::info!(id, listen, "serving");
        self.notifier.ready(&format!("serving as {entry}"));
        Ok(())
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, std::net::SocketAddr)> {
        let carriers = [("http", self.server.http_address()), ("dns", self.server.dns_address())];
        carriers.into_iter().filter_map(|(carrier, address)| Some((carrier, address?)))
    }

    /// Serves until a signal ends it, or the disk does: then with the failure.
    async fn serve(&mut self, signals: &mut Signals) -> Option<Failure> {
        let mut ticks = self.notifier.interval().map(interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                heard = signals.next() => match heard {
                    Heard::Reload => self.reload().await,
                    Heard::End(name) => {
                        tracing::info!("{name}: finishing what is under way");
                        return None;
                    }
                },
                failure = self.server.failed() => return Some(failure.into()),
                Some(request) = self.requests.recv() => {
                    // Who has gone does not need it.
                    let entry = self.entry().to_string();
                    let _ = request.send(status::object(&self.server.status(), &entry, &self.confinement));
                }
                () = tick(&mut ticks) => self.notifier.alive(),
            }
        }
    }

    async fn reload(&mut self) {
        self.notifier.reloading();
        match self.take_up().await {
            Ok(()) => tracing::info!(entry = %self.entry(), "the configuration was read again"),
            Err(failure) => {
                let next = failure.next.as_deref().unwrap_or(failure.code.next());
                tracing::error!(
                    code = failure.code.as_str(),
                    next,
                    "the configuration stays as it was: {}",
                    failure.message
                );
            }
        }
        self.notifier.ready(&format!("serving as {}", self.entry()));
    }

    /// Takes up what the file says now; all of it, or nothing.
    async fn take_up(&mut self) -> Result<(), Failure> {
        let mut configuration = Configuration::load(self.flags)?;
        if let Some(file) = sandbox::out_of_reach(&self.confinement, &self.places, &configuration) {
            let message = format!("{} is outside the folders that this server has kept for itself", file.display());
            return Err(Failure::new(ErrorCode::ServerCertificate, message)
                .next("Start the server again: what it may read is decided at its start. Or put the file where the one before was."));
        }
        // It may have asked for fewer connections until now.
        files::raise_limit(&configuration);
        let mut kept = self.server.reload(&files::fitted(configuration.server())).await?;
        self.logging.set_level(configuration.log_level.value);
        if configuration.log_format.value != self.configuration.log_format.value {
            configuration.log_format = self.configuration.log_format.clone();
            kept.push("log.format");
        }
        if configuration.sandbox.value != self.configuration.sandbox.value {
            configuration.sandbox = self.configuration.sandbox.clone();
            kept.push("sandbox.enabled");
        }
        for setting in kept {
            tracing::warn!(setting, "this stays as it is until the server is started again");
        }
        self.configuration = configuration;
        for (carrier, address) in self.others() {
            tracing::info!(%address, "serving {carrier} too");
        }
        Ok(())
    }
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => pending().await,
    }
}

/// What a signal says.
enum Heard {
    End(&'static str),
    Reload,
}

/// The signals that the server listens to.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    reload: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error: io::Error| system("listen for signals", &error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            reload: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.interrupt.recv() => Heard::End("SIGINT"),
            _ = self.terminate.recv() => Heard::End("SIGTERM"),
            _ = self.reload.recv() => Heard::Reload,
        }
    }
}
