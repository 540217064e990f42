//! Where an attack takes place: one thread, one endpoint, and an honest session beside it; and what must hold after
//! every attack.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use capnp::capability::Client;
use transport::{
    Endpoint, Session, SessionLimits, SessionOptions,
    watchdog::{Hang, Watchdog, WatchdogConfig},
};

use crate::{
    memory,
    raw::{COUNTER, RawPeer},
    support::{PATIENCE, add, connect, key, new_counter, options, run, server, serving},
};

/// An honest peer is answered at least so fast after an attack.
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);

/// How often it may try: what delays one call on a busy machine does not delay five.
const TRIES: usize = 5;

/// A server with an honest session beside the attack.
pub(crate) struct Scene {
    pub(crate) server: Endpoint,
    honest: (Session, Session),
    _client: Endpoint,
}

/// Runs an attack, and asserts what must hold after every one, in the same process: an honest peer on another session
/// is answered at once, while what the attacker holds still stands (it is what `attack` returns); when the attacker is
/// gone, memory is what it was before, to a hundredth; no thread hung. That nothing was said on standard output is
/// asserted by [`standard_output`](crate::standard_output).
pub(crate) fn attack<T>(attack: impl AsyncFnOnce(&Scene) -> T) {
    run(async {
        let scene = Scene::new().await;
        // Tables and caches take their size.
        scene.harmless_visit().await;
        let before = memory::held();

        let hangs = Arc::<Mutex<Vec<Hang>>>::default();
        let mut watching = WatchdogConfig::default();
        // Three seconds: the attacker works on this thread, too, and other tests on the same machine.
        (watching.look, watching.hung_after) = (Duration::from_millis(100), 30);
        watching.hopeless_after = 100;
        let report = hangs.clone();
        let watchdog = Watchdog::start(watching, move |hang| report.lock().unwrap().push(hang.clone())).unwrap();
        let standing = attack(&scene).await;
        scene.honest_peer_is_served_at_once().await;
        drop(standing);
        drop(watchdog);
        assert_eq!(*hangs.lock().unwrap(), [], "a thread hung");

        let patience = Instant::now();
        while scene.server.open_connections() > 1 || memory::held() > before + before / 100 {
            let (held, open) = (memory::held(), scene.server.open_connections());
            assert!(patience.elapsed() < PATIENCE / 3, "{held} bytes are held, {before} before; {open} connections");
            tokio::time::sleep(Duration::from_millis(5)).await; // polls a condition
        }
        scene.honest_peer_is_served().await;
    });
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let accept = Session::accept(accepted, serving(new_counter()));
        let honest = tokio::try_join!(Session::open(dialled, options()), accept).unwrap();
        Self { server, honest, _client: client }
    }

    /// A peer that comes, calls, and goes.
    async fn harmless_visit(&self) {
        let (mut peer, session) = self.attack(new_counter()).await;
        peer.bootstrap(0).await;
        peer.call(1, 0, COUNTER, 0).await;
        peer.answer_to(1).await;
        self.honest_peer_is_served().await;
        session.close();
        session.closed().await;
        drop((peer, session));
        while self.server.open_connections() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await; // polls a condition
        }
    }

    pub(crate) async fn attack(&self, bootstrap: Client) -> (RawPeer, Session) {
        self.attack_within(bootstrap, |_| {}).await
    }

    pub(crate) async fn attack_within(
        &self,
        bootstrap: Client,
        limit: impl FnOnce(&mut SessionLimits),
    ) -> (RawPeer, Session) {
        let mut limits = SessionLimits::default();
        limit(&mut limits);
        RawPeer::greeted(&self.server, SessionOptions { limits, ..serving(bootstrap) }).await
    }

    pub(crate) async fn honest_peer_is_served(&self) {
        let before = add(&self.honest.0.bootstrap(), 0).await.unwrap();
        assert_eq!(add(&self.honest.0.bootstrap(), 1).await.unwrap(), before + 1);
    }

    async fn honest_peer_is_served_at_once(&self) {
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            let begun = Instant::now();
            self.honest_peer_is_served().await;
            best = best.min(begun.elapsed() / 2);
        }
        assert!(best < ANSWERED_WITHIN, "an honest peer waited {best:?}");
    }
}
