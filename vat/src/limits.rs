//! Every bound of this crate, each with its reason (DESIGN: a limit on everything).

use std::time::Duration;

/// Longest name of a vat or an address book entry, in bytes. Shorter than the secret of a sturdyref, so that
/// one that was pasted in place of a name is not taken for a name, and not repeated.
pub const MAX_NAME_BYTES: usize = 40;

/// Longest label of a grant, in bytes: a label is one line on a screen.
pub const MAX_LABEL_BYTES: usize = 256;

/// Most grants of one vat. They are kept in memory; this many take about 20 MB.
pub const MAX_GRANTS: usize = 100_000;

/// Most objects of one vat. Their kinds and references are kept in memory; this many take about 70 MB.
pub const MAX_OBJECTS: usize = 250_000;

/// A sweep removes at most about this many bytes of names in one turn: a turn of the largest size that the
/// checkpoint takes would keep all others waiting for a good part of a second.
pub const SWEEP_TURN_BYTES: usize = 4 << 20;

/// Longest text that a built-in object stores under one name, in bytes. Two of them fit one message.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Most bytes of content that one call reads. An eighth of a message.
pub const CONTENT_PART_BYTES: usize = 1 << 20;

/// Largest content that `vat fetch` takes, in bytes: it is written to the disk of whoever asked for one note.
pub const MAX_FETCH_BYTES: u64 = 1 << 30;

/// How often in a row `vat fetch` goes on after a transfer that brought nothing.
pub const FRUITLESS_FETCHES: u32 = 3;

/// Longest key of a note or a directory entry, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// Longest name of somebody who signs a guestbook, in bytes.
pub const MAX_SIGNER_BYTES: usize = 256;

/// Most entries of one listing. A caller asks again for more.
pub const MAX_LIST_ENTRIES: usize = 1000;

/// Most bytes of one listing: well under the size of a message, however long the entries are.
pub const MAX_LIST_BYTES: usize = 2 << 20;

/// How long `vat run` asks the search path for the vat's own record before it goes on without (R7).
pub const WITNESS_DEADLINE: Duration = Duration::from_secs(2);

/// How long a first or last registration may take before the vat goes on without it.
pub const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(2);

/// How long a record claims to be true after it was signed. Twice the usual lease, so that a location
/// server that renews nothing still drops the record of a vat that vanished.
pub const RECORD_VALIDITY: Duration = Duration::from_secs(2 * 60 * 60);

/// Signed records that are kept to be offered again: the one of the vat's own clock, and those of the clocks of servers
/// that refuse it as dated ahead.
pub const KEPT_RECORDS: usize = 4;

/// How long the record of a vat that sleeps claims to be true: it says no more than that nobody is at home, and
/// finders should hear that instead of nothing for as long as a server keeps it.
pub const DORMANT_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How often a running vat looks whether its addresses changed, or whether its durable turn moved on so
/// that the witness should hear of it.
pub const REVIEW_INTERVAL: Duration = Duration::from_secs(30);

/// How often a running vat has a location server look whether others can dial it: routers are restarted, and leases of
/// addresses end.
pub const OUTSIDE_INTERVAL: Duration = Duration::from_hours(1);

/// The same while they cannot: its owner may be setting up the router.
pub const OUTSIDE_AGAIN: Duration = Duration::from_mins(5);

/// A little longer than a location server waits until it dials the same vat again.
pub const DIAL_BACK_PAUSE: Duration = Duration::from_secs(11);

/// How long a vat that goes to sleep waits for answers that are under way, and then for the disk.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// How long a command waits for the answer to a call, unless `--timeout` says otherwise.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a vat waits before it tries again to make a backup that could not be made.
pub const BACKUP_RETRY: Duration = Duration::from_secs(600);

/// How often a vat looks whether a backup is due, at least: clocks are set, and folders emptied, meanwhile.
pub const BACKUP_LOOK: Duration = Duration::from_secs(3600);

/// Backups of a vat that are kept unless the configuration says otherwise.
pub const BACKUPS_KEPT: usize = 7;

/// How long a command waits for the next word of an export or a verification that a vat does for it.
pub const STALL_DEADLINE: Duration = Duration::from_secs(60);

/// How often a vat says how far such work is.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How often it says that it goes on when it is no further: a sync of all that was written, or a fold, may be silent
/// for longer than anybody would wait. A sixth of [`STALL_DEADLINE`].
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// How long a command waits for the vat on this machine to greet it.
pub const LOCAL_DEADLINE: Duration = Duration::from_secs(5);

/// Longest invite read from standard input, in bytes: more than it has, and the end of its line.
pub const MAX_INVITE_BYTES: usize = 256;

/// Longest sturdyref read from standard input, in bytes: the reference and all its hints.
pub const MAX_REFERENCE_BYTES: usize = 16 << 10;

/// Largest schema that a command accepts from a vat, in bytes. The built-in ones have 38 kB.
pub const MAX_SCHEMA_BYTES: usize = 1 << 20;

/// Free disk space below which `vat doctor` warns, in bytes: a few segments of every journal and a fold.
pub const MIN_FREE_BYTES: u64 = 64 << 20;

/// How long a vat waits after the system refused to accept somebody on the local socket.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Location records that are kept on disk. At about 1 kB each this is 4 MB.
pub const MAX_CACHED_RECORDS: usize = 4096;

/// How long one location server may take to answer when it is asked alone.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// How long one name lookup may take when a vat finds out its own addresses.
pub const NAME_DEADLINE: Duration = Duration::from_secs(1);

/// How long a command waits for another one that has the checkpoint or the address book open, or for a vat that
/// is just waking or going to sleep.
pub const BUSY_DEADLINE: Duration = Duration::from_secs(6);

/// How often it looks whether that is over.
pub const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// How long a vat that goes to sleep waits until its peers have taken their last answers.
pub const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

/// Clients that may shake hands at a vat's TLS port at once; for one more the oldest of the network that has the most is
/// dropped. Each costs half a millisecond of the processor.
pub const MAX_TLS_HANDSHAKES: usize = 64;

/// As many of them from one network: a quarter, so that one that leaves them unfinished keeps nobody else out.
pub const MAX_TLS_HANDSHAKES_PER_NETWORK: usize = MAX_TLS_HANDSHAKES / 4;

/// Clients that a vat's TLS port serves at once; of the network that has the most, the one that is idle for the longest
/// makes room for the next. They are anonymous, so they have places of their own, and cannot take those of peers that
/// prove who they are. At some 70 kB each this is 18 MB.
pub const MAX_TLS_CLIENTS: usize = 256;

/// As many of them from one network (/24 of IPv4, /56 of IPv6): no network can take all places. One more takes that of
/// the one that is idle for the longest among its own.
pub const MAX_TLS_CLIENTS_PER_NETWORK: usize = 32;

/// Programs that may be connected to a bridge at once; the next one waits. All are of one user, who would notice.
pub const MAX_BRIDGE_CLIENTS: usize = 256;

/// How long a vat may take to restore an object before a bridge looks for it anew for the next one who asks. Restoring
/// waits for nothing but the newest turn; whoever is still silent then was killed, or is out of reach.
pub const SILENCE_PATIENCE: Duration = Duration::from_secs(2);

/// Vats that one connection to a bridge may hold something of at once. At about 30 kB for each session, a thousandth of
/// what a program that needs so many has itself.
pub const MAX_VATS_PER_CLIENT: usize = 256;

/// Dials of one vat that a bridge has under way at once, each with the hints of somebody who asked. Whoever comes with
/// others beyond that waits for these first.
pub const MAX_DIALS_PER_VAT: usize = 4;
