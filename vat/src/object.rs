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
//! `examples/poll` is such an object with an interface of its own, as a whole program. The rules that make it safe hold by construction:
//! the closure of [`Handle::turn`] works on a copy, so an error or a panic leaves nothing behind (R1); the
//! handle itself compares and stores the state after each turn, so no change can be forgotten; and the
//! answer waits for the turn to be durable without the object knowing (R3).

use std::{
    cell::{Cell, RefCell},
    ops::Bound,
    rc::Rc,
};

use capnp::{capability::FromClientHook, private::capability::ClientHook, traits::HasTypeId};
use checkpoint::StoreError;
use schemas::{Coded, ErrorCode, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::engine::{Engine, Turn, names_of};

/// Number of an object inside its vat; also the space that holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectId(pub u64);

/// Names inside an object's space: its state, and the entries that it keeps beside it.
const STATE_ROW: &[u8] = &[0];
const ENTRY_PREFIX: u8 = 1;

/// Why an object refused a call. Whatever the reason, the turn was undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The object has nothing of this name.
    #[error("there is no {what} named {name:?}")]
    NotFound {
        /// What kind of thing was looked for.
        what: &'static str,
        /// The name that was looked for.
        name: String,
    },
    /// A number would not fit.
    #[error("{what} would not fit 64 bits")]
    Overflow {
        /// Which number.
        what: &'static str,
    },
    /// A value is larger than the object stores.
    #[error("{what} has {found} bytes; at most {limit} are stored")]
    TooLarge {
        /// Which value.
        what: &'static str,
        /// Its size in bytes.
        found: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// An argument is not what the method takes.
    #[error("{what}: {reason}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Any other refusal, in the object's own words.
    #[error("{0}")]
    Refused(String),
    /// The object's code panicked.
    #[error("the object's code panicked; its turn was undone")]
    Panicked,
    /// A turn was begun inside a turn.
    #[error("a turn was begun inside a turn; both were undone")]
    Nested,
    /// The grant through which the object was reached was revoked or has expired.
    #[error("the reference through which this object was reached was revoked or has expired")]
    Withdrawn,
    /// One object was asked for under two state types.
    #[error("object {object} is awake with a state of another type")]
    TwoTypes {
        /// The object's number.
        object: u64,
    },
    /// A stored row was written by a newer program.
    #[error("a stored {what} has version {found}, this program knows {known}")]
    NewerRow {
        /// The row's type.
        what: String,
        /// The version that is stored.
        found: u32,
        /// The newest version that this program can read.
        known: u32,
    },
    /// A stored row is not what its type says.
    #[error("a stored {what} cannot be read: {reason}")]
    Row {
        /// The row's type.
        what: &'static str,
        /// Why.
        reason: RowProblem,
    },
    /// The checkpoint below refused.
    #[error(transparent)]
    Checkpoint(#[from] StoreError),
}

/// What is wrong with a stored row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// It does not decode.
    #[error("it does not decode ({0})")]
    Decode(#[from] postcard::Error),
    /// It is of another type.
    #[error("it is a {found}")]
    Type {
        /// The type that is stored.
        found: String,
    },
    /// It is of an older version that the type has no upgrade from.
    #[error("there is no way from its version {found}")]
    NoUpgrade {
        /// The version that is stored.
        found: u32,
    },
}

impl Coded for ObjectError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ObjectNotFound,
            Self::Overflow { .. } => ErrorCode::ObjectOverflow,
            Self::TooLarge { .. } => ErrorCode::ObjectTooLarge,
            Self::Argument { .. } => ErrorCode::ObjectArgument,
            Self::Refused(_) | Self::Panicked | Self::Nested => ErrorCode::ObjectFailed,
            Self::Withdrawn => ErrorCode::RefDenied,
            Self::TwoTypes { .. } => ErrorCode::Internal,
            Self::NewerRow { .. } => ErrorCode::CheckpointVersion,
            Self::Row { .. } => ErrorCode::CheckpointDamaged,
            Self::Checkpoint(error) => error.code(),
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.next(),
            _ => None,
        }
    }
}

impl From<ObjectError> for capnp::Error {
    fn from(error: ObjectError) -> Self {
        wire_error(&error)
    }
}

/// The exception that carries an error over a session, with its code where every client can read it.
pub fn wire_error(error: &dyn Coded) -> capnp::Error {
    capnp::Error::failed(error.code().to_wire(&error.to_string()))
}

/// The state of an object, or of one entry that it keeps: plain data with a version.
pub trait State: Serialize + DeserializeOwned + Clone + Default + 'static {
    /// Names the type in stored rows. Choose it once; it must not change when the Rust type is renamed.
    const TYPE: &'static str;

    /// Version of the stored form. Raise it when the serde form changes, and read the older ones in
    /// [`State::upgrade`].
    const VERSION: u32 = 1;

    /// Reads a row of an older version. Rows are upgraded when they are read, and stored in the new form
    /// when they are next written.
    ///
    /// # Errors
    /// [`RowProblem::NoUpgrade`] if there is no way from that version.
    fn upgrade(version: u32, _body: &[u8]) -> Result<Self, RowProblem> {
        Err(RowProblem::NoUpgrade { found: version })
    }
}

/// A stored row: {type, version, body}.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    kind: &'a str,
    version: u32,
    body: &'a [u8],
}

pub(crate) fn encode_row<S: State>(state: &S) -> Result<Vec<u8>, ObjectError> {
    let problem = |error: postcard::Error| ObjectError::Row { what: S::TYPE, reason: error.into() };
    let body = postcard::to_stdvec(state).map_err(problem)?;
    postcard::to_stdvec(&Row { kind: S::TYPE, version: S::VERSION, body: &body }).map_err(problem)
}

pub(crate) fn decode_row<S: State>(bytes: &[u8]) -> Result<S, ObjectError> {
    let problem = |reason: RowProblem| ObjectError::Row { what: S::TYPE, reason };
    let row: Row<'_> = postcard::from_bytes(bytes).map_err(|error| problem(error.into()))?;
    if row.kind != S::TYPE {
        return Err(problem(RowProblem::Type { found: row.kind.to_owned() }));
    }
    match row.version.cmp(&S::VERSION) {
        std::cmp::Ordering::Equal => postcard::from_bytes(row.body).map_err(|error| problem(error.into())),
        std::cmp::Ordering::Less => S::upgrade(row.version, row.body).map_err(problem),
        std::cmp::Ordering::Greater => {
            Err(ObjectError::NewerRow { what: S::TYPE.to_owned(), found: row.version, known: S::VERSION })
        }
    }
}

/// By what right a handle is used: the grant through which its object was reached.
///
/// Every grant gets handles of its own to the shared state, so that revoking it, or its expiry, takes
/// effect on capabilities that are live already, without anything standing between caller and object.
#[derive(Clone, Default)]
pub(crate) struct Authority {
    /// Set when the grant is revoked.
    pub(crate) revoked: Rc<Cell<bool>>,
    /// When the grant ends; `None`: never.
    pub(crate) expires: Option<Timestamp>,
}

impl Authority {
    fn check(&self, now: impl FnOnce() -> Timestamp) -> Result<(), ObjectError> {
        if self.revoked.get() || self.expires.is_some_and(|expires| expires <= now()) {
            return Err(ObjectError::Withdrawn);
        }
        Ok(())
    }
}

/// An object's access to its own state, and to nothing else of the vat.
pub struct Handle<S> {
    engine: Rc<Engine>,
    object: ObjectId,
    state: Rc<RefCell<S>>,
    authority: Authority,
}

impl<S: State> Handle<S> {
    pub(crate) fn load(engine: Rc<Engine>, object: ObjectId, authority: Authority) -> Result<Self, ObjectError> {
        let state = engine.state(object.0, || match engine.get(object.0, STATE_ROW)? {
            Some(row) => decode_row(&row),
            None => Ok(S::default()),
        })?;
        Ok(Self { engine, object, state, authority })
    }

    /// Reads the state as of the newest turn. The answer that is made of it waits until that turn is
    /// durable.
    ///
    /// # Errors
    /// [`ObjectError::Checkpoint`] if the vat has stopped.
    pub fn read<R>(&self, look: impl FnOnce(&S, &Entries<'_>) -> Result<R, ObjectError>) -> Result<R, ObjectError> {
        self.authority.check(|| self.engine.now())?;
        self.engine.healthy()?;
        let state = self.state.try_borrow().map_err(|_| ObjectError::Nested)?;
        look(&state, &Entries { engine: &self.engine, object: self.object })
    }

    /// Changes the state. The closure works on a copy: if it returns an error or panics, nothing happened.
    ///
    /// # Errors
    /// The closure's own, and those of [`Engine::turn`].
    pub fn turn<R>(
        &self,
        change: impl FnOnce(&mut S, &mut ObjectTurn<'_, '_>) -> Result<R, ObjectError>,
    ) -> Result<R, ObjectError> {
        self.authority.check(|| self.engine.now())?;
        // Held until the end, so that nothing can be committed whose state could not be taken over.
        let mut current = self.state.try_borrow_mut().map_err(|_| ObjectError::Nested)?;
        let mut state = current.clone();
        let result = self.engine.turn(|turn| {
            let result = change(&mut state, &mut ObjectTurn { turn, object: self.object })?;
            turn.put(self.object.0, STATE_ROW, encode_row(&state)?)?;
            Ok::<R, ObjectError>(result)
        })?;
        *current = state;
        Ok(result)
    }
}

/// An object's own turn: the entries that it keeps beside its state.
///
/// Entries are for what grows: a turn that adds one writes that one, not the whole object.
pub struct ObjectTurn<'turn, 'engine> {
    turn: &'turn mut Turn<'engine>,
    object: ObjectId,
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
        self.turn.get(self.object.0, &entry_name(name))?.map(|row| decode_row(&row)).transpose()
    }

    /// Whether there is an entry under `name`.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn contains(&self, name: &[u8]) -> Result<bool, ObjectError> {
        Ok(self.turn.get(self.object.0, &entry_name(name))?.is_some())
    }

    /// Keeps `entry` under `name`.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn put<T: State>(&mut self, name: &[u8], entry: &T) -> Result<(), ObjectError> {
        let row = encode_row(entry)?;
        Ok(self.turn.put(self.object.0, &entry_name(name), row)?)
    }

    /// Removes the entry under `name`.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn remove(&mut self, name: &[u8]) -> Result<(), ObjectError> {
        Ok(self.turn.remove(self.object.0, &entry_name(name))?)
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

/// A kind of object that a program knows how to make: what `vat new --object KIND` names.
#[derive(Clone)]
pub struct Kind {
    name: &'static str,
    summary: &'static str,
    interface_id: u64,
    schema: &'static [u8],
    make: MakeObject,
}

type MakeObject = Rc<dyn Fn(&Rc<Engine>, ObjectId, Authority) -> Result<Box<dyn ClientHook>, ObjectError>>;

impl Kind {
    /// A kind of object with state `S` and the Cap'n Proto client type `C`.
    ///
    /// `schema` is the `CodeGeneratorRequest` of its interface (`capnp compile -o-`), from which callers
    /// learn its methods. `object` makes the client of the object that a handle belongs to.
    pub fn new<S, C>(
        name: &'static str,
        summary: &'static str,
        schema: &'static [u8],
        object: impl Fn(Handle<S>) -> C + 'static,
    ) -> Self
    where
        S: State,
        C: FromClientHook + HasTypeId,
    {
        Self {
            name,
            summary,
            interface_id: C::TYPE_ID,
            schema,
            make: Rc::new(move |engine, id, authority| {
                Ok(object(Handle::load(engine.clone(), id, authority)?).into_client_hook())
            }),
        }
    }

    /// The name of the kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One line about it.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// The id of its Cap'n Proto interface.
    #[must_use]
    pub fn interface_id(&self) -> u64 {
        self.interface_id
    }

    /// The `CodeGeneratorRequest` that describes its interface.
    #[must_use]
    pub fn schema(&self) -> &'static [u8] {
        self.schema
    }

    pub(crate) fn activate(
        &self,
        engine: &Rc<Engine>,
        id: ObjectId,
        authority: Authority,
    ) -> Result<Box<dyn ClientHook>, ObjectError> {
        (self.make)(engine, id, authority)
    }
}
