//! `vls-server status`: how a running server is doing.

use console::{Failure, Output, ago, size, table};
use schemas::{ErrorCode, Exit};
use serde_json::{Map, Value, json};

use super::{
    config::{Configuration, Flags},
    control,
    sandbox::Confinement,
};
use crate::server::{PeerStatus, Reached, Status};

/// `vls-server status`
pub(super) async fn status(flags: &Flags, output: Output) -> Result<Exit, Failure> {
    let configuration = Configuration::load(flags)?;
    let data = &configuration.data.value;
    let stream = control::reach(data).await?.ok_or_else(|| {
        Failure::new(ErrorCode::ServerNotRunning, format!("no server serves from {}", data.display()))
    })?;
    let object = control::question(stream, "status").await?;
    output.result(&table(&rows(&object)), &object)?;
    Ok(Exit::Ok)
}

/// What the server answers.
pub(super) fn object(status: &Status, entry: &str, confinement: &Confinement) -> Value {
    let store = status.store.map(|sizes| {
        json!({"journal_bytes": sizes.journal_bytes, "unfolded_bytes": sizes.unfolded_bytes, "base_bytes": sizes.base_bytes})
    });
    json!({
        "entry": entry,
        "id": status.id.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "process": std::process::id(),
        "time": status.time.as_micros(),
        "uptime": status.uptime.as_secs(),
        "listen": status.listen.to_string(),
        "http": status.http.map(|address| address.to_string()),
        "dns": status.dns.map(|address| address.to_string()),
        "peers": status.peers.iter().map(peer).collect::<Vec<_>>(),
        "dht": status.dht.as_ref().map(|dht| json!({
            "reached": reached(dht.reached), "stored": dht.stored, "waiting": dht.waiting,
        })),
        "records": status.records,
        "capacity": status.capacity,
        "closed": status.closed,
        "invites": status.invites,
        "work_bits": status.work,
        "lease": status.lease.as_secs(),
        "sessions": status.sessions,
        "handshakes_refused": status.handshakes_refused,
        "watches": status.watches,
        "turn": status.turn,
        "durable_turn": status.durable_turn,
        "last_sync_ago": status.last_sync.map(|ago| ago.as_secs()),
        "store": store,
        "certificate_expires": status.certificate_end.map(|end| end.as_seconds()),
        "confined": confinement.object(),
        "answers": status.answers,
        "quota_hits": status.limited,
    })
}

fn peer(status: &PeerStatus) -> Value {
    json!({"entry": status.peer.to_string(), "reached": reached(status.reached), "untold": status.untold})
}

fn reached(reached: Reached) -> &'static str {
    match reached {
        Reached::Unasked => "unasked",
        Reached::Open => "open",
        Reached::Dialling => "dialling",
        Reached::Failed => "failed",
    }
}

/// The same for people. The server may be of another version, so nothing is taken for granted.
fn rows(object: &Value) -> Vec<Vec<String>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let number = |key: &str| object[key].as_u64().unwrap_or(0);
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    for key in ["entry", "process", "version", "listen", "http", "dns"] {
        if !object[key].is_null() {
            row(key, text(&object[key]));
        }
    }
    for peer in object["peers"].as_array().unwrap_or(&Vec::new()) {
        let untold = peer["untold"].as_u64().filter(|untold| *untold > 0);
        let untold = untold.map(|untold| format!(", {untold} registrations to be told")).unwrap_or_default();
        row("follows", format!("{} ({}{untold})", text(&peer["entry"]), text(&peer["reached"])));
    }
    if let Some(dht) = object["dht"].as_object() {
        let count = |key: &str| dht.get(key).and_then(Value::as_u64).unwrap_or(0);
        let reached = text(&object["dht"]["reached"]);
        row("Mainline DHT", format!("{reached}, {} put there, {} wait", count("stored"), count("waiting")));
    }
    row("running since", ago(number("uptime")));
    row("records", format!("{} of {}", number("records"), number("capacity")));
    let admitted = match (object["closed"].as_bool(), object["work_bits"].as_u64()) {
        (Some(true), _) => Some(format!("by invitation only (invites: {})", number("invites"))),
        (_, Some(bits)) => Some(format!("for work of {bits} bits, as the table is nearly full")),
        _ => None,
    };
    if let Some(admitted) = admitted {
        row("new vats", admitted);
    }
    row("sessions", number("sessions").to_string());
    row("watches", number("watches").to_string());
    let behind = number("turn").saturating_sub(number("durable_turn"));
    let synced = object["last_sync_ago"].as_u64().map_or_else(|| "nothing since the start".to_owned(), ago);
    row("made durable", if behind == 0 { synced } else { format!("{synced}; {behind} writes wait for the disk") });
    if let Some(store) = object["store"].as_object() {
        let bytes = |key: &str| store.get(key).and_then(Value::as_u64).unwrap_or(0);
        row("store", format!("{} and a journal of {}", size(bytes("base_bytes")), size(bytes("journal_bytes"))));
    }
    if let Some(end) = object["certificate_expires"].as_u64() {
        let left = end.saturating_sub(number("time") / 1_000_000);
        row(
            "certificate",
            if left == 0 { "has expired".to_owned() } else { format!("valid for {} days", left / 86_400) },
        );
    }
    if let Some(summary) = object["confined"]["summary"].as_str() {
        row("confined", summary.to_owned());
    }
    for (carrier, answers) in object["answers"].as_object().unwrap_or(&Map::new()) {
        row(&format!("answers over {carrier}"), text(answers));
    }
    row("handshakes refused", number("handshakes_refused").to_string());
    row("asked too much", number("quota_hits").to_string());
    rows
}
