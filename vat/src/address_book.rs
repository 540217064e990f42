//! The address book: received sturdyrefs under one's own names, so that a secret need not stand on a
//! command line twice. Sealed like a vat's checkpoint, under a key file of its own.

use std::{path::Path, sync::Arc, time::Instant};

use checkpoint::{Change, Disk, FileDisk, Protection, RowKey, Store, StoreError, StoreOptions, TurnDelta};
use schemas::{Coded, ErrorCode, SturdyRef};
use serde::{Deserialize, Serialize};

use crate::{
    home::{Home, HomeError, Name},
    limits::{BUSY_DEADLINE, BUSY_PAUSE},
    object::{ObjectError, State, decode_row, encode_row},
};

/// The address book belongs to no vat; frames are bound to this in place of an id.
const NO_VAT: [u8; 32] = [0; 32];
const SPACE_REFERENCES: u64 = 16;

/// Why the address book cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AddressBookError {
    /// Its store refused.
    #[error("the address book: {0}")]
    Store(#[from] StoreError),
    /// An entry cannot be read.
    #[error("the address book: {0}")]
    Entry(#[from] ObjectError),
    /// An entry is not a sturdyref.
    #[error("the address book's entry {name} is not a sturdyref: {error}")]
    Reference {
        /// The entry's name.
        name: Name,
        /// Why.
        error: schemas::SturdyRefError,
    },
    /// Its folder cannot be made.
    #[error(transparent)]
    Home(#[from] HomeError),
}

impl Coded for AddressBookError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Store(error) => error.code(),
            Self::Entry(error) => error.code(),
            Self::Reference { .. } => ErrorCode::CheckpointDamaged,
            Self::Home(error) => error.code(),
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.next(),
            Self::Entry(error) => error.next(),
            Self::Reference { .. } => None,
            Self::Home(error) => error.next(),
        }
    }
}

/// A whole sturdyref; a secret, so it has no `Debug`.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Reference(String);

impl State for Reference {
    const TYPE: &'static str = "address-book.reference";
}

type OpenStore = fn(Arc<dyn Disk>, &Path, &[u8; 32], &Protection, StoreOptions) -> Result<Store, StoreError>;

/// The open address book. Holds its lock: open it, use it, drop it.
pub(crate) struct AddressBook {
    store: Store,
}

impl AddressBook {
    /// Opens the address book, if there is one.
    pub(crate) fn open(home: &Home) -> Result<Option<Self>, AddressBookError> {
        if !home.address_book().is_dir() {
            return Ok(None);
        }
        let began = Instant::now();
        loop {
            match Self::open_store(home, Store::open) {
                // Another command has it open, for a moment.
                Err(StoreError::Locked { .. }) if began.elapsed() < BUSY_DEADLINE => std::thread::sleep(BUSY_PAUSE),
                // The command that was to make it ended half-way: nothing was kept yet.
                Err(StoreError::Missing { path }) if !home.address_book().join("keyslots").exists() => {
                    tracing::debug!(path = %path.display(), "the address book is not finished");
                    return Ok(None);
                }
                opened => return Ok(Some(opened?)),
            }
        }
    }

    /// Opens the address book, and makes an empty one first if there is none.
    pub(crate) fn open_or_create(home: &Home) -> Result<Self, AddressBookError> {
        if let Some(book) = Self::open(home)? {
            return Ok(book);
        }
        home.make_parent(&home.address_book_key())?;
        Ok(Self::open_store(home, Store::create)?)
    }

    fn open_store(home: &Home, open: OpenStore) -> Result<Self, StoreError> {
        let protection = Protection::KeyFile(home.address_book_key());
        let (disk, options) = (Arc::new(FileDisk), StoreOptions::default());
        Ok(Self { store: open(disk, &home.address_book(), &NO_VAT, &protection, options)? })
    }

    /// The reference under this name.
    pub(crate) fn find(&self, name: &Name) -> Result<Option<SturdyRef>, AddressBookError> {
        let Some(row) = self.store.get(&row_key(name))? else { return Ok(None) };
        let Reference(text) = decode_row(&row)?;
        let reference = text.parse().map_err(|error| AddressBookError::Reference { name: name.clone(), error })?;
        Ok(Some(reference))
    }

    /// All names with their references, in order.
    pub(crate) fn entries(&self) -> Result<Vec<(Name, SturdyRef)>, AddressBookError> {
        let mut entries = Vec::new();
        for (name, _) in self.store.scan(SPACE_REFERENCES)? {
            let name = String::from_utf8_lossy(&name).parse::<Name>()?;
            if let Some(reference) = self.find(&name)? {
                entries.push((name, reference));
            }
        }
        Ok(entries)
    }

    /// Keeps a reference; durable on return.
    pub(crate) fn put(&self, name: &Name, reference: &SturdyRef) -> Result<(), AddressBookError> {
        let row = encode_row(&Reference(reference.expose().to_string()))?;
        self.change(name, Some(row))
    }

    /// Forgets a reference; durable on return.
    pub(crate) fn remove(&self, name: &Name) -> Result<(), AddressBookError> {
        self.change(name, None)
    }

    fn change(&self, name: &Name, value: Option<Vec<u8>>) -> Result<(), AddressBookError> {
        let turn = self.store.position().turn + 1;
        self.store.submit(TurnDelta { turn, changes: vec![Change { key: row_key(name), value }] })?;
        Ok(self.store.wait_durable(turn)?)
    }
}

fn row_key(name: &Name) -> RowKey {
    RowKey { space: SPACE_REFERENCES, name: name.as_str().as_bytes().to_vec() }
}
