//! The objects of one vat: which there are, of what kinds, what they refer to, and which are in use.
//!
//! What lasts is in the vat's own tables ([`crate::tables`]) and changes with the turn that changes the objects, never
//! beside it (R1, R2). What is only true while the vat is awake is here: which objects somebody holds a handle of, and
//! which capability stands for which object.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    ops::Bound,
    rc::Rc,
};

use capnp::private::capability::ClientHook;
use schemas::Timestamp;

use super::{
    STATE_ROW,
    error::ObjectError,
    hook::ObjectHook,
    kind::Kind,
    reference::ObjectId,
    row::{Encoded, State, StoredType, decode_row, encode_row, note_version, put_own, references_of},
};
use crate::{
    engine::{Engine, Rows, Turn},
    kinds::Kinds,
    limits::MAX_OBJECTS,
    tables::{
        Description, FIRST_OBJECT, ObjectRecord, Outgoing, ROW_VAT, SPACE_OBJECTS, SPACE_REFERENCES, SPACE_VAT,
        object_name, object_of_name, references_name,
    },
};

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
    pub(crate) fn check(&self, now: impl FnOnce() -> Timestamp) -> Result<(), ObjectError> {
        if self.revoked.get() || self.expires.is_some_and(|expires| expires <= now()) {
            return Err(ObjectError::Withdrawn);
        }
        Ok(())
    }
}

/// The objects of one vat.
pub(crate) struct ObjectTable {
    engine: Rc<Engine>,
    kinds: Kinds,
    root: ObjectId,
    root_kind: String,
    /// The next number that no turn has taken, not even one that was undone: a reference that such a turn leaked
    /// must never lead to another object.
    next: Cell<u64>,
    /// How many handles there are of each object.
    held: RefCell<HashMap<ObjectId, usize>>,
    /// The objects that each one that is in use may refer to, as far as that was asked: what it referred to since then,
    /// and what it has made. For the root this lasts as long as the vat is awake.
    obtained: RefCell<HashMap<ObjectId, HashSet<ObjectId>>>,
    /// Which object the capability at an address stands for.
    capabilities: RefCell<HashMap<usize, ObjectId>>,
    /// Whether anything has happened since the last sweep that can make garbage.
    littered: Cell<bool>,
}

impl ObjectTable {
    pub(crate) fn new(engine: Rc<Engine>, kinds: Kinds, description: &Description) -> Self {
        Self {
            engine,
            kinds,
            root: ObjectId(description.root),
            root_kind: description.root_kind.clone(),
            next: Cell::new(description.next_object),
            held: RefCell::default(),
            obtained: RefCell::default(),
            capabilities: RefCell::default(),
            // Whoever held a capability before the vat slept holds it no more.
            littered: Cell::new(true),
        }
    }

    pub(crate) fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    pub(crate) fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    pub(crate) fn root(&self) -> ObjectId {
        self.root
    }

    /// The kind of the root, whether or not this program knows it.
    pub(crate) fn root_kind(&self) -> &str {
        &self.root_kind
    }

    /// The kind of an object.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchObject`], [`ObjectError::UnknownKind`].
    pub(crate) fn kind_of(&self, object: ObjectId) -> Result<&Kind, ObjectError> {
        self.kinds.find(&self.kind_name(object)?)
    }

    /// The name of the kind of an object, whether or not this program knows it.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchObject`].
    pub(crate) fn kind_name(&self, object: ObjectId) -> Result<String, ObjectError> {
        if object == self.root {
            return Ok(self.root_kind.clone());
        }
        let row = self.engine.get(SPACE_OBJECTS, &object_name(object))?;
        let record: ObjectRecord = decode_row(&row.ok_or(ObjectError::NoSuchObject { object })?)?;
        Ok(record.kind)
    }

    /// All objects but the root with their kinds, in order of their numbers.
    pub(crate) fn others(&self) -> Result<Vec<(ObjectId, String)>, ObjectError> {
        self.engine.with_rows(SPACE_OBJECTS, |rows| {
            let others = rows.iter().filter_map(|(name, row)| Some((object_of_name(name)?, row)));
            others.map(|(object, row)| Ok((object, decode_row::<ObjectRecord>(row)?.kind))).collect()
        })?
    }

    /// How many objects there are besides the root.
    pub(crate) fn count_others(&self) -> Result<usize, ObjectError> {
        Ok(self.engine.with_rows(SPACE_OBJECTS, std::collections::BTreeMap::len)?)
    }

    /// The live capability of an object.
    pub(crate) fn activate(
        self: &Rc<Self>,
        object: ObjectId,
        authority: Authority,
    ) -> Result<Box<dyn ClientHook>, ObjectError> {
        let server = self.kind_of(object)?.activate(self, object, authority)?;
        Ok(Box::new(ObjectHook::new(server, object, self)))
    }

    /// The object that one of this vat's own capabilities stands for.
    pub(crate) fn object_of(&self, capability: &dyn ClientHook) -> Option<ObjectId> {
        self.capabilities.borrow().get(&capability.get_ptr()).copied()
    }

    pub(crate) fn recognise(&self, address: usize, object: ObjectId) {
        self.capabilities.borrow_mut().insert(address, object);
    }

    pub(crate) fn forget_capability(&self, address: usize) {
        self.capabilities.borrow_mut().remove(&address);
    }

    /// Notes that an object in use may refer to another one, because it was given it or has made it.
    pub(crate) fn obtain(&self, by: ObjectId, object: ObjectId) -> Result<(), ObjectError> {
        self.load_obtained(by)?;
        if let Some(obtained) = self.obtained.borrow_mut().get_mut(&by) {
            obtained.insert(object);
        }
        Ok(())
    }

    /// Refuses a reference that an object never was given: a number can be read from anybody's bytes, so it is no right
    /// by itself. The answer is the same as for an object that is not there, so nobody learns which there are.
    pub(crate) fn check(&self, by: ObjectId, object: ObjectId) -> Result<(), ObjectError> {
        // Whoever runs has itself.
        if by == object {
            return Ok(());
        }
        self.load_obtained(by)?;
        match self.obtained.borrow().get(&by).is_some_and(|obtained| obtained.contains(&object)) {
            true => Ok(()),
            false => Err(ObjectError::NoSuchObject { object }),
        }
    }

    /// Makes sure that what an object in use refers to is noted, before a turn of it changes that.
    fn load_obtained(&self, by: ObjectId) -> Result<(), ObjectError> {
        let in_use = by == self.root || self.held.borrow().contains_key(&by);
        if in_use && !self.obtained.borrow().contains_key(&by) {
            let stored = self.engine.with_rows(SPACE_REFERENCES, |rows| targets_of(rows, by))??;
            self.obtained.borrow_mut().insert(by, stored);
        }
        Ok(())
    }

    /// What was removed cannot be referred to.
    pub(crate) fn forget_obtained(&self, removed: &HashSet<ObjectId>) {
        self.obtained
            .borrow_mut()
            .values_mut()
            .for_each(|obtained| obtained.retain(|object| !removed.contains(object)));
    }

    /// The objects of which there are handles.
    pub(crate) fn held(&self) -> Vec<ObjectId> {
        self.held.borrow().keys().copied().collect()
    }

    /// Says that there may be garbage.
    pub(crate) fn litter(&self) {
        self.littered.set(true);
    }

    /// Whether there may be garbage; and from now on it is whoever asked who knows.
    pub(crate) fn take_litter(&self) -> bool {
        self.littered.replace(false)
    }

    /// Has an object make another one, of a kind that the program knows.
    pub(crate) fn create(
        &self,
        turn: &mut Turn<'_>,
        by: ObjectId,
        kind: &str,
    ) -> Result<(ObjectId, &Kind), ObjectError> {
        let kind = self.kinds.find(kind)?;
        let objects = self.count_others()?;
        // Counting what is staged takes time, and is needed only near the limit.
        if objects + turn.staged() >= MAX_OBJECTS && objects + turn.staged_in(SPACE_OBJECTS) >= MAX_OBJECTS {
            return Err(ObjectError::TooManyObjects);
        }
        let object = self.take_number(turn)?;
        // Also if the turn is undone: then it leads nowhere for ever.
        self.obtain(by, object)?;
        // Nothing refers to it yet.
        self.litter();
        put_own(turn, SPACE_OBJECTS, &object_name(object), &ObjectRecord { kind: kind.name().to_owned() })?;
        Ok((object, kind))
    }

    /// The same with a state to begin with.
    pub(crate) fn create_with<S: State>(
        &self,
        turn: &mut Turn<'_>,
        by: ObjectId,
        kind: &str,
        state: &S,
    ) -> Result<ObjectId, ObjectError> {
        let (object, kind) = self.create(turn, by, kind)?;
        if !kind.has_state::<S>() {
            return Err(ObjectError::UndeclaredType { what: S::TYPE.to_owned() });
        }
        // Whoever makes it can give it what it has itself.
        self.put(turn, (kind.types(), object), by, STATE_ROW, state)?;
        Ok(object)
    }

    fn take_number(&self, turn: &mut Turn<'_>) -> Result<ObjectId, ObjectError> {
        let mut description: Description = match turn.get(SPACE_VAT, ROW_VAT)? {
            Some(row) => decode_row(&row)?,
            None => return Err(ObjectError::NoSuchObject { object: self.root }),
        };
        let number = description.next_object.max(self.next.get()).max(FIRST_OBJECT);
        description.next_object = number.checked_add(1).ok_or(ObjectError::Overflow { what: "the object's number" })?;
        self.next.set(description.next_object);
        put_own(turn, SPACE_VAT, ROW_VAT, &description)?;
        Ok(ObjectId(number))
    }

    /// Stages a row of an object, and what it refers to, of which whoever runs the turn (`by`) must have been given all.
    ///
    /// # Errors
    /// [`ObjectError::UndeclaredType`]; [`ObjectError::NoSuchObject`] if it refers to an object that is not there, or
    /// that `by` was never given.
    pub(crate) fn put<S: State>(
        &self,
        turn: &mut Turn<'_>,
        (types, object): (&[StoredType], ObjectId),
        by: ObjectId,
        name: &[u8],
        state: &S,
    ) -> Result<(), ObjectError> {
        let row = encode_row(state)?;
        // What has not changed refers to what it referred to.
        if turn.holds(object.0, name, &row)? {
            return Ok(());
        }
        let stored = types.iter().find(|stored| stored.name == S::TYPE);
        let stored = *stored.ok_or_else(|| ObjectError::UndeclaredType { what: S::TYPE.to_owned() })?;
        let references = references_of(state)?;
        // Also if there are none: what the row refers to until now may be put elsewhere.
        self.load_obtained(by)?;
        references.iter().try_for_each(|reference| self.check(by, *reference))?;
        self.put_encoded(turn, object, name, stored, Encoded { row, references })
    }

    /// The same for a row that is encoded already.
    pub(crate) fn put_encoded(
        &self,
        turn: &mut Turn<'_>,
        object: ObjectId,
        name: &[u8],
        stored: StoredType,
        encoded: Encoded,
    ) -> Result<(), ObjectError> {
        note_version(turn, stored)?;
        self.refer(turn, object, name, encoded.references)?;
        Ok(turn.put(object.0, name, encoded.row)?)
    }

    /// Stages the removal of a row of an object.
    pub(crate) fn remove(&self, turn: &mut Turn<'_>, object: ObjectId, name: &[u8]) -> Result<(), ObjectError> {
        // What the row refers to until now may be put elsewhere.
        self.load_obtained(object)?;
        self.refer(turn, object, name, BTreeSet::new())?;
        Ok(turn.remove(object.0, name)?)
    }

    fn refer(
        &self,
        turn: &mut Turn<'_>,
        object: ObjectId,
        row: &[u8],
        references: BTreeSet<ObjectId>,
    ) -> Result<(), ObjectError> {
        let name = references_name(object, row);
        let before = match turn.get(SPACE_REFERENCES, &name)? {
            Some(before) => decode_row::<Outgoing>(&before)?.0,
            None => Vec::new(),
        };
        for new in references.iter().filter(|new| before.binary_search(new).is_err()) {
            if *new != self.root && turn.get(SPACE_OBJECTS, &object_name(*new))?.is_none() {
                return Err(ObjectError::NoSuchObject { object: *new });
            }
        }
        if before.iter().any(|old| !references.contains(old)) {
            self.litter();
        }
        if references.is_empty() {
            return Ok(turn.remove(SPACE_REFERENCES, &name)?);
        }
        put_own(turn, SPACE_REFERENCES, &name, &Outgoing(references.into_iter().collect()))
    }
}

/// The objects that an object refers to, by the table of references.
fn targets_of(references: &Rows, object: ObjectId) -> Result<HashSet<ObjectId>, ObjectError> {
    let prefix = object_name(object);
    let mut targets = HashSet::new();
    let from_here = references.range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded));
    for (_, row) in from_here.take_while(|(name, _)| name.starts_with(&prefix)) {
        targets.extend(decode_row::<Outgoing>(row)?.0);
    }
    Ok(targets)
}

/// Keeps an object from being swept while it lives.
pub(crate) struct Hold {
    table: Rc<ObjectTable>,
    object: ObjectId,
}

impl Hold {
    pub(crate) fn new(table: Rc<ObjectTable>, object: ObjectId) -> Self {
        *table.held.borrow_mut().entry(object).or_default() += 1;
        Self { table, object }
    }

    pub(crate) fn table(&self) -> &Rc<ObjectTable> {
        &self.table
    }

    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.let_go() && self.object != self.table.root {
            self.table.obtained.borrow_mut().remove(&self.object);
            // The root, which is held and let go all the time, stays awake, and is never garbage.
            self.table.litter();
            self.table.engine.forget(self.object.0);
        }
    }
}

impl Hold {
    /// Takes this one from the count, and says whether none is left.
    fn let_go(&self) -> bool {
        let mut held = self.table.held.borrow_mut();
        let Some(count) = held.get_mut(&self.object) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            held.remove(&self.object);
        }
        last
    }
}
