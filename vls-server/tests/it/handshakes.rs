//! A flood of real handshakes beside honest lookups: handshakes have their share of the thread's time, and those who
//! ask are answered.

use std::{net::SocketAddr, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use futures::{StreamExt, stream::FuturesUnordered};
use transport::{DialError, Endpoint, EndpointConfig, limits::HANDSHAKES_WAITING_PER_NETWORK};
use vls_server::{Server, ServerConfig};

use crate::{
    finder::{Finder, Wire},
    http_client::HttpClient,
    local::{HandClock, key, on_one_thread, record},
    over_datagrams::Asker,
};

const PATIENCE: Duration = Duration::from_secs(60);

const FLOOD: usize = 400;

#[test]
fn beyond_their_share_of_the_time_handshakes_wait_or_are_refused_and_lookups_are_answered() {
    on_one_thread(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut endpoint = EndpointConfig::default();
        // At an hour each there is time for two, the second on credit.
        (endpoint.handshake_cost, endpoint.handshake_burst) = (Duration::from_hours(1), Duration::from_hours(1));
        let endpoint = Endpoint::bind(&key(1000), any, endpoint).unwrap();
        let mut config = ServerConfig::new(any, "/data".into());
        (config.disk, config.http) = (SimulatedDisk::new(), Some(any));
        let server = Server::start_on(endpoint, config, HandClock::new()).await.unwrap();
        let vat = Finder::dial(1, server.id(), server.local_address()).await;
        let finder = Finder::dial(2, server.id(), server.local_address()).await;
        let record = record(&key(1), 1, 0);
        assert_eq!(vat.register(&record).await, Ok(Wire::Stored(3600)));
        let (asker, id) = (Asker::of(&server).await, *record.id().as_bytes());

        let flooder = Endpoint::client(&key(3)).unwrap();
        let dial = |_| flooder.dial(server.id(), server.local_address(), PATIENCE);
        let mut flood: FuturesUnordered<_> = (0..FLOOD).map(dial).collect();
        for nonce in 0..(FLOOD - HANDSHAKES_WAITING_PER_NETWORK) as u64 {
            let error = flood.next().await.unwrap().unwrap_err();
            assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
            // Between any two of them, both ways to ask: without a session, and over one.
            if nonce % 16 == 0 {
                assert!(asker.ask(id, nonce).await.ends_with(record.packet()));
                assert_eq!(finder.lookup(&id).await.unwrap().0, record.packet());
            }
        }
        assert_eq!(flood.len(), HANDSHAKES_WAITING_PER_NETWORK, "the rest wait for their turn");
        // Of those whom quinn refuses before anybody sees them nothing is counted, and who asks again before he has heard
        // the answer is counted twice.
        let refused = server.status().handshakes_refused;
        assert!(refused > 0);
        let shown = HttpClient::to(server.http_address().unwrap()).await.get("/metrics").await.text().to_owned();
        let counted = |outcome: &str| -> u64 {
            let name = format!("vls_handshakes_total{{outcome=\"{outcome}\"}} ");
            shown
                .lines()
                .find_map(|line| line.strip_prefix(&name))
                .unwrap_or_else(|| panic!("{shown}"))
                .parse()
                .unwrap()
        };
        assert_eq!(counted("begun"), 2);
        assert!(counted("refused") >= refused);
        assert_eq!(server.status().sessions, 2, "nobody who was there was sent away");
        drop(flood);
        server.stop().await.unwrap();
    });
}

#[test]
fn after_a_flood_those_who_waited_are_let_in_in_their_turn() {
    on_one_thread(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut endpoint = EndpointConfig::default();
        // No credit at all: one after another.
        endpoint.handshake_burst = Duration::ZERO;
        let endpoint = Endpoint::bind(&key(1000), any, endpoint).unwrap();
        let mut config = ServerConfig::new(any, "/data".into());
        config.disk = SimulatedDisk::new();
        let server = Server::start_on(endpoint, config, HandClock::new()).await.unwrap();
        let flooder = Endpoint::client(&key(3)).unwrap();
        let dial = |_| flooder.dial(server.id(), server.local_address(), PATIENCE);
        let flood: Vec<_> = (0..HANDSHAKES_WAITING_PER_NETWORK).map(dial).collect();
        let dialled = futures::future::join_all(flood).await;
        assert!(dialled.iter().all(Result::is_ok), "{dialled:?}");
        assert_eq!(server.status().handshakes_refused, 0);
        server.stop().await.unwrap();
    });
}
