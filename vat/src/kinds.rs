//! The kinds of objects that a program can make, and the schemas that describe them to callers.

use crate::{core::VatError, object::Kind, objects};

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
    /// [`VatError::UnknownKind`].
    pub fn find(&self, name: &str) -> Result<&Kind, VatError> {
        self.0.iter().find(|kind| kind.name() == name).ok_or_else(|| VatError::UnknownKind {
            kind: name.to_owned(),
            known: self.0.iter().map(Kind::name).collect::<Vec<_>>().join(", "),
        })
    }
}
