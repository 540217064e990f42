//! How much memory a server takes that serves a million vats and two thousand sessions, on a machine of 512 MB.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use futures::future::try_join_all;
use transport::{Endpoint, Session};

use super::server::{Served, session};
use crate::{
    Failure, note,
    program::run,
    rounds::{Comparison, Effort},
};

/// The machine.
const MEMORY_BYTES: u64 = 512 << 20;

/// Sessions of as many networks.
const SESSIONS: u16 = 2_000;

/// Sessions that are begun at once.
const TOGETHER: usize = 50;

/// What the server occupied at most, in bytes, beside what the machine has. The kernel holds it to that, if it lets us say
/// so.
pub(super) fn measure(effort: Effort, folder: &Path) -> Result<Comparison, Failure> {
    let group = MemoryGroup::new(MEMORY_BYTES);
    if let Err(failure) = &group {
        note(&format!(
            "resident_1m: the machine could not be made small, so nothing holds the server to it: {failure}"
        ));
    }
    let tasks = group.as_ref().ok().map(|group| group.0.join("cgroup.procs"));
    let served = Served::start_in(folder, effort.records, tasks.as_deref())?;
    let sessions = if effort.records < 100_000 { 20 } else { SESSIONS };
    let most = run(async {
        let keepers = connect_all(&served, sessions).await?;
        let most = served.process.most_resident_bytes()?;
        for (endpoint, session) in &keepers {
            if let Some(end) = session.end() {
                return Err(format!("a session has ended: {end}").into());
            }
            endpoint.close().await;
        }
        Ok(most)
    })?;
    note(&format!("resident_1m: {} records and {sessions} sessions", effort.records));
    Ok(Comparison::of(vec![(most as f64, MEMORY_BYTES as f64)]))
}

async fn connect_all(served: &Served, sessions: u16) -> Result<Vec<(Endpoint, Session)>, Failure> {
    let mut keepers = Vec::new();
    let numbers: Vec<u16> = (0..sessions).collect();
    for numbers in numbers.chunks(TOGETHER) {
        let connecting = numbers.iter().map(async |number| {
            let [high, low] = number.to_be_bytes();
            let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high + 1, low, 1)), 0);
            let (endpoint, session, service) = session(served, own).await?;
            let mut request = service.lookup_request();
            request.get().set_id(&[7; 32]);
            request.send().promise.await?;
            Ok::<_, Failure>((endpoint, session))
        });
        keepers.extend(try_join_all(connecting).await?);
    }
    Ok(keepers)
}

/// Processes that may take so much memory together.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// By whichever of the two hierarchies the system has (`Documentation/admin-guide/cgroup-v1/memory.rst`, cgroup-v2).
    fn new(bytes: u64) -> Result<Self, Failure> {
        let name = format!("vls-bench-{}", std::process::id());
        let (folder, limit) = match Path::new("/sys/fs/cgroup/memory") {
            old if old.exists() => (old.join(name), "memory.limit_in_bytes"),
            _ => (Path::new("/sys/fs/cgroup").join(name), "memory.max"),
        };
        fs::create_dir(&folder)?;
        let group = Self(folder);
        fs::write(group.0.join(limit), bytes.to_string())?;
        Ok(group)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Empty by now; if it is not, the folder stays behind and binds nobody.
        let _ = fs::remove_dir(&self.0);
    }
}
