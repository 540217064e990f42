//! A command that runs to its end, and what it said.

use std::{
    fmt,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Done {
    /// What was typed.
    pub command: String,
    /// The exit status; `None`: it was ended by a signal.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What a failed command said with `--json`.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What went wrong, and where.
    pub message: String,
    /// What to do next.
    pub next: String,
}

impl Failure {
    /// Checks that the message says all of this.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn says(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.message.contains(part), "the message does not say {part:?}: {}", self.message);
        }
        self
    }

    /// Checks that the hint says this.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn hints(&self, part: &str) -> &Self {
        assert!(self.next.contains(part), "the hint does not say {part:?}: {}", self.next);
        self
    }
}

impl Done {
    /// Checks that it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Checks the exit status.
    ///
    /// # Panics
    /// When it is another one.
    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self}");
        self
    }

    /// Standard output as the one line of JSON that `--json` promises.
    ///
    /// # Panics
    /// When it is anything else.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        let lines: Vec<&str> = self.stdout.lines().collect();
        let [line] = lines[..] else { panic!("not one line of JSON: {self}") };
        serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// Checks that it failed as every command fails with `--json` (DESIGN §10): nothing on standard output,
    /// exactly one JSON object on standard error, with this code, a message, a hint, and the exit status.
    ///
    /// # Panics
    /// When anything of that is not so.
    #[track_caller]
    pub fn failed(&self, exit: i32, code: &str) -> Failure {
        assert_eq!(self.status, Some(exit), "{self}");
        assert_eq!(self.stdout, "", "a failure prints nothing on standard output: {self}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let [line] = lines[..] else { panic!("not exactly one JSON object on standard error: {self}") };
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"));
        let error = &object["error"];
        assert_eq!(object.as_object().map(|object| object.len()), Some(1), "{self}");
        assert_eq!(error["code"], code, "{self}");
        assert_eq!(error["exit"], exit, "{self}");
        let text = |key: &str| {
            let text = error[key].as_str().unwrap_or_default().to_owned();
            assert!(!text.is_empty(), "a failure has a {key}: {self}");
            text
        };
        Failure { message: text("message"), next: text("next") }
    }

    /// Checks that it failed as every command fails for a person: `error: … [code]`, then what to do next.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn failed_for_a_person(&self, exit: i32, code: &str) {
        assert_eq!(self.status, Some(exit), "{self}");
        assert_eq!(self.stdout, "", "a failure prints nothing on standard output: {self}");
        assert!(self.stderr.contains("error: "), "{self}");
        assert!(self.stderr.contains(&format!("[{code}]")), "{self}");
        // clap's own usage text is the hint of a usage error.
        let hints = if code == "cli.usage" { "--help" } else { "next: " };
        assert!(self.stderr.contains(hints), "{self}");
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        match status {
            Some(status) => writeln!(f, "`{command}` ended with {status}")?,
            None => writeln!(f, "`{command}` was ended by a signal")?,
        }
        write!(f, "--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// What was typed, for messages.
pub(crate) fn typed(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let words = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end, in a process group of its own; after `limit` all of the group is killed.
pub(crate) fn wait_with_limit(mut command: Command, input: &[u8], limit: Duration) -> Done {
    let typed = typed(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("`{typed}` does not start: {error}"));
    let group = child.id();
    let (ended, still_running) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = still_running.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if late {
            kill_group(group);
        }
        late
    });
    if let Some(mut stdin) = child.stdin.take() {
        // Who does not read its input closes the pipe.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().expect("the output of a child");
    drop(ended);
    let late = watchdog.join().expect("the watchdog");
    let done = Done {
        command: typed,
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("programs print text"),
        stderr: String::from_utf8(output.stderr).expect("programs print text"),
    };
    assert!(!late, "no end within {} s: {done}", limit.as_secs());
    done
}

/// SIGKILL to a process that leads a group, and to all that it started.
pub(crate) fn kill_group(leader: u32) {
    let group = i32::try_from(leader).ok().and_then(Pid::from_raw).expect("a process id");
    // The group may have ended by itself.
    let _ = kill_process_group(group, Signal::KILL);
}
