//! What is shown to people and to monitors. Neither names a vat or a client (rule 9).

use std::{fmt::Write as _, time::Duration};

use hyper::{
    StatusCode,
    header::{CONTENT_SECURITY_POLICY, HeaderValue},
};
use schemas::ErrorCode;
use tokio::time::timeout;

use super::{
    ReadOnly,
    reply::{Problem, Reply},
};
use crate::{durable::Stopping, limits, server::shared::Shared};

/// The media type that Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the server can do its work: what was decided becomes durable, and it is not stopping.
pub(super) async fn health(shared: &Shared, _: ReadOnly) -> Result<Reply, Problem> {
    let _under_way = shared.calls.begin().ok_or(Stopping)?;
    match timeout(limits::HEALTH_DEADLINE, shared.registry.settled()).await {
        Ok(settled) => settled?,
        Err(_) => {
            let message = "the disk has not confirmed what it was told to write";
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::CheckpointDisk, message)
                .retry_after(limits::HEALTH_DEADLINE));
        }
    }
    Ok(Reply::of("text/plain; charset=utf-8", "ok\n").not_cached())
}

pub(super) fn metrics(shared: &Shared, _: ReadOnly) -> Result<Reply, Problem> {
    let internal =
        |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, "the counts cannot be shown");
    let text = shared.metrics.show(shared.readings()).map_err(internal)?;
    Ok(Reply::of(OPEN_METRICS, text).not_cached())
}

/// One page, without anything that has to be fetched.
pub(super) fn status(shared: &Shared, _: ReadOnly) -> Result<Reply, Problem> {
    let mut page = String::with_capacity(4 << 10);
    // All values are ours or of a form without markup: ids, names of hosts, numbers.
    let (id, readings) = (shared.id, shared.readings());
    let version = env!("CARGO_PKG_VERSION");
    let behind = readings.turn - readings.durable_turn.min(readings.turn);
    page.push_str(HEAD);
    let mut rows = vec![
        ("id", format!("<code>{id}</code>")),
        ("program", format!("vls-server {version}")),
        ("running for", long_time(shared.uptime())),
        ("time here", shared.now().to_string()),
        ("records held", readings.records.to_string()),
        ("sessions open", readings.sessions.to_string()),
        ("writes waiting for the disk", behind.to_string()),
        ("lease", long_time(shared.lease.get())),
    ];
    match shared.registry.admissions() {
        (_, true, _) => rows.push(("new vats", "by invitation only".to_owned())),
        (Some(bits), ..) => rows.push(("new vats", format!("for work of {bits} bits: the table is nearly full"))),
        (None, ..) => {}
    }
    if let Some(zone) = shared.zone() {
        rows.push(("DNS zone", format!("<code>{}</code>", zone.origin())));
    }
    page.push_str("<table>");
    for (name, value) in rows {
        // Writing into a string does not fail.
        let _ = write!(page, "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>");
    }
    page.push_str("</table>\n");
    page.push_str(USE);
    if let Some(zone) = shared.zone() {
        let origin = zone.origin();
        let _ = write!(
            page,
            "<pre>dig TXT _vat.<var>id</var>.{origin}</pre>\n<p>The same over HTTPS at <code>/dns-query</code>.</p>\n"
        );
    }
    page.push_str(TAIL);
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    Ok(Reply::of("text/html; charset=utf-8", page)
        .with(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy))
        .not_cached())
}

fn long_time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex"><title>Location server</title>
<style>
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:400;opacity:.75;padding:.2rem 1rem .2rem 0;white-space:nowrap;vertical-align:top}
td{padding:.2rem 0;overflow-wrap:anywhere}
pre{padding:.6rem .8rem;border:1px solid;border-radius:4px;overflow-x:auto}
</style></head><body>
<h1>Location server</h1>
<p>This server answers one question: where is this vat now? A vat is a small computer that lives in one process and is
known by its key. It registers here what it has signed about itself; whoever knows its id can ask for that, and check
the signature. The server can neither invent a record nor change one, and it never tells which ids it knows.</p>
"#;

const USE: &str = r#"<h2>How to use it</h2>
<p>Read a record, or write one that its vat has signed, by its id of 52 characters:</p>
<pre>curl -O https://<var>this host</var>/pkarr/<var>id</var>
curl -T <var>packet</var> https://<var>this host</var>/pkarr/<var>id</var></pre>
<p>A packet is what <a href="https://pkarr.org">pkarr</a> calls signed. Clients of pkarr relays take this server's address as
that of a relay; iroh's take it with <code>/pkarr</code> behind it. A write is answered once it is on the disk. To replace
exactly the record that you know, send its <code>ETag</code> as <code>If-Match</code>.</p>
"#;

const TAIL: &str = r#"<h2>For the operator</h2>
<p><a href="/healthz">/healthz</a> answers 200 while the disk takes what it is given;
<a href="/metrics">/metrics</a> is for Prometheus.</p>
</body></html>
"#;
