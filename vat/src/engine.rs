//! Turns: the one way in which a vat's state changes (R1, R2, R4).
//!
//! A turn is a closure that runs from beginning to end on the vat's one thread. What it changes is staged;
//! when it returns an error or panics the staging is dropped and nothing happened. When it succeeds, the
//! staged rows become ONE delta that is handed to the checkpoint, and the turn's number is told to the
//! output gate *before* anything that the turn caused can be sent: every later message of the vat carries
//! at least this number, and leaves only once the number is durable (R3).
//!
//! The engine knows rows, not objects: a row is a byte string under (space, name). A space is one object,
//! or one of the vat's own tables. An awake space is held in memory whole; a space that nobody touched, or that
//! was forgotten, is only on disk. Nothing here knows tokio, a network, or Rust types of objects, so that other
//! hosts (a CGI process, a WebAssembly guest) can drive the same turns.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
};

use checkpoint::{Change, Position, RowKey, Store, StoreError, TurnDelta, limits::MAX_TURN_BYTES};
use schemas::Timestamp;

use crate::object::ObjectError;

/// The rows of one space, by name.
pub(crate) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Staged = BTreeMap<(u64, Vec<u8>), Option<Vec<u8>>>;

/// A clock that the host of the engine supplies.
pub type Clock = Rc<dyn Fn() -> Timestamp>;

/// Whoever holds back what the vat says until its cause is durable.
pub trait Outputs {
    /// The code of a turn is about to run. It may still be undone, so a call that it makes must not leave.
    fn turn_begins(&self) {}

    /// It has run.
    fn turn_ends(&self) {}

    /// The turn was handed to the checkpoint: whatever is said from now on may be its consequence, and waits
    /// until it is durable. Called before the turn's result is returned to anyone.
    fn produced(&self, turn: u64) -> CommitStart;
}

/// Who has the checkpoint begin to commit a turn that was handed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitStart {
    /// The engine, at once.
    Now,
    /// The host, with [`Engine::start_commit`], when it has run the turns that can run now: they share a frame.
    ByHost,
}

/// Nobody hears anything before the host has waited for the checkpoint itself.
pub struct NoOutputs;

impl Outputs for NoOutputs {
    fn produced(&self, _turn: u64) -> CommitStart {
        CommitStart::Now
    }
}

/// Runs the turns of one vat over its checkpoint.
pub struct Engine {
    /// Shared with whoever reads it whole, on another thread: an export, a verification.
    store: Arc<Store>,
    clock: Clock,
    outputs: Box<dyn Outputs>,
    awake: RefCell<HashMap<u64, Rows>>,
    /// The decoded state of each object that is awake, shared by all handles of that object.
    states: RefCell<HashMap<u64, Rc<dyn Any>>>,
    newest: Cell<u64>,
    in_turn: Cell<bool>,
}

impl Engine {
    /// An engine over an open checkpoint. `outputs` is where an output gate learns what its messages wait for.
    #[must_use]
    pub fn new(store: Store, clock: Clock, outputs: Box<dyn Outputs>) -> Self {
        let newest = Cell::new(store.position().turn);
        Self {
            store: Arc::new(store),
            clock,
            outputs,
            awake: RefCell::default(),
            states: RefCell::default(),
            newest,
            in_turn: Cell::new(false),
        }
    }

    /// The number of the newest turn, durable or not.
    #[must_use]
    pub fn newest_turn(&self) -> u64 {
        self.newest.get()
    }

    /// Where the checkpoint stands on disk.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.store.durable()
    }

    /// The checkpoint below.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The host's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Closes the checkpoint (see [`Store::close`]). Somebody who still reads it closes it when done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn close(self) -> Result<(), StoreError> {
        Arc::into_inner(self.store).map_or(Ok(()), Store::close)
    }

    /// Whether the vat can still promise anything: a read must not look fine on one that cannot (R5).
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] after the first error of the disk.
    pub fn healthy(&self) -> Result<(), StoreError> {
        self.store.poisoned().map_or(Ok(()), |cause| Err(StoreError::Poisoned { cause }))
    }

    /// Has the checkpoint begin to commit the turns that were left to the host ([`CommitStart::ByHost`]).
    pub fn start_commit(&self) {
        self.store.start_commit();
    }

    /// Runs one turn. All of its changes become durable together, or none.
    ///
    /// A turn that changes nothing takes no number and writes nothing (R4).
    ///
    /// # Errors
    /// The closure's own error, after which nothing has changed; [`ObjectError::Panicked`] if it panicked;
    /// [`ObjectError::Checkpoint`] if the checkpoint takes no more turns; [`ObjectError::Nested`] if a turn
    /// is begun inside a turn.
    pub fn turn<R, E>(&self, change: impl FnOnce(&mut Turn<'_>) -> Result<R, E>) -> Result<R, E>
    where
        E: From<ObjectError>,
    {
        if self.in_turn.replace(true) {
            return Err(ObjectError::Nested.into());
        }
        let mut turn = Turn { engine: self, time: self.now(), staged: Staged::new() };
        self.outputs.turn_begins();
        // Safe to go on after a panic: the closure could only change the staging, which is dropped.
        let outcome = catch_unwind(AssertUnwindSafe(|| change(&mut turn)));
        self.outputs.turn_ends();
        let staged = turn.staged;
        self.in_turn.set(false);
        let result = outcome.map_err(|_| ObjectError::Panicked)??;
        self.commit(staged).map_err(ObjectError::Checkpoint)?;
        Ok(result)
    }

    /// Reads a row as of the newest turn.
    ///
    /// # Errors
    /// [`StoreError`] if the space had to be loaded and could not be.
    pub fn get(&self, space: u64, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with_rows(space, |rows| rows.get(name).cloned())
    }

    /// Looks at all rows of a space as of the newest turn.
    ///
    /// # Errors
    /// [`StoreError`] if the space had to be loaded and could not be.
    pub fn with_rows<R>(&self, space: u64, look: impl FnOnce(&Rows) -> R) -> Result<R, StoreError> {
        self.wake(space)?;
        let awake = self.awake.borrow();
        // `wake` has just put it there, and nothing takes it away in between.
        Ok(match awake.get(&space) {
            Some(rows) => look(rows),
            None => look(&Rows::new()),
        })
    }

    /// The one decoded state of an object, made by `load` when the object wakes.
    pub(crate) fn state<S: 'static>(
        &self,
        object: u64,
        load: impl FnOnce() -> Result<S, ObjectError>,
    ) -> Result<Rc<RefCell<S>>, ObjectError> {
        if let Some(state) = self.states.borrow().get(&object) {
            return state.clone().downcast().map_err(|_| ObjectError::TwoTypes { object });
        }
        let state = Rc::new(RefCell::new(load()?));
        self.states.borrow_mut().insert(object, state.clone());
        Ok(state)
    }

    /// Keeps nothing of a space in memory any more.
    pub(crate) fn forget(&self, space: u64) {
        self.awake.borrow_mut().remove(&space);
        self.states.borrow_mut().remove(&space);
    }

    /// The spaces that are in memory.
    #[cfg(test)]
    pub(crate) fn awake(&self) -> Vec<u64> {
        self.awake.borrow().keys().copied().collect()
    }

    fn wake(&self, space: u64) -> Result<(), StoreError> {
        if !self.awake.borrow().contains_key(&space) {
            let rows = self.store.scan(space)?.into_iter().collect();
            self.awake.borrow_mut().insert(space, rows);
        }
        Ok(())
    }

    fn commit(&self, staged: Staged) -> Result<(), StoreError> {
        if staged.is_empty() {
            return self.healthy();
        }
        let turn = self.newest.get() + 1;
        let changes = staged
            .iter()
            .map(|((space, name), value)| Change {
                key: RowKey { space: *space, name: name.clone() },
                value: value.clone(),
            })
            .collect();
        self.store.queue(TurnDelta { turn, changes })?;
        self.newest.set(turn);
        match self.outputs.produced(turn) {
            CommitStart::Now => self.start_commit(),
            CommitStart::ByHost => {}
        }
        let mut awake = self.awake.borrow_mut();
        for ((space, name), value) in staged {
            let Some(rows) = awake.get_mut(&space) else { continue };
            match value {
                Some(value) => rows.insert(name, value),
                None => rows.remove(&name),
            };
        }
        Ok(())
    }
}

/// A turn under way: reads see what it staged.
pub struct Turn<'engine> {
    engine: &'engine Engine,
    time: Timestamp,
    staged: Staged,
}

impl Turn<'_> {
    /// The time of the turn, by the vat's clock. The same throughout the turn.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Reads a row as this turn sees it.
    ///
    /// # Errors
    /// [`StoreError`] if the space had to be loaded and could not be.
    pub fn get(&self, space: u64, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.staged.get(&(space, name.to_vec())) {
            Some(staged) => Ok(staged.clone()),
            None => self.engine.get(space, name),
        }
    }

    /// Whether a row has this value, as this turn sees it.
    pub(crate) fn holds(&self, space: u64, name: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        match self.staged.get(&(space, name.to_vec())) {
            Some(staged) => Ok(staged.as_deref() == Some(value)),
            None => self.engine.with_rows(space, |rows| rows.get(name).is_some_and(|row| row == value)),
        }
    }

    /// How many rows this turn has staged.
    pub(crate) fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Refuses what the checkpoint would refuse because of its size, before anything is handed to it.
    ///
    /// # Errors
    /// [`StoreError::TurnTooLarge`].
    pub(crate) fn check_size(&self) -> Result<(), StoreError> {
        // As the checkpoint encodes them: for each row its space, its name, and whether and which value it has; every
        // byte string with its length before it.
        let string = |bytes: &[u8]| number_length(bytes.len() as u64) + bytes.len();
        let row = |((space, name), value): (&(u64, Vec<u8>), &Option<Vec<u8>>)| {
            number_length(*space) + string(name) + 1 + value.as_deref().map_or(0, string)
        };
        let turn = self.engine.newest.get() + 1;
        let rows: usize = self.staged.iter().map(row).sum();
        let bytes = number_length(turn) + number_length(self.staged.len() as u64) + rows;
        match bytes > MAX_TURN_BYTES {
            true => Err(StoreError::TurnTooLarge { turn, bytes, limit: MAX_TURN_BYTES }),
            false => Ok(()),
        }
    }

    /// How many of them are of one space.
    pub(crate) fn staged_in(&self, space: u64) -> usize {
        self.staged.range((space, Vec::new())..(space + 1, Vec::new())).count()
    }

    /// Stages a row. Staging what is there already changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] if the space had to be loaded and could not be.
    pub fn put(&mut self, space: u64, name: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.stage(space, name, Some(value))
    }

    /// Stages the removal of a row.
    ///
    /// # Errors
    /// [`StoreError`] if the space had to be loaded and could not be.
    pub fn remove(&mut self, space: u64, name: &[u8]) -> Result<(), StoreError> {
        self.stage(space, name, None)
    }

    fn stage(&mut self, space: u64, name: &[u8], value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let key = (space, name.to_vec());
        let current = self.engine.get(space, name)?;
        if current == value {
            self.staged.remove(&key);
        } else {
            self.staged.insert(key, value);
        }
        Ok(())
    }
}

/// How many bytes a number takes at seven bits each.
fn number_length(number: u64) -> usize {
    (number.max(1).ilog2() / 7 + 1) as usize
}

/// The names in `rows` that begin with `prefix` and come after `after`, in order.
pub(crate) fn names_of<'a>(rows: &'a Rows, prefix: &'a [u8], after: Bound<&'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let start = match after {
        Bound::Excluded(after) if after >= prefix => Bound::Excluded(after),
        Bound::Included(after) if after >= prefix => Bound::Included(after),
        _ => Bound::Included(prefix),
    };
    rows.range::<[u8], _>((start, Bound::Unbounded))
        .map(|(name, _)| name.as_slice())
        .take_while(move |name| name.starts_with(prefix))
}
