//! Who is connected, how many may be, and how it ends (DESIGN §6: limits are counted per peer).

use std::{cell::Cell, rc::Rc, time::Duration};

use schemas::{Coded, location_capnp::location_service};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep_until,
};
use transport::{
    Endpoint, Greeting, Handshake, OutputGate, PeerConnection, SessionLimits, SessionOptions, Sessions,
    peers::PeerLimits,
};

use crate::{
    durable::DurableRegistry,
    limits,
    server::{ServerConfig, back_dialler::BackDialler, metrics::Metrics, peers::Peers},
    service::{Caller, Service},
};

/// How far the server has come in ending. Only ever goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Everybody is welcome.
    Serving,
    /// No new sessions and calls; those under way are answered.
    Draining,
    /// Sessions end.
    Closing,
}

/// Serves the records over QUIC.
pub(super) struct Carrier {
    pub(super) endpoint: Endpoint,
    pub(super) registry: Rc<DurableRegistry>,
    pub(super) calls: Rc<Calls>,
    pub(super) metrics: Rc<Metrics>,
    incarnation: [u8; 16],
    table: Sessions,
    back: Rc<BackDialler>,
    pub(super) peers: Rc<Peers>,
    idle_session: Duration,
    watch_interval: Duration,
}

impl Carrier {
    pub(super) fn new(
        endpoint: Endpoint,
        registry: DurableRegistry,
        incarnation: [u8; 16],
        back: Option<Endpoint>,
        config: &ServerConfig,
        seed: u64,
    ) -> Self {
        let table = Sessions::new(endpoint.id(), places(config));
        let (registry, calls, metrics) = (Rc::new(registry), Rc::new(Calls::default()), Rc::new(Metrics::new()));
        let back = Rc::new(BackDialler::new(back));
        let (idle_session, watch_interval) = (config.idle_session, config.watch_interval);
        let peers = {
            let (registry, metrics) = (Rc::clone(&registry), Rc::clone(&metrics));
            Peers::new(registry, metrics, endpoint.clone(), greeting(incarnation), seed)
        };
        Self { endpoint, registry, calls, metrics, incarnation, table, back, peers, idle_session, watch_interval }
    }

    /// Closes the ports.
    pub(super) async fn close(&self) {
        tokio::join!(self.endpoint.close(), self.back.close());
    }

    /// Takes other limits for sessions from now on.
    pub(super) fn set_limits(&self, config: &ServerConfig) {
        self.table.set_limits(places(config));
    }

    /// How many sessions there are.
    pub(super) fn sessions(&self) -> usize {
        self.table.count()
    }

    /// Accepts until the server stops, then waits until every session has ended.
    pub(super) async fn accept(self: Rc<Self>, mut stage: watch::Receiver<Stage>) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                _ = reached(&mut stage, Stage::Draining) => break,
                Some(_) = sessions.join_next() => {}
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    let Some(handshake) = self.table.begin(incoming) else { continue };
                    sessions.spawn_local(Rc::clone(&self).serve(handshake, stage.clone()));
                }
            }
        }
        self.calls.refuse();
        while sessions.join_next().await.is_some() {}
    }

    async fn serve(self: Rc<Self>, handshake: Handshake, mut stage: watch::Receiver<Stage>) {
        let (mut caller, mut address) = (None, None);
        let begun = handshake.finish(|connection| {
            let (options, known) = self.options(connection);
            (caller, address) = (Some(known), Some(connection.remote_address()));
            options
        });
        let session = tokio::select! {
            _ = reached(&mut stage, Stage::Closing) => return,
            begun = begun => begun,
        };
        let (session, caller) = match (session, caller) {
            (Ok(session), Some(caller)) => (session, caller),
            (Err(error), _) => {
                tracing::debug!(target: "vls_server::clients", ?address, code = %error.code(), %error, "no session");
                return;
            }
            // A session began, so its options were asked for.
            (Ok(_), None) => return,
        };
        tracing::debug!(target: "vls_server::clients", ?address, id = ?session.peer_id(), "session");
        let end = tokio::select! {
            end = session.closed() => Some(end),
            () = idle(&caller, self.idle_session) => None,
            _ = reached(&mut stage, Stage::Closing) => None,
        };
        if end.is_none() {
            session.close();
            session.closed().await;
        }
    }

    fn options(&self, connection: &PeerConnection) -> (SessionOptions, Rc<Caller>) {
        let caller = {
            let connection = connection.clone();
            Rc::new(Caller::new(connection.peer(), move || connection.remote_address()))
        };
        let (registry, calls, back) = (Rc::clone(&self.registry), Rc::clone(&self.calls), Rc::clone(&self.back));
        let (metrics, peers) = (Rc::clone(&self.metrics), Rc::clone(&self.peers));
        let service = Service::new(registry, calls, metrics, Rc::clone(&caller), back, peers, self.watch_interval);
        let client: location_service::Client = capnp_rpc::new_client(service);
        let options = SessionOptions {
            greeting: greeting(self.incarnation),
            bootstrap: Some(client.client),
            // Each answer waits for its own turn; there is nothing to hold back for a whole session.
            gate: OutputGate::always_open(),
            limits: session_limits(),
        };
        (options, caller)
    }
}

fn greeting(incarnation: [u8; 16]) -> Greeting {
    let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned();
    // Epoch 0: not a vat.
    Greeting { epoch: 0, incarnation, program }
}

/// Waits until the server has come that far; also if it was dropped.
pub(super) async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}

fn places(config: &ServerConfig) -> PeerLimits {
    let mut places = PeerLimits::default();
    places.sessions = config.sessions;
    places.sessions_per_network = config.sessions_per_network;
    places
}

fn session_limits() -> SessionLimits {
    let mut session = SessionLimits::default();
    session.message_bytes = limits::MESSAGE_BYTES;
    session.capabilities_per_message = limits::CAPABILITIES_PER_MESSAGE;
    session.calls_in_flight = limits::CALLS_IN_FLIGHT;
    session.call_bytes_in_flight = limits::CALL_BYTES_IN_FLIGHT;
    session.waiting_answer_bytes = limits::WAITING_ANSWER_BYTES;
    session
}

/// Waits until the caller has asked nothing for too long.
async fn idle(caller: &Caller, limit: Duration) {
    loop {
        let end = caller.last_call() + limit;
        if end <= tokio::time::Instant::now() {
            return;
        }
        sleep_until(end).await;
    }
}

/// The calls that are under way, and whether more may begin.
#[derive(Default)]
pub(crate) struct Calls {
    under_way: Cell<usize>,
    refusing: Cell<bool>,
    finished: Notify,
}

impl Calls {
    /// Begins a call, which is under way until the guard is dropped. `None` when the server is stopping.
    pub(crate) fn begin(self: &Rc<Self>) -> Option<Call> {
        if self.refusing.get() {
            return None;
        }
        self.under_way.set(self.under_way.get() + 1);
        Some(Call { calls: Rc::clone(self) })
    }

    fn refuse(&self) {
        self.refusing.set(true);
    }

    /// Waits until no call is under way and the RPC layer has had its turns to send the last answers.
    pub(super) async fn finished(&self) {
        self.refuse();
        while self.under_way.get() > 0 {
            self.finished.notified().await;
        }
        for _ in 0..limits::STEPS_TO_ANSWER {
            tokio::task::yield_now().await;
        }
    }
}

/// A call that is under way.
pub(crate) struct Call {
    calls: Rc<Calls>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.under_way.set(self.calls.under_way.get() - 1);
        if self.calls.under_way.get() == 0 {
            self.calls.finished.notify_one();
        }
    }
}
