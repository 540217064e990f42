//! `vls-server export` and `vls-server import`: all records to one file and back ([`archive`]).
//!
//! The server that runs does it, through its control socket; when none runs, its folder is opened here.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use checkpoint::{Disk, FileDisk};
use console::{Failure, Output};
use schemas::{ErrorCode, Exit};
use serde_json::json;
use tokio::{
    fs::File,
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter},
};

use super::{
    archive::{self, Tally},
    config::{Configuration, Flags},
    control, system,
};
use crate::{clock::SystemClock, durable::DurableRegistry, identity_file, server};

/// `vls-server export FILE`
pub(super) async fn export(flags: &Flags, path: &Path, output: Output) -> Result<Exit, Failure> {
    let configuration = Configuration::load(flags)?;
    if path == Path::new("-") {
        // Its last line tells how many there are.
        send(&configuration, &mut tokio::io::stdout()).await?;
        return Ok(Exit::Ok);
    }
    let exists = || Failure::new(ErrorCode::ImageExists, format!("{} is there already", path.display()));
    if path.exists() {
        return Err(exists());
    }
    // It gets its name once it is whole and durable.
    let suffix = getrandom::u64().map_err(|error| Failure::new(ErrorCode::SystemRandom, error.to_string()))?;
    let mut name = path.file_name().map(ToOwned::to_owned).ok_or_else(exists)?;
    name.push(format!(".new-{suffix:016x}"));
    let unfinished = path.with_file_name(name);
    let written = write_file(&configuration, &unfinished).await.and_then(|records| {
        match FileDisk.rename_new(&unfinished, path) {
            Ok(()) => Ok(records),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists()),
            Err(error) => Err(system(&format!("name {}", path.display()), &error)),
        }
    });
    if written.is_err() {
        // What has failed is reported; what stays behind then is a file with a name that says so.
        let _ = FileDisk.remove(&unfinished);
    }
    let records = written?;
    let human = format!("{} holds {records} records", path.display());
    output.result(&human, &json!({"file": path, "records": records}))?;
    Ok(Exit::Ok)
}

async fn write_file(configuration: &Configuration, path: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| system(&format!("write {}", path.display()), &error);
    let file = File::options().write(true).create_new(true).open(path).await.map_err(failed)?;
    let mut out = BufWriter::new(file);
    let records = send(configuration, &mut out).await?;
    out.flush().await.map_err(failed)?;
    out.get_ref().sync_all().await.map_err(failed)?;
    Ok(records)
}

/// Has the records written; tells how many.
async fn send(configuration: &Configuration, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Failure> {
    let data = &configuration.data.value;
    let Some(stream) = control::reach(data).await? else {
        let registry = open(configuration)?;
        let records = archive::export(&registry, out).await?;
        registry.close().map_err(Failure::from)?;
        return Ok(records);
    };
    let (reading, mut writing) = stream.into_split();
    writing.write_all(b"export\n").await.map_err(|error| system("ask the server", &error))?;
    let mut reading = BufReader::new(reading);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reading.read_until(b'\n', &mut line).await.map_err(|error| system("hear the server", &error))?;
        let last = serde_json::from_slice(&line).ok();
        if let Some(failure) = last.as_ref().and_then(control::failure_in) {
            return Err(failure);
        }
        if length == 0 {
            return Err(Failure::new(ErrorCode::ServerStopping, "the server ended before it had told all"));
        }
        out.write_all(&line).await.map_err(|error| system("write the records", &error))?;
        if let Some(records) = last.and_then(|last| last.get("records")?.as_u64()) {
            out.flush().await.map_err(|error| system("write the records", &error))?;
            return Ok(records);
        }
    }
}

/// `vls-server import FILE`
pub(super) async fn import(flags: &Flags, path: &Path, output: Output) -> Result<Exit, Failure> {
    let configuration = Configuration::load(flags)?;
    let lines: Box<dyn AsyncRead + Unpin> = if path == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let failed = |error| system(&format!("read {}", path.display()), &error);
        Box::new(File::open(path).await.map_err(failed)?)
    };
    let tally = take_in(&configuration, &mut BufReader::new(lines)).await?;
    let refused: Vec<String> =
        tally.refused.iter().map(|(code, count)| format!(", {count} refused [{code}]")).collect();
    let mut human = format!(
        "{} stored, {} were here, {} are older than what is here, {} contradict what is here{}",
        tally.stored,
        tally.refreshed,
        tally.stale,
        tally.conflicts,
        refused.concat()
    );
    if !tally.complete {
        human.push_str("\nThe file has no end: it was cut. What it has was taken in.");
    }
    output.result(&human, &json!(tally))?;
    Ok(if tally.complete && tally.refused.is_empty() { Exit::Ok } else { Exit::Degraded })
}

/// Has records taken in by the server of this data folder, whether it runs or not.
pub(super) async fn take_in(
    configuration: &Configuration,
    lines: &mut (impl AsyncBufRead + Unpin),
) -> Result<Tally, Failure> {
    let Some(stream) = control::reach(&configuration.data.value).await? else {
        let registry = open(configuration)?;
        let tally = archive::import(&registry, lines).await;
        registry.close().map_err(Failure::from)?;
        return tally;
    };
    let (reading, mut writing) = stream.into_split();
    let sending = async {
        writing.write_all(b"import\n").await?;
        tokio::io::copy_buf(lines, &mut writing).await?;
        writing.shutdown().await
    };
    let mut reading = BufReader::new(reading);
    let mut replied = pin!(control::reply(&mut reading));
    // A server that refuses something says so at once, however much there would be to send. That it reads no further is
    // no failure of its own: whatever it is, it tells.
    let tally = tokio::select! {
        replied = replied.as_mut() => replied,
        _ = sending => replied.await,
    }?;
    serde_json::from_value(tally).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))
}

/// Opens the records of a server that does not run.
pub(super) fn open(configuration: &Configuration) -> Result<Rc<DurableRegistry>, Failure> {
    let config = configuration.server();
    let key = identity_file::load(config.disk.as_ref(), &config.data, false)?;
    let store: PathBuf = config.data.join(server::STORE);
    let clock = Rc::new(SystemClock);
    let registry = DurableRegistry::open(Arc::clone(&config.disk), &store, key.id(), config.policy, clock)?;
    Ok(Rc::new(registry))
}
