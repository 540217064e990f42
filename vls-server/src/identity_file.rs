//! The server's own identity: `identity.key` in its data folder (DESIGN §4, §8).
//!
//! 32 bytes, the seed of an Ed25519 key (RFC 8032), made at the first start. The id that search paths name
//! is derived from it, so it is never replaced: without the file a folder that holds records is refused.
//! Mode and owner are those of the file that was opened, not of the name a moment before.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{Disk, DiskFile};
use schemas::{Coded, ErrorCode, IdentityKey};
use zeroize::Zeroizing;

use crate::{
    durable::holds_records,
    server::{ServerError, make_folder},
};

const FILE: &str = "identity.key";
const LENGTH: usize = 32;
const READ: &str = "read";
/// The permissions of the group and of everybody else.
const OTHERS: u32 = 0o077;

/// Why there is no identity to serve with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityFileError {
    /// The folder holds records, and the key whose server they were given to is gone.
    #[error("the identity key {} is not there, although the folder holds a server's records", path.display())]
    Missing {
        /// The key file.
        path: PathBuf,
    },
    /// Others can read or write the key.
    #[error("the identity key {} has mode {mode:04o}, so others can use it", path.display())]
    Mode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key belongs to another user.
    #[error("the identity key {} belongs to user {owner}", path.display())]
    Owner {
        /// The key file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// The file is not a key.
    #[error("the identity key {} has {found} bytes, a key has {LENGTH}", path.display())]
    Length {
        /// The key file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(getrandom::Error),
    /// The operating system refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Disk {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl IdentityFileError {
    pub(crate) fn disk(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Disk { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl Coded for IdentityFileError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. } => ErrorCode::KeyMissing,
            Self::Mode { .. } | Self::Owner { .. } => ErrorCode::KeyMode,
            Self::Length { .. } => ErrorCode::KeyWrong,
            Self::Random(_) => ErrorCode::SystemRandom,
            Self::Disk { action, source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::CheckpointDiskFull,
                io::ErrorKind::PermissionDenied if *action == READ => ErrorCode::KeyUnreadable,
                _ => ErrorCode::CheckpointDisk,
            },
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => {
                Some("Put it back from a backup, or name an empty folder with --data to be a new server.".to_owned())
            }
            Self::Mode { path, .. } => Some(format!("chmod 600 {}, and consider whether it was read.", path.display())),
            Self::Owner { path, .. } => {
                Some(format!("Run the server as the owner of {}, or give the folder to its user.", path.display()))
            }
            Self::Length { .. } => {
                Some("Put the file back from a backup: search paths name the id that it stands for.".to_owned())
            }
            Self::Random(_) | Self::Disk { .. } => None,
        }
    }
}

/// Reads the key in `directory`; makes one if `may_create` and there is none. Of several who make it at the
/// same time one wins, and the others read what it made.
pub(crate) fn load(disk: &dyn Disk, directory: &Path, may_create: bool) -> Result<IdentityKey, IdentityFileError> {
    let path = directory.join(FILE);
    if let Some(key) = read(disk, &path)? {
        return Ok(key);
    }
    if !may_create {
        return Err(IdentityFileError::Missing { path });
    }
    create(disk, directory, &path)?;
    read(disk, &path)?.ok_or(IdentityFileError::Missing { path })
}

/// The key of a server that somebody looks after: whose it is does not matter to root.
pub(crate) fn look(disk: &dyn Disk, directory: &Path) -> Result<IdentityKey, IdentityFileError> {
    let path = directory.join(FILE);
    let any_owner = rustix::process::geteuid().is_root();
    read_of(disk, &path, any_owner)?.ok_or(IdentityFileError::Missing { path })
}

/// The key of a server that is set up: makes the folder and the key, unless they are there.
pub(crate) fn prepare(disk: &dyn Disk, directory: &Path, store: &Path) -> Result<IdentityKey, ServerError> {
    let data = |source| ServerError::Data { path: directory.to_owned(), source };
    make_folder(disk, directory).map_err(data)?;
    let has_records = holds_records(disk, store).map_err(data)?;
    Ok(load(disk, directory, !has_records)?)
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<IdentityKey>, IdentityFileError> {
    read_of(disk, path, false)
}

fn read_of(disk: &dyn Disk, path: &Path, any_owner: bool) -> Result<Option<IdentityKey>, IdentityFileError> {
    let failed = |error| IdentityFileError::disk(READ, path, error);
    let file = match disk.open_to_read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let access = file.access().map_err(failed)?;
    if !access.own && !any_owner {
        return Err(IdentityFileError::Owner { path: path.to_owned(), owner: access.owner });
    }
    if access.mode & OTHERS != 0 {
        return Err(IdentityFileError::Mode { path: path.to_owned(), mode: access.mode });
    }
    let found = file.len().map_err(failed)?;
    if found != LENGTH as u64 {
        return Err(IdentityFileError::Length { path: path.to_owned(), found });
    }
    let mut seed = Zeroizing::new([0; LENGTH]);
    file.read_at(0, seed.as_mut()).map_err(failed)?;
    Ok(Some(IdentityKey::from_seed(&seed)))
}

fn create(disk: &dyn Disk, directory: &Path, path: &Path) -> Result<(), IdentityFileError> {
    let failed = |error| IdentityFileError::disk("create", path, error);
    let key = IdentityKey::generate().map_err(IdentityFileError::Random)?;
    let suffix = getrandom::u64().map_err(IdentityFileError::Random)?;
    // Written whole under a name of its own (exclusively, mode 0600) before it gets the real one: nobody ever
    // reads half a key, and a key that somebody else has just made is not replaced.
    let temporary = directory.join(format!("{FILE}.new-{suffix:016x}"));
    let file = disk.create(&temporary).map_err(failed)?;
    let written = write(file.as_ref(), &key).and_then(|()| match disk.rename_new(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.remove(&temporary),
        renamed => renamed,
    });
    if let Err(error) = written {
        // What has failed is reported; that a file which was never used stays behind harms nobody.
        let _ = disk.remove(&temporary);
        return Err(failed(error));
    }
    disk.sync_directory(directory).map_err(failed)
}

fn write(file: &dyn DiskFile, key: &IdentityKey) -> io::Result<()> {
    file.write_all_at(0, key.seed().as_ref())?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use checkpoint::FileDisk;

    use super::*;

    fn code(result: Result<IdentityKey, IdentityFileError>) -> ErrorCode {
        result.unwrap_err().code()
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_read_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let first = load(&FileDisk, folder.path(), true).unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read(&path).unwrap(), *first.seed());
        assert_eq!(load(&FileDisk, folder.path(), true).unwrap().id(), first.id());
        assert_eq!(load(&FileDisk, folder.path(), false).unwrap().id(), first.id());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn keys_that_others_could_use_are_refused_whatever_the_permission() {
        let folder = tempfile::tempdir().unwrap();
        load(&FileDisk, folder.path(), true).unwrap();
        let path = folder.path().join(FILE);
        for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(code(load(&FileDisk, folder.path(), true)), ErrorCode::KeyMode, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(load(&FileDisk, folder.path(), true).is_ok(), "the owner may make it read-only");
    }

    #[test]
    fn a_lost_key_or_one_of_another_length_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(code(load(&FileDisk, folder.path(), false)), ErrorCode::KeyMissing);
        load(&FileDisk, folder.path(), true).unwrap();
        let path = folder.path().join(FILE);
        for wrong in [&b""[..], &[7; 31], &[7; 33]] {
            fs::write(&path, wrong).unwrap();
            assert_eq!(code(load(&FileDisk, folder.path(), true)), ErrorCode::KeyWrong);
            assert_eq!(fs::read(&path).unwrap(), wrong);
        }
    }
}
