//! The invites that this user was given, each for one location server: `HOME/invites.toml`.
//!
//! ```toml
//! "vls://<id>@<host>:<port>" = "vlsinvite:…"
//! ```
//!
//! A file of its own beside the configuration, because an invite is a secret and the configuration is none: people show
//! theirs to others, and `vat config show` prints it.

use std::collections::BTreeMap;

use console::SettingsFile;
use schemas::{Invite, SearchPathEntry};
use toml::Spanned;
use vls_client::Invites;

use crate::{
    config::ConfigError,
    home::{Home, HomeError, replace_file},
};

/// All of them. A missing file holds none.
///
/// # Errors
/// [`ConfigError::Invalid`] with the place in the file.
pub(crate) fn load(home: &Home) -> Result<Invites, ConfigError> {
    let file = read(home)?;
    let table: BTreeMap<String, Spanned<String>> = file.parse()?;
    let invite = |(entry, invite): (&String, &Spanned<String>)| {
        let entry: SearchPathEntry = file.item(invite, |_| entry.parse())?;
        Ok((entry, file.item(invite, str::parse::<Invite>)?))
    };
    table.iter().map(invite).collect()
}

/// Keeps an invite for an entry, in place of any before it.
///
/// # Errors
/// What loading and writing refuse.
pub(crate) fn keep(home: &Home, entry: &SearchPathEntry, invite: &Invite) -> Result<(), ConfigError> {
    edit(home, |table| {
        table.insert(&entry.to_string(), toml_edit::value(invite.expose().as_str()));
    })
}

/// Forgets the invite for an entry, if there is one.
///
/// # Errors
/// What loading and writing refuse.
pub(crate) fn forget(home: &Home, entry: &SearchPathEntry) -> Result<(), ConfigError> {
    if load(home)?.of(entry).is_none() {
        return Ok(());
    }
    edit(home, |table| table.retain(|known, _| known.parse().ok().as_ref() != Some(entry)))
}

fn edit(home: &Home, change: impl FnOnce(&mut toml_edit::Table)) -> Result<(), ConfigError> {
    let file = read(home)?;
    let mut document: toml_edit::DocumentMut = file
        .text()
        .parse()
        .map_err(|error: toml_edit::TomlError| file.invalid(error.span(), error.message().to_owned()))?;
    change(document.as_table_mut());
    Ok(replace_file(file.path(), document.to_string().as_bytes())?)
}

fn read(home: &Home) -> Result<SettingsFile, ConfigError> {
    let path = home.invites_file();
    match SettingsFile::read(&path) {
        Ok(file) => Ok(file.unwrap_or_else(|| SettingsFile::new(&path, String::new()))),
        Err(error) => Err(HomeError::Io { path, error }.into()),
    }
}
