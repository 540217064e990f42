//! pkarr's own clients, unchanged, with the server as their relay.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use interop::{Server, now, vat_record};
use pkarr::{
    Client, Keypair, PublicKey, ResolvePolicy, SignedPacket, Timestamp, dns,
    errors::{PublishError, ResolveError},
    relay_client::{RelayClient, RelayError},
};
use schemas::IdentityKey;

const POLICIES: [ResolvePolicy; 3] = [ResolvePolicy::CacheOnly, ResolvePolicy::CacheFirst, ResolvePolicy::NetworkOnly];

const PATIENCE: Duration = Duration::from_secs(20);

/// A client that remembers nothing yet.
fn client(server: &Server) -> Client {
    Client::builder().no_default_network().relays(&[server.relay()]).unwrap().build().unwrap()
}

/// The layer below it, which tells one refusal from another.
fn relay(server: &Server) -> RelayClient {
    RelayClient::new(server.relay().parse().unwrap(), reqwest::Client::new(), PATIENCE).unwrap()
}

fn foreign_at(keypair: &Keypair, timestamp: Timestamp, text: &str) -> SignedPacket {
    SignedPacket::builder()
        .txt("_example".try_into().unwrap(), text.try_into().unwrap(), 30)
        .address(".".try_into().unwrap(), "192.0.2.9".parse().unwrap(), 300)
        .timestamp(timestamp)
        .sign(keypair)
        .unwrap()
}

fn micros(timestamp: schemas::Timestamp) -> Timestamp {
    timestamp.as_micros().into()
}

/// One key, as we and as they hold it.
fn keys(seed: u8) -> (IdentityKey, Keypair) {
    let key = IdentityKey::from_seed(&[seed; 32]);
    let keypair = Keypair::from_secret_key(&key.seed());
    (key, keypair)
}

/// A vat's record, in their hands.
fn vat_packet(key: &IdentityKey, epoch: u64, timestamp: schemas::Timestamp) -> SignedPacket {
    let record = vat_record(key, epoch, timestamp);
    let public_key = PublicKey::try_from(key.id().as_bytes()).unwrap();
    SignedPacket::from_relay_payload(&public_key, &record.packet().to_vec().into()).unwrap()
}

fn strings(packet: &SignedPacket, name: &str) -> Vec<String> {
    let text = |record: &dns::ResourceRecord<'_>| match &record.rdata {
        dns::rdata::RData::TXT(text) => String::try_from(text.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    packet.resource_records(name).map(text).collect()
}

#[tokio::test]
async fn what_it_publishes_it_resolves_by_every_policy_also_after_the_server_was_killed() {
    let mut server = Server::start();
    let (_, keypair) = keys(1);
    let packet = foreign_at(&keypair, Timestamp::now(), "x=y");
    client(&server).publish(&packet).await.unwrap();
    for _ in 0..2 {
        for policy in POLICIES {
            let found = client(&server).resolve(&keypair.public_key(), policy).await.unwrap();
            assert_eq!(found.as_bytes(), packet.as_bytes(), "{policy}");
            assert_eq!(strings(&found, "_example"), ["x=y"]);
        }
        server = server.killed_and_restarted();
    }
}

#[tokio::test]
async fn it_resolves_a_vats_record_and_reads_what_stands_in_it() {
    let server = Server::start();
    let (key, keypair) = keys(2);
    client(&server).publish(&vat_packet(&key, 3, now())).await.unwrap();
    for policy in POLICIES {
        let found = client(&server).resolve(&keypair.public_key(), policy).await.unwrap();
        let strings = strings(&found, "_vat");
        assert_eq!(strings[..5], ["v=1", "e=3", "t=41", "h=k7q2m9", "st=live"], "{policy}");
        assert_eq!(strings[6..], ["a=quic:192.0.2.7:4433"]);
    }
}

#[tokio::test]
async fn who_is_not_known_is_not_found_by_any_policy() {
    let server = Server::start();
    for policy in POLICIES {
        let error = client(&server).resolve(&keys(3).1.public_key(), policy).await.unwrap_err();
        assert_eq!(error, ResolveError::NotFound, "{policy}");
    }
}

#[tokio::test]
async fn an_older_packet_is_not_the_most_recent_and_the_same_again_is_welcome() {
    let server = Server::start();
    let (_, keypair) = keys(4);
    let start = Timestamp::now();
    let [older, newer] = [1, 2].map(|time| foreign_at(&keypair, start + time, "x"));
    for _ in 0..3 {
        relay(&server).publish(&newer).await.unwrap();
    }
    assert!(matches!(relay(&server).publish(&older).await, Err(RelayError::NotMostRecent)));
    assert_eq!(client(&server).publish(&older).await, Err(PublishError::NotMostRecent));
    relay(&server).publish(&foreign_at(&keypair, start + 3, "x")).await.unwrap();
}

#[tokio::test]
async fn no_packet_of_its_takes_the_place_of_a_vats_record_however_late_it_is() {
    let server = Server::start();
    let (key, keypair) = keys(5);
    let before = foreign_at(&keypair, Timestamp::now(), "before");
    relay(&server).publish(&before).await.unwrap();
    // Signed a minute before.
    let record = vat_packet(&key, 1, now() - Duration::from_secs(60));
    relay(&server).publish(&record).await.unwrap();
    let after = foreign_at(&keypair, Timestamp::now() + 60_000_000, "after");
    for late in [&before, &after] {
        assert!(matches!(relay(&server).publish(late).await, Err(RelayError::NotMostRecent)));
        assert_eq!(client(&server).publish(late).await, Err(PublishError::NotMostRecent));
    }
    let found = client(&server).resolve(&keypair.public_key(), ResolvePolicy::NetworkOnly).await.unwrap();
    assert_eq!(found.as_bytes(), record.as_bytes());
}

#[tokio::test]
async fn it_hears_of_what_is_newer_than_it_knows_and_of_nothing_else() {
    let server = Server::start();
    let (_, keypair) = keys(6);
    let (public_key, start) = (keypair.public_key(), micros(now()));
    let packet = foreign_at(&keypair, start, "x");
    relay(&server).publish(&packet).await.unwrap();
    for policy in POLICIES {
        let resolve = |known| {
            let (relay, public_key) = (relay(&server), public_key.clone());
            async move { relay.resolve(&public_key, policy, Some(known)).await }
        };
        for known in [start, start + 1, start + 5_000_000] {
            assert!(matches!(resolve(known).await, Err(RelayError::NotFound)), "{policy}");
        }
        // The header has whole seconds, and the same second may have brought something newer.
        for known in [start - 1, start - 5_000_000] {
            assert_eq!(resolve(known).await.unwrap().as_bytes(), packet.as_bytes(), "{policy}");
        }
    }
}

#[tokio::test]
async fn a_packet_with_something_else_at_the_name_of_a_record_is_a_bad_request() {
    let server = Server::start();
    let (_, keypair) = keys(7);
    for text in ["v=1", "v=2", "hello"] {
        let packet = SignedPacket::builder().txt("_vat".try_into().unwrap(), text.try_into().unwrap(), 30);
        let packet = packet.sign(&keypair).unwrap();
        assert!(matches!(relay(&server).publish(&packet).await, Err(RelayError::BadRequest)), "{text}");
    }
    let ahead = foreign_at(&keypair, Timestamp::now() + 3_600_000_000, "x");
    assert!(matches!(relay(&server).publish(&ahead).await, Err(RelayError::BadRequest)), "an hour ahead");
}

/// The client that compares and swaps, which later ones have given up.
mod swapping {
    use pkarr_swapping::{
        Client, Keypair, SignedPacket, Timestamp,
        errors::{ConcurrencyError, PublishError},
    };

    use super::Server;

    fn client(server: &Server) -> Client {
        Client::builder().no_default_network().relays(&[server.relay()]).unwrap().build().unwrap()
    }

    fn packet(keypair: &Keypair, timestamp: Timestamp) -> SignedPacket {
        let builder = SignedPacket::builder().txt("_example".try_into().unwrap(), "x=y".try_into().unwrap(), 30);
        builder.timestamp(timestamp).sign(keypair).unwrap()
    }

    #[tokio::test]
    async fn it_replaces_exactly_the_packet_that_it_knows() {
        let server = Server::start();
        let keypair = Keypair::from_secret_key(&[8; 32]);
        let start = Timestamp::now();
        let [first, second, third] = [1, 2, 3].map(|time| packet(&keypair, start + time));
        client(&server).publish(&first, None).await.unwrap();
        let known = client(&server).resolve_most_recent(&keypair.public_key()).await.unwrap();
        assert_eq!(known.timestamp(), first.timestamp());
        client(&server).publish(&second, Some(known.timestamp())).await.unwrap();
        let failed = client(&server).publish(&third, Some(known.timestamp())).await;
        assert!(matches!(failed, Err(PublishError::Concurrency(ConcurrencyError::CasFailed))), "{failed:?}");
        let known = client(&server).resolve_most_recent(&keypair.public_key()).await.unwrap();
        assert_eq!(known.as_bytes(), second.as_bytes());
        client(&server).publish(&third, Some(known.timestamp())).await.unwrap();
        let older = client(&server).publish(&second, None).await;
        assert!(matches!(older, Err(PublishError::Concurrency(ConcurrencyError::NotMostRecent))), "{older:?}");
        assert_eq!(client(&server).resolve(&keypair.public_key()).await.unwrap().as_bytes(), third.as_bytes());
    }

    #[tokio::test]
    async fn of_many_that_publish_at_once_the_latest_stays() {
        let server = Server::start();
        let keypair = Keypair::from_secret_key(&[9; 32]);
        let start = Timestamp::now();
        let packets: Vec<_> = (1..=16).map(|time| packet(&keypair, start + time)).collect();
        let publishing: Vec<_> = packets
            .iter()
            .cloned()
            .map(|packet| {
                let client = client(&server);
                tokio::spawn(async move { client.publish(&packet, None).await })
            })
            .collect();
        for task in publishing {
            match task.await.unwrap() {
                Ok(()) | Err(PublishError::Concurrency(ConcurrencyError::NotMostRecent)) => {}
                other => panic!("{other:?}"),
            }
        }
        let latest = client(&server).resolve_most_recent(&keypair.public_key()).await.unwrap();
        assert_eq!(latest.as_bytes(), packets[15].as_bytes());
    }
}
