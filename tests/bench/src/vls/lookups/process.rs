//! Servers that are processes of their own, so that the system counts what each of them takes of the processor.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{time::clock_getcpuclockid, unistd::Pid};

use super::SERVE;
use crate::{
    Failure,
    placement::{Side, on_processor_of},
};

/// As the service's unit sets it (`vls-server/contrib`); here for all servers, also those that are compared with.
const LARGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// A process on the server's processor. Ends when it is dropped.
pub(super) struct Process {
    child: Child,
    greeting: String,
}

impl Process {
    /// This program again, as one of its servers, with the first line that it says.
    pub(super) fn of_this_program(arguments: &[&str]) -> Result<Self, Failure> {
        let command = Command::new(std::env::current_exe()?);
        Self::greeted(command, arguments)
    }

    /// The same in a control group, named by its file of processes.
    pub(super) fn of_this_program_in(group: &Path, arguments: &[&str]) -> Result<Self, Failure> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(group).arg(std::env::current_exe()?);
        Self::greeted(command, arguments)
    }

    fn greeted(mut command: Command, arguments: &[&str]) -> Result<Self, Failure> {
        command.arg(SERVE).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::start(command)?;
        if let Some(output) = process.child.stdout.take() {
            BufReader::new(output).read_line(&mut process.greeting)?;
        }
        if process.greeting.pop() != Some('\n') {
            return Err(format!("{arguments:?} ended before it served").into());
        }
        Ok(process)
    }

    /// Any program; whether it serves already is for the caller to find out.
    pub(super) fn start(mut command: Command) -> Result<Self, Failure> {
        command.env(LARGE_PAGES.0, LARGE_PAGES.1);
        let child = on_processor_of(Side::Server, || command.spawn())??;
        Ok(Self { child, greeting: String::new() })
    }

    /// What a process of this program said first.
    pub(super) fn greeting(&self) -> &str {
        &self.greeting
    }

    /// The most that it has had in memory so far, in bytes.
    pub(super) fn most_resident_bytes(&self) -> Result<u64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("the system does not tell")?;
        Ok(line.trim_end_matches("kB").trim().parse::<u64>()? << 10)
    }

    /// What all its threads have taken of the processor since it began, the kernel's work for them included.
    pub(super) fn processor_time(&self) -> Result<Duration, Failure> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.child.id())?))?;
        Ok(Duration::from(clock.now()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It holds nothing that anybody wants; if it is gone already, so much the better.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until whoever started this process wants no more of it, or has gone.
pub(super) fn until_unwanted() -> Result<(), Failure> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
