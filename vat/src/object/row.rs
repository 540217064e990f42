//! Rows: the stored form {type, version, body} of states and entries, and how it evolves.
//!
//! A row of an older version is upgraded when it is read ([`State::upgrade`]); one of a newer version is refused,
//! because a program that guesses destroys what it does not understand. So that a vat with such rows is refused when
//! it is opened, and not when one of them is met, the vat keeps the newest version of each type that it ever stored
//! ([`SPACE_VERSIONS`]), in the same turn that first stores it.

use std::{cmp::Ordering, collections::BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    error::{ObjectError, RowProblem},
    reference::{ObjectId, references_in},
};
use crate::{
    engine::Turn,
    tables::{NewestVersion, SPACE_VERSIONS},
};

/// The state of an object, or of one entry that it keeps: plain data with a version.
pub trait State: Serialize + DeserializeOwned + Clone + 'static {
    /// Names the type in stored rows. Choose it once; it must not change when the Rust type is renamed.
    const TYPE: &'static str;

    /// Version of the stored form. Raise it when the serde form changes, and read the older ones in
    /// [`State::upgrade`].
    const VERSION: u32 = 1;

    /// Reads a row of an older version. Rows are upgraded when they are read, and stored in the new form
    /// when they are next written, or all at once by [`Vat::upgrade`](crate::core::Vat::upgrade).
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
        Ordering::Equal => postcard::from_bytes(row.body).map_err(|error| problem(error.into())),
        Ordering::Less => S::upgrade(row.version, row.body).map_err(problem),
        Ordering::Greater => {
            Err(ObjectError::NewerRow { what: S::TYPE.to_owned(), found: row.version, known: S::VERSION })
        }
    }
}

/// Stages a row of the vat's own tables, which refer to no object.
pub(crate) fn put_own<S: State>(turn: &mut Turn<'_>, space: u64, name: &[u8], state: &S) -> Result<(), ObjectError> {
    note_version(turn, StoredType::of::<S>())?;
    Ok(turn.put(space, name, encode_row(state)?)?)
}

/// Notes the version of a row that is about to be stored, if it is newer than all of its type before.
pub(crate) fn note_version(turn: &mut Turn<'_>, stored: StoredType) -> Result<(), ObjectError> {
    // Which is what a type without an entry is taken to have.
    if stored.version == 1 {
        return Ok(());
    }
    if stored.version <= newest_version(turn.get(SPACE_VERSIONS, stored.name.as_bytes())?.as_deref())? {
        return Ok(());
    }
    Ok(turn.put(SPACE_VERSIONS, stored.name.as_bytes(), encode_row(&NewestVersion(stored.version))?)?)
}

/// The newest version of a type that was ever stored, by its row in the table of versions.
pub(crate) fn newest_version(row: Option<&[u8]>) -> Result<u32, ObjectError> {
    row.map_or(Ok(1), |row| Ok(decode_row::<NewestVersion>(row)?.0))
}

/// A type of rows that a program knows how to read, without its Rust type.
#[derive(Clone, Copy)]
pub(crate) struct StoredType {
    /// [`State::TYPE`].
    pub(crate) name: &'static str,
    /// [`State::VERSION`].
    pub(crate) version: u32,
    upgrade: fn(&[u8]) -> Result<Encoded, ObjectError>,
}

/// A row in the newest form of its type, and the objects that it refers to.
pub(crate) struct Encoded {
    pub(crate) row: Vec<u8>,
    pub(crate) references: BTreeSet<ObjectId>,
}

impl StoredType {
    pub(crate) fn of<S: State>() -> Self {
        Self { name: S::TYPE, version: S::VERSION, upgrade: |row| Encoded::of(&decode_row::<S>(row)?) }
    }
}

impl Encoded {
    fn of<S: State>(state: &S) -> Result<Self, ObjectError> {
        Ok(Self { row: encode_row(state)?, references: references_of(state)? })
    }
}

/// The objects that a state or an entry refers to.
pub(crate) fn references_of<S: State>(state: &S) -> Result<BTreeSet<ObjectId>, ObjectError> {
    references_in(state)
        .map_err(|error| ObjectError::Row { what: S::TYPE, reason: RowProblem::Unreadable(error.to_string()) })
}

/// The newest form of a row, and its type; `None` if it has that form already.
///
/// # Errors
/// If its type is not among `types`, its version is newer than is known, or it cannot be upgraded.
pub(crate) fn upgraded(types: &[StoredType], bytes: &[u8]) -> Result<Option<(StoredType, Encoded)>, ObjectError> {
    let problem = |error: postcard::Error| ObjectError::Row { what: "row", reason: error.into() };
    let row: Row<'_> = postcard::from_bytes(bytes).map_err(problem)?;
    let stored = types.iter().find(|stored| stored.name == row.kind);
    let stored = stored.ok_or_else(|| ObjectError::UndeclaredType { what: row.kind.to_owned() })?;
    match row.version.cmp(&stored.version) {
        Ordering::Equal => Ok(None),
        Ordering::Less => Ok(Some((*stored, (stored.upgrade)(bytes)?))),
        Ordering::Greater => {
            Err(ObjectError::NewerRow { what: row.kind.to_owned(), found: row.version, known: stored.version })
        }
    }
}
