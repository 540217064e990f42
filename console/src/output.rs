//! What a program prints, for people or as JSON.

use std::io::{self, Write};

use schemas::{Coded, ErrorCode, Exit};
use serde_json::{Value, json};

use crate::{Progress, redaction::redacted};

/// Why a command ended without doing what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// Its stable code.
    pub code: ErrorCode,
    /// What happened, where and why.
    pub message: String,
    /// What to do next, if this failure knows better than its code.
    pub next: Option<String>,
}

impl Failure {
    /// A failure whose next step is the one of its code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), next: None }
    }

    /// Says what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Says in front what was being done.
    #[must_use]
    pub fn while_doing(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
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
pub struct Output {
    json: bool,
}

impl Output {
    /// For a program, or for a person.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads it.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.json
    }

    /// The result of the command, once: `human` as it is, or `data` as one line.
    ///
    /// # Errors
    /// `cli.output` when standard output cannot be written.
    pub fn result(self, human: &str, data: &Value) -> Result<(), Failure> {
        let text = if self.json { data.to_string() } else { human.to_owned() };
        self.line(&text)
    }

    /// A line of standard output, whatever the form.
    ///
    /// # Errors
    /// `cli.output` when it cannot be written.
    pub fn line(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // Who closed the pipe has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::new(ErrorCode::CliOutput, format!("standard output: {error}"))),
        }
    }

    /// Something a person should know that is no part of the result.
    pub fn notice(self, text: &str) {
        if !self.json {
            // Nothing sensible can be done when standard error is closed.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Shows how far a piece of work is that takes long, if somebody looks.
    #[must_use]
    pub fn progress(self, what: &str) -> Progress {
        Progress::new(what, self.json)
    }

    /// The failure, and the exit status that it means.
    pub fn failure(self, failure: &Failure) -> Exit {
        let message = printable(&redacted(&failure.message));
        let next = redacted(failure.next.as_deref().unwrap_or(failure.code.next()));
        let exit = failure.code.exit();
        let mut err = io::stderr().lock();
        let _ = if self.json {
            let code = failure.code.as_str();
            let error = json!({"error": {"code": code, "message": message, "next": next, "exit": exit as u8}});
            writeln!(err, "{error}")
        } else {
            writeln!(err, "error: {message} [{}]\n  next: {next}", failure.code)
        };
        exit
    }
}

/// Text of strangers without what would command a terminal: control characters but line ends and tabs, and
/// those that change the direction of the text around them, are shown as escapes.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_harmless = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || is_directional(c));
    text.chars().map(|c| if is_harmless(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

/// Marks, embeddings, overrides and isolates (Unicode TR9), and the separators that some terminals obey.
fn is_directional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns of text, aligned. Each cell is one line, whatever it holds.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let one_line = |cell: &String| printable(cell).replace('\n', "\\n").replace('\t', "\\t");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(one_line).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A span of time as a person says it.
#[must_use]
pub fn ago(seconds: u64) -> String {
    match seconds {
        0 => "just now".to_owned(),
        1..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::{printable, table};

    #[test]
    fn text_of_strangers_commands_no_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\u{202e}c\nd\u{9b}é"), "a\\u{1b}[31mb\\u{202e}c\nd\\u{9b}é");
    }

    #[test]
    fn a_cell_is_one_line_and_columns_stand_below_each_other() {
        let rows = [vec!["a".to_owned(), "x\ny".to_owned()], vec!["bbb".to_owned(), "z".to_owned()]];
        assert_eq!(table(&rows), "a    x\\ny\nbbb  z");
    }
}
