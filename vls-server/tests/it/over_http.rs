//! Records over HTTP: the rules of pkarr's relays and of ours, one by one, as bytes on sockets.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use schemas::{SignedRecord, VatId};
use tokio::{net::TcpStream, task::spawn_local};
use vls_server::{Server, ServerConfig};

use crate::{
    finder::{Finder, Wire},
    held_disk::{held_disk_over, hold},
    http_client::HttpClient,
    local::{HandClock, START, key, on_one_thread, record},
};

const HOUR: Duration = Duration::from_hours(1);

pub(crate) fn config(disk: Arc<dyn checkpoint::Disk>) -> ServerConfig {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = ServerConfig::new(any, "/data".into());
    config.disk = disk;
    config.http = Some(any);
    config
}

pub(crate) async fn start(config: ServerConfig) -> (Server, HttpClient, Rc<HandClock>) {
    let clock = HandClock::new();
    let server = Server::start(config, clock.clone()).await.unwrap();
    let client = HttpClient::to(server.http_address().unwrap()).await;
    (server, client, clock)
}

async fn server() -> (Server, HttpClient, Rc<HandClock>) {
    start(config(SimulatedDisk::new())).await
}

pub(crate) fn path(record: &SignedRecord) -> String {
    format!("/pkarr/{}", record.id())
}

#[test]
fn a_record_is_put_and_got_under_both_paths_and_the_same_over_quic() {
    on_one_thread(async {
        let (server, mut http, clock) = server().await;
        let record = record(&key(1), 1, -100);
        let stored = http.put(&path(&record), &[], record.packet()).await;
        assert_eq!((stored.status, stored.body.len()), (204, 0));
        assert_eq!(stored.header("vls-lease"), Some("3600"));
        clock.wait(Duration::from_secs(90));
        for path in [path(&record), format!("/{}", record.id()), format!("/{}?policy=CacheFirst", record.id())] {
            let found = http.get(&path).await;
            assert_eq!((found.status, found.body.as_slice()), (200, record.packet()), "{path}");
            assert_eq!(found.header("content-length"), Some(record.packet().len().to_string().as_str()));
            assert_eq!(found.header("content-type"), Some("application/pkarr.org/relays#payload"));
            assert_eq!(found.header("etag"), stored.header("etag"));
            assert_eq!(found.header("last-modified"), Some("Fri, 15 Jan 2027 07:58:20 GMT"));
            assert_eq!(found.header("memento-datetime"), Some("Fri, 15 Jan 2027 08:01:30 GMT"));
            assert_eq!(found.header("vls-age"), Some("90"));
            assert_eq!(found.header("date"), Some("Fri, 15 Jan 2027 08:01:30 GMT"));
            assert_eq!(found.header("vls-time"), Some("1800000090000000"));
            assert_eq!(found.header("cache-control"), Some("public, max-age=30"));
            assert_eq!(found.header("access-control-allow-origin"), Some("*"));
        }
        let head = http.ask("HEAD", &path(&record), &[], b"").await;
        let length = record.packet().len().to_string();
        assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
        assert_eq!(http.get("/healthz").await.text(), "ok\n", "nothing of the body was sent");

        let finder = Finder::dial(9, server.id(), server.local_address()).await;
        let (packet, ..) = finder.lookup(record.id().as_bytes()).await.unwrap();
        assert_eq!(packet, record.packet());
        server.stop().await.unwrap();
    });
}

#[test]
fn identical_bytes_renew_and_older_or_contradicting_ones_are_told_what_is_there() {
    on_one_thread(async {
        let (_server, mut http, clock) = server().await;
        let (older, newer) = (record(&key(1), 1, 0), record(&key(1), 2, -1));
        let path = path(&newer);
        let stored = http.put(&path, &[], newer.packet()).await;
        assert_eq!(stored.status, 204);
        clock.wait(HOUR / 2);
        let again = http.put(&path, &[], newer.packet()).await;
        assert_eq!((again.status, again.header("vls-lease")), (204, Some("3600")));
        let stale = http.put(&path, &[], older.packet()).await;
        assert_eq!((stale.status, stale.code()), (409, "vls.stale"));
        assert_eq!(stale.header("etag"), stored.header("etag"));

        let mut draft = newer.record().clone();
        draft.turn += 1;
        let other = SignedRecord::sign(&key(1), &draft, newer.timestamp()).unwrap();
        let conflict = http.put(&path, &[], other.packet()).await;
        assert_eq!((conflict.status, conflict.code()), (409, "vls.conflict"));
    });
}

#[test]
fn a_swap_replaces_exactly_the_record_that_its_writer_knows() {
    on_one_thread(async {
        let (_server, mut http, _clock) = server().await;
        let records: Vec<_> = (1..=6).map(|epoch| record(&key(1), epoch, 0)).collect();
        let path = path(&records[0]);
        let absent = [("If-None-Match", "*")];
        let missing = http.put(&path, &[("If-Match", "*")], records[0].packet()).await;
        assert_eq!((missing.status, missing.code()), (412, "vls.unexpected"));
        let first = http.put(&path, &absent, records[0].packet()).await;
        assert_eq!(first.status, 204);
        let refused = http.put(&path, &absent, records[1].packet()).await;
        assert_eq!((refused.status, refused.header("etag")), (412, first.header("etag")));

        let tag = first.header("etag").unwrap();
        let second = http.put(&path, &[("If-Match", tag)], records[1].packet()).await;
        assert_eq!(second.status, 204);
        // The answer was lost, say: the same again succeeds, although the tag is not the current one any more.
        assert_eq!(http.put(&path, &[("If-Match", tag)], records[1].packet()).await.status, 204);
        let late = http.put(&path, &[("If-Match", tag)], records[2].packet()).await;
        assert_eq!((late.status, late.header("etag")), (412, second.header("etag")));

        // All of these have the same timestamp, which is what pkarr compares.
        let timestamp = START.as_micros().to_string();
        assert_eq!(http.put(&path, &[("If-Match", &timestamp)], records[2].packet()).await.status, 204);
        assert_eq!(http.put(&path, &[("If-Match", "17")], records[3].packet()).await.status, 412);
        assert_eq!(http.put(&path, &[("If-Match", "*")], records[3].packet()).await.status, 204);
        for nonsense in [("If-Match", "W/\"x\""), ("If-Match", "x"), ("If-None-Match", "\"x\"")] {
            let refused = http.put(&path, &[nonsense], records[4].packet()).await;
            assert_eq!((refused.status, refused.code()), (400, "http.request"), "{nonsense:?}");
        }
        assert_eq!(http.get(&path).await.body, records[3].packet());
    });
}

#[test]
fn who_has_the_record_already_is_told_so_and_nobody_is_told_so_by_a_second_too_coarse() {
    on_one_thread(async {
        let (_server, mut http, _clock) = server().await;
        let record = record(&key(1), 1, -1);
        let path = path(&record);
        let stored = http.put(&path, &[], record.packet()).await;
        let tag = stored.header("etag").unwrap();
        let known = http.ask("GET", &path, &[("If-None-Match", tag)], b"").await;
        assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some(tag)));
        assert_eq!(known.header("cache-control"), Some("public, max-age=30"));
        let mut by_date = async |date| http.ask("GET", &path, &[("If-Modified-Since", date)], b"").await.status;
        assert_eq!(by_date("Fri, 15 Jan 2027 07:59:59 GMT").await, 304);
        assert_eq!(by_date("Fri, 15 Jan 2027 07:59:58 GMT").await, 200);
        // One that was signed within that second may be newer than what the client has.
        let newer = {
            let timestamp = record.timestamp() + Duration::from_micros(1);
            SignedRecord::sign(&key(1), record.record(), timestamp).unwrap()
        };
        assert_eq!(http.put(&path, &[], newer.packet()).await.status, 204);
        let again = http.ask("GET", &path, &[("If-Modified-Since", "Fri, 15 Jan 2027 07:59:59 GMT")], b"").await;
        assert_eq!((again.status, again.body.as_slice()), (200, newer.packet()));
        let again = http.ask("GET", &path, &[("If-None-Match", tag)], b"").await;
        assert_eq!((again.status, again.body.as_slice()), (200, newer.packet()));
    });
}

#[test]
fn a_vat_whose_lease_has_ended_is_nowhere_and_its_record_is_given_to_who_asks_for_that() {
    on_one_thread(async {
        let (_server, mut http, clock) = server().await;
        let record = record(&key(1), 1, 0);
        let path = path(&record);
        let unknown = http.get(&path).await;
        assert_eq!((unknown.status, unknown.code()), (404, "vls.unknown_vat"));
        http.put(&path, &[], record.packet()).await;
        clock.wait(HOUR - Duration::from_secs(10));
        assert_eq!(
            http.get(&path).await.header("cache-control"),
            Some("public, max-age=10"),
            "no longer than the lease"
        );
        clock.wait(Duration::from_secs(10));
        let expired = http.get(&path).await;
        assert_eq!((expired.status, expired.code()), (404, "vls.expired"));
        assert_eq!(expired.header("vls-expired"), Some("3600"));
        let all_the_same = http.get(&format!("{path}?policy=CacheOnly")).await;
        assert_eq!((all_the_same.status, all_the_same.body.as_slice()), (200, record.packet()));
        assert_eq!(all_the_same.header("vls-expired"), Some("3600"));
        assert_eq!(all_the_same.header("memento-datetime"), Some("Fri, 15 Jan 2027 08:00:00 GMT"));
        assert_eq!(all_the_same.header("cache-control"), Some("no-store"));
    });
}

#[test]
fn an_id_has_one_spelling_and_what_is_no_id_is_no_page() {
    on_one_thread(async {
        let (_server, mut http, _clock) = server().await;
        let record = record(&key(1), 1, 0);
        let id = record.id().to_string();
        // Its last character has four bits to spare: sixteen spellings, of which one is taken.
        let letters = "ybndrfg8ejkmcpqxot1uwisza345h769";
        let spellings = letters.chars().map(|letter| format!("{}{letter}", &id[..VatId::TEXT_LENGTH - 1]));
        let mut taken = 0;
        for spelling in spellings {
            for base in ["/", "/pkarr/"] {
                let answer = http.put(&format!("{base}{spelling}"), &[], record.packet()).await;
                match answer.status {
                    204 => taken += 1,
                    400 => assert!(matches!(answer.code(), "ref.id_malformed" | "record.forged" | "record.malformed")),
                    other => panic!("{spelling}: {other}"),
                }
            }
        }
        assert_eq!(taken, 2);
        let upper = id.to_uppercase();
        for (path, status, code) in [
            (format!("/pkarr/{upper}"), 400, "ref.id_malformed"),
            ("/pkarr/short".to_owned(), 400, "ref.id_malformed"),
            (format!("/pkarr/{id}/"), 400, "ref.id_malformed"),
            ("/pkarr/".to_owned(), 400, "ref.id_malformed"),
            ("/favicon.ico".to_owned(), 404, "http.request"),
            ("/pkarr".to_owned(), 404, "http.request"),
            ("/dns-query".to_owned(), 404, "http.request"),
        ] {
            let answer = http.get(&path).await;
            assert_eq!((answer.status, answer.code()), (status, code), "{path}");
        }
    });
}

#[test]
fn what_is_no_packet_is_refused_with_the_reason_and_the_servers_time() {
    on_one_thread(async {
        let (_server, mut http, _clock) = server().await;
        let (ours, ahead, over) = (record(&key(1), 1, 0), record(&key(1), 1, 301), record(&key(1), 1, -900_000));
        let path = path(&ours);
        let mut forged = ours.packet().to_vec();
        forged[3] ^= 1;
        for (packet, status, code) in [
            (&ours.packet()[..71], 400, "record.malformed"),
            (b"x".as_slice(), 400, "record.malformed"),
            (&forged, 400, "record.forged"),
            (ahead.packet(), 400, "record.future"),
            (over.packet(), 400, "record.expired"),
        ] {
            let answer = http.put(&path, &[], packet).await;
            assert_eq!((answer.status, answer.code()), (status, code));
            assert_eq!(answer.header("vls-time"), Some("1800000000000000"));
        }
        assert_eq!(http.ask("PUT", &path, &[], b"").await.status, 400, "nothing is not a packet either");
        let largest = http.put(&path, &[], &[0; 1072]).await;
        assert_eq!(largest.status, 400, "of a length that is read, and nonsense");
        let deleted = http.ask("DELETE", &path, &[], b"").await;
        assert_eq!((deleted.status, deleted.header("allow")), (405, Some("GET, HEAD, PUT, OPTIONS")));
    });
}

#[test]
fn a_body_that_is_too_long_is_refused_before_it_is_read_and_so_is_one_that_does_not_tell() {
    on_one_thread(async {
        let (server, mut http, _clock) = server().await;
        let path = path(&record(&key(1), 1, 0));
        http.send(format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1073\r\n\r\n").as_bytes()).await;
        let answer = http.response(false).await;
        assert_eq!((answer.status, answer.code()), (413, "record.too_large"), "not a byte of it was sent");
        http.closed().await;

        let mut http = HttpClient::to(server.http_address().unwrap()).await;
        http.send(format!("PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes()).await;
        http.send(&[b"431\r\n".as_slice(), &[7; 0x431], b"\r\n"].concat()).await;
        assert_eq!(http.response(false).await.status, 413);
        http.closed().await;
    });
}

#[test]
fn scripts_of_any_page_may_ask() {
    on_one_thread(async {
        let (_server, mut http, _clock) = server().await;
        let path = path(&record(&key(1), 1, 0));
        let asks = [("Origin", "https://example.org"), ("Access-Control-Request-Method", "PUT")];
        let preflight = http.ask("OPTIONS", &path, &asks, b"").await;
        assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, Some("*")));
        assert!(preflight.header("access-control-allow-methods").unwrap().contains("PUT"));
        assert!(preflight.header("access-control-allow-headers").unwrap().contains("If-Match"));
        let missing = http.get(&path).await;
        assert_eq!(missing.header("access-control-allow-origin"), Some("*"), "errors can be read, too");
        assert_eq!(missing.header("access-control-expose-headers"), Some("*"));
    });
}

#[test]
fn people_and_monitors_are_shown_counts_and_no_vat_and_no_client() {
    on_one_thread(async {
        let (server, mut http, clock) = server().await;
        let record = record(&key(1), 1, 0);
        http.put(&path(&record), &[], record.packet()).await;
        http.get(&path(&record)).await;
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        assert_eq!(vat.register(&record).await, Ok(Wire::Refreshed(3600)));
        assert!(vat.lookup(&[7; 32]).await.unwrap().0.is_empty());
        clock.wait(Duration::from_secs(3 * 86_400 + 7_200));
        let page = http.get("/").await;
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        for shown in [server.id().to_string().as_str(), "3 d 2 h", "<th scope=\"row\">records held</th><td>1</td>"] {
            assert!(page.text().contains(shown), "{shown}");
        }
        let metrics = http.get("/metrics").await;
        for line in [
            "vls_records 1",
            "vls_turn 1",
            "vls_durable_turn 1",
            "vls_answers_total{carrier=\"http\",outcome=\"204\"} 1",
            "vls_answers_total{carrier=\"http\",outcome=\"200\"} 2",
            "vls_answer_seconds_count{carrier=\"http\"} 3",
            "vls_answers_total{carrier=\"quic\",outcome=\"refreshed\"} 1",
            "vls_answers_total{carrier=\"quic\",outcome=\"unknown\"} 1",
            "vls_sessions 1",
            "vls_connections{carrier=\"http\"} 1",
            "# EOF",
        ] {
            assert!(metrics.text().lines().any(|found| found == line), "{line} in\n{}", metrics.text());
        }
        for text in [page.text(), metrics.text()] {
            assert!(!text.contains(&record.id().to_string()) && !text.contains("127.0.0.1"));
        }
        assert_eq!(http.put("/", &[], b"x").await.status, 405);
    });
}

#[test]
fn nothing_is_answered_before_it_is_durable_and_the_health_page_says_that_the_disk_is_stuck() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let (server, mut writer, _clock) = start(config(disk.clone())).await;
        let address = server.http_address().unwrap();
        let record = record(&key(1), 1, 0);
        let path = path(&record);
        let held = hold(&disk);
        let writing = spawn_local({
            let (path, packet) = (path.clone(), record.packet().to_vec());
            async move { writer.put(&path, &[], &packet).await }
        });
        while server.registry().counts().0 == 0 {
            tokio::task::yield_now().await;
        }
        let reading = spawn_local(async move { HttpClient::to(address).await.get(&path).await });
        let mut monitor = HttpClient::to(address).await;
        let stuck = monitor.get("/healthz").await;
        assert_eq!((stuck.status, stuck.code()), (503, "checkpoint.disk"));
        // Long after both have been looked at.
        assert!(!writing.is_finished() && !reading.is_finished());
        drop(held);
        assert_eq!(writing.await.unwrap().status, 204);
        assert_eq!(reading.await.unwrap().body, record.packet());
        assert_eq!(monitor.get("/healthz").await.status, 200);
    });
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let disk = SimulatedDisk::new();
    let record = record(&key(1), 1, 0);
    on_one_thread(async {
        let (_server, mut http, _clock) = start(config(disk.clone())).await;
        assert_eq!(http.put(&path(&record), &[], record.packet()).await.status, 204);
        // No good-bye.
    });
    let mut history = disk.history();
    history.advance(history.len());
    let killed = history.kill();
    on_one_thread(async {
        let (_server, mut http, _clock) = start(config(killed)).await;
        assert_eq!(http.get(&path(&record)).await.body, record.packet());
    });
}

#[test]
fn a_stopping_server_answers_what_it_has_begun_and_takes_nothing_more() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let (server, mut writer, _clock) = start(config(disk.clone())).await;
        let record = record(&key(1), 1, 0);
        let mut idle = HttpClient::to(server.http_address().unwrap()).await;
        assert_eq!(idle.get("/healthz").await.status, 200);
        let held = hold(&disk);
        let writing = spawn_local(async move {
            let stored = writer.put(&path(&record), &[], record.packet()).await;
            writer.closed().await;
            stored
        });
        while server.registry().counts().0 == 0 {
            tokio::task::yield_now().await;
        }
        let address = server.http_address().unwrap();
        let stopping = spawn_local(server.stop());
        idle.closed().await;
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert_eq!(writing.await.unwrap().status, 204);
        stopping.await.unwrap().unwrap();
    });
}
