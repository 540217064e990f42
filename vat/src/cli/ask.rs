//! Secrets that are typed: on a terminal that does not show them, or piped in.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use zeroize::Zeroizing;

/// What a terminal without signals sends for Ctrl-C.
const CTRL_C: u8 = 3;

/// Whether somebody sits at standard input.
pub(super) fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// One line from a terminal that does not show it, with its end, and at most `limit` bytes; `None` if it was
/// interrupted. A secret on the screen is a secret given away.
pub(super) fn hidden_line(prompt: &str, limit: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // Quiet before the prompt: whoever answers it at once is not shown either.
    let _quiet = QuietTerminal::set();
    let mut err = io::stderr().lock();
    // Who closed standard error needs no prompt.
    let _ = err.write_all(prompt.as_bytes()).and_then(|()| err.flush());
    let line = piped_line(limit)?;
    Ok(if line.contains(&CTRL_C) { None } else { Some(line) })
}

/// The first line of standard input, with its end, and at most `limit` bytes.
pub(super) fn piped_line(limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(limit));
    io::stdin().lock().take(u64::try_from(limit).unwrap_or(u64::MAX)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Everything that is piped in, at most `limit` bytes.
pub(super) fn piped(limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut input = Zeroizing::new(Vec::with_capacity(limit));
    io::stdin().lock().take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut input)?;
    Ok(input)
}

/// The terminal with its echo off, until dropped.
struct QuietTerminal(Option<rustix::termios::Termios>);

impl QuietTerminal {
    fn set() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut quiet = before.clone();
        // Without signals, so that Ctrl-C cannot leave the terminal without its echo: it ends the line instead.
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        quiet.local_modes.insert(LocalModes::ECHONL);
        let set = tcsetattr(&stdin, OptionalActions::Flush, &quiet);
        Self(set.is_ok().then_some(before))
    }
}

impl Drop for QuietTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone; then there is nothing to restore.
            let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, before);
        }
    }
}
