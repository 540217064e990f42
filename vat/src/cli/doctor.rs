//! `vat doctor`: looks at everything that a vat here depends on, and says what is wrong and what to do.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use console::{Failure, Output, table};
use schemas::{Address, ErrorCode, Exit, SearchPathEntry, vat_capnp};
use serde_json::json;
use vls_client::CarrierConfig;

use super::{
    block_on,
    connect::{client_endpoint, failure, owner, within},
    outside::Outside,
    own::addresses,
    probe::probe,
};
use crate::{
    config::Config,
    home::{Home, Name, Places, make_folder},
    limits::{LOCAL_DEADLINE, MIN_FREE_BYTES},
    process::{let_others_in, system_clock},
};

/// One thing that was looked at.
struct Finding {
    what: String,
    outcome: Result<String, Failure>,
}

impl Finding {
    fn new(what: impl Into<String>, outcome: Result<String, Failure>) -> Self {
        Self { what: what.into(), outcome }
    }
}

/// `vat doctor`
pub(super) fn doctor(root: &Path, output: Output) -> Result<Exit, Failure> {
    let mut findings = Vec::new();
    let home = Home::open(root);
    findings
        .push(Finding::new("home folder", home.as_ref().map(|home| home.root().display().to_string()).map_err(again)));
    if let Ok(home) = &home {
        look_at_home(home, &mut findings);
    }
    findings.push(Finding::new("open files", open_files()));
    findings
        .push(Finding::new("UDP", block_on(async { client_endpoint() }).map(|_| "sockets can be opened".to_owned())));
    print(&findings, output)
}

fn look_at_home(home: &Home, findings: &mut Vec<Finding>) {
    findings.push(Finding::new("free space", free_space(home.root())));
    findings.push(Finding::new("local sockets", sockets(home)));
    for key in keys(home) {
        findings.push(Finding::new(format!("key {}", key.display()), key_mode(&key)));
    }
    // What is wrong with them is a finding below.
    let config = Config::load(home);
    let credentials = config.as_ref().map(|config| config.credentials.clone()).unwrap_or_default();
    match home.names() {
        Err(error) => findings.push(Finding::new("vats", Err(error.into()))),
        Ok(names) => {
            for name in names {
                let outcome = home.vat(&name).map_err(Failure::from).and_then(|(places, id)| {
                    // A credential is there while the service manager runs the vat, which is not now.
                    let has_credential = credentials.contains_key(&name);
                    if !has_credential && !places.key_file.exists() {
                        let message = format!("its key file {} is missing", places.key_file.display());
                        return Err(Failure::new(ErrorCode::KeyMissing, message));
                    }
                    Ok(format!("vat://{id}"))
                });
                findings.push(Finding::new(format!("vat {name}"), outcome));
                let seen = home.vat(&name).ok().and_then(|(places, _)| seen_from_outside(&name, &places).transpose());
                findings.extend(seen.map(|seen| Finding::new(format!("vat {name} from outside"), seen)));
            }
        }
    }
    match config {
        Err(error) => findings.push(Finding::new("settings", Err(error.into()))),
        Ok(config) if config.search_path.value.is_empty() => {
            let nobody =
                Failure::new(ErrorCode::VlsEmptyPath, "the search path is empty: vats are found on this machine only");
            findings.push(Finding::new("search path", Err(nobody)));
        }
        Ok(config) => config.search_path.value.iter().for_each(|entry| {
            findings.push(Finding::new(format!("server {entry}"), server(config.carriers(), entry)));
        }),
    }
}

/// Whether others get through to a vat, as it has been told; `None` while it sleeps, or if no server has dialled it yet.
fn seen_from_outside(name: &Name, places: &Places) -> Result<Option<String>, Failure> {
    let told = block_on(async {
        let Some((owner, _session)) = owner(name, places).await? else { return Ok(None) };
        let response = within(LOCAL_DEADLINE, owner.status_request().send().promise).await?;
        let read =
            |status: vat_capnp::status::Reader<'_>| Ok((Outside::read(status.get_outside()?)?, addresses(status)?));
        let read = response.get().and_then(|results| read(results.get_status()?));
        let (outside, addresses) = read.map_err(failure)?;
        Ok(outside.map(|outside| (outside, addresses)))
    })?;
    let Some((outside, addresses)) = told else { return Ok(None) };
    let Some((code, _)) = &outside.reason else { return Ok(Some(outside.line())) };
    // A code of a later version: what it means is in the message.
    let failure = Failure::new(code.parse().unwrap_or(ErrorCode::NetUnreachable), outside.line());
    let port = addresses.iter().find_map(|address| match address.parse() {
        Ok(Address::Quic { port, .. }) => Some(port),
        _ => None,
    });
    Err(match port {
        Some(port) => failure.next(let_others_in(port)),
        None => failure,
    })
}

/// The same failure once more, for an error that is looked at by reference.
fn again(error: &crate::home::HomeError) -> Failure {
    use schemas::Coded;
    let failure = Failure::new(error.code(), error.to_string());
    match error.next() {
        Some(next) => failure.next(next),
        None => failure,
    }
}

fn free_space(root: &Path) -> Result<String, Failure> {
    let found = rustix::fs::statvfs(root)
        .map_err(|error| Failure::new(ErrorCode::SystemIo, format!("{}: {error}", root.display())))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < MIN_FREE_BYTES {
        return Err(Failure::new(ErrorCode::CheckpointDiskFull, format!("{} MB are free", free >> 20)));
    }
    Ok(format!("{} MB", free >> 20))
}

fn sockets(home: &Home) -> Result<String, Failure> {
    let folder = home.root().join("run");
    make_folder(&folder)?;
    Ok(folder.display().to_string())
}

fn keys(home: &Home) -> Vec<PathBuf> {
    let mut keys = vec![home.address_book_key(), home.recipient_key()];
    if let Ok(entries) = fs::read_dir(home.root().join("keys").join("vats")) {
        keys.extend(entries.flatten().map(|entry| entry.path()));
    }
    keys.retain(|key| key.exists());
    keys.sort();
    keys
}

fn key_mode(path: &Path) -> Result<String, Failure> {
    let found = fs::metadata(path)
        .map_err(|error| Failure::new(ErrorCode::KeyMissing, format!("{}: {error}", path.display())))?;
    if found.mode() & 0o077 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
        let message = format!("mode {:04o}, owner {}", found.mode() & 0o7777, found.uid());
        return Err(Failure::new(ErrorCode::KeyMode, message).next(format!("chmod 600 {}", path.display())));
    }
    Ok("mode 0600".to_owned())
}

fn server(carriers: CarrierConfig, entry: &SearchPathEntry) -> Result<String, Failure> {
    let answer = block_on(async {
        let endpoint = client_endpoint()?;
        let answer = probe(carriers, &endpoint, entry).await;
        endpoint.close().await;
        answer
    })?;
    let skew = answer.time.as_seconds().abs_diff(system_clock()().as_seconds());
    if skew > schemas::limits::MAX_CLOCK_AHEAD.as_secs() {
        let message = format!("its clock and this one differ by {skew} s: records signed here will be refused");
        return Err(Failure::new(ErrorCode::RecordFuture, message));
    }
    Ok(format!("answers; its clock differs by {skew} s"))
}

fn open_files() -> Result<String, Failure> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        // Every session of a vat may need a descriptor of its own on the local socket.
        Some(limit) if limit < transport::limits::SESSIONS as u64 => {
            let message = format!("this process may open only {limit} files");
            Err(Failure::new(ErrorCode::SystemIo, message)
                .next(format!("ulimit -n {}", transport::limits::SESSIONS * 2)))
        }
        Some(limit) => Ok(format!("up to {limit}")),
        None => Ok("no limit".to_owned()),
    }
}

fn print(findings: &[Finding], output: Output) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    let mut data = Vec::new();
    for Finding { what, outcome } in findings {
        match outcome {
            Ok(detail) => {
                rows.push(vec!["ok".to_owned(), what.clone(), detail.clone()]);
                data.push(json!({"check": what, "ok": true, "detail": detail}));
            }
            Err(failure) => {
                let next = failure.next.as_deref().unwrap_or(failure.code.next());
                rows.push(vec!["PROBLEM".to_owned(), what.clone(), format!("{} [{}]", failure.message, failure.code)]);
                rows.push(vec![String::new(), String::new(), format!("next: {next}")]);
                data.push(json!({
                    "check": what, "ok": false, "detail": failure.message, "code": failure.code.as_str(), "next": next,
                }));
            }
        }
    }
    output.result(&table(&rows), &json!({"findings": data}))?;
    let healthy = findings.iter().all(|finding| finding.outcome.is_ok());
    Ok(if healthy { Exit::Ok } else { Exit::Degraded })
}
