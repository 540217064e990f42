//! A whole program around one's own kinds of objects.

use std::process::ExitCode;

use crate::kinds::Kinds;

/// Runs the `vat` command line with these kinds of objects: `new`, `run`, `share`, `call` and all the
/// others. The process should end with what it returns.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     vat::program::main(vat::Kinds::built_in())
/// }
/// ```
#[must_use]
pub fn main(kinds: Kinds) -> ExitCode {
    crate::cli::main(kinds)
}
