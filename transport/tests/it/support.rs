//! What the tests share: a runtime, objects to call, and sessions between two endpoints.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use capnp::capability::Client;
use schemas::{IdentityKey, objects_capnp::counter, vat_capnp::vat};
use transport::{
    Endpoint, EndpointConfig, Greeting, OutputGate, PeerConnection, Session, SessionLimits, SessionOptions,
};

/// Longer than anything here takes on a busy machine; a test that hangs fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on one thread, where sessions live.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(PATIENCE, test).await.expect("the test hangs") })
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn key() -> IdentityKey {
    IdentityKey::generate().unwrap()
}

pub(crate) fn server() -> Endpoint {
    Endpoint::bind(&key(), loopback(), EndpointConfig::default()).unwrap()
}

pub(crate) fn greeting() -> Greeting {
    Greeting { epoch: 1, incarnation: [7; 16], program: "test 1.0".to_owned() }
}

pub(crate) fn options() -> SessionOptions {
    SessionOptions {
        greeting: greeting(),
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

pub(crate) fn serving(bootstrap: Client) -> SessionOptions {
    SessionOptions { bootstrap: Some(bootstrap), ..options() }
}

/// Two endpoints and a connection between them: (dialled, accepted).
pub(crate) async fn connect(server: &Endpoint, client: &Endpoint) -> (PeerConnection, PeerConnection) {
    let accept = async { server.accept().await.unwrap().accept().await.unwrap() };
    let dial = async { client.dial(server.id(), server.local_address(), PATIENCE).await.unwrap() };
    tokio::join!(dial, accept)
}

/// A session over QUIC: (dialling side, accepting side). The endpoints live as long as the sessions.
pub(crate) async fn sessions(dialling: SessionOptions, accepting: SessionOptions) -> (Session, Session) {
    let (server, client) = (server(), Endpoint::client(&key()).unwrap());
    let (dialled, accepted) = connect(&server, &client).await;
    tokio::try_join!(Session::open(dialled, dialling), Session::accept(accepted, accepting)).unwrap()
}

/// A counter whose every `add` is a turn of a gate.
#[derive(Default)]
pub(crate) struct Counter {
    pub(crate) total: Cell<u64>,
    pub(crate) gate: Option<OutputGate>,
    pub(crate) turn: Cell<u64>,
    /// `by` of every `add`, in the order of their arrival.
    pub(crate) seen: RefCell<Vec<u64>>,
}

impl counter::Server for Counter {
    async fn add(
        self: Rc<Self>,
        params: counter::AddParams,
        mut results: counter::AddResults,
    ) -> Result<(), capnp::Error> {
        let by = params.get()?.get_by();
        self.seen.borrow_mut().push(by);
        if let Some(gate) = &self.gate {
            self.turn.set(self.turn.get() + 1);
            gate.produced(self.turn.get());
        }
        self.total.set(self.total.get() + by);
        results.get().set_total(self.total.get());
        Ok(())
    }

    async fn get(
        self: Rc<Self>,
        _params: counter::GetParams,
        mut results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_total(self.total.get());
        Ok(())
    }
}

pub(crate) fn counter(object: Rc<Counter>) -> Client {
    let client: counter::Client = capnp_rpc::new_client_from_rc(object);
    client.client
}

pub(crate) fn new_counter() -> Client {
    counter(Rc::default())
}

/// Restores any secret to one capability, to have something to pipeline on.
pub(crate) struct Vat(pub(crate) Client);

impl vat::Server for Vat {
    async fn restore(
        self: Rc<Self>,
        _params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        results.get().init_capability().set_as_capability(self.0.hook.add_ref());
        Ok(())
    }
}

pub(crate) fn vat(object: Client) -> Client {
    let client: vat::Client = capnp_rpc::new_client(Vat(object));
    client.client
}

pub(crate) async fn add(counter: &counter::Client, by: u64) -> Result<u64, capnp::Error> {
    let mut request = counter.add_request();
    request.get().set_by(by);
    Ok(request.send().promise.await?.get()?.get_total())
}

/// The counter behind a vat's `restore`, without waiting for it.
pub(crate) fn restored(vat: &vat::Client) -> counter::Client {
    vat.restore_request().send().pipeline.get_capability().as_cap_client()
}

trait AsCapClient {
    fn as_cap_client(&self) -> counter::Client;
}

impl AsCapClient for capnp::any_pointer::Pipeline {
    fn as_cap_client(&self) -> counter::Client {
        capnp::capability::FromClientHook::new(self.as_cap())
    }
}
