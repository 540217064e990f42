//! Local sockets: the same sessions between processes of one user on one machine (DESIGN §6).
//!
//! A local socket proves nothing by keys; the kernel proves it instead. The file can be entered by its owner
//! alone from the moment it exists, and both ends ask the kernel who is at the other end (`SO_PEERCRED`) and
//! hang up unless it is the same user.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, chmodat, fchmod, flock, open, statat, unlinkat},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with},
};
use schemas::{Coded, ErrorCode};
use tokio::net::{
    UnixListener, UnixStream,
    unix::{OwnedReadHalf, OwnedWriteHalf},
};

use crate::limits;

/// Longest path that fits a socket address, its final zero not counted (`sun_path` in `unix(7)`).
const LONGEST_PATH: usize = 107;

/// The user that may do everything.
const ROOT: u32 = 0;

/// Why a local socket could not be opened or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The path names no file.
    #[error("{} names no file that could be a socket", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// A process listens there.
    #[error("another process listens at {}", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else has this name; it was not touched.
    #[error("{} exists and is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused to open the socket.
    #[error("cannot listen at {}: {source}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// No process listens there.
    #[error("no process listens at {}", path.display())]
    Nobody {
        /// The path.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("{} belongs to user {found}, not to user {expected}", path.display())]
    OtherUser {
        /// The path.
        path: PathBuf,
        /// Whose process it is.
        found: u32,
        /// Who we are.
        expected: u32,
    },
    /// The operating system refused something else.
    #[error("at {}: {source}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Coded for LocalError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Name { .. } | Self::InUse { .. } | Self::NotASocket { .. } | Self::Bind { .. } => ErrorCode::NetBind,
            Self::Nobody { .. } => ErrorCode::NetUnreachable,
            Self::OtherUser { .. } => ErrorCode::SessionWrongPeer,
            Self::System { .. } => ErrorCode::SystemIo,
        }
    }
}

/// A listening local socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    place: Place,
    /// Which file is ours, so that no other is removed.
    file: FileIdentity,
}

impl LocalListener {
    /// Listens at `path`, whose directory must exist. A socket file that a dead process has left is replaced.
    ///
    /// # Errors
    /// [`LocalError`]. Must be called inside a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, LocalError> {
        let refused = |errno: Errno| LocalError::Bind { path: path.to_owned(), source: errno.into() };
        let place = Place::open(path)?;
        // Two processes that both find a dead socket must not remove each other's new one. Held for some
        // system calls only, so waiting for it is short; given back when the directory is closed.
        let lock = open(place.parent(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let lock = lock.map_err(refused)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(refused)?;

        let socket = new_socket().map_err(refused)?;
        // Linux gives the file the mode of the socket, less the umask: it is never wider than this. Elsewhere
        // the call may fail, which leaves the mode to `chmodat` below; nobody can connect before `listen`.
        let owner_only = Mode::RUSR | Mode::WUSR;
        let _ = fchmod(&socket, owner_only);
        match bind(&socket, &place.address().map_err(refused)?) {
            Err(Errno::ADDRINUSE) => {
                place.remove_if_dead()?;
                bind(&socket, &place.address().map_err(refused)?).map_err(refused)?;
            }
            outcome => outcome.map_err(refused)?,
        }
        chmodat(&place.directory, &place.name, owner_only, AtFlags::empty()).map_err(refused)?;
        let file = place.stat().map_err(refused)?.into();
        listen(&socket, limits::LOCAL_BACKLOG).map_err(refused)?;
        let listener = UnixListener::from_std(net::UnixListener::from(socket))
            .map_err(|source| LocalError::Bind { path: path.to_owned(), source })?;
        Ok(Self { listener, place, file })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Waits for the next connection of a process of the same user. Those of others are dropped unheard.
    ///
    /// # Errors
    /// [`LocalError::System`], for instance when too many files are open.
    pub async fn accept(&self) -> Result<LocalStream, LocalError> {
        self.accept_from(None).await
    }

    /// The same, and of processes of root as well: for a program with a user of its own, which root looks after.
    ///
    /// # Errors
    /// As of [`accept`](Self::accept).
    pub async fn accept_or_root(&self) -> Result<LocalStream, LocalError> {
        self.accept_from(Some(ROOT)).await
    }

    async fn accept_from(&self, other: Option<u32>) -> Result<LocalStream, LocalError> {
        loop {
            let accepted = self.listener.accept().await;
            let (stream, _) = accepted.map_err(|source| self.place.system(source))?;
            let checked = self.place.check_user(&stream, own_user()).or_else(|error| match other {
                Some(other) => self.place.check_user(&stream, other),
                None => Err(error),
            });
            match checked {
                Ok(()) => return Ok(LocalStream { stream }),
                Err(error) => tracing::warn!(%error, "a local connection was dropped"),
            }
        }
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        if self.place.stat().is_ok_and(|stat| FileIdentity::from(stat) == self.file) {
            // A file that stays behind is found dead by the next one.
            let _ = unlinkat(&self.place.directory, &self.place.name, AtFlags::empty());
        }
    }
}

/// A connection between two processes of the same user.
#[derive(Debug)]
pub struct LocalStream {
    stream: UnixStream,
}

impl LocalStream {
    /// The stream itself, for who does not speak Cap'n Proto on it.
    #[must_use]
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    pub(crate) fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        self.stream.into_split()
    }
}

/// Connects to the process of the same user that listens at `path`.
///
/// # Errors
/// [`LocalError`]. Must be called inside a tokio runtime.
pub async fn dial_local(path: &Path) -> Result<LocalStream, LocalError> {
    dial_local_of(path, own_user()).await
}

/// The same for the process of this user: for root, who looks after the programs of others.
///
/// # Errors
/// [`LocalError`]. Must be called inside a tokio runtime.
pub async fn dial_local_of(path: &Path, user: u32) -> Result<LocalStream, LocalError> {
    let place = match Place::open(path) {
        Err(LocalError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(LocalError::Nobody { path: path.to_owned() });
        }
        place => place?,
    };
    let socket = place.connect().map_err(|errno| match errno {
        Errno::NOENT | Errno::CONNREFUSED => LocalError::Nobody { path: path.to_owned() },
        errno => place.system(errno.into()),
    })?;
    let stream = UnixStream::from_std(net::UnixStream::from(socket)).map_err(|source| place.system(source))?;
    place.check_user(&stream, user)?;
    Ok(LocalStream { stream })
}

/// Where a socket file is: a name in an open directory, so that the length of the path does not matter.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    fn open(path: &Path) -> Result<Self, LocalError> {
        let name = path.file_name().ok_or_else(|| LocalError::Name { path: path.to_owned() })?.to_owned();
        let directory = open(parent(path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| LocalError::System { path: path.to_owned(), source: errno.into() })?;
        Ok(Self { path: path.to_owned(), directory, name })
    }

    fn parent(&self) -> &Path {
        parent(&self.path)
    }

    /// The socket address of the file. A path that is too long for one goes through the open directory.
    fn address(&self) -> Result<SocketAddrUnix, Errno> {
        let path: &OsStr = self.path.as_os_str();
        if path.as_bytes().len() <= LONGEST_PATH {
            return SocketAddrUnix::new(path.as_bytes());
        }
        let mut short = format!("/proc/self/fd/{}/", self.directory.as_raw_fd()).into_bytes();
        short.extend_from_slice(self.name.as_bytes());
        SocketAddrUnix::new(short)
    }

    /// Never waits: a connection to a local socket is there at once or not at all.
    fn connect(&self) -> Result<OwnedFd, Errno> {
        let socket = new_socket()?;
        connect(&socket, &self.address()?)?;
        Ok(socket)
    }

    /// Removes the socket file if no process listens on it.
    fn remove_if_dead(&self) -> Result<(), LocalError> {
        let in_use = || LocalError::InUse { path: self.path.clone() };
        match self.stat() {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(LocalError::NotASocket { path: self.path.clone() });
            }
            _ => {}
        }
        match self.connect() {
            // Somebody listens; `AGAIN` says that its queue is full.
            Ok(_) | Err(Errno::AGAIN) => Err(in_use()),
            Err(Errno::CONNREFUSED) => match unlinkat(&self.directory, &self.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(self.system(errno.into())),
            },
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.system(errno.into())),
        }
    }

    fn stat(&self) -> Result<Stat, Errno> {
        statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn check_user(&self, stream: &UnixStream, expected: u32) -> Result<(), LocalError> {
        let found = stream.peer_cred().map_err(|source| self.system(source))?.uid();
        if found == expected { Ok(()) } else { Err(LocalError::OtherUser { path: self.path.clone(), found, expected }) }
    }

    fn system(&self, source: io::Error) -> LocalError {
        LocalError::System { path: self.path.clone(), source }
    }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Which file a name led to.
#[derive(Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl From<Stat> for FileIdentity {
    fn from(stat: Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}
