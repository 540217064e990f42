//! The configuration file: TOML, unknown keys refused, errors with line and column (DESIGN §10).
//!
//! ```toml
//! # Location servers to register with and to ask, in any number.
//! search_path = ["vls://<id>@<host>:<port>"]
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

use std::{collections::BTreeMap, fs, io, net::SocketAddr, path::PathBuf, time::Duration};

use schemas::{Address, Coded, ErrorCode, Recipient, SearchPathEntry};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{
    home::{Home, HomeError, Name, replace_file},
    limits::{BACKUPS_KEPT, CALL_DEADLINE},
};

/// Why the configuration cannot be used or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file does not say anything that is understood.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
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
            Self::Invalid { .. } => ErrorCode::ConfigInvalid,
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

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// This line of the configuration file.
    Line(usize),
}

/// A setting and where it came from.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    /// Its value.
    pub value: T,
    /// Where it came from.
    pub source: Source,
}

/// The configuration as it applies.
#[derive(Debug, Clone)]
pub struct Config {
    /// Location servers to register with and to ask.
    pub search_path: Setting<Vec<SearchPathEntry>>,
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
        let path = home.config_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(HomeError::Io { path, error }.into()),
        };
        Parser { path, text: &text }.parse()
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

    /// Removes an entry from the search path in the file.
    ///
    /// # Errors
    /// [`ConfigError::NoEntry`], or what loading and writing refuse.
    pub fn remove_entry(home: &Home, entry: &SearchPathEntry) -> Result<(), ConfigError> {
        if !Self::load(home)?.search_path.value.contains(entry) {
            return Err(ConfigError::NoEntry { entry: entry.clone() });
        }
        edit(home, |entries| {
            entries.retain(|value| value.as_str().and_then(|text| text.parse().ok()).as_ref() != Some(entry));
        })
    }
}

fn edit(home: &Home, change: impl FnOnce(&mut toml_edit::Array)) -> Result<(), ConfigError> {
    let path = home.config_file();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(HomeError::Io { path, error }.into()),
    };
    let parser = Parser { path: path.clone(), text: &text };
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| parser.invalid(error.span(), error.message().to_owned()))?;
    let array = document
        .entry("search_path")
        .or_insert(toml_edit::value(toml_edit::Array::new()))
        .as_array_mut()
        .ok_or_else(|| parser.invalid(None, "search_path is not a list".to_owned()))?;
    change(array);
    for value in array.iter_mut() {
        value.decor_mut().set_prefix("\n    ");
    }
    array.set_trailing_comma(!array.is_empty());
    array.set_trailing(if array.is_empty() { "" } else { "\n" });
    Ok(replace_file(&path, document.to_string().as_bytes())?)
}

struct Parser<'a> {
    path: PathBuf,
    text: &'a str,
}

impl Parser<'_> {
    fn parse(&self) -> Result<Config, ConfigError> {
        let file: File =
            toml::from_str(self.text).map_err(|error| self.invalid(error.span(), error.message().to_owned()))?;
        let default_listen = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
        Ok(Config {
            search_path: self.list(file.search_path, |text| text.parse::<SearchPathEntry>())?,
            advertise: self.list(file.advertise, |text| format!("quic:{text}").parse::<Address>())?,
            listen: match file.listen {
                None => Setting { value: default_listen, source: Source::Default },
                Some(text) => Setting { value: self.item(&text, |text| text.parse())?, source: self.source(&text) },
            },
            listen_tls: match file.listen_tls {
                None => Setting { value: None, source: Source::Default },
                Some(text) => {
                    Setting { value: Some(self.item(&text, |text| text.parse())?), source: self.source(&text) }
                }
            },
            witness: match file.witness {
                None => Setting { value: Witness::Optional, source: Source::Default },
                Some(witness) => Setting { source: self.source(&witness), value: witness.into_inner() },
            },
            timeout: match file.timeout {
                None => Setting { value: CALL_DEADLINE, source: Source::Default },
                Some(seconds) if *seconds.get_ref() == 0 => {
                    return Err(
                        self.invalid(Some(seconds.span()), "a time limit of 0 seconds allows no call".to_owned())
                    );
                }
                Some(seconds) => Setting {
                    source: self.source(&seconds),
                    value: Duration::from_secs(u64::from(seconds.into_inner())),
                },
            },
            backup: self.backup(file.backup)?,
            credentials: self.credentials(&file.credentials)?,
        })
    }

    fn backup(&self, table: BackupTable) -> Result<Backup, ConfigError> {
        let default = Source::Default;
        for (name, zero) in [
            ("every", table.every.as_ref().filter(|every| *every.get_ref() == 0).map(Spanned::span)),
            ("keep", table.keep.as_ref().filter(|keep| *keep.get_ref() == 0).map(Spanned::span)),
        ] {
            if let Some(span) = zero {
                return Err(self.invalid(Some(span), format!("backup.{name} is at least 1")));
            }
        }
        let folder = match table.folder {
            None => Setting { value: None, source: default },
            Some(folder) if folder.get_ref().is_relative() => {
                let reason = "backup.folder begins with a /: commands are run from anywhere".to_owned();
                return Err(self.invalid(Some(folder.span()), reason));
            }
            Some(folder) => Setting { source: self.source(&folder), value: Some(folder.into_inner()) },
        };
        let every = table.every.map_or(Setting { value: None, source: default }, |every| Setting {
            source: self.source(&every),
            value: Some(Duration::from_secs(u64::from(every.into_inner()))),
        });
        let keep = table.keep.map_or(Setting { value: BACKUPS_KEPT, source: default }, |keep| Setting {
            source: self.source(&keep),
            value: usize::from(keep.into_inner()),
        });
        let to = match &table.to {
            None => Setting { value: None, source: default },
            Some(text) => Setting { value: Some(self.item(text, str::parse::<Recipient>)?), source: self.source(text) },
        };
        Ok(Backup { folder, every, keep, to })
    }

    fn credentials(
        &self,
        table: &BTreeMap<String, Spanned<String>>,
    ) -> Result<BTreeMap<Name, Setting<Name>>, ConfigError> {
        let credential = |(vat, credential): (&String, &Spanned<String>)| {
            let vat =
                vat.parse().map_err(|error: HomeError| self.invalid(Some(credential.span()), error.to_string()))?;
            let value = self.item(credential, str::parse::<Name>)?;
            Ok((vat, Setting { value, source: self.source(credential) }))
        };
        table.iter().map(credential).collect()
    }

    fn list<T: PartialEq, E: std::fmt::Display>(
        &self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Setting<Vec<T>>, ConfigError> {
        let Some(list) = list else { return Ok(Setting { value: Vec::new(), source: Source::Default }) };
        let source = self.source(&list);
        let mut value = Vec::new();
        for text in list.get_ref() {
            let parsed = self.item(text, &parse)?;
            if value.contains(&parsed) {
                return Err(self.invalid(Some(text.span()), "this stands in the list twice".to_owned()));
            }
            value.push(parsed);
        }
        Ok(Setting { value, source })
    }

    fn item<T, E: std::fmt::Display>(
        &self,
        text: &Spanned<String>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        parse(text.get_ref()).map_err(|error| self.invalid(Some(text.span()), error.to_string()))
    }

    fn source<T>(&self, spanned: &Spanned<T>) -> Source {
        Source::Line(self.place(spanned.span().start).0)
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn invalid(&self, span: Option<std::ops::Range<usize>>, reason: String) -> ConfigError {
        let (line, column) = span.map_or((1, 1), |span| self.place(span.start));
        ConfigError::Invalid { path: self.path.clone(), line, column, reason }
    }
}
