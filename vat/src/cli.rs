//! The command line (DESIGN §10): flat verbs for vats, nouns for the rest.
//!
//! [`program::main`](crate::program::main) runs it for any program that brings its own kinds of objects, so
//! that an object of one's own comes with `new`, `run`, `share`, `call` and all the others.

mod ask;
mod book;
mod bridge;
mod call;
mod capnp_uri;
mod connect;
mod demo;
mod doctor;
mod fetch;
mod find;
mod images;
mod key;
mod nursery;
mod outside;
mod own;
mod probe;
mod run;
mod settings;
mod upgrade;
mod way;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use console::{Failure, Output};
use schemas::{ErrorCode, Exit};

use crate::{config::Config, home::Home, kinds::Kinds};

/// A vat is a small computer that never forgets, that you reach by a link, and that can live anywhere.
#[derive(Parser)]
#[command(name = "vat", version, disable_help_subcommand = true, infer_long_args = false)]
struct Arguments {
    /// The folder that holds your vats, keys and settings [default: ~/.vat]
    #[arg(long, global = true, env = "VAT_HOME", value_name = "DIR", hide_env_values = true)]
    home: Option<PathBuf>,
    /// Print JSON on standard output, and failures as one JSON object on standard error
    #[arg(long, global = true)]
    json: bool,
    /// Ask and dial nothing that is not on this machine or in its own network
    #[arg(long, global = true)]
    local_only: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole story on this machine: real processes, a real SIGKILL, nothing forgotten
    Demo,
    /// Make a vat that holds one object
    New {
        /// What to call it on this machine
        name: String,
        /// The kind of object
        #[arg(long, value_name = "KIND")]
        object: String,
    },
    /// Run a vat in the foreground; Ctrl-C puts it to sleep
    Run {
        /// The vat's name
        name: String,
        /// Address to listen on; port 0 takes any free one
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// Address to listen on for TLS over TCP as well, for programs that have no QUIC
        #[arg(long, value_name = "ADDR")]
        listen_tls: Option<SocketAddr>,
        /// Go on from this copy although a newer one existed; names what may be lost
        #[arg(long)]
        take_over: bool,
    },
    /// The vats on this machine, and the address book
    List,
    /// What a vat is doing
    Status {
        /// The vat's name
        name: String,
    },
    /// What there is to monitor of a vat that is awake, in the text form of Prometheus
    Metrics {
        /// The vat's name
        name: String,
    },
    /// Grant an object of a vat: prints a sturdyref, which is a secret
    Share {
        /// The vat's name; NAME/PATH for an object below the vat's own
        name: String,
        /// A note of whom it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        label: String,
        /// Let it expire after this many seconds
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        expires_in: Option<u64>,
        /// Let it die with this grant, by its number
        #[arg(long, value_name = "NUMBER")]
        under: Option<u64>,
        /// Put the search path and the addresses into the reference, for finders that have none of their own
        #[arg(long)]
        with_hints: bool,
        /// Print it as capnp://, for programs that come through the vat's TLS port at this address
        #[arg(long, value_name = "HOST:PORT", conflicts_with = "with_hints", value_parser = capnp_uri::place)]
        capnp: Option<capnp_uri::Place>,
    },
    /// The grants of a vat
    Grants {
        /// The vat's name
        name: String,
    },
    /// End a grant, and every capability that was reached through it
    Revoke {
        /// The vat's name
        name: String,
        /// The grant's number, as `vat grants` shows it
        number: u64,
    },
    /// Find a vat: its record, addresses and age
    Resolve {
        /// A vat's name, vat://<id>, or the id alone
        target: String,
        /// Show what each place answered that was asked
        #[arg(long)]
        explain: bool,
        /// Go on, and print a line whenever the vat comes, moves or goes, until SIGINT
        #[arg(long, conflicts_with = "explain")]
        watch: bool,
    },
    /// Keep a sturdyref that you were given under a name of yours
    Accept {
        /// Your name for it
        petname: String,
        /// The sturdyref, or - to read it from standard input
        sturdyref: String,
    },
    /// Forget an entry of the address book
    Forget {
        /// The name that you gave it
        petname: String,
    },
    /// Call a method; without a method, show what there is to call
    Call {
        /// A sturdyref, - to read one from standard input, an address book entry, or a vat's name; NAME/PATH for an
        /// object that is held below
        target: String,
        /// The method
        method: Option<String>,
        /// key=value for each argument, or one JSON object
        arguments: Vec<String>,
        /// Seconds to wait for the answer
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
        timeout: Option<u32>,
    },
    /// Fetch the content of a note, however large, into a file; goes on where it stopped
    Fetch {
        /// A sturdyref, - to read one from standard input, an address book entry, or a vat's name; NAME/PATH for an
        /// object that is held below
        target: String,
        /// The note
        name: String,
        /// The file to write; until it is complete, what has come lies beside it
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Seconds to wait for each answer
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
        timeout: Option<u32>,
    },
    /// Let your programs in other languages reach every vat, through a socket that only they can use
    Bridge {
        /// Where to listen: unix:PATH
        #[arg(long, value_name = "unix:PATH", value_parser = bridge::unix_path)]
        listen: PathBuf,
    },
    /// Write a vat into one sealed file
    Export {
        /// The vat's name
        name: String,
        /// The file, which must not exist yet
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// For whom to seal it: what `vat key recipient` says in another home [default: this home]
        #[arg(long, value_name = "RECIPIENT")]
        to: Option<String>,
        /// Seal it under a passphrase: ask for one, or with - read it from standard input
        #[arg(long, value_name = "-", conflicts_with = "to")]
        passphrase: Option<Option<String>>,
    },
    /// Take in a vat that somebody has exported for this home: the same vat, to be woken here
    Import {
        /// The file
        file: PathBuf,
        /// What to call it here [default: what it was called]
        name: Option<String>,
        /// It is sealed under a passphrase: ask for it, or with - read it from standard input
        #[arg(long, value_name = "-")]
        passphrase: Option<Option<String>>,
    },
    /// Put an image of a vat into the folder for backups, and remove the oldest ones there
    #[command(group = clap::ArgGroup::new("whose").required(true).args(["name", "all"]))]
    Backup {
        /// The vat's name
        name: Option<String>,
        /// Every vat of this home
        #[arg(long)]
        all: bool,
        /// The folder [default: backup.folder in the configuration]
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Go back to an image: as a new vat that begins like it, or as the vat itself
    #[command(group = clap::ArgGroup::new("as").required(true).args(["as_copy", "take_over"]))]
    Restore {
        /// The file
        file: PathBuf,
        /// Make a new vat of this name, with an identity of its own
        #[arg(long, value_name = "NAME")]
        as_copy: Option<String>,
        /// Go on as the vat itself, although a newer copy may exist; names what may be lost
        #[arg(long)]
        take_over: bool,
        /// With --take-over: what to call it, if it is not here already [default: what it was called]
        #[arg(conflicts_with = "as_copy")]
        name: Option<String>,
        /// It is sealed under a passphrase: ask for it, or with - read it from standard input
        #[arg(long, value_name = "-")]
        passphrase: Option<Option<String>>,
    },
    /// Read everything that a vat or an image holds, and say whether it is whole
    Verify {
        /// A vat's name, or a file
        target: String,
        /// The file is sealed under a passphrase: ask for it, or with - read it from standard input
        #[arg(long, value_name = "-")]
        passphrase: Option<Option<String>>,
    },
    /// Bring everything that a sleeping vat has stored to the newest form, in one step or not at all
    Upgrade {
        /// The vat's name
        name: String,
        /// Only try whether it works
        #[arg(long)]
        dry_run: bool,
    },
    /// The search path: location servers to register with and to ask
    #[command(subcommand)]
    Vls(VlsCommand),
    /// The keys that open your vats' checkpoints
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// The settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check this machine and the settings, and say what is wrong
    Doctor,
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Explain an error code or a command; without either, list all codes
    Help {
        /// An error code such as vls.no_answer, or a command
        code: Option<String>,
    },
}

#[derive(Subcommand)]
enum VlsCommand {
    /// Add a location server: the line that it prints when it starts, or its URL
    Add {
        /// vls://<id>@<host>:<port>, https://<host>, or dns:<origin> to ask and not to register
        entry: String,
        /// What its operator gave you, if it takes new vats by invitation only; - reads it from standard input, where
        /// other users of this machine do not see it
        #[arg(long, value_name = "TEXT")]
        invite: Option<String>,
    },
    /// The search path, and how good each entry has been
    List,
    /// Take a location server out of the search path
    Remove {
        /// The entry, as `vat vls list` shows it
        entry: String,
    },
    /// Ask a location server whether it is there, and what time it is
    Test {
        /// The entry
        entry: String,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Every setting, its value, and where that came from
    Show,
}

/// What every command works with.
struct Context {
    home: Home,
    config: Config,
    kinds: Kinds,
    output: Output,
}

/// The first word with which `vat demo` starts a location server.
const LOCATION_SERVER: &str = "location-server";

/// Runs the program with the process's own arguments.
pub(crate) fn main(kinds: Kinds) -> ExitCode {
    // `vat demo` starts a location server from its own executable; it is no command for users.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == LOCATION_SERVER) {
        return vls_server::program::main_with(words);
    }
    let json = console::wants_json(std::env::args_os());
    let arguments = match command().try_get_matches().and_then(|found| Arguments::from_arg_matches(&found)) {
        Ok(arguments) => arguments,
        Err(error) => return exit(console::usage(&error, Output::new(json))),
    };
    let output = Output::new(arguments.json);
    start_logging(output);
    // References and keys pass through every command.
    if let Err(error) = checkpoint::forbid_core_dumps() {
        tracing::warn!(%error, "core dumps could not be forbidden");
    }
    exit(match dispatch(arguments, kinds, output) {
        Ok(status) => status,
        Err(failure) => output.failure(&failure),
    })
}

/// What this program is called: one that brings kinds of its own has a name of its own.
fn program() -> String {
    let path = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    path.file_name().map_or_else(|| "vat".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn command() -> clap::Command {
    Arguments::command().bin_name(program())
}

fn exit(status: Exit) -> ExitCode {
    ExitCode::from(status as u8)
}

/// `VAT_LOG=debug` shows what happens inside, on standard error; by default only warnings, and nothing beside
/// the one JSON object where a program reads it.
fn start_logging(output: Output) {
    let default = if output.is_json() { "off" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VAT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).with_target(false).init();
}

fn dispatch(arguments: Arguments, kinds: Kinds, output: Output) -> Result<Exit, Failure> {
    // These need no home folder, and must work when it is broken.
    match &arguments.command {
        Command::Completions { shell } => return settings::completions(*shell, &mut command(), output),
        Command::Help { code } => {
            let mut all = command();
            match code.as_deref().and_then(|word| all.find_subcommand_mut(word)) {
                // Codes have a dot in them, commands have none.
                Some(known) => {
                    let name = format!("{} {}", program(), known.get_name());
                    let help = known.clone().bin_name(name).render_long_help().to_string();
                    output.result(help.trim_end(), &serde_json::json!({"help": help}))?;
                }
                None => console::help("vat", code.as_deref(), output)?,
            }
            return Ok(Exit::Ok);
        }
        Command::Demo => return demo::demo(output),
        _ => {}
    }
    let root = arguments.home.map_or_else(Home::default_root, Ok)?;
    if matches!(arguments.command, Command::Doctor) {
        return doctor::doctor(&root, output);
    }
    let home = Home::open(&root)?;
    let mut config = Config::load(&home)?;
    config.local_only = config.local_only.or_argument(arguments.local_only.then_some(true));
    let context = Context { home, config, kinds, output };
    match arguments.command {
        Command::New { name, object } => own::new(&context, &name, &object),
        Command::Run { name, listen, listen_tls, take_over } => {
            run::run(context, &name, run::Listen { quic: listen, tls: listen_tls }, take_over)
        }
        Command::List => own::list(&context),
        Command::Metrics { name } => own::metrics(&context, &name),
        Command::Status { name } => own::status(&context, &name),
        Command::Share { name, label, expires_in, under, with_hints, capnp } => {
            let form = capnp.map_or(own::Form::Vat { with_hints }, own::Form::Capnp);
            own::share(&context, &name, &own::Terms { label, expires_in, under }, &form)
        }
        Command::Grants { name } => own::grants(&context, &name),
        Command::Revoke { name, number } => own::revoke(&context, &name, number),
        Command::Resolve { target, watch: true, .. } => find::watch(&context, &target),
        Command::Resolve { target, explain, .. } => find::resolve(&context, &target, explain),
        Command::Accept { petname, sturdyref } => book::accept(&context, &petname, &sturdyref),
        Command::Forget { petname } => book::forget(&context, &petname),
        Command::Call { target, method, arguments, timeout } => {
            let timeout = timeout.map(|seconds| Duration::from_secs(u64::from(seconds)));
            call::call(&context, &target, method.as_deref(), &arguments, timeout)
        }
        Command::Fetch { target, name, output, timeout } => {
            let timeout = timeout.map(|seconds| Duration::from_secs(u64::from(seconds)));
            fetch::fetch(&context, &target, &name, &output, timeout)
        }
        Command::Bridge { listen } => bridge::bridge(context, &listen),
        Command::Export { name, output, to, passphrase } => {
            images::export(&context, &name, &output, to.as_deref(), passphrase)
        }
        Command::Backup { name, folder, .. } => images::backup(&context, name.as_deref(), folder.as_deref()),
        Command::Import { file, name, passphrase } => images::import(&context, &file, name.as_deref(), passphrase),
        Command::Restore { file, as_copy: Some(name), passphrase, .. } => {
            images::restore_as_copy(&context, &file, &name, passphrase)
        }
        Command::Restore { file, name, passphrase, .. } => {
            images::restore_taking_over(&context, &file, name.as_deref(), passphrase)
        }
        Command::Verify { target, passphrase } => images::verify(&context, &target, passphrase),
        Command::Upgrade { name, dry_run } => upgrade::upgrade(&context, &name, dry_run),
        Command::Vls(VlsCommand::Add { entry, invite }) => settings::add(&context, &entry, invite.as_deref()),
        Command::Vls(VlsCommand::List) => settings::list(&context),
        Command::Vls(VlsCommand::Remove { entry }) => settings::remove(&context, &entry),
        Command::Vls(VlsCommand::Test { entry }) => find::test(&context, &entry),
        Command::Key(command) => key::key(&context, command),
        Command::Config(ConfigCommand::Show) => settings::show(&context),
        Command::Demo | Command::Doctor | Command::Completions { .. } | Command::Help { .. } => Ok(Exit::Ok),
    }
}

/// Runs the network part of a command: one thread, one event loop, as everywhere in this project.
fn block_on<R>(work: impl Future<Output = Result<R, Failure>>) -> Result<R, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::new(ErrorCode::SystemIo, format!("the event loop did not start: {error}")))?;
    let done = tokio::task::LocalSet::new().block_on(&runtime, work);
    // A name lookup that hangs must not keep the program after it has its answer.
    runtime.shutdown_background();
    done
}
