//! The home folder: everything of one user's vats on this machine, and nothing outside it.
//!
//! ```text
//! HOME/config.toml          the search path and other settings; written by people and by `vat vls`
//! HOME/invites.toml         invites to location servers that are not open to everybody; secrets
//! HOME/vats.lock            who is giving a vat its place here
//! HOME/vats/NAME/id         the vat's public id
//! HOME/vats/NAME/store/     its sealed checkpoint
//! HOME/keys/vats/NAME.key   the key file that unlocks it; kept apart, so that a copy of a vat's folder opens nothing
//! HOME/keys/recipient.key     opens the images that are sealed for this home
//! HOME/keys/address-book.key
//! HOME/address-book/        received references, sealed
//! HOME/cache/records/       verified location records
//! HOME/run/NAME.sock        the socket of a vat that is awake
//! HOME/run/NAME.pem         the certificate that its TLS port shows, if it has one; no secret
//! ```
//!
//! Folders have mode 0700 and files 0600, whatever the umask.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use schemas::{Coded, ErrorCode, VatId};

use crate::limits::MAX_NAME_BYTES;

/// Why the home folder, or a name in it, cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// Neither `--home` nor `VAT_HOME` is given and there is no home directory of the user.
    #[error("there is no folder for vats: HOME is not set, and neither --home nor VAT_HOME is given")]
    NoHome,
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Others may enter.
    #[error("{} can be entered by other users (mode {mode:04o})", path.display())]
    Mode {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, not to the user who runs this program", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Not a name.
    #[error(
        "{name:?} is not a name: 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.', beginning with a letter or a digit"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// No vat of this name.
    #[error("there is no vat named {name:?} in {}", home.display())]
    NoVat {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        home: PathBuf,
    },
    /// A vat of this name exists.
    #[error("there is a vat named {name:?} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// This very vat is here, under this name.
    #[error("this vat is here already, as {name}")]
    Present {
        /// The name that it has.
        name: Name,
    },
    /// A vat's folder is there, and the file with its id is missing or not an id.
    #[error("{} does not hold the id of a vat", path.display())]
    Id {
        /// The file.
        path: PathBuf,
    },
}

impl Coded for HomeError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoHome => ErrorCode::HomeUnusable,
            Self::Io { error, .. } if is_full(error) => ErrorCode::CheckpointDiskFull,
            Self::Io { .. } => ErrorCode::HomeUnusable,
            Self::Mode { .. } | Self::Owner { .. } => ErrorCode::HomeMode,
            Self::Name { .. } => ErrorCode::VatNameInvalid,
            Self::NoVat { .. } => ErrorCode::VatNotFound,
            Self::Exists { .. } | Self::Present { .. } => ErrorCode::VatExists,
            Self::Id { .. } => ErrorCode::CheckpointMissing,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Mode { path, .. } => Some(format!("chmod 700 {}", path.display())),
            _ => None,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |error| HomeError::Io { path, error }
}

/// The name of a vat, or of an address book entry: also a file name, so it can hold no path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = HomeError;

    fn from_str(text: &str) -> Result<Self, HomeError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if !begins || text.len() > MAX_NAME_BYTES || !text.chars().all(allowed) {
            // Only a short text is repeated: what was pasted here by mistake may be a secret.
            let name = if text.len() <= MAX_NAME_BYTES && !text.contains('#') { text } else { "(a longer text)" };
            return Err(HomeError::Name { name: name.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// The home folder, checked to be this user's alone.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The folder that is used when none is named: `~/.vat`.
    ///
    /// # Errors
    /// [`HomeError::NoHome`].
    pub fn default_root() -> Result<PathBuf, HomeError> {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or(HomeError::NoHome)?;
        Ok(Path::new(&home).join(".vat"))
    }

    /// Opens the folder, and makes it first if it is not there.
    ///
    /// # Errors
    /// [`HomeError::Io`], [`HomeError::Mode`], [`HomeError::Owner`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        let root = std::path::absolute(root).map_err(at(root))?;
        make_folder(&root)?;
        let found = fs::metadata(&root).map_err(at(&root))?;
        if found.mode() & 0o077 != 0 {
            return Err(HomeError::Mode { path: root, mode: found.mode() & 0o7777 });
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(HomeError::Owner { path: root, owner: found.uid() });
        }
        Ok(Self { root })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The invites to location servers.
    #[must_use]
    pub fn invites_file(&self) -> PathBuf {
        self.root.join("invites.toml")
    }

    /// Where verified location records are cached.
    #[must_use]
    pub fn record_cache(&self) -> PathBuf {
        self.root.join("cache").join("records")
    }

    /// The sealed store of the address book.
    #[must_use]
    pub fn address_book(&self) -> PathBuf {
        self.root.join("address-book")
    }

    /// The key file of the address book.
    #[must_use]
    pub fn address_book_key(&self) -> PathBuf {
        self.root.join("keys").join("address-book.key")
    }

    /// The private key with which this home opens what others sealed for it.
    #[must_use]
    pub fn recipient_key(&self) -> PathBuf {
        self.root.join("keys").join("recipient.key")
    }

    /// Makes the folders in which `path` lies.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn make_parent(&self, path: &Path) -> Result<(), HomeError> {
        path.parent().map_or(Ok(()), make_folder)
    }

    /// Keeps everybody else from giving a vat its place here until the lock is dropped. Waits for who has it, which
    /// nobody does for longer than it takes to look at the vats that are here and to change some names.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn lock_vats(&self) -> Result<VatsLock, HomeError> {
        let path = self.root.join("vats.lock");
        let open = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.and_then(|file| file.lock().map(|()| file)).map_err(at(&path))?;
        Ok(VatsLock { _file: file })
    }

    /// The places of a vat of this name, whether it exists or not.
    #[must_use]
    pub fn places(&self, name: &Name) -> Places {
        let folder = self.root.join("vats").join(name.as_str());
        Places {
            id_file: folder.join("id"),
            store: folder.join("store"),
            folder,
            key_file: self.root.join("keys").join("vats").join(format!("{name}.key")),
            socket: self.root.join("run").join(format!("{name}.sock")),
        }
    }

    /// The places and the id of an existing vat.
    ///
    /// # Errors
    /// [`HomeError::NoVat`], [`HomeError::Id`].
    pub fn vat(&self, name: &Name) -> Result<(Places, VatId), HomeError> {
        let places = self.places(name);
        if !places.folder.is_dir() {
            return Err(HomeError::NoVat { name: name.to_string(), home: self.root.clone() });
        }
        let id = fs::read_to_string(&places.id_file).ok().and_then(|text| text.trim_end().parse().ok());
        let id = id.ok_or_else(|| HomeError::Id { path: places.id_file.clone() })?;
        Ok((places, id))
    }

    /// The names of all vats here, in order.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn names(&self) -> Result<Vec<Name>, HomeError> {
        let folder = self.root.join("vats");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(HomeError::Io { path: folder, error }),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at(&folder))?;
            // Whatever else somebody put here is not a vat; a vat that is being made has no id yet.
            if let Some(name) = entry.file_name().to_str().and_then(|text| text.parse::<Name>().ok())
                && self.places(&name).id_file.is_file()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The name of the vat here that has this id.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn name_of(&self, id: VatId) -> Result<Option<Name>, HomeError> {
        Ok(self.names()?.into_iter().find(|name| self.vat(name).is_ok_and(|(_, other)| other == id)))
    }
}

/// Held by whoever is giving a vat its place in a home. It ends when it is dropped, and with the process at the latest.
#[derive(Debug)]
pub struct VatsLock {
    _file: fs::File,
}

/// Where the parts of one vat lie.
#[derive(Debug, Clone)]
pub struct Places {
    /// The vat's folder.
    pub folder: PathBuf,
    /// The file with its id.
    pub id_file: PathBuf,
    /// Its sealed checkpoint.
    pub store: PathBuf,
    /// The key file that unlocks the checkpoint.
    pub key_file: PathBuf,
    /// The socket on which it is reached while it is awake.
    pub socket: PathBuf,
}

/// Makes a folder, and those above it, with mode 0700, durably: a loss of power must not take the folder of a
/// key that something was sealed under.
pub(crate) fn make_folder(path: &Path) -> Result<(), HomeError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_folder(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        // Another process was faster; anything else of that name is in the way.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(at(path))?,
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(above).and_then(|above| above.sync_all()).map_err(at(above))
}

/// Puts a file with mode 0600 in the place of another, atomically and durably.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> Result<(), HomeError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(at(path))
}
