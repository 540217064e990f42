//! Every limit of the location server, with its reason (DESIGN §4 rule 9, §6).

use std::time::Duration;

use crate::registry::Rate;

// ---- the registry and its disk

/// How long a record is answered after its vat was last seen, unless the operator says otherwise. A vat
/// renews at half of it, so one lost renewal harms nobody, and a vat that died is forgotten within the hour.
pub const LEASE: Duration = Duration::from_hours(1);

/// The shortest lease that an operator may set. What a vat is told is in whole seconds, and it renews at half.
pub const MIN_LEASE: Duration = Duration::from_secs(2);

/// The longest lease that an operator may set: the finders of a dead vat would be misled for that long.
pub const MAX_LEASE: Duration = Duration::from_hours(24 * 7);

/// A renewal that comes within this part of the policy's lease after the one before is answered without a
/// write. Packets are public, so anybody can send one again; this bounds what that costs the disk to
/// sixteen small frames per id and lease, and costs the vat at most a sixteenth of a lease.
pub(crate) const RENEWAL_GRAIN: u32 = 16;

/// Records, live and expired, that are kept. One takes some twenty bytes more than its packet, so these take about
/// 60 MB, or 300 MB if all packets are of the greatest length.
pub const MAX_RECORDS: usize = 250_000;

/// High-water marks of ids whose record was given up. At about 60 bytes each, some 30 MB.
pub const MAX_MARKS: usize = 500_000;

/// The most records, whatever the operator says: by then a machine has 1 GB of them, and the numbers that the table
/// gives to its parts are used up at twice as many.
pub const MOST_RECORDS: usize = 1 << 22;

/// The most high-water marks, whatever the operator says: 2 GB.
pub const MOST_MARKS: usize = 1 << 25;

/// Rows that are written in one turn when a store of an older format is opened: less than a mebibyte.
pub(crate) const CHANGES_PER_UPGRADE: usize = 512;

/// Leases that have ended which one registration puts among those that make room. More than one, so that they
/// are all there in the end; not all at once, because after a silent night that could be the whole table.
pub(crate) const LAPSES_PER_OPERATION: usize = 32;

/// Turns of which it is known exactly which record they wrote: as many as can wait for the disk.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const RECENT_TURNS: usize = TURNS_IN_FLIGHT as usize + 2 * UNVERIFIED;

/// Pairs of conflicting packets that are kept as evidence. Evidence is rare and read by people.
pub const MAX_EVIDENCE: usize = 4_096;

/// New ids per source prefix. The burst lets the hundreds of vats behind one address return together after
/// a power failure; the rate then keeps one network below a fifteenth of the table per hour.
pub const NEW_IDS: Rate = Rate { burst: 4_096, interval: Duration::from_millis(250) };

/// Signature checks per source prefix: 500 a second are less than a thirtieth of one core.
pub const SIGNATURE_CHECKS: Rate = Rate { burst: 4_096, interval: Duration::from_millis(2) };

/// Writes per id: each is a frame in the journal. A vat that is restarted again and again by its supervisor
/// stays far below the burst.
pub const WRITES_PER_ID: Rate = Rate { burst: 256, interval: Duration::from_secs(1) };

/// New ids of one server from which records are learned. A server that begins with nothing learns those that are asked
/// for; two hundred a second are a twentieth of a core, and fill no table before the next lease has ended.
pub const LEARNED_IDS: Rate = Rate { burst: 4_096, interval: Duration::from_millis(5) };

/// What was learned from one server takes at most this part of the table, so that none can fill it alone.
pub(crate) const LEARNED_PART: usize = 2;

/// Per mille of the records that may be live before a new id costs work. Below, there is room for everybody; above, what
/// comes pushes others out soon, and a flood from many networks at once, which quotas do not slow, has to pay for each
/// place with a processor's time. The eighth above is what lets the price rise by steps.
pub const WORK_ABOVE: u32 = 875;

/// Bits of work at first: half a million trials, a tenth of a second of one core (a signature that is verified costs the
/// server some 25 microseconds; this takes thousands of times as much, and a millionth to check).
pub const WORK_BITS: u8 = 19;

/// Bits of work where the table is full: sixteen times as many, one to three seconds of a fast core and some ten of a
/// small board.
pub const WORK_BITS_FULL: u8 = 23;

/// For how long a task stays the same; it holds for as long again. So a slow machine has twice the time that it needs,
/// and what was worked ahead is worth nothing after a few minutes.
pub const WORK_WINDOW: Duration = Duration::from_mins(2);

/// After how long it is worth trying again for who cannot do work: by then some lease may have ended.
pub const WORK_RETRY: Duration = Duration::from_mins(5);

/// Invites that hold or have ended: whoever runs a server gives them to people that he knows.
pub const MAX_INVITES: usize = 4_096;

/// Bytes of the note of an invite: a name, or a line about whom it is for.
pub const INVITE_NOTE_BYTES: usize = 200;

/// Sets of a table of source prefixes, a power of two: with its ways it is all the memory that quotas, or the rates of one
/// carrier, ever use.
pub(crate) const SOURCE_SETS: usize = 4_096;

/// Slots per set of the source table.
pub(crate) const SOURCE_WAYS: usize = 4;

/// Turns that may wait for the disk when another registration begins. More would not make a group commit cheaper; with
/// those whose signatures are being verified they stay far below the queue of the store, so that handing one over never
/// waits.
pub(crate) const TURNS_IN_FLIGHT: u64 = 1_024;

/// Registrations that may gather while the signatures of as many others are verified. A batch of so many takes some
/// twenty-five milliseconds beside the thread that serves; one of half as many is a twentieth dearer for each.
pub(crate) const UNVERIFIED: usize = 1_024;

/// Signatures that are verified without leaving the thread that serves: a fifth of a millisecond.
pub(crate) const CHECKS_IN_PLACE: usize = 4;

/// Registrations of a batch that are decided before others get their turn: about half a millisecond.
pub(crate) const ADMITTED_AT_ONCE: usize = 64;

// ---- the carriers

/// What one message may ask for at once (`lookupMany`): 256 packets of 1,072 bytes stay well below the
/// message limit of every peer.
pub const MAX_LOOKUPS_PER_CALL: u32 = 256;

/// Sessions at once. An idle one takes some 40 kB, so all of them 160 MB.
pub const SESSIONS: usize = 4_096;

/// The most sessions, whatever the operator says: 2.5 GB of idle ones.
pub const MOST_SESSIONS: usize = 1 << 16;

/// Sessions at once of one source prefix: a machine with hundreds of vats has one for each, and no network can
/// take all places.
pub const SESSIONS_PER_NETWORK: usize = 1_024;

/// A session that asks nothing for this long is closed. A publisher comes back at half its lease and a finder
/// when it is asked to find; both dial again by themselves.
pub const IDLE_SESSION: Duration = Duration::from_mins(10);

/// Connections beyond which a dialler must prove its address first, at the cost of one more round trip. Well
/// below [`transport::limits::HANDSHAKES_PER_NETWORK`]: whoever lies about where it is cannot use up another network's handshakes.
pub(crate) const CONNECTIONS_BEFORE_RETRY: usize = 32;

/// Longest message, in bytes: 256 answers with the longest packets are some 290 kB.
pub(crate) const MESSAGE_BYTES: usize = 512 << 10;

/// Watches at once, of everybody: each is a task of some kilobytes, so all of them 100 MB at most.
pub(crate) const WATCHES: usize = 32 << 10;

/// Watches at once of one session: what a program that waits for all of its friends has.
pub(crate) const WATCHES_PER_SESSION: usize = 256;

/// How often a watch looks whether a lease has ended: a vat that dies is missed within the lease, an hour or so, and
/// half a minute more is nothing to that.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(30);

/// How long a vat that is dialled back may take to answer: a lost packet, its repetition, and the way round the world.
pub(crate) const DIAL_BACK_DEADLINE: Duration = Duration::from_secs(3);

/// How long after one dial back the same session may ask for another: a vat asks when its address has changed, and
/// nobody is to have a stranger's packets sent faster than he could send them himself.
pub(crate) const DIAL_BACK_INTERVAL: Duration = Duration::from_secs(10);

/// Dials back at once, of everybody.
pub(crate) const DIALS_BACK: usize = 64;

/// Capabilities in one message: a watch takes one.
pub(crate) const CAPABILITIES_PER_MESSAGE: usize = 8;

/// Calls of one peer under way. A registration waits for a disk, so a busy gateway has some hundreds.
pub(crate) const CALLS_IN_FLIGHT: usize = 1_024;

/// Bytes of the calls of one peer under way: what so many registrations take.
pub(crate) const CALL_BYTES_IN_FLIGHT: usize = 2 << 20;

/// Bytes of answers that may wait for one peer to take them, before its next calls are left unread: one answer
/// of the largest size. Peers that read nothing cost this much each, until they are given up.
pub(crate) const WAITING_ANSWER_BYTES: usize = 256 << 10;

/// Cold lookups that wait for a record to be durable; that takes a millisecond or two. Who is not among them asks
/// again.
pub(crate) const EARLY_QUESTIONS: usize = 256;

/// How long a stopping server waits for its disk before it ends the calls that wait for it.
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Turns of the event loop that the RPC layer gets to turn finished calls into messages, before their sessions
/// are closed. It takes about three.
pub(crate) const STEPS_TO_ANSWER: usize = 32;

// ---- HTTP

/// Connections at once over HTTP, of everybody. An idle one takes 24 kB, over TLS 30, so all of them some 120 MB.
/// Beyond, the one that has been idle for longest makes room.
pub const HTTP_CONNECTIONS: usize = 4_096;

/// Connections at once of one network. A browser opens six; behind one address there may be a hundred of them.
pub const HTTP_CONNECTIONS_PER_NETWORK: usize = 512;

/// How long a connection may stay without the whole head of a request: while TLS shakes hands, while a head comes
/// byte by byte, between two requests, and while an answer is not taken. Well above a slow link's round trips and
/// above the time in which iroh comes back for more.
pub const HTTP_IDLE: Duration = Duration::from_secs(30);

/// How long the body may take, which is one packet of the network.
pub const HTTP_BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of a request's head. Cookies of a whole domain may come along and are passed over; no question of ours
/// takes more than 2,000. Of header fields there may be a hundred, as hyper has it.
pub(crate) const HTTP_HEAD_BYTES: usize = 16 << 10;

/// Requests of one HTTP/2 connection under way: what a resolver that uses DNS over HTTPS asks at once. Each may hold
/// the head and the body of a request.
pub(crate) const HTTP_STREAMS: u32 = 32;

/// Bytes that one request of HTTP/2, and one connection, may send ahead: bodies have one packet.
pub(crate) const HTTP_WINDOW: u32 = 16 << 10;

/// Requests of HTTP/2 that were taken back before they were looked at, for which a connection is kept. Taking back is
/// free for who asks and not for who answers ("rapid reset", CVE-2023-44487).
pub(crate) const HTTP_RESETS: usize = 16;

/// Requests on one connection, after which it is closed with its answer, so that a connection cannot be held for ever
/// against those that wait for its place.
pub const HTTP_REQUESTS_PER_CONNECTION: u32 = 10_000;

/// Requests per network over HTTP, lookups and registrations alike, and handshakes of TLS, which are the dearest of
/// them: a thousand of these are a tenth of a core.
pub const HTTP_REQUESTS: Rate = Rate { burst: 4_096, interval: Duration::from_millis(1) };

/// The longest time for which an HTTP cache may keep a record, whatever its own time to live: a vat that moved is not
/// found through a cache that has its old address.
pub const HTTP_CACHE: Duration = Duration::from_secs(60);

/// How long a browser may remember what CORS permits: it is the same for all requests and never changes.
pub(crate) const CORS_SECONDS: u32 = 86_400;

/// How long the page for monitors waits for the disk. A healthy one takes milliseconds, one that is being repaired
/// seconds; monitors themselves give up after five to ten.
pub(crate) const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// Hops that are read from a forwarding header, from the last one backwards. Each is one of the operator's own
/// proxies, and nobody has more of them in a row.
pub(crate) const FORWARDED_HOPS: usize = 8;

/// Bytes of a certificate or a key file: a chain of ten certificates has some 20 kB.
pub(crate) const CERTIFICATE_BYTES: u64 = 1 << 20;

/// How often the certificate's files are looked at. They are renewed weeks before they end.
pub(crate) const CERTIFICATE_CHECK: Duration = Duration::from_mins(10);

/// How long to wait before connections are accepted again, when the system says that it cannot, for instance because
/// too many files are open.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// ---- DNS

/// Bytes of an answer over UDP, whatever the asker claims to take: what every path carries in one piece
/// (DNS Flag Day 2020). A record with the longest packet fits.
pub const DNS_UDP_BYTES: usize = 1_232;

/// Bytes of an answer over UDP to who does not say how much it takes (RFC 1035, section 4.2.1).
pub(crate) const DNS_PLAIN_UDP_BYTES: usize = 512;

/// Bytes of a question. A name has at most 255; the rest is room for EDNS options and padding.
pub const DNS_QUERY_BYTES: usize = 1_232;

/// Records behind the question that are looked at: EDNS, a signature, and one to spare.
pub(crate) const DNS_ADDITIONAL: u16 = 3;

/// Answers per network, over UDP, and so many again over TCP. A large public resolver asks from a handful of networks, and over TCP when it is
/// slowed down.
pub const DNS_ANSWERS: Rate = Rate { burst: 2_048, interval: Duration::from_millis(2) };

/// Of the questions that come too fast, every so many is told to come back over TCP, which who forges addresses
/// cannot; the others get nothing. The figure of BIND, NSD and Knot.
pub(crate) const DNS_SLIP: u32 = 2;

/// Connections at once for DNS over TCP, of everybody, and of one network. They are rare: our answers fit UDP.
pub const DNS_CONNECTIONS: usize = 512;

/// See [`DNS_CONNECTIONS`].
pub const DNS_CONNECTIONS_PER_NETWORK: usize = 64;

/// How long a TCP connection may stay without a whole question (RFC 7766, section 6.2.3: seconds).
pub const DNS_IDLE: Duration = Duration::from_secs(10);

/// Questions on one TCP connection.
pub(crate) const DNS_QUERIES_PER_CONNECTION: u32 = 1_000;

/// Bytes of the origin's name: with `_iroh.<52 characters>.` in front it has to stay below the 255 of a name.
pub(crate) const DNS_ORIGIN_BYTES: usize = 180;

/// Time to live, in seconds, of what the zone says of itself: it changes when the operator moves.
pub(crate) const DNS_ZONE_TTL: u32 = 3_600;

/// Time to live, in seconds, of "there is nothing": how long after its registration a vat may still be invisible to
/// who asked too early.
pub(crate) const DNS_NEGATIVE_TTL: u32 = 10;

// ---- other servers

/// Servers that one server follows. Each costs a session, and a question for each that is not held.
pub const MOST_PEERS: usize = 8;

/// Over how many servers a question may have come to be asked on: a finder asks one, which asks those that it follows,
/// which ask those that they follow. With eight peers each, one question is 64 at most.
pub(crate) const MOST_HOPS: u8 = 2;

/// For how long others are asked before a finder is answered; those who are asked by them have half of that. A session
/// that has to be made takes two round trips, the question one more, and finders give one server little longer.
pub const PEERS_DEADLINE: Duration = Duration::from_millis(1_600);

/// After this part of the deadline those are asked, too, who are asked last.
pub(crate) const SECOND_WAVE_PART: u32 = 4;

/// Questions of others under way: with what each waits for, some 2 kB each.
pub(crate) const PEER_QUESTIONS: usize = 256;

/// Beyond so many, questions are begun no more that nobody waits for, or whose sender may be invented.
pub(crate) const PEER_QUESTIONS_BESIDE: usize = 128;

/// Cold lookups that wait for the answer of other servers, of everybody. Others are answered at once.
pub(crate) const PATIENT_DATAGRAMS: usize = 256;

/// Questions that each network may cause. A finder that wakes asks for all its friends; whoever goes on for longer with
/// what nobody knows has our peers asked no more than this.
pub const ASKED_FOR: Rate = Rate { burst: 1_024, interval: Duration::from_millis(10) };

/// For how long what nobody knew is not asked for again.
pub(crate) const UNKNOWN: Duration = Duration::from_secs(3);

/// For how long a record that is held, or was found, is answered without looking whether others know a higher one.
pub(crate) const CONFIRMED: Duration = Duration::from_secs(30);

/// Questions that are remembered so as not to be asked again. With a hundred bytes each, 1.6 MB.
pub(crate) const RECENT_QUESTIONS: usize = 16 << 10;

/// How long a peer that did not answer is asked last: until a restart is over, or a line is back.
pub(crate) const FAILED_PEER: Duration = Duration::from_secs(30);

/// How long a peer is asked last that said what it ought to have known to be wrong.
pub(crate) const LYING_PEER: Duration = Duration::from_mins(10);

/// Registrations that a peer has not been told of. At a hundred bytes each, 400 kB for each peer; a whole burst of one
/// network fits.
pub(crate) const UNTOLD: usize = 4_096;

/// Records in one call to a peer (`learn`): 64 of the greatest length are 70 kB.
pub const MAX_LEARNED_PER_CALL: u32 = 64;

/// Longest message of a peer, in bytes: one answer is a kilobyte.
pub(crate) const PEER_MESSAGE_BYTES: usize = 16 << 10;

/// How long a peer may take to shake hands.
pub(crate) const PEER_DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Addresses of a peer's name that are dialled.
pub(crate) const PEER_ADDRESSES: usize = 8;

/// How long after one of them the next is dialled (RFC 8305, section 5).
pub(crate) const NEXT_PEER_ADDRESS: Duration = Duration::from_millis(250);

/// How long a peer may take to make durable what it was told, a busy disk included.
pub(crate) const TELLING_DEADLINE: Duration = Duration::from_secs(10);

/// How long a peer that could not be dialled is left alone: so long at first, then twice as long each time, up to the
/// longest.
pub(crate) const REDIAL: Duration = Duration::from_millis(500);

/// See [`REDIAL`].
pub(crate) const LONGEST_REDIAL: Duration = Duration::from_mins(1);

// ---- the Mainline DHT

/// How long one lookup may take: three rounds of questions to nodes that may be gone, each given up after two seconds,
/// and some to spare.
pub const DHT_DEADLINE: Duration = Duration::from_secs(8);

/// Lookups under way. Each asks some sixty nodes, twenty at a time: all of them some hundred packets a second.
pub(crate) const DHT_LOOKUPS: usize = 32;

/// Beyond so many, lookups are begun no more that nobody waits for, or whose sender may be invented.
pub(crate) const DHT_LOOKUPS_BESIDE: usize = 16;

/// Lookups that each network may cause. A question of thirty bytes becomes a hundred packets, so it is little.
pub const DHT_ASKED_FOR: Rate = Rate { burst: 16, interval: Duration::from_secs(1) };

/// For how long what the DHT did not know is not looked up again.
pub(crate) const DHT_UNKNOWN: Duration = Duration::from_secs(30);

/// For how long what was found there is answered before it is looked up again. Nobody there says when a vat was last
/// seen, so it is short.
pub(crate) const DHT_LEASE: Duration = Duration::from_mins(5);

/// Different packets of one id that one lookup takes. Honest nodes hold one or two.
pub(crate) const DHT_VERSIONS: usize = 8;

/// After how long a packet is put there again; a quarter less for some, so that not all are put at once. Its nodes forget
/// after two hours (BEP 44).
pub const DHT_REPUBLISH: Duration = Duration::from_hours(1);

/// Between the beginnings of two puts, each of which is a lookup and twenty packets more. So 7,200 vats are put every hour;
/// if there are more, each is put less often.
pub const DHT_PACE: Duration = Duration::from_millis(500);

/// Puts under way: as many as begin while one lasts for four seconds.
pub(crate) const DHT_PUTS: usize = 8;

/// How often the table is gone through for what is to be put again.
pub const DHT_SWEEP: Duration = Duration::from_mins(1);

/// Registrations that wait to be put there, and as many that the table was gone through for.
pub(crate) const DHT_UNPUBLISHED: usize = 4_096;

/// Puts that are remembered so as not to be done again: more than there are in two hours. With a hundred bytes each,
/// 1.6 MB.
pub(crate) const DHT_PUBLISHED: usize = 16 << 10;

/// When a put that failed is tried again.
pub const DHT_RETRY: Duration = Duration::from_mins(5);

/// Lookups in a row that nobody there has answered, after which it is joined anew: its first nodes may have moved.
pub(crate) const DHT_SILENCE: u32 = 16;

/// How long it is left alone when it could not be joined: so long at first, then twice as long each time, up to
/// [`LONGEST_REDIAL`].
pub(crate) const DHT_REJOIN: Duration = Duration::from_secs(1);

/// How long the names of its first nodes may take to be looked up.
pub(crate) const DHT_NAMES_DEADLINE: Duration = Duration::from_secs(10);

/// First nodes that an operator may name.
pub const MOST_DHT_BOOTSTRAP: usize = 32;

/// What each network may ask of this server as a node of the DHT. Its answers are up to ten times as long as what they
/// answer, and senders can be forged: nobody is sent more than ten kilobytes a second through here.
pub(crate) const DHT_ANSWERS: Rate = Rate { burst: 32, interval: Duration::from_millis(100) };

/// Items of others, and swarms of others, that are kept as a node of the DHT. An item has a kilobyte.
pub(crate) const DHT_KEPT: usize = 1_000;

// ---- the program

/// Owners that ask a running server at once. There is one.
pub(crate) const CONTROL_CONNECTIONS: usize = 8;

/// Bytes of an owner's question: an invite with its note, which JSON may make six times as long, is the longest.
pub(crate) const CONTROL_QUESTION_BYTES: u64 = 2 << 10;

/// How long an owner who has connected may take to ask.
pub(crate) const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

/// How long another server may take to shake hands, and to answer: a dial back takes three seconds if nobody is there.
pub(crate) const REMOTE_DEADLINE: Duration = Duration::from_secs(8);

/// Room on the disk below which the operator is warned: what the journal and a base of some ten thousand records need.
pub(crate) const FREE_BYTES: u64 = 64 << 20;

/// Bytes that are written to see whether the disk takes them: more than any group of turns in a quiet hour.
pub(crate) const CHECK_BYTES: usize = 64 << 10;

/// What a certificate has left when the operator is warned. Those that renew themselves do so a month before.
pub(crate) const CERTIFICATE_LEFT: Duration = Duration::from_hours(24 * 14);

/// How far a clock may be off before the operator is warned: no clock that anything sets is ever so wrong.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(10);

/// Records of an import that are being registered at once: enough for a group commit and a batch of signatures.
pub(crate) const IMPORTS_IN_FLIGHT: usize = 256;

/// Bytes of one line of an export: the longest packet in base64 has 1,432.
pub(crate) const EXPORT_LINE_BYTES: u64 = 4 << 10;

/// Bytes of an export that are gathered before they are written.
pub(crate) const EXPORT_CHUNK_BYTES: usize = 64 << 10;

/// Files that a server has open beside those of its TCP connections: those who are dialled back, its owner, its own
/// sockets, its store, the log, and some to spare.
pub(crate) const OWN_FILES: usize = 64 + DIALS_BACK + CONTROL_CONNECTIONS;

// ---- what several carriers share
