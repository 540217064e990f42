//! `vat vls`, `vat config`, `vat completions`.

use std::time::Duration;

use console::{Failure, Output, ago, show_settings, table};
use schemas::{ErrorCode, Exit, Invite, SearchPathEntry, Timestamp};
use serde_json::{Value, json};
use vls_client::{EntryScore, EntryScores};

use super::{Context, ask};
use crate::{config::Config, limits::MAX_INVITE_BYTES, process::system_clock};

pub(super) fn parse_entry(text: &str) -> Result<SearchPathEntry, Failure> {
    text.parse().map_err(|error: schemas::SearchPathError| Failure::from(error).while_doing("search path entry"))
}

/// `vat vls add ENTRY`
pub(super) fn add(context: &Context, entry: &str, invite: Option<&str>) -> Result<Exit, Failure> {
    let entry = parse_entry(entry)?;
    let mut human = format!("added {entry}");
    match invite.map(read_invite).transpose()? {
        None => Config::add_entry(&context.home, &entry)?,
        Some(_) if !matches!(entry, SearchPathEntry::Vls { .. } | SearchPathEntry::Http { .. }) => {
            let message = format!("no vat is registered at {entry}, so nobody asks for an invite there");
            return Err(Failure::new(ErrorCode::CliUsage, message));
        }
        Some(invite) => {
            Config::keep_invite(&context.home, &entry, &invite)?;
            human += &format!(
                " with the invite {}, which is shown to that server alone, once it asks for it",
                invite.hash()
            );
        }
    }
    human += "\nA vat that is running takes it up when it is started again.";
    if matches!(entry, SearchPathEntry::Dns { .. }) {
        human += "\nThrough DNS other vats are found, but no vat of yours is registered: that needs an entry of the form \
                  vls:// or https://.";
    }
    context.output.result(&human, &json!({"added": entry.to_string()}))?;
    Ok(Exit::Ok)
}

/// An invite from the command line, or from standard input.
fn read_invite(text: &str) -> Result<Invite, Failure> {
    if text != "-" {
        return Ok(text.parse::<Invite>()?);
    }
    let io = |error| Failure::new(ErrorCode::SystemIo, format!("standard input: {error}"));
    let input = if ask::is_terminal() {
        let line = ask::hidden_line("Paste the invite and press Enter (it is not shown): ", MAX_INVITE_BYTES);
        line.map_err(io)?.unwrap_or_default()
    } else {
        ask::piped(MAX_INVITE_BYTES).map_err(io)?
    };
    // What is no text is no invite either, and said to be none.
    let text = std::str::from_utf8(&input).unwrap_or_default();
    Ok(text.trim().parse::<Invite>()?)
}

/// `vat vls remove ENTRY`
pub(super) fn remove(context: &Context, entry: &str) -> Result<Exit, Failure> {
    let entry = parse_entry(entry)?;
    Config::remove_entry(&context.home, &entry)?;
    context.output.result(&format!("removed {entry}"), &json!({"removed": entry.to_string()}))?;
    Ok(Exit::Ok)
}

/// `vat vls list`
pub(super) fn list(context: &Context) -> Result<Exit, Failure> {
    let entries: Vec<String> = context.config.search_path.value.iter().map(ToString::to_string).collect();
    let folder = context.home.record_cache();
    let scores = EntryScores::open(&folder);
    let scored: Vec<_> = context.config.search_path.value.iter().map(|entry| (entry, scores.of(entry))).collect();
    let human = if entries.is_empty() {
        "The search path is empty: vats are found on this machine only.\n\
         Add a location server with: vat vls add vls://<id>@<host>:<port>"
            .to_owned()
    } else {
        table(&scored.iter().map(|(entry, score)| scored_row(entry, score)).collect::<Vec<_>>())
    };
    let scored: Vec<_> = scored.iter().map(|(entry, score)| scored_data(entry, score)).collect();
    context.output.result(&human, &json!({"search_path": entries, "entries": scored}))?;
    Ok(Exit::Ok)
}

/// The entry, and in words how good it has been, if it was ever asked.
fn scored_row(entry: &SearchPathEntry, score: &EntryScore) -> Vec<String> {
    let mut row = vec![entry.to_string()];
    if score.answers + score.failures == 0 {
        return row;
    }
    row.push(format!("{} of {} answered", score.answers, score.answers + score.failures));
    let milliseconds = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
    row.push(match (score.p50(), score.p95()) {
        (Some(p50), Some(p95)) => format!("p50 {} ms, p95 {} ms", milliseconds(p50), milliseconds(p95)),
        _ => String::new(),
    });
    row.push(match score.last_success_us {
        Some(last) => {
            let now = system_clock()();
            format!("last {}", ago(now.as_seconds().saturating_sub(Timestamp::from_micros(last).as_seconds())))
        }
        None => "never".to_owned(),
    });
    row.extend((score.stale > 0).then(|| format!("{} stale", score.stale)));
    row
}

fn scored_data(entry: &SearchPathEntry, score: &EntryScore) -> Value {
    let micros = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    json!({
        "entry": entry.to_string(), "answers": score.answers, "failures": score.failures, "stale": score.stale,
        "p50_us": micros(score.p50()), "p95_us": micros(score.p95()),
        "last_success_us": score.last_success_us, "last_failure_us": score.last_failure_us,
    })
}

/// `vat config show`
pub(super) fn show(context: &Context) -> Result<Exit, Failure> {
    let file = context.home.config_file();
    let config = &context.config;
    let texts = |list: Vec<String>| json!(list);
    let mut settings = vec![
        (
            "search_path".to_owned(),
            texts(config.search_path.value.iter().map(ToString::to_string).collect()),
            config.search_path.source,
        ),
        ("local_only".to_owned(), json!(config.local_only.value), config.local_only.source),
        (
            "name_servers".to_owned(),
            texts(config.name_servers.value.iter().map(ToString::to_string).collect()),
            config.name_servers.source,
        ),
        ("listen".to_owned(), json!(config.listen.value.to_string()), config.listen.source),
        (
            "listen_tls".to_owned(),
            json!(config.listen_tls.value.map(|address| address.to_string())),
            config.listen_tls.source,
        ),
        (
            "advertise".to_owned(),
            texts(config.advertise.value.iter().map(ToString::to_string).collect()),
            config.advertise.source,
        ),
        ("witness".to_owned(), json!(config.witness.value), config.witness.source),
        ("timeout".to_owned(), json!(config.timeout.value.as_secs()), config.timeout.source),
        ("backup.folder".to_owned(), json!(config.backup.folder.value), config.backup.folder.source),
        (
            "backup.every".to_owned(),
            json!(config.backup.every.value.map(|every| every.as_secs())),
            config.backup.every.source,
        ),
        ("backup.keep".to_owned(), json!(config.backup.keep.value), config.backup.keep.source),
        ("backup.to".to_owned(), json!(config.backup.to.value.map(|to| to.to_string())), config.backup.to.source),
    ];
    for (vat, credential) in &config.credentials {
        settings.push((format!("credentials.{vat}"), json!(credential.value.as_str()), credential.source));
    }
    let home = context.home.root();
    let (mut rows, settings) = show_settings(settings, Some(&file));
    rows.insert(0, vec!["home".to_owned(), home.display().to_string(), String::new()]);
    let mut data = serde_json::Map::from_iter([("home".to_owned(), json!(home))]);
    data.extend(settings);
    context.output.result(&table(&rows), &data.into())?;
    Ok(Exit::Ok)
}

/// `vat completions SHELL`
pub(super) fn completions(
    shell: clap_complete::Shell,
    command: &mut clap::Command,
    output: Output,
) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, super::program(), &mut script);
    output.line(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
