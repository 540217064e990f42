//! A server under a service manager: the manager's end of the notification socket is the test's, so that a test knows
//! when a reload is over.

use std::{fs, os::unix::net::UnixDatagram, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Running, program, run, text};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Supervised {
    pub(crate) folder: TempDir,
    pub(crate) running: Running,
    told: UnixDatagram,
}

impl Supervised {
    /// A server with this configuration; `data` and `listen` need not be said.
    pub(crate) fn start(settings: &str) -> Self {
        Self::start_with(settings, &[])
    }

    pub(crate) fn start_with(settings: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let told = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        write(folder.path(), settings);
        let config = folder.path().join("server.toml");
        let mut command = program(&["run", "--config", config.to_str().unwrap()]);
        command.env("NOTIFY_SOCKET", folder.path().join("notify")).envs(environment.iter().copied());
        let supervised = Self { running: Running::spawn(command), folder, told };
        assert!(supervised.told().starts_with("READY=1\nSTATUS=serving as vls://"));
        supervised
    }

    /// What the manager is told next.
    pub(crate) fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.told.recv(&mut buffer).expect("the manager is told something");
        text(&buffer[..length])
    }

    /// Writes another configuration and has it taken up.
    pub(crate) fn reload(&self, settings: &str) {
        write(self.folder.path(), settings);
        self.running.signal(Signal::HUP);
        let reloading = self.told();
        let (first, time) = reloading.split_once('\n').unwrap();
        assert_eq!(first, "RELOADING=1");
        assert!(time.strip_prefix("MONOTONIC_USEC=").unwrap().parse::<u64>().unwrap() > 0);
        assert!(self.told().starts_with("READY=1"));
    }

    pub(crate) fn config(&self) -> String {
        self.folder.path().join("server.toml").to_str().unwrap().to_owned()
    }

    /// What `status --json` says.
    pub(crate) fn status(&self) -> Value {
        let output = run(&["--json", "status", "--config", &self.config()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn write(folder: &Path, settings: &str) {
    let listen = if settings.starts_with("listen") { "" } else { "listen = \"127.0.0.1:0\"\n" };
    let data = folder.join("data");
    fs::write(folder.join("server.toml"), format!("data = {data:?}\n{listen}{settings}")).unwrap();
}
