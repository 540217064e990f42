//! `vls-server init`: a data folder, a key and a configuration file, for who starts a server for the first time.
//!
//! What is there already stays as it is, so it can be said again.

use std::{
    fs,
    io::{ErrorKind, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use checkpoint::FileDisk;
use console::{Failure, Output};
use schemas::{Exit, SearchPathEntry};
use serde_json::json;

use super::{
    advertise,
    config::{Configuration, DEFAULT_FILE, Flags},
    system,
};
use crate::{identity_file, server};

/// The folder of the server that belongs to the system.
const DEFAULT_DATA: &str = "/var/lib/vls-server";

/// The name of the file in a data folder that was named.
const FILE: &str = "vls-server.toml";

#[derive(Debug, clap::Args)]
pub(super) struct InitArguments {
    /// Folder of the server's key and records [default: /var/lib/vls-server]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Configuration file to write [default: vls-server.toml in the folder of --data; without --data
    /// /etc/vls-server/vls-server.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// UDP address to listen on
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Host name or address that others reach this machine by
    #[arg(long, value_name = "HOST", value_parser = advertise::parse_host)]
    advertise: Option<String>,
    /// TCP address for HTTP
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
}

/// `vls-server init`
pub(super) fn init(arguments: &InitArguments, output: Output) -> Result<Exit, Failure> {
    let current = std::env::current_dir().map_err(|error| system("tell where this is", &error))?;
    // A configuration file is about the same folder wherever the server is started.
    let data = current.join(arguments.data.as_deref().unwrap_or(Path::new(DEFAULT_DATA)));
    let file = match (&arguments.config, &arguments.data) {
        (Some(file), _) => current.join(file),
        (None, Some(_)) => data.join(FILE),
        (None, None) => PathBuf::from(DEFAULT_FILE),
    };
    let key = identity_file::prepare(&FileDisk, &data, &data.join(server::STORE))?;
    // In the server's own folder it is private as everything there is. Elsewhere the user that the server runs as may be
    // another one than who makes it.
    let mode = if file.starts_with(&data) { 0o600 } else { 0o644 };
    let made = write_new(&file, &text(arguments, &data), mode)?;
    // Read as the server will: a file that was there already may say something else.
    let configuration = Configuration::load(&Flags::of(Some(file.clone()), None))?;
    let listen = configuration.listen.value;
    let host = advertise::host(configuration.advertise.value, listen.ip());
    let entry = SearchPathEntry::Vls { id: key.id(), host, port: listen.port() };
    let shown = file.display();
    let human = format!(
        "{entry}\n{} {shown}\nnext: vls-server check --config {shown}\nthen: vls-server run --config {shown}",
        if made { "The configuration is in" } else { "There was a configuration already, which stays as it is:" }
    );
    let data = json!({
        "entry": entry.to_string(), "id": key.id().to_string(), "config": file, "config_made": made,
        "data": configuration.data.value,
    });
    output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// Writes a file with its folder, unless it is there; tells which.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| system(&format!("write {}", path.display()), &error);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = match fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        file => file.map_err(failed)?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(true)
}

/// Every setting. Those with a # in front are what holds without them, or examples.
pub(super) const TEMPLATE: &str = include_str!("../../contrib/vls-server.toml");

/// The template with what was said on the command line.
fn text(arguments: &InitArguments, data: &Path) -> String {
    // As TOML writes a text.
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut text = TEMPLATE.replace(&quoted(DEFAULT_DATA), &quoted(&data.to_string_lossy()));
    let given = [
        ("#listen = \"[::]:4433\"", arguments.listen.map(|address| format!("listen = \"{address}\""))),
        (
            "#advertise = \"vls.example.org\"",
            arguments.advertise.as_ref().map(|host| format!("advertise = {}", quoted(host))),
        ),
        ("#listen = \"[::]:80\"", arguments.http.map(|address| format!("listen = \"{address}\""))),
    ];
    for (line, setting) in given {
        if let Some(setting) = setting {
            text = text.replace(line, &setting);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_shows_every_setting_and_each_of_them_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let load = |text: &str| {
            fs::write(&file, text).unwrap();
            Configuration::load(&Flags::of(Some(file.clone()), None))
        };
        let plain = load(TEMPLATE).unwrap();
        assert_eq!(plain.data.value, Path::new(DEFAULT_DATA));
        // A setting that is commented out has no space behind its #; prose has one.
        let all: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let all = load(&all).unwrap();
        for (name, _, source) in all.settings() {
            assert!(matches!(source, console::Source::Line(_)), "{name} is not in the template");
        }
        // What is called a default is one, but for what has none.
        let examples = ["data", "advertise", "peers", "dht_bootstrap", "http.", "dns."];
        for ((name, value, _), (_, default, _)) in all.settings().iter().zip(plain.settings()) {
            assert!(examples.iter().any(|example| name.starts_with(example)) || *value == default, "{name}");
        }
    }

    #[test]
    fn what_was_said_on_the_command_line_stands_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a \"quoted\" folder");
        let arguments = InitArguments {
            data: Some(data.clone()),
            config: None,
            listen: Some("192.0.2.1:4".parse().unwrap()),
            advertise: Some("host.example.org".to_owned()),
            http: Some("192.0.2.1:5".parse().unwrap()),
        };
        let file = folder.path().join(FILE);
        fs::write(&file, text(&arguments, &data)).unwrap();
        let found = Configuration::load(&Flags::of(Some(file), None)).unwrap();
        assert_eq!(found.data.value, data);
        assert_eq!((Some(found.listen.value), found.http.value), (arguments.listen, arguments.http));
        assert_eq!(found.advertise.value, arguments.advertise);
    }
}
