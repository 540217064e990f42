//! Every count, size and time that this crate bounds, each with its reason.
//!
//! The times are defaults: [`LookupTiming`](crate::LookupTiming), [`DialTiming`](crate::DialTiming) and
//! [`PublishTiming`](crate::PublishTiming) carry them, so that tests and unusual networks can choose others.

use std::time::Duration;

/// Search path entries asked at the same moment. Asking is cheap and a dead entry must cost no visible
/// delay, so a usual path is asked whole; a long one is not allowed to flood the network.
pub const FIRST_WAVE: usize = 4;

/// How long the last started attempt may stay silent before one more starts, as long as nothing has been
/// measured. About the p95 of a lookup over an open session across a continent.
pub const HEDGE: Duration = Duration::from_millis(150);

/// The measured p95 is used as the hedge within these bounds: below, it would double every lookup on a quiet
/// local network; above, one slow hour would make all later lookups slow.
pub const HEDGE_BOUNDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// After the first good answer, how long (at most, and never longer than that answer itself took) entries
/// that usually answer may still improve on it. A person does not see 50 ms.
pub const LIVE_GRACE: Duration = Duration::from_millis(50);

/// How long other entries may contradict the first answer that says "asleep" or "unknown". Wrongly telling
/// somebody that a vat is gone is worse than a second of waiting.
pub const NEGATIVE_GRACE: Duration = Duration::from_secs(1);

/// How long silent servers are waited for when a valid record is in the cache: three round trips to the
/// other side of the world, handshake included.
pub const CACHE_PATIENCE: Duration = Duration::from_millis(1500);

/// The end of a lookup, whatever happens.
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

/// The end of lookup and dialling together.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The end of one dial, its name lookup included. Two lost first packets are survived.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Places asked in one lookup, path and hints together. More are reported as not asked.
pub const MAX_CANDIDATES: usize = 32;

/// Addresses dialled at the same moment, and how long before the next.
pub const DIAL_WAVE: usize = 3;

/// How long the last started dial may stay silent before one more starts (RFC 8305, section 8, recommends
/// 250 ms where nothing is known; a QUIC handshake needs one round trip like the TCP one meant there).
pub const DIAL_HEDGE: Duration = Duration::from_millis(250);

/// Different addresses dialled for one connection, those of superseded records included. A record holds 16
/// at most.
pub const MAX_DIALS: usize = 40;

/// Addresses used of what one host name resolves to. A hostile name server must not make us spray packets.
pub const MAX_ADDRESSES_PER_NAME: usize = 6;

/// A cold lookup that is not answered is asked again after this time, then after ever longer ones: above the round
/// trip to nearly everywhere, so that an answer on its way is not asked for twice.
pub const COLD_REPEAT: Duration = Duration::from_millis(200);

/// Different answers to one cold lookup that are read. A server has two or three to give while it is asked: none, a record,
/// a newer one. More come only from somebody who has seen the question, and could have signatures checked without end.
pub const COLD_ANSWERS: usize = 8;

/// How long a server may leave a cold lookup unanswered until a session is opened beside it: its network may let
/// nothing through but QUIC. Two lost datagrams are survived before.
pub const COLD_PATIENCE: Duration = Duration::from_millis(600);

/// Entries that are watched for one vat: each costs a session, which is shared with all other vats.
pub const MAX_WATCHED: usize = 8;

/// How often an entry that cannot watch is asked.
pub const WATCH_POLL: Duration = Duration::from_secs(60);

/// Open sessions to location servers kept for the next lookup; the least recently used is closed first.
pub const MAX_POOLED_SESSIONS: usize = 32;

/// Answer times remembered per entry, from which its p95 is taken.
pub const LATENCY_SAMPLES: usize = 32;

/// A warm session that has not answered after this multiple of its p95 is suspected to lead to a process that
/// is gone (a killed server does not say goodbye), and a new session is tried beside it.
pub const WARM_PATIENCE_FACTOR: u32 = 4;

/// Bounds of that suspicion: timers of the operating system below, a user's patience above.
pub const WARM_PATIENCE_BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1000));

/// Lookups that go on after their first result was used, to learn from entries that answer late. Beyond this
/// many, late answers are given up.
pub const MAX_LINGERING_LOOKUPS: usize = 64;

/// Vats whose newest record is kept in memory.
pub const MAX_KNOWN: usize = 4096;

/// Vats whose newest record is kept on disk, unless the cache is opened with another number: about 4 MiB.
pub const CACHE_CAPACITY: usize = 4096;

/// When the disk cache is full, this fraction of it (one in eight) is evicted at once, so that a full cache
/// does not list its directory for every new record.
pub const CACHE_EVICTION_FRACTION: usize = 8;

/// How stale a cache file's time of last use may become before it is touched again. Exact enough to evict
/// the least recently used, without a disk write for every lookup.
pub const CACHE_TOUCH_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Characters of a text from a server that are repeated in an error. Control characters are replaced.
pub const MAX_REMOTE_TEXT: usize = 200;

/// A renewal comes at this fraction of the lease (one half): one renewal may be lost without harm.
pub const RENEWAL_DIVISOR: u32 = 2;

/// Renewals and retries are moved by up to this many per mille either way, so that vats which started
/// together do not call together for ever.
pub const JITTER_PER_MILLE: u64 = 100;

/// The shortest time between two renewals at one entry, whatever lease it grants.
pub const MIN_RENEWAL: Duration = Duration::from_secs(1);

/// The longest: a server that lost its table learns of the vat again within this time.
pub const MAX_RENEWAL: Duration = Duration::from_secs(60 * 60);

/// Wait after the first failure at an entry; doubled after each further one.
pub const RETRY_BASE: Duration = Duration::from_secs(1);

/// The longest wait between attempts: a server that was dead for a day has the vat back a minute after it
/// returns.
pub const RETRY_CAP: Duration = Duration::from_secs(60);

/// The longest wait that a server can impose by naming a time for the next attempt.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// Dates of signed records that are remembered, so that none is signed twice. With one record in half a minute it takes
/// hours until one is forgotten, and then it is of use to nobody.
pub const MAX_RECORD_DATES: usize = 1024;

/// Bits of work that are done for a place at a location server that is nearly full: 32 million trials on average, some
/// seconds of a fast core, half a minute of a small board. Ours ask for 23 at most; who asks for more does not want us.
pub const MAX_WORK_BITS: u8 = 25;

/// The end of the work for one registration, waiting for that of others included. It is done anew later.
pub const WORK_DEADLINE: Duration = Duration::from_secs(120);

/// How often one registration shows something that the server has asked for: an invite or work, and work once more if its
/// price has risen meanwhile.
pub const ADMISSIONS: u32 = 2;

/// The end of one registration, dialling included.
pub const REGISTER_DEADLINE: Duration = Duration::from_secs(10);

/// Wait after a first failed attempt to connect to a vat again; the first attempt after a session has ended comes
/// within it. Long enough to spread the peers of a server that restarts, and not seen by a person.
pub const RECONNECT_BASE: Duration = Duration::from_millis(200);

/// The longest wait between such attempts. With what an attempt itself may take it stays below one keep-alive
/// period of a session (12 s), after which everybody is to be back once the network is.
pub const RECONNECT_CAP: Duration = Duration::from_secs(4);

/// A session that has lasted for this long was a good one: its end begins a new count of failures. Longer than
/// the longest wait, so that a vat that accepts and drops its peers is not asked without end at once.
pub const RECONNECT_STEADY: Duration = Duration::from_secs(5);

/// How long a peer may be silent, although it was asked for a sign of life, until another connection is attempted
/// beside: several times what a lost packet and its repetitions take on a bad path, and well below one keep-alive
/// period, within which everybody is to be back.
pub const SILENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether a peer is silent. Two small reads of counters, for each vat that references lead to.
pub const SILENCE_INTERVAL: Duration = Duration::from_secs(2);

/// The end of one attempt to reach a vat again: lookup, dial and greeting. Shorter than [`CONNECT_DEADLINE`], because
/// there will be another one.
pub const RECONNECT_DEADLINE: Duration = Duration::from_secs(7);

/// Who begins an attempt just before the network is whole again, and waits for its end in vain, begins the next one
/// within this time.
const _: () = assert!(RECONNECT_CAP.as_secs() + RECONNECT_DEADLINE.as_secs() < transport::limits::KEEP_ALIVE.as_secs());

/// The end of one exchange over HTTPS: name, connection, TLS and answer together. As long as a dial may take.
pub const HTTP_DEADLINE: Duration = DIAL_DEADLINE;

/// Bytes of the body of an answer over HTTP that are read: a record has 1,072 at most, and the reason of a refusal is a
/// line of text.
pub const MAX_HTTP_BODY: usize = 4096;

/// Bytes of the head of an answer over HTTP. Ours have some 600; caches and proxies add their own.
pub const MAX_HTTP_HEAD: usize = 16 * 1024;

/// Header fields of an answer over HTTP.
pub const MAX_HTTP_FIELDS: usize = 64;

/// Open connections to servers of the HTTP form that are kept for the next request.
pub const MAX_IDLE_CONNECTIONS: usize = 8;

/// How long such a connection is kept: the devices on a path forget connections without traffic after minutes, some after
/// less than one, and tell nobody.
pub const HTTP_IDLE: Duration = Duration::from_secs(30);

/// How long a connection that was kept may be silent before a new one is tried beside it. Longer than the exchange and the
/// making of a connection take nearly everywhere, so that a server is seldom asked twice.
pub const HTTP_PATIENCE: Duration = Duration::from_secs(1);

const _: () = assert!(HTTP_PATIENCE.as_secs() * 2 < HTTP_DEADLINE.as_secs(), "there is time left for the new one");

/// For how long a server of the HTTP form is taken to answer with a record when it does not say. Relays put records into
/// the DHT, where they stay for about two hours (BEP 44 has them published again every hour).
pub const PLAIN_LEASE: Duration = Duration::from_secs(2 * 60 * 60);

/// The end of one lookup in DNS.
pub const DNS_DEADLINE: Duration = DIAL_DEADLINE;

/// A question in DNS that is not answered is asked again after this time, then after ever longer ones. A resolver that
/// has no answer in its cache asks up to three others first.
pub const DNS_REPEAT: Duration = Duration::from_secs(1);

/// How long a name server may stay silent before the next one is asked as well.
pub const DNS_HEDGE: Duration = Duration::from_millis(500);

/// Name servers of a `resolv.conf` that are asked; the system's own resolver takes as many (resolv.conf(5)). More of them
/// in the settings of a program are refused there.
pub const MAX_NAME_SERVERS: usize = 3;

/// Bytes of an answer from DNS that are read. With a packet, its longest name and what DNSSEC adds there are some 1,700.
pub const MAX_DNS_MESSAGE: usize = 4096;

/// Questions to an entry that count for its score: when there are more, the counts are halved.
pub const SCORE_MEMORY: u32 = 64;

/// Entries of which scores are kept: those of a search path and of the hints of some references.
pub const MAX_SCORED: usize = 128;

/// Measurements that wait for being written: those of a busy minute or two. If nothing can be written for longer, the
/// oldest are forgotten.
pub const MAX_UNSAVED_SCORES: usize = 4096;

/// How often scores are written while a program runs; the last time is when it ends.
pub const SCORE_INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of the file of scores that are read: 128 entries with 32 answer times each need some 60 kB.
pub const MAX_SCORE_FILE: u64 = 256 * 1024;

/// How long a vat that nobody knew is not asked for again. A vat that is just being started is found this much later at
/// most; a program that asks in a loop costs the servers this much less.
pub const ABSENT_MEMORY: Duration = Duration::from_secs(3);

/// Vats that are remembered as unknown.
pub const MAX_ABSENT: usize = 1024;

/// A difference between this clock and those of location servers that is told. Five minutes ahead, records are refused.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Clocks of servers agree when they differ by no more than this: two of them may each be half as wrong.
pub const CLOCK_AGREEMENT: Duration = Duration::from_secs(10);

/// Servers whose clocks have to agree before this machine's is called wrong.
pub const CLOCK_WITNESSES: usize = 2;

/// How long servers are asked for their time.
pub const CLOCK_DEADLINE: Duration = Duration::from_secs(2);

/// How long a server may take to dial this endpoint back: it waits for a handshake that nobody may answer, for five seconds.
pub const DIAL_BACK_DEADLINE: Duration = Duration::from_secs(10);
