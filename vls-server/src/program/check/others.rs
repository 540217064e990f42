//! What only another machine can tell: whether it gets through to this one, and whether both clocks agree.

use std::time::Duration;

use console::Failure;
use schemas::{
    ErrorCode, IdentityKey, SearchPathEntry, Timestamp, limits::MAX_CLOCK_AHEAD, location_capnp::DialBackOver,
};
use tokio::time::Instant;
use transport::Endpoint;

use super::{
    Finding, Outcome,
    local::{Port, Ports},
};
use crate::{
    clock::{Clock, SystemClock},
    limits,
    program::remote::{DialledBack, Remote, Seen},
};

/// Asks the other server for everything.
pub(super) async fn look_from(
    entry: &SearchPathEntry,
    key: &Option<IdentityKey>,
    ports: &Ports,
    findings: &mut Vec<Finding>,
) {
    // Whoever dials back has to find the key with which it was asked, so without one there is nothing to see.
    let Some(key) = key else { return };
    let endpoint = match Endpoint::client(key) {
        Ok(endpoint) => endpoint,
        Err(error) => return findings.push(Finding::new("other server", Outcome::Failed(error.into()))),
    };
    match ask(&endpoint, entry).await {
        Ok((seen, skew)) => {
            findings
                .push(Finding::new("other server", Outcome::Well(format!("sees this machine as {}", seen.address))));
            findings.push(Finding::new("other clock", compare(skew, seen.time)));
            for port in &ports.all {
                let what = format!("from outside: {} {}", port.number, if port.is_tcp { "tcp" } else { "udp" });
                // A session may have one thing dialled back in ten seconds; each port has its own.
                let outcome = reach(&endpoint, entry, port).await.unwrap_or_else(Outcome::Failed);
                findings.push(Finding::new(what, outcome));
            }
        }
        Err(failure) => findings.push(Finding::new("other server", Outcome::Failed(failure))),
    }
    endpoint.close().await;
}

/// What it sees, and by how much its clock differs from this one, at least.
async fn ask(endpoint: &Endpoint, entry: &SearchPathEntry) -> Result<(Seen, Duration), Failure> {
    let remote = Remote::dial(endpoint, entry).await?;
    let (before, begun) = (SystemClock.now().wall, Instant::now());
    let seen = remote.now().await;
    let after = before + begun.elapsed();
    remote.close().await;
    let seen = seen?;
    // It has read its clock at some moment between.
    let skew = before.saturating_since(seen.time).max(seen.time.saturating_since(after));
    Ok((seen, skew))
}

fn compare(skew: Duration, time: Timestamp) -> Outcome {
    let failure = || {
        let message = format!("the other server's clock, {time}, differs from this one by {} s", skew.as_secs());
        Failure::new(ErrorCode::ServerClockSkew, message)
    };
    if skew > MAX_CLOCK_AHEAD {
        Outcome::Failed(failure())
    } else if skew > limits::CLOCK_SKEW {
        Outcome::Degraded(failure())
    } else {
        Outcome::Well(format!("differs by {} s", skew.as_secs()))
    }
}

async fn reach(endpoint: &Endpoint, entry: &SearchPathEntry, port: &Port) -> Result<Outcome, Failure> {
    let remote = Remote::dial(endpoint, entry).await?;
    let over = if port.is_tcp { DialBackOver::Tcp } else { DialBackOver::Quic };
    let dialled = remote.dial_back(port.number, over).await;
    remote.close().await;
    Ok(match dialled? {
        DialledBack::Reached(address) => Outcome::Well(format!("reached at {address}")),
        DialledBack::Failed(address, reason) => {
            let carrier = if port.carrier == "listen" { "vats and finders" } else { port.carrier };
            let message = format!("nobody was reached at {address}, the port for {carrier}: {reason}");
            Outcome::Failed(Failure::new(ErrorCode::ServerPortBlocked, message))
        }
        DialledBack::Unsupported => {
            let message = "the other server cannot try this port; ask a newer one";
            Outcome::Degraded(Failure::new(ErrorCode::SessionUnsupported, message))
        }
    })
}
