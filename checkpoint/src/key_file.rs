//! The key file: 32 random bytes that unlock stores, for their owner only (DESIGN §8, Keyslots).
//!
//! It stands outside the stores, so that a copy of a store's folder alone opens nothing. Mode and owner are
//! those of the file that was opened, not of the name a moment before. Several stores may share one.

use std::{
    ffi::OsString,
    fmt::Write,
    io,
    path::{Component, Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{
    disk::{Disk, DiskFile, FileAccess, read_small},
    error::StoreError,
    keys::SecretBytes,
    random,
};

const LENGTH: usize = 32;
/// The permissions of the group and of everybody else.
const OTHERS: u32 = 0o077;
/// The permissions of the group but reading, and of everybody else.
const NOT_FOR_A_CREDENTIAL: u32 = 0o037;

/// Reads a key file, unless somebody else could have read or written it.
pub(crate) fn load(disk: &dyn Disk, path: &Path) -> Result<SecretBytes, StoreError> {
    let failed = |error| StoreError::disk("read", path, error);
    let file = disk.open_to_read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::KeyMissing { path: path.to_owned() },
        _ => failed(error),
    })?;
    let access = file.access().map_err(failed)?;
    if !access.own {
        return Err(StoreError::KeyOwner { path: path.to_owned(), owner: access.owner });
    }
    if access.mode & OTHERS != 0 {
        return Err(StoreError::KeyMode { path: path.to_owned(), mode: access.mode });
    }
    read(file.as_ref(), path)
}

/// Reads a credential that the service manager placed, unless somebody else could have written it or everybody
/// can read it.
///
/// The service manager owns it, so other rules hold than for a key file: systemd leaves a credential to root
/// with mode 0400, or shows 0440 where an access list lets the user of the service read it.
pub(crate) fn load_credential(disk: &dyn Disk, directory: &Path, name: &str) -> Result<SecretBytes, StoreError> {
    let mut components = Path::new(name).components();
    let stays_inside = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    if !stays_inside || components.next().is_some() || name.contains('\0') {
        return Err(StoreError::CredentialName { name: name.to_owned() });
    }
    let path = directory.join(name);
    let failed = |error| StoreError::disk("read", &path, error);
    let file = disk.open_to_read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::CredentialMissing { path: path.clone() },
        _ => failed(error),
    })?;
    let FileAccess { mode, owner, own } = file.access().map_err(failed)?;
    if !(own || owner == 0) || mode & NOT_FOR_A_CREDENTIAL != 0 {
        return Err(StoreError::CredentialAccess { path, mode, owner });
    }
    read(file.as_ref(), &path)
}

fn read(file: &dyn DiskFile, path: &Path) -> Result<SecretBytes, StoreError> {
    let failed = |error| StoreError::disk("read", path, error);
    let bytes = Zeroizing::new(read_small(file, LENGTH as u64).map_err(failed)?.unwrap_or_default());
    if bytes.len() != LENGTH {
        return Err(StoreError::KeyLength { path: path.to_owned(), found: file.len().map_err(failed)? });
    }
    let mut key = SecretBytes::default();
    key.copy_from_slice(&bytes);
    Ok(key)
}

/// Writes a new random key under a name that nobody else uses, durably with its name.
pub(crate) fn create(disk: &dyn Disk, path: &Path) -> Result<SecretBytes, StoreError> {
    let key = write_new(disk, path)?;
    disk.sync_directory(parent(path)).map_err(|error| StoreError::disk("create", path, error))?;
    Ok(key)
}

fn write_new(disk: &dyn Disk, path: &Path) -> Result<SecretBytes, StoreError> {
    let failed = |error| StoreError::disk("create", path, error);
    let mut key = SecretBytes::default();
    random::fill(key.as_mut())?;
    let file = disk.create(path).map_err(failed)?;
    file.write_all_at(0, key.as_ref()).map_err(failed)?;
    file.sync_data().map_err(failed)?;
    Ok(key)
}

/// Reads a key file, or makes one if there is none. Of several who make it at the same time one wins and the
/// others read what it made: a key that some store was sealed with is never replaced.
pub(crate) fn load_or_create(disk: &dyn Disk, path: &Path) -> Result<SecretBytes, StoreError> {
    let failed = |error| StoreError::disk("create", path, error);
    // A store is about to be sealed with it, so its name must be durable, also when somebody else has made it a
    // moment ago and was killed before.
    let sync = || disk.sync_directory(parent(path)).map_err(failed);
    match load(disk, path) {
        Err(StoreError::KeyMissing { .. }) => {}
        loaded => return sync().and(loaded),
    }
    // Written whole under a name of its own before it gets the real one: nobody ever reads half a key.
    let temporary = temporary_name(path)?;
    write_new(disk, &temporary)?;
    match disk.rename_new(&temporary, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&temporary).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    sync()?;
    load(disk, path)
}

fn temporary_name(path: &Path) -> Result<PathBuf, StoreError> {
    let mut random = [0; 8];
    random::fill(&mut random)?;
    let mut name = OsString::from(path);
    let mut suffix = String::from(".new-");
    for byte in random {
        // Proof: writing to a string cannot fail.
        let _ = write!(suffix, "{byte:02x}");
    }
    name.push(suffix);
    Ok(name.into())
}

/// The folder that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
