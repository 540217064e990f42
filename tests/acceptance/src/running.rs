//! A program that goes on running until somebody ends it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command::{Done, kill_group, typed},
    limits,
};

/// A child process, killed with all that it started when dropped.
#[derive(Debug)]
pub struct Running {
    typed: String,
    child: Child,
    status: Option<ExitStatus>,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts a command. Both outputs go to files next to `place` as well, and so does its command line as
    /// other users of the machine see it.
    pub(crate) fn start(mut command: Command, place: &Path) -> Self {
        let typed = typed(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("`{typed}` does not start: {error}"));
        let (stdout, stderr) = (Arc::<Lines>::default(), Arc::<Lines>::default());
        let readers = vec![
            read(child.stdout.take().expect("piped"), stdout.clone(), place.with_extension("out")),
            read(child.stderr.take().expect("piped"), stderr.clone(), place.with_extension("err")),
        ];
        let visible = fs::read(format!("/proc/{}/cmdline", child.id())).expect("the command line of a child");
        fs::write(place.with_extension("cmdline"), visible).expect("a file in the world");
        Self { typed, child, status: None, stdout, stderr, readers }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of standard output, past or future, and returns it.
    ///
    /// # Panics
    /// When the program ends, or takes too long, without printing one.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        self.stdout.wait_for(is_it).unwrap_or_else(|| panic!("it did not print {what}: {}", self.so_far()))
    }

    /// Waits until it prints a line on standard output, or ends without one.
    #[must_use]
    pub fn first_line(&self) -> Option<String> {
        self.stdout.wait_for(|_| true)
    }

    /// The same as [`Running::wait_for`] for standard error.
    ///
    /// # Panics
    /// As [`Running::wait_for`].
    #[track_caller]
    pub fn wait_for_notice(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        self.stderr.wait_for(is_it).unwrap_or_else(|| panic!("it did not say {what}: {}", self.so_far()))
    }

    /// What it printed until now.
    #[must_use]
    pub fn so_far(&self) -> Done {
        Done {
            command: self.typed.clone(),
            status: self.status.and_then(|status| status.code()),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "the process has ended: {}", self.so_far());
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(process, signal).unwrap_or_else(|error| panic!("`{}`: {error}", self.typed));
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Panics
    /// When it had ended before, for whatever other reason.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        let done = self.wait();
        assert_eq!(self.status.and_then(|status| status.signal()), Some(Signal::KILL.as_raw()), "{done}");
    }

    /// SIGINT, as Ctrl-C sends it, and waits until the process has ended by itself.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn interrupt(mut self) -> Done {
        self.signal(Signal::INT);
        self.wait()
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self) -> Done {
        let (ended, still_running) = mpsc::channel::<()>();
        let group = self.child.id();
        let watchdog = thread::spawn(move || {
            let late = still_running.recv_timeout(limits::READY) == Err(RecvTimeoutError::Timeout);
            if late {
                kill_group(group);
            }
            late
        });
        self.status = Some(self.child.wait().expect("the status of a child"));
        drop(ended);
        let late = watchdog.join().expect("the watchdog");
        self.readers.drain(..).for_each(|reader| reader.join().expect("the reader of a child's output"));
        assert!(!late, "it did not end: {}", self.so_far());
        self.so_far()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            kill_group(self.child.id());
            // It is dead; the rest is the system's business.
            let _ = self.child.wait();
        }
    }
}

/// The lines of one output, and whether more can come.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    pub(crate) fn push(&self, line: String) {
        self.state.lock().expect("no panic while locked").lines.push(line);
        self.changed.notify_all();
    }

    pub(crate) fn end(&self) {
        self.state.lock().expect("no panic while locked").ended = true;
        self.changed.notify_all();
    }

    pub(crate) fn text(&self) -> String {
        self.state.lock().expect("no panic while locked").lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn wait_for(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        self.wait_until(|lines| lines.iter().find(|line| is_it(line)).cloned())
    }

    /// Waits until `look` finds something in the lines so far; `None` if no more lines can come, or none came
    /// in time.
    pub(crate) fn wait_until<R>(&self, look: impl Fn(&[String]) -> Option<R>) -> Option<R> {
        let deadline = Instant::now() + limits::READY;
        let mut state = self.state.lock().expect("no panic while locked");
        loop {
            if let Some(found) = look(&state.lines) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).expect("no panic while locked").0;
        }
    }
}

/// Reads an output line by line until it ends, and keeps its bytes in a file.
pub(crate) fn read(output: impl Read + Send + 'static, lines: Arc<Lines>, file: PathBuf) -> JoinHandle<()> {
    let mut file = fs::File::create(file).expect("a file in the world");
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            file.write_all(&line).expect("a file in the world");
            lines.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            line.clear();
        }
        lines.end();
    })
}
