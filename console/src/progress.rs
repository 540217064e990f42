//! How far a long piece of work is, on one line of standard error that is written over.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often the line changes: more often than that nobody reads it.
const INTERVAL: Duration = Duration::from_millis(100);
/// Width of the bar, in characters.
const BAR: usize = 24;

/// One piece of work. Shows nothing where nobody looks: without a terminal, or with `--json`.
#[derive(Debug)]
pub struct Progress {
    what: String,
    shown: Option<Instant>,
    visible: bool,
}

impl Progress {
    pub(crate) fn new(what: &str, json: bool) -> Self {
        Self { what: what.to_owned(), shown: None, visible: !json && io::stderr().is_terminal() }
    }

    /// Shows how much was done: so many bytes, of so many if that is known.
    pub fn show(&mut self, done: u64, of: Option<u64>) {
        if self.visible && self.shown.is_none_or(|shown| shown.elapsed() >= INTERVAL) {
            self.shown = Some(Instant::now());
            // Standard error may be closed, which stops no work.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{} {}", self.what, bar(done, of));
        }
    }
}

impl Drop for Progress {
    /// Leaves an empty line to whoever writes next.
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn bar(done: u64, of: Option<u64>) -> String {
    let Some(of) = of.filter(|of| *of > 0) else { return size(done) };
    let percent = done.min(of).saturating_mul(100) / of;
    let filled = usize::try_from(percent).unwrap_or(100) * BAR / 100;
    format!("[{:<BAR$}] {percent:>3} % of {}", "#".repeat(filled), size(of))
}

/// A number of bytes as a person says it.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_bar_is_full_at_the_end_and_never_beyond() {
        assert_eq!(bar(0, Some(100)), format!("[{}]   0 % of 100 bytes", " ".repeat(BAR)));
        assert_eq!(bar(50, Some(100)), format!("[{}{}]  50 % of 100 bytes", "#".repeat(12), " ".repeat(12)));
        assert_eq!(bar(200, Some(100)), format!("[{}] 100 % of 100 bytes", "#".repeat(BAR)));
        assert_eq!(bar(2048, None), "2.0 KiB");
    }
}
