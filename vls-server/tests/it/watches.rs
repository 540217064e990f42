//! What a session brings beside questions: watching a vat, renewing one's own record in few bytes, and being dialled back.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use schemas::{ErrorCode, SignedRecord, State};
use tokio::task::spawn_local;
use transport::{Endpoint, EndpointConfig};
use vls_server::{Server, ServerConfig};

use crate::{
    finder::{Finder, Found, Wire},
    held_disk::{held_disk_over, hold},
    local::{HandClock, key, on_one_thread, record},
};

const HOUR: Duration = Duration::from_hours(1);

fn config() -> ServerConfig {
    let mut config = ServerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), "/data".into());
    config.disk = SimulatedDisk::new();
    config
}

async fn server() -> (Server, Rc<HandClock>) {
    let clock = HandClock::new();
    (Server::start(config(), clock.clone()).await.unwrap(), clock)
}

async fn dial(n: u32, server: &Server) -> Finder {
    Finder::dial(n, server.id(), server.local_address()).await
}

fn live(record: &SignedRecord) -> Found {
    (record.packet().to_vec(), 0, false)
}

#[test]
fn a_watcher_is_told_when_a_vat_comes_moves_and_goes() {
    on_one_thread(async {
        let (server, _clock) = server().await;
        let (vat, finder) = (dial(1, &server).await, dial(2, &server).await);
        let (mut told, _watch) = finder.watch(key(1).id().as_bytes()).await.unwrap();
        assert_eq!(told.next().await.0, (Vec::new(), 0, false), "nothing is known yet");
        for epoch in 1..=3 {
            let record = record(&key(1), epoch, 0);
            vat.register(&record).await.unwrap();
            assert_eq!(told.next().await.0, live(&record));
        }
        // Another vat is nobody's business here, and neither is what changes nothing.
        vat.register(&record(&key(7), 1, 0)).await.unwrap();
        vat.register(&record(&key(1), 3, 0)).await.unwrap();
        vat.register(&record(&key(1), 2, 0)).await.unwrap();
        let gone = {
            let mut said = record(&key(1), 4, 0).record().clone();
            said.state = State::Departed;
            SignedRecord::sign(&key(1), &said, record(&key(1), 4, 0).timestamp()).unwrap()
        };
        vat.register(&gone).await.unwrap();
        assert_eq!(told.next().await.0, live(&gone));
        assert!(told.is_empty());
    });
}

#[test]
fn a_watcher_is_told_when_a_lease_ends_and_when_it_is_renewed() {
    on_one_thread(async {
        let clock = HandClock::new();
        let mut config = config();
        config.watch_interval = Duration::from_millis(5);
        let server = Server::start(config, clock.clone()).await.unwrap();
        let (vat, finder) = (dial(1, &server).await, dial(2, &server).await);
        let record = record(&key(1), 1, 0);
        vat.register(&record).await.unwrap();
        let (mut told, _watch) = finder.watch(record.id().as_bytes()).await.unwrap();
        assert_eq!(told.next().await.0, live(&record));
        clock.wait(HOUR);
        assert_eq!(told.next().await.0, (record.packet().to_vec(), 3600, true));
        vat.register(&record).await.unwrap();
        assert_eq!(told.next().await.0, live(&record));
    });
}

#[test]
fn a_slow_watcher_is_told_the_last_of_many_changes_and_nobody_else_waits_for_it() {
    on_one_thread(async {
        let (server, _clock) = server().await;
        let (vat, slow, quick) = (dial(1, &server).await, dial(2, &server).await, dial(3, &server).await);
        let id = key(1).id();
        let (mut told_slowly, _watch) = slow.watch(id.as_bytes()).await.unwrap();
        let (nothing, taken) = told_slowly.next().await;
        assert!(nothing.0.is_empty());
        let (mut told, _other_watch) = quick.watch(id.as_bytes()).await.unwrap();
        told.next().await;
        for epoch in 1..=20 {
            let record = record(&key(1), epoch, 0);
            vat.register(&record).await.unwrap();
            assert_eq!(told.next().await.0, live(&record));
        }
        assert!(told_slowly.is_empty());
        drop(taken);
        assert_eq!(told_slowly.next().await.0, live(&record(&key(1), 20, 0)));
        assert!(told_slowly.is_empty());
    });
}

#[test]
fn nothing_is_told_before_it_is_durable() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let mut config = config();
        config.disk = disk.clone();
        let server = Server::start(config, HandClock::new()).await.unwrap();
        let (vat, finder) = (dial(1, &server).await, dial(2, &server).await);
        let record = record(&key(1), 1, 0);
        let (mut told, _watch) = finder.watch(record.id().as_bytes()).await.unwrap();
        told.next().await;
        let held = hold(&disk);
        let registering = spawn_local({
            let record = record.clone();
            // Gone before it was answered: what it registered counts all the same.
            async move { tokio::time::timeout(Duration::from_millis(50), vat.register(&record)).await.is_err() }
        });
        assert!(registering.await.unwrap());
        finder.now().await.unwrap();
        assert!(told.is_empty());
        drop(held);
        assert_eq!(told.next().await.0, live(&record));
    });
}

#[test]
fn watches_end_when_they_are_dropped_and_one_session_has_a_few_hundred() {
    on_one_thread(async {
        let (server, _clock) = server().await;
        let (vat, finder) = (dial(1, &server).await, dial(2, &server).await);
        let mut watches = Vec::new();
        let refused = loop {
            match finder.watch(key(1).id().as_bytes()).await {
                Ok(watch) => watches.push(watch),
                Err(refused) => break refused,
            }
        };
        assert_eq!((watches.len(), refused.code), (256, ErrorCode::VlsQuota));
        for (told, _) in &mut watches {
            told.next().await;
        }
        let mut kept = watches.split_off(255);
        drop(watches);
        // The releases come before the next call.
        let (mut told, _watch) = finder.watch(key(1).id().as_bytes()).await.unwrap();
        told.next().await;
        let record = record(&key(1), 1, 0);
        vat.register(&record).await.unwrap();
        assert_eq!(told.next().await.0, live(&record));
        assert_eq!(kept[0].0.next().await.0, live(&record));
    });
}

#[test]
fn a_session_that_watches_is_not_idle() {
    on_one_thread(async {
        let mut config = config();
        config.idle_session = Duration::from_millis(100);
        let server = Server::start(config, HandClock::new()).await.unwrap();
        let (vat, finder, idle) = (dial(1, &server).await, dial(2, &server).await, dial(3, &server).await);
        let (mut told, watch) = finder.watch(key(1).id().as_bytes()).await.unwrap();
        told.next().await;
        idle.session.closed().await;
        vat.session.closed().await;
        assert!(finder.session.end().is_none());
        drop(watch);
        finder.session.closed().await;
    });
}

#[test]
fn a_vat_renews_its_own_record_by_its_order_and_nobody_elses() {
    on_one_thread(async {
        let (server, clock) = server().await;
        let (vat, stranger) = (dial(1, &server).await, dial(2, &server).await);
        let [first, second] = [1, 2].map(|epoch| record(&key(1), epoch, 0));
        assert_eq!(vat.renew(first.order()).await, Ok(Wire::Unexpected(Vec::new())));
        vat.register(&first).await.unwrap();
        clock.wait(HOUR);
        assert!(stranger.lookup(first.id().as_bytes()).await.unwrap().2, "its lease has ended");
        assert_eq!(stranger.renew(first.order()).await, Ok(Wire::Unexpected(Vec::new())));
        assert_eq!(vat.renew(second.order()).await, Ok(Wire::Unexpected(first.packet().to_vec())));
        assert_eq!(vat.renew(first.order()).await, Ok(Wire::Refreshed(3600)));
        assert_eq!(stranger.lookup(first.id().as_bytes()).await, Ok(live(&first)));
        vat.register(&second).await.unwrap();
        assert_eq!(vat.renew(first.order()).await, Ok(Wire::Unexpected(second.packet().to_vec())));
    });
}

#[test]
fn who_listens_is_dialled_back_and_who_does_not_is_told() {
    on_one_thread(async {
        let (server, _clock) = server().await;
        // A vat that listens on the same port that it dials from.
        let listening =
            Endpoint::bind(&key(1), SocketAddr::from(([127, 0, 0, 1], 0)), EndpointConfig::default()).unwrap();
        let port = listening.local_address().port();
        let accepting = spawn_local({
            let listening = listening.clone();
            async move { listening.accept().await.unwrap().accept().await }
        });
        let vat = dial(1, &server).await;
        assert_eq!(vat.dial_back(port).await, Ok((format!("127.0.0.1:{port}"), None)));
        let back = accepting.await.unwrap().unwrap();
        assert_eq!(back.peer(), server.id());
        let from = back.remote_address().port();
        assert_ne!(from, server.local_address().port(), "what is open for the session is open for it alone");
        let again = vat.dial_back(port).await.unwrap_err();
        assert_eq!(again.code, ErrorCode::VlsQuota, "not at once");
        // Somebody else answers there: it is not the caller.
        let accepting = spawn_local(async move { listening.accept().await.unwrap().accept().await.is_ok() });
        let other = dial(2, &server).await;
        let (_, code) = other.dial_back(port).await.unwrap();
        assert_eq!(code.as_deref(), Some("session.wrong_peer"));
        let _ = accepting.await;
        let nobody = dial(3, &server).await;
        let (_, code) = nobody.dial_back(9).await.unwrap();
        assert_eq!(code.as_deref(), Some("net.timeout"));
    });
}
