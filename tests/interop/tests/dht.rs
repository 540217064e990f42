//! pkarr's own client with nothing but the Mainline DHT, and servers that meet it there: all of them in a network of a few
//! nodes on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use interop::{Server, now, vat_record};
use mainline::Testnet;
use pkarr::{Client, Keypair, PublicKey, ResolvePolicy, SignedPacket, Timestamp, relay_client::RelayClient};
use schemas::{IdentityKey, SignedRecord};

const PATIENCE: Duration = Duration::from_secs(60);

fn testnet() -> Testnet {
    Testnet::builder(6).build().unwrap()
}

/// A client that knows no relay and remembers nothing yet.
fn client(testnet: &Testnet) -> Client {
    let mut builder = Client::builder();
    builder.no_default_network().bootstrap(&testnet.bootstrap).dht(|dht| {
        dht.bind_address = Some(Ipv4Addr::LOCALHOST);
        dht.port = Some(0);
        dht
    });
    builder.build().unwrap()
}

/// A client that knows a server and not the DHT, below what remembers.
fn relay(server: &Server) -> RelayClient {
    RelayClient::new(server.relay().parse().unwrap(), reqwest::Client::new(), PATIENCE).unwrap()
}

fn public_key(record: &SignedRecord) -> PublicKey {
    PublicKey::try_from(record.id().as_bytes()).unwrap()
}

/// What a client finds in the DHT, in the end.
async fn found(testnet: &Testnet, public_key: &PublicKey) -> SignedPacket {
    let begun = Instant::now();
    loop {
        if let Ok(packet) = client(testnet).resolve(public_key, ResolvePolicy::NetworkOnly).await {
            return packet;
        }
        assert!(begun.elapsed() < PATIENCE, "it is never there");
    }
}

#[tokio::test]
async fn what_a_vat_registers_with_a_server_pkarrs_client_finds_in_the_dht() {
    let testnet = testnet();
    let server = Server::start_in_dht(&testnet.bootstrap);
    let record = vat_record(&IdentityKey::from_seed(&[1; 32]), 3, now());
    let public_key = public_key(&record);
    let packet = SignedPacket::from_relay_payload(&public_key, &record.packet().to_vec().into()).unwrap();
    relay(&server).publish(&packet).await.unwrap();
    let found = found(&testnet, &public_key).await;
    assert_eq!(found.as_bytes(), packet.as_bytes());
    assert_eq!(found.resource_records("_vat").count(), 7);
}

#[tokio::test]
async fn what_pkarrs_client_publishes_in_the_dht_a_server_answers_by_http() {
    let testnet = testnet();
    let server = Server::start_in_dht(&testnet.bootstrap);
    let keypair = Keypair::from_secret_key(&[2; 32]);
    let packet = SignedPacket::builder()
        .txt("_example".try_into().unwrap(), "x=y".try_into().unwrap(), 30)
        .timestamp(Timestamp::now())
        .sign(&keypair)
        .unwrap();
    client(&testnet).publish(&packet).await.unwrap();
    let mut answers = Vec::new();
    // Who asks for what a server holds is given nothing else.
    for policy in [ResolvePolicy::CacheOnly, ResolvePolicy::NetworkOnly, ResolvePolicy::CacheOnly] {
        let answer = relay(&server).resolve(&keypair.public_key(), policy, None).await;
        answers.push(answer.ok().map(|packet| packet.as_bytes().to_vec()));
    }
    let it = Some(packet.as_bytes().to_vec());
    assert_eq!(answers, [None, it.clone(), it]);
}

#[tokio::test]
async fn a_server_with_the_dht_alone_answers_what_was_registered_with_another_that_is_gone() {
    let testnet = testnet();
    let (first, second) = (Server::start_in_dht(&testnet.bootstrap), Server::start_in_dht(&testnet.bootstrap));
    let record = vat_record(&IdentityKey::from_seed(&[3; 32]), 1, now());
    let public_key = public_key(&record);
    let packet = SignedPacket::from_relay_payload(&public_key, &record.packet().to_vec().into()).unwrap();
    relay(&first).publish(&packet).await.unwrap();
    found(&testnet, &public_key).await;
    drop(first);
    let answer = relay(&second).resolve(&public_key, ResolvePolicy::NetworkOnly, None).await.unwrap();
    assert_eq!(answer.as_bytes(), packet.as_bytes());
}
