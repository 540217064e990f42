//! A real location server for the real clients of others: pkarr's crate and iroh's.
//!
//! The program is the one that the workspace of this repository builds, in its own target folder. Here is only what
//! starts it, on ports that are free, and ends it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test whose server does not start has failed")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Lines},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use schemas::{IdentityKey, LocationRecord, SignedRecord, State, Timestamp};
use tempfile::TempDir;

/// The zone of the server.
pub const ORIGIN: &str = "vls.test";

const ANY: &str = "127.0.0.1:0";

const CONFIGURATION: &str = "vls-server.toml";

/// A `vls-server` process with HTTP and DNS. Ends with its owner.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    child: Child,
    /// Read as far as was needed; held, so that the server can go on writing.
    _log: Lines<BufReader<ChildStderr>>,
    /// Where it answers HTTP.
    pub http: SocketAddr,
    /// Where it answers DNS.
    pub dns: SocketAddr,
}

impl Server {
    /// Starts one that holds nothing.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts one that takes part in the DHT of these nodes.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn start_in_dht(nodes: &[String]) -> Self {
        Self::start_with(&format!("dht = true\ndht_bootstrap = {nodes:?}\n"))
    }

    /// Kills it, and starts another on the same folder.
    ///
    /// # Panics
    /// When that does not serve.
    #[must_use]
    pub fn killed_and_restarted(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        drop(self);
        Self::start_in(folder)
    }

    fn start_with(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let carriers = format!("[http]\nlisten = {ANY:?}\n[dns]\nlisten = {ANY:?}\norigin = {ORIGIN:?}\n");
        let data = folder.path().join("data");
        let text = format!("data = {data:?}\nlisten = {ANY:?}\n{settings}{carriers}");
        fs::write(folder.path().join(CONFIGURATION), text).unwrap();
        Self::start_in(folder)
    }

    fn start_in(folder: TempDir) -> Self {
        let mut command = Command::new(program());
        command.args(["run", "--config"]).arg(folder.path().join(CONFIGURATION));
        command.env_remove("VLS_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut http, mut dns, mut seen) = (None, None, Vec::new());
        while http.is_none() || dns.is_none() {
            let Some(line) = log.next() else { panic!("the server does not serve:\n{}", seen.join("\n")) };
            let line = line.unwrap();
            let address = |carrier: &str| {
                line.split_once(&format!("serving {carrier} too address=")).map(|(_, address)| address.parse().unwrap())
            };
            http = http.or_else(|| address("http"));
            dns = dns.or_else(|| address("dns"));
            seen.push(line);
        }
        Self { folder, child, _log: log, http: http.unwrap(), dns: dns.unwrap() }
    }

    /// Its address as a relay of pkarr's.
    #[must_use]
    pub fn relay(&self) -> String {
        format!("http://{}/", self.http)
    }

    /// Its address as iroh's publisher and resolver want it.
    #[must_use]
    pub fn relay_of_iroh(&self) -> String {
        format!("http://{}/pkarr", self.http)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, up to date with its sources: cargo knows whether that takes anything.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(folder) = env::var_os("VAT_TEST_PROGRAMS") {
            return PathBuf::from(folder).join("vls-server");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["build", "-p", "vls-server", "--bin", "vls-server", "--message-format", "json"]);
        command.current_dir(root).stderr(Stdio::inherit());
        // What cargo tells this test of its own package would make it build the dependencies of the other one anew; and
        // the target folder is the workspace's own, whatever this package is built in.
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "CARGO_TARGET_DIR"];
        let is_own = |name: &str| own.iter().any(|own| name.starts_with(own));
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_own)) {
            command.env_remove(name);
        }
        let built = command.output().expect("cargo runs");
        assert!(built.status.success(), "the location server does not build");
        let executable = |line: &[u8]| {
            let message: serde_json::Value = serde_json::from_slice(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        };
        built.stdout.split(|byte| *byte == b'\n').filter_map(executable).next_back().expect("cargo names the program")
    })
}

/// Now, by this machine's clock.
///
/// # Panics
/// When that is before 1970.
#[must_use]
pub fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_micros(u64::try_from(since_1970.as_micros()).unwrap())
}

/// The record of a vat that is awake, as the vat itself would sign it.
///
/// # Panics
/// Never: it is short, and in order.
#[must_use]
pub fn vat_record(key: &IdentityKey, epoch: u64, timestamp: Timestamp) -> SignedRecord {
    let record = LocationRecord {
        epoch,
        turn: 41,
        chain_head: Some("k7q2m9".to_owned()),
        state: State::Live,
        expires: timestamp + Duration::from_secs(7200),
        addresses: vec!["quic:192.0.2.7:4433".parse().unwrap()],
        search_path: Vec::new(),
        document: None,
    };
    SignedRecord::sign(key, &record, timestamp).unwrap()
}
