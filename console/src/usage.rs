//! Command lines that are not understood, in the form of every other failure.

use std::{ffi::OsString, io::Write};

use clap::error::ErrorKind;
use schemas::{ErrorCode, Exit};

use crate::{
    output::{Failure, Output},
    redaction::redacted,
};

/// Whether the arguments ask for JSON. Before clap had its say, that can only be read off the arguments
/// themselves.
pub fn wants_json(arguments: impl IntoIterator<Item = OsString>) -> bool {
    arguments.into_iter().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// Prints what clap has to say: help and version are answers, everything else is a failure.
pub fn usage(error: &clap::Error, output: Output) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return match output.line(&error.to_string()) {
            Ok(()) => Exit::Ok,
            Err(failure) => output.failure(&failure),
        };
    }
    let text = redacted(&error.to_string());
    let message = text.trim_start_matches("error: ").trim_end();
    if output.is_json() {
        // The first paragraph says what is wrong; usage and tips follow.
        let first = message.split("\n\n").next().unwrap_or(message);
        let words: Vec<&str> = first.split_whitespace().collect();
        return output.failure(&Failure::new(ErrorCode::CliUsage, words.join(" ")));
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ =
            writeln!(std::io::stderr().lock(), "error: no command was given [{}]\n\n{message}", ErrorCode::CliUsage);
        return Exit::Usage;
    }
    // Nothing sensible can be done when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "error: {message} [{}]", ErrorCode::CliUsage);
    Exit::Usage
}
