//! The kinds of objects that a program can make, and the schemas that describe them to callers.

use crate::{
    object::{Kind, ObjectError},
    objects,
};

/// A program's kinds of objects.
#[derive(Clone, Default)]
pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// The four that every vat program has: `counter`, `guestbook`, `notes` and `directory`.
    #[must_use]
    pub fn built_in() -> Self {
        Self(vec![objects::counter(), objects::guestbook(), objects::notes(), objects::directory()])
    }

    /// These and one more. A kind of the same name takes the place of the earlier one.
    #[must_use]
    pub fn with(mut self, kind: Kind) -> Self {
        self.0.retain(|other| other.name() != kind.name());
        self.0.push(kind);
        self
    }

    /// All kinds.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.0.iter()
    }

    /// The kind of this name.
    ///
    /// # Errors
    /// [`ObjectError::UnknownKind`].
    pub fn find(&self, name: &str) -> Result<&Kind, ObjectError> {
        self.0.iter().find(|kind| kind.name() == name).ok_or_else(|| ObjectError::UnknownKind {
            kind: name.to_owned(),
            known: self.0.iter().map(Kind::name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The newest version of a type of rows that the program knows; `None`: it does not know the type.
    pub(crate) fn known_version(&self, name: &str) -> Option<u32> {
        self.0.iter().flat_map(Kind::types).filter(|stored| stored.name == name).map(|stored| stored.version).max()
    }
}
