//! Petnames for sturdyrefs: an address book that can itself be shared.

use std::rc::Rc;

use schemas::{SturdyRef, objects_capnp::directory};
use serde::{Deserialize, Serialize};

use super::{bounded, list_names};
use crate::{
    limits::{MAX_KEY_BYTES, MAX_REFERENCE_BYTES},
    object::{Handle, Kind, ObjectError, State},
};

/// A directory has no state of its own beside its entries.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Index;

impl State for Index {
    const TYPE: &'static str = "directory.index";
}

/// A whole sturdyref. It is a secret: no `Debug`, and it leaves only through `lookup`.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Binding(String);

impl State for Binding {
    const TYPE: &'static str = "directory.binding";
}

struct Directory(Handle<Index>);

pub(crate) fn directory() -> Kind {
    Kind::new("directory", "names for sturdyrefs", schemas::SCHEMA_REQUEST, |handle| -> directory::Client {
        capnp_rpc::new_client(Directory(handle))
    })
}

impl directory::Server for Directory {
    async fn bind(
        self: Rc<Self>,
        params: directory::BindParams,
        mut results: directory::BindResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let name = bounded("name", params.get_name()?.to_str()?, MAX_KEY_BYTES)?;
        let reference = bounded("ref", params.get_ref()?.to_str()?, MAX_REFERENCE_BYTES)?;
        // The error of the parser names what is wrong and never repeats any of the reference.
        let reference: SturdyRef = reference.parse().map_err(|error: schemas::SturdyRefError| {
            ObjectError::Argument { what: "ref", reason: error.to_string() }
        })?;
        let binding = Binding(reference.expose().to_string());
        let replaced = self.0.turn(|_, turn| {
            let replaced = turn.contains(name.as_bytes())?;
            turn.put(name.as_bytes(), &binding)?;
            Ok(replaced)
        })?;
        results.get().set_replaced(replaced);
        Ok(())
    }

    async fn lookup(
        self: Rc<Self>,
        params: directory::LookupParams,
        mut results: directory::LookupResults,
    ) -> capnp::Result<()> {
        let name = params.get()?.get_name()?.to_str()?;
        let binding = self.0.read(|_, entries| {
            entries
                .get::<Binding>(name.as_bytes())?
                .ok_or_else(|| ObjectError::NotFound { what: "binding", name: name.to_owned() })
        })?;
        results.get().set_ref(&binding.0);
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        params: directory::ListParams,
        mut results: directory::ListResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (prefix, after) = (params.get_prefix()?.to_str()?, params.get_after()?.to_str()?);
        let (names, more) = self.0.read(|_, entries| list_names(entries, prefix, after, params.get_limit()))?;
        let mut results = results.get();
        results.set_more(more);
        results.set_names(&names[..])?;
        Ok(())
    }

    async fn unbind(
        self: Rc<Self>,
        params: directory::UnbindParams,
        mut results: directory::UnbindResults,
    ) -> capnp::Result<()> {
        let name = params.get()?.get_name()?.to_str()?;
        let removed = self.0.turn(|_, turn| {
            let removed = turn.contains(name.as_bytes())?;
            turn.remove(name.as_bytes())?;
            Ok(removed)
        })?;
        results.get().set_removed(removed);
        Ok(())
    }
}
