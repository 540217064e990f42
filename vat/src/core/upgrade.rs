//! Evolution: rows of older versions are brought to the newest form, rows of newer ones are refused.
//!
//! A row of an older version is upgraded when it is read, so a new program can go on at once. [`Vat::upgrade`] does
//! the same for all rows in one turn: then the owner knows that every row can be read, and the code for the old
//! versions can be left out of the program after. An upgrade that fails for one row leaves all as they were.

use std::iter;

use checkpoint::Store;

use super::{Vat, VatError, grants::Grant};
use crate::{
    engine::{Rows, Turn},
    kinds::Kinds,
    object::{ObjectError, StoredType, newest_version, note_version, upgraded},
    tables::{
        Description, NewestVersion, ObjectRecord, Outgoing, SPACE_GRANTS, SPACE_OBJECTS, SPACE_REFERENCES, SPACE_VAT,
        SPACE_VERSIONS,
    },
};

/// The types of the vat's own rows, by their spaces.
fn own_types() -> [(u64, StoredType); 5] {
    [
        (SPACE_VAT, StoredType::of::<Description>()),
        (SPACE_GRANTS, StoredType::of::<Grant>()),
        (SPACE_OBJECTS, StoredType::of::<ObjectRecord>()),
        (SPACE_REFERENCES, StoredType::of::<Outgoing>()),
        (SPACE_VERSIONS, StoredType::of::<NewestVersion>()),
    ]
}

/// Refuses a checkpoint in which a newer program has stored rows that this one cannot read.
///
/// A type that this program does not know at all is no reason: it belongs to objects of a kind that it does not
/// know, and they say so when they are reached.
pub(super) fn refuse_newer(store: &Store, kinds: &Kinds) -> Result<(), VatError> {
    let own = own_types();
    let own_version = |name: &[u8]| own.iter().find(|(_, own)| own.name.as_bytes() == name).map(|(_, own)| own.version);
    for (name, row) in store.scan(SPACE_VERSIONS)? {
        let found = newest_version(Some(&row))?;
        let what = String::from_utf8_lossy(&name).into_owned();
        match own_version(&name).or_else(|| kinds.known_version(&what)) {
            Some(known) if known < found => return Err(ObjectError::NewerRow { what, found, known }.into()),
            _ => {}
        }
    }
    Ok(())
}

/// How an upgrade ends that is only tried, or that fails: either way its turn is undone.
enum Undone {
    Tried(u64),
    Failed(ObjectError),
}

impl From<ObjectError> for Undone {
    fn from(error: ObjectError) -> Self {
        Self::Failed(error)
    }
}

impl Vat {
    /// Brings every row of an older version to the newest form, in one turn, and says how many there were.
    ///
    /// # Errors
    /// If any of them cannot be upgraded, or the turn would be too large: then all are as they were. Rows are still
    /// upgraded one by one when they are read.
    pub fn upgrade(&self) -> Result<u64, VatError> {
        Ok(self.engine.turn(|turn| self.upgrade_in(turn))?)
    }

    /// How many rows [`Vat::upgrade`] would change. It is tried, and undone.
    ///
    /// # Errors
    /// As [`Vat::upgrade`], also if the turn would be too large.
    pub fn try_upgrade(&self) -> Result<u64, VatError> {
        let tried = self.engine.turn(|turn| -> Result<(), Undone> {
            let rows = self.upgrade_in(turn)?;
            turn.check_size().map_err(ObjectError::from)?;
            Err(Undone::Tried(rows))
        });
        match tried {
            Err(Undone::Tried(rows)) => Ok(rows),
            Err(Undone::Failed(error)) => Err(error.into()),
            Ok(()) => Ok(0),
        }
    }

    fn upgrade_in(&self, turn: &mut Turn<'_>) -> Result<u64, ObjectError> {
        let mut count = 0;
        for (space, stored) in own_types() {
            for (name, row) in self.rows_in(space)? {
                if let Some((_, newest)) = upgraded(&[stored], &row)? {
                    note_version(turn, stored)?;
                    turn.put(space, &name, newest.row)?;
                    count += 1;
                }
            }
        }
        let others = self.objects.others()?.into_iter().map(|(object, _)| object);
        for object in iter::once(self.objects.root()).chain(others) {
            let types = self.objects.kind_of(object)?.types();
            for (name, row) in self.rows_in(object.0)? {
                if let Some((stored, newest)) = upgraded(types, &row)? {
                    self.objects.put_encoded(turn, object, &name, stored, newest)?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    fn rows_in(&self, space: u64) -> Result<Rows, ObjectError> {
        Ok(self.engine.with_rows(space, Clone::clone)?)
    }
}
