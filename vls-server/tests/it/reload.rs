//! A running server takes up another configuration: all of it or nothing, and nobody is sent away.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use rustix::process::Signal;
use vls_server::{Clock, SystemClock};

use crate::{
    finder::{Finder, Wire},
    http_client::HttpClient,
    local::{key, on_one_thread, record_at},
    supervised::Supervised,
};

fn address(server: &Supervised, carrier: &str) -> Option<SocketAddr> {
    server.status()[carrier].as_str().map(|address| address.parse().unwrap())
}

#[test]
fn sessions_and_watches_survive_a_reload_and_find_the_new_policy() {
    let server = Supervised::start("lease = 3600");
    on_one_thread(async {
        let now = SystemClock.now().wall;
        let (watching, writing) =
            (Finder::dial_entry(1, &server.running.line).await, Finder::dial_entry(2, &server.running.line).await);
        let (mut told, _watch) = watching.watch(key(5).id().as_bytes()).await.unwrap();
        assert_eq!(told.next().await.0.0, b"");
        assert_eq!(writing.register(&record_at(now, &key(4), 1, 0)).await, Ok(Wire::Stored(3600)));
        let before = server.status();
        assert_eq!((&before["sessions"], &before["watches"]), (&2.into(), &1.into()));

        server.reload(
            "lease = 120\nadvertise = \"vls.example.org\"\n[registration]\nwork = false\n[limits]\nrecords = 2\n",
        );
        let record = record_at(now, &key(5), 1, 0);
        assert_eq!(writing.register(&record).await, Ok(Wire::Stored(120)));
        assert_eq!(told.next().await.0.0, record.packet(), "the watch goes on");
        assert_eq!(writing.lookup(key(4).id().as_bytes()).await.unwrap().0.len(), record.packet().len());
        // There is room for two: the third pushes one out.
        assert_eq!(writing.register(&record_at(now, &key(6), 1, 0)).await, Ok(Wire::Stored(120)));
        let after = server.status();
        assert_eq!((&after["sessions"], &after["process"]), (&2.into(), &before["process"]));
        assert_eq!((&after["records"], &after["capacity"], &after["lease"]), (&2.into(), &2.into(), &120.into()));
        assert!(after["entry"].as_str().unwrap().contains("@vls.example.org:"), "{after}");
        assert!(watching.session.end().is_none() && writing.session.end().is_none());
    });
}

#[test]
fn http_and_dns_are_opened_moved_and_closed_and_who_is_connected_is_answered() {
    let server = Supervised::start("");
    assert_eq!((address(&server, "http"), address(&server, "dns")), (None, None));
    server.reload("[http]\nlisten = \"127.0.0.1:0\"\n[dns]\nlisten = \"127.0.0.1:0\"\norigin = \"vls.example.org\"\n");
    let (first, dns) = (address(&server, "http").unwrap(), address(&server, "dns").unwrap());
    on_one_thread(async {
        assert_eq!(HttpClient::to(first).await.get("/healthz").await.status, 200);
        // Another certificate, proxy or limit: the port is the same, and never closed.
        server.reload("[http]\nlisten = \"127.0.0.1:0\"\ntrusted_proxies = [\"192.0.2.0/24\"]\n");
        assert_eq!(address(&server, "http"), Some(first));
        assert_eq!(address(&server, "dns"), None);
        assert!(TcpStream::connect(dns).is_err(), "nobody listens for DNS any more");
        assert_eq!(HttpClient::to(first).await.get("/healthz").await.status, 200);
        // Moved.
        server.reload("[http]\nlisten = \"127.0.0.2:0\"\n");
        let second = address(&server, "http").unwrap();
        assert_ne!(first.ip(), second.ip());
        assert!(TcpStream::connect(first).is_err());
        assert_eq!(HttpClient::to(second).await.get("/healthz").await.status, 200);
        server.reload("");
        assert!(TcpStream::connect(second).is_err());
    });
}

/// The settings for a certificate that lies beside the configuration, where a server may read.
fn copied_certificate(folder: &Path, name: &str) -> String {
    let file = |end| {
        let name = format!("{name}.{end}");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(&name);
        // Some are there to be missing.
        let _ = fs::copy(from, folder.join(&name));
        folder.join(name)
    };
    format!("[http]\nlisten = \"127.0.0.1:0\"\ncertificate = {:?}\nkey = {:?}\n", file("pem"), file("key"))
}

#[test]
fn a_certificate_is_taken_up_and_one_that_cannot_be_used_leaves_the_old() {
    let mut server = Supervised::start("[http]\nlisten = \"127.0.0.1:0\"\n");
    let folder = server.folder.path().to_owned();
    let certificate = |name: &str| copied_certificate(&folder, name);
    assert!(server.status()["certificate_expires"].is_null());
    let address = address(&server, "http");
    server.reload(&certificate("localhost"));
    let status = server.status();
    assert_eq!(status["certificate_expires"], 4_948_958_042_u64);
    server.reload(&certificate("nobodys"));
    assert_eq!(server.status()["certificate_expires"], 4_948_958_042_u64);
    assert_eq!(server.status()["http"].as_str().map(|address| address.parse().unwrap()), address);
    server.running.signal(Signal::TERM);
    let (_, _, log) = server.running.ended();
    assert!(log.contains("the configuration stays as it was") && log.contains("nobodys.pem"), "{log}");
    assert!(log.contains("server.certificate"), "{log}");
}

#[test]
fn a_file_with_a_mistake_or_a_port_that_is_taken_changes_nothing_and_the_log_says_why() {
    let mut server = Supervised::start("lease = 3600");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let before = server.status();
    server.reload("lease = 120\nlaese = 4\n");
    server.reload(&format!("lease = 120\n[http]\nlisten = \"{}\"\n", taken.local_addr().unwrap()));
    let after = server.status();
    for key in ["lease", "http", "listen", "process"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    server.reload("listen = \"127.0.0.1:1\"\nlease = 240\n");
    assert_eq!(server.status()["listen"], before["listen"]);
    assert_eq!(server.status()["lease"], 240, "the rest is taken up");
    server.running.signal(Signal::TERM);
    assert!(server.told().starts_with("STOPPING=1"));
    let (status, _, log) = server.running.ended();
    assert_eq!(status.code(), Some(0));
    // The file has `data` and `listen` in front.
    assert!(log.contains("server.toml:4:1: unknown field `laese`"), "{log}");
    assert!(log.contains("config.invalid") && log.contains("net.bind"), "{log}");
    assert!(log.contains("this stays as it is until the server is started again") && log.contains("listen"), "{log}");
}

#[test]
fn the_watchdog_is_told_that_the_event_loop_goes_round() {
    let server = Supervised::start_with("", &[("WATCHDOG_USEC", "200000")]);
    for _ in 0..3 {
        assert_eq!(server.told(), "WATCHDOG=1");
    }
    drop(server);
    // Somebody else's watchdog is not ours to feed.
    let mut server = Supervised::start_with("", &[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]);
    server.running.signal(Signal::TERM);
    assert_eq!(server.told(), "STOPPING=1");
    assert_eq!(server.running.ended().0.code(), Some(0));
}

#[test]
fn the_log_is_json_if_asked_for_and_its_level_follows_the_file() {
    let mut server = Supervised::start("[log]\nformat = \"json\"\nlevel = \"warn\"\n");
    server.reload("[log]\nformat = \"json\"\nlevel = \"info\"\n");
    server.reload("[log]\nformat = \"text\"\nlevel = \"info\"\n");
    server.running.signal(Signal::TERM);
    let (_, _, log) = server.running.ended();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert!(!messages.contains(&"serving"), "only warnings before the level was changed: {log}");
    assert!(messages.contains(&"the configuration was read again"), "{log}");
    let stays = lines.iter().find(|line| line["setting"] == "log.format").expect("the form stays");
    assert_eq!(stays["level"], "WARN");
}
