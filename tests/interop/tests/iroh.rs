//! iroh's own publisher, resolver and DNS lookup, unchanged, with the server as their `dns.iroh.link`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{net::SocketAddr, time::Duration};

use interop::{ORIGIN, Server, now, vat_record};
use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr,
    address_lookup::{
        AddrFilter, AddressLookup, AddressLookupBuilder, DnsAddressLookup, Item, PkarrError, PkarrPublisher,
        PkarrRelayClient, PkarrResolver,
    },
    dns::DnsResolver,
    endpoint::presets,
    endpoint_info::EndpointInfo,
    tls::{CaTlsConfig, default_provider},
};
use n0_future::StreamExt;
use schemas::{IdentityKey, SignedPacket, SignedRecord};

const PROTOCOL: &[u8] = b"interop/1";

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time to live of what is published, in seconds.
const TTL: u32 = 30;

/// One key, as we and as they hold it.
fn keys(seed: u8) -> (IdentityKey, SecretKey) {
    (IdentityKey::from_seed(&[seed; 32]), SecretKey::from_bytes(&[seed; 32]))
}

fn address() -> SocketAddr {
    "192.0.2.9:4433".parse().unwrap()
}

fn client(server: &Server) -> PkarrRelayClient {
    // There is nothing to verify: it is asked in the clear, and what it says is signed.
    let tls = CaTlsConfig::default().client_config(default_provider()).unwrap();
    PkarrRelayClient::new(server.relay_of_iroh().parse().unwrap(), tls, DnsResolver::new())
}

fn resolver(server: &Server) -> PkarrResolver {
    let tls = CaTlsConfig::default().client_config(default_provider()).unwrap();
    PkarrResolver::builder(server.relay_of_iroh().parse().unwrap()).build(tls)
}

fn dns(server: &Server) -> DnsAddressLookup {
    DnsAddressLookup::builder(ORIGIN.to_owned()).dns_resolver(DnsResolver::with_nameserver(server.dns)).build()
}

/// What a lookup gives first.
async fn look_up(lookup: &impl AddressLookup, id: EndpointId) -> Result<Item, String> {
    let mut items = lookup.resolve(id).expect("it resolves");
    let found = tokio::time::timeout(PATIENCE, items.next()).await.expect("an answer").expect("an item");
    found.map_err(|error| format!("{error:?}"))
}

fn info(key: &SecretKey) -> EndpointInfo {
    EndpointInfo::new(key.public())
        .with_relay_url("https://relay.example".parse().unwrap())
        .with_ip_addrs(vec![address()])
}

fn assert_is(found: &Item, expected: &EndpointInfo) {
    assert_eq!(found.endpoint_id(), expected.endpoint_id);
    assert_eq!(found.endpoint_info().relay_urls().collect::<Vec<_>>(), expected.relay_urls().collect::<Vec<_>>());
    assert_eq!(found.endpoint_info().ip_addrs().collect::<Vec<_>>(), expected.ip_addrs().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_client_publishes_its_resolvers_find_over_http_and_dns_also_after_the_server_was_killed() {
    let server = Server::start();
    let (_, key) = keys(1);
    let packet = info(&key).to_pkarr_signed_packet(&key, TTL).unwrap();
    client(&server).publish(&packet).await.unwrap();
    client(&server).publish(&packet).await.expect("the same again is welcome");
    let server = server.killed_and_restarted();
    assert_eq!(client(&server).resolve(key.public()).await.unwrap(), packet);
    assert_is(&look_up(&resolver(&server), key.public()).await.unwrap(), &info(&key));
    assert_is(&look_up(&dns(&server), key.public()).await.unwrap(), &info(&key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_is_not_found() {
    let server = Server::start();
    let (_, key) = keys(2);
    look_up(&resolver(&server), key.public()).await.unwrap_err();
    look_up(&dns(&server), key.public()).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vats_record_verifies_for_it_says_nothing_of_iroh_and_stays() {
    let server = Server::start();
    let (vat, key) = keys(3);
    let record = vat_record(&vat, 1, now() - Duration::from_secs(60));
    let packet = iroh_packet(&record, &key);
    client(&server).publish(&packet).await.unwrap();
    let found = client(&server).resolve(key.public()).await.expect("it verifies");
    assert_eq!(found.txt_records("_vat")[..3], ["v=1", "e=1", "t=41"]);
    assert!(found.txt_records("_iroh").is_empty());
    // There is nobody to dial.
    for lookup in [look_up(&resolver(&server), key.public()).await, look_up(&dns(&server), key.public()).await] {
        assert!(lookup.is_err() || lookup.as_ref().is_ok_and(|found| found.endpoint_info().addrs().next().is_none()));
    }
    // An endpoint with the vat's key does not take the vat's place, although it signs later.
    let late = info(&key).to_pkarr_signed_packet(&key, TTL).unwrap();
    match client(&server).publish(&late).await {
        Err(PkarrError::HttpRequest { status, .. }) => assert_eq!(status, 409),
        other => panic!("{other:?}"),
    }
    assert_eq!(client(&server).resolve(key.public()).await.unwrap(), packet);
}

fn iroh_packet(record: &SignedRecord, key: &SecretKey) -> iroh_dns::pkarr::SignedPacket {
    iroh_dns::pkarr::SignedPacket::from_relay_payload(&key.public(), record.packet()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vat_that_also_names_its_iroh_endpoint_is_found_as_both() {
    let server = Server::start();
    let (vat, key) = keys(4);
    // As the owner of a vat may have it: the vat's strings, and iroh's beside them.
    let record = vat_record(&vat, 1, now());
    let ours = pkarr_packet(&vat, &record);
    let mut builder = pkarr::SignedPacket::builder();
    for record in ours.all_resource_records() {
        builder = builder.record(record.clone());
    }
    for text in info(&key).to_txt_strings() {
        builder = builder.txt("_iroh".try_into().unwrap(), text.as_str().try_into().unwrap(), TTL);
    }
    let both = builder.sign(&pkarr::Keypair::from_secret_key(&vat.seed())).unwrap().to_relay_payload();
    let packet = iroh_dns::pkarr::SignedPacket::from_relay_payload(&key.public(), &both).unwrap();
    client(&server).publish(&packet).await.unwrap();
    assert_is(&look_up(&resolver(&server), key.public()).await.unwrap(), &info(&key));
    assert_is(&look_up(&dns(&server), key.public()).await.unwrap(), &info(&key));
    let found = client(&server).resolve(key.public()).await.unwrap();
    let read = SignedRecord::verify(vat.id(), &found.to_relay_payload()).unwrap();
    assert_eq!(read.record(), record.record());
}

fn pkarr_packet(vat: &IdentityKey, record: &SignedRecord) -> pkarr::SignedPacket {
    let public_key = pkarr::PublicKey::try_from(vat.id().as_bytes()).unwrap();
    pkarr::SignedPacket::from_relay_payload(&public_key, &record.packet().to_vec().into()).unwrap()
}

/// Endpoints that never leave this machine.
async fn endpoint(lookup: impl AddressLookupBuilder, key: SecretKey) -> Endpoint {
    let builder = Endpoint::builder(presets::Minimal).secret_key(key).relay_mode(RelayMode::Disabled);
    let builder = builder.clear_ip_transports().bind_addr("127.0.0.1:0").unwrap();
    builder.alpns(vec![PROTOCOL.to_vec()]).address_lookup(lookup).bind().await.unwrap()
}

/// Dials the id of `listening`, and hears from it.
async fn say_hello(dialling: &Endpoint, listening: &Endpoint) -> Result<(), String> {
    let accepting = async {
        let connection = listening.accept().await.unwrap().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.finish().unwrap();
        connection.closed().await;
    };
    let dialled = async {
        let connection = dialling.connect(listening.id(), PROTOCOL).await.map_err(|error| format!("{error:?}"))?;
        let mut stream = connection.accept_uni().await.unwrap();
        assert_eq!(stream.read_to_end(16).await.unwrap(), b"hello");
        connection.close(0_u32.into(), b"");
        Ok(())
    };
    let both = async { tokio::join!(accepting, dialled).1 };
    tokio::time::timeout(PATIENCE, both).await.map_err(|_| "nothing within a minute".to_owned())?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_publishes_itself_and_others_that_know_its_id_alone_connect_through_http_and_dns() {
    let server = Server::start();
    let relay = server.relay_of_iroh().parse().unwrap();
    let publisher = PkarrPublisher::builder(relay).addr_filter(AddrFilter::unfiltered());
    let listening = endpoint(publisher, keys(5).1).await;
    let own: EndpointAddr = listening.addr();
    assert!(own.addrs.iter().any(|address| matches!(address, TransportAddr::Ip(_))), "{own:?}");
    until_published(&server, &listening).await;

    let over_http = PkarrResolver::builder(server.relay_of_iroh().parse().unwrap());
    let dialling = endpoint(over_http, keys(6).1).await;
    say_hello(&dialling, &listening).await.unwrap();
    dialling.close().await;

    let over_dns = DnsAddressLookup::builder(ORIGIN.to_owned()).dns_resolver(DnsResolver::with_nameserver(server.dns));
    let dialling = endpoint(over_dns, keys(7).1).await;
    say_hello(&dialling, &listening).await.unwrap();
    dialling.close().await;

    let held = client(&server).resolve(listening.id()).await.unwrap();
    let read = SignedPacket::verify(keys(5).0.id(), &held.to_relay_payload()).unwrap();
    assert!(matches!(read, SignedPacket::Foreign(_)), "it says nothing of a vat");
    listening.close().await;
}

/// Its publisher works in the background and tells nobody: asks until the server has it.
async fn until_published(server: &Server, endpoint: &Endpoint) {
    let asked = async {
        while !look_up(&resolver(server), endpoint.id())
            .await
            .is_ok_and(|found| found.endpoint_info().ip_addrs().next().is_some())
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("it is published");
}
