//! `vat vls`, `vat config`, `vat completions`.

use console::{Failure, Output, show_settings, table};
use schemas::{Exit, SearchPathEntry};
use serde_json::json;

use super::Context;
use crate::config::Config;

pub(super) fn parse_entry(text: &str) -> Result<SearchPathEntry, Failure> {
    text.parse().map_err(|error: schemas::SearchPathError| Failure::from(error).while_doing("search path entry"))
}

/// `vat vls add ENTRY`
pub(super) fn add(context: &Context, entry: &str) -> Result<Exit, Failure> {
    let entry = parse_entry(entry)?;
    Config::add_entry(&context.home, &entry)?;
    let human = format!("added {entry}\nA vat that is running takes it up when it is started again.");
    context.output.result(&human, &json!({"added": entry.to_string()}))?;
    Ok(Exit::Ok)
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
    let human = if entries.is_empty() {
        "The search path is empty: vats are found on this machine only.\n\
         Add a location server with: vat vls add vls://<id>@<host>:<port>"
            .to_owned()
    } else {
        entries.join("\n")
    };
    context.output.result(&human, &json!({"search_path": entries}))?;
    Ok(Exit::Ok)
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
