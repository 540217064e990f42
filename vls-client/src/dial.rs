//! Dialling a host: its name resolved, its addresses raced (RFC 8305), only the holder of the key accepted.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use schemas::{VatId, is_localhost};
use tokio::time::{Instant, sleep_until, timeout_at};
use transport::{Endpoint, PeerConnection};

use crate::{dial_schedule::Target, failure::Failure, limits, wave::Wave};

/// Dials `target` and gives a connection to a peer that has proven `id`, and where it was.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    id: VatId,
    target: &Target,
    deadline: Duration,
) -> Result<(PeerConnection, SocketAddr), Failure> {
    let began = Instant::now();
    let end = began + deadline;
    let addresses = timeout_at(end, resolve(target)).await.map_err(|_| Failure::Timeout { after: deadline })??;
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failures = Vec::new();
    let mut wave = Wave::new(Duration::ZERO, 1);
    loop {
        while waiting.len() > 0 && wave.may_start(began.elapsed(), limits::DIAL_HEDGE) {
            running.extend(waiting.next().map(|address| async move {
                let left = end.saturating_duration_since(Instant::now());
                (address, endpoint.dial(id, address, left).await)
            }));
        }
        tokio::select! {
            Some((address, result)) = running.next() => match result {
                Ok(connection) => return Ok((connection, address)),
                Err(error) => {
                    failures.push(Arc::new(error));
                    wave.attempt_failed();
                }
            },
            () = sleep_until(began + wave.next()), if waiting.len() > 0 => {}
            // Every dial ends by the deadline.
            else => return Err(Failure::Dial(failures)),
        }
    }
}

/// The addresses of a target in the order in which to try them.
pub(crate) async fn resolve(target: &Target) -> Result<Vec<SocketAddr>, Failure> {
    addresses_of(&target.host, target.port).await
}

/// The addresses of a host, in the order in which to try them. An address given as such needs no lookup; nor does
/// `localhost` or a name below it, which mean this machine everywhere (RFC 6761, section 6.3): who asks for them would
/// tell a name server of them, and take its word for where they are.
///
/// # Errors
/// [`Failure::Name`], [`Failure::NoAddress`]. Has no deadline of its own.
pub async fn addresses_of(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if is_localhost(host) {
        return Ok(loopback().map(|address| SocketAddr::new(address, port)).collect());
    }
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => match interleave(found.collect()) {
            addresses if addresses.is_empty() => Err(Failure::NoAddress { host: host.to_owned() }),
            addresses => Ok(addresses),
        },
        Err(error) => Err(Failure::Name { host: host.to_owned(), source: Arc::new(error) }),
    }
}

/// Where this machine reaches itself: IPv6 first, if it has that.
fn loopback() -> impl Iterator<Item = IpAddr> {
    let has_ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    has_ipv6.then_some(Ipv6Addr::LOCALHOST.into()).into_iter().chain([Ipv4Addr::LOCALHOST.into()])
}

/// IPv6 and IPv4 in turn, beginning with the family that the system put first (RFC 8305, section 4), each
/// address once, and not too many.
fn interleave(mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_ipv6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let mut ordered: Vec<SocketAddr> = Vec::new();
    let mut want_ipv6 = first_is_ipv6;
    while !found.is_empty() && ordered.len() < limits::MAX_ADDRESSES_PER_NAME {
        let next = found.iter().position(|address| address.is_ipv6() == want_ipv6).unwrap_or(0);
        let address = found.remove(next);
        if !ordered.contains(&address) {
            want_ipv6 = !address.is_ipv6();
            ordered.push(address);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_of_this_machine_are_known_without_asking_anybody() {
        // No name server and no list of hosts has one so long.
        let deep = "x.".repeat(100) + "localhost";
        for name in ["localhost", "LocalHost", "localhost.", "a.b.localhost", &deep] {
            let found = addresses_of(name, 7).await.unwrap();
            assert_eq!(found.last(), Some(&"127.0.0.1:7".parse().unwrap()), "{name}");
            assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 7), "{name}: {found:?}");
        }
    }

    #[test]
    fn families_take_turns_and_no_address_comes_twice() {
        let addresses = |text: &[&str]| text.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = addresses(&["[::1]:1", "[::2]:1", "[::1]:1", "10.0.0.1:1", "10.0.0.2:1", "[::3]:1"]);
        let expected = addresses(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "10.0.0.2:1", "[::3]:1"]);
        assert_eq!(interleave(found), expected);
        let many = (1..100).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
        assert_eq!(interleave(many).len(), limits::MAX_ADDRESSES_PER_NAME);
    }
}
