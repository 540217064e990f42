//! Garbage: objects that nothing leads to are removed, with all their rows.
//!
//! An object is needed as long as a path of references leads to it from one of the [`roots`](Vat::roots). Which object
//! refers to which is known without waking any: the vat keeps the references of every row in a table, written in the
//! turn that wrote the row. So a sweep is a walk through that table, and cycles are garbage like anything else.
//!
//! **Why it may be done in several turns.** A sweep that removes much is cut, so that no turn is too large. Whatever
//! came before a crash between two of them, the vat is sound. What is removed was unreachable, and what is unreachable
//! stays so: a reference can only be copied by an object that runs, and only what is reachable can run. A needed
//! object loses no row, since only rows of garbage are touched. And what is left of the garbage is found again by the
//! next sweep, because the row that says that an object exists is the last of its rows to go.

use std::{collections::HashSet, ops::Bound};

use super::{Vat, VatError};
use crate::{
    engine::Rows,
    limits::SWEEP_TURN_BYTES,
    object::{ObjectError, ObjectId, decode_row},
    tables::{Outgoing, SPACE_OBJECTS, SPACE_REFERENCES, object_name},
};

/// What a sweep has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects.
    pub objects: u64,
    /// Their rows.
    pub rows: u64,
    /// The turns that it took; 0: there was no garbage, and nothing was written.
    pub turns: u64,
}

/// A row that a sweep removes.
type Doomed = (u64, Vec<u8>);

/// How many bytes a removal takes in a turn besides the name, at most.
const REMOVAL_BYTES: usize = 24;

impl Vat {
    /// Removes all objects that nothing leads to.
    ///
    /// It looks only if something has happened since the last sweep that can make garbage, or if there was none
    /// since the vat was opened; and without garbage it writes nothing. The time it takes grows with the number of
    /// objects.
    ///
    /// # Errors
    /// What the turns refuse. What was removed until then was garbage; the rest is found again.
    pub fn sweep(&self) -> Result<Swept, VatError> {
        if !self.objects.take_litter() {
            return Ok(Swept::default());
        }
        let swept = self.roots().and_then(|roots| self.sweep_from(roots, SWEEP_TURN_BYTES));
        if swept.is_err() {
            self.objects.litter();
        }
        swept
    }

    /// Everything outside of the objects that can lead to one.
    fn roots(&self) -> Result<Vec<ObjectId>, VatError> {
        let mut roots = vec![self.objects.root()];
        // Also of grants that have expired: that depends on a clock, which may be wrong for a day, and removing cannot
        // be undone. Revoking is the owner's word.
        roots.extend(self.grants()?.into_iter().map(|(_, grant)| ObjectId(grant.object)));
        // Sessions, callers within the vat, and objects in the middle of a method.
        roots.extend(self.objects.held());
        Ok(roots)
    }

    fn sweep_from(&self, roots: Vec<ObjectId>, turn_bytes: usize) -> Result<Swept, VatError> {
        let objects: Vec<ObjectId> = self.objects.others()?.into_iter().map(|(object, _)| object).collect();
        if objects.is_empty() {
            return Ok(Swept::default());
        }
        let reached = self.engine.with_rows(SPACE_REFERENCES, |references| reach(references, roots))??;
        let garbage: Vec<ObjectId> = objects.into_iter().filter(|object| !reached.contains(object)).collect();
        let mut swept = Swept { objects: garbage.len() as u64, ..Swept::default() };
        let mut doomed = Vec::new();
        for object in &garbage {
            doomed.extend(self.rows_of(*object)?);
        }
        swept.rows = doomed.len() as u64;
        for rows in parts(&doomed, turn_bytes) {
            self.engine.turn(|turn| {
                rows.iter().try_for_each(|(space, name)| turn.remove(*space, name)).map_err(ObjectError::from)
            })?;
            swept.turns += 1;
        }
        garbage.iter().for_each(|object| self.engine.forget(object.0));
        Ok(swept)
    }

    /// All rows of an object; last the one that says that it exists.
    fn rows_of(&self, object: ObjectId) -> Result<Vec<Doomed>, VatError> {
        let mut rows: Vec<Doomed> = self
            .engine
            .with_rows(SPACE_REFERENCES, |rows| references_of(rows, object).map(|(name, _)| name.clone()).collect())
            .map(|names: Vec<_>| names.into_iter().map(|name| (SPACE_REFERENCES, name)).collect())?;
        self.engine.with_rows(object.0, |own| rows.extend(own.keys().map(|name| (object.0, name.clone()))))?;
        rows.push((SPACE_OBJECTS, object_name(object).to_vec()));
        Ok(rows)
    }
}

/// All objects that references lead to from the roots, and these themselves.
fn reach(references: &Rows, roots: Vec<ObjectId>) -> Result<HashSet<ObjectId>, ObjectError> {
    let mut reached: HashSet<ObjectId> = roots.iter().copied().collect();
    let mut open = roots;
    while let Some(object) = open.pop() {
        for (_, row) in references_of(references, object) {
            let Outgoing(targets) = decode_row(row)?;
            open.extend(targets.into_iter().filter(|target| reached.insert(*target)));
        }
    }
    Ok(reached)
}

/// The rows in the table of references that belong to an object.
fn references_of(references: &Rows, object: ObjectId) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
    let prefix = object_name(object);
    references
        .range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded))
        .take_while(move |(name, _)| name.starts_with(&prefix))
}

/// Cuts removals into turns, in their order.
fn parts(doomed: &[Doomed], turn_bytes: usize) -> Vec<&[Doomed]> {
    let mut parts = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (index, (_, name)) in doomed.iter().enumerate() {
        let more = name.len() + REMOVAL_BYTES;
        if bytes + more > turn_bytes && index > begin {
            parts.push(&doomed[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += more;
    }
    if begin < doomed.len() {
        parts.push(&doomed[begin..]);
    }
    parts
}

#[cfg(test)]
mod tests;
