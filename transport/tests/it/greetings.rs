//! Hostile greetings: each test is an attack before the session has begun.

use schemas::{Coded, ErrorCode, RemoteError};
use transport::{Endpoint, HelloError, Session, SessionEnd, SessionError, frames::FrameError};

use crate::{
    raw::{RawPeer, SHORT, announce, hello_bytes, preface},
    scene::{Scene, attack},
    support::{connect, key, new_counter, options, run, server, serving},
};

/// What is sent instead of a greeting, and what comes of it.
async fn greeted_with(scene: &Scene, bytes: &[u8]) -> (SessionError, RemoteError) {
    let (mut peer, accepted) = RawPeer::dial(&scene.server).await;
    peer.write(bytes).await;
    let error = Session::accept(accepted, serving(new_counter())).await.unwrap_err();
    let told = peer.told().await;
    assert_eq!(told.code, error.code(), "the peer is told what we saw");
    (error, told)
}

#[test]
fn garbage_instead_of_a_preface() {
    attack(async |scene| {
        let (error, told) = greeted_with(scene, b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(matches!(error, SessionError::Hello(HelloError::NotOurs)), "{error}");
        assert_eq!(told.code, ErrorCode::SessionVersion);
    });
}

#[test]
fn a_stream_of_an_unknown_kind_or_version() {
    attack(async |scene| {
        for (kind, version) in [(2, 1), (1, 2)] {
            let (error, told) = greeted_with(scene, &preface(kind, version)).await;
            assert!(matches!(error, SessionError::Hello(HelloError::Stream { .. })), "{error}");
            assert!(told.message.contains(&format!("kind {kind}, version {version}")), "{told}");
        }
    });
}

#[test]
fn a_greeting_of_another_version() {
    attack(async |scene| {
        let (error, told) = greeted_with(scene, &[preface(1, 1), hello_bytes(9, &[0; 16])].concat()).await;
        assert!(matches!(error, SessionError::Hello(HelloError::Version { found: 9 })), "{error}");
        assert!(told.message.contains("version 9"), "{told}");
    });
}

#[test]
fn a_greeting_with_a_wrong_incarnation() {
    attack(async |scene| {
        let (error, _) = greeted_with(scene, &[preface(1, 1), hello_bytes(1, &[0; 17])].concat()).await;
        assert!(matches!(error, SessionError::Hello(HelloError::Incarnation { found: 17 })), "{error}");
    });
}

#[test]
fn a_greeting_that_announces_a_gigabyte() {
    attack(async |scene| {
        let (error, _) = greeted_with(scene, &[preface(1, 1), announce(1 << 27)].concat()).await;
        assert!(matches!(error, SessionError::Hello(HelloError::Frame(FrameError::TooLarge { .. }))), "{error}");
    });
}

#[test]
fn a_peer_that_never_greets_or_stops_in_the_middle() {
    attack(async |scene| {
        for bytes in [&[][..], &preface(1, 1)[..5], &preface(1, 1)[..]] {
            let (mut peer, accepted) = RawPeer::dial(&scene.server).await;
            peer.write(bytes).await;
            let mut options = serving(new_counter());
            options.limits.hello_deadline = SHORT;
            let error = Session::accept(accepted, options).await.unwrap_err();
            assert!(matches!(error, SessionError::Hello(HelloError::Timeout { after: SHORT })), "{error}");
            assert_eq!(peer.told().await.code, ErrorCode::NetTimeout);
        }
    });
}

#[test]
fn an_honest_dialler_learns_why_its_greeting_was_refused() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let open = tokio::task::spawn_local(Session::open(dialled, options()));
        let _stream = accepted.quinn().accept_bi().await.unwrap();
        accepted.close(ErrorCode::SessionVersion);
        let error = open.await.unwrap().unwrap_err();
        assert!(matches!(&error, SessionError::Ended(SessionEnd::Peer(_))), "{error:?}");
        assert_eq!(error.code(), ErrorCode::SessionVersion);
    });
}
