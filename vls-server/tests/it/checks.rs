//! `vls-server check` names what keeps a server from serving: each thing is brought about, and looked at by the real
//! program.

use std::{
    fs,
    net::UdpSocket,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    rc::Rc,
    time::Duration,
};

use serde_json::Value;
use vls_server::{Clock, Server, ServerConfig, SystemClock, registry::Now};

use crate::{
    local::on_one_thread,
    program::{PROGRAM, Running, program, run, text},
    supervised::Supervised,
};

/// What `check --json` found.
struct Report {
    exit: i32,
    findings: Vec<Value>,
}

impl Report {
    fn of(output: &Output) -> Self {
        let value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
        let findings = value["findings"].as_array().unwrap().clone();
        for finding in &findings {
            let is_well = finding["level"] == "ok";
            assert!(["ok", "warning", "problem"].contains(&finding["level"].as_str().unwrap()));
            assert_eq!(finding["next"].as_str().is_some_and(|next| !next.is_empty()), !is_well, "{finding}");
        }
        Self { exit: output.status.code().unwrap(), findings }
    }

    /// Level and code of what is not well.
    fn wrong(&self) -> Vec<(&str, &str)> {
        let wrong = self.findings.iter().filter(|finding| finding["level"] != "ok");
        wrong.map(|finding| (finding["level"].as_str().unwrap(), finding["code"].as_str().unwrap())).collect()
    }

    /// The one problem that there is.
    fn is(&self, level: &str, code: &str, exit: i32) {
        assert_eq!((self.wrong(), self.exit), (vec![(level, code)], exit), "{:#?}", self.findings);
    }

    fn detail(&self, what: &str) -> &str {
        let finding = self.findings.iter().find(|finding| finding["check"].as_str().unwrap().starts_with(what));
        finding.unwrap_or_else(|| panic!("nothing about {what}: {:#?}", self.findings))["detail"].as_str().unwrap()
    }
}

fn check(data: &Path, more: &[&str]) -> Report {
    let arguments = ["--json", "check", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    Report::of(&run(&[&arguments, more].concat()))
}

/// A data folder with a key.
fn initialised() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["init", "--data", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    folder
}

#[test]
fn all_is_well_before_the_first_start_after_init_and_beside_a_server_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let report =
        check(&folder.path().join("none"), &["--http", "127.0.0.1:0", "--dns", "127.0.0.1:0", "--dns-origin", "a.b"]);
    assert_eq!((report.wrong(), report.exit), (vec![], 0));
    let folder = initialised();
    let report = check(folder.path(), &[]);
    assert_eq!((report.wrong(), report.exit), (vec![], 0));
    assert!(report.detail("disk").starts_with("takes what is written"));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "what was written to try is gone: {left:?}");

    let server = Supervised::start("[http]\nlisten = \"127.0.0.1:0\"\n");
    let other = Running::start(folder.path(), &[]);
    let output = run(&["--json", "check", "--config", &server.config(), "--from", &other.line]);
    let report = Report::of(&output);
    assert_eq!((report.wrong(), report.exit), (vec![], 0), "{:#?}", report.findings);
    assert!(report.detail("server").starts_with("runs as process"));
    assert_eq!(report.detail("port 127.0.0.1:0/tcp"), "the running server has it");
    let reached =
        report.findings.iter().filter(|finding| finding["detail"].as_str().unwrap().starts_with("reached at"));
    assert_eq!(reached.count(), 2, "UDP and TCP: {:#?}", report.findings);
    let human = text(&run(&["check", "--config", &server.config()]).stdout);
    assert!(human.lines().all(|line| line.starts_with("ok ")), "{human}");
}

#[test]
fn ports_that_check_opens_itself_are_reached_before_the_server_starts() {
    let (folder, other) = (initialised(), tempfile::tempdir().unwrap());
    let other = Running::start(other.path(), &[]);
    let report = check(folder.path(), &["--http", "127.0.0.1:0", "--from", &other.line]);
    assert_eq!((report.wrong(), report.exit), (vec![], 0), "{:#?}", report.findings);
}

#[test]
fn a_key_of_the_wrong_mode_is_named() {
    let folder = initialised();
    fs::set_permissions(folder.path().join("identity.key"), fs::Permissions::from_mode(0o644)).unwrap();
    check(folder.path(), &[]).is("problem", "key.mode", 4);
    fs::set_permissions(folder.path().join("identity.key"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    check(folder.path(), &[]).is("problem", "key.mode", 4);
}

#[test]
fn a_key_that_cannot_be_read_is_named() {
    let folder = initialised();
    let key = folder.path().join("identity.key");
    let mut command;
    if rustix::process::geteuid().is_root() {
        // Root reads everything, so nobody looks: he may write to the folder, and the key is another's.
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("vls-server");
        fs::copy(PROGRAM, &copy).unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
        command = Command::new(copy);
        command.uid(65_534).gid(65_534).env_remove("VLS_LOG").stdin(Stdio::null());
        command.args(["--json", "check", "--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]);
        Report::of(&command.output().unwrap()).is("problem", "key.unreadable", 4);
    } else {
        fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
        check(folder.path(), &[]).is("problem", "key.unreadable", 4);
    }
}

#[test]
fn a_lost_key_and_a_key_of_another_length_are_named() {
    let folder = initialised();
    fs::write(folder.path().join("identity.key"), [7; 31]).unwrap();
    check(folder.path(), &[]).is("problem", "key.wrong", 9);
    fs::remove_file(folder.path().join("identity.key")).unwrap();
    drop(Running::start(folder.path(), &[]));
    fs::remove_file(folder.path().join("identity.key")).unwrap();
    check(folder.path(), &[]).is("problem", "key.missing", 3);
}

#[test]
fn a_port_in_use_is_named() {
    let folder = initialised();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--json", "check", "--data", folder.path().to_str().unwrap(), "--listen", &address]);
    let report = Report::of(&output);
    report.is("problem", "net.bind", 7);
    assert!(report.detail("port").contains(&address));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check(folder.path(), &["--http", &address]).is("problem", "net.bind", 7);
    check(folder.path(), &["--dns", &address, "--dns-origin", "a.b"]).is("problem", "net.bind", 7);
}

/// Runs `script` in a mount namespace of its own; `None` where that is not permitted.
fn with_small_disk(folder: &Path, script: &str, arguments: &[&str]) -> Option<Output> {
    let how = ["-m", "-rm"].into_iter().find(|how| {
        let mount = ["sh", "-c", "mount -t tmpfs none /mnt"];
        let tried = Command::new("unshare").arg(how).args(mount).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })?;
    let mut command = Command::new("unshare");
    command.args([how, "sh", "-euc", script, "sh", folder.to_str().unwrap()]).args(arguments);
    Some(command.env_remove("VLS_LOG").stdin(Stdio::null()).output().unwrap())
}

#[test]
fn a_full_disk_is_named() {
    let folder = initialised();
    let data = folder.path().to_str().unwrap();
    let arguments = [PROGRAM, "--json", "check", "--listen", "127.0.0.1:0", "--data", data];
    // A disk of 256 kB with the same key, full to the last block; and one that is only small.
    let full = r#"
        folder=$1; shift
        cp "$folder/identity.key" /tmp/key.$$; trap 'rm -f /tmp/key.$$' EXIT
        mount -t tmpfs -o size=256k,mode=0700 none "$folder"
        cp -p /tmp/key.$$ "$folder/identity.key"
        FILL
        status=0; "$@" || status=$?; exit $status
    "#;
    let fill = r#"dd if=/dev/zero of="$folder/filler" bs=4k 2>/dev/null || true"#;
    match with_small_disk(folder.path(), &full.replace("FILL", fill), &arguments) {
        Some(output) => Report::of(&output).is("problem", "checkpoint.disk_full", 8),
        None => println!("no small disk may be mounted here; the limit of a file's size stands for it"),
    }
    if let Some(output) = with_small_disk(folder.path(), &full.replace("FILL", ""), &arguments) {
        Report::of(&output).is("warning", "checkpoint.disk_full", 10);
    }
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""]).args(arguments).env_remove("VLS_LOG");
    Report::of(&command.output().unwrap()).is("problem", "checkpoint.disk", 1);
}

#[test]
fn a_low_limit_of_open_files_is_named() {
    let folder = initialised();
    let limited = |limit: &str, more: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), PROGRAM, "--json", "check"]);
        command.args(["--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]).args(more);
        Report::of(&command.env_remove("VLS_LOG").stdin(Stdio::null()).output().unwrap())
    };
    limited("40", &[]).is("problem", "server.file_limit", 8);
    limited("1000", &["--http", "127.0.0.1:0"]).is("warning", "server.file_limit", 10);
    let enough = limited("1000", &[]);
    assert_eq!((enough.wrong(), enough.exit), (vec![], 0), "without TCP there are few files");
}

/// A clock that is wrong by so much, in seconds.
#[derive(Debug)]
struct WrongClock(i64);

impl Clock for WrongClock {
    fn now(&self) -> Now {
        let Now { wall, monotonic } = SystemClock.now();
        let distance = Duration::from_secs(self.0.unsigned_abs());
        Now { wall: if self.0 < 0 { wall.saturating_sub(distance) } else { wall + distance }, monotonic }
    }
}

/// What `check --from` a server in this process says.
fn check_from(clock: i64, listen: &str) -> Report {
    let (folder, other) = (initialised(), tempfile::tempdir().unwrap());
    on_one_thread(async {
        let config = ServerConfig::new("127.0.0.1:0".parse().unwrap(), other.path().to_owned());
        let server = Server::start(config, Rc::new(WrongClock(clock))).await.unwrap();
        let entry = server.entry("127.0.0.1").to_string();
        let data = folder.path().to_str().unwrap();
        let mut command = program(&["--json", "check", "--data", data, "--listen", listen, "--from", &entry]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        server.stop().await.unwrap();
        Report::of(&output)
    })
}

#[test]
fn a_clock_that_differs_from_the_other_servers_is_named() {
    check_from(3_600, "127.0.0.1:0").is("problem", "server.clock_skew", 1);
    check_from(-3_600, "127.0.0.1:0").is("problem", "server.clock_skew", 1);
    check_from(60, "127.0.0.1:0").is("warning", "server.clock_skew", 10);
    let well = check_from(0, "127.0.0.1:0");
    assert_eq!((well.wrong(), well.exit), (vec![], 0));
}

#[test]
fn a_port_that_others_do_not_reach_is_named() {
    // The other server sees this machine as 127.0.0.1, where nobody listens: as if something stood between.
    let report = check_from(0, "127.0.0.2:0");
    report.is("problem", "server.port_blocked", 5);
    assert!(report.detail("from outside").contains("127.0.0.1:"));
    assert!(report.detail("port 127.0.0.2").contains("free"), "here all is well");
}

#[test]
fn another_server_that_is_not_there_is_named() {
    let (folder, nobody) = (initialised(), tempfile::tempdir().unwrap());
    let line = Running::start(nobody.path(), &[]).line.clone();
    let report = check(folder.path(), &["--from", &line]);
    assert_eq!(report.wrong().len(), 1, "{:#?}", report.findings);
    let wrong = [("net.timeout", 6), ("net.unreachable", 5)];
    assert!(wrong.contains(&(report.wrong()[0].1, report.exit)), "{:?}", report.wrong());
}

#[test]
fn a_certificate_that_is_not_for_the_host_and_files_that_are_none_are_named() {
    let folder = initialised();
    let file = |name: &str| format!("{}/tests/certificates/{name}", env!("CARGO_MANIFEST_DIR"));
    let with = |certificate: &str, key: &str, host: &str| {
        let (certificate, key) = (file(certificate), file(key));
        let more = ["--http", "127.0.0.1:0", "--http-cert", &certificate, "--http-key", &key, "--advertise", host];
        check(folder.path(), &more)
    };
    let well = with("localhost.pem", "localhost.key", "localhost");
    assert_eq!((well.wrong(), well.exit), (vec![], 0));
    assert_eq!(with("localhost.pem", "localhost.key", "127.0.0.1").exit, 0);
    with("localhost.pem", "localhost.key", "vls.example.org").is("warning", "server.certificate", 10);
    with("localhost.pem", "other.key", "localhost").is("problem", "server.certificate", 1);
    with("none.pem", "none.key", "localhost").is("problem", "server.certificate", 1);
}

#[test]
fn a_configuration_that_cannot_be_used_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    fs::write(&file, "data = \"/nowhere\"\nlaese = 4\n").unwrap();
    let report = Report::of(&run(&["--json", "check", "--config", file.to_str().unwrap()]));
    report.is("problem", "config.invalid", 2);
    assert!(report.detail("configuration").contains("server.toml:2:1: "));
}
