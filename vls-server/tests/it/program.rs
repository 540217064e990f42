//! The `vls-server` program as its operator meets it: real processes, real signals, a real disk.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, UdpSocket},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use schemas::{IdentityKey, SearchPathEntry, SignedRecord};
use serde_json::Value;
use vls_server::{Clock, SystemClock};

use crate::finder::{Finder, Wire};
use crate::http_client::HttpClient;
use crate::local::{foreign, key, on_one_thread, record_at};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_vls-server");

pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env_remove("VLS_LOG").stdin(Stdio::null());
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A server that runs, and ends with the test.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    /// The line that it printed once it served.
    pub(crate) line: String,
}

impl Running {
    pub(crate) fn start(data: &Path, more: &[&str]) -> Self {
        Self::start_listening("127.0.0.1:0", data, more)
    }

    pub(crate) fn start_listening(listen: &str, data: &Path, more: &[&str]) -> Self {
        let mut command = program(&["run", "--listen", listen, "--data", data.to_str().unwrap()]);
        command.args(more);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let mut running = Self { child, stdout, line };
        if !running.line.ends_with('\n') {
            let (_, _, stderr) = running.ended();
            panic!("it does not serve: {stderr}");
        }
        running.line.pop();
        running
    }

    pub(crate) fn entry(&self) -> SearchPathEntry {
        self.line.parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: status, and what else it printed.
    pub(crate) fn ended(&mut self) -> (ExitStatus, String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_string(&mut stderr).unwrap();
        }
        (self.child.wait().unwrap(), stdout, stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Expects a failure with `--json`: exactly one JSON object on standard error, nothing on standard output.
pub(crate) fn json_failure(arguments: &[&str]) -> (String, String, i32) {
    let output = run(arguments);
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let value: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["error"]);
    let error = value["error"].as_object().unwrap();
    let mut keys: Vec<_> = error.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "exit", "message", "next"]);
    let exit = output.status.code().unwrap();
    assert_eq!(error["exit"].as_i64(), Some(i64::from(exit)));
    assert!(!error["next"].as_str().unwrap().is_empty());
    let text = |key: &str| error[key].as_str().unwrap().to_owned();
    (text("code"), text("message"), exit)
}

#[test]
fn it_prints_one_line_to_paste_with_the_real_port_and_ends_well_on_sigterm_and_sigint() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("new/data");
    let mut ids = Vec::new();
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Running::start(&data, &[]);
        let SearchPathEntry::Vls { id, host, port } = server.entry() else { panic!("{}", server.line) };
        assert_eq!(server.line, format!("vls://{id}@127.0.0.1:{port}"));
        assert_eq!(host, "127.0.0.1");
        assert_ne!(port, 0);
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_err(), "it listens there");
        ids.push(id);
        server.signal(signal);
        let (status, stdout, stderr) = server.ended();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert_eq!(stdout, "", "one line and no more");
    }
    assert_eq!(ids[0], ids[1], "the identity is kept");
    let key_file = data.join("identity.key");
    assert_eq!(fs::metadata(&key_file).unwrap().mode() & 0o7777, 0o600);
    let seed: [u8; 32] = fs::read(&key_file).unwrap().try_into().unwrap();
    assert_eq!(IdentityKey::from_seed(&seed).id(), ids[0]);
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn the_printed_host_is_one_that_others_can_use() {
    let folder = tempfile::tempdir().unwrap();
    for any in ["0.0.0.0:0", "[::]:0"] {
        let server = Running::start_listening(any, folder.path(), &[]);
        let SearchPathEntry::Vls { host, .. } = server.entry() else { panic!("{}", server.line) };
        let address: IpAddr = host.parse().unwrap();
        assert!(!address.is_unspecified() && !address.is_multicast());
        // And it answers there.
        on_one_thread(async {
            Finder::dial_entry(1, &server.line).await.now().await.unwrap();
        });
    }
    let server = Running::start(folder.path(), &["--advertise", "Vls.Example.org"]);
    assert!(server.line.contains("@vls.example.org:"), "{}", server.line);
    drop(server);
    let server = Running::start(folder.path(), &["--advertise", "2001:db8::7"]);
    assert!(server.line.contains("@[2001:db8::7]:"), "{}", server.line);
}

#[test]
fn killed_right_after_acknowledging_200_registrations_it_has_all_of_them_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock.now().wall;
    let records: Vec<_> = (1..=200).map(|n| record_at(now, &key(n), 1, 0)).collect();
    let mut server = Running::start(folder.path(), &[]);
    on_one_thread(async {
        let client = Finder::dial_entry(1, &server.line).await;
        let outcomes = join_all(records.iter().map(|record| client.register(record))).await;
        server.signal(Signal::KILL);
        assert_eq!(outcomes, vec![Ok(Wire::Stored(3600)); 200]);
    });
    let (status, ..) = server.ended();
    assert_eq!(status.code(), None, "it was killed");

    let server = Running::start(folder.path(), &[]);
    on_one_thread(async {
        let client = Finder::dial_entry(2, &server.line).await;
        let ids: Vec<_> = records.iter().map(|record| *record.id().as_bytes()).collect();
        let ids: Vec<&[u8]> = ids.iter().map(<[u8; 32]>::as_slice).collect();
        let answers = client.lookup_many(&ids).await.unwrap();
        for (record, (packet, _, expired)) in records.iter().zip(answers) {
            assert_eq!(packet, record.packet());
            assert!(!expired);
        }
    });
}

#[test]
fn killed_right_after_it_acknowledged_what_says_nothing_of_a_vat_it_has_that_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock.now().wall;
    let packets: Vec<_> = (1..=20).map(|n| foreign(&key(n), now, "relay=https://relay.example")).collect();
    let mut server = Running::start(folder.path(), &["--http", "127.0.0.1:0"]);
    // It says where before it prints the line that it has printed.
    let mut log = BufReader::new(server.child.stderr.take().unwrap()).lines();
    let http = log.find_map(|line| Some(line.unwrap().split_once("serving http too address=")?.1.to_owned()));
    on_one_thread(async {
        let mut client = HttpClient::to(http.unwrap().parse().unwrap()).await;
        for packet in &packets {
            assert_eq!(client.put(&format!("/pkarr/{}", packet.id()), &[], packet.packet()).await.status, 204);
        }
    });
    server.signal(Signal::KILL);
    let (status, ..) = server.ended();
    assert_eq!(status.code(), None, "it was killed");

    let server = Running::start(folder.path(), &[]);
    on_one_thread(async {
        let client = Finder::dial_entry(2, &server.line).await;
        for packet in &packets {
            let (found, _, expired) = client.lookup(packet.id().as_bytes()).await.unwrap();
            assert_eq!((found.as_slice(), expired), (packet.packet(), false));
        }
    });
}

#[test]
fn a_second_server_on_the_same_folder_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Running::start(folder.path(), &[]);
    let data = folder.path().to_str().unwrap();
    let (code, message, exit) = json_failure(&["--json", "run", "--listen", "127.0.0.1:0", "--data", data]);
    assert_eq!((code.as_str(), exit), ("server.running", 7));
    assert!(message.contains(&format!("process {}", first.child.id())), "{message}");
    assert!(message.contains(data), "{message}");
}

#[test]
fn a_port_that_is_in_use_is_exit_7_and_names_the_address() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Running::start(one.path(), &[]);
    let SearchPathEntry::Vls { port, .. } = first.entry() else { panic!("{}", first.line) };
    let listen = format!("127.0.0.1:{port}");
    let data = other.path().to_str().unwrap();
    let (code, message, exit) = json_failure(&["run", "--json", "--listen", &listen, "--data", data]);
    assert_eq!((code.as_str(), exit), ("net.bind", 7));
    assert!(message.contains(&listen), "{message}");
}

#[test]
fn a_key_that_others_can_read_or_that_is_gone_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(Running::start(folder.path(), &[]));
    let data = folder.path().to_str().unwrap();
    let serve = ["--json", "run", "--listen", "127.0.0.1:0", "--data", data];
    let key_file = folder.path().join("identity.key");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, message, exit) = json_failure(&serve);
    assert_eq!((code.as_str(), exit), ("key.mode", 4));
    assert!(message.contains("identity.key") && message.contains("0644"), "{message}");
    assert_eq!(fs::metadata(&key_file).unwrap().mode() & 0o777, 0o644, "it is the owner's to correct");
    fs::remove_file(&key_file).unwrap();
    let (code, _, exit) = json_failure(&serve);
    assert_eq!((code.as_str(), exit), ("key.missing", 3));
    assert!(!key_file.exists(), "no new identity in the place of the old one");
}

#[test]
fn a_damaged_journal_is_exit_9_and_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::start(folder.path(), &[]);
    on_one_thread(async {
        let client = Finder::dial_entry(1, &server.line).await;
        for n in 1..=3 {
            client.register(&record_at(SystemClock.now().wall, &key(n), 1, 0)).await.unwrap();
        }
    });
    server.signal(Signal::KILL);
    server.ended();
    let journal = fs::read_dir(folder.path().join("store/journal")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&journal).unwrap();
    // A byte of the first of the records, with others behind it.
    let position = bytes.windows(5).position(|window| window == b"\x04_vat").expect("the journal has a record");
    bytes[position + 2] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    let data = folder.path().to_str().unwrap();
    let (code, message, exit) = json_failure(&["--json", "run", "--listen", "127.0.0.1:0", "--data", data]);
    assert_eq!((code.as_str(), exit), ("checkpoint.damaged", 9));
    assert!(message.contains(".segment"), "{message}");
    assert!(fs::read(&journal).unwrap() == bytes, "nothing was changed");
}

#[test]
fn when_the_disk_takes_no_more_it_says_why_and_has_everything_that_it_acknowledged() {
    const ROUNDS: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    // The files exist before their size is limited.
    drop(Running::start(folder.path(), &[]));
    let mut command = Command::new("sh");
    // A file of this user may have 1 MiB (2048 blocks of 512 bytes); a write beyond fails as on a full disk.
    command.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"", PROGRAM, "--json", "run"]);
    command.args(["--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]).env_remove("VLS_LOG");
    let mut server = Running::spawn(command);
    let entry = serde_json::from_str::<Value>(&server.line).unwrap()["entry"].as_str().unwrap().to_owned();
    let now = SystemClock.now().wall;
    let mut acknowledged = [0; 200];
    on_one_thread(async {
        let client = Finder::dial_entry(1, &entry).await;
        for epoch in 1..=ROUNDS {
            let records: Vec<_> = (0..200).map(|n| record_at(now, &key(n), epoch, 0)).collect();
            let outcomes = join_all(records.iter().map(|record| client.register(record))).await;
            for (acknowledged, outcome) in acknowledged.iter_mut().zip(&outcomes) {
                match outcome {
                    Ok(outcome) => {
                        assert_eq!(*outcome, Wire::Stored(3600));
                        *acknowledged = epoch;
                    }
                    Err(error) => assert!(
                        [schemas::ErrorCode::ServerStopping, schemas::ErrorCode::SessionClosed].contains(&error.code),
                        "{error:?}"
                    ),
                }
            }
            if outcomes.iter().any(Result::is_err) {
                return;
            }
        }
        panic!("{ROUNDS} rounds of 200 records fitted 1 MiB");
    });
    let (status, stdout, stderr) = server.ended();
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""));
    let value: Value = serde_json::from_str(&stderr).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(value["error"]["code"], "checkpoint.disk", "{stderr}");

    let server = Running::start(folder.path(), &[]);
    on_one_thread(async {
        let client = Finder::dial_entry(2, &server.line).await;
        for (n, epoch) in (0..).zip(acknowledged) {
            let (packet, ..) = client.lookup(key(n).id().as_bytes()).await.unwrap();
            let found = SignedRecord::verify(key(n).id(), &packet).unwrap();
            assert!(found.record().epoch >= epoch, "vat {n}: {} after {epoch} was acknowledged", found.record().epoch);
        }
    });
}

#[test]
fn wrong_arguments_are_exit_2_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    for wrong in [
        &["run"][..],
        &[],
        &["serve"],
        &["run", "--data", data, "--listen", "4433"],
        &["run", "--data", data, "--lease", "1"],
        &["run", "--data", data, "--lease", "soon"],
        &["run", "--data", data, "--advertise", "a b"],
        &["run", "--data", data, "--advertise", "example.org:1"],
        &["run", "--data", data, "--no-such-option"],
    ] {
        let (code, message, exit) = json_failure(&[wrong, &["--json"]].concat());
        assert_eq!((code.as_str(), exit), ("cli.usage", 2), "{wrong:?}");
        assert!(!message.is_empty() && !message.starts_with("error"), "{message}");
        let output = run(wrong);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(text(&output.stdout), "");
        assert!(
            stderr.starts_with("error: ") && stderr.contains("[cli.usage]") && stderr.contains("--help"),
            "{stderr}"
        );
    }
    assert!(!Path::new(data).exists(), "nothing was made before the arguments were understood");
}

#[test]
fn with_json_the_line_is_json_and_nothing_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::start(folder.path(), &["--json"]);
    let value: Value = serde_json::from_str(&server.line).unwrap();
    let entry = value["entry"].as_str().unwrap();
    let SearchPathEntry::Vls { id, port, .. } = entry.parse().unwrap() else { panic!("{entry}") };
    assert_eq!(value["id"].as_str(), Some(id.to_string().as_str()));
    assert_eq!(value["listen"].as_str(), Some(format!("127.0.0.1:{port}").as_str()));
    server.signal(Signal::TERM);
    let (status, stdout, stderr) = server.ended();
    assert_eq!((status.code(), stdout.as_str(), stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn its_log_has_neither_addresses_of_clients_nor_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::start(folder.path(), &[]);
    let port = on_one_thread(async {
        let client = Finder::dial_entry(1, &server.line).await;
        client.register(&record_at(SystemClock.now().wall, &key(5), 1, 0)).await.unwrap();
        let (_, address) = client.now().await.unwrap();
        address.rsplit(':').next().unwrap().to_owned()
    });
    server.signal(Signal::TERM);
    let (_, _, log) = server.ended();
    assert!(log.contains("serving"), "there is a log: {log}");
    assert!(!log.contains(&format!(":{port}")), "{log}");
    assert!(!log.contains(&key(1).id().to_string()) && !log.contains(&key(5).id().to_string()), "{log}");
    let seed = fs::read(folder.path().join("identity.key")).unwrap();
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!log.to_lowercase().contains(&hex[..16]), "{log}");
}

#[test]
fn it_stops_when_nobody_can_read_what_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = program(&["run", "--json", "--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]);
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(value["error"]["code"], "cli.output");
}

#[test]
fn help_explains_codes_and_version_tells_the_version() {
    let output = run(&["--version"]);
    assert_eq!(text(&output.stdout), concat!("vls-server ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(output.status.code(), Some(0));
    let output = run(&["help", "vls.quota"]);
    assert_eq!(output.status.code(), Some(0));
    let explained = text(&output.stdout);
    assert!(explained.starts_with("vls.quota (exit 8)\n") && explained.contains("Next: "), "{explained}");
    let list = text(&run(&["help"]).stdout);
    let explained: Value = serde_json::from_slice(&run(&["help", "--json"]).stdout).unwrap();
    for code in schemas::ErrorCode::ALL {
        assert!(list.lines().any(|line| line.split(' ').next() == Some(code.as_str())), "{code}");
        let found = explained.as_array().unwrap().iter().any(|explained| explained["code"] == code.as_str());
        assert!(found, "{code}");
    }
    let (code, _, exit) = json_failure(&["help", "vls.nonsense", "--json"]);
    assert_eq!((code.as_str(), exit), ("cli.unknown_code", 3));
    let help = text(&run(&["run", "--help"]).stdout);
    for option in ["--listen", "--data", "--lease", "--advertise", "[::]:4433", "3600"] {
        assert!(help.contains(option), "{option}: {help}");
    }
}
