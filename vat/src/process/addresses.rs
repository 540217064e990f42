//! Which addresses a vat publishes.
//!
//! The configured ones if there are any. Otherwise the address that it listens on, or, when it listens on
//! all of them, those that this machine would use to reach the location servers and the rest of the
//! network: the system is asked by connecting a UDP socket, which sends nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use schemas::Address;
use transport::Endpoint;
use vls_client::Resolver;

use crate::limits::NAME_DEADLINE;

/// Documentation addresses (RFC 5737, RFC 3849): a way to ask for the default route without meaning anybody.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Finds the addresses to publish.
pub(super) async fn find(endpoint: &Endpoint, resolver: &Resolver, advertise: &[Address]) -> Vec<Address> {
    if !advertise.is_empty() {
        return advertise.to_vec();
    }
    let local = endpoint.local_address();
    if !local.ip().is_unspecified() {
        return vec![quic(local)];
    }
    let mut found: Vec<IpAddr> = Vec::new();
    let anywhere = ANYWHERE.map(|ip| SocketAddr::new(ip, 9));
    for target in resolver.locate_servers(NAME_DEADLINE).await.into_iter().chain(anywhere) {
        if let Some(ip) = source_towards(target)
            && usable_from(local, ip)
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    if found.is_empty() {
        // No network at all: the vat can still be found on this machine.
        found.push(Ipv4Addr::LOCALHOST.into());
    }
    found.into_iter().map(|ip| quic(SocketAddr::new(ip, local.port()))).collect()
}

fn quic(address: SocketAddr) -> Address {
    Address::Quic { host: address.ip().to_string(), port: address.port() }
}

/// The address from which this machine would send to `target`.
fn source_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// A socket on `0.0.0.0` is not reached through IPv6; one on `::` is reached through both.
fn usable_from(local: SocketAddr, ip: IpAddr) -> bool {
    !ip.is_unspecified() && (local.is_ipv6() || ip.is_ipv4())
}

/// The `host:port` forms, for hints in a reference, of addresses in a record's form.
pub(crate) fn publishable_addresses(addresses: &[String]) -> Vec<String> {
    addresses.iter().filter_map(|address| address.strip_prefix("quic:")).map(str::to_owned).collect()
}
