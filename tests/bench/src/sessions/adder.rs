//! The object that is called: a counter in memory, the same behind every kind of session.

use std::{cell::Cell, rc::Rc};

use capnp::capability::Client;
use schemas::objects_capnp::counter;

use crate::Failure;

/// Counts, and forgets with the process.
#[derive(Default)]
pub(super) struct Adder(Cell<u64>);

impl counter::Server for Adder {
    async fn add(
        self: Rc<Self>,
        params: counter::AddParams,
        mut results: counter::AddResults,
    ) -> Result<(), capnp::Error> {
        self.0.set(self.0.get().wrapping_add(params.get()?.get_by()));
        results.get().set_total(self.0.get());
        Ok(())
    }
}

/// A new one, as a capability.
pub(super) fn new() -> Client {
    let client: counter::Client = capnp_rpc::new_client(Adder::default());
    client.client
}

/// One call.
pub(super) async fn add(counter: &counter::Client) -> Result<(), Failure> {
    let mut request = counter.add_request();
    request.get().set_by(1);
    match request.send().promise.await?.get()?.get_total() {
        0 => Err("the counter does not count".into()),
        _ => Ok(()),
    }
}
