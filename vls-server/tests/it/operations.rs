//! What an operator does beside running the server: setting it up, asking it, carrying its records elsewhere.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Output, Stdio},
};

use futures::future::join_all;
use schemas::{Address, SearchPathEntry, SignedRecord};
use serde_json::Value;
use vls_server::{Clock, SystemClock};

use crate::{
    finder::{Finder, Wire},
    local::{key, on_one_thread, record_at},
    program::{Running, json_failure, program, run, text},
    supervised::Supervised,
};

/// The result of a command that works.
fn json(arguments: &[&str]) -> Value {
    json_of(run(&[arguments, &["--json"]].concat()), 0)
}

fn json_of(output: Output, exit: i32) -> Value {
    assert_eq!(output.status.code(), Some(exit), "{}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

#[test]
fn init_makes_what_a_server_needs_once_and_run_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let init = ["init", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--advertise", "vls.example.org"];
    let output = run(&init);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let config = data.join("vls-server.toml");
    let entry = printed.lines().next().unwrap();
    assert!(entry.starts_with("vls://") && entry.ends_with("@vls.example.org:0"), "{printed}");
    assert!(printed.contains(&format!("next: vls-server check --config {}", config.display())), "{printed}");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&data), mode(&data.join("identity.key"))), (0o700, 0o600));

    let (seed, text_before) = (fs::read(data.join("identity.key")).unwrap(), fs::read(&config).unwrap());
    let again = json(&["init", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:9"]);
    assert_eq!((again["entry"].as_str(), &again["config_made"]), (Some(entry), &Value::Bool(false)));
    assert_eq!(fs::read(data.join("identity.key")).unwrap(), seed, "the key stays");
    assert_eq!(fs::read(&config).unwrap(), text_before, "the configuration stays");

    let server = Running::spawn(program(&["run", "--config", config.to_str().unwrap()]));
    assert!(server.line.starts_with(entry.strip_suffix('0').unwrap()), "{}", server.line);
    drop(server);

    fs::set_permissions(data.join("identity.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let (code, _, exit) = json_failure(&["--json", "init", "--data", data.to_str().unwrap()]);
    assert_eq!((code.as_str(), exit), ("key.mode", 4));
}

#[test]
fn config_show_tells_where_each_value_came_from_and_flags_are_above_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    fs::write(&file, "data = \"/nowhere\"\nlease = 7\n[http]\nlisten = \"127.0.0.1:1\"\n").unwrap();
    let file = file.to_str().unwrap();
    let shown = json(&["config", "show", "--config", file, "--http", "127.0.0.1:2"]);
    for (name, value, source) in [
        ("data", Value::from("/nowhere"), format!("{file}:1")),
        ("lease", 7.into(), format!("{file}:2")),
        ("http.listen", "127.0.0.1:2".into(), "command line".to_owned()),
        ("listen", "[::]:4433".into(), "default".to_owned()),
        ("dns.listen", Value::Null, "default".to_owned()),
    ] {
        assert_eq!((&shown[name]["value"], shown[name]["source"].as_str()), (&value, Some(source.as_str())), "{name}");
    }
    let human = text(&run(&["config", "show", "--config", file]).stdout);
    assert!(human.lines().any(|line| line.starts_with("lease ") && line.ends_with("server.toml:2")), "{human}");
}

#[test]
fn mistakes_in_the_file_are_told_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    for (settings, place, reason) in [
        ("laese = 4", "2:1", "unknown field"),
        ("lease = 1", "2:9", "a lease is from 2 to 604800 seconds long"),
        ("lease = \"long\"", "2:9", "invalid type"),
        ("listen = \"4433\"", "2:10", "invalid socket address"),
        ("[http]\nlisten = \"[::]:80\"\ntrusted_proxies = [\"10.0.0.0/8\", \"x\"]", "4:34", "a network is written"),
        ("[http]\ncertificate = \"relative.pem\"", "3:15", "begins with a /"),
        ("[http]\ncertificate = \"/c.pem\"", "3:1", "needs http.key"),
        ("[dns]\nlisten = \"[::]:53\"", "3:1", "dns.origin"),
        ("[limits]\nsessions = 0", "3:12", "limits.sessions is from 1"),
        ("[log]\nlevel = \"loud\"", "3:9", "unknown variant"),
        ("= 4", "2:1", ""),
    ] {
        fs::write(&file, format!("data = \"/nowhere\"\n{settings}\n")).unwrap();
        let file = file.to_str().unwrap();
        let (code, message, exit) = json_failure(&["--json", "run", "--config", file]);
        assert_eq!((code.as_str(), exit), ("config.invalid", 2), "{settings}");
        assert!(message.starts_with(&format!("{file}:{place}: ")) && message.contains(reason), "{settings}: {message}");
    }
    let (code, message, _) = json_failure(&["--json", "run", "--config", "/nowhere/server.toml"]);
    assert_eq!(code, "config.invalid");
    assert!(message.contains("/nowhere/server.toml"), "{message}");
}

#[test]
fn status_tells_how_the_server_is_doing_and_exit_5_says_that_none_runs() {
    let server = Supervised::start("[http]\nlisten = \"127.0.0.1:0\"\n");
    on_one_thread(async {
        let client = Finder::dial_entry(1, &server.running.line).await;
        client.register(&record_at(SystemClock.now().wall, &key(5), 1, 0)).await.unwrap();
        client.lookup(key(5).id().as_bytes()).await.unwrap();
        let status = server.status();
        assert_eq!(status["entry"].as_str(), Some(server.running.line.as_str()));
        for (name, value) in [("records", 1), ("sessions", 1), ("watches", 0), ("turn", 1), ("durable_turn", 1)] {
            assert_eq!(status[name], value, "{status}");
        }
        assert_eq!(status["answers"]["quic"], 2, "{status}");
        assert_eq!(status["quota_hits"], 0);
        assert!(status["last_sync_ago"].as_u64().unwrap() < 60);
        assert!(status["store"]["journal_bytes"].as_u64().unwrap() > 0);
        assert!(!status.to_string().contains(&key(5).id().to_string()), "it names no vat");
    });
    let human = text(&run(&["status", "--config", &server.config()]).stdout);
    assert!(human.lines().any(|line| line.starts_with("records ") && line.ends_with("1 of 250000")), "{human}");
    let socket = server.folder.path().join("data/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let folder = server.folder.path().join("data");
    let elsewhere = tempfile::tempdir().unwrap();
    for data in [elsewhere.path(), &elsewhere.path().join("none")] {
        let (code, message, exit) = json_failure(&["--json", "status", "--data", data.to_str().unwrap()]);
        assert_eq!((code.as_str(), exit), ("server.not_running", 5));
        assert!(message.contains(data.to_str().unwrap()), "{message}");
    }
    // One that was killed leaves its socket, which nobody answers.
    let Supervised { mut running, folder: _kept, .. } = server;
    running.signal(rustix::process::Signal::KILL);
    running.ended();
    assert!(socket.exists());
    let (code, ..) = json_failure(&["--json", "status", "--data", folder.to_str().unwrap()]);
    assert_eq!(code, "server.not_running");
    drop(Running::start(&folder, &[]));
}

#[test]
fn root_looks_after_a_server_that_has_a_user_of_its_own_and_others_do_not() {
    use std::os::unix::process::CommandExt;
    const OTHER: u32 = 65_534;
    const THIRD: u32 = 65_533;
    if !rustix::process::geteuid().is_root() {
        println!("only root can start a server as another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("vls-server");
    fs::copy(crate::program::PROGRAM, &copy).unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(OTHER), Some(OTHER)).unwrap();
    let as_user = |user: u32, command: &str| {
        let mut made = std::process::Command::new(&copy);
        made.args(["--json", command, "--data", data.to_str().unwrap()]).stdin(Stdio::null()).env_remove("VLS_LOG");
        made.uid(user).gid(user);
        made
    };
    let mut serving = as_user(OTHER, "run");
    serving.args(["--listen", "127.0.0.1:0"]);
    let server = Running::spawn(serving);
    for user in [0, OTHER] {
        let status = json_of(as_user(user, "status").output().unwrap(), 0);
        assert!(server.line.contains(status["id"].as_str().unwrap()), "{status}");
        let findings = json_of(as_user(user, "check").args(["--listen", "127.0.0.1:0"]).output().unwrap(), 0);
        assert!(findings.to_string().contains("runs as process"), "{findings}");
    }
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(data.join("control.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    let refused = as_user(THIRD, "status").output().unwrap();
    assert_ne!(refused.status.code(), Some(0), "{}", text(&refused.stdout));
    assert!(refused.stdout.is_empty());
}

/// Registers records with a server that runs.
fn fill(line: &str, count: u32) -> Vec<SignedRecord> {
    let now = SystemClock.now().wall;
    let records: Vec<_> = (1..=count).map(|n| record_at(now, &key(n), 1, 0)).collect();
    on_one_thread(async {
        let client = Finder::dial_entry(1, line).await;
        let outcomes = join_all(records.iter().map(|record| client.register(record))).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Ok(Wire::Stored(3600))));
    });
    records
}

fn has_all(line: &str, records: &[SignedRecord]) {
    on_one_thread(async {
        let client = Finder::dial_entry(1, line).await;
        for record in records {
            assert_eq!(client.lookup(record.id().as_bytes()).await.unwrap().0, record.packet());
        }
    });
}

#[test]
fn all_records_go_to_a_file_and_into_another_server_whether_the_servers_run_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let first = Running::start(&folder.path().join("first"), &[]);
    let records = fill(&first.line, 300);
    let exported = json(&["export", "--data", &path("first"), &path("running")]);
    assert_eq!(exported["records"], 300);
    drop(first);
    assert_eq!(json(&["export", "--data", &path("first"), &path("stopped")])["records"], 300);
    let lines = |name: &str| {
        let mut lines: Vec<String> = fs::read_to_string(path(name)).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines("running"), lines("stopped"));
    let (code, _, exit) = json_failure(&["--json", "export", "--data", &path("first"), &path("stopped")]);
    assert_eq!((code.as_str(), exit), ("image.exists", 7));

    // Into a server that does not run, in another order.
    json(&["init", "--data", &path("second"), "--listen", "127.0.0.1:0"]);
    let text = fs::read_to_string(path("running")).unwrap();
    let mut shuffled: Vec<&str> = text.lines().collect();
    shuffled[1..301].reverse();
    fs::write(path("shuffled"), shuffled.join("\n") + "\n").unwrap();
    let tally = json(&["import", "--data", &path("second"), &path("shuffled")]);
    assert_eq!((&tally["stored"], &tally["complete"]), (&300.into(), &true.into()), "{tally}");
    let second = Running::start(&folder.path().join("second"), &[]);
    has_all(&second.line, &records);
    // Again, into one that runs: nothing is new.
    let tally = json(&["import", "--data", &path("second"), &path("running")]);
    assert_eq!((&tally["stored"], &tally["refreshed"]), (&0.into(), &300.into()), "{tally}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "no unfinished file is left: {left:?}");
}

#[test]
fn an_import_that_was_cut_or_damaged_has_what_stood_before_and_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let first = Running::start(&folder.path().join("first"), &[]);
    let records = fill(&first.line, 20);
    json(&["export", "--data", &path("first"), &path("file")]);
    let whole = fs::read_to_string(path("file")).unwrap();
    let lines: Vec<&str> = whole.lines().collect();

    let second = Running::start(&folder.path().join("second"), &[]);
    fs::write(path("cut"), lines[..11].join("\n") + "\n").unwrap();
    let cut = json_of(run(&["--json", "import", "--data", &path("second"), &path("cut")]), 10);
    assert_eq!((&cut["stored"], &cut["complete"]), (&10.into(), &false.into()), "{cut}");
    for (name, wrong) in [
        ("nonsense", [&lines[..13], &["nonsense"], &lines[13..]].concat().join("\n")),
        ("half a line", whole[..whole.len() - 3].to_owned()),
    ] {
        fs::write(path(name), wrong).unwrap();
        let (code, message, exit) = json_failure(&["--json", "import", "--data", &path("second"), &path(name)]);
        assert_eq!((code.as_str(), exit), ("server.export_invalid", 9));
        assert!(message.starts_with(if name == "nonsense" { "line 14:" } else { "line 22:" }), "{message}");
    }
    // A record that somebody has changed is refused as it would be on any way.
    let forged = lines[1].replace("\"packet\":\"", "\"packet\":\"AAAA");
    fs::write(path("forged"), [lines[0], &forged, "{\"records\":1}", ""].join("\n")).unwrap();
    let refused = json_of(run(&["--json", "import", "--data", &path("second"), &path("forged")]), 10);
    assert_eq!(refused["stored"], 0, "{refused}");
    assert_eq!(refused["refused"].as_object().unwrap().len(), 1, "{refused}");

    let tally = json(&["import", "--data", &path("second"), &path("file")]);
    assert_eq!(tally["refused"], serde_json::json!({}), "{tally}");
    has_all(&second.line, &records);
}

#[test]
fn publish_makes_a_server_findable_by_its_id_and_takes_packets_of_others() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Running::start(one.path(), &[]);
    let second = Running::start(other.path(), &[]);
    let SearchPathEntry::Vls { id, port, .. } = first.entry() else { panic!("{}", first.line) };
    let data = one.path().to_str().unwrap();
    let published = json(&["publish", "--data", data, "--here", "--to", &second.line]);
    assert_eq!(published["servers"].as_array().unwrap().len(), 2, "{published}");
    let vat = record_at(SystemClock.now().wall, &key(7), 1, 0);
    on_one_thread(async {
        for line in [&first.line, &second.line] {
            let (packet, ..) = Finder::dial_entry(1, line).await.lookup(id.as_bytes()).await.unwrap();
            let record = SignedRecord::verify(id, &packet).unwrap();
            assert_eq!(record.record().addresses, [Address::Quic { host: "127.0.0.1".to_owned(), port }]);
        }
    });
    // A packet as GET gives it, under its id as curl names it, and through standard input.
    let file = one.path().join(vat.id().to_string());
    fs::write(&file, vat.packet()).unwrap();
    json(&["publish", "--data", data, file.to_str().unwrap()]);
    has_all(&first.line, std::slice::from_ref(&vat));
    let id = vat.id().to_string();
    let mut command = program(&["--json", "publish", "--data", data, "--to", &second.line, "--id", &id, "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(vat.packet()).unwrap();
    json_of(child.wait_with_output().unwrap(), 0);
    has_all(&second.line, &[vat]);

    let (code, ..) =
        json_failure(&["--json", "publish", "--data", data, "--id", &key(8).id().to_string(), file.to_str().unwrap()]);
    assert!(code.starts_with("record."), "{code}");
    let nobody = second.line.clone();
    drop(second);
    let failed = json_of(run(&["--json", "publish", "--data", data, "--here", "--to", &nobody]), 10);
    assert_eq!(failed["servers"][1]["ok"], false, "{failed}");
}
