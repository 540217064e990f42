//! A number that only grows.

use std::rc::Rc;

use schemas::objects_capnp::counter;
use serde::{Deserialize, Serialize};

use crate::object::{Handle, Kind, ObjectError, State};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Total(u64);

impl State for Total {
    const TYPE: &'static str = "counter.total";
}

struct Counter(Handle<Total>);

pub(crate) fn counter() -> Kind {
    Kind::new("counter", "a number that only grows", schemas::SCHEMA_REQUEST, |handle| -> counter::Client {
        capnp_rpc::new_client(Counter(handle))
    })
}

impl counter::Server for Counter {
    async fn add(self: Rc<Self>, params: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
        let by = params.get()?.get_by();
        let total = self.0.turn(|total, _| {
            total.0 = total.0.checked_add(by).ok_or(ObjectError::Overflow { what: "the total" })?;
            Ok(total.0)
        })?;
        results.get().set_total(total);
        Ok(())
    }

    async fn get(self: Rc<Self>, _: counter::GetParams, mut results: counter::GetResults) -> capnp::Result<()> {
        results.get().set_total(self.0.read(|total, _| Ok(total.0))?);
        Ok(())
    }
}
