//! What HTTP allows to whom: quotas, places, slow and large requests, and HTTPS.

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use checkpoint::simulated::SimulatedDisk;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use vls_server::{
    CertificateFiles, Server,
    registry::{Policy, Rate},
};

use crate::{
    finder::{Finder, Wire},
    http_client::HttpClient,
    local::{HandClock, key, on_one_thread, record},
    over_http::{config, path, start},
};

#[test]
fn quotas_go_by_the_client_and_a_proxy_that_is_trusted_tells_who_that_is() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        config.http_limits.requests = Rate { burst: 3, interval: Duration::from_secs(10) };
        config.policy = Policy { new_ids: Rate { burst: 1, interval: Duration::from_secs(100) }, ..Policy::default() };
        let (_server, mut http, clock) = start(config).await;
        let (first, second) = (record(&key(1), 1, 0), record(&key(2), 1, 0));
        let from = |address| [("X-Forwarded-For", address)];
        assert_eq!(http.put(&path(&first), &from("192.0.2.1"), first.packet()).await.status, 204);
        let refused = http.put(&path(&second), &from("6.6.6.6, 192.0.2.200"), second.packet()).await;
        assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (429, "vls.quota", Some("100")));
        assert_eq!(http.put(&path(&second), &from("198.51.100.1"), second.packet()).await.status, 204);

        assert_eq!(http.ask("GET", "/healthz", &from("192.0.2.1"), b"").await.status, 200);
        let slow_down = http.ask("GET", "/healthz", &from("192.0.2.1"), b"").await;
        assert_eq!((slow_down.status, slow_down.header("retry-after")), (429, Some("10")));
        assert_eq!(http.ask("GET", "/healthz", &from("203.0.113.1"), b"").await.status, 200);
        clock.wait(Duration::from_secs(10));
        assert_eq!(http.ask("GET", "/healthz", &from("192.0.2.1"), b"").await.status, 200);
    });
}

#[test]
fn a_connection_that_says_nothing_and_a_head_that_does_not_end_are_given_up() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.http_limits.idle = Duration::from_millis(200);
        let (server, mut silent, _clock) = start(config).await;
        let mut slow = HttpClient::to(server.http_address().unwrap()).await;
        slow.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-").await;
        silent.closed().await;
        slow.closed().await;
    });
}

/// It speaks HTTP/2, whose frames of unknown types are skipped one after the other for as long as there are any.
#[test]
fn a_connection_that_never_stops_talking_and_asks_nothing_is_given_up() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.http_limits.idle = Duration::from_millis(200);
        let (server, _http, _clock) = start(config).await;
        let address = server.http_address().unwrap();
        let talking = tokio::task::spawn_blocking(move || {
            const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            const UNKNOWN: [u8; 9] = [0, 0, 0, 0xfa, 0, 0, 0, 0, 0];
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
            stream.write_all(&SETTINGS)?;
            let (begun, frames) = (Instant::now(), UNKNOWN.repeat(10_000));
            while begun.elapsed() < Duration::from_secs(10) {
                stream.write_all(&frames)?;
            }
            Ok::<_, std::io::Error>(())
        });
        let outcome = talking.await.unwrap();
        assert!(outcome.is_err_and(|error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)));
    });
}

#[test]
fn a_body_that_does_not_come_and_a_head_that_is_too_large_are_refused() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.http_limits.body = Duration::from_millis(200);
        let (server, mut body, _clock) = start(config).await;
        let path = path(&record(&key(1), 1, 0));
        body.send(format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf").as_bytes()).await;
        let late = body.response(false).await;
        assert_eq!((late.status, late.code()), (408, "http.request"));
        body.closed().await;
        for head in [
            format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {}\r\n\r\n", "x".repeat(20_000)),
            format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(101)),
        ] {
            let mut large = HttpClient::to(server.http_address().unwrap()).await;
            large.send(head.as_bytes()).await;
            assert_eq!(large.response(false).await.status, 431);
        }
    });
}

#[test]
fn the_longest_idle_connection_makes_room_and_one_that_was_used_enough_is_closed() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.http_limits.connections = 3;
        config.http_limits.requests_per_connection = 2;
        let (server, mut first, _clock) = start(config).await;
        let address = server.http_address().unwrap();
        assert_eq!(first.get("/healthz").await.status, 200);
        let mut second = HttpClient::to(address).await;
        assert_eq!(second.get("/healthz").await.status, 200);
        let mut third = HttpClient::to(address).await;
        assert_eq!(third.get("/healthz").await.status, 200);
        let mut fourth = HttpClient::to(address).await;
        first.closed().await;
        assert_eq!(fourth.get("/healthz").await.status, 200);
        let last = second.get("/healthz").await;
        assert_eq!((last.status, last.header("connection")), (200, Some("close")));
        second.closed().await;
        assert_eq!(third.get("/healthz").await.status, 200);
    });
}

fn certificate(name: &str) -> CertificateFiles {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
    CertificateFiles { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
}

#[test]
fn https_shows_the_certificate_that_was_given() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        let files = certificate("localhost");
        config.certificate = Some(files.clone());
        let (server, mut plain, _clock) = start(config).await;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&files.certificate).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        let stream = TcpStream::connect(server.http_address().unwrap()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(client).connect(name, stream).await.unwrap();
        let mut https = HttpClient::over(stream);
        let record = record(&key(1), 1, 0);
        assert_eq!(https.put(&path(&record), &[], record.packet()).await.status, 204);
        assert_eq!(https.get(&path(&record)).await.body, record.packet());
        plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        assert_eq!(vat.register(&record).await, Ok(Wire::Refreshed(3600)));
    });
}

#[test]
fn a_certificate_that_cannot_be_used_is_told_before_anything_listens() {
    on_one_thread(async {
        let good = certificate("localhost");
        let (cargo, nowhere) =
            (PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), PathBuf::from("/nowhere"));
        for (files, what) in [
            (CertificateFiles { certificate: nowhere, ..good.clone() }, "cannot read /nowhere"),
            (CertificateFiles { certificate: cargo.clone(), ..good.clone() }, "holds no certificate in PEM"),
            (CertificateFiles { key: good.certificate.clone(), ..good.clone() }, "holds no private key in PEM"),
            (CertificateFiles { key: certificate("other").key, ..good.clone() }, "cannot be used with the certificate"),
        ] {
            let mut config = config(SimulatedDisk::new());
            config.certificate = Some(files);
            let error = Server::start(config, HandClock::new()).await.unwrap_err();
            assert_eq!(schemas::Coded::code(&error).as_str(), "server.certificate");
            assert!(error.to_string().contains(what), "{error}");
        }
    });
}
