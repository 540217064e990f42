//! The hard limits. None is ever waited for when all is well: they only turn a hang into a failure, so they
//! are generous, for slow machines that run many tests at once.

use std::time::Duration;

/// The most that one command may take, its own time limits included (30 s for a call).
pub const COMMAND: Duration = Duration::from_secs(60);

/// The most that a long-running program may take to say what it is waited for, or to end when asked.
pub const READY: Duration = Duration::from_secs(60);

/// The most that building the programs may take, when they are not built yet.
pub const BUILD: Duration = Duration::from_secs(20 * 60);

/// The most bytes that one file may have that is searched for secrets. Nothing in these tests is larger; if
/// it ever is, the search must be made to read in pieces instead of being skipped.
pub const SEARCHED_FILE_BYTES: u64 = 256 << 20;
