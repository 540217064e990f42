//! What a location server's reply to a registration means, after its evidence has been verified.
//!
//! A server that refuses because it knows better has to show the record that it knows. Only the vat itself can
//! have signed that, so it is proof: of a copy that was left behind (ours), or of two copies. A server that
//! shows nothing of the kind lies or is broken; its word alone never makes a vat stop.

use std::{cmp::Ordering, fmt, time::Duration};

use schemas::{Coded, ErrorCode, Order, RecordError, SignedPacket, SignedRecord, Task, Timestamp};

use crate::{attempt::Summary, failure::Failure};

/// What the current record at a server must be for a registration to be carried out (compare-and-swap).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expected {
    /// No expectation.
    #[default]
    Anything,
    /// There must be none, live or expired.
    Absent,
    /// It must have exactly this order.
    Order(Order),
}

/// A server's reply, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Stored { lease: Duration },
    Refreshed { lease: Duration },
    Stale(Vec<u8>),
    Conflict(Vec<u8>),
    Unexpected(Vec<u8>),
    Refused(Refused),
}

/// What a server says when it refuses a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its code; [`ErrorCode::VlsRefused`] if it is none that this version knows.
    pub code: ErrorCode,
    /// What it said.
    pub message: String,
    /// Its clock, if it told.
    pub server_time: Option<Timestamp>,
    /// After how long another attempt is worth while; none: not with this record.
    pub retry_after: Option<Duration>,
    /// What has to be computed for a place there.
    pub task: Option<Task>,
}

/// A successful registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// The server has stored a higher record than any before.
    Stored {
        /// How long it answers with it without a renewal.
        lease: Duration,
    },
    /// The server had exactly this record, and has begun its lease anew.
    Refreshed {
        /// How long it answers with it without a renewal.
        lease: Duration,
    },
}

impl Registered {
    /// How long the server answers with the record without a renewal.
    #[must_use]
    pub fn lease(&self) -> Duration {
        match self {
            Self::Stored { lease } | Self::Refreshed { lease } => *lease,
        }
    }
}

/// Why a registration was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The server knows a higher record of this vat. If it shows it, it is verified.
    #[error("the server knows a higher record{}", Shown(.newer.as_ref()))]
    Stale {
        /// What is higher; none if only its order outlived it.
        newer: Option<SignedPacket>,
    },
    /// The server has a different record of the same epoch and time, and shows it: another copy has signed.
    #[error("the server has a different record of the same order{}", Shown(Some(.other)))]
    Conflict {
        /// The other one, verified.
        other: SignedPacket,
    },
    /// The current record is not the expected one.
    #[error("the server's record is not the expected one{}", Shown(.current.as_ref()))]
    Unexpected {
        /// What is current, verified, be it not about a vat; none if there is nothing.
        current: Option<SignedPacket>,
    },
    /// The server refused for what the record is, or for how many came.
    #[error("refused: {}{}", .0.message, ServerClock(.0.server_time))]
    Refused(Refused),
    /// The server shows a record that does not prove what it claims. Its word was not believed.
    #[error("the server claims {claim}, but what it shows does not prove it: {reason}")]
    FalseEvidence {
        /// What it claims.
        claim: Claim,
        /// What is wrong with it.
        reason: Disproof,
    },
    /// The server was not reached, or gave no answer.
    #[error(transparent)]
    NotReached(#[from] Failure),
    /// The vat had no record to register.
    #[error("no record could be made: {0}")]
    Source(#[from] RecordError),
}

/// What a server can claim about the record that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// To know a higher record.
    Stale,
    /// To have another record of the same order.
    Conflict,
    /// To have another record than the expected one.
    Unexpected,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stale => "to know a higher record",
            Self::Conflict => "to have another record of the same order",
            Self::Unexpected => "to have another record than the expected one",
        })
    }
}

/// Why a record that a server shows does not prove its claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Disproof {
    /// It is no record of this vat.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It is one, but of another order than the claim needs.
    #[error("it is {0}")]
    Order(Summary),
    /// Nothing is shown.
    #[error("it shows nothing")]
    Nothing,
}

impl Coded for RegisterError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Stale { .. } => ErrorCode::RecordStale,
            Self::Conflict { .. } => ErrorCode::RecordConflict,
            Self::Unexpected { .. } => ErrorCode::RecordUnexpected,
            Self::Refused(refused) => refused.code,
            Self::FalseEvidence { reason: Disproof::Record(error), .. } | Self::Source(error) => error.code(),
            Self::FalseEvidence { .. } => ErrorCode::SessionProtocol,
            Self::NotReached(failure) => failure.code(),
        }
    }
}

impl RegisterError {
    /// The record, verified, that the server showed as its reason. What says nothing of a vat is none.
    #[must_use]
    pub fn shown(&self) -> Option<&SignedRecord> {
        match self {
            Self::Stale { newer: packet } | Self::Unexpected { current: packet } => packet.as_ref()?.record(),
            Self::Conflict { other } => other.record(),
            _ => None,
        }
    }

    /// When the server wants to be asked again, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => refused.retry_after,
            _ => None,
        }
    }
}

/// What `reply` means for `sent`, which was offered with `expected`. Believes nothing that is not proved.
pub(crate) fn interpret(sent: &SignedRecord, expected: &Expected, reply: Reply) -> Result<Registered, RegisterError> {
    let own = SignedPacket::from(sent.clone());
    match reply {
        Reply::Stored { lease } => Ok(Registered::Stored { lease }),
        Reply::Refreshed { lease } => Ok(Registered::Refreshed { lease }),
        Reply::Stale(packet) => {
            let newer = evidence(sent, &packet, Claim::Stale, |shown| shown.compare(&own) == Ordering::Greater)?;
            Err(RegisterError::Stale { newer })
        }
        Reply::Conflict(packet) => {
            let mark = |packet: &SignedPacket| (packet.epoch(), packet.timestamp());
            let differs = |shown: &SignedPacket| mark(shown) == mark(&own) && *shown != own;
            match evidence(sent, &packet, Claim::Conflict, differs)? {
                Some(other) => Err(RegisterError::Conflict { other }),
                None => Err(RegisterError::FalseEvidence { claim: Claim::Conflict, reason: Disproof::Nothing }),
            }
        }
        Reply::Unexpected(packet) => {
            let is_unexpected = |shown: &SignedPacket| match expected {
                Expected::Anything => false,
                Expected::Absent => true,
                Expected::Order(order) => shown.order() != *order,
            };
            let current = evidence(sent, &packet, Claim::Unexpected, is_unexpected)?;
            if current.is_none() && !matches!(expected, Expected::Order(_)) {
                return Err(RegisterError::FalseEvidence { claim: Claim::Unexpected, reason: Disproof::Nothing });
            }
            Err(RegisterError::Unexpected { current })
        }
        Reply::Refused(refused) => Err(RegisterError::Refused(refused)),
    }
}

/// What a server shows, if it is signed by the vat and proves the claim.
fn evidence(
    sent: &SignedRecord,
    packet: &[u8],
    claim: Claim,
    proves: impl FnOnce(&SignedPacket) -> bool,
) -> Result<Option<SignedPacket>, RegisterError> {
    if packet.is_empty() {
        return Ok(None);
    }
    let reason = match SignedPacket::verify(sent.id(), packet) {
        Ok(shown) if proves(&shown) => return Ok(Some(shown)),
        Ok(shown) => match shown.into_record() {
            Ok(record) => Disproof::Order((&record).into()),
            Err(error) => error.into(),
        },
        Err(error) => error.into(),
    };
    Err(RegisterError::FalseEvidence { claim, reason })
}

struct ServerClock(Option<Timestamp>);

impl fmt::Display for ServerClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |time| write!(f, "; its clock says {time}"))
    }
}

struct Shown<'a>(Option<&'a SignedPacket>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(SignedPacket::Record(record)) => write!(f, ": {}", Summary::from(record)),
            Some(SignedPacket::Foreign(packet)) => {
                write!(f, ": signed at {}, it says nothing of a vat", packet.timestamp())
            }
        }
    }
}
