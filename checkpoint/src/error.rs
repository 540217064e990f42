//! What can go wrong with a store, each with its stable code (DESIGN §10).
//!
//! An error names the file and, for a damaged frame, the offset and the sequence number. It never carries
//! key bytes, names or values of rows.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemas::{Coded, ErrorCode, Recipient, Timestamp};

use crate::{
    keyslots::{SlotId, SlotKind},
    limits::{MAX_PASSPHRASE_BYTES, MIN_PASSPHRASE_CHARACTERS},
};

/// Why a store could not be created, opened, read or written.
///
/// Cheap to clone: the error that poisons a store is kept and shown to every later caller.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process, or another part of this one, has the store open.
    #[error("the store {} is open already{}", directory.display(), Holder(holder.as_ref()))]
    Locked {
        /// The store.
        directory: PathBuf,
        /// Who says to hold it, if the lock file could be read.
        holder: Option<LockHolder>,
    },
    /// `create` was asked for a folder that holds a store, or something else, already.
    #[error("{} is not empty: {found} is in it", directory.display())]
    Occupied {
        /// The folder.
        directory: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// A file or folder that belongs to the store is not there.
    #[error("{} is not there", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// A stored byte is not what was written.
    #[error("{} is damaged at byte {offset}{}: {damage}", path.display(), Frame(*sequence))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file the damaged part begins, in bytes; 0 where the file is not read by offset.
        offset: u64,
        /// The number of the group of frames that should be there, for a journal segment; in a store of one vat, and
        /// in an image, that of the frame.
        sequence: Option<u64>,
        /// What does not fit.
        damage: Damage,
    },
    /// The base database reports that its own structure is broken.
    #[error("{} is damaged: {source}", path.display())]
    Base {
        /// The file.
        path: PathBuf,
        /// The database's own words.
        source: Arc<redb::Error>,
    },
    /// The file is not an image, or not one any more.
    #[error("{} is not an image of a vat", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// There is a file where the image was to go.
    #[error("{} exists already, and is left alone", path.display())]
    ImageExists {
        /// The file.
        path: PathBuf,
    },
    /// Written by a program that is newer than this one.
    #[error("{} has format {found}, this program knows {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version, or the kind of frame, that was found.
        found: u16,
        /// The newest one that this program knows.
        known: u16,
    },
    /// A file belongs to another store, or the store to another vat.
    #[error("{} belongs to another vat or another store", path.display())]
    WrongVat {
        /// The file.
        path: PathBuf,
    },
    /// The store has no such vat.
    #[error("{} has no vat {}", directory.display(), Id(vat))]
    NoSuchVat {
        /// The store.
        directory: PathBuf,
        /// The vat.
        vat: [u8; 32],
    },
    /// The store has this vat already.
    #[error("{} has a vat {} already", directory.display(), Id(vat))]
    VatExists {
        /// The store.
        directory: PathBuf,
        /// The vat.
        vat: [u8; 32],
    },
    /// Another part of this process has the vat open.
    #[error("the vat {} of {} is awake already", Id(vat), directory.display())]
    VatAwake {
        /// The store.
        directory: PathBuf,
        /// The vat.
        vat: [u8; 32],
    },
    /// The disk, or the quota of this user, is full.
    #[error("no room left to {action} {}: {source}", path.display())]
    DiskFull {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The operating system refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Disk {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// One turn changes more than one frame holds. Nothing was queued.
    #[error("turn {turn} changes {bytes} bytes, one turn can change {limit}")]
    TurnTooLarge {
        /// The turn.
        turn: u64,
        /// What it would take, in bytes.
        bytes: usize,
        /// The most that a turn can take, in bytes.
        limit: usize,
    },
    /// A small store would be, or is, longer than one may be. Nothing was changed.
    #[error("{} takes {bytes} bytes, a small store at most {limit}", path.display())]
    Outgrown {
        /// The file.
        path: PathBuf,
        /// What it would take, in bytes.
        bytes: u64,
        /// The most that it can take, in bytes.
        limit: u64,
    },
    /// The key file is not there.
    #[error("the key file {} is not there", path.display())]
    KeyMissing {
        /// The key file.
        path: PathBuf,
    },
    /// The key file can be read or written by others.
    #[error("the key file {} has mode {mode:04o}, so others can use it", path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file belongs to another user.
    #[error("the key file {} belongs to user {owner}", path.display())]
    KeyOwner {
        /// The key file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// The file is not a key file.
    #[error("the key file {} has {found} bytes, a key has 32", path.display())]
    KeyLength {
        /// The key file.
        path: PathBuf,
        /// Its length, in bytes.
        found: u64,
    },
    /// The credential is not there.
    #[error("the credential {} is not there", path.display())]
    CredentialMissing {
        /// Where it would be.
        path: PathBuf,
    },
    /// The credential can be written by others, or read by everybody.
    #[error("the credential {} has mode {mode:04o} and belongs to user {owner}, so others can use it", path.display())]
    CredentialAccess {
        /// Where it is.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The user id of its owner.
        owner: u32,
    },
    /// The name of a credential leads out of its folder.
    #[error("{name:?} is not the name of a credential")]
    CredentialName {
        /// The name.
        name: String,
    },
    /// The key file, or the credential, does not unlock this store.
    #[error("{} does not unlock {}", key.display(), path.display())]
    KeyWrong {
        /// The key file.
        key: PathBuf,
        /// The store, or the file that was to be unlocked.
        path: PathBuf,
    },
    /// The passphrase does not unlock this store.
    #[error("this passphrase does not unlock {}", path.display())]
    PassphraseWrong {
        /// The store, or the file that was to be unlocked.
        path: PathBuf,
    },
    /// The store is sealed for other recipients.
    #[error("{} is not sealed for {recipient}", path.display())]
    RecipientWrong {
        /// The public half of the key that was tried.
        recipient: Recipient,
        /// The store, or the file that was to be unlocked.
        path: PathBuf,
    },
    /// The key that the caller supplied does not unlock this store.
    #[error("the key that was given does not unlock {}", path.display())]
    GivenKeyWrong {
        /// The store, or the file that was to be unlocked.
        path: PathBuf,
    },
    /// Nothing of this kind unlocks this store.
    #[error("{} cannot be unlocked with a {kind}, only with: {}", path.display(), Kinds(found))]
    NoSlot {
        /// What was tried.
        kind: SlotKind,
        /// What there are slots for, each once.
        found: Vec<SlotKind>,
        /// The store, or the file that was to be unlocked.
        path: PathBuf,
    },
    /// A passphrase is too short to withstand a search, or absurdly long.
    #[error(
        "a passphrase has at least {} characters, and at most {} bytes",
        MIN_PASSPHRASE_CHARACTERS,
        MAX_PASSPHRASE_BYTES
    )]
    PassphraseLength,
    /// Trying a passphrase would cost more than this program is willing to pay because a file says so.
    #[error("trying a passphrase would take {memory_kib} KiB of memory and {passes} passes, which is refused")]
    PassphraseCost {
        /// The memory, in KiB.
        memory_kib: u32,
        /// The passes over it.
        passes: u32,
    },
    /// There is no memory to try a passphrase.
    #[error("there are no {bytes} bytes of memory to try the passphrase in")]
    Memory {
        /// What it takes.
        bytes: usize,
    },
    /// Nothing can be sealed for this key alone.
    #[error("this X25519 key cannot be used: everybody could open what is sealed for it")]
    RecipientUnusable,
    /// The store has no such slot.
    #[error("{} has no keyslot {slot}", path.display())]
    UnknownSlot {
        /// The slot.
        slot: SlotId,
        /// The store.
        path: PathBuf,
    },
    /// The slot is the one that the caller's own key opens.
    #[error("the keyslot {slot} belongs to the very key that this is done with")]
    SlotInUse {
        /// The slot.
        slot: SlotId,
    },
    /// No further slot has room.
    #[error("{} has no room for another keyslot of this kind", path.display())]
    TooManySlots {
        /// The store.
        path: PathBuf,
    },
    /// Another process, or another part of this one, is changing the keyslots.
    #[error("the keys of {} are being changed already", directory.display())]
    KeysBusy {
        /// The store.
        directory: PathBuf,
    },
    /// The store is sealed and no key was given, or it is not sealed and a key was given.
    #[error(
        "{} is {}, and was to be opened as one that is {}",
        path.display(), sealed_or_not(*sealed), sealed_or_not(!*sealed)
    )]
    Protection {
        /// The keyslots file, or the image.
        path: PathBuf,
        /// Whether the store is sealed.
        sealed: bool,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {source}")]
    Random {
        /// What it said.
        source: getrandom::Error,
    },
    /// The store met an error before and does nothing any more (R5).
    #[error("the store has stopped: {cause}")]
    Poisoned {
        /// The first error.
        cause: Arc<StoreError>,
    },
    /// The caller skipped or repeated a turn.
    #[error("turn {found} was submitted, {expected} is the next one")]
    TurnOrder {
        /// The turn that comes next.
        expected: u64,
        /// The turn that came.
        found: u64,
    },
    /// The caller asked for an epoch that is not higher than the current one.
    #[error("epoch {requested} cannot follow epoch {current}")]
    EpochOrder {
        /// The current epoch.
        current: u64,
        /// The epoch that was asked for.
        requested: u64,
    },
    /// The caller waits for a turn that nobody submitted.
    #[error("turn {turn} was never submitted, the newest one is {newest}")]
    NotSubmitted {
        /// The turn.
        turn: u64,
        /// The newest one that was submitted.
        newest: u64,
    },
    /// The limits that the caller set make no sense.
    #[error("the option {option} cannot be {value}")]
    Option {
        /// The field of [`StoreOptions`](crate::StoreOptions).
        option: &'static str,
        /// Its value.
        value: u64,
    },
    /// A thread of the store could not be started.
    #[error("cannot start the {thread} thread: {source}")]
    Thread {
        /// Which one.
        thread: &'static str,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// A thread of the store ended in a panic, which is a defect of this program.
    #[error("the {thread} thread of the store panicked")]
    Panicked {
        /// Which one.
        thread: &'static str,
    },
}

impl StoreError {
    /// What the operating system said about `path`, sorted into "full" and everything else.
    pub(crate) fn disk(action: &'static str, path: &Path, source: io::Error) -> Self {
        let (path, kind, source) = (path.to_owned(), source.kind(), Arc::new(source));
        match kind {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action, path, source },
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Disk { action, path, source },
        }
    }

    /// Damage in a file that is not made of frames.
    pub(crate) fn damaged(path: &Path, damage: Damage) -> Self {
        Self::Damaged { path: path.to_owned(), offset: 0, sequence: None, damage }
    }
}

impl From<getrandom::Error> for StoreError {
    fn from(source: getrandom::Error) -> Self {
        Self::Random { source }
    }
}

impl Coded for StoreError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Locked { .. } | Self::VatAwake { .. } => ErrorCode::VatRunning,
            Self::Occupied { .. } | Self::VatExists { .. } => ErrorCode::VatExists,
            Self::Missing { .. } | Self::NoSuchVat { .. } => ErrorCode::CheckpointMissing,
            Self::Damaged { .. } | Self::Base { .. } => ErrorCode::CheckpointDamaged,
            Self::NotAnImage { .. } => ErrorCode::ImageInvalid,
            Self::ImageExists { .. } => ErrorCode::ImageExists,
            Self::Version { .. } => ErrorCode::CheckpointVersion,
            Self::WrongVat { .. } => ErrorCode::CheckpointWrongVat,
            Self::DiskFull { .. } => ErrorCode::CheckpointDiskFull,
            Self::Disk { .. } => ErrorCode::CheckpointDisk,
            Self::TurnTooLarge { .. } => ErrorCode::CheckpointTooLarge,
            Self::Outgrown { .. } => ErrorCode::CheckpointOutgrown,
            Self::KeyMissing { .. } | Self::CredentialMissing { .. } | Self::CredentialName { .. } => {
                ErrorCode::KeyMissing
            }
            Self::KeyMode { .. } | Self::KeyOwner { .. } | Self::CredentialAccess { .. } => ErrorCode::KeyMode,
            Self::KeyLength { .. }
            | Self::KeyWrong { .. }
            | Self::PassphraseWrong { .. }
            | Self::RecipientWrong { .. }
            | Self::GivenKeyWrong { .. }
            | Self::NoSlot { .. }
            | Self::Protection { .. } => ErrorCode::KeyWrong,
            Self::PassphraseLength => ErrorCode::KeyPassphrase,
            Self::PassphraseCost { .. } => ErrorCode::CheckpointDamaged,
            Self::RecipientUnusable => ErrorCode::KeyRecipient,
            Self::UnknownSlot { .. } => ErrorCode::KeyUnknownSlot,
            Self::SlotInUse { .. } => ErrorCode::KeyInUse,
            Self::TooManySlots { .. } => ErrorCode::KeyTooMany,
            Self::KeysBusy { .. } => ErrorCode::KeyBusy,
            Self::Random { .. } => ErrorCode::SystemRandom,
            Self::Poisoned { .. } => ErrorCode::VatPoisoned,
            Self::Thread { .. } | Self::Memory { .. } => ErrorCode::SystemIo,
            Self::TurnOrder { .. }
            | Self::EpochOrder { .. }
            | Self::NotSubmitted { .. }
            | Self::Option { .. }
            | Self::Panicked { .. } => ErrorCode::Internal,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Locked { holder: Some(holder), .. } => {
                Some(format!("Talk to the running one, or end process {}.", holder.process_id))
            }
            Self::KeyMode { path, .. } => {
                Some(format!("chmod 600 {}, and consider whether it was read.", path.display()))
            }
            Self::CredentialMissing { path } => {
                let name = path.file_name().unwrap_or_default().display();
                Some(format!("Add LoadCredential={name}:FILE to the service, with the file that has the 32 bytes."))
            }
            Self::CredentialName { .. } => Some("A credential is named without any folder.".to_owned()),
            Self::CredentialAccess { .. } => {
                Some("Let the service manager place it, with LoadCredential= or LoadCredentialEncrypted=.".to_owned())
            }
            Self::PassphraseWrong { .. } => Some("Type the passphrase again; capital letters count.".to_owned()),
            Self::RecipientWrong { .. } => {
                Some("Unlock it where the private key of one of its recipients is.".to_owned())
            }
            Self::GivenKeyWrong { .. } => Some("Give the key that it was sealed with.".to_owned()),
            Self::NoSlot { .. } => Some("Unlock it with one of those, or add a keyslot of this kind first.".to_owned()),
            Self::PassphraseCost { .. } => {
                Some("Unlock it in another way; this slot was not made by this program.".to_owned())
            }
            Self::Memory { .. } => Some("Free some memory, or raise its limit for this process.".to_owned()),
            Self::Poisoned { cause } => Some(cause.next().unwrap_or_else(|| cause.code().next().to_owned())),
            _ => None,
        }
    }
}

/// What does not fit in a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The header of a frame is not one that this store wrote.
    #[error("the header of the frame is not what was written")]
    Header,
    /// A frame says that it ends after its segment.
    #[error("the frame would end after its segment")]
    Extent,
    /// The body of a frame, or its place after the frame before it, is not what was written.
    #[error("the frame, or the one before it, is not what was written")]
    Body,
    /// An authentic frame stands where another one belongs.
    #[error("frame {found} is in the place of this one")]
    Sequence {
        /// The sequence number that was found.
        found: u64,
    },
    /// An authentic frame contradicts the frames before it.
    #[error("the frame contradicts the ones before it")]
    Order,
    /// What an authentic frame or row contains cannot be understood.
    #[error("its contents cannot be understood")]
    Contents,
    /// There are frames, or traces of some, after a place where none should follow.
    #[error("frames are missing here: there is more data after this place")]
    Gap,
    /// The file is longer or shorter than any of its kind.
    #[error("its length of {found} bytes is impossible")]
    Length {
        /// The length.
        found: u64,
    },
    /// The base has turns that the journal has lost.
    #[error("the journal ends with turn {journal}, the base has turn {base}")]
    BehindBase {
        /// The last turn of the journal.
        journal: u64,
        /// The turn of the base.
        base: u64,
    },
    /// A row of the base is not what was written, or stands in the place of another one.
    #[error("a row is not what was written")]
    Row,
    /// The base does not say which part of the journal it contains.
    #[error("the journal position is not in it")]
    Position,
    /// A fold that was just made reads back differently.
    #[error("what was just written reads back differently")]
    ReadBack,
    /// The database panicked: nothing that it wrote itself makes it do so.
    #[error("the database could not make sense of it")]
    BasePanicked,
    /// A row of an image comes twice.
    #[error("a row comes twice")]
    Repeated,
    /// An image ends before its end.
    #[error("it was cut off: the rest is missing")]
    CutOff,
    /// There is something after the end of an image.
    #[error("there is more data after its end")]
    Trailing,
    /// The checksum of the keyslots file does not fit.
    #[error("its checksum does not fit")]
    Checksum,
}

/// Who holds a store, as its lock file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// The process.
    pub process_id: u32,
    /// The file name of its program.
    pub program: String,
    /// When it opened the store.
    pub since: Timestamp,
}

/// `, by process 12 (vat) since …`, or nothing.
struct Holder<'a>(Option<&'a LockHolder>);

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => {
                write!(f, " in process {} ({}), since {}", holder.process_id, holder.program, holder.since)
            }
            None => Ok(()),
        }
    }
}

/// `, frame 7`, or nothing.
struct Frame(Option<u64>);

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |sequence| write!(f, ", frame {sequence}"))
    }
}

/// The id of a vat.
struct Id<'a>(&'a [u8; 32]);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match schemas::VatId::from_bytes(*self.0) {
            Ok(id) => id.fmt(f),
            // Not the key of anybody; only its bytes can be said.
            Err(_) => self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// `key, passphrase`.
struct Kinds<'a>(&'a [SlotKind]);

impl fmt::Display for Kinds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, kind) in self.0.iter().enumerate() {
            write!(f, "{}{kind}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn sealed_or_not(sealed: bool) -> &'static str {
    if sealed { "sealed" } else { "not sealed" }
}
