//! What a session costs that says nothing.

use std::time::Instant;

use transport::limits::KEEP_ALIVE;

use super::{connecting::processor_time, ours};
use crate::{
    Failure,
    allocations::Counting,
    bare,
    echo::{self, Echo},
    exchange::Exchange,
    note,
    rounds::{Comparison, Effort},
};

/// Memory that the accepting side holds for each session that has had a call and says nothing more.
///
/// Each server is a new one, and is alone with its clients.
pub(super) async fn bytes(effort: Effort) -> Result<Comparison, Failure> {
    let many = usize::try_from(effort.sleepers)?;
    let server = ours::start()?;
    let (dialler, mut open) = (ours::Dialler::new()?, Vec::with_capacity(many));
    let (counting, resident_before) = (Counting::start_with_the_watched(), resident()?);
    for _ in 0..many {
        open.push(dialler.first_call(*server.greeting()).await?);
    }
    let sessions = settled(&counting).await as f64 / many as f64;
    let both = (resident()? - resident_before) / many as f64;
    note(&format!("idle_session_bytes: {both:.0} resident bytes for both ends of a session together"));
    let (begun, busy) = (Instant::now(), processor_time());
    while begun.elapsed() < KEEP_ALIVE {
        settled(&counting).await;
    }
    let busy = (processor_time() - busy) / begun.elapsed().as_secs_f64();
    note(&format!(
        "idle_session_bytes: {:.1} % of one processor for both ends of {many} sessions, over one keep-alive period",
        busy / 10_000.0
    ));
    drop((counting, open));
    server.stop()?;
    dialler.close().await;

    let server = echo::start()?;
    let (dialler, mut open) = (bare::Dialler::new(server.greeting())?, Vec::with_capacity(many));
    let counting = Counting::start_with_the_watched();
    for _ in 0..many {
        open.push(Echo::connect_from(&dialler, Exchange { request: 8, answer: 8 }).await?);
    }
    let connections = settled(&counting).await as f64 / many as f64;
    drop((counting, open));
    server.stop()?;
    Ok(Comparison::of(vec![(sessions, connections)]))
}

/// What is held once it changes no more.
async fn settled(counting: &Counting) -> i64 {
    let mut before = i64::MIN;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await; // polls a condition
        let held = counting.held();
        if held == before {
            return held;
        }
        before = held;
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("a process without memory")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim_end().parse()?;
    Ok(kibibytes * 1024.0)
}
