//! Bulk content: bytes that are too many for a message, on a QUIC stream of their own beside the session's
//! (DESIGN §6).
//!
//! A call gives a token; whoever got it opens a stream and shows it; the bytes come on that stream. So the right to
//! have them is passed on by capability, order among calls is not held up by them, and QUIC's flow control is the
//! backpressure: nothing is read from its source before the peer takes it.
//!
//! ```text
//!   who fetches:  preface (kind 2, version 1) ‖ token 32 ‖ offset 8                                         , end
//!   who offers:   preface (kind 2, version 1) ‖ length 8 ‖ bytes from offset to length ‖ SHA-256 of them 32, end
//! ```
//!
//! Numbers are little-endian. A token is good once, within [`BULK_TOKEN_LIFE`](limits::BULK_TOKEN_LIFE), on the connection
//! of the session in which it was given: nowhere else is there anybody who knows it. A stream that does not begin with the
//! preface and a token that was given ends the session; one whose token has expired is only reset, since an honest peer
//! can be late. When a connection breaks, the content is asked for again in a new session, and comes from the offset that
//! was reached; whether it is still the same content is told by the digest of all of it, which is the business of who
//! describes it.
//!
//! The checksum is over what came on one stream. It is not there for the network, which QUIC takes care of, but for
//! the ends: a source that failed, or a stream that was cut, is never taken for the whole.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt,
    rc::Rc,
    time::Duration,
};

use futures::future::LocalBoxFuture;
use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use schemas::{Coded, ErrorCode, Secret, SecretHash};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use crate::{
    connection::Wire,
    hello::{Preface, StreamKind},
    limits,
    peer_connection::{PeerConnection, close_code},
    session::{SessionEnd, Violation},
    text::seconds,
};

/// Bytes of the preface and what comes behind it before the content, from who fetches.
const REQUEST_BYTES: usize = Preface::BYTES + 32 + 8;

/// The same from who offers.
const ANSWER_BYTES: usize = Preface::BYTES + 8;

/// Content that somebody may fetch.
pub trait BulkSource {
    /// How many bytes it has. Never changes.
    fn length(&self) -> u64;

    /// At least one and at most `count` bytes from `offset`, which is below the length. Called for one part after the
    /// other, each when the peer has taken the one before.
    fn read(&self, offset: u64, count: usize) -> LocalBoxFuture<'_, Result<Vec<u8>, capnp::Error>>;
}

/// Why bulk content was not offered, or did not come.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// The session runs over something that has one stream only.
    #[error("this session carries no bulk content: it does not run over QUIC")]
    Unavailable,
    /// More was offered than is kept.
    #[error("{limit} contents are offered to this peer already")]
    TooMany {
        /// How many may be.
        limit: usize,
    },
    /// It is larger than is accepted.
    #[error("the content has {length} bytes; at most {limit} are accepted")]
    TooLarge {
        /// How many it has.
        length: u64,
        /// How many are accepted.
        limit: u64,
    },
    /// What was asked for begins behind its end.
    #[error("the content has {length} bytes, and was asked for from byte {offset}")]
    Offset {
        /// From where.
        offset: u64,
        /// How many there are.
        length: u64,
    },
    /// The peer ended the stream before the content was complete.
    #[error("the peer ended the transfer at byte {at}")]
    Stopped {
        /// Where.
        at: u64,
    },
    /// The connection was lost.
    #[error("the transfer broke at byte {at}: {end}")]
    Broken {
        /// Where.
        at: u64,
        /// Why.
        end: SessionEnd,
    },
    /// Nothing came for too long.
    #[error("nothing came for {} at byte {at}", seconds(.after))]
    Stalled {
        /// Where.
        at: u64,
        /// For how long.
        after: Duration,
    },
    /// It is not what the peer says it is.
    #[error("the content does not have the checksum that came with it")]
    Checksum,
    /// What came is no transfer.
    #[error("the peer's answer is no bulk transfer")]
    NotOurs,
}

impl Coded for BulkError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unavailable => ErrorCode::BulkUnavailable,
            Self::TooMany { .. } => ErrorCode::SessionTooManyCalls,
            Self::TooLarge { .. } | Self::Offset { .. } => ErrorCode::BulkSize,
            Self::Stopped { .. } | Self::Broken { .. } | Self::Stalled { .. } => ErrorCode::BulkInterrupted,
            Self::Checksum => ErrorCode::BulkDamaged,
            Self::NotOurs => ErrorCode::SessionProtocol,
        }
    }
}

// ---- who offers

/// What one session offers to its peer.
pub(crate) struct Desk {
    connection: PeerConnection,
    wire: Rc<Wire>,
    offers: RefCell<Offers<Box<dyn BulkSource>>>,
    /// Streams that were reset before anything was asked for.
    given_up: Cell<u32>,
}

impl Desk {
    pub(crate) fn new(connection: PeerConnection, wire: Rc<Wire>) -> Rc<Self> {
        Rc::new(Self { connection, wire, offers: RefCell::default(), given_up: Cell::new(0) })
    }

    pub(crate) fn connection(&self) -> PeerConnection {
        self.connection.clone()
    }

    /// Offers content to whoever shows `token` on this connection.
    pub(crate) fn offer(&self, token: &Secret, source: Box<dyn BulkSource>) -> Result<(), BulkError> {
        self.offers.borrow_mut().add(Instant::now(), token.hash(), source)?;
        // Only now: a session without bulk content pays for one stream, and can be sent no other.
        self.connection.allow_streams(1 + limits::BULK_STREAMS);
        Ok(())
    }

    /// Serves a stream that the peer has opened, in a task of its own that ends with the connection.
    pub(crate) fn serve(self: Rc<Self>, output: SendStream, input: RecvStream) {
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = self.connection.closed() => {}
                () = self.answer(output, input) => {}
            }
        });
    }

    async fn answer(&self, mut output: SendStream, mut input: RecvStream) {
        let mut request = [0; REQUEST_BYTES];
        let asked = match timeout(limits::HELLO_DEADLINE, input.read_exact(&mut request)).await {
            Ok(Ok(())) => Request::read(&request),
            // Somebody has thought better of it. Once in a while that is nothing.
            Ok(Err(ReadExactError::ReadError(_))) if self.given_up.get() < limits::BULK_GIVEN_UP => {
                return self.given_up.set(self.given_up.get() + 1);
            }
            _ => None,
        };
        let taken = asked.map(|asked| (self.offers.borrow_mut().take(Instant::now(), &asked.token), asked.offset));
        let code = match taken {
            Some((Taken::Offer(source), offset)) => {
                let _transfer = self.wire.begin_transfer();
                match self.send(&mut output, &*source, offset).await {
                    Ok(()) => return,
                    Err(code) => code,
                }
            }
            Some((Taken::Expired, _)) => ErrorCode::NetTimeout,
            Some((Taken::Unknown, _)) | None => {
                self.wire.finish(SessionEnd::Violation(Violation::SecondStream));
                ErrorCode::SessionProtocol
            }
        };
        // Fails if the peer has stopped it already.
        let _ = output.reset(close_code(code));
    }

    /// Sends content from `offset`, each part only once what it may tell is durable (R3).
    async fn send(&self, output: &mut SendStream, source: &dyn BulkSource, offset: u64) -> Result<(), ErrorCode> {
        let length = source.length();
        if offset > length {
            return Err(ErrorCode::BulkSize);
        }
        // Calls go first: they are short, and somebody waits for them.
        let _ = output.set_priority(limits::BULK_PRIORITY);
        self.write(output, &[&Preface::of(StreamKind::Bulk).bytes()[..], &length.to_le_bytes()].concat()).await?;
        let (mut at, mut digest) = (offset, Sha256::new());
        while at < length {
            let count = usize::try_from(length - at).unwrap_or(usize::MAX).min(limits::BULK_PART_BYTES);
            let part = source.read(at, count).await.map_err(|error| {
                tracing::debug!(%error, at, "bulk content cannot be read");
                ErrorCode::ObjectFailed
            })?;
            if part.is_empty() || part.len() > count {
                return Err(ErrorCode::ObjectFailed);
            }
            digest.update(&part);
            self.write(output, &part).await?;
            at += part.len() as u64;
        }
        self.write(output, &digest.finalize()).await?;
        output.finish().map_err(|_| ErrorCode::SessionClosed)?;
        // Until the peer has it, the session is not done with it.
        let _ = output.stopped().await;
        Ok(())
    }

    async fn write(&self, output: &mut SendStream, bytes: &[u8]) -> Result<(), ErrorCode> {
        let gate = &self.wire.gate;
        gate.wait(gate.newest()).await.map_err(|_| ErrorCode::VatPoisoned)?;
        match timeout(self.wire.limits.write_stall, output.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ErrorCode::SessionClosed),
            Err(_) => Err(ErrorCode::SessionStalled),
        }
    }
}

struct Request {
    token: SecretHash,
    offset: u64,
}

impl Request {
    fn read(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let (preface, rest) = bytes.split_first_chunk()?;
        let (token, offset) = rest.split_first_chunk::<32>()?;
        if Preface::read(*preface).ok()? != Preface::of(StreamKind::Bulk) {
            return None;
        }
        let token = Secret::from_slice(token).ok()?.hash();
        Some(Self { token, offset: u64::from_le_bytes(*offset.first_chunk()?) })
    }

    fn write(token: &Secret, offset: u64) -> Vec<u8> {
        [&Preface::of(StreamKind::Bulk).bytes()[..], token.expose(), &offset.to_le_bytes()].concat()
    }
}

/// What was offered and not fetched, by the hash of its token: pure.
struct Offers<T> {
    /// `None`: has expired.
    by_token: HashMap<SecretHash, Option<T>>,
    /// In the order of their making, which is that of their end.
    order: VecDeque<(Instant, SecretHash)>,
}

enum Taken<T> {
    Offer(T),
    Expired,
    Unknown,
}

impl<T> Default for Offers<T> {
    fn default() -> Self {
        Self { by_token: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Offers<T> {
    fn add(&mut self, now: Instant, token: SecretHash, offer: T) -> Result<(), BulkError> {
        self.expire(now);
        if self.by_token.values().flatten().count() >= limits::BULK_OFFERS {
            return Err(BulkError::TooMany { limit: limits::BULK_OFFERS });
        }
        if self.order.len() >= limits::BULK_TOKENS_REMEMBERED
            && let Some((_, oldest)) = self.order.pop_front()
        {
            // At most as many as `BULK_OFFERS` have not expired, and those are the newest.
            self.by_token.remove(&oldest);
        }
        self.by_token.insert(token, Some(offer));
        self.order.push_back((now + limits::BULK_TOKEN_LIFE, token));
        Ok(())
    }

    /// Takes an offer: its token is used up.
    fn take(&mut self, now: Instant, token: &SecretHash) -> Taken<T> {
        self.expire(now);
        match self.by_token.remove(token) {
            Some(Some(offer)) => {
                self.order.retain(|(_, other)| other != token);
                Taken::Offer(offer)
            }
            Some(None) => {
                self.order.retain(|(_, other)| other != token);
                Taken::Expired
            }
            None => Taken::Unknown,
        }
    }

    fn expire(&mut self, now: Instant) {
        for (_, token) in self.order.iter().take_while(|(end, _)| *end <= now) {
            if let Some(offer) = self.by_token.get_mut(token) {
                *offer = None;
            }
        }
    }
}

// ---- who fetches

/// Bulk content that is coming.
pub struct BulkReader {
    connection: PeerConnection,
    input: RecvStream,
    length: u64,
    position: u64,
    digest: Option<Sha256>,
}

impl BulkReader {
    /// Shows `token` to the peer of `connection`, which gave it, and asks for the content from `offset`.
    pub(crate) async fn open(connection: PeerConnection, token: &Secret, offset: u64) -> Result<Self, BulkError> {
        let after = limits::BULK_STALL;
        let asked = async {
            let (output, mut input) = connection.quinn().open_bi().await.ok()?;
            let mut asking = Asking { output, is_complete: false };
            asking.output.write_all(&Request::write(token, offset)).await.ok()?;
            asking.output.finish().ok()?;
            asking.is_complete = true;
            let mut answer = [0; ANSWER_BYTES];
            input.read_exact(&mut answer).await.ok()?;
            Some((input, answer))
        };
        let answered = timeout(after, asked).await.map_err(|_| BulkError::Stalled { at: offset, after })?;
        let (input, answer) = answered.ok_or_else(|| broken(&connection, offset))?;
        let (preface, length) = answer.split_at(Preface::BYTES);
        let is_bulk = preface == Preface::of(StreamKind::Bulk).bytes();
        let length = length.first_chunk().map(|length| u64::from_le_bytes(*length)).filter(|_| is_bulk);
        let length = length.ok_or(BulkError::NotOurs)?;
        if length > limits::BULK_BYTES {
            return Err(BulkError::TooLarge { length, limit: limits::BULK_BYTES });
        }
        if offset > length {
            return Err(BulkError::Offset { offset, length });
        }
        Ok(Self { connection, input, length, position: offset, digest: Some(Sha256::new()) })
    }

    /// How many bytes the whole content has.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How far it has come: the offset of what comes next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next part; `None` once all has come and has its checksum. What came before that is not checked yet.
    ///
    /// # Errors
    /// [`BulkError`]. After one there is nothing more; a new token continues from [`position`](Self::position).
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, BulkError> {
        if self.position == self.length {
            return self.check().await.map(|()| None);
        }
        let count = usize::try_from(self.length - self.position).unwrap_or(usize::MAX).min(limits::BULK_PART_BYTES);
        let (at, after) = (self.position, limits::BULK_STALL);
        let part = timeout(after, self.input.read_chunk(count, true)).await;
        match part.map_err(|_| BulkError::Stalled { at, after })? {
            Ok(Some(part)) => {
                self.digest.iter_mut().for_each(|digest| digest.update(&part.bytes));
                self.position += part.bytes.len() as u64;
                Ok(Some(part.bytes.to_vec()))
            }
            _ => Err(broken(&self.connection, at)),
        }
    }

    async fn check(&mut self) -> Result<(), BulkError> {
        let Some(digest) = self.digest.take() else { return Ok(()) };
        let (mut told, at, after) = ([0; 32], self.position, limits::BULK_STALL);
        let read = timeout(after, self.input.read_exact(&mut told)).await;
        read.map_err(|_| BulkError::Stalled { at, after })?.map_err(|_| broken(&self.connection, at))?;
        if digest.finalize()[..] == told { Ok(()) } else { Err(BulkError::Checksum) }
    }
}

/// A request that is being sent: given up half way it is taken back, instead of being a stream that asks for nothing.
struct Asking {
    output: SendStream,
    is_complete: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.is_complete {
            // Fails if the connection is gone.
            let _ = self.output.reset(VarInt::from_u32(0));
        }
    }
}

impl Drop for BulkReader {
    fn drop(&mut self) {
        // What was read to its end is stopped already.
        let _ = self.input.stop(VarInt::from_u32(0));
    }
}

impl fmt::Debug for BulkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkReader").field("position", &self.position).field("length", &self.length).finish()
    }
}

/// A stream ended too early: with its connection, or alone.
fn broken(connection: &PeerConnection, at: u64) -> BulkError {
    match connection.close_reason() {
        Some(end) => BulkError::Broken { at, end },
        None => BulkError::Stopped { at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(number: u8) -> SecretHash {
        Secret::from_slice(&[number; 32]).unwrap().hash()
    }

    #[test]
    fn a_token_is_good_once_and_for_a_while() {
        let (mut offers, now) = (Offers::default(), Instant::now());
        offers.add(now, token(1), "one").unwrap();
        offers.add(now + Duration::from_secs(1), token(2), "two").unwrap();
        assert!(matches!(offers.take(now, &token(9)), Taken::Unknown));
        assert!(matches!(offers.take(now, &token(1)), Taken::Offer("one")));
        assert!(matches!(offers.take(now, &token(1)), Taken::Unknown), "used up");
        let late = now + limits::BULK_TOKEN_LIFE;
        assert!(matches!(offers.take(late, &token(1)), Taken::Unknown));
        assert!(matches!(offers.take(late + Duration::from_secs(1), &token(2)), Taken::Expired));
        assert!(offers.order.is_empty() && offers.by_token.is_empty());
    }

    #[test]
    fn offers_are_bounded_and_those_that_expired_make_room() {
        let (mut offers, now) = (Offers::default(), Instant::now());
        let many = u8::try_from(limits::BULK_OFFERS).unwrap();
        for round in 0..4 {
            let then = now + limits::BULK_TOKEN_LIFE * u32::from(round);
            for number in 0..many {
                offers.add(then, token(round * many + number), ()).unwrap();
            }
            let one_more = offers.add(then, token(200), ());
            assert!(matches!(one_more, Err(BulkError::TooMany { .. })));
            assert!(offers.by_token.len() <= limits::BULK_TOKENS_REMEMBERED);
            assert_eq!(offers.by_token.len(), offers.order.len());
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written_and_not_if_any_bit_of_its_preface_is_another() {
        let secret = Secret::from_slice(&[7; 32]).unwrap();
        let bytes: [u8; REQUEST_BYTES] = Request::write(&secret, 1 << 40).try_into().unwrap();
        let request = Request::read(&bytes).unwrap();
        assert_eq!((request.token, request.offset), (secret.hash(), 1 << 40));
        for bit in 0..8 * Preface::BYTES {
            let mut altered = bytes;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(Request::read(&altered).is_none());
        }
    }
}
