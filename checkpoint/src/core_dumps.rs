//! No core dumps of processes that hold keys: a core holds everything that memory held, and lands in a file that
//! others may read (DESIGN §3: no secret in a core dump).

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Forbids core dumps of this process, and other processes of the same user to look into its memory.
///
/// To be called first thing in a program that will hold keys. Both settings are needed: a core that is piped to
/// a handler ignores the limit (`core(5)`).
///
/// # Errors
/// When the system refuses, which it does in no configuration that is known.
pub fn forbid_core_dumps() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
