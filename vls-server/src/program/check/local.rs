//! What can be looked at without anybody else.

use std::{fs, io, net::SocketAddr, os::unix::fs::MetadataExt, path::Path, time::Duration};

use checkpoint::{Disk, FileDisk};
use console::{Failure, size};
use schemas::{Coded, ErrorCode, IdentityKey, Timestamp};
use serde_json::Value;
use tokio::net::{TcpListener, UdpSocket};
use transport::{Endpoint, EndpointConfig};

use super::{Finding, Outcome};
use crate::{
    clock::{Clock, SystemClock},
    durable::holds_records,
    identity_file::{self, IdentityFileError},
    limits,
    program::{config::Configuration, files},
    server::{self, CertificateFiles, Inspected, ServerError},
};

/// Others may make and remove files in it.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A clock before this was never set: the year in which this was written.
const WRITTEN: Timestamp = Timestamp::from_seconds(1_767_225_600);

/// The data folder with the key and the disk that it is on. Gives the key, or one that stands for it where there is
/// none yet.
pub(super) fn folder(configuration: &Configuration, findings: &mut Vec<Finding>) -> Option<IdentityKey> {
    let data = &configuration.data.value;
    let metadata = match fs::metadata(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let detail = format!("{} is not there yet; it will be made", data.display());
            findings.push(Finding::new("data folder", Outcome::Well(detail)));
            return IdentityKey::generate().ok();
        }
        metadata => metadata,
    };
    findings.push(Finding::new(
        "data folder",
        metadata.map_or_else(
            |error| folder_error(data, &error),
            |metadata| {
                let mode = metadata.mode() & 0o7777;
                if mode & WRITABLE_BY_OTHERS != 0 {
                    let message =
                        format!("{} has mode {mode:04o}, so others can put a key of theirs there", data.display());
                    let next = format!("chmod 700 {}", data.display());
                    return Outcome::Failed(Failure::new(ErrorCode::KeyMode, message).next(next));
                }
                Outcome::Well(data.display().to_string())
            },
        ),
    ));
    let key = key(data, findings);
    findings.push(Finding::new("disk", disk(data)));
    key
}

fn folder_error(data: &Path, error: &io::Error) -> Outcome {
    Outcome::Failed(Failure::new(ErrorCode::SystemIo, format!("cannot look at {}: {error}", data.display())))
}

fn key(data: &Path, findings: &mut Vec<Finding>) -> Option<IdentityKey> {
    let has_records = match holds_records(&FileDisk, &data.join(server::STORE)) {
        Ok(has_records) => has_records,
        Err(error) => {
            findings.push(Finding::new("records", folder_error(data, &error)));
            // Then a key that is missing is no reason for joy.
            true
        }
    };
    let (outcome, key) = match identity_file::look(&FileDisk, data) {
        Ok(key) => (Outcome::Well(format!("of {}", key.id())), Some(key)),
        Err(IdentityFileError::Missing { .. }) if !has_records => {
            (Outcome::Well("not there yet; it will be made".to_owned()), IdentityKey::generate().ok())
        }
        Err(error) => (Outcome::Failed(error.into()), None),
    };
    findings.push(Finding::new("key", outcome));
    key
}

/// Whether what is written there becomes durable, and how much more fits.
fn disk(data: &Path) -> Outcome {
    if let Err(error) = write(data) {
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::CheckpointDiskFull,
            _ => ErrorCode::CheckpointDisk,
        };
        let message = format!("cannot write to {}: {error}", data.display());
        return Outcome::Failed(Failure::new(code, message).next(match code {
            ErrorCode::CheckpointDiskFull => "Make room, then start the server again.",
            _ => "Let the user that runs the server write there.",
        }));
    }
    let free = match rustix::fs::statvfs(data) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => return folder_error(data, &error.into()),
    };
    if free < limits::FREE_BYTES {
        let message = format!("it takes what is written, and has room for {} more", size(free));
        return Outcome::Degraded(Failure::new(ErrorCode::CheckpointDiskFull, message).next("Make room."));
    }
    Outcome::Well(format!("takes what is written; {} are free", size(free)))
}

/// Writes a file as the journal does, and removes it.
fn write(data: &Path) -> io::Result<()> {
    let path = data.join(format!(".check-{:016x}", getrandom::u64().map_err(io::Error::other)?));
    let file = FileDisk.create(&path)?;
    let written = file.write_all_at(0, &[0; limits::CHECK_BYTES]).and_then(|()| file.sync_data());
    let removed = FileDisk.remove(&path).and_then(|()| FileDisk.sync_directory(data));
    written.and(removed)
}

pub(super) fn open_files(configuration: &Configuration) -> Outcome {
    let (needed, permitted) = (files::needed(configuration), files::permitted());
    let failure = || {
        let message = format!("the server may open {permitted} files, its connections need {needed}");
        let next =
            format!("LimitNOFILE={needed} in the systemd unit, or `ulimit -n {needed}` in the shell that starts it.");
        Failure::new(ErrorCode::ServerFileLimit, message).next(next)
    };
    match permitted {
        permitted if permitted < limits::OWN_FILES as u64 => Outcome::Failed(failure()),
        permitted if permitted < needed => Outcome::Degraded(failure()),
        u64::MAX => Outcome::Well("no limit".to_owned()),
        permitted => Outcome::Well(format!("up to {permitted}, {needed} are needed")),
    }
}

pub(super) fn clock() -> Outcome {
    let now = SystemClock.now().wall;
    if now < WRITTEN {
        let message = format!("the clock says {now}, which is before this program was written");
        return Outcome::Failed(Failure::new(ErrorCode::ServerClockSkew, message));
    }
    Outcome::Well(now.to_string())
}

/// Whether the certificate can be used, for how long, and for the name by which others reach this machine.
pub(super) fn certificate(files: &CertificateFiles, host: Option<&str>) -> Outcome {
    let failure = |message: String| Failure::new(ErrorCode::ServerCertificate, message);
    let inspected = match Inspected::read(files) {
        Ok(inspected) => inspected,
        Err(error) => return Outcome::Failed(error.into()),
    };
    let Some((not_before, not_after)) = inspected.valid() else {
        return Outcome::Failed(failure("the certificate does not say when it is valid".to_owned()));
    };
    let now = SystemClock.now().wall;
    let renew = "Have it renewed; the server takes up the new one by itself.";
    if now < not_before {
        return Outcome::Failed(failure(format!("the certificate is not valid before {not_before}")));
    }
    if now > not_after {
        return Outcome::Failed(failure(format!("the certificate has expired, on {not_after}")).next(renew));
    }
    if let Some(host) = host.filter(|host| !inspected.is_for(host)) {
        let message = format!("the certificate is not for {host}, by which others are to reach this server");
        return Outcome::Degraded(failure(message).next("Have one made for that name, or correct `advertise`."));
    }
    let left = not_after.saturating_since(now);
    let days = left.as_secs() / Duration::from_hours(24).as_secs();
    if left < limits::CERTIFICATE_LEFT {
        return Outcome::Degraded(failure(format!("the certificate expires in {days} days")).next(renew));
    }
    Outcome::Well(format!("valid for {days} days"))
}

/// One port of the server.
pub(super) struct Port {
    pub(super) carrier: &'static str,
    pub(super) number: u16,
    pub(super) is_tcp: bool,
}

/// What was opened to see that it can be, and stays open for those who try to reach it.
#[derive(Default)]
pub(super) struct Ports {
    pub(super) all: Vec<Port>,
    pub(super) endpoint: Option<Endpoint>,
    streams: Vec<TcpListener>,
}

impl Ports {
    pub(super) async fn close(self) {
        if let Some(endpoint) = self.endpoint {
            endpoint.close().await;
        }
    }
}

/// Opens every port, but for those that the running server has.
pub(super) async fn ports(
    configuration: &Configuration,
    status: Option<&Value>,
    key: &Option<IdentityKey>,
    findings: &mut Vec<Finding>,
) -> Ports {
    let mut ports = Ports::default();
    let served = |carrier: &str| -> Option<SocketAddr> { status?[carrier].as_str()?.parse().ok() };
    let asked = [
        ("listen", Some(configuration.listen.value)),
        ("http", configuration.http.value),
        ("dns", configuration.dns.value),
    ];
    for (carrier, address) in asked.into_iter().filter_map(|(carrier, address)| Some((carrier, address?))) {
        let what = match carrier {
            "listen" => format!("port {address}/udp"),
            "http" => format!("port {address}/tcp"),
            _ => format!("port {address}/udp and tcp"),
        };
        let opened = match served(carrier) {
            Some(address) => {
                ports.all.push(Port { carrier, number: address.port(), is_tcp: carrier != "listen" });
                Ok("the running server has it".to_owned())
            }
            None => open(carrier, address, key, &mut ports).await.map(|()| "free".to_owned()),
        };
        findings.push(Finding::new(what, opened.into()));
    }
    ports
}

async fn open(
    carrier: &'static str,
    address: SocketAddr,
    key: &Option<IdentityKey>,
    ports: &mut Ports,
) -> Result<(), Failure> {
    let listen = |source| Failure::from(ServerError::Listen { what: carrier, address, source });
    let number = if carrier == "listen" {
        // Without a key nobody can be answered, but the port can be tried.
        let spare =
            IdentityKey::generate().map_err(|error| Failure::new(ErrorCode::SystemRandom, error.to_string()))?;
        let endpoint = Endpoint::bind(key.as_ref().unwrap_or(&spare), address, EndpointConfig::default())?;
        let number = endpoint.local_address().port();
        tokio::task::spawn_local(answer(endpoint.clone()));
        ports.endpoint = Some(endpoint);
        number
    } else {
        if carrier == "dns" {
            UdpSocket::bind(address).await.map_err(listen)?;
        }
        let stream = TcpListener::bind(address).await.map_err(listen)?;
        let number = stream.local_addr().map_err(listen)?.port();
        // The system accepts what comes.
        ports.streams.push(stream);
        number
    };
    ports.all.push(Port { carrier, number, is_tcp: carrier != "listen" });
    Ok(())
}

/// Shakes hands with whoever dials, until the endpoint is closed.
async fn answer(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::task::spawn_local(async move {
            match incoming.accept().await {
                // Whoever dials back is content with the handshake, and hangs up.
                Ok(connection) => drop(connection.closed().await),
                Err(error) => tracing::debug!(code = %error.code(), %error, "a handshake failed"),
            }
        });
    }
}
