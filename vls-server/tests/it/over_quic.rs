//! The location service as its clients see it, over QUIC on loopback, with clocks turned by hand.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::{Fault, SimulatedDisk};
use futures::{FutureExt, future::join_all};
use schemas::{Coded, ErrorCode, SignedRecord};
use transport::SessionEnd;
use vls_server::{
    Server, ServerConfig,
    registry::{Policy, Rate},
};

use crate::finder::{Expect, Finder, Found, Wire};
use crate::held_disk::{held_disk_over, hold};
use crate::local::{HandClock, START, key, on_one_thread, record};

const HOUR: Duration = Duration::from_hours(1);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The usual server, on a disk in memory.
fn config(disk: Arc<SimulatedDisk>) -> ServerConfig {
    let mut config = ServerConfig::new(loopback(), "/data".into());
    config.disk = disk;
    config
}

async fn start(config: ServerConfig, clock: &Rc<HandClock>) -> Server {
    Server::start(config, clock.clone()).await.unwrap()
}

async fn usual() -> (Server, Rc<HandClock>) {
    let clock = HandClock::new();
    (start(config(SimulatedDisk::new()), &clock).await, clock)
}

async fn dial(n: u32, server: &Server) -> Finder {
    Finder::dial(n, server.id(), server.local_address()).await
}

fn found(record: &SignedRecord, age: u32) -> Found {
    (record.packet().to_vec(), age, false)
}

#[test]
fn what_a_vat_registers_everybody_finds() {
    on_one_thread(async {
        let (server, clock) = usual().await;
        let vat = dial(1, &server).await;
        let record = record(&key(1), 1, 0);
        assert_eq!(vat.register(&record).await, Ok(Wire::Stored(3600)));
        let finder = dial(2, &server).await;
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 0)));
        clock.wait(Duration::from_secs(30 * 60));
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 1800)));
        // Anyone may forward it: the vat has signed it.
        assert_eq!(finder.register(&record).await, Ok(Wire::Refreshed(3600)));
        assert_eq!(vat.lookup(record.id().as_bytes()).await, Ok(found(&record, 0)));
        server.stop().await.unwrap();
    });
}

#[test]
fn records_that_are_not_good_are_refused_with_their_codes() {
    on_one_thread(async {
        let (server, _clock) = usual().await;
        let client = dial(9, &server).await;
        let vat = key(1);
        let current = record(&vat, 2, 0);
        assert_eq!(client.register(&current).await, Ok(Wire::Stored(3600)));
        let id = vat.id();
        let bytes = |packet: Vec<u8>| async {
            let packet = packet;
            let outcome = client.register_bytes(id.as_bytes(), &packet, Expect::Anything).await.unwrap();
            let Wire::Refused { server_time, retry_after, message, .. } = &outcome else { panic!("{outcome:?}") };
            assert_eq!((*server_time, *retry_after), (START.as_micros(), 0));
            assert!(!message.is_empty());
            outcome.code().to_owned()
        };
        // Forged: the signature is another key's.
        let mut forged = record(&vat, 3, 0).packet().to_vec();
        forged[..64].copy_from_slice(&record(&key(2), 3, 0).packet()[..64]);
        assert_eq!(bytes(forged).await, "record.forged");
        // Altered: a later time than the one that was signed.
        let mut altered = record(&vat, 3, 0).packet().to_vec();
        altered[71] ^= 1;
        assert_eq!(bytes(altered).await, "record.forged");
        let expired = record(&vat, 3, -11 * 24 * 3600);
        assert_eq!(bytes(expired.packet().to_vec()).await, "record.expired");
        let future = record(&vat, 3, 301);
        assert_eq!(bytes(future.packet().to_vec()).await, "record.future");
        assert_eq!(bytes(b"nonsense".to_vec()).await, "record.malformed");
        assert_eq!(bytes(vec![0; 2000]).await, "record.too_large");
        // Older, and of a lower epoch though signed later.
        for stale in [record(&vat, 2, -1), record(&vat, 1, 60)] {
            assert_eq!(client.register(&stale).await, Ok(Wire::Stale(current.packet().to_vec())));
        }
        let outcome = client.register_bytes(&[1; 31], current.packet(), Expect::Anything).await.unwrap();
        assert_eq!(outcome.code(), "ref.id_malformed");
        // After all of this the record is the one that was good.
        assert_eq!(client.lookup(vat.id().as_bytes()).await, Ok(found(&current, 0)));
    });
}

#[test]
fn expectations_and_contradictions_travel_over_the_wire() {
    on_one_thread(async {
        let (server, _clock) = usual().await;
        let client = dial(9, &server).await;
        let vat = key(1);
        let [first, second, third] = [1, 2, 3].map(|epoch| record(&vat, epoch, 0));
        let swap = |record: SignedRecord, expect| {
            let client = &client;
            async move { client.register_bytes(record.id().as_bytes(), record.packet(), expect).await.unwrap() }
        };
        let unexpected = |record: &SignedRecord| Wire::Unexpected(record.packet().to_vec());
        assert_eq!(swap(first.clone(), Expect::Order(second.order())).await, Wire::Unexpected(Vec::new()));
        assert_eq!(swap(first.clone(), Expect::Absent).await, Wire::Stored(3600));
        assert_eq!(swap(second.clone(), Expect::Absent).await, unexpected(&first));
        assert_eq!(swap(second.clone(), Expect::Order(first.order())).await, Wire::Stored(3600));
        assert_eq!(swap(third.clone(), Expect::Order(first.order())).await, unexpected(&second));
        // The same epoch and time, said twice differently.
        let other = {
            let mut said = second.record().clone();
            said.turn = 99;
            SignedRecord::sign(&vat, &said, second.timestamp()).unwrap()
        };
        assert_eq!(client.register(&other).await, Ok(Wire::Conflict(second.packet().to_vec())));
        assert!(server.registry().lookup(vat.id().as_bytes()).await.unwrap().packet.is_some());
    });
}

#[test]
fn many_ids_are_answered_in_one_call_in_their_order_and_no_more_than_256() {
    on_one_thread(async {
        let (server, _clock) = usual().await;
        let client = dial(9, &server).await;
        let records: Vec<_> = (1..=4).map(|n| record(&key(n), 1, 0)).collect();
        let outcomes = join_all(records.iter().map(|record| client.register(record))).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Ok(Wire::Stored(3600))));
        let unknown = key(77).id();
        let known: Vec<_> = records.iter().map(SignedRecord::id).collect();
        let mut ids: Vec<&[u8]> = Vec::new();
        for round in 0..256 {
            ids.push(known.get(round % 5).unwrap_or(&unknown).as_bytes());
        }
        let answers = client.lookup_many(&ids).await.unwrap();
        assert_eq!(answers.len(), 256);
        for (id, answer) in ids.iter().zip(&answers) {
            let known = records.iter().find(|record| record.id().as_bytes() == id);
            assert_eq!(*answer, known.map_or((Vec::new(), 0, false), |record| found(record, 0)));
        }
        assert_eq!(client.lookup_many(&[]).await, Ok(Vec::new()));
        ids.push(unknown.as_bytes());
        assert_eq!(client.lookup_many(&ids).await.unwrap_err().code, ErrorCode::ObjectArgument);
        let short: [&[u8]; 2] = [unknown.as_bytes(), &[1; 16]];
        assert_eq!(client.lookup_many(&short).await.unwrap_err().code, ErrorCode::RefIdMalformed);
        assert_eq!(client.lookup(&[]).await.unwrap_err().code, ErrorCode::RefIdMalformed);
        // None of this has cost the session.
        assert_eq!(client.lookup(unknown.as_bytes()).await, Ok((Vec::new(), 0, false)));
    });
}

#[test]
fn now_tells_the_servers_time_and_the_callers_own_address() {
    on_one_thread(async {
        let (server, clock) = usual().await;
        let client = dial(9, &server).await;
        clock.wait(Duration::from_micros(1_234_567));
        let (time, address) = client.now().await.unwrap();
        assert_eq!(time, START.as_micros() + 1_234_567);
        let address: SocketAddr = address.parse().unwrap();
        assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], client.endpoint.local_address().port())));
    });
}

#[test]
fn a_vat_that_renews_is_found_after_its_first_lease_also_across_a_restart_of_the_server() {
    on_one_thread(async {
        let disk = SimulatedDisk::new();
        let clock = HandClock::new();
        let server = start(config(disk.clone()), &clock).await;
        let id = server.id();
        let record = record(&key(1), 1, 0);
        {
            let vat = dial(1, &server).await;
            assert_eq!(vat.register(&record).await, Ok(Wire::Stored(3600)));
            clock.wait(HOUR * 4 / 5);
            assert_eq!(vat.register(&record).await, Ok(Wire::Refreshed(3600)));
            clock.wait(HOUR / 5);
            assert_eq!(vat.lookup(record.id().as_bytes()).await, Ok(found(&record, 720)));
        }
        server.stop().await.unwrap();
        let clock = clock.in_new_process();
        let server = start(config(disk), &clock).await;
        assert_eq!(server.id(), id, "the key was kept");
        let finder = dial(2, &server).await;
        clock.wait(HOUR / 5);
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 1440)));
        clock.wait(HOUR * 3 / 5);
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok((record.packet().to_vec(), 3600, true)));
    });
}

#[test]
fn quotas_are_told_with_the_time_to_wait() {
    on_one_thread(async {
        let clock = HandClock::new();
        let mut config = config(SimulatedDisk::new());
        let new_ids = Rate { burst: 2, interval: Duration::from_millis(90_500) };
        config.policy = Policy { new_ids, ..Policy::default() };
        let server = start(config, &clock).await;
        // Two callers on one machine are one network.
        let (one, other) = (dial(1, &server).await, dial(2, &server).await);
        let records: Vec<_> = (1..=3).map(|n| record(&key(n), 1, 0)).collect();
        assert_eq!(one.register(&records[0]).await, Ok(Wire::Stored(3600)));
        assert_eq!(other.register(&records[1]).await, Ok(Wire::Stored(3600)));
        let refused = one.register(&records[2]).await.unwrap();
        assert_eq!(refused.code(), "vls.quota");
        let Wire::Refused { retry_after, .. } = refused else { unreachable!() };
        assert_eq!(retry_after, 91, "rounded up: earlier is too early");
        clock.wait(Duration::from_secs(91));
        assert_eq!(one.register(&records[2]).await, Ok(Wire::Stored(3600)));
    });
}

#[test]
fn a_registration_is_answered_only_after_the_disk_has_it() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let clock = HandClock::new();
        let mut config = ServerConfig::new(loopback(), "/data".into());
        config.disk = disk.clone();
        let server = start(config, &clock).await;
        let (vat, finder) = (dial(1, &server).await, dial(2, &server).await);
        let record = record(&key(1), 1, 0);
        let held = hold(&disk);
        let mut registered = Box::pin(vat.register(&record));
        assert_eq!(registered.as_mut().now_or_never(), None);
        // The same session answers a later call, so the registration has arrived and waits.
        vat.now().await.unwrap();
        assert_eq!(registered.as_mut().now_or_never(), None, "acknowledged before it was durable");
        let id = record.id();
        let mut looked_up = Box::pin(finder.lookup(id.as_bytes()));
        assert_eq!(looked_up.as_mut().now_or_never(), None);
        finder.now().await.unwrap();
        assert_eq!(looked_up.as_mut().now_or_never(), None, "told before it was durable");
        drop(held);
        assert_eq!(registered.await, Ok(Wire::Stored(3600)));
        assert_eq!(looked_up.await, Ok(found(&record, 0)));
    });
}

#[test]
fn a_stopping_server_answers_what_is_under_way_and_forgets_nothing() {
    on_one_thread(async {
        let simulated = SimulatedDisk::new();
        let disk = held_disk_over(simulated.clone());
        let clock = HandClock::new();
        let mut held = ServerConfig::new(loopback(), "/data".into());
        held.disk = disk.clone();
        let server = start(held, &clock).await;
        let client = dial(1, &server).await;
        let records: Vec<_> = (1..=50).map(|n| record(&key(n), 1, 0)).collect();
        let held = hold(&disk);
        let mut registered = Box::pin(join_all(records.iter().map(|record| client.register(record))));
        assert!(registered.as_mut().now_or_never().is_none());
        client.now().await.unwrap();
        let mut stopped = Box::pin(server.stop());
        assert!(stopped.as_mut().now_or_never().is_none(), "it waits for the disk");
        drop(held);
        let (outcomes, stopped) = futures::join!(registered, stopped);
        stopped.unwrap();
        for outcome in outcomes {
            assert_eq!(outcome, Ok(Wire::Stored(3600)));
        }
        assert!(matches!(client.session.closed().await, SessionEnd::Peer(_)), "every peer was told");
        let server = start(config(simulated), &clock).await;
        for record in &records {
            let answer = server.registry().lookup(record.id().as_bytes()).await.unwrap();
            assert_eq!(answer.packet.as_deref(), Some(record.packet()));
        }
    });
}

#[test]
fn when_the_disk_is_full_callers_are_told_that_the_server_stops_and_the_owner_why() {
    on_one_thread(async {
        let disk = SimulatedDisk::new();
        let server = start(config(disk.clone()), &HandClock::new()).await;
        let client = dial(1, &server).await;
        disk.inject(disk.calls() + 1, Fault::Full);
        let mut met = None;
        for n in 1..100 {
            if let Err(error) = client.register(&record(&key(n), 1, 0)).await {
                met = Some(error.code);
                break;
            }
        }
        assert_eq!(met, Some(ErrorCode::ServerStopping));
        let error = server.failed().await;
        assert_eq!(error.code(), ErrorCode::CheckpointDiskFull);
        assert_eq!(client.lookup(key(1).id().as_bytes()).await.unwrap_err().code, ErrorCode::ServerStopping);
        server.abandon().await;
    });
}

#[test]
fn a_network_has_only_so_many_sessions_and_gets_a_place_back_when_one_ends() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.sessions_per_network = 2;
        let server = start(config, &HandClock::new()).await;
        let first = dial(1, &server).await;
        let second = dial(2, &server).await;
        first.now().await.unwrap();
        second.now().await.unwrap();
        // The third is told why, at once or when it asks something.
        let refused = match Finder::try_dial(3, server.id(), server.local_address()).await {
            Err(error) => error.code(),
            Ok(third) => third.session.closed().await.code(),
        };
        assert_eq!(refused, ErrorCode::SessionLimit);
        first.session.close();
        first.session.closed().await;
        // The server learns of the end a moment later.
        loop {
            let Ok(third) = Finder::try_dial(3, server.id(), server.local_address()).await else { continue };
            if third.now().await.is_ok() {
                break;
            }
        }
        second.now().await.unwrap();
    });
}

#[test]
fn many_callers_at_once_prove_their_address_and_are_all_served() {
    // More than may connect without proving their address, from one network.
    const CALLERS: u32 = 60;
    on_one_thread(async {
        let (server, _clock) = usual().await;
        let callers = join_all((1..=CALLERS).map(|n| dial(n, &server))).await;
        let records: Vec<_> = (1..=CALLERS).map(|n| record(&key(n), 1, 0)).collect();
        let outcomes = join_all(callers.iter().zip(&records).map(|(caller, record)| caller.register(record))).await;
        assert_eq!(outcomes, vec![Ok(Wire::Stored(3600)); records.len()]);
    });
}

#[test]
fn a_session_that_asks_nothing_is_closed_and_one_that_asks_is_not() {
    on_one_thread(async {
        let mut config = config(SimulatedDisk::new());
        config.idle_session = Duration::from_millis(300);
        let server = start(config, &HandClock::new()).await;
        let (silent, busy) = (dial(1, &server).await, dial(2, &server).await);
        let end = silent.session.closed();
        futures::pin_mut!(end);
        let end = loop {
            // One call after the other until the silent session ends.
            match futures::future::select(&mut end, Box::pin(busy.now())).await {
                futures::future::Either::Left((end, _)) => break end,
                futures::future::Either::Right((answer, _)) => assert!(answer.is_ok()),
            }
        };
        assert!(matches!(end, SessionEnd::Peer(_)), "{end}");
        busy.now().await.unwrap();
    });
}

#[test]
fn a_port_that_is_in_use_and_a_folder_that_is_in_use_are_told_apart() {
    on_one_thread(async {
        let disk = SimulatedDisk::new();
        let clock = HandClock::new();
        let server = start(config(disk.clone()), &clock).await;
        let same_folder = Server::start(config(disk), clock.clone()).await.unwrap_err();
        assert_eq!(same_folder.code(), ErrorCode::ServerRunning);
        let mut same_port = config(SimulatedDisk::new());
        same_port.listen = server.local_address();
        let same_port = Server::start(same_port, clock).await.unwrap_err();
        assert_eq!(same_port.code(), ErrorCode::NetBind);
    });
}
