//! All records in one file, to carry them to another server.
//!
//! JSON lines: one that says what the file is, one for each record, and one that tells how many there are, so that a
//! file which was cut is known to be:
//!
//! ```text
//! {"format":"vls-export","version":1}
//! {"id":"<z-base-32>","packet":"<base64>"}
//! {"records":1}
//! ```
//!
//! A packet is what its vat has signed, so the file needs no protection: a server takes it in by the rules by which it
//! takes any registration, in whatever order, and a record that it has already does no harm. So an import that was
//! interrupted is simply made again. What is taken in counts as seen now, as if somebody had forwarded it.

use std::{collections::BTreeMap, io};

use console::Failure;
use data_encoding::BASE64;
use futures::{StreamExt, stream::FuturesUnordered};
use schemas::{Coded, ErrorCode, VatId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    durable::{DurableRegistry, Stopping},
    limits,
    registry::{Admission, Expected, Id, Outcome},
};

const FORMAT: &str = "vls-export";
const VERSION: u32 = 1;

/// A line of the file; which one, its fields tell.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packet: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
}

/// What came of an import.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    /// Records that are new here.
    pub(super) stored: u64,
    /// Records that were here.
    pub(super) refreshed: u64,
    /// Records of which a higher one is here.
    pub(super) stale: u64,
    /// Records that contradict one that is here; both are kept as evidence.
    pub(super) conflicts: u64,
    /// Records that were refused, by code.
    pub(super) refused: BTreeMap<String, u64>,
    /// The file has its end.
    pub(super) complete: bool,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Stored { .. } => self.stored += 1,
            Outcome::Refreshed { .. } => self.refreshed += 1,
            Outcome::Stale { .. } | Outcome::Unexpected { .. } => self.stale += 1,
            Outcome::Conflict { .. } => self.conflicts += 1,
            Outcome::Refused(refusal) => {
                *self.refused.entry(refusal.reason.code().as_str().to_owned()).or_default() += 1;
            }
        }
    }

    /// Records that the file has.
    pub(super) fn records(&self) -> u64 {
        self.stored + self.refreshed + self.stale + self.conflicts + self.refused.values().sum::<u64>()
    }
}

/// Writes every record; tells how many.
pub(super) async fn export(registry: &DurableRegistry, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Failure> {
    let mut records = 0;
    let mut text = serde_json::to_string(&json!({"format": FORMAT, "version": VERSION})).map_err(internal)? + "\n";
    for part in 0..registry.parts() {
        for (id, packet) in registry.part(part).await? {
            text.push_str(&record(&id, &packet)?);
            text.push('\n');
            records += 1;
        }
        if text.len() >= limits::EXPORT_CHUNK_BYTES {
            out.write_all(text.as_bytes()).await.map_err(|error| system("write the records", &error))?;
            text.clear();
        }
        // A part may be empty, and a table has thousands: others have their turn between.
        tokio::task::yield_now().await;
    }
    text.push_str(&serde_json::to_string(&json!({"records": records})).map_err(internal)?);
    text.push('\n');
    out.write_all(text.as_bytes()).await.map_err(|error| system("write the records", &error))?;
    out.flush().await.map_err(|error| system("write the records", &error))?;
    Ok(records)
}

/// The line of one record.
fn record(id: &Id, packet: &[u8]) -> Result<String, Failure> {
    let id = Some(VatId::from_bytes(*id).map_err(Failure::from)?.to_string());
    let line = Line { id, packet: Some(BASE64.encode(packet)), ..Line::default() };
    serde_json::to_string(&line).map_err(internal)
}

/// A file that holds one record.
pub(super) fn of_one(id: VatId, packet: &[u8]) -> Result<String, Failure> {
    let head = json!({"format": FORMAT, "version": VERSION});
    Ok(format!("{head}\n{}\n{}\n", record(id.as_bytes(), packet)?, json!({"records": 1})))
}

/// Registers every record of a file. Those in front of what cannot be read are registered.
pub(super) async fn import(
    registry: &DurableRegistry,
    lines: &mut (impl AsyncBufRead + Unpin),
) -> Result<Tally, Failure> {
    head(lines).await?;
    let (mut tally, mut number) = (Tally::default(), 1);
    let mut under_way = FuturesUnordered::new();
    let read = loop {
        number += 1;
        match next(lines, number).await {
            Ok(Some(Entry::Record(id, packet))) => {
                under_way.push(async move {
                    registry.register(None, &id, &packet, &Expected::Anything, &Admission::None).await
                });
                if under_way.len() >= limits::IMPORTS_IN_FLIGHT {
                    count(&mut tally, under_way.next().await)?;
                }
            }
            Ok(Some(Entry::End(records))) => break Ok(Some(records)),
            Ok(None) => break Ok(None),
            Err(failure) => break Err(failure),
        }
    };
    while !under_way.is_empty() {
        count(&mut tally, under_way.next().await)?;
    }
    tally.complete = read?.is_some_and(|records| records == tally.records());
    Ok(tally)
}

fn count(tally: &mut Tally, outcome: Option<Result<Outcome, Stopping>>) -> Result<(), Failure> {
    if let Some(outcome) = outcome {
        tally.count(&outcome?);
    }
    Ok(())
}

enum Entry {
    Record(Id, Vec<u8>),
    End(u64),
}

/// What stands in the first line.
async fn head(lines: &mut (impl AsyncBufRead + Unpin)) -> Result<(), Failure> {
    let version = match line(lines, 1).await? {
        Some(Line { format: Some(format), version: Some(version), id: None, packet: None, records: None })
            if format == FORMAT =>
        {
            version
        }
        _ => return Err(wrong(1, "this is no file of vls-server export")),
    };
    if version > VERSION {
        return Err(wrong(1, &format!("the file is of version {version}, this program knows {VERSION}")));
    }
    Ok(())
}

/// The next record, or the end; `None` when the file has none.
async fn next(lines: &mut (impl AsyncBufRead + Unpin), number: u64) -> Result<Option<Entry>, Failure> {
    match line(lines, number).await? {
        None => Ok(None),
        Some(Line { id: Some(id), packet: Some(packet), format: None, version: None, records: None }) => {
            let id = VatId::spelled(&id).map_err(|error| wrong(number, &error.to_string()))?;
            let packet = BASE64.decode(packet.as_bytes()).map_err(|_| wrong(number, "the packet is not in base64"))?;
            Ok(Some(Entry::Record(id, packet)))
        }
        Some(Line { records: Some(records), id: None, packet: None, format: None, version: None }) => {
            Ok(Some(Entry::End(records)))
        }
        Some(_) => Err(wrong(number, "it is neither a record nor the end")),
    }
}

/// A line; `None` behind the last.
async fn line(lines: &mut (impl AsyncBufRead + Unpin), number: u64) -> Result<Option<Line>, Failure> {
    let mut text = Vec::new();
    let found = lines.take(limits::EXPORT_LINE_BYTES).read_until(b'\n', &mut text).await;
    match found.map_err(|error| system("read the records", &error))? {
        0 => return Ok(None),
        _ if !text.ends_with(b"\n") => return Err(wrong(number, "it is cut, or longer than a record")),
        _ => {}
    }
    let line = serde_json::from_slice(&text);
    line.map(Some).map_err(|error| wrong(number, &format!("this is none of ours: {error}")))
}

fn wrong(number: u64, what: &str) -> Failure {
    Failure::new(ErrorCode::ServerExportInvalid, format!("line {number}: {what}"))
}

fn system(action: &str, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::SystemIo, format!("cannot {action}: {error}"))
}

fn internal(error: serde_json::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("a line cannot be written: {error}"))
}
