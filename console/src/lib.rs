//! How the programs talk to people and to other programs (DESIGN §10): the same in each of them.
//!
//! Data goes to standard output, everything else to standard error. With `--json` standard output carries JSON
//! only, and a failure is exactly one JSON object on standard error:
//! `{"error": {"code", "message", "next", "exit"}}`. The exit status follows from the error's code.

mod help;
mod output;
mod progress;
mod redaction;
mod settings;
mod usage;

pub use help::help;
pub use output::{Failure, Output, ago, printable, table};
pub use progress::{Progress, size};
pub use settings::{InvalidSetting, Setting, SettingsFile, Source, show_settings};
pub use usage::{usage, wants_json};
