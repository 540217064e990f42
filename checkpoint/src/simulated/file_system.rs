//! What a file system is made of, and what operations do to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::contents::Contents;
use crate::disk::FileAccess;

/// Identifies a file whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Inode(usize);

/// One thing that was done to a disk.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Create {
        path: PathBuf,
        inode: Inode,
    },
    CreateDirectory {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        replace: bool,
    },
    Remove {
        path: PathBuf,
    },
    Write {
        inode: Inode,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLength {
        inode: Inode,
        length: u64,
    },
    /// The path is the one under which the file was opened, for counting.
    Sync {
        inode: Inode,
        path: PathBuf,
    },
    FailedSync {
        inode: Inode,
    },
    SyncDirectory {
        path: PathBuf,
    },
    Mark(u64),
}

/// Files and folders. Contents are shared between copies until they change.
#[derive(Clone)]
pub(super) struct FileSystem {
    directories: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, Inode>,
    /// By number. A file that lost its last name stays, as an open one does.
    inodes: Vec<Contents>,
    access: BTreeMap<Inode, FileAccess>,
}

impl Default for FileSystem {
    fn default() -> Self {
        Self {
            directories: BTreeSet::from([PathBuf::from("/")]),
            names: BTreeMap::new(),
            inodes: Vec::new(),
            access: BTreeMap::new(),
        }
    }
}

impl FileSystem {
    pub(super) fn next_inode(&self) -> Inode {
        Inode(self.inodes.len())
    }

    pub(super) fn inode(&self, path: &Path) -> io::Result<Inode> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A name of a file; `None` if it has lost it.
    pub(super) fn name_of(&self, inode: Inode) -> Option<&Path> {
        self.names.iter().find(|(_, named)| **named == inode).map(|(path, _)| path.as_path())
    }

    /// What a file has; `None` if nothing was ever done to it.
    pub(super) fn contents(&self, inode: Inode) -> Option<&Contents> {
        self.inodes.get(inode.0)
    }

    pub(super) fn contents_at(&self, path: &Path) -> Option<Vec<u8>> {
        self.names.get(path).map(|inode| self.contents(*inode).map(Contents::to_vec).unwrap_or_default())
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.names.keys()
    }

    pub(super) fn access(&self, inode: Inode) -> FileAccess {
        self.access.get(&inode).copied().unwrap_or(FileAccess { mode: 0o600, owner: 1000, own: true })
    }

    pub(super) fn set_access(&mut self, path: &Path, access: FileAccess) {
        if let Some(inode) = self.names.get(path) {
            self.access.insert(*inode, access);
        }
    }

    pub(super) fn replace(&mut self, path: &Path, contents: &[u8]) {
        let inode = self.names.get(path).copied().unwrap_or_else(|| self.next_inode());
        self.names.insert(path.to_owned(), inode);
        *self.contents_mut(inode) = contents.into();
    }

    pub(super) fn flip(&mut self, path: &Path, bit: usize) {
        let Some(inode) = self.names.get(path).copied() else { return };
        let mut byte = [0];
        if self.contents_mut(inode).read(bit / 8, &mut byte).is_some() {
            self.contents_mut(inode).write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
        }
    }

    pub(super) fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        if !self.directories.contains(directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let children = self.names.keys().chain(&self.directories).filter(|path| path.parent() == Some(directory));
        Ok(children.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    /// Whether an operation is possible now.
    pub(super) fn check(&self, operation: &Operation) -> io::Result<()> {
        let taken = |path: &Path| self.names.contains_key(path) || self.directories.contains(path);
        let has_parent = |path: &Path| path.parent().is_some_and(|parent| self.directories.contains(parent));
        let error = match operation {
            Operation::Create { path, .. } | Operation::CreateDirectory { path } if !has_parent(path) => {
                io::ErrorKind::NotFound
            }
            Operation::Create { path, .. } | Operation::CreateDirectory { path } if taken(path) => {
                io::ErrorKind::AlreadyExists
            }
            Operation::Rename { from, .. } if !self.names.contains_key(from) => io::ErrorKind::NotFound,
            Operation::Rename { to, replace: false, .. } if taken(to) => io::ErrorKind::AlreadyExists,
            Operation::Remove { path } if !self.names.contains_key(path) => io::ErrorKind::NotFound,
            Operation::SyncDirectory { path } if !self.directories.contains(path) => io::ErrorKind::NotFound,
            _ => return Ok(()),
        };
        Err(error.into())
    }

    /// Does an operation, as far as it is possible.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create { path, inode } => {
                self.contents_mut(*inode);
                self.names.insert(path.clone(), *inode);
            }
            Operation::CreateDirectory { path } => {
                self.directories.insert(path.clone());
            }
            Operation::Rename { from, to, .. } => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Operation::Remove { path } => {
                self.names.remove(path);
            }
            Operation::Write { inode, offset, bytes } => self.write(*inode, *offset, bytes),
            Operation::SetLength { inode, length } => {
                self.contents_mut(*inode).set_length(to_usize(*length));
            }
            Operation::Sync { .. }
            | Operation::FailedSync { .. }
            | Operation::SyncDirectory { .. }
            | Operation::Mark(_) => {}
        }
    }

    pub(super) fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) {
        self.contents_mut(inode).write(to_usize(offset), bytes);
    }

    fn contents_mut(&mut self, inode: Inode) -> &mut Contents {
        if self.inodes.len() <= inode.0 {
            self.inodes.resize_with(inode.0 + 1, Contents::default);
        }
        &mut self.inodes[inode.0]
    }
}

/// Offsets and lengths of what is held in memory.
pub(super) fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
