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

use std::{
    collections::HashSet,
    ops::{AddAssign, Bound},
};

use super::{Vat, VatError};
use crate::{
    engine::{Rows, Turn},
    limits::SWEEP_TURN_BYTES,
    object::{ObjectError, ObjectId, decode_row},
    tables::{Outgoing, SPACE_OBJECTS, SPACE_REFERENCES, object_name},
};

/// What a sweep has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects, counted when the last of their rows is gone.
    pub objects: u64,
    /// Rows of them.
    pub rows: u64,
    /// The turns that it took; 0: there was no garbage, and nothing was written.
    pub turns: u64,
}

impl AddAssign for Swept {
    fn add_assign(&mut self, part: Self) {
        self.objects += part.objects;
        self.rows += part.rows;
        self.turns += part.turns;
    }
}

/// How many bytes a removal takes in a turn besides the name, at most.
const REMOVAL_BYTES: usize = 24;

impl Vat {
    /// Removes all objects that nothing leads to.
    ///
    /// It looks only if something has happened since the last sweep that can make garbage, or if there was none
    /// since the vat was opened; and without garbage it writes nothing. The time it takes grows with the number of
    /// objects, and with the garbage: a vat that is awake does it in parts ([`Vat::sweep_part`]).
    ///
    /// # Errors
    /// What the turns refuse. What was removed until then was garbage; the rest is found again.
    pub fn sweep(&self) -> Result<Swept, VatError> {
        let mut swept = Swept::default();
        loop {
            let part = self.sweep_part()?;
            if part.turns == 0 {
                return Ok(swept);
            }
            swept += part;
        }
    }

    /// The same, but at most one turn of it. There is no garbage left that is known of when it took none.
    ///
    /// Each part finds the garbage anew, so whatever happens between two of them is heeded.
    ///
    /// # Errors
    /// As [`Vat::sweep`].
    pub fn sweep_part(&self) -> Result<Swept, VatError> {
        if !self.objects.take_litter() {
            return Ok(Swept::default());
        }
        let part = self.roots().and_then(|roots| self.sweep_part_from(roots, SWEEP_TURN_BYTES));
        // Only one that has found nothing more knows that there is nothing more.
        if !matches!(part, Ok(Swept { turns: 0, .. })) {
            self.objects.litter();
        }
        part
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

    fn sweep_part_from(&self, roots: Vec<ObjectId>, turn_bytes: usize) -> Result<Swept, VatError> {
        let objects: Vec<ObjectId> = self.objects.others()?.into_iter().map(|(object, _)| object).collect();
        if objects.is_empty() {
            return Ok(Swept::default());
        }
        let reached = self.engine.with_rows(SPACE_REFERENCES, |references| reach(references, roots))??;
        let mut garbage = objects.into_iter().filter(|object| !reached.contains(object)).peekable();
        if garbage.peek().is_none() {
            return Ok(Swept::default());
        }
        let (mut room, mut swept) = (Room { left: turn_bytes, rows: 0 }, HashSet::new());
        self.engine.turn(|turn| {
            for object in garbage {
                let whole = self.remove_rows(turn, object, &mut room);
                // One object at a time is in memory, however much garbage there is; also if it could not be read.
                self.engine.forget(object.0);
                if !whole? {
                    break;
                }
                swept.insert(object);
            }
            Ok::<(), ObjectError>(())
        })?;
        self.objects.forget_obtained(&swept);
        Ok(Swept { objects: swept.len() as u64, rows: room.rows, turns: 1 })
    }

    /// Stages the removal of the rows of an object, as many as there is room for, and says whether these were all. The
    /// last to go is the one that says that the object exists.
    fn remove_rows(&self, turn: &mut Turn<'_>, object: ObjectId, room: &mut Room) -> Result<bool, ObjectError> {
        let of_table = self
            .engine
            .with_rows(SPACE_REFERENCES, |rows| room.take(references_of(rows, object).map(|(name, _)| name)))?;
        of_table.names.iter().try_for_each(|name| turn.remove(SPACE_REFERENCES, name))?;
        if !of_table.all {
            return Ok(false);
        }
        let own = self.engine.with_rows(object.0, |rows| room.take(rows.keys()))?;
        own.names.iter().try_for_each(|name| turn.remove(object.0, name))?;
        let name = object_name(object).to_vec();
        if !own.all || !room.take([&name]).all {
            return Ok(false);
        }
        turn.remove(SPACE_OBJECTS, &name)?;
        Ok(true)
    }
}

/// The room that is left in a turn.
struct Room {
    left: usize,
    /// The removals that it has.
    rows: u64,
}

/// The rows that a turn had room for.
struct Taken {
    names: Vec<Vec<u8>>,
    all: bool,
}

impl Room {
    /// Takes rows in their order. The first of a turn always finds room, so that a sweep comes to its end.
    fn take<'a>(&mut self, names: impl IntoIterator<Item = &'a Vec<u8>>) -> Taken {
        let mut taken = Taken { names: Vec::new(), all: true };
        for name in names {
            let bytes = name.len() + REMOVAL_BYTES;
            if bytes > self.left && self.rows > 0 {
                taken.all = false;
                break;
            }
            self.left = self.left.saturating_sub(bytes);
            self.rows += 1;
            taken.names.push(name.clone());
        }
        taken
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

#[cfg(test)]
mod tests;
