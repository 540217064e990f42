//! How sessions end, and how they fail to begin.

use std::{io, sync::Arc, time::Duration};

use schemas::{Coded, ErrorCode, RemoteError};

use crate::{frames::FrameError, hello::HelloError, local::LocalError, text::seconds};

/// Why a session, or the connection below it, ended.
///
/// Every capability of a session breaks when it ends; calls that had no answer fail with an exception of kind
/// `disconnected` whose text is this reason as `code: message`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// This side closed it.
    #[error("this side closed the session")]
    Local,
    /// This side took no more calls, and ended it when all that it had taken were answered.
    #[error("this side ended the session after its last answer: {}", .code.meaning())]
    Drained {
        /// Why, as the peer was told.
        code: ErrorCode,
    },
    /// This side ended it without waiting for anything, and told the peer why.
    #[error("this side ended the session: {}", .code.meaning())]
    Dismissed {
        /// Why, as the peer was told.
        code: ErrorCode,
    },
    /// The peer closed it and said why.
    #[error("the peer ended the session: {0}")]
    Peer(RemoteError),
    /// The connection broke without a word of the peer.
    #[error("the connection was lost: {0}")]
    Lost(Arc<io::Error>),
    /// The peer sent what is no part of the protocol, or exceeds a limit; it was told so.
    #[error("the session was ended: {0}")]
    Violation(Violation),
    /// The peer took nothing of what waited for it.
    #[error("the session was ended: the peer took nothing of what was sent to it for {}", seconds(after))]
    Stalled {
        /// For how long.
        after: Duration,
    },
    /// Nothing was said for long, and neither side held anything of the other.
    #[error("the session was ended: nothing was said for {}, and nothing was held", seconds(after))]
    Idle {
        /// For how long at least.
        after: Duration,
    },
    /// The greeting failed after this side had begun to call.
    #[error(transparent)]
    Greeting(Arc<HelloError>),
    /// This vat's storage failed, so it says nothing more (R5).
    #[error("the session was ended: this vat's storage failed")]
    Poisoned,
    /// The code of an object, or of the RPC layer, panicked. Other sessions go on.
    #[error("the session was ended by a panic on this side: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

impl Coded for SessionEnd {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Local | Self::Lost(_) | Self::Poisoned => ErrorCode::SessionClosed,
            Self::Drained { code } | Self::Dismissed { code } => *code,
            Self::Peer(remote) => remote.code,
            Self::Greeting(error) => error.code(),
            Self::Violation(violation) => violation.code(),
            Self::Stalled { .. } => ErrorCode::SessionStalled,
            Self::Idle { .. } => ErrorCode::SessionIdle,
            Self::Panicked { .. } => ErrorCode::Internal,
        }
    }
}

impl SessionEnd {
    /// The exception with which everything that waited for the peer fails.
    pub(crate) fn to_exception(&self) -> capnp::Error {
        capnp::Error::disconnected(self.code().to_wire(&self.to_string()))
    }

    /// What the peer is told, if there is anything to tell and somebody to hear it. Says nothing about the
    /// inside of this vat.
    pub(crate) fn told(&self) -> Option<(ErrorCode, String)> {
        match self {
            Self::Local => Some((self.code(), "the other side closed the session".to_owned())),
            Self::Drained { code } | Self::Dismissed { code } => Some((*code, code.meaning().to_owned())),
            Self::Poisoned => Some((self.code(), "the other side has stopped".to_owned())),
            Self::Panicked { .. } => Some((self.code(), "the other side failed".to_owned())),
            Self::Violation(violation) => Some((violation.code(), violation.to_string())),
            Self::Greeting(error) => Some((error.code(), error.to_string())),
            Self::Stalled { .. } => Some((self.code(), "what was sent was not taken in time".to_owned())),
            Self::Idle { .. } => Some((self.code(), "nothing was said, and nothing held, for long".to_owned())),
            Self::Peer(_) | Self::Lost(_) => None,
        }
    }
}

/// What a peer did that it must not.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// It announced a message that is not accepted.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It sent a message that is not one of the RPC protocol.
    #[error("a message cannot be read: {0}")]
    Malformed(capnp::Error),
    /// A message has more capabilities than are accepted.
    #[error("a message has {found} capabilities; at most {limit} are accepted")]
    Capabilities {
        /// How many it has.
        found: u32,
        /// How many are accepted.
        limit: usize,
    },
    /// It gave up more calls than one session may.
    #[error("more than {limit} calls were given up before they were answered")]
    GivenUp {
        /// How many may be.
        limit: usize,
    },
    /// A message leads from an answer to a capability by more steps than are followed.
    #[error("a message leads from an answer to a capability by {found} steps; at most {limit} are followed")]
    Steps {
        /// How many it has.
        found: u32,
        /// How many are followed.
        limit: u32,
    },
    /// It left more calls unanswered than one session bears.
    #[error("more than {limit} calls were not answered in time")]
    Unanswered {
        /// How many may be.
        limit: usize,
    },
    /// It began a message and did not end it in time.
    #[error("of a message that was begun {received} bytes arrived within {}, and not its end", seconds(after))]
    SlowMessage {
        /// How much of it arrived.
        received: usize,
        /// How long it had.
        after: Duration,
    },
    /// It sent something large of a kind that this side does not have.
    #[error("a message of a kind that this side does not have is too large to be sent back")]
    Unknown,
    /// It broke a rule of the RPC protocol.
    #[error("the RPC protocol was broken: {0}")]
    Rpc(String),
    /// Its stream ended within a message.
    #[error("the stream ended within a message")]
    Truncated,
    /// It opened a stream beside the session's that does not begin with the preface of bulk content and a token that it
    /// was given.
    #[error("a second stream was opened, and not for content that was offered")]
    SecondStream,
}

impl Coded for Violation {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Frame(error) => error.code(),
            Self::Capabilities { .. } => ErrorCode::SessionTooManyCapabilities,
            Self::GivenUp { .. } => ErrorCode::SessionTooManyGivenUp,
            Self::Steps { .. } => ErrorCode::SessionTooDeep,
            Self::Unanswered { .. } => ErrorCode::SessionUnanswered,
            Self::SlowMessage { .. } => ErrorCode::SessionSlowMessage,
            Self::Unknown => ErrorCode::SessionUnsupported,
            Self::Malformed(error) => match error.kind {
                capnp::ErrorKind::ReadLimitExceeded | capnp::ErrorKind::NestingLimitExceeded => {
                    ErrorCode::SessionTooComplex
                }
                _ => ErrorCode::SessionProtocol,
            },
            Self::Rpc(_) | Self::Truncated | Self::SecondStream => ErrorCode::SessionProtocol,
        }
    }
}

/// Why a session could not be begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The greeting failed.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The peer refused, or the connection ended, before the session began.
    #[error(transparent)]
    Ended(SessionEnd),
    /// The connection carries a session already.
    #[error("this connection carries a session already")]
    SecondSession,
    /// The local socket could not be reached.
    #[error(transparent)]
    Local(#[from] LocalError),
}

impl Coded for SessionError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Hello(error) => error.code(),
            Self::Ended(end) => end.code(),
            Self::SecondSession => ErrorCode::SessionProtocol,
            Self::Local(error) => error.code(),
        }
    }
}
