//! What two peers say before any call: the preface of a stream, then a greeting in each direction (DESIGN §6).
//!
//! The first eight bytes of every stream, in both directions:
//!
//! | bytes | content |
//! |---|---|
//! | 0–3 | `vat` and a zero byte: tells a stray client of another protocol at once |
//! | 4–5 | what the stream carries, 16 bits little-endian; 1 is a Cap'n Proto session, 2 bulk content |
//! | 6–7 | version of that, 16 bits little-endian |
//!
//! A session then has one `Hello` (`schemas/capnp/session.capnp`) from each side, in Cap'n Proto's stream
//! framing, and after it nothing but RPC messages. Both sides speak at once; neither waits for the other.

use std::{sync::Arc, time::Duration};

use capnp::message::{Builder, Reader, ReaderOptions};
use schemas::{Coded, ErrorCode, VatId, session_capnp::hello};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    frames::{self, FrameDecoder, FrameError, FrameLimits},
    limits,
    resume::ResumeToken,
    text::{printable, seconds},
};

const MAGIC: [u8; 4] = *b"vat\0";
const KIND_SESSION: u16 = 1;
const KIND_BULK: u16 = 2;

/// The version of bulk transfers that this crate speaks.
const BULK_VERSION: u16 = 1;

/// The version of the session protocol that this crate speaks: of the preface, and of `Hello.version`.
pub const SESSION_VERSION: u16 = 1;

/// Our side of the greeting.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// How many times this identity was taken over by a start or a move; 0 if it is not a vat.
    pub epoch: u64,
    /// Random bytes drawn when the process started: tell a reconnect from a restart.
    pub incarnation: [u8; 16],
    /// Name and version of the program, for the peer's diagnostics. Cut to [`limits::PROGRAM_BYTES`].
    pub program: String,
}

/// Who is at the other end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The id that it has proven. `None` on a local socket, where the kernel has proven that it is the same
    /// user instead.
    pub id: Option<VatId>,
    /// How many times its identity was taken over by a start or a move; 0 if it is not a vat.
    pub epoch: u64,
    /// Random bytes that it drew when its process started.
    pub incarnation: [u8; 16],
    /// What it calls its program: at most [`limits::PROGRAM_BYTES`], printable, unproven.
    pub program: String,
    /// Which session with this side it has lost, and takes up again with this one.
    pub resumes: Option<ResumeToken>,
}

/// Why the greeting failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The stream does not begin as ours do.
    #[error("the peer's first bytes are not those of this protocol")]
    NotOurs,
    /// The stream carries something that this version does not know, or a version of it that it does not.
    #[error(
        "the peer opened a stream of kind {kind}, version {version}; this side knows kind {KIND_SESSION}, version {SESSION_VERSION}"
    )]
    Stream {
        /// What it is to carry.
        kind: u16,
        /// Its version.
        version: u16,
    },
    /// The peer speaks another version of the session protocol.
    #[error("the peer speaks version {found} of the session protocol; this side speaks version {SESSION_VERSION}")]
    Version {
        /// What it speaks.
        found: u16,
    },
    /// The greeting is larger than any could be.
    #[error("in the peer's greeting: {0}")]
    Frame(#[from] FrameError),
    /// The greeting cannot be read.
    #[error("the peer's greeting cannot be read: {0}")]
    Malformed(#[from] capnp::Error),
    /// The incarnation has the wrong length.
    #[error("the peer's incarnation has {found} bytes; it must have 16")]
    Incarnation {
        /// How many bytes it has.
        found: usize,
    },
    /// The peer said nothing, or not all, in time.
    #[error("the peer did not greet within {}", seconds(after))]
    Timeout {
        /// How long it had.
        after: Duration,
    },
    /// The stream ended or broke.
    #[error("the stream ended before the greeting was complete: {0}")]
    Broken(#[source] Arc<std::io::Error>),
}

impl Coded for HelloError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotOurs | Self::Stream { .. } | Self::Version { .. } => ErrorCode::SessionVersion,
            Self::Frame(_) | Self::Malformed(_) | Self::Incarnation { .. } => ErrorCode::SessionProtocol,
            Self::Timeout { .. } => ErrorCode::NetTimeout,
            Self::Broken(_) => ErrorCode::SessionClosed,
        }
    }
}

/// Sends our preface and greeting.
pub(crate) async fn send(
    output: &mut (impl AsyncWrite + Unpin),
    greeting: &Greeting,
    resumes: Option<ResumeToken>,
) -> Result<(), HelloError> {
    let bytes = encode(greeting, resumes);
    let sent = async {
        output.write_all(&bytes).await?;
        output.flush().await
    };
    sent.await.map_err(broken)
}

/// Receives the peer's preface and greeting, and not a byte more.
pub(crate) async fn receive(input: &mut (impl AsyncRead + Unpin), id: Option<VatId>) -> Result<Peer, HelloError> {
    let mut preface = [0; Preface::BYTES];
    input.read_exact(&mut preface).await.map_err(broken)?;
    check_preface(preface)?;
    let mut decoder =
        FrameDecoder::new(FrameLimits { message_bytes: limits::HELLO_BYTES, segments: limits::HELLO_SEGMENTS });
    // On the heap and as large as it must be: whoever waits for a greeting in a task of its own keeps that task, and its
    // size, for as long as the session lasts. A message that needs more than `HELLO_BYTES` was refused by its table.
    loop {
        let mut space = vec![0; decoder.needed()];
        input.read_exact(&mut space).await.map_err(broken)?;
        if let Some(frame) = decoder.push(&mut &space[..])? {
            return read(&Reader::new(frame, reader_options()), id);
        }
    }
}

fn broken(error: std::io::Error) -> HelloError {
    HelloError::Broken(Arc::new(error))
}

/// The first bytes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preface {
    kind: u16,
    version: u16,
}

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Session,
    Bulk,
}

impl Preface {
    pub(crate) const BYTES: usize = 8;

    /// That of the version which this crate speaks.
    pub(crate) const fn of(kind: StreamKind) -> Self {
        match kind {
            StreamKind::Session => Self { kind: KIND_SESSION, version: SESSION_VERSION },
            StreamKind::Bulk => Self { kind: KIND_BULK, version: BULK_VERSION },
        }
    }

    pub(crate) fn bytes(self) -> [u8; Self::BYTES] {
        let mut preface = [0; Self::BYTES];
        preface[..4].copy_from_slice(&MAGIC);
        preface[4..6].copy_from_slice(&self.kind.to_le_bytes());
        preface[6..].copy_from_slice(&self.version.to_le_bytes());
        preface
    }

    pub(crate) fn read([m0, m1, m2, m3, k0, k1, v0, v1]: [u8; Self::BYTES]) -> Result<Self, HelloError> {
        if [m0, m1, m2, m3] != MAGIC {
            return Err(HelloError::NotOurs);
        }
        Ok(Self { kind: u16::from_le_bytes([k0, k1]), version: u16::from_le_bytes([v0, v1]) })
    }
}

fn check_preface(bytes: [u8; Preface::BYTES]) -> Result<(), HelloError> {
    match Preface::read(bytes)? {
        preface if preface == Preface::of(StreamKind::Session) => Ok(()),
        Preface { kind, version } => Err(HelloError::Stream { kind, version }),
    }
}

/// Our preface and greeting.
pub(crate) fn encode(greeting: &Greeting, resumes: Option<ResumeToken>) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut hello: hello::Builder<'_> = message.init_root();
    hello.set_version(SESSION_VERSION);
    hello.set_epoch(greeting.epoch);
    hello.set_incarnation(&greeting.incarnation);
    hello.set_program(cut(&greeting.program, limits::PROGRAM_BYTES));
    if let Some(token) = resumes {
        hello.set_resumes(token.as_bytes());
    }
    let mut bytes = Preface::of(StreamKind::Session).bytes().to_vec();
    frames::encode(&message.get_segments_for_output(), &mut bytes);
    bytes
}

fn read(message: &Reader<impl capnp::message::ReaderSegments>, id: Option<VatId>) -> Result<Peer, HelloError> {
    let hello: hello::Reader<'_> = message.get_root()?;
    if hello.get_version() != SESSION_VERSION {
        return Err(HelloError::Version { found: hello.get_version() });
    }
    let incarnation = hello.get_incarnation()?;
    let program = String::from_utf8_lossy(hello.get_program()?.as_bytes());
    Ok(Peer {
        id,
        epoch: hello.get_epoch(),
        incarnation: incarnation.try_into().map_err(|_| HelloError::Incarnation { found: incarnation.len() })?,
        program: cut(&printable(&program, limits::PROGRAM_BYTES), limits::PROGRAM_BYTES).to_owned(),
        // Of another length it is no token that we could know.
        resumes: ResumeToken::from_slice(hello.get_resumes()?),
    })
}

fn reader_options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(limits::HELLO_BYTES)).nesting_limit(8);
    options
}

/// The longest beginning of `text` that has at most `bytes` bytes.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(program: &str) -> Greeting {
        Greeting { epoch: 3, incarnation: [9; 16], program: program.to_owned() }
    }

    async fn receive_bytes(bytes: &[u8]) -> Result<(Peer, usize), HelloError> {
        let mut rest = bytes;
        let peer = receive(&mut rest, None).await?;
        Ok((peer, rest.len()))
    }

    #[tokio::test]
    async fn a_greeting_is_read_back_and_what_follows_stays() {
        let token = ResumeToken::from_slice(&[5; 16]);
        let bytes = [&encode(&greeting("vat 0.1"), token)[..], b"next"].concat();
        let (peer, rest) = receive_bytes(&bytes).await.unwrap();
        let program = "vat 0.1".to_owned();
        assert_eq!(peer, Peer { id: None, epoch: 3, incarnation: [9; 16], program, resumes: token });
        assert_eq!(rest, 4);
    }

    #[tokio::test]
    async fn a_program_name_is_cut_at_a_character_and_has_no_control_characters() {
        let (peer, _) = receive_bytes(&encode(&greeting(&"é".repeat(40)), None)).await.unwrap();
        assert_eq!(peer.program, "é".repeat(32));
        let (peer, _) = receive_bytes(&encode(&greeting("a\u{1b}[2Jb\n"), None)).await.unwrap();
        assert_eq!(peer.program, "a[2Jb");
    }

    #[tokio::test]
    async fn every_alteration_of_the_preface_is_refused_with_its_reason() {
        for position in 0..8 {
            let mut bytes = encode(&greeting(""), None);
            bytes[position] ^= 1;
            let error = receive_bytes(&bytes).await.unwrap_err();
            match position {
                0..4 => assert!(matches!(error, HelloError::NotOurs)),
                _ => assert!(matches!(error, HelloError::Stream { .. })),
            }
            assert_eq!(error.code(), ErrorCode::SessionVersion);
        }
    }

    #[tokio::test]
    async fn an_end_at_any_byte_is_an_error_and_no_panic() {
        let bytes = encode(&greeting("vat"), None);
        for length in 0..bytes.len() {
            assert!(matches!(receive_bytes(&bytes[..length]).await, Err(HelloError::Broken(_))));
        }
    }

    #[tokio::test]
    async fn a_greeting_of_another_version_or_with_a_short_incarnation_is_refused() {
        let mut message = Builder::new_default();
        let mut hello: hello::Builder<'_> = message.init_root();
        hello.set_version(2);
        hello.set_incarnation(&[1; 16]);
        let mut bytes = Preface::of(StreamKind::Session).bytes().to_vec();
        frames::encode(&message.get_segments_for_output(), &mut bytes);
        assert!(matches!(receive_bytes(&bytes).await, Err(HelloError::Version { found: 2 })));

        let mut hello: hello::Builder<'_> = message.init_root();
        hello.set_version(SESSION_VERSION);
        hello.set_incarnation(&[1; 15]);
        bytes.truncate(8);
        frames::encode(&message.get_segments_for_output(), &mut bytes);
        assert!(matches!(receive_bytes(&bytes).await, Err(HelloError::Incarnation { found: 15 })));
    }

    #[tokio::test]
    async fn a_token_of_another_length_is_taken_for_none() {
        for length in [0, 15, 17, 200] {
            let mut message = Builder::new_default();
            let mut hello: hello::Builder<'_> = message.init_root();
            hello.set_version(SESSION_VERSION);
            hello.set_incarnation(&[1; 16]);
            hello.set_resumes(&vec![1; length]);
            let mut bytes = Preface::of(StreamKind::Session).bytes().to_vec();
            frames::encode(&message.get_segments_for_output(), &mut bytes);
            assert_eq!(receive_bytes(&bytes).await.unwrap().0.resumes, None);
        }
    }

    #[tokio::test]
    async fn a_greeting_that_announces_too_much_is_refused_by_its_announcement() {
        let mut bytes = Preface::of(StreamKind::Session).bytes().to_vec();
        bytes.extend([0_u32.to_le_bytes(), (1_u32 << 20).to_le_bytes()].concat());
        let error = receive_bytes(&bytes).await.unwrap_err();
        assert!(matches!(error, HelloError::Frame(FrameError::TooLarge { .. })), "{error}");
        assert_eq!(error.code(), ErrorCode::SessionProtocol);
    }
}
