//! `vat bridge`: every vat for programs in any language, through a socket of this machine.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use console::{Failure, Output};
use schemas::{ErrorCode, Exit, RemoteError, VatAddress, bridge_capnp};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use transport::{ForeignOptions, LocalListener, OutputGate, SessionLimits};
use vls_client::Resolver;

use super::{
    Context, block_on,
    connect::{client_endpoint, found_vat, own_vat, resolver},
};
use crate::{
    bridge::{BridgeService, Reach, Vats},
    foreign::ForeignClients,
    limits::{ACCEPT_PAUSE, MAX_BRIDGE_CLIENTS},
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
        let clients = ForeignClients::new(MAX_BRIDGE_CLIENTS);
        // A closed pipe is no reason to stop serving.
        let unprinted = announce(output, &listener).err();
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            () = accept(&clients, &listener, &vats) => (),
        }
        drop(listener);
        clients.drain(ErrorCode::SessionClosed).await;
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

/// Lets programs in, each in a task of its own, until dropped.
async fn accept(clients: &ForeignClients, listener: &LocalListener, vats: &Rc<Vats>) {
    loop {
        let place = clients.place().await;
        match listener.accept().await {
            Ok(stream) => {
                let (clients, options) = (clients.clone(), options(vats));
                tokio::task::spawn_local(async move { clients.serve(stream.into(), options, place).await });
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
