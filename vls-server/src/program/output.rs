//! What the program prints: data on standard output, everything else on standard error (DESIGN §10).
//!
//! With `--json` standard output carries JSON only, and a failure is exactly one JSON object on standard
//! error: `{"error": {"code", "message", "next", "exit"}}`.

use std::io::{self, Write};

use schemas::{Coded, ErrorCode, Exit};
use serde_json::{Value, json};

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: ErrorCode,
    message: String,
    next: Option<String>,
}

impl Failure {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), next: None }
    }

    pub(super) fn system(action: &str, error: &io::Error) -> Self {
        Self::new(ErrorCode::SystemIo, format!("cannot {action}: {error}"))
    }

    pub(super) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl<E: Coded> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: error.code(), message: error.to_string(), next: error.next() }
    }
}

/// Prints for a person or for a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// The result: `human` as it is, or `data` as one line.
    pub(super) fn result(self, human: &str, data: &Value) -> Result<(), Failure> {
        if self.json { self.line(&data.to_string()) } else { self.line(human) }
    }

    /// Text on standard output, whatever the form.
    pub(super) fn line(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
        written.map_err(|error| Failure::new(ErrorCode::CliOutput, format!("standard output: {error}")))
    }

    /// The failure on standard error; gives the exit status that it means.
    pub(super) fn failure(self, failure: &Failure) -> Exit {
        let (code, exit) = (failure.code, failure.code.exit());
        let next = failure.next.as_deref().unwrap_or(code.next());
        let text = if self.json {
            let error = json!({"code": code.as_str(), "message": failure.message, "next": next, "exit": exit as u8});
            json!({ "error": error }).to_string()
        } else {
            format!("error: {} [{code}]\n  next: {next}", failure.message)
        };
        // Nothing sensible can be done when standard error is closed.
        let _ = writeln!(io::stderr().lock(), "{text}");
        exit
    }
}
