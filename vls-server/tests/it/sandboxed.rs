//! What a server that runs has given up, as the kernel tells it, and how it serves all the same.

use std::{fs, os::unix::fs::symlink, path::Path};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    program::{run, text},
    supervised::Supervised,
};

/// A line of `/proc/PID/task/*/status`, of each thread.
fn of_threads(server: &Supervised, name: &str) -> Vec<String> {
    let tasks = format!("/proc/{}/task", server.status()["process"]);
    let threads =
        fs::read_dir(tasks).unwrap().map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let line =
        |status: String| status.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()));
    threads.map(|status| line(status).unwrap_or_default()).collect()
}

/// Whether the kernel holds what is called by that name; says so if not, since nothing can be seen then.
#[allow(clippy::print_stderr)]
fn holds(server: &Supervised, what: &str) -> bool {
    let confined = &server.status()["confined"];
    let is_held = confined[what]["held"] == "wholly" || confined[what]["held"] == "partly";
    if !is_held {
        assert!(confined[what]["why"].as_str().is_some_and(|why| !why.is_empty()), "{confined}");
        eprintln!("this kernel does not confine {what}, so it was not seen: {confined}");
    }
    is_held
}

#[test]
fn every_thread_of_a_server_is_confined_and_status_and_check_say_so() {
    let server = Supervised::start("");
    let rights = of_threads(&server, "NoNewPrivs:");
    assert!(rights.len() > 2, "the store and the watchdog have threads of their own");
    assert!(rights.iter().all(|set| set == "1"), "{rights:?}");
    if holds(&server, "system_calls") {
        assert!(of_threads(&server, "Seccomp:").iter().all(|mode| mode == "2"), "of the kernel: a filter");
    }
    let summary = server.status()["confined"]["summary"].as_str().unwrap().to_owned();
    let human = text(&run(&["status", "--config", &server.config()]).stdout);
    assert!(human.lines().any(|line| line.starts_with("confined") && line.ends_with(&summary)), "{human}");
    // Beside it, and for one that is yet to start.
    let check = |more: &[&str]| -> Value {
        let output = run(&[&["--json", "check"], more].concat());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut findings = report["findings"].as_array().unwrap().iter();
        findings.find(|finding| finding["check"] == "confinement").unwrap()["detail"].clone()
    };
    assert_eq!(check(&["--config", &server.config()]), summary);
    let other = server.folder.path().join("other");
    assert_eq!(check(&["--data", other.to_str().unwrap(), "--listen", "127.0.0.1:0"]), summary);
}

#[test]
fn a_server_that_is_not_to_be_confined_keeps_its_rights_until_it_is_started_again() {
    let mut server = Supervised::start("[sandbox]\nenabled = false\n");
    assert_eq!(server.status()["confined"]["enabled"], false);
    assert!(of_threads(&server, "NoNewPrivs:").iter().all(|set| set == "0"));
    server.reload("");
    assert_eq!(server.status()["confined"]["enabled"], false);
    server.running.signal(Signal::TERM);
    let (_, _, log) = server.running.ended();
    assert!(log.contains("confined: no, by sandbox.enabled"), "{log}");
    assert!(log.contains("this stays as it is until the server is started again") && log.contains("sandbox"), "{log}");
}

#[test]
fn a_certificate_out_of_its_reach_is_not_taken_up_and_one_in_an_archive_that_it_knows_is() {
    let elsewhere = tempfile::tempdir().unwrap();
    let own = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &Path| {
        let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
        fs::copy(certificates.join(from), to).unwrap();
    };
    for (folder, name) in [(&elsewhere, "elsewhere"), (&own, "archived")] {
        copy("localhost.pem", &folder.path().join(format!("{name}.pem")));
        copy("localhost.key", &folder.path().join(format!("{name}.key")));
    }
    // As programs that renew certificates do it: the names are links into an archive.
    let live = own.path().join("live");
    fs::create_dir(&live).unwrap();
    symlink("../archived.pem", live.join("it.pem")).unwrap();
    symlink("../archived.key", live.join("it.key")).unwrap();
    let settings = |folder: &Path, name: &str| {
        let file = |end: &str| folder.join(format!("{name}.{end}"));
        format!("[http]\nlisten = \"127.0.0.1:0\"\ncertificate = {:?}\nkey = {:?}\n", file("pem"), file("key"))
    };
    let mut server = Supervised::start(&settings(&live, "it"));
    assert!(server.status()["certificate_expires"].is_u64());
    if !holds(&server, "files") {
        return;
    }
    let before = server.status();
    server.reload(&format!("lease = 120\n{}", settings(elsewhere.path(), "elsewhere")));
    assert_eq!(server.status()["lease"], before["lease"], "nothing of it is taken up");
    // Nor by a link that leads out of what is open.
    fs::remove_file(live.join("it.pem")).unwrap();
    symlink(elsewhere.path().join("elsewhere.pem"), live.join("it.pem")).unwrap();
    server.reload(&format!("lease = 120\n{}", settings(&live, "it")));
    assert_eq!(server.status()["lease"], before["lease"]);
    server.running.signal(Signal::TERM);
    let (status, _, log) = server.running.ended();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("outside the folders that this server has kept for itself"), "{log}");
    assert!(log.contains("Start the server again"), "{log}");
}
