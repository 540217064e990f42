//! Knot DNS, an authoritative server that is known to be fast, with the strings of the records in a zone of its own.

use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{ORIGIN, datagrams::Asker, dns_questions, is_dns_answer, process::Process};
use crate::{Failure, vls::records::fields};

/// How long it may take to read its zone.
const START: Duration = Duration::from_secs(30);

/// Starts it, and tells where; `None` if it is not installed.
pub(super) fn start(folder: &Path, names: &[String]) -> Result<Option<(Process, SocketAddr)>, Failure> {
    let Some(program) = ["/usr/sbin/knotd", "/usr/local/sbin/knotd"].into_iter().find(|path| Path::new(path).exists())
    else {
        return Ok(None);
    };
    let folder = folder.join("knot");
    fs::create_dir_all(&folder)?;
    // It cannot be asked which port it took: one that was free a moment ago.
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    fs::write(folder.join("zone"), zone(names)?)?;
    fs::write(folder.join("knot.conf"), configuration(&folder, address))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(folder.join("knot.conf")).stdin(Stdio::null()).stdout(Stdio::null());
    let process = Process::start(command)?;
    let question = dns_questions(&names[..1]);
    let begun = Instant::now();
    // Until the port is open a question is refused, and until the zone is read answered with an error.
    while let Err(failure) = Asker::new(address)?.ask(&question, 1, is_dns_answer) {
        if begun.elapsed() > START {
            return Err(format!("knotd does not answer: {failure}").into());
        }
        std::thread::sleep(Duration::from_millis(10)); // polls a condition
    }
    Ok(Some((process, address)))
}

fn zone(names: &[String]) -> Result<String, Failure> {
    let mut zone = format!(
        "$ORIGIN {}.\n$TTL 300\n@ SOA ns admin 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n",
        ORIGIN.join(".")
    );
    let fields: Vec<String> = fields().iter().map(|field| format!("\"{field}\"")).collect();
    for name in names {
        writeln!(zone, "_vat.{name} TXT {}", fields.join(" "))?;
    }
    Ok(zone)
}

/// One thread that answers, as everybody else here.
fn configuration(folder: &Path, address: SocketAddr) -> String {
    let (folder, origin, ip, port) = (folder.display(), ORIGIN.join("."), address.ip(), address.port());
    format!(
        "server:\n    listen: {ip}@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n    \
         rundir: \"{folder}\"\ndatabase:\n    storage: \"{folder}\"\nlog:\n  - target: stderr\n    any: error\n\
         zone:\n  - domain: {origin}\n    storage: \"{folder}\"\n    file: zone\n    zonefile-sync: -1\n"
    )
}
