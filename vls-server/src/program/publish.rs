//! `vls-server publish`: registers a signed packet with this server and with others.
//!
//! Without a file it is the server's own location record, signed with its key, so that whoever knows its id can find
//! where it is: a search path entry goes on working when the server has moved. A record is answered for as long as a
//! server's lease says, so a timer repeats it.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use checkpoint::FileDisk;
use console::{Failure, Output, table};
use schemas::{
    Address, ErrorCode, Exit, IdentityKey, LocationRecord, SearchPathEntry, SignedRecord, State, VatId,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
};
use serde_json::json;
use tokio::io::BufReader;
use transport::Endpoint;

use super::{advertise, archive, config::Configuration, control, remote::Remote, system, transfer};
use crate::{
    clock::{Clock, SystemClock},
    identity_file,
};

/// How long the server's own record is valid: the server moves seldom, and the record is signed anew each time.
const VALIDITY: Duration = Duration::from_hours(24 * 7);

/// The server has one identity and is never two: it needs no epochs.
const EPOCH: u64 = 1;

#[derive(Debug, clap::Args)]
pub(super) struct PublishArguments {
    #[command(flatten)]
    pub(super) place: super::Place,
    /// The signed packet, as GET of /pkarr/<id> gives it; - for standard input [default: the server's own record]
    file: Option<PathBuf>,
    /// Whose packet it is [default: the name of the file]
    #[arg(long, value_name = "ID", requires = "file")]
    id: Option<VatId>,
    /// Other servers to register with; repeatable. Those alone, unless --here is given
    #[arg(long = "to", value_name = "ENTRY")]
    to: Vec<SearchPathEntry>,
    /// Register with this server, too
    #[arg(long)]
    here: bool,
}

/// `vls-server publish`
pub(super) async fn publish(arguments: &PublishArguments, output: Output) -> Result<Exit, Failure> {
    let configuration = Configuration::load(&arguments.place.flags())?;
    let key = identity_file::look(&FileDisk, &configuration.data.value)?;
    let (id, packet) = match &arguments.file {
        Some(file) => read(file, arguments.id)?,
        None => {
            let record = own_record(&configuration, &key).await?;
            (record.id(), record.packet().to_vec())
        }
    };
    let mut outcomes = Vec::new();
    if arguments.here || arguments.to.is_empty() {
        outcomes.push(("this server".to_owned(), here(&configuration, id, &packet).await));
    }
    if !arguments.to.is_empty() {
        let endpoint = Endpoint::client(&key).map_err(Failure::from)?;
        for entry in &arguments.to {
            outcomes.push((entry.to_string(), there(&endpoint, entry, id, &packet).await));
        }
        endpoint.close().await;
    }
    report(id, outcomes, output)
}

fn report(id: VatId, outcomes: Vec<(String, Result<String, Failure>)>, output: Output) -> Result<Exit, Failure> {
    let (count, mut failed) = (outcomes.len(), 0);
    let mut rows = Vec::new();
    let mut data = Vec::new();
    for (server, outcome) in outcomes {
        match outcome {
            Ok(detail) => {
                data.push(json!({"server": server, "ok": true, "detail": detail}));
                rows.push(vec![server, detail]);
            }
            // If it is the only one, the command has failed for this reason.
            Err(failure) if count == 1 => return Err(failure.while_doing(&server)),
            Err(Failure { code, message, .. }) => {
                failed += 1;
                data.push(json!({"server": server, "ok": false, "detail": message, "code": code.as_str()}));
                rows.push(vec![server, format!("{message} [{code}]")]);
            }
        }
    }
    output.result(&format!("{id}\n{}", table(&rows)), &json!({"id": id.to_string(), "servers": data}))?;
    Ok(match failed {
        0 => Exit::Ok,
        _ if failed < count => Exit::Degraded,
        _ => Exit::Failed,
    })
}

fn read(file: &Path, id: Option<VatId>) -> Result<(VatId, Vec<u8>), Failure> {
    let failed = |error: std::io::Error| system(&format!("read {}", file.display()), &error);
    let named = || {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.parse().map_err(|_| {
            Failure::new(ErrorCode::CliUsage, "whose packet this is cannot be told by the name of the file")
                .next("Give --id ID, or name the file by the id.")
        })
    };
    let id = id.map_or_else(named, Ok)?;
    let source: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(std::fs::File::open(file).map_err(failed)?),
    };
    let mut packet = Vec::new();
    // One byte more than the longest: then it is refused for its length.
    let most = (PACKET_HEADER + MAX_ACCEPTED_VALUE + 1) as u64;
    source.take(most).read_to_end(&mut packet).map_err(failed)?;
    Ok((id, packet))
}

/// What this server says of itself: where it is.
async fn own_record(configuration: &Configuration, key: &IdentityKey) -> Result<SignedRecord, Failure> {
    // A server that runs knows its port.
    let running = match control::reach(&configuration.data.value).await? {
        Some(stream) => Some(control::question(stream, "status").await?),
        None => None,
    };
    let entry = running.as_ref().and_then(|status| status["entry"].as_str()?.parse().ok());
    let (host, port) = match entry {
        Some(SearchPathEntry::Vls { host, port, .. }) => (host, port),
        _ => {
            let listen = configuration.listen.value;
            (advertise::host(configuration.advertise.value.clone(), listen.ip()), listen.port())
        }
    };
    if port == 0 {
        let message = "the server does not run, and it has no fixed port";
        return Err(Failure::new(ErrorCode::ServerNotRunning, message));
    }
    let now = SystemClock.now().wall;
    let record = LocationRecord {
        epoch: EPOCH,
        turn: 0,
        chain_head: None,
        state: State::Live,
        expires: now + VALIDITY,
        addresses: vec![Address::Quic { host, port }],
        search_path: Vec::new(),
        document: None,
    };
    SignedRecord::sign(key, &record, now).map_err(Failure::from)
}

async fn here(configuration: &Configuration, id: VatId, packet: &[u8]) -> Result<String, Failure> {
    let file = archive::of_one(id, packet)?;
    let tally = transfer::take_in(configuration, &mut BufReader::new(file.as_bytes())).await?;
    let lease = configuration.server().policy.lease.as_secs();
    match tally.refused.keys().next() {
        Some(code) => {
            let code = code.parse().unwrap_or(ErrorCode::VlsRefused);
            Err(Failure::new(code, code.meaning()))
        }
        None if tally.stale > 0 => Err(Failure::new(ErrorCode::VlsStale, "the server has a higher record")),
        None if tally.conflicts > 0 => {
            Err(Failure::new(ErrorCode::VlsConflict, "the server has another record of the same epoch and time"))
        }
        None if tally.refreshed > 0 => Ok("was there".to_owned()),
        None => Ok(format!("stored, answered for {lease} s")),
    }
}

async fn there(endpoint: &Endpoint, entry: &SearchPathEntry, id: VatId, packet: &[u8]) -> Result<String, Failure> {
    let remote = Remote::dial(endpoint, entry).await?;
    let outcome = remote.register(id, packet).await;
    remote.close().await;
    outcome
}
