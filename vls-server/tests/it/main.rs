//! Behaviour of the location server through its public interface: the rules alone, the rules with a disk, the
//! carriers QUIC, datagrams, HTTP and DNS, and the program as a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod checks;
mod compat;
mod contrib;
mod dht;
mod dns_core;
mod durability;
mod finder;
mod foreign;
mod handshakes;
mod held_disk;
mod http_client;
mod http_limits;
mod local;
mod operations;
mod over_datagrams;
mod over_dns;
mod over_http;
mod over_quic;
mod peers;
mod program;
mod registry_admission;
mod registry_learned;
mod registry_leases;
mod registry_model;
mod registry_rules;
mod reload;
mod sandboxed;
mod supervised;
mod watches;
mod world;
