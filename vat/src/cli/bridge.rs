//! `vat bridge`: every vat for programs in any language, through a socket of this machine.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use console::{Failure, Output};
use schemas::{ErrorCode, Exit, RemoteError, VatAddress, bridge_capnp};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use transport::{ForeignOptions, LocalListener, OutputGate, Session, SessionLimits, Sessions, peers::PeerLimits};
use vls_client::Resolver;

use super::{
    Context, block_on,
    connect::{client_endpoint, found_vat, own_vat, resolver},
};
use crate::{
    bridge::{BridgeService, Reach, Vats},
    limits::{ACCEPT_PAUSE, CLOSE_DEADLINE, DRAIN_DEADLINE, MAX_BRIDGE_CLIENTS},
};

/// `unix:PATH`: the only kind of place at which a bridge listens, since a socket of the file system is the only one
/// whose other end the kernel vouches for.
pub(super) fn unix_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("a bridge listens at unix:PATH".to_owned()),
    }
}

/// `vat bridge --listen unix:PATH`
pub(super) fn bridge(context: Context, path: &Path) -> Result<Exit, Failure> {
    let output = context.output;
    block_on(async {
        let io = |error| Failure::new(ErrorCode::SystemIo, format!("signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
        let endpoint = client_endpoint()?;
        let deadline = context.config.timeout.value;
        let resolver = resolver(&context, &endpoint, deadline)?;
        let listener = LocalListener::bind(path)?;
        let vats = Vats::new(reach(Rc::new(context), resolver, deadline), deadline);
        let clients = Sessions::new(endpoint.id(), PeerLimits::default());
        // A closed pipe is no reason to stop serving.
        let unprinted = announce(output, &listener).err();
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            () = accept(&clients, &listener, &vats) => (),
        }
        drop(listener);
        clients.drain(ErrorCode::SessionClosed, DRAIN_DEADLINE, CLOSE_DEADLINE).await;
        endpoint.close().await;
        unprinted.map_or(Ok(Exit::Ok), Err)
    })
}

fn announce(output: Output, listener: &LocalListener) -> Result<(), Failure> {
    let place = format!("unix:{}", listener.path().display());
    let human = format!("{place}\nYour programs reach every vat through this socket. Ctrl-C ends it.");
    output.result(&human, &json!({"listen": place}))
}

/// A vat of this machine through its own socket, every other one through the search path.
fn reach(context: Rc<Context>, resolver: Resolver, deadline: Duration) -> Reach {
    Rc::new(move |address: VatAddress| {
        let (context, resolver) = (context.clone(), resolver.clone());
        Box::pin(async move {
            let reached = async {
                match own_vat(&context, address.id, deadline).await? {
                    Some(reached) => Ok(reached),
                    None => found_vat(&resolver, &address).await,
                }
            };
            reached.await.map_err(|failure: Failure| RemoteError { code: failure.code, message: failure.message })
        })
    })
}

/// Lets programs in until dropped. Who comes when all places are taken waits at the socket.
async fn accept(clients: &Sessions, listener: &LocalListener, vats: &Rc<Vats>) {
    let places = Arc::new(Semaphore::new(MAX_BRIDGE_CLIENTS));
    loop {
        // Never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                let session = Session::accept_foreign(stream.into(), options(vats));
                let left = session.when_closed();
                tokio::task::spawn_local(async move {
                    let end = left.await;
                    tracing::debug!(%end, "a program has left");
                    drop(place);
                });
                // Refused only while the bridge ends; the program was told.
                drop(clients.admit_local(session));
            }
            Err(error) => {
                // Too many open files, say: asking again at once would only burn the processor.
                tracing::warn!(%error, "the bridge's socket failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What one program gets.
fn options(vats: &Rc<Vats>) -> ForeignOptions {
    let service = BridgeService::new(vats.clone());
    let bootstrap: bridge_capnp::bridge::Client = capnp_rpc::new_client_from_rc(service.clone());
    ForeignOptions {
        bootstrap: bootstrap.client,
        restore: Rc::new(move |id| service.clone().restore(id)),
        // What is said here was said by a vat, whose own gate has let it pass.
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}
