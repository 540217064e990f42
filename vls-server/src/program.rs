//! The `vls-server` program (DESIGN §10).
//!
//! In the library, so that other binaries can be a location server too: `vat demo` starts one from its own
//! executable.

mod advertise;
mod archive;
mod check;
mod config;
mod control;
mod files;
mod init;
mod invite;
mod logging;
mod notify;
mod publish;
mod remote;
mod run;
mod sandbox;
mod status;
mod transfer;

use std::{ffi::OsString, future::Future, io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use console::{Failure, Output};
use schemas::{ErrorCode, Exit};

use self::{
    check::CheckArguments, config::Flags, init::InitArguments, invite::InviteCommand, publish::PublishArguments,
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
    /// Make a data folder, a key and a configuration file; what is there already stays as it is
    Init(InitArguments),
    /// Serve until SIGINT or SIGTERM. Once it serves, it prints one line to add to search paths:
    /// vls://<id>@<host>:<port>. SIGHUP has it read its configuration again
    Run(Box<Flags>),
    /// Say what keeps the server from serving, or from serving well, and what to do about it
    Check(Box<CheckArguments>),
    /// Say how the running server is doing
    Status(Place),
    /// Tell each setting and where it came from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Register a signed packet, or the server's own record, with this server or with others
    Publish(Box<PublishArguments>),
    /// Write all records to a file; the server may run meanwhile
    Export(FileArguments),
    /// Take in the records of a file; the server may run meanwhile
    Import(FileArguments),
    /// Make, list and revoke invites to a server that takes new vats by invitation only; the server may run meanwhile
    #[command(subcommand)]
    Invite(InviteCommand),
    /// Explain an error code, or list all of them
    Help {
        /// An error code such as vls.quota
        code: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Tell each setting and where it came from
    Show(Box<Flags>),
}

/// Which server is meant.
#[derive(Debug, Clone, clap::Args)]
struct Place {
    /// Configuration file [default: /etc/vls-server/vls-server.toml, if it is there and --data is not given]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the server's key and records
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Place {
    fn flags(&self) -> Flags {
        Flags::of(self.config.clone(), self.data.clone())
    }
}

#[derive(Debug, clap::Args)]
struct FileArguments {
    #[command(flatten)]
    place: Place,
    /// The file; - for standard output or input
    file: PathBuf,
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
        Ok(Arguments { command, .. }) => carry_out(command, output),
        Err(error) => return ExitCode::from(console::usage(&error, output) as u8),
    };
    let exit = match result {
        Ok(exit) => exit,
        Err(failure) => output.failure(&failure),
    };
    ExitCode::from(exit as u8)
}

fn carry_out(command: Command, output: Output) -> Result<Exit, Failure> {
    match command {
        Command::Init(arguments) => init::init(&arguments, output),
        Command::Run(flags) => block_on(run::run(&flags, output)),
        Command::Check(arguments) => block_on(check::check(&arguments, output)),
        Command::Status(place) => block_on(status::status(&place.flags(), output)),
        Command::Config(ConfigCommand::Show(flags)) => config::show(&flags, output).map(|()| Exit::Ok),
        Command::Publish(arguments) => block_on(publish::publish(&arguments, output)),
        Command::Export(FileArguments { place, file }) => block_on(transfer::export(&place.flags(), &file, output)),
        Command::Import(FileArguments { place, file }) => block_on(transfer::import(&place.flags(), &file, output)),
        Command::Invite(command) => block_on(invite::invite(&command, output)),
        Command::Help { code } => console::help("vls-server", code.as_deref(), output).map(|()| Exit::Ok),
    }
}

/// Runs what has to do with the network: one thread, one event loop.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| system("start the event loop", &error))?;
    let done = tokio::task::LocalSet::new().block_on(&runtime, work);
    // A name lookup that hangs must not keep the program.
    runtime.shutdown_background();
    done
}

fn system(action: &str, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::SystemIo, format!("cannot {action}: {error}"))
}
