//! Where an attack takes place: one thread, one endpoint, and an honest session beside it.

use capnp::capability::Client;
use transport::{Endpoint, Session, SessionLimits, SessionOptions};

use crate::{
    raw::RawPeer,
    support::{add, connect, key, new_counter, options, server, serving},
};

/// A server with an honest session beside the attack.
pub(crate) struct Scene {
    pub(crate) server: Endpoint,
    honest: (Session, Session),
    _client: Endpoint,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let accept = Session::accept(accepted, serving(new_counter()));
        let honest = tokio::try_join!(Session::open(dialled, options()), accept).unwrap();
        Self { server, honest, _client: client }
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
}
