//! Who is connected, how many may be, and how it ends (DESIGN §6: limits are counted per peer).

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

use schemas::{Coded, ErrorCode, location_capnp::location_service};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep_until,
};
use transport::{
    Endpoint, Greeting, Incoming, OutputGate, PeerConnection, Session, SessionError, SessionLimits, SessionOptions,
};

use crate::{
    durable::DurableRegistry,
    limits,
    registry::SourcePrefix,
    server::ServerConfig,
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
    incarnation: [u8; 16],
    places: Rc<Places>,
    idle_session: Duration,
}

impl Carrier {
    pub(super) fn new(
        endpoint: Endpoint,
        registry: DurableRegistry,
        incarnation: [u8; 16],
        config: &ServerConfig,
    ) -> Self {
        let places = Places::new(config.sessions, config.sessions_per_network);
        let (registry, calls) = (Rc::new(registry), Rc::new(Calls::default()));
        Self { endpoint, registry, calls, incarnation, places, idle_session: config.idle_session }
    }

    /// Accepts until the server stops, then waits until every session has ended.
    pub(super) async fn accept(self: Rc<Self>, mut stage: watch::Receiver<Stage>) {
        let handshakes = Places::new(limits::HANDSHAKES, limits::HANDSHAKES_PER_NETWORK);
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                _ = reached(&mut stage, Stage::Draining) => break,
                Some(_) = sessions.join_next() => {}
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    // Dropping the attempt refuses it.
                    let Some(shaking) = handshakes.take(incoming.remote_address().ip()) else { continue };
                    let (carrier, mut stage) = (Rc::clone(&self), stage.clone());
                    sessions.spawn_local(async move {
                        let connection = tokio::select! {
                            _ = reached(&mut stage, Stage::Closing) => return,
                            connection = shake_hands(incoming) => connection,
                        };
                        drop(shaking);
                        if let Some(connection) = connection {
                            carrier.serve(connection, stage).await;
                        }
                    });
                }
            }
        }
        self.calls.refuse();
        while sessions.join_next().await.is_some() {}
    }

    async fn serve(&self, connection: PeerConnection, mut stage: watch::Receiver<Stage>) {
        let Some(_place) = self.places.take(connection.remote_address().ip()) else {
            connection.close(ErrorCode::SessionLimit);
            return;
        };
        let caller = {
            let connection = connection.clone();
            Rc::new(Caller::new(move || connection.remote_address()))
        };
        let service = Service::new(Rc::clone(&self.registry), Rc::clone(&self.calls), Rc::clone(&caller));
        let client: location_service::Client = capnp_rpc::new_client(service);
        let options = SessionOptions {
            greeting: self.greeting(),
            bootstrap: Some(client.client),
            // Each answer waits for its own turn; there is nothing to hold back for a whole session.
            gate: OutputGate::always_open(),
            limits: session_limits(),
        };
        let session = tokio::select! {
            _ = reached(&mut stage, Stage::Closing) => return,
            session = Session::accept(connection.clone(), options) => session,
        };
        let session = match session {
            Ok(session) => session,
            Err(error) => return log_refused(&connection, &error),
        };
        let address = connection.remote_address();
        tracing::debug!(target: "vls_server::clients", %address, id = %connection.peer(), "session");
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

    fn greeting(&self) -> Greeting {
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned();
        // Epoch 0: not a vat.
        Greeting { epoch: 0, incarnation: self.incarnation, program }
    }
}

/// Waits until the server has come that far; also if it was dropped.
async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}

async fn shake_hands(incoming: Incoming) -> Option<PeerConnection> {
    let address = incoming.remote_address();
    let connection = incoming.accept().await;
    connection
        .inspect_err(|error| tracing::debug!(target: "vls_server::clients", %address, %error, "no handshake"))
        .ok()
}

fn log_refused(connection: &PeerConnection, error: &SessionError) {
    let address = connection.remote_address();
    tracing::debug!(target: "vls_server::clients", %address, code = %error.code(), %error, "no session");
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

/// The places of all sessions, or of all handshakes.
struct Places {
    taken: RefCell<HashMap<SourcePrefix, usize>>,
    limit: usize,
    limit_per_network: usize,
}

impl Places {
    fn new(limit: usize, limit_per_network: usize) -> Rc<Self> {
        Rc::new(Self { taken: RefCell::default(), limit, limit_per_network })
    }

    fn take(self: &Rc<Self>, address: IpAddr) -> Option<Place> {
        let network = SourcePrefix::of(Some(address));
        let mut taken = self.taken.borrow_mut();
        let own = taken.get(&network).copied().unwrap_or(0);
        if own >= self.limit_per_network || taken.values().sum::<usize>() >= self.limit {
            return None;
        }
        taken.insert(network, own + 1);
        Some(Place { places: Rc::clone(self), network })
    }
}

/// A place, until it is dropped.
struct Place {
    places: Rc<Places>,
    network: SourcePrefix,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.borrow_mut();
        if let Some(own) = taken.get_mut(&self.network) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.network);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_network_and_for_all_and_come_back() {
        let address = |network: u8, host: u8| IpAddr::from([192, 0, network, host]);
        let places = Places::new(3, 2);
        let first = places.take(address(1, 1)).unwrap();
        let second = places.take(address(1, 2)).unwrap();
        assert!(places.take(address(1, 3)).is_none(), "network 1 has its two");
        let third = places.take(address(2, 1)).unwrap();
        assert!(places.take(address(3, 1)).is_none(), "all three are taken");
        drop(first);
        assert!(places.take(address(1, 3)).is_some_and(|_| places.take(address(3, 1)).is_none()));
        let other = places.take(address(3, 1)).unwrap();
        drop((second, third, other));
        assert!(places.taken.borrow().is_empty(), "networks without a place take no memory");
    }
}
