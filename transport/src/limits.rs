//! Every bound of this crate, with its reason (DESIGN §6: limits are counted per peer).
//!
//! A peer is a stranger: whatever it can make us hold, wait for or compute has a number here. What an owner
//! may want to change is a field of [`SessionLimits`] or of [`EndpointConfig`](crate::EndpointConfig), with
//! these constants as defaults.

use std::time::Duration;

// ---- one message

/// Longest message accepted, in bytes, segment table included.
///
/// An interactive call is well under a kilobyte; large content belongs on a bulk stream. 8 MiB leaves room for
/// a page of records or a picture, and a thousand hostile peers that each fill it stay below 8 GiB only
/// because memory is also granted as bytes arrive, never on announcement (see [`FIRST_GRANT_BYTES`]).
pub const MESSAGE_BYTES: usize = 8 << 20;

/// Most segments of one message: the convention of the Cap'n Proto implementations. Builders double their
/// segments, so an honest message of [`MESSAGE_BYTES`] has about twenty.
pub const SEGMENTS: usize = 512;

/// Memory granted to a message when its size was announced and nothing of its body has arrived. Grows by
/// doubling as bytes arrive, so a peer has to send at least half of what it makes us hold.
pub const FIRST_GRANT_BYTES: usize = 16 << 10;

/// Deepest nesting of pointers that is followed in a message: Cap'n Proto's own default, well below what could
/// exhaust a 2 MiB stack.
pub const NESTING: i32 = 64;

/// How many words may be visited in a message, as a multiple of its size. Generated accessors visit a struct
/// again at every call, so code that reads a field ten times has visited it ten times.
pub const TRAVERSAL_FACTOR: usize = 16;

/// How many words may be visited in any message, however small: 8 MiB, some 10 ms of work for a hostile one
/// whose pointers all lead to the same place.
pub const TRAVERSAL_FLOOR_WORDS: usize = 1 << 20;

/// Most capabilities in one message. Each costs a table entry and a heap object here; 100,000 in one message
/// were seen to block the loop for seconds.
pub const CAPABILITIES_PER_MESSAGE: usize = 256;

/// Most steps from an answer to a capability within it, one per pointer: as deep as messages nest. A list of a
/// million steps in one message may be pointed at by every capability of it, and each would be kept as a copy.
pub const PIPELINE_STEPS: u32 = 64;

/// Largest message of a kind that this side does not have that is still sent back whole, as the protocol asks
/// (`unimplemented`), in words as it would be copied: an honest introduction has some twenty. Overlapping
/// pointers make a copy larger than the message.
pub const ECHO_WORDS: u64 = 128;

/// First segment of an outgoing message, in words: 512 bytes hold almost every call and return. capnp's
/// own default is 8 KiB, to be zeroed for each call.
pub const FIRST_SEGMENT_WORDS: u32 = 64;

/// Smallest first segment, in words, when the RPC layer asks for little: Finish and Release.
pub const SMALLEST_SEGMENT_WORDS: u32 = 16;

// ---- one session

/// Most calls of one peer under way at once; one more is answered with `session.limit` and is not delivered.
/// Four times what a pipelining benchmark uses.
pub const CALLS_IN_FLIGHT: usize = 4096;

/// Most bytes of calls of one peer under way at once; answered as above. Two messages of the largest size.
pub const CALL_BYTES_IN_FLIGHT: usize = 2 * MESSAGE_BYTES;

/// What a result that is passed on before it is there counts as among the bytes of the call that it is passed with: what
/// is kept for it. In the message it takes sixteen.
pub(crate) const PROMISE_BYTES: usize = 256;

/// Most questions of one peer that were answered and that it keeps open, running calls included. Each may hold
/// capabilities. Four times as many as can run.
pub const OPEN_QUESTIONS: usize = 4 * CALLS_IN_FLIGHT;

/// Most calls that one peer may give up before their answer in a row: whoever calls and gives up over and over has
/// objects begin work that nobody wants, for the price of two small messages. Everything that may be under way, given
/// up twice.
pub const CALLS_GIVEN_UP: usize = 2 * CALLS_IN_FLIGHT;

/// After this time one of them is forgotten: a peer that waits with short deadlines, or asks several and takes the
/// first answer, may do so a hundred times a second for ever.
pub const GIVEN_UP_INTERVAL: Duration = Duration::from_millis(10);

/// Most calls in a chain of which each is made on the result of the one before while none is answered. Passed
/// on as parameters, such results are promises within promises, which are dropped by recursion: a few thousand of them
/// overflow a stack of 2 MiB, and with it end the process. An honest program chains a handful.
pub const PIPELINE_DEPTH: u16 = 64;

/// Bytes of streamed calls to one capability that may be on their way before who streams is held back, and one call more: as
/// much as capnp-rpc has, and 5 MB a second over a path of 13 ms.
pub const STREAMED_BYTES: usize = 64 << 10;

/// Most capabilities of ours that one peer may keep. Each holds an object alive here, of some hundred bytes at
/// least. Enough for a peer that lists ten thousand objects and keeps each of them.
pub const EXPORTS: usize = 16 << 10;

/// Most capabilities of one peer that it can make us keep, each a table entry and a heap object here.
pub const IMPORTS: usize = 16 << 10;

/// How long a call of ours waits for its answer unless its caller says otherwise
/// ([`with_call_deadline`](crate::with_call_deadline)). Longer than any interactive call takes and than people
/// wait; it is there so that nobody waits for ever.
pub const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// Most calls of ours that one peer may leave unanswered beyond their deadlines in a session that goes on. We
/// remember each, for its number cannot be used again before the peer has answered.
pub const UNANSWERED_CALLS: usize = 1024;

/// How long a message may take from its first byte to its last, not counting [`MESSAGE_BYTES_PER_SECOND`].
/// Longer than a lost packet and its retransmissions.
pub const MESSAGE_DEADLINE: Duration = Duration::from_secs(30);

/// Each time that so many bytes of a message have arrived, it may take a second longer: a poor line is no
/// attack, one byte a minute is. The largest message then has some five minutes.
pub const MESSAGE_BYTES_PER_SECOND: usize = 32 << 10;

/// How long a session of which neither side holds or awaits anything goes on without a message. Between one and
/// two of these pass before it ends. A session that somebody may still use is never ended for being quiet.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Bytes of answers that may wait for the peer to take them, or for their turn to be durable, before we stop
/// reading from it. Our own calls do not count: two peers that both call a lot would then wait for each other.
pub const WAITING_ANSWER_BYTES: usize = 1 << 20;

/// Bytes of all kinds that may wait to be written to one peer. Beyond it our own new calls fail at once with
/// `session.limit` instead of growing the queue.
pub const WAITING_BYTES: usize = 64 << 20;

/// How long released bytes may wait without the peer taking a single one. A peer that reads nothing for this
/// long holds our memory and, if it waits for us in turn, would wait for ever.
pub const WRITE_STALL: Duration = Duration::from_secs(60);

/// After how long of that, while we do not read because of [`WAITING_ANSWER_BYTES`] and wait for answers of the peer
/// ourselves, we read again and refuse its calls instead. Two peers that owe each other more than is kept would
/// otherwise each wait for the other to read. Longer than a lost packet and its repetitions take.
pub const MUTUAL_STALL: Duration = Duration::from_secs(5);

/// How long the peer may take for its greeting. It costs it one round trip; ten seconds outlast a lost packet
/// and its retransmissions on the worst of paths.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long a closing session waits until the peer has what was released.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Longest greeting accepted, in bytes. Ours has about 100; later versions may say more.
pub const HELLO_BYTES: usize = 4 << 10;

/// Most segments of a greeting.
pub const HELLO_SEGMENTS: usize = 8;

/// Longest program name in a greeting, in bytes; a longer one is cut. It is shown to people.
pub const PROGRAM_BYTES: usize = 64;

/// Longest reason text taken from a peer, in characters; it is shown to people and logged.
pub const REASON_CHARACTERS: usize = 300;

/// Bytes taken from a stream per read: read ahead of what is delivered. On the stack, so an idle session holds none.
pub const READ_AHEAD_BYTES: usize = 16 << 10;

/// An outgoing buffer larger than this is given back when it has become empty: idle sessions stay small.
pub(crate) const KEPT_BUFFER_BYTES: usize = 4 << 10;

/// Steps that one session takes before the event loop goes round to the others and to what has come for them: some
/// sixteen messages, below 100 µs. This is what an honest peer waits for beside one that sends without end, a few times over
/// for each call. With eight times as many its slowest calls took five times as long, and the flood got hardly more done.
pub(crate) const STEPS_PER_POLL: usize = 16;

/// Messages that one step takes from the peer.
pub(crate) const MESSAGES_PER_STEP: usize = 1;

/// Steps granted to the RPC layer to tell all waiting callers that the session has ended.
pub(crate) const STEPS_TO_END: usize = 10_000;

/// Longest object id that a foreign client may name in its first message, in bytes: a whole reference with all its
/// hints.
pub const OBJECT_ID_BYTES: usize = 16 << 10;

/// Numbers from here on are given to calls whose own number the peer still owes an answer for. The RPC layer
/// numbers calls from 0 and takes the smallest that is free, so it never comes near.
pub(crate) const FIRST_OTHER_NUMBER: u32 = 1 << 31;

/// Places for calls of ours that a session keeps when none is under way.
pub(crate) const KEPT_QUESTIONS: usize = 64;

// ---- one thread

/// How often another thread looks whether a thread of sessions goes on. The watched one wakes twice as often, which
/// costs an idle program a hundred thousandth of a core.
pub const WATCHDOG_LOOK: Duration = Duration::from_secs(2);

/// A thread hangs if so many looks in a row find no sign of it: six seconds, sixty times what a peer may wait, and
/// more than a machine under load keeps a thread from running.
pub const LOOKS_UNTIL_HUNG: u32 = 3;

/// After so many, a minute, there is no hope for it.
pub const LOOKS_UNTIL_HOPELESS: u32 = 30;

// ---- one connection

/// Bidirectional streams that a peer may open: that of the session. quinn keeps a map entry for each *allowed*
/// stream: 1024 cost 113 kB per idle connection, 16 cost 27.5 kB. More are allowed when bulk content is offered.
pub const STREAMS_PER_CONNECTION: u32 = 1;

/// Streams of bulk content that a peer may open at once.
pub const BULK_STREAMS: u32 = 8;

/// Contents that may be offered to one peer and not be fetched yet. Each may hold its content in memory.
pub const BULK_OFFERS: usize = 16;

/// Tokens of one session that are remembered, those that have expired included: who is late is told apart from who
/// invents one.
pub const BULK_TOKENS_REMEMBERED: usize = 4 * BULK_OFFERS;

/// Streams of one session that may be opened and taken back before anything was asked for. A fetch that is given up at
/// once is one; resetting streams in a loop is an attack that HTTP/2 has made known.
pub const BULK_GIVEN_UP: u32 = 1000;

/// How long a token may be shown: it is used at once after the call that gave it, by whoever is not cut off.
pub const BULK_TOKEN_LIFE: Duration = Duration::from_secs(30);

/// Largest content that is fetched, in bytes. Far more than fits in a vat, and a bound on what a peer can make us store.
pub const BULK_BYTES: u64 = 64 << 30;

/// Bytes of content that are read from its source, and written, in one piece.
pub const BULK_PART_BYTES: usize = 64 << 10;

/// How long the peer may send nothing of what it has offered.
pub const BULK_STALL: Duration = WRITE_STALL;

/// Priority of a bulk stream in QUIC: below that of the session, which has 0.
pub const BULK_PRIORITY: i32 = -1;

/// Bytes that a peer may send on one stream ahead of our reading.
pub const STREAM_WINDOW_BYTES: u32 = 512 << 10;

/// Bytes that a peer may send on one connection ahead of our reading. quinn's default has no limit.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// The same before the peer has proven its key: its handshake, and a first call.
pub const UNPROVEN_WINDOW_BYTES: u32 = 64 << 10;

/// Bytes sent and not yet acknowledged that quinn keeps per connection.
pub const SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Out-of-order handshake bytes kept. Our flights are below 2 KiB; quinn's default is 16 KiB.
pub const HANDSHAKE_BUFFER_BYTES: usize = 8 << 10;

/// How exactly the largest datagram of a path is found, in bytes. quinn begins with 1200 and looks for up to 1452,
/// which almost every path carries. With its own 20 it makes four probes on each connection and side, each a full
/// datagram and its acknowledgement: a tenth of what a connection costs. A step of more than half of the span has it
/// try 1452 first, and 1325 if that is lost.
pub const MTU_STEP: u16 = 127;

/// A quiet connection sends one small packet this often: below the 30 s after which cheap home routers forget
/// a UDP mapping.
pub const KEEP_ALIVE: Duration = Duration::from_secs(12);

/// A connection without any sign of the peer for this long is dead. Three keep-alives may be lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(40);

/// Keep-alives that a client on TCP may leave unanswered before its connection is dead: as many as fit
/// [`IDLE_TIMEOUT`].
pub const KEEP_ALIVES_LOST: u32 = 2;

/// How long an accepted connection may take to prove its key.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// The same over TCP, where the client's part is two flights of a few hundred bytes: long enough for a lost packet and
/// its repetitions, and half of the above, since a place here costs nothing but a connection.
pub const TLS_HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

// ---- one endpoint

/// Connections, dialled ones included, beyond which new ones are refused. At 30 kB each they fit 1 GB.
pub const CONNECTIONS: usize = 32_768;

/// Connections beyond which a dialler must first prove its address with a Retry packet, which costs us nothing.
pub const CONNECTIONS_BEFORE_RETRY: usize = 1024;

/// Datagrams that may begin a connection and are looked at in a second, at once and then one per interval: a quarter of
/// the thread's time if they all come to nothing, and ten times what it has time to shake hands with.
pub const INITIALS_BURST: u32 = 1024;

/// See [`INITIALS_BURST`].
pub const INITIALS_INTERVAL: Duration = Duration::from_micros(80);

/// Handshakes at once of diallers that have not proven their address: what a few hundred vats behind one location server
/// need when it restarts, in a quarter of a second of CPU.
pub const UNPROVEN_BURST: u32 = 512;

/// Time between such handshakes after that: 100 a second take a twentieth of a core.
pub const UNPROVEN_INTERVAL: Duration = Duration::from_millis(10);

/// The share of its thread's time that an endpoint spends on handshakes at most, as one part in so many. The other half
/// is for those who have shaken hands already and for those who ask by a single datagram.
pub const HANDSHAKE_SHARE: u32 = 2;

/// What may be spent on handshakes at once after a quiet time: a hundred of them. A restarted server's vats come together;
/// for longer than this nobody else is to wait for them.
pub const HANDSHAKE_BURST: Duration = Duration::from_millis(50);

/// What a handshake is taken to cost at least: what it does on a machine of 2020 or so. More where more is measured.
pub const HANDSHAKE_COST: Duration = Duration::from_micros(500);

/// Attempts that wait for a share of the time: at their usual cost the last of them for an eighth of a second. Half of
/// [`WAITING_CONNECTIONS`], so that there is always room to ask others for a proof of their address.
pub const HANDSHAKES_WAITING: usize = WAITING_CONNECTIONS / 2;

/// The same of one network, so that no network can take all places.
pub const HANDSHAKES_WAITING_PER_NETWORK: usize = HANDSHAKES_WAITING / 4;

/// Tokens by which a dialler proves its address in its next connection. One, since that connection gives another.
pub const ADDRESS_TOKENS_SENT: u32 = 1;

/// How long such a token is good for. An address is lent for a day or so.
pub const ADDRESS_TOKEN_LIFE: Duration = Duration::from_hours(24);

/// Peers of which a dialling endpoint keeps tokens, and tokens of each.
pub const ADDRESS_TOKEN_STORE: (u32, usize) = (256, 2);

/// Used tokens that are remembered. At about 40 bytes each they take 160 kB.
pub const USED_TOKENS: usize = 4096;

/// Connection attempts that may wait to be accepted.
pub const WAITING_CONNECTIONS: usize = 256;

/// Bytes buffered for one connection attempt that was not accepted yet: a few datagrams. quinn's default for
/// all attempts together is 100 MiB.
pub const WAITING_CONNECTION_BYTES: u64 = 8 << 10;

/// Receive and send buffer asked of the kernel for a UDP socket: some 25 ms of a gigabit link, against bursts.
pub const SOCKET_BUFFER_BYTES: usize = 2 << 20;

/// Datagrams beside QUIC that may wait to be looked at: some milliseconds of the most that one core answers. What comes
/// beyond that is dropped, and asked again.
pub const DATAGRAMS_WAITING: usize = 4096;

/// How long a socket's queue may go without being empty once, and how many datagrams may be taken out of it meanwhile, before
/// what is left in it that is not QUIC's is thrown away: two or three milliseconds of work, a fraction of what a round
/// trip takes nearly everywhere.
pub const BACKLOG_TIME: Duration = Duration::from_millis(1);
/// See [`BACKLOG_TIME`].
pub const BACKLOG: usize = 512;

/// Datagrams that are thrown away before some are answered again: more than a socket's queue has room for.
pub const BACKLOG_DISCARDED: usize = 8192;

/// Room for bytes of datagrams that is kept while none come, and as much for what is to be known of each: enough for what
/// comes at once when nobody floods the port.
pub(crate) const DATAGRAM_BYTES_KEPT: usize = 16 << 10;

/// Datagrams beside QUIC that are taken from the socket before the rest of the program has its turn.
pub const DATAGRAMS_PER_TURN: usize = 256;

/// Datagrams that are given to the kernel in one call: beyond some dozens the call costs nothing any more.
pub const DATAGRAMS_PER_CALL: usize = 64;

/// Datagrams that go one way together: as many as every kernel cuts apart (`UDP_MAX_SEGMENTS`).
pub(crate) const DATAGRAMS_PER_TRAIN: usize = 64;

/// Bytes of those: what fits one datagram over IPv6 and IPv4, headers included.
pub(crate) const TRAIN_BYTES: usize = 65_000;

/// How long a closing endpoint stays to see that every peer was told. Each is told at once; what is waited for
/// after that is only the chance to tell it again should the datagram be lost, and a peer that heard nothing
/// has its idle timeout. Connections still being dialled have nobody to tell, and QUIC would drain them for
/// seconds (RFC 9000 §10.2).
pub const ENDPOINT_CLOSE_DEADLINE: Duration = Duration::from_millis(100);

/// Sessions of one process with peers that have proven an id. At 30 kB each they take 30 MB.
pub const SESSIONS: usize = 1024;

/// Sessions at once of one peer that is no vat: some commands under one key, and one that is tried beside another
/// that fell silent. A vat has one.
pub const SESSIONS_PER_PEER: usize = 8;

/// Sessions at once from one network (/24 of IPv4, /56 of IPv6): a quarter, so that no network can take all places,
/// and an office behind one address has enough.
pub const SESSIONS_PER_NETWORK: usize = SESSIONS / 4;

/// Connections at once that have not proven their key. Each costs half a millisecond of CPU, and may be left
/// unfinished for [`HANDSHAKE_DEADLINE`]. One more takes the place of the oldest of the network that has the most: even
/// if a hundred a second come that nobody finishes, an honest one has two seconds and a half.
pub const HANDSHAKES: usize = 256;

/// The same from one network: beyond it the oldest of its own makes room, so that no network can take all of them.
pub const HANDSHAKES_PER_NETWORK: usize = 64;

/// How long a session must have been idle before it makes room for somebody else. Without it a stranger with many
/// keys could end every session that pauses between two calls.
pub const EVICTABLE_AFTER: Duration = Duration::from_secs(10);

/// How long after a session began one that the other side dialled may have crossed it: as long as a dial that began
/// before it can take, which is a handshake and a greeting.
pub const CROSSING_WINDOW: Duration = HANDSHAKE_DEADLINE.saturating_add(HELLO_DEADLINE);

/// Vats whose highest epoch is remembered when they have gone. At 80 bytes each they take 300 kB.
pub const REMEMBERED_EPOCHS: usize = 4096;

/// Length of our connection ids, in bytes: enough that random ones do not meet.
pub const CONNECTION_ID_BYTES: usize = 8;

/// Connections that may wait to be accepted on a local socket.
pub const LOCAL_BACKLOG: i32 = 128;

/// The limits of one session. All counted for its one peer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionLimits {
    /// Longest message accepted and sent, in bytes ([`MESSAGE_BYTES`]).
    pub message_bytes: usize,
    /// Most segments of one message ([`SEGMENTS`]).
    pub segments: usize,
    /// Most capabilities in one message ([`CAPABILITIES_PER_MESSAGE`]).
    pub capabilities_per_message: usize,
    /// Most calls of the peer under way ([`CALLS_IN_FLIGHT`]).
    pub calls_in_flight: usize,
    /// Most bytes of calls of the peer under way ([`CALL_BYTES_IN_FLIGHT`]).
    pub call_bytes_in_flight: usize,
    /// Most questions of the peer that it keeps open ([`OPEN_QUESTIONS`]).
    pub open_questions: usize,
    /// Most calls that the peer may give up in a row ([`CALLS_GIVEN_UP`]).
    pub calls_given_up: usize,
    /// After which time one of them is forgotten ([`GIVEN_UP_INTERVAL`]).
    pub given_up_interval: Duration,
    /// Most calls of the peer in a chain of unanswered ones ([`PIPELINE_DEPTH`]).
    pub pipeline_depth: u16,
    /// Most capabilities of ours that the peer may keep ([`EXPORTS`]).
    pub exports: usize,
    /// Most capabilities of the peer that we keep ([`IMPORTS`]).
    pub imports: usize,
    /// How long our calls wait for their answers unless their callers say otherwise; `None`: for ever
    /// ([`CALL_DEADLINE`]).
    pub call_deadline: Option<Duration>,
    /// Most calls of ours that the peer may leave unanswered beyond their deadlines ([`UNANSWERED_CALLS`]).
    pub unanswered_calls: usize,
    /// How long a message may take, beside what its size allows ([`MESSAGE_DEADLINE`]).
    pub message_deadline: Duration,
    /// How long a session that nobody holds anything of may be quiet ([`IDLE_DEADLINE`]).
    pub idle_deadline: Duration,
    /// Answers waiting, in bytes, before we stop reading ([`WAITING_ANSWER_BYTES`]).
    pub waiting_answer_bytes: usize,
    /// Bytes waiting, of all kinds, before our own calls fail ([`WAITING_BYTES`]).
    pub waiting_bytes: usize,
    /// How long the peer may take nothing of what waits for it ([`WRITE_STALL`]).
    pub write_stall: Duration,
    /// After how long of that two sides that wait for each other read on ([`MUTUAL_STALL`]).
    pub mutual_stall: Duration,
    /// How long the peer may take for its greeting ([`HELLO_DEADLINE`]).
    pub hello_deadline: Duration,
    /// How long closing may wait until the peer has what was released ([`CLOSE_DEADLINE`]).
    pub close_deadline: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            message_bytes: MESSAGE_BYTES,
            segments: SEGMENTS,
            capabilities_per_message: CAPABILITIES_PER_MESSAGE,
            calls_in_flight: CALLS_IN_FLIGHT,
            call_bytes_in_flight: CALL_BYTES_IN_FLIGHT,
            open_questions: OPEN_QUESTIONS,
            calls_given_up: CALLS_GIVEN_UP,
            given_up_interval: GIVEN_UP_INTERVAL,
            pipeline_depth: PIPELINE_DEPTH,
            exports: EXPORTS,
            imports: IMPORTS,
            call_deadline: Some(CALL_DEADLINE),
            unanswered_calls: UNANSWERED_CALLS,
            message_deadline: MESSAGE_DEADLINE,
            idle_deadline: IDLE_DEADLINE,
            waiting_answer_bytes: WAITING_ANSWER_BYTES,
            waiting_bytes: WAITING_BYTES,
            write_stall: WRITE_STALL,
            mutual_stall: MUTUAL_STALL,
            hello_deadline: HELLO_DEADLINE,
            close_deadline: CLOSE_DEADLINE,
        }
    }
}
