//! What is measured: the crate `transport`, both ends, with a counter behind it and nothing else.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use capnp::capability::Client;
use schemas::{IdentityKey, VatId, objects_capnp::counter};
use tokio::task::spawn_local;
use transport::{Endpoint, EndpointConfig, Greeting, OutputGate, Session, SessionLimits, SessionOptions};

use super::adder;
use crate::{
    Failure,
    allocations::watch_this_thread,
    bare::ANY_PORT,
    program::{Program, Ready, Stop},
};

/// How long a client may take to connect.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// Where a server is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    id: VatId,
    address: SocketAddr,
}

/// Starts a server that gives every peer a counter.
pub(super) fn start() -> Result<Program<Server>, Failure> {
    Program::start("session", async |ready, stop| {
        watch_this_thread();
        serve(ready, stop).await
    })
}

/// Serves until told to stop.
pub(super) async fn serve(ready: Ready<Server>, mut stop: Stop) -> Result<(), Failure> {
    let key = IdentityKey::generate()?;
    let endpoint = Endpoint::bind(&key, ANY_PORT, EndpointConfig::default())?;
    ready.serving(Server { id: key.id(), address: endpoint.local_address() });
    let (counter, sessions) = (adder::new(), Rc::new(RefCell::new(Vec::<Session>::new())));
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(incoming) = endpoint.accept() => {
                let (options, sessions) = (options(Some(counter.clone())), sessions.clone());
                // Whoever came will say what went wrong.
                spawn_local(async move {
                    let session = Session::accept(incoming.accept().await?, options).await?;
                    let mut sessions = sessions.borrow_mut();
                    if sessions.len() == sessions.capacity() {
                        sessions.retain(|session| session.end().is_none());
                    }
                    sessions.push(session);
                    Ok::<_, Failure>(())
                });
            }
        }
    }
    endpoint.close().await;
    Ok(())
}

fn options(bootstrap: Option<Client>) -> SessionOptions {
    SessionOptions {
        greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "bench".to_owned() },
        bootstrap,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

/// One identity that dials.
pub(super) struct Dialler(Endpoint);

impl Dialler {
    /// A new one.
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self(Endpoint::client(&IdentityKey::generate()?)?))
    }

    /// Connects, and begins a session.
    pub(super) async fn session(&self, server: Server) -> Result<Session, Failure> {
        let connection = self.0.dial(server.id, server.address, DIAL_DEADLINE).await?;
        Ok(Session::open(connection, options(None)).await?)
    }

    /// Connects, and has one call answered.
    pub(super) async fn first_call(&self, server: Server) -> Result<Session, Failure> {
        let connection = self.0.dial(server.id, server.address, DIAL_DEADLINE).await?;
        let opening = Session::begin(connection, options(None), None).await?;
        let counter: counter::Client = opening.bootstrap();
        let (session, ()) = tokio::try_join!(async { Ok(opening.greeted().await?) }, adder::add(&counter))?;
        Ok(session)
    }

    /// Waits until all connections are gone.
    pub(super) async fn idle(&self) {
        while self.0.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await; // polls a condition
        }
    }

    /// Closes what is open.
    pub(super) async fn close(self) {
        self.0.close().await;
    }
}
