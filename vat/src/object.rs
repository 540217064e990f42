//! Objects in Rust: a plain serde state type, the generated Cap'n Proto server trait, and a [`Handle`]
//! between the two.
//!
//! ```
//! use std::rc::Rc;
//! use schemas::objects_capnp::counter;
//! use vat::{Handle, Kind, State};
//!
//! #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
//! struct Clicks(u64);
//!
//! impl State for Clicks {
//!     const TYPE: &'static str = "example.clicks";
//! }
//!
//! struct Clicker(Handle<Clicks>);
//!
//! impl counter::Server for Clicker {
//!     async fn add(self: Rc<Self>, params: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
//!         let by = params.get()?.get_by();
//!         let total = self.0.turn(|clicks, _| {
//!             clicks.0 += by;
//!             Ok(clicks.0)
//!         })?;
//!         results.get().set_total(total);
//!         Ok(())
//!     }
//! }
//!
//! let kind = Kind::new("clicker", "counts clicks", schemas::SCHEMA_REQUEST, |handle| -> counter::Client {
//!     capnp_rpc::new_client(Clicker(handle))
//! });
//! assert_eq!(kind.name(), "clicker");
//! ```
//!
//! An object can make others, keep references to them in its state, and return them:
//!
//! ```
//! # use std::{collections::BTreeMap, rc::Rc};
//! # use schemas::objects_capnp::{container, counter};
//! # use vat::{Handle, Kind, State};
//! use vat::Reference;
//!
//! #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
//! struct Drawer(BTreeMap<String, Reference>);
//!
//! impl State for Drawer {
//!     const TYPE: &'static str = "example.drawer";
//! }
//!
//! /// Has a counter under every name: it is made when somebody first asks for it.
//! struct Counters(Handle<Drawer>);
//!
//! impl container::Server for Counters {
//!     async fn open(
//!         self: Rc<Self>,
//!         params: container::OpenParams,
//!         mut results: container::OpenResults,
//!     ) -> capnp::Result<()> {
//!         let name = params.get()?.get_name()?.to_string()?;
//!         let found = self.0.turn(|drawer, turn| {
//!             if let Some(found) = drawer.0.get(&name) {
//!                 return Ok(found.clone());
//!             }
//!             let made = turn.create("counter")?;
//!             drawer.0.insert(name, made.clone());
//!             Ok(made)
//!         })?;
//!         let counter: counter::Client = self.0.open(&found)?;
//!         let mut results = results.get();
//!         results.set_interface_id(self.0.kind(&found)?.interface_id());
//!         results.init_object().set_as_capability(counter.client.hook);
//!         Ok(())
//!     }
//! }
//!
//! let kind = Kind::new("counters", "many counters", schemas::SCHEMA_REQUEST, |handle| -> container::Client {
//!     capnp_rpc::new_client(Counters(handle))
//! });
//! assert_eq!(kind.name(), "counters");
//! ```
//!
//! `examples/poll` is such an object with an interface of its own, as a whole program. The rules that make it safe hold
//! by construction: the closure of [`Handle::turn`] works on a copy, so an error or a panic leaves nothing behind (R1);
//! the handle itself compares and stores the state after each turn, so no change can be forgotten, and finds the
//! references in it, so no object is removed that is still referred to; and the answer waits for the turn to be durable
//! without the object knowing (R3).

mod error;
mod hook;
mod kind;
mod reference;
mod row;
mod table;

use std::{cell::RefCell, ops::Bound, rc::Rc};

use capnp::capability::FromClientHook;
use schemas::Timestamp;

pub use self::{
    error::{ObjectError, RowProblem, wire_error},
    kind::Kind,
    reference::{ObjectId, Reference},
    row::State,
};
use self::{kind::Activation, table::Hold};
pub(crate) use self::{
    row::{StoredType, decode_row, encode_row, newest_version, note_version, put_own, upgraded},
    table::{Authority, ObjectTable},
};
use crate::engine::{Engine, Turn, names_of};

/// Names inside an object's space: its state, and the entries that it keeps beside it.
const STATE_ROW: &[u8] = &[0];
const ENTRY_PREFIX: u8 = 1;

/// An object's access to its own state, and to nothing else of the vat.
///
/// As long as there is a handle of an object, the object is not removed, even if nothing else leads to it. When the last
/// one is gone it sleeps: it takes no memory until it is reached again.
pub struct Handle<S> {
    hold: Hold,
    types: Rc<[StoredType]>,
    state: Rc<RefCell<S>>,
    authority: Authority,
}

impl<S: State> Handle<S> {
    fn load(activation: Activation) -> Result<Self, ObjectError>
    where
        S: Default,
    {
        let Activation { table, types, object, authority } = activation;
        // First, so that what was read is forgotten again if it cannot be used.
        let hold = Hold::new(table, object);
        let engine = hold.table().engine();
        let state = engine.state(object.0, || match engine.get(object.0, STATE_ROW)? {
            Some(row) => decode_row(&row),
            None => Ok(S::default()),
        })?;
        Ok(Self { hold, types, state, authority })
    }

    /// Reads the state as of the newest turn. The answer that is made of it waits until that turn is
    /// durable.
    ///
    /// # Errors
    /// [`ObjectError::Checkpoint`] if the vat has stopped.
    pub fn read<R>(&self, look: impl FnOnce(&S, &Entries<'_>) -> Result<R, ObjectError>) -> Result<R, ObjectError> {
        let engine = self.usable_engine()?;
        engine.healthy()?;
        let state = self.state.try_borrow().map_err(|_| ObjectError::Nested)?;
        look(&state, &Entries { engine, object: self.hold.object() })
    }

    /// Changes the state. The closure works on a copy: if it returns an error or panics, nothing happened.
    ///
    /// # Errors
    /// The closure's own, and those of [`Engine::turn`].
    pub fn turn<R>(
        &self,
        change: impl FnOnce(&mut S, &mut ObjectTurn<'_, '_>) -> Result<R, ObjectError>,
    ) -> Result<R, ObjectError> {
        let engine = self.usable_engine()?;
        // Held until the end, so that nothing can be committed whose state could not be taken over.
        let mut current = self.state.try_borrow_mut().map_err(|_| ObjectError::Nested)?;
        let mut state = current.clone();
        let result = engine.turn(|turn| {
            let (table, kept) = (self.hold.table(), (&*self.types, self.hold.object()));
            let result = change(&mut state, &mut ObjectTurn { turn, table, kept })?;
            table.put(turn, kept, kept.1, STATE_ROW, &state)?;
            Ok::<R, ObjectError>(result)
        })?;
        *current = state;
        Ok(result)
    }

    /// The live capability of an object that a reference leads to, to be called or to be returned from a method.
    ///
    /// It inherits the right of this handle: when the grant through which *this* object was reached is revoked or
    /// expires, the capability ends too. It keeps its object from being removed as long as somebody has it.
    ///
    /// Only what this object was given can be opened: what it refers to, has referred to since it is in use, or has
    /// made. A reference that was read from a caller's bytes opens nothing else; to everything else it leads nowhere.
    ///
    /// What a turn creates can be opened as soon as the turn has succeeded. A capability of another interface than the
    /// object has can be formed, and every call to it is refused; [`Handle::kind`] tells beforehand.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchObject`], [`ObjectError::UnknownKind`], or when the object's state cannot be read.
    pub fn open<C: FromClientHook>(&self, reference: &Reference) -> Result<C, ObjectError> {
        self.usable_engine()?.healthy()?;
        let Reference::Near(object) = reference;
        self.hold.table().check(self.hold.object(), *object)?;
        Ok(C::new(self.hold.table().activate(*object, self.authority.clone())?))
    }

    /// The kind of the object that a reference leads to.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchObject`], [`ObjectError::UnknownKind`].
    pub fn kind(&self, reference: &Reference) -> Result<&Kind, ObjectError> {
        self.usable_engine()?;
        let Reference::Near(object) = reference;
        self.hold.table().check(self.hold.object(), *object)?;
        self.hold.table().kind_of(*object)
    }

    fn usable_engine(&self) -> Result<&Engine, ObjectError> {
        let engine = self.hold.table().engine();
        self.authority.check(|| engine.now())?;
        Ok(engine)
    }
}

/// An object's own turn: the entries that it keeps beside its state, and the objects that it makes.
///
/// Entries are for what grows: a turn that adds one writes that one, not the whole object.
pub struct ObjectTurn<'turn, 'engine> {
    turn: &'turn mut Turn<'engine>,
    table: &'turn ObjectTable,
    /// What the object's kind declares that it stores, and the object.
    kept: (&'turn [StoredType], ObjectId),
}

impl ObjectTurn<'_, '_> {
    /// The time of the turn, by the vat's clock.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.turn.time()
    }

    /// The entry under `name`.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub fn get<T: State>(&self, name: &[u8]) -> Result<Option<T>, ObjectError> {
        self.turn.get(self.kept.1.0, &entry_name(name))?.map(|row| decode_row(&row)).transpose()
    }

    /// Whether there is an entry under `name`.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn contains(&self, name: &[u8]) -> Result<bool, ObjectError> {
        Ok(self.turn.get(self.kept.1.0, &entry_name(name))?.is_some())
    }

    /// Keeps `entry` under `name`.
    ///
    /// # Errors
    /// [`ObjectError::UndeclaredType`] if the kind does not declare that it keeps such entries
    /// ([`Kind::with_entry`]); [`ObjectError::NoSuchObject`] if the entry refers to an object that is not there; when
    /// the object's rows cannot be read.
    pub fn put<T: State>(&mut self, name: &[u8], entry: &T) -> Result<(), ObjectError> {
        self.table.put(self.turn, self.kept, self.kept.1, &entry_name(name), entry)
    }

    /// Removes the entry under `name`; whether there was one.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn remove(&mut self, name: &[u8]) -> Result<bool, ObjectError> {
        let was_there = self.contains(name)?;
        self.table.remove(self.turn, self.kept.1, &entry_name(name))?;
        Ok(was_there)
    }

    /// Makes an object of this vat, with the default state of its kind, and gives a reference to it.
    ///
    /// Keep the reference in the state or in an entry: an object to which nothing leads, and of which nobody has a
    /// capability, is removed.
    ///
    /// # Errors
    /// [`ObjectError::UnknownKind`] if the program has no such kind; [`ObjectError::TooManyObjects`].
    pub fn create(&mut self, kind: &str) -> Result<Reference, ObjectError> {
        Ok(Reference::Near(self.table.create(self.turn, self.kept.1, kind)?.0))
    }

    /// The same with a state to begin with.
    ///
    /// # Errors
    /// As [`ObjectTurn::create`]; [`ObjectError::UndeclaredType`] if the state is not of the kind's type.
    pub fn create_with<T: State>(&mut self, kind: &str, state: &T) -> Result<Reference, ObjectError> {
        Ok(Reference::Near(self.table.create_with(self.turn, self.kept.1, kind, state)?))
    }
}

/// The entries of an object, outside a turn.
pub struct Entries<'a> {
    engine: &'a Engine,
    object: ObjectId,
}

impl Entries<'_> {
    /// The entry under `name`.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub fn get<T: State>(&self, name: &[u8]) -> Result<Option<T>, ObjectError> {
        self.engine.get(self.object.0, &entry_name(name))?.map(|row| decode_row(&row)).transpose()
    }

    /// The names of at most `limit` entries that begin with `prefix` and come after `after` (`None`: from
    /// the first), in byte order, and whether there are more.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn names(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<Vec<u8>>, bool), ObjectError> {
        let prefix = entry_name(prefix);
        let after = after.map(entry_name);
        let after = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        Ok(self.engine.with_rows(self.object.0, |rows| {
            let mut found: Vec<Vec<u8>> =
                names_of(rows, &prefix, after).take(limit.saturating_add(1)).map(|name| name[1..].to_vec()).collect();
            let more = found.len() > limit;
            found.truncate(limit);
            (found, more)
        })?)
    }
}

fn entry_name(name: &[u8]) -> Vec<u8> {
    [&[ENTRY_PREFIX], name].concat()
}
