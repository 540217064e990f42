//! The vat's own tables: their spaces, and the rows in them.
//!
//! Every row of a vat stands under (space, name) in its checkpoint (R2). The spaces below [`FIRST_OBJECT`] are the
//! vat's own; from there on a space is one object, under the object's number. The numbers, names and types here are
//! the stored format: they never change their meaning.

use serde::{Deserialize, Serialize};

use crate::object::{ObjectId, State};

/// The seed of the vat's identity.
pub(crate) const SPACE_IDENTITY: u64 = 0;
/// What the vat knows of itself.
pub(crate) const SPACE_VAT: u64 = 1;
/// Grants, by the hashes of their secrets.
pub(crate) const SPACE_GRANTS: u64 = 2;
/// Objects other than the root, by number.
pub(crate) const SPACE_OBJECTS: u64 = 3;
/// Which objects a row refers to, by object and row. A row that refers to none has no entry.
pub(crate) const SPACE_REFERENCES: u64 = 4;
/// The newest version of each type of row that was ever stored, by type. A type without an entry was stored in
/// version 1 at most: so it is in every vat that was made before this table was.
pub(crate) const SPACE_VERSIONS: u64 = 5;
/// Objects take the numbers from here on.
pub(crate) const FIRST_OBJECT: u64 = 16;

pub(crate) const ROW_SEED: &[u8] = b"seed";
pub(crate) const ROW_VAT: &[u8] = b"vat";

/// What the vat knows of itself.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) root: u64,
    pub(crate) root_kind: String,
    /// The number of the next object. It only grows: a number is never used again.
    pub(crate) next_object: u64,
    pub(crate) next_grant: u64,
}

impl State for Description {
    const TYPE: &'static str = "vat.description";
}

/// An object other than the root.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ObjectRecord {
    pub(crate) kind: String,
}

impl State for ObjectRecord {
    const TYPE: &'static str = "vat.object";
}

/// The objects that one row refers to, in order and each once.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outgoing(pub(crate) Vec<ObjectId>);

impl State for Outgoing {
    const TYPE: &'static str = "vat.references";
}

/// The newest version of a type of row that was ever stored here.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct NewestVersion(pub(crate) u32);

impl State for NewestVersion {
    const TYPE: &'static str = "vat.version";
}

/// The name of an object in [`SPACE_OBJECTS`], and the beginning of the names of its rows in [`SPACE_REFERENCES`]:
/// big-endian, so that both are in order of the numbers.
pub(crate) fn object_name(object: ObjectId) -> [u8; 8] {
    object.0.to_be_bytes()
}

/// The object that a name in [`SPACE_OBJECTS`] stands for.
pub(crate) fn object_of_name(name: &[u8]) -> Option<ObjectId> {
    name.try_into().ok().map(u64::from_be_bytes).map(ObjectId)
}

/// The name of an object's row in [`SPACE_REFERENCES`].
pub(crate) fn references_name(object: ObjectId, row: &[u8]) -> Vec<u8> {
    [&object_name(object), row].concat()
}
