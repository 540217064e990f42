//! Cold lookups as a client without a session makes them: bytes in one datagram, bytes in another.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use schemas::datagram::{Known, LookupAnswer, LookupQuestion, MAX_ANSWER_BYTES, QUESTION_BYTES};
use tokio::{net::UdpSocket, task::spawn_local, time::timeout};
use vls_server::{Server, ServerConfig};

use crate::{
    finder::{Finder, Wire},
    held_disk::{held_disk_over, hold},
    local::{HandClock, START, key, on_one_thread, record},
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Asker(UdpSocket);

impl Asker {
    pub(crate) async fn of(server: &Server) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        socket.connect(server.local_address()).await.unwrap();
        Self(socket)
    }

    async fn send(&self, id: [u8; 32], nonce: u64) {
        let mut question = Vec::new();
        LookupQuestion { nonce: nonce.to_be_bytes(), id }.write(&mut question);
        self.0.send(&question).await.unwrap();
    }

    async fn answer(&self) -> Vec<u8> {
        let mut bytes = [0; 2000];
        let length = timeout(PATIENCE, self.0.recv(&mut bytes)).await.expect("an answer").unwrap();
        bytes[..length].to_vec()
    }

    /// Asks, and takes the answer to that question alone.
    pub(crate) async fn ask(&self, id: [u8; 32], nonce: u64) -> Vec<u8> {
        self.send(id, nonce).await;
        let answer = self.answer().await;
        assert_eq!(LookupAnswer::read(&answer).expect("an answer").nonce, nonce.to_be_bytes());
        answer
    }
}

async fn server(disk: Arc<dyn checkpoint::Disk>) -> (Server, Rc<HandClock>) {
    let clock = HandClock::new();
    let mut config = ServerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), "/data".into());
    config.disk = disk;
    (Server::start(config, clock.clone()).await.unwrap(), clock)
}

#[test]
fn what_a_vat_registers_is_found_without_a_session() {
    on_one_thread(async {
        let (server, clock) = server(SimulatedDisk::new()).await;
        let asker = Asker::of(&server).await;
        let record = record(&key(1), 1, 0);
        let id = *record.id().as_bytes();
        let nothing = asker.ask(id, 1).await;
        let read = LookupAnswer::read(&nothing).unwrap();
        assert_eq!((read.known, read.time), (None, START));

        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        assert_eq!(vat.register(&record).await, Ok(Wire::Stored(3600)));
        let packet = record.packet();
        for (wait, age, expired) in [(0, 0, false), (1800, 1800, false), (1800, 3600, true)] {
            clock.wait(Duration::from_secs(wait));
            let answer = asker.ask(id, 2).await;
            let known = LookupAnswer::read(&answer).unwrap().known;
            assert_eq!(known, Some(Known { packet, age, expired }));
        }
        server.stop().await.unwrap();
    });
}

#[test]
fn nobody_is_sent_more_than_was_asked_for_and_nonsense_is_not_answered() {
    on_one_thread(async {
        let (server, _clock) = server(SimulatedDisk::new()).await;
        let asker = Asker::of(&server).await;
        let mut question = Vec::new();
        LookupQuestion { nonce: [1; 8], id: [2; 32] }.write(&mut question);
        for length in [0, 1, 44, 45, MAX_ANSWER_BYTES - 1, QUESTION_BYTES - 1] {
            asker.0.send(&question[..length]).await.unwrap();
        }
        for (position, byte) in [(0, 0x09), (0, 0x88), (4, 2), (2, b'x')] {
            let mut other = question.clone();
            other[position] = byte;
            asker.0.send(&other).await.unwrap();
        }
        // What is answered comes behind all of them.
        let answer = asker.ask([2; 32], 7).await;
        assert!(answer.len() < QUESTION_BYTES);
    });
}

#[test]
fn what_is_not_durable_is_answered_when_it_is_and_not_before() {
    on_one_thread(async {
        let disk = held_disk_over(SimulatedDisk::new());
        let (server, _clock) = server(disk.clone()).await;
        let asker = Asker::of(&server).await;
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        let record = record(&key(1), 1, 0);
        let id = *record.id().as_bytes();
        let held = hold(&disk);
        let registering = spawn_local({
            let record = record.clone();
            async move { vat.register(&record).await }
        });
        while server.registry().see(&id, server.registry().clock().now(), |seen| seen != vls_server::Seen::Early) {
            tokio::task::yield_now().await;
        }
        asker.send(id, 1).await;
        // Another id is answered at once, so the first question has been looked at, too.
        assert_eq!(LookupAnswer::read(&asker.ask([9; 32], 2).await).unwrap().known, None);
        assert!(!registering.is_finished());
        drop(held);
        let answer = asker.answer().await;
        let answer = LookupAnswer::read(&answer).unwrap();
        assert_eq!(answer.nonce, 1_u64.to_be_bytes());
        assert_eq!(answer.known, Some(Known { packet: record.packet(), age: 0, expired: false }));
        assert_eq!(registering.await.unwrap(), Ok(Wire::Stored(3600)));
    });
}

#[test]
fn a_thousand_questions_of_many_are_all_answered_to_whom_they_belong() {
    on_one_thread(async {
        let (server, _clock) = server(SimulatedDisk::new()).await;
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        let records: Vec<_> = (1..=10).map(|n| record(&key(n), 1, 0)).collect();
        for record in &records {
            assert_eq!(vat.register(record).await, Ok(Wire::Stored(3600)));
        }
        let mut askers = Vec::new();
        for _ in 0..10 {
            askers.push(Asker::of(&server).await);
        }
        for round in 0..10_u64 {
            for asker in &askers {
                for (n, record) in (0..).zip(&records) {
                    asker.send(*record.id().as_bytes(), round << 8 | n).await;
                }
            }
            for asker in &askers {
                for (n, record) in (0..).zip(&records) {
                    let answer = asker.answer().await;
                    let answer = LookupAnswer::read(&answer).unwrap();
                    assert_eq!(answer.nonce, (round << 8 | n).to_be_bytes());
                    assert_eq!(answer.known.unwrap().packet, record.packet());
                }
            }
        }
    });
}
