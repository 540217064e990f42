//! The `vls-server` program (DESIGN §10).
//!
//! In the library, so that other binaries can be a location server too: `vat demo` starts one from its own
//! executable.

mod advertise;

use std::{
    ffi::OsString, future::Future, io, net::SocketAddr, path::PathBuf, process::ExitCode, rc::Rc, time::Duration,
};

use clap::{Parser, Subcommand};
use console::{Failure, Output};
use schemas::{ErrorCode, Exit};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use transport::watchdog::Watchdog;

use crate::{
    clock::SystemClock,
    limits,
    registry::Policy,
    server::{CertificateFiles, ProxyNetwork, Server, ServerConfig, dns::DomainName},
};

/// A location server: keeps the signed location records of vats and answers who asks for exactly one of them.
#[derive(Debug, Parser)]
#[command(name = "vls-server", bin_name = "vls-server", version, disable_help_subcommand = true)]
#[command(infer_long_args = false)]
struct Arguments {
    /// Print JSON on standard output, and a failure as one JSON object on standard error
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGINT or SIGTERM. Once it serves, it prints one line to add to search paths:
    /// vls://<id>@<host>:<port>
    Run(Box<RunArguments>),
    /// Explain an error code, or list all of them
    Help {
        /// An error code such as vls.quota
        code: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// UDP address to listen on; [::] takes IPv4 too, port 0 any free port
    #[arg(long, value_name = "ADDR", default_value = "[::]:4433")]
    listen: SocketAddr,
    /// Folder of the server's key and records; made if it is not there
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How long a record is answered after its vat was last seen
    #[arg(
        long, value_name = "SECONDS", default_value_t = limits::LEASE.as_secs(),
        value_parser = clap::value_parser!(u64).range(limits::MIN_LEASE.as_secs()..=limits::MAX_LEASE.as_secs()),
    )]
    lease: u64,
    /// Host name or address to print instead of the one found: what others reach this machine by
    #[arg(long, value_name = "HOST", value_parser = advertise::parse_host)]
    advertise: Option<String>,
    /// TCP address for HTTP: records as pkarr relays and iroh's DNS server offer them, a page for people, /metrics
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Certificate for HTTPS, with its chain, PEM; looked at again every ten minutes
    #[arg(long, value_name = "FILE", requires_all = ["http", "http_key"])]
    http_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "http_cert")]
    http_key: Option<PathBuf>,
    /// Network of proxies whose X-Forwarded-For or Forwarded is believed, such as 127.0.0.1 or 10.0.0.0/8; repeatable
    #[arg(long, value_name = "NETWORK", requires = "http")]
    http_proxy: Vec<ProxyNetwork>,
    /// Address for DNS, UDP and TCP; on a machine with several, the one that the zone above leads to
    #[arg(long, value_name = "ADDR", requires = "dns_origin")]
    dns: Option<SocketAddr>,
    /// Zone that ids stand below, such as vls.example.org; with --http it is answered at /dns-query, too
    #[arg(long, value_name = "NAME")]
    dns_origin: Option<DomainName>,
    /// Name of this host to which the zone above delegates the origin, if it is not the origin itself
    #[arg(long, value_name = "NAME", requires = "dns_origin")]
    dns_server: Option<DomainName>,
}

impl RunArguments {
    fn config(&self) -> ServerConfig {
        let mut config = ServerConfig::new(self.listen, self.data.clone());
        config.policy = Policy { lease: Duration::from_secs(self.lease), ..Policy::default() };
        config.http = self.http;
        let files = self.http_cert.clone().zip(self.http_key.clone());
        config.certificate = files.map(|(certificate, key)| CertificateFiles { certificate, key });
        config.trusted_proxies.clone_from(&self.http_proxy);
        config.dns = self.dns;
        config.dns_origin.clone_from(&self.dns_origin);
        config.dns_server.clone_from(&self.dns_server);
        config
    }
}

/// Runs the program with the process's own arguments. The process should end with what it returns.
#[must_use]
pub fn main() -> ExitCode {
    main_with(std::env::args_os().skip(1))
}

/// Runs the program with these arguments, the program's own name not among them.
#[must_use]
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let output = Output::new(console::wants_json(arguments.iter().cloned()));
    let named = std::iter::once(OsString::from("vls-server")).chain(arguments);
    let result = match Arguments::try_parse_from(named) {
        Ok(Arguments { command: Command::Run(arguments), .. }) => run(*arguments, output),
        Ok(Arguments { command: Command::Help { code }, .. }) => console::help("vls-server", code.as_deref(), output),
        Err(error) => return ExitCode::from(console::usage(&error, output) as u8),
    };
    let exit = match result {
        Ok(()) => Exit::Ok,
        Err(failure) => output.failure(&failure),
    };
    ExitCode::from(exit as u8)
}

fn run(arguments: RunArguments, output: Output) -> Result<(), Failure> {
    start_logging(output);
    // The identity key will be in memory.
    if let Err(error) = checkpoint::forbid_core_dumps() {
        tracing::warn!(%error, "core dumps could not be forbidden");
    }
    let config = arguments.config();
    block_on(async move {
        // Before the line is printed that says that it serves: whoever reads it may send a signal.
        let mut signals = Signals::listen()?;
        let server = Server::start(config, Rc::new(SystemClock)).await?;
        // Not before the records are read, which blocks for as long as it takes.
        let _watchdog = Watchdog::of_a_program();
        let entry = server.entry(&advertise::host(arguments.advertise, server.local_address().ip()));
        let listen = server.local_address().to_string();
        let mut data = json!({"entry": entry.to_string(), "id": server.id().to_string(), "listen": listen});
        for (carrier, address) in [("http", server.http_address()), ("dns", server.dns_address())] {
            if let Some(address) = address {
                data[carrier] = address.to_string().into();
                tracing::info!(%address, "serving {carrier} too");
            }
        }
        if let Err(failure) = output.result(&entry.to_string(), &data) {
            server.stop().await?;
            return Err(failure);
        }
        tracing::info!(id = %server.id(), listen, "serving");
        tokio::select! {
            name = signals.next() => tracing::info!("{name}: finishing what is under way"),
            failure = server.failed() => {
                // What cannot be made durable is not worth waiting for.
                server.abandon().await;
                return Err(failure.into());
            }
        }
        server.stop().await?;
        tracing::info!("everything that was acknowledged is durable");
        Ok(())
    })
}

/// Runs the server: one thread, one event loop.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| system("start the event loop", &error))?;
    let done = tokio::task::LocalSet::new().block_on(&runtime, work);
    // A name lookup that hangs must not keep the program.
    runtime.shutdown_background();
    done
}

/// The signals that end the server in good order.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error: io::Error| system("listen for signals", &error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// `VLS_LOG=debug` shows what happens inside, on standard error, the addresses of clients included;
/// `VLS_LOG=vls_server::clients=debug` these alone. Without the variable no client is ever named. With `--json`
/// standard error belongs to failures, so nothing is logged there unless the variable asks for it.
fn start_logging(output: Output) {
    let default = if output.is_json() { "off" } else { "warn,vls_server=info,vls_server::clients=off" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VLS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    let colours = io::IsTerminal::is_terminal(&io::stderr());
    // Fails only if the program that we are part of has set up its own: then that is where the log goes.
    let _ = subscriber.with_ansi(colours).try_init();
}

fn system(action: &str, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::SystemIo, format!("cannot {action}: {error}"))
}
