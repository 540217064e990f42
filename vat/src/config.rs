//! The configuration file: TOML, unknown keys refused, errors with line and column (DESIGN §10).
//!
//! ```toml
//! # Location servers to register with and to ask, in any number.
//! search_path = ["vls://<id>@<host>:<port>"]
//! # Ask and dial nothing that is not on this machine or in its own network.
//! local_only = false
//! # Who is asked for entries of the form dns:<origin>, instead of this machine's own name servers; three at most.
//! name_servers = ["192.0.2.53:53"]
//! # Where `vat run` listens when --listen is not given.
//! listen = "[::]:0"
//! # Where it listens for TLS over TCP as well, if anywhere: for programs that have no QUIC.
//! listen_tls = "[::]:4434"
//! # Addresses to publish instead of the ones that this machine finds: behind a NAT with a forwarded port, say.
//! advertise = ["example.org:4433"]
//! # Whether `vat run` may start when no location server can tell whether a newer copy exists.
//! witness = "optional" # or "required"
//! # Seconds that a call may take.
//! timeout = 30
//!
//! [backup]
//! # Where `vat backup`, and `vat run` if `every` is set, put images of the vats.
//! folder = "/media/backups"
//! # Seconds: a vat that is awake makes one when the newest is older than this.
//! every = 86400
//! # How many of each vat are kept.
//! keep = 7
//! # For whom they are sealed, instead of this home.
//! to = "vatkey:…"
//!
//! [credentials]
//! # A vat that is opened with a credential of the service manager instead of a key file, and what that is called.
//! tally = "tally-key"
//! ```

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use console::{InvalidSetting, Setting, SettingsFile};
use schemas::{Address, Coded, ErrorCode, Invite, Recipient, SearchPathEntry};
use serde::{Deserialize, Serialize};
use toml::Spanned;
use vls_client::{CarrierConfig, Invites, NameServers, limits::MAX_NAME_SERVERS};

use crate::{
    home::{Home, HomeError, Name, replace_file},
    invites,
    limits::{BACKUPS_KEPT, CALL_DEADLINE},
};

/// Why the configuration cannot be used or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file does not say anything that is understood.
    #[error(transparent)]
    Invalid(#[from] InvalidSetting),
    /// The file cannot be read or written.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The search path has the entry already.
    #[error("the search path has {entry} already")]
    EntryExists {
        /// The entry.
        entry: SearchPathEntry,
    },
    /// The search path has no such entry.
    #[error("the search path has no entry {entry}")]
    NoEntry {
        /// The entry.
        entry: SearchPathEntry,
    },
}

impl Coded for ConfigError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(error) => error.code(),
            Self::Home(error) => error.code(),
            Self::EntryExists { .. } => ErrorCode::VlsEntryExists,
            Self::NoEntry { .. } => ErrorCode::VlsEntryNotFound,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Home(error) => error.next(),
            _ => None,
        }
    }
}

/// Whether a vat may wake when no location server can tell it that a newer copy exists (R7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Witness {
    /// It may, and says so.
    Optional,
    /// It may not.
    Required,
}

/// The configuration as it applies.
#[derive(Debug, Clone)]
pub struct Config {
    /// Location servers to register with and to ask.
    pub search_path: Setting<Vec<SearchPathEntry>>,
    /// What is shown to those of them that take new vats by invitation only. Not in the file: these are secrets.
    pub invites: Invites,
    /// Whether nothing is asked or dialled that is not on this machine or in its own network.
    pub local_only: Setting<bool>,
    /// Who is asked for names; empty: this machine's own name servers.
    pub name_servers: Setting<Vec<SocketAddr>>,
    /// Where `vat run` listens.
    pub listen: Setting<SocketAddr>,
    /// Where `vat run` listens for TLS over TCP; `None`: nowhere.
    pub listen_tls: Setting<Option<SocketAddr>>,
    /// Addresses to publish; empty: those that this machine finds.
    pub advertise: Setting<Vec<Address>>,
    /// Whether the witness is required.
    pub witness: Setting<Witness>,
    /// How long a call may take.
    pub timeout: Setting<Duration>,
    /// Where backups go, and when.
    pub backup: Backup,
    /// The vats that are opened with a credential of the service manager, and what it is called.
    pub credentials: BTreeMap<Name, Setting<Name>>,
}

/// What the configuration says of backups.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Where to.
    pub folder: Setting<Option<PathBuf>>,
    /// How old the newest may become while the vat is awake; `None`: nobody makes them but their owner.
    pub every: Setting<Option<Duration>>,
    /// How many of each vat are kept; at least 1.
    pub keep: Setting<usize>,
    /// For whom they are sealed; `None`: for this home.
    pub to: Setting<Option<Recipient>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    search_path: Option<Spanned<Vec<Spanned<String>>>>,
    local_only: Option<Spanned<bool>>,
    name_servers: Option<Spanned<Vec<Spanned<String>>>>,
    listen: Option<Spanned<String>>,
    listen_tls: Option<Spanned<String>>,
    advertise: Option<Spanned<Vec<Spanned<String>>>>,
    witness: Option<Spanned<Witness>>,
    timeout: Option<Spanned<u32>>,
    #[serde(default)]
    backup: BackupTable,
    #[serde(default)]
    credentials: BTreeMap<String, Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupTable {
    folder: Option<Spanned<PathBuf>>,
    every: Option<Spanned<u32>>,
    keep: Option<Spanned<u16>>,
    to: Option<Spanned<String>>,
}

impl Config {
    /// Reads the configuration of a home folder. A missing file is an empty one.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the place in the file.
    pub fn load(home: &Home) -> Result<Self, ConfigError> {
        Ok(Self { invites: invites::load(home)?, ..parse(&read(home)?)? })
    }

    /// How entries of search paths are spoken with.
    pub(crate) fn carriers(&self) -> CarrierConfig {
        let mut carriers = CarrierConfig::default();
        carriers.local_only = self.local_only.value;
        if !self.name_servers.value.is_empty() {
            carriers.name_servers = NameServers::Given(self.name_servers.value.clone());
        }
        carriers
    }

    /// Adds an entry to the search path in the file, and leaves everything else in it as it is.
    ///
    /// # Errors
    /// [`ConfigError::EntryExists`], or what loading and writing refuse.
    pub fn add_entry(home: &Home, entry: &SearchPathEntry) -> Result<(), ConfigError> {
        if Self::load(home)?.search_path.value.contains(entry) {
            return Err(ConfigError::EntryExists { entry: entry.clone() });
        }
        edit(home, |entries| entries.push(entry.to_string()))
    }

    /// Keeps the invite that the operator of a location server has given to this user, and adds the server to the search
    /// path if it is not there.
    ///
    /// # Errors
    /// What loading and writing refuse.
    pub fn keep_invite(home: &Home, entry: &SearchPathEntry, invite: &Invite) -> Result<(), ConfigError> {
        invites::keep(home, entry, invite)?;
        match Self::add_entry(home, entry) {
            Err(ConfigError::EntryExists { .. }) => Ok(()),
            added => added,
        }
    }

    /// Removes an entry from the search path in the file.
    ///
    /// # Errors
    /// [`ConfigError::NoEntry`], or what loading and writing refuse.
    pub fn remove_entry(home: &Home, entry: &SearchPathEntry) -> Result<(), ConfigError> {
        if !Self::load(home)?.search_path.value.contains(entry) {
            return Err(ConfigError::NoEntry { entry: entry.clone() });
        }
        // A server that is not asked any more is not to be shown anything later.
        invites::forget(home, entry)?;
        edit(home, |entries| {
            entries.retain(|value| value.as_str().and_then(|text| text.parse().ok()).as_ref() != Some(entry));
        })
    }
}

fn edit(home: &Home, change: impl FnOnce(&mut toml_edit::Array)) -> Result<(), ConfigError> {
    let file = read(home)?;
    let mut document: toml_edit::DocumentMut = file
        .text()
        .parse()
        .map_err(|error: toml_edit::TomlError| file.invalid(error.span(), error.message().to_owned()))?;
    let array = document
        .entry("search_path")
        .or_insert(toml_edit::value(toml_edit::Array::new()))
        .as_array_mut()
        .ok_or_else(|| file.invalid(None, "search_path is not a list".to_owned()))?;
    change(array);
    for value in array.iter_mut() {
        value.decor_mut().set_prefix("\n    ");
    }
    array.set_trailing_comma(!array.is_empty());
    array.set_trailing(if array.is_empty() { "" } else { "\n" });
    Ok(replace_file(file.path(), document.to_string().as_bytes())?)
}

/// A missing file is an empty one.
fn read(home: &Home) -> Result<SettingsFile, ConfigError> {
    let path = home.config_file();
    match SettingsFile::read(&path) {
        Ok(file) => Ok(file.unwrap_or_else(|| SettingsFile::new(&path, String::new()))),
        Err(error) => Err(HomeError::Io { path, error }.into()),
    }
}

fn parse(file: &SettingsFile) -> Result<Config, ConfigError> {
    let settings: File = file.parse()?;
    let default_listen = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    Ok(Config {
        search_path: file.list(settings.search_path.as_ref(), str::parse::<SearchPathEntry>)?,
        invites: Invites::default(),
        local_only: match settings.local_only {
            None => Setting::default(false),
            Some(only) => Setting { source: file.source(&only), value: only.into_inner() },
        },
        name_servers: name_servers(file, settings.name_servers.as_ref())?,
        advertise: file.list(settings.advertise.as_ref(), |text| format!("quic:{text}").parse::<Address>())?,
        listen: file.setting(settings.listen.as_ref(), default_listen, str::parse)?,
        listen_tls: file.setting(settings.listen_tls.as_ref(), None, |text| text.parse().map(Some))?,
        witness: match settings.witness {
            None => Setting::default(Witness::Optional),
            Some(witness) => Setting { source: file.source(&witness), value: witness.into_inner() },
        },
        timeout: match settings.timeout {
            None => Setting::default(CALL_DEADLINE),
            Some(seconds) if *seconds.get_ref() == 0 => {
                let reason = "a time limit of 0 seconds allows no call".to_owned();
                return Err(file.invalid(Some(seconds.span()), reason).into());
            }
            Some(seconds) => {
                Setting { source: file.source(&seconds), value: Duration::from_secs(u64::from(seconds.into_inner())) }
            }
        },
        backup: backup(file, settings.backup)?,
        credentials: credentials(file, &settings.credentials)?,
    })
}

fn name_servers(
    file: &SettingsFile,
    list: Option<&Spanned<Vec<Spanned<String>>>>,
) -> Result<Setting<Vec<SocketAddr>>, ConfigError> {
    if let Some(surplus) = list.and_then(|list| list.get_ref().get(MAX_NAME_SERVERS)) {
        let reason = format!("no more than {MAX_NAME_SERVERS} name servers are asked");
        return Err(file.invalid(Some(surplus.span()), reason).into());
    }
    Ok(file.list(list, str::parse::<SocketAddr>)?)
}

fn backup(file: &SettingsFile, table: BackupTable) -> Result<Backup, ConfigError> {
    for (name, zero) in [
        ("every", table.every.as_ref().filter(|every| *every.get_ref() == 0).map(Spanned::span)),
        ("keep", table.keep.as_ref().filter(|keep| *keep.get_ref() == 0).map(Spanned::span)),
    ] {
        if let Some(span) = zero {
            return Err(file.invalid(Some(span), format!("backup.{name} is at least 1")).into());
        }
    }
    let folder = match table.folder {
        None => Setting::default(None),
        Some(folder) if folder.get_ref().is_relative() => {
            let reason = "backup.folder begins with a /: commands are run from anywhere".to_owned();
            return Err(file.invalid(Some(folder.span()), reason).into());
        }
        Some(folder) => Setting { source: file.source(&folder), value: Some(folder.into_inner()) },
    };
    let every = table.every.map_or(Setting::default(None), |every| Setting {
        source: file.source(&every),
        value: Some(Duration::from_secs(u64::from(every.into_inner()))),
    });
    let keep = table.keep.map_or(Setting::default(BACKUPS_KEPT), |keep| Setting {
        source: file.source(&keep),
        value: usize::from(keep.into_inner()),
    });
    let to = file.setting(table.to.as_ref(), None, |text| text.parse::<Recipient>().map(Some))?;
    Ok(Backup { folder, every, keep, to })
}

fn credentials(
    file: &SettingsFile,
    table: &BTreeMap<String, Spanned<String>>,
) -> Result<BTreeMap<Name, Setting<Name>>, ConfigError> {
    let credential = |(vat, credential): (&String, &Spanned<String>)| {
        let vat = vat.parse().map_err(|error: HomeError| file.invalid(Some(credential.span()), error.to_string()))?;
        let value = file.item(credential, str::parse::<Name>)?;
        Ok((vat, Setting { value, source: file.source(credential) }))
    };
    table.iter().map(credential).collect()
}
