//! Durable sealed state: the checkpoint of a vat (DESIGN §7 R2–R5, §8).
//!
//! A [`Store`] keeps rows. Turns change them: each [`TurnDelta`] is atomic, is given a place in one sealed,
//! chained frame of an append-only journal, and is durable after one `fdatasync` that it may share with
//! others ([group commit](crate::limits)). In the background the journal is folded into a redb database. After
//! a crash at any point a store opens to exactly the state after some turn that is not older than the last
//! one that was reported durable.
//!
//! ```text
//! <store>/lock                 who has it open
//! <store>/keyslots             the root key, wrapped; the store's id and version
//! <store>/keyslots.lock        who is changing it
//! <store>/journal/*.segment    frames: what happened since the last fold
//! <store>/journal/*.spare      segments that are not needed now, to be used again
//! <store>/base.redb            rows as of the last fold
//! ```
//!
//! [`HostStore`] is the same for many vats: one journal, one base, one `fdatasync` for all that commit together. Each vat
//! that is awake is a [`Store`]; one that sleeps takes neither memory nor a file.
//!
//! [`SmallStore`] keeps a vat in a single file, for processes that live for one request: an image, then frames of
//! turns, read whole each time; no threads, no database, and one `fdatasync` for a turn (DESIGN §9).
//!
//! Nothing here knows a network or an async runtime. The clock is read for two things that decide nothing:
//! when to fold, and the time in a lock file. The disk is a parameter ([`Disk`]); [`simulated`] has one that
//! fails in every way that the engine has to survive.
//!
//! What a reader should know first: [`Store`] and its threads in `store`, what the journal's bytes mean after a
//! crash in `journal`, the frame in `frame`, the cryptography in `keys`, the single file in `small`.

mod base;
mod core_dumps;
mod disk;
mod error;
mod frame;
mod image;
mod journal;
mod kdf;
mod key_file;
mod keys;
mod keyslots;
pub mod limits;
#[cfg(feature = "measure")]
pub mod measure;
mod metrics;
mod overlay;
mod payload;
mod protection;
mod random;
mod secrets;
pub mod simulated;
mod small;
mod store;
mod store_keys;
#[cfg(test)]
mod vectors;
pub mod wrapped;

pub use core_dumps::forbid_core_dumps;
pub use disk::{Disk, DiskFile, FileAccess, FileDisk, LockAttempt, LockGuard};
pub use error::{Damage, LockHolder, StoreError};
pub use image::{Census, ImageHead, ImageReader};
pub use keyslots::{SlotId, SlotIdError, SlotKind};
pub use metrics::StoreMetrics;
pub use protection::{Holder, Protection};
pub use secrets::{Passphrase, RecipientKey, StoreKey};
pub use small::{SmallStore, wait_at_most};
pub use store::{
    Adoption, Change, Durable, HostStore, LastFold, OnDurable, OnFold, Position, ReviseRow, RowKey, ScannedRow, Sizes,
    Store, StoreLock, StoreOptions, TurnDelta,
};
pub use store_keys::{KeyslotsHold, SlotInfo, add_holder, hold_keyslots, remove_holder, rotate_key_file, slots};
