//! How a command reaches one of the owner's vats: awake through its socket, asleep through its checkpoint.

use std::{rc::Rc, sync::Arc, time::Instant};

use checkpoint::{FileDisk, Store, StoreError, StoreOptions};
use console::Failure;
use schemas::{VatId, vat_capnp};
use transport::Session;

use super::{
    Context,
    connect::{client_endpoint, owner},
};
use crate::{
    core::Vat,
    engine::NoOutputs,
    home::{Name, Places},
    limits::{BUSY_DEADLINE, BUSY_PAUSE},
    opener::Opener,
    process::{self, Report, system_clock},
};

/// By which way a command reaches one of the owner's vats.
pub(super) enum Way {
    /// It is awake: through its socket. The session is kept as long as the client is used.
    Awake(vat_capnp::owner::Client, #[allow(dead_code)] Session),
    /// It sleeps: its checkpoint is open here, and locked until it is dropped.
    Asleep(Box<Vat>),
}

/// What a command is going to do with a vat.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    Look,
    Change,
}

/// Finds the way. A vat that is just waking, going to sleep, or used by another command is waited for.
///
/// Before a sleeping vat is changed, the search path is asked as if it woke (R7): a turn of an older copy would
/// make that copy look newer than it is.
pub(super) async fn way(
    context: &Context,
    name: &Name,
    places: &Places,
    id: VatId,
    intent: Intent,
) -> Result<Way, Failure> {
    let began = Instant::now();
    loop {
        if let Some((client, session)) = owner(name, places).await? {
            return Ok(Way::Awake(client, session));
        }
        let protection = Opener::of(&context.config, name, places).protection()?;
        let options = StoreOptions::default();
        match Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, options) {
            Err(StoreError::Locked { .. }) if began.elapsed() < BUSY_DEADLINE => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            opened => {
                let store = opened?;
                if intent == Intent::Change && !context.config.search_path.value.is_empty() {
                    let endpoint = client_endpoint()?;
                    let resolver = process::witness_resolver(&endpoint, &context.config);
                    let mut report = |report| {
                        if let Report::Notice(text) = report {
                            context.output.notice(&text);
                        }
                    };
                    let asked =
                        process::ask_witness(name, &context.config, id, &store, &resolver, false, &mut report).await;
                    endpoint.close().await;
                    asked?;
                }
                let vat = Vat::open(store, id, context.kinds.clone(), system_clock(), Box::new(NoOutputs))?;
                return Ok(Way::Asleep(Box::new(vat)));
            }
        }
    }
}

/// Waits until everything that a sleeping vat was made to do is durable, and closes it.
pub(super) fn put_back(vat: Box<Vat>) -> Result<(), Failure> {
    let engine = vat.engine().clone();
    drop(vat);
    engine.store().wait_durable(engine.newest_turn())?;
    match Rc::try_unwrap(engine) {
        Ok(engine) => Ok(engine.close()?),
        // An object still holds the engine; dropping the last handle closes the store as well.
        Err(_) => Ok(()),
    }
}
