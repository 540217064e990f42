//! Names for things: sturdyrefs of other vats, and objects of this one.

use std::rc::Rc;

use schemas::{
    SturdyRef,
    objects_capnp::{container, directory},
};
use serde::{Deserialize, Serialize};

use super::{bounded, list_names};
use crate::{
    limits::{MAX_KEY_BYTES, MAX_REFERENCE_BYTES},
    object::{Handle, Kind, ObjectError, Reference, RowProblem, State},
};

/// A directory has no state of its own beside its entries.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Index;

impl State for Index {
    const TYPE: &'static str = "directory.index";
}

/// What a name stands for.
#[derive(Clone, Serialize, Deserialize)]
enum Binding {
    /// A whole sturdyref. It is a secret: no `Debug`, and it leaves only through `lookup`.
    SturdyRef(String),
    /// An object of this vat.
    Object(Reference),
}

impl State for Binding {
    const TYPE: &'static str = "directory.binding";
    const VERSION: u32 = 2;

    /// In version 1 there were sturdyrefs only.
    fn upgrade(version: u32, body: &[u8]) -> Result<Self, RowProblem> {
        match version {
            1 => Ok(Self::SturdyRef(postcard::from_bytes(body)?)),
            _ => Err(RowProblem::NoUpgrade { found: version }),
        }
    }
}

/// What `list` calls a sturdyref, where others have their kind.
const STURDYREF: &str = "sturdyref";

struct Directory(Handle<Index>);

pub(crate) fn directory() -> Kind {
    let object = |handle| -> directory::Client { capnp_rpc::new_client(Directory(handle)) };
    Kind::new("directory", "names for objects and sturdyrefs", schemas::SCHEMA_REQUEST, object).with_entry::<Binding>()
}

impl container::Server for Directory {
    async fn open(
        self: Rc<Self>,
        params: container::OpenParams,
        mut results: container::OpenResults,
    ) -> capnp::Result<()> {
        let name = params.get()?.get_name()?.to_str()?;
        let object = self.0.read(|_, entries| match entries.get(name.as_bytes())? {
            Some(Binding::Object(object)) => Ok(object),
            _ => Err(ObjectError::NotFound { what: "object", name: name.to_owned() }),
        })?;
        let mut results = results.get();
        results.set_interface_id(self.0.kind(&object)?.interface_id());
        let object: capnp::capability::Client = self.0.open(&object)?;
        results.init_object().set_as_capability(object.hook);
        Ok(())
    }
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
        let binding = Binding::SturdyRef(reference.expose().to_string());
        let replaced = self.0.turn(|_, turn| {
            let before = turn.get(name.as_bytes())?;
            if let Some(Binding::Object(_)) = before {
                return Err(ObjectError::Exists { name: name.clone() });
            }
            turn.put(name.as_bytes(), &binding)?;
            Ok(before.is_some())
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
        let reference = self.0.read(|_, entries| match entries.get(name.as_bytes())? {
            Some(Binding::SturdyRef(reference)) => Ok(reference),
            _ => Err(ObjectError::NotFound { what: STURDYREF, name: name.to_owned() }),
        })?;
        results.get().set_ref(&reference);
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        params: directory::ListParams,
        mut results: directory::ListResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (prefix, after) = (params.get_prefix()?.to_str()?, params.get_after()?.to_str()?);
        let (names, kinds, more) = self.0.read(|_, entries| {
            let (names, more) = list_names(entries, prefix, after, params.get_limit())?;
            let kinds = names.iter().map(|name| self.kind_of(entries.get(name.as_bytes())?));
            let kinds = kinds.collect::<Result<Vec<_>, ObjectError>>()?;
            Ok((names, kinds, more))
        })?;
        let mut results = results.get();
        results.set_more(more);
        results.set_names(&names[..])?;
        results.set_kinds(&kinds[..])?;
        Ok(())
    }

    async fn unbind(
        self: Rc<Self>,
        params: directory::UnbindParams,
        mut results: directory::UnbindResults,
    ) -> capnp::Result<()> {
        let name = params.get()?.get_name()?.to_str()?;
        let removed = self.0.turn(|_, turn| turn.remove(name.as_bytes()))?;
        results.get().set_removed(removed);
        Ok(())
    }

    async fn make(
        self: Rc<Self>,
        params: directory::MakeParams,
        mut results: directory::MakeResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let name = bounded("name", params.get_name()?.to_str()?, MAX_KEY_BYTES)?;
        // No path could lead to it. A sturdyref may have any name: it is looked up, and no path leads through it.
        if name.is_empty() || name.contains('/') {
            let reason = "the name of an object is not empty and has no / in it, or no path leads to it".to_owned();
            return Err(ObjectError::Argument { what: "name", reason }.into());
        }
        let kind = params.get_kind()?.to_str()?;
        let object = self.0.turn(|_, turn| {
            if turn.contains(name.as_bytes())? {
                return Err(ObjectError::Exists { name: name.clone() });
            }
            let object = turn.create(kind)?;
            turn.put(name.as_bytes(), &Binding::Object(object.clone()))?;
            Ok(object)
        })?;
        let mut results = results.get();
        results.set_interface_id(self.0.kind(&object)?.interface_id());
        let object: capnp::capability::Client = self.0.open(&object)?;
        results.init_object().set_as_capability(object.hook);
        Ok(())
    }
}

impl Directory {
    /// What `list` says that a name stands for. An object of a kind that this program does not know hides no other.
    fn kind_of(&self, binding: Option<Binding>) -> Result<&str, ObjectError> {
        match binding {
            Some(Binding::Object(object)) => match self.0.kind(&object) {
                Ok(kind) => Ok(kind.name()),
                Err(ObjectError::UnknownKind { .. }) => Ok("unknown"),
                Err(error) => Err(error),
            },
            _ => Ok(STURDYREF),
        }
    }
}
