//! Where benchmarks keep their data: on a real file system, for what is measured is the disk.

use std::path::PathBuf;

use rustix::fs::statfs;
use tempfile::TempDir;

use crate::{Failure, note};

/// File systems that only pretend: `statfs(2)`, `f_type`.
const TMPFS: u64 = 0x0102_1994;

/// A folder that is removed when it is dropped. It lies beside the program, in cargo's target folder:
/// `/tmp` is memory on many systems, and a sync there costs nothing.
pub(crate) fn temporary() -> Result<TempDir, Failure> {
    let program = std::env::current_exe()?;
    let parent = program.parent().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(parent)?;
    if u64::try_from(statfs(folder.path())?.f_type).is_ok_and(|kind| kind == TMPFS) {
        note("This folder is in memory: figures that involve the disk mean nothing here.");
    }
    Ok(folder)
}
