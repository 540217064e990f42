//! New vats at servers that do not take everybody at once, over the carriers and with the program as its operator meets it.

use std::{path::Path, process::Output};

use checkpoint::simulated::SimulatedDisk;
use schemas::{Invite, Task};
use serde_json::Value;
use vls_server::{Clock, Server, SystemClock, registry::Policy};

use crate::{
    finder::{Finder, Shown, Wire},
    http_client::HttpClient,
    local::{HandClock, key, on_one_thread, record, record_at},
    over_http::{config, path, start},
    program::{Running, json_failure, run, text},
};

/// Of eight places seven cost nothing.
async fn nearly_full() -> (Server, HttpClient, std::rc::Rc<HandClock>) {
    let mut config = config(SimulatedDisk::new());
    config.policy = Policy { max_records: 8, ..Policy::default() };
    let (server, mut http, clock) = start(config).await;
    for vat in 1..=7 {
        let record = record(&key(vat), 1, 0);
        assert_eq!(http.put(&path(&record), &[], record.packet()).await.status, 204);
    }
    (server, http, clock)
}

async fn finder(server: &Server) -> Finder {
    Finder::dial_entry(90, &server.entry("127.0.0.1").to_string()).await
}

#[test]
fn over_quic_a_new_id_is_told_its_work_and_is_stored_for_it() {
    on_one_thread(async {
        let (server, _http, _clock) = nearly_full().await;
        assert_eq!(server.status().work, Some(19));
        let (finder, record) = (finder(&server).await, record(&key(8), 1, 0));
        let (refused, task) = finder.register_with(&record, Shown::Work(0)).await.unwrap();
        assert_eq!(refused.code(), "vls.work");
        let Wire::Refused { retry_after, .. } = refused else { unreachable!() };
        assert_eq!(retry_after, 300, "for who cannot work");
        let task = task.unwrap();
        assert_eq!(task.bits, 19);
        let nonce = task.solve(&key(8).id(), 0, || true).unwrap();
        assert_eq!(finder.register_with(&record, Shown::Work(nonce)).await.unwrap().0, Wire::Stored(3600));
        assert_eq!(finder.register(&record).await, Ok(Wire::Refreshed(3600)));
    });
}

#[test]
fn over_http_whoever_cannot_work_is_told_in_words_when_to_come_back() {
    on_one_thread(async {
        let (_server, mut http, _clock) = nearly_full().await;
        let record = record(&key(8), 1, 0);
        let refused = http.put(&path(&record), &[], record.packet()).await;
        assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (503, "vls.work", Some("300")));
        assert!(refused.text().contains("nearly full"), "{}", refused.text());
        assert_eq!(refused.header("access-control-expose-headers"), Some("*"));
        let task: Task = refused.header("vls-work").unwrap().parse().unwrap();
        for nonsense in ["", "1", "00000000000000zz", "000000000000000000"] {
            let answer = http.put(&path(&record), &[("Vls-Work", nonsense)], record.packet()).await;
            assert_eq!((answer.status, answer.code()), (400, "http.request"), "{nonsense}");
        }
        let nonce = task.solve(&key(8).id(), 0, || true).unwrap();
        let shown = format!("{nonce:016x}");
        assert_eq!(http.put(&path(&record), &[("Vls-Work", &shown)], record.packet()).await.status, 204);
        assert_eq!(http.put(&path(&record), &[], record.packet()).await.status, 204, "it is known now");
        let page = http.get("/").await;
        assert!(page.text().contains("for work of 23 bits"), "{}", page.text());
        assert!(http.get("/metrics").await.text().contains("vls_work_bits 23"));
    });
}

#[test]
fn a_closed_server_refuses_over_every_carrier_what_is_no_invite() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.policy = Policy { closed: true, ..Policy::default() };
        let (server, mut http, _clock) = start(config).await;
        let (finder, record) = (finder(&server).await, record(&key(1), 1, 0));
        assert_eq!(finder.register(&record).await.unwrap().code(), "vls.invite");
        let unknown = Invite::generate().unwrap();
        let (refused, _) = finder.register_with(&record, Shown::Invite(unknown.as_bytes())).await.unwrap();
        assert_eq!(refused.code(), "vls.invite");
        let error = finder.register_with(&record, Shown::Invite(&[1; 15])).await.unwrap_err();
        assert_eq!(error.code.as_str(), "vls.invite_malformed");
        let refused = http.put(&path(&record), &[], record.packet()).await;
        assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (403, "vls.invite", None));
        let refused = http.put(&path(&record), &[("Vls-Invite", &unknown.expose())], record.packet()).await;
        assert_eq!((refused.status, refused.code()), (403, "vls.invite"));
        let refused = http.put(&path(&record), &[("Vls-Invite", "vlsinvite:nonsense")], record.packet()).await;
        assert_eq!((refused.status, refused.code()), (400, "vls.invite_malformed"));
        assert!(http.get("/").await.text().contains("by invitation only"));
        assert_eq!((server.status().closed, server.status().records), (true, 0));
    });
}

fn object(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn invite(data: &Path, more: &[&str]) -> Invite {
    let arguments = [&["--json", "invite", "new", "--data", data.to_str().unwrap()], more].concat();
    object(&run(&arguments))["invite"].as_str().unwrap().parse().unwrap()
}

fn listed(data: &Path) -> Vec<Value> {
    let list = object(&run(&["--json", "invite", "list", "--data", data.to_str().unwrap()]));
    list["invites"].as_array().unwrap().clone()
}

fn register(server: &Running, vat: u32, invite: &Invite) -> Wire {
    on_one_thread(async {
        let record = record_at(SystemClock.now().wall, &key(vat), 1, 0);
        let finder = Finder::dial_entry(91, &server.line).await;
        finder.register_with(&record, Shown::Invite(invite.as_bytes())).await.unwrap().0
    })
}

#[test]
fn an_invite_that_was_used_is_used_exactly_once_whatever_kills_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Running::start(&data, &["--closed"]);
    let two = invite(&data, &["--uses", "2", "--note", "for a friend"]);
    assert_eq!(register(&server, 1, &two), Wire::Stored(3600));
    server.signal(rustix::process::Signal::KILL);
    server.ended();
    // Nobody runs: the folder itself is asked.
    let [left] = listed(&data).try_into().unwrap();
    assert_eq!((&left["uses"], &left["note"]), (&1.into(), &"for a friend".into()));
    assert_eq!(left["name"], two.hash().to_string());
    let mut server = Running::start(&data, &["--closed"]);
    assert_eq!(register(&server, 1, &two), Wire::Stored(3600), "known, and dated later");
    assert_eq!(listed(&data).len(), 1, "a known vat uses none");
    assert_eq!(register(&server, 2, &two), Wire::Stored(3600));
    server.signal(rustix::process::Signal::KILL);
    server.ended();
    let server = Running::start(&data, &["--closed"]);
    assert_eq!(listed(&data), Vec::<Value>::new());
    assert_eq!(register(&server, 3, &two).code(), "vls.invite");
    assert_eq!(register(&server, 2, &two), Wire::Stored(3600));
}

#[test]
fn invites_are_made_listed_and_revoked_whether_the_server_runs_or_not_and_are_shown_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let place = data.to_str().unwrap();
    let mut server = Running::start(&data, &["--closed"]);
    let human = text(&run(&["invite", "new", "--data", place, "--expires", "2d"]).stdout);
    assert!(human.contains("one new vat") && !human.contains("is not closed"), "{human}");
    let shown: Invite = human.lines().next().unwrap().parse().unwrap();
    let name = shown.hash().to_string();
    let list = text(&run(&["invite", "list", "--data", place]).stdout);
    assert!(list.starts_with(&name) && list.contains("ends within 48 h") && !list.contains("vlsinvite"), "{list}");
    server.signal(rustix::process::Signal::TERM);
    let (status, _, log) = server.ended();
    assert!(status.success());
    assert!(log.contains(&name) && !log.contains(&shown.expose()[10..]), "{log}");
    let revoked = run(&["invite", "revoke", "--data", place, &name]);
    assert_eq!(revoked.status.code(), Some(0), "{}", text(&revoked.stderr));
    let (code, _, exit) = json_failure(&["--json", "invite", "revoke", "--data", place, &name]);
    assert_eq!((code.as_str(), exit), ("vls.invite_not_found", 3));
    assert!(text(&run(&["invite", "list", "--data", place]).stdout).contains("There are no invites."));
    // What nobody needs is said.
    let open = text(&run(&["invite", "new", "--data", place]).stdout);
    assert!(open.contains("is not closed"), "{open}");
    for wrong in [&["--uses", "0"][..], &["--expires", "soon"], &["--expires", "0d"]] {
        let output = run(&[&["invite", "new", "--data", place], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let server = Running::start(&data, &["--closed"]);
    assert_eq!(register(&server, 1, &shown).code(), "vls.invite");
    let note = "x".repeat(201);
    let (code, ..) = json_failure(&["--json", "invite", "new", "--data", place, "--note", &note]);
    assert_eq!(code, "cli.usage");
}
