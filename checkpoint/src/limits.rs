//! Every size, count and delay of this crate, each with its reason (one place; DESIGN §8).

use std::time::Duration;

/// The unit in which a disk writes or loses data, in bytes. A write that did not finish is assumed to have
/// replaced each such aligned unit wholly or not at all; drives with larger sectors tear in multiples of it.
pub const SECTOR_BYTES: usize = 512;

/// Length of a journal segment, in bytes. Long enough that a switch is rare, short enough that opening a
/// store, which reads the last one whole, takes a few milliseconds.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// The shortest segment that can be asked for: tests switch segments often with it.
pub const MIN_SEGMENT_BYTES: u64 = 4 << 10;

/// The longest segment that is believed when one is read: a segment is made longer than
/// [`SEGMENT_BYTES`] only for a single frame that would not fit otherwise.
pub const MAX_SEGMENT_BYTES: u64 = 64 << 20;

/// How many segments that a fold has made unnecessary are kept to be used again. A fold of [`FOLD_BYTES`] frees
/// about two, and as many are needed until the next one; more would only take room from a store that is idle.
pub const SPARE_SEGMENTS: usize = 2;

/// The most bytes that one turn may encode to. It must fit one frame, be held in memory several times over,
/// and be written at once; a turn of this size takes a fraction of a second on a slow disk.
pub const MAX_TURN_BYTES: usize = 16 << 20;

/// The most turns that one group, and so the queue before it, takes. At 100 bytes each this is about one
/// mebibyte: a larger group would gain no rate and only lengthen the wait of its first turn.
pub const GROUP_TURNS: usize = 8192;

/// A group is closed once its turns encode to this many bytes. One turn may be larger; it then goes alone or
/// last.
pub const GROUP_BYTES: usize = 4 << 20;

/// The most vats that commit together. Each takes a frame, and so a sector and a microsecond at least.
pub const GROUP_VATS: usize = 8192;

/// How many empty queues are kept with their memory for the next groups. One vat alone needs two, one of which it
/// fills while the other is being committed.
pub const SPARE_QUEUES: usize = 2;

/// A queue that has grown beyond this many bytes is not kept: whoever gets it next may never need as much.
pub const SPARE_QUEUE_BYTES: usize = 1 << 20;

/// The most that a group can be told to take, in bytes: with one more turn of [`MAX_TURN_BYTES`], and the header and
/// the padding of [`GROUP_VATS`] frames, it has to fit a segment of [`MAX_SEGMENT_BYTES`].
pub const MAX_GROUP_BYTES: usize = 32 << 20;

/// Frames up to this size are padded to a whole number of sectors only; above, to lengths with few
/// significant bits, so that a length tells little about its contents.
pub const FINE_PADDING_BYTES: usize = 8 << 10;

/// A fold begins once this many bytes of frames are not in the base yet (DESIGN §8).
pub const FOLD_BYTES: u64 = 8 << 20;

/// A fold begins at the latest this long after the first commit that is not in the base yet (DESIGN §8).
pub const FOLD_AFTER: Duration = Duration::from_secs(5);

/// Submitting waits while more than this many bytes of frames are not in the base yet: writers that stay
/// faster than folds would otherwise fill the memory and the disk.
pub const MAX_UNFOLDED_BYTES: u64 = 256 << 20;

/// Cache of the base, in bytes. redb would take a gibibyte; rows that are in use are cached by the vat.
pub const BASE_CACHE_BYTES: usize = 4 << 20;

/// The plaintext of a row is padded to a multiple of this many bytes.
pub const ROW_PADDING_BYTES: usize = 64;

/// A frame of an image is closed once its rows encode to this many bytes: large enough that the header and the
/// padding of a frame cost nothing, small enough to be held several times over on a small machine.
pub const IMAGE_FRAME_BYTES: usize = 256 << 10;

/// What a row takes in memory besides its name and its value, in bytes, roughly: an image of a stranger may consist
/// of rows that have neither.
pub const ROW_MEMORY_BYTES: u64 = 128;

/// How many names are tried for a file that is being written. Each is random; one is lost only when somebody who clears
/// up finds the file in the microseconds before it is locked.
pub const UNFINISHED_TRIES: usize = 16;

/// The longest frame of rows that is believed: those that are waiting when one more row of the largest turn comes.
pub const MAX_IMAGE_FRAME_BYTES: usize = 2 * (IMAGE_FRAME_BYTES + MAX_TURN_BYTES);

/// Rows of an image go into the base in transactions of about this many bytes: each costs some syncs, and is
/// held in memory.
pub const IMPORT_BATCH_BYTES: u64 = 8 << 20;

/// The longest keyslots file that is read, in bytes: about two hundred slots.
pub const MAX_KEYSLOTS_BYTES: u64 = 64 << 10;

/// The most passphrase slots that one store can have: each that does not fit costs a wrong passphrase, and a
/// right one whose slot comes later, a tenth of a second and 64 MiB.
pub const MAX_PASSPHRASE_SLOTS: usize = 8;

/// Memory of one try of a passphrase, in KiB: 64 MiB, the second choice of RFC 9106 (section 4). Enough that
/// graphics cards help little, and little enough for the smallest rented machine.
pub const PASSPHRASE_MEMORY_KIB: u32 = 64 << 10;

/// Passes over that memory: what RFC 9106 says for 64 MiB. About a tenth of a second.
pub const PASSPHRASE_PASSES: u32 = 3;

/// Lanes, which could be worked on at the same time. One: a try takes one core here, and RFC 9106's four would
/// make it cheaper for those who have more of them.
pub const PASSPHRASE_LANES: u32 = 1;

/// The most memory that a slot may ask for, in KiB: 1 GiB. The slot comes from a file that others may have written,
/// and it is asked for before anything can be verified.
pub const MAX_PASSPHRASE_MEMORY_KIB: u32 = 1 << 20;

/// The most passes that a slot may ask for: with the most memory, about half a minute.
pub const MAX_PASSPHRASE_PASSES: u32 = 16;

/// The most lanes that a slot may ask for.
pub const MAX_PASSPHRASE_LANES: u32 = 16;

/// The shortest passphrase that is taken, in characters. Argon2id makes a try expensive, not a short word long.
pub const MIN_PASSPHRASE_CHARACTERS: usize = 8;

/// The longest passphrase that is taken, in bytes.
pub const MAX_PASSPHRASE_BYTES: usize = 1 << 10;

/// How often keyslots are read again when they changed while a key was tried: a rotation changes them twice.
pub const KEYSLOTS_READS: usize = 4;

/// A small store is folded with the commit after this many frames: opening it, which every request does, opens
/// each of them.
pub const SMALL_TAIL_FRAMES: u64 = 64;

/// The least room that a small store has for frames after its snapshot, in bytes: [`SMALL_TAIL_FRAMES`] of two
/// sectors, which are most.
pub const SMALL_MIN_RESERVE_BYTES: u64 = 64 << 10;

/// The most room that a small store has for frames after its snapshot, in bytes; so it is folded when it has so
/// many bytes of frames. In between, the reserve is as long as the snapshot, so that folding at most doubles what
/// is written.
pub const SMALL_MAX_RESERVE_BYTES: u64 = 256 << 10;

/// The longest file of a small store, in bytes. Each request reads it whole and holds it in memory; long before
/// this the host profile is the better one.
pub const SMALL_FILE_BYTES: u64 = MAX_SEGMENT_BYTES;

/// How long who waits for a small store waits between two tries to lock it: about as long as a request has it.
/// Each try costs some microseconds.
pub const SMALL_LOCK_INTERVAL: Duration = Duration::from_millis(2);

/// The longest text of a lock file that is read, in bytes.
pub const MAX_LOCK_TEXT_BYTES: u64 = 1 << 10;

/// The longest program name that a lock file gives, in characters.
pub const MAX_PROGRAM_CHARACTERS: usize = 64;
