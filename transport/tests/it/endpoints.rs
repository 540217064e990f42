//! Endpoints: addresses, deadlines, limits on who may connect, and the end.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use schemas::{Coded, ErrorCode};
use transport::{AddressProof, DialError, Endpoint, EndpointConfig, Session, SessionEnd};

use crate::{
    raw::SHORT,
    support::{PATIENCE, add, connect, key, loopback, new_counter, options, run, server, serving},
};

#[test]
fn the_real_port_is_told_when_any_was_asked_for() {
    run(async {
        let (one, other) = (server(), server());
        assert_ne!(one.local_address().port(), 0);
        assert_ne!(one.local_address().port(), other.local_address().port());
    });
}

#[test]
fn a_port_that_is_taken_is_refused_in_plain_words() {
    run(async {
        let taken = server();
        let error = Endpoint::bind(&key(), taken.local_address(), EndpointConfig::default()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NetBind);
        let address = taken.local_address();
        assert_eq!(error.to_string(), format!("cannot listen on {address} (UDP): another program uses this port"));
    });
}

#[test]
fn an_address_of_another_machine_is_refused_in_plain_words() {
    run(async {
        // Set aside for documentation (RFC 5737), so it is nobody's.
        let error = Endpoint::bind(&key(), "192.0.2.1:0".parse().unwrap(), EndpointConfig::default()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NetBind);
        assert!(error.to_string().ends_with("this machine has no such address"), "{error}");
    });
}

#[test]
fn an_endpoint_everywhere_is_reached_over_both_families() {
    run(async {
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let server = Endpoint::bind(&key(), everywhere, EndpointConfig::default()).unwrap();
        let client = Endpoint::client(&key()).unwrap();
        let port = server.local_address().port();
        let mut targets = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        // On a machine without IPv6 the endpoint fell back to IPv4 alone.
        if server.local_address().is_ipv6() && UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            targets.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        }
        for target in targets {
            let accept = async { server.accept().await.unwrap().accept().await.unwrap() };
            let (dialled, accepted) = tokio::join!(client.dial(server.id(), target, PATIENCE), accept);
            assert_eq!(dialled.unwrap().remote_address(), target, "addresses are told in their own family");
            assert_eq!(accepted.remote_address().is_ipv4(), target.is_ipv4());
        }
    });
}

#[test]
fn an_address_of_the_wrong_family_fails_at_once() {
    run(async {
        let only_ipv4 = server();
        let target = SocketAddr::from((Ipv6Addr::LOCALHOST, 4433));
        let error = only_ipv4.dial(key().id(), target, PATIENCE).await.unwrap_err();
        assert!(matches!(error, DialError::Family { .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::NetUnreachable);
    });
}

#[test]
fn who_does_not_answer_is_given_up_at_the_deadline() {
    run(async {
        let silent = UdpSocket::bind(loopback()).unwrap();
        let client = Endpoint::client(&key()).unwrap();
        let address = silent.local_addr().unwrap();
        let error = client.dial(key().id(), address, SHORT).await.unwrap_err();
        assert!(matches!(error, DialError::Timeout { after: SHORT, .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::NetTimeout);
        assert_eq!(error.to_string(), format!("no answer from {address} within 0.2 s"));
    });
}

#[test]
fn who_dials_and_never_proves_a_key_is_given_up_at_the_deadline() {
    run(async {
        let mut config = EndpointConfig::default();
        config.handshake_deadline = SHORT;
        let server = Endpoint::bind(&key(), loopback(), config).unwrap();
        let client = Endpoint::client(&key()).unwrap();
        let (id, address) = (server.id(), server.local_address());
        let dial = tokio::task::spawn_local(async move { client.dial(id, address, PATIENCE).await.map(drop) });
        let incoming = server.accept().await.unwrap();
        // The client's endpoint goes away with its task, in the middle of the handshake.
        dial.abort();
        assert!(dial.await.unwrap_err().is_cancelled());
        assert!(incoming.accept().await.is_err());
    });
}

#[test]
fn an_endpoint_that_only_dials_accepts_nobody() {
    run(async {
        assert!(Endpoint::client(&key()).unwrap().accept().await.is_none());
    });
}

#[test]
fn beyond_the_limit_of_connections_new_ones_are_refused() {
    run(async {
        let mut config = EndpointConfig::default();
        config.connections = 1;
        let server = Endpoint::bind(&key(), loopback(), config).unwrap();
        let client = Endpoint::client(&key()).unwrap();
        let _first = connect(&server, &client).await;
        let accepting = tokio::task::spawn_local({
            let server = server.clone();
            async move { server.accept().await.is_none() }
        });
        let error = client.dial(server.id(), server.local_address(), PATIENCE).await.unwrap_err();
        assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
        assert_eq!(error.code(), ErrorCode::SessionLimit);
        server.close().await;
        assert!(accepting.await.unwrap(), "the refused one was not handed out");
    });
}

#[test]
fn under_load_a_dialler_proves_its_address_and_is_then_accepted() {
    run(async {
        let mut config = EndpointConfig::default();
        config.connections_before_retry = 0;
        let server = Endpoint::bind(&key(), loopback(), config).unwrap();
        let (_dialled, accepted) = connect(&server, &Endpoint::client(&key()).unwrap()).await;
        assert!(accepted.close_reason().is_none());
    });
}

#[test]
fn when_many_come_at_once_addresses_are_asked_for_and_who_was_here_before_has_proven_its_own() {
    run(async {
        let mut config = EndpointConfig::default();
        (config.unproven_burst, config.unproven_interval) = (1, Duration::from_secs(3600));
        let server = Endpoint::bind(&key(), loopback(), config).unwrap();
        let (id, address) = (server.id(), server.local_address());
        let (known, stranger) = (Endpoint::client(&key()).unwrap(), Endpoint::client(&key()).unwrap());
        let connect = async |client: &Endpoint| {
            let dial = async { client.dial(id, address, PATIENCE).await.unwrap() };
            let accept = async {
                let incoming = server.accept().await.unwrap();
                (incoming.address_proof(), incoming.accept().await.unwrap())
            };
            let (dialled, (proven, accepted)) = tokio::join!(dial, accept);
            // A round trip, with which the token for the next time has come too.
            let session = Session::open(dialled.clone(), options());
            let (session, accepted) =
                tokio::try_join!(session, Session::accept(accepted, serving(new_counter()))).unwrap();
            add(&session.bootstrap(), 1).await.unwrap();
            drop((session, accepted));
            (proven, dialled)
        };
        assert_eq!(connect(&known).await.0, AddressProof::None, "the first may come as it is");
        assert_eq!(connect(&stranger).await.0, AddressProof::Retry);
        assert_eq!(connect(&known).await.0, AddressProof::Token, "that it was given in its first connection");
    });
}

#[test]
fn a_connection_without_a_sign_of_the_peer_ends() {
    run(async {
        let mut config = EndpointConfig::default();
        config.idle_timeout = SHORT;
        config.keep_alive = PATIENCE;
        let server = Endpoint::bind(&key(), loopback(), config).unwrap();
        let (_dialled, accepted) = connect(&server, &Endpoint::client(&key()).unwrap()).await;
        assert!(matches!(accepted.closed().await, SessionEnd::Lost(_)));
    });
}

#[test]
fn keep_alives_hold_a_quiet_connection() {
    run(async {
        let mut config = EndpointConfig::default();
        config.idle_timeout = Duration::from_millis(400);
        config.keep_alive = Duration::from_millis(50);
        let server = Endpoint::bind(&key(), loopback(), config.clone()).unwrap();
        let (_dialled, accepted) = connect(&server, &Endpoint::client(&key()).unwrap()).await;
        let closed = tokio::time::timeout(3 * config.idle_timeout, accepted.closed()).await;
        assert!(closed.is_err(), "{closed:?}");
    });
}

#[test]
fn a_closed_endpoint_tells_its_peers_and_dials_no_more() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, _accepted) = connect(&server, &client).await;
        server.close().await;
        let SessionEnd::Peer(remote) = dialled.closed().await else { panic!() };
        assert_eq!(remote.code, ErrorCode::SessionClosed);
        assert!(server.accept().await.is_none());
        let error = server.dial(client.id(), loopback(), PATIENCE).await.unwrap_err();
        assert!(matches!(error, DialError::Closed), "{error}");
    });
}

#[test]
fn a_connection_tells_its_peer_the_code_that_it_was_closed_with() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        accepted.close(ErrorCode::SessionSuperseded);
        let SessionEnd::Peer(remote) = dialled.closed().await else { panic!() };
        assert_eq!(remote.code, ErrorCode::SessionSuperseded);
        assert!(matches!(accepted.closed().await, SessionEnd::Local));
    });
}
