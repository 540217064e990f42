//! What was tried and what came of it: one line of reason per candidate (DESIGN §5, §10).

use std::{fmt, net::SocketAddr, time::Duration};

use schemas::{Address, Coded, ErrorCode, RecordError, SearchPathEntry, SignedRecord, State, Timestamp};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{
    failure::{Failure, Seconds},
    judge::Refusal,
};

/// Somebody who may know where the vat is, or somewhere where it may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Candidate {
    /// What this finder kept from before.
    Cache,
    /// An entry of the finder's own search path.
    Entry(SearchPathEntry),
    /// An entry that came with the reference.
    HintEntry(SearchPathEntry),
    /// An address from the vat's record.
    Address(Address),
    /// A place to dial that came with the reference: `<host>:<port>`.
    HintAddress(String),
}

impl Candidate {
    /// A stable word for the kind of candidate.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Entry(_) => "entry",
            Self::HintEntry(_) => "hint_entry",
            Self::Address(_) => "address",
            Self::HintAddress(_) => "hint_address",
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache => f.write_str("cache"),
            Self::Entry(entry) => entry.fmt(f),
            Self::HintEntry(entry) => write!(f, "hint {entry}"),
            Self::Address(address) => address.fmt(f),
            Self::HintAddress(place) => write!(f, "hint {place}"),
        }
    }
}

impl Serialize for Candidate {
    /// As text, such as `vls://<id>@<host>:<port>`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The gist of a verified record, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its epoch.
    pub epoch: u64,
    /// The durable turn that it states.
    pub turn: u64,
    /// When the vat signed it.
    pub timestamp: Timestamp,
    /// What the vat was doing.
    pub state: State,
}

impl From<&SignedRecord> for Summary {
    fn from(signed: &SignedRecord) -> Self {
        let record = signed.record();
        Self { epoch: record.epoch, turn: record.turn, timestamp: signed.timestamp(), state: record.state }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, turn, timestamp, state } = self;
        write!(f, "{state}, epoch {epoch}, turn {turn}, signed at {timestamp}")
    }
}

/// What came of one candidate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// Asked or dialled, and silent when the search ended.
    Waiting,
    /// The search ended before its turn came.
    NotTried,
    /// More candidates than one search tries.
    TooMany,
    /// A verified record that was as high as any known then.
    Record {
        /// What it says.
        summary: Summary,
        /// How long ago the vat registered or renewed it there, if that is known.
        age: Option<Duration>,
    },
    /// A verified record whose lease at that server has ended: says where the vat was.
    Lapsed {
        /// What it says.
        summary: Summary,
        /// How long ago the vat registered or renewed it there, if that is known.
        age: Option<Duration>,
    },
    /// It knows nothing of this vat.
    Unknown,
    /// It gave something that was not used.
    Refused(Refusal),
    /// It gave nothing.
    Failed(Failure),
    /// The vat answered there, and proved to be the vat.
    Connected {
        /// The socket address where it did.
        address: SocketAddr,
    },
    /// A higher record no longer names this address, so it was given up.
    Withdrawn,
}

impl Outcome {
    /// A stable word for the kind of outcome.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::NotTried => "not_tried",
            Self::TooMany => "too_many",
            Self::Record { .. } => "record",
            Self::Lapsed { .. } => "lapsed",
            Self::Unknown => "unknown",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Connected { .. } => "connected",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// The code of what was wrong, if something was.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code()),
            Self::Failed(failure) => Some(failure.code()),
            Self::Unknown => Some(ErrorCode::VlsUnknownVat),
            Self::Waiting => Some(ErrorCode::NetTimeout),
            _ => None,
        }
    }

    /// Whether the candidate gave an answer that it can have been right to give: a record of the vat, that there is
    /// none, or what another program has published under its key. Failures and records that no honest server hands
    /// out are no answer.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Record { .. } | Self::Lapsed { .. } | Self::Unknown => true,
            Self::Refused(Refusal::Record(error)) => {
                matches!(error, RecordError::Expired { .. } | RecordError::NoVat { .. })
            }
            Self::Refused(_) => true,
            _ => false,
        }
    }

    /// Whether the candidate has shown that another program uses the vat's key.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Record(RecordError::NoVat { .. })))
    }

    fn summary(&self) -> Option<&Summary> {
        match self {
            Self::Record { summary, .. } | Self::Lapsed { summary, .. } => Some(summary),
            _ => None,
        }
    }

    fn age(&self) -> Option<Duration> {
        match self {
            Self::Record { age, .. } | Self::Lapsed { age, .. } => *age,
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("no answer so far"),
            Self::NotTried => f.write_str("not tried: the search ended before its turn"),
            Self::TooMany => f.write_str("not tried: too many candidates"),
            Self::Record { summary, age } => write!(f, "{summary}{}", Renewed(*age)),
            Self::Lapsed { summary, age } => write!(f, "its lease there has ended: {summary}{}", Renewed(*age)),
            Self::Unknown => f.write_str("knows no record of this vat"),
            Self::Refused(refusal) => write!(f, "refused ({}): {refusal}", refusal.code()),
            Self::Failed(failure) => write!(f, "{failure} ({})", failure.code()),
            Self::Connected { address } => write!(f, "connected at {address}"),
            Self::Withdrawn => f.write_str("given up: a higher record no longer names it"),
        }
    }
}

/// How long ago a vat has registered, in whole seconds, as servers count.
struct Renewed(Option<Duration>);

impl fmt::Display for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|age| age.as_secs()) {
            None => Ok(()),
            Some(0) => f.write_str(", renewed just now"),
            Some(seconds) => write!(f, ", renewed {seconds} s ago"),
        }
    }
}

/// One candidate and what came of it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who or where.
    pub candidate: Candidate,
    /// From the beginning of the search until the outcome stood.
    pub elapsed: Duration,
    /// What came of it.
    pub outcome: Outcome,
    /// The answer is a location server's own word of now: it came over a session that proves the server's key, or over
    /// HTTPS with the server's time. Whatever else holds records may have lost the newest one, and whoever stands on the
    /// way of DNS or of a datagram may show an old one.
    pub vouched: bool,
}

impl Attempt {
    /// Whether it testifies how far the vat has come (R7): a record that nobody vouches for proves only that the vat has
    /// come so far, as its signature does, and neither it nor the word that there is none says that it came no further.
    #[must_use]
    pub fn is_testimony(&self) -> bool {
        self.vouched && self.outcome.is_answer()
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.candidate, self.outcome, Seconds(self.elapsed))
    }
}

impl Serialize for Attempt {
    /// `{candidate, kind, outcome, code, reason, elapsed_us, epoch, turn, timestamp_us, state, age_s}`; what
    /// does not apply is null.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let summary = self.outcome.summary();
        let mut fields = serializer.serialize_struct("Attempt", 11)?;
        fields.serialize_field("candidate", &self.candidate)?;
        fields.serialize_field("kind", self.candidate.kind())?;
        fields.serialize_field("outcome", self.outcome.kind())?;
        fields.serialize_field("code", &self.outcome.code().map(ErrorCode::as_str))?;
        fields.serialize_field("reason", &self.outcome.to_string())?;
        fields.serialize_field("elapsed_us", &u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX))?;
        fields.serialize_field("epoch", &summary.map(|summary| summary.epoch))?;
        fields.serialize_field("turn", &summary.map(|summary| summary.turn))?;
        fields.serialize_field("timestamp_us", &summary.map(|summary| summary.timestamp.as_micros()))?;
        fields.serialize_field("state", &summary.map(|summary| summary.state.as_str()))?;
        fields.serialize_field("age_s", &self.outcome.age().map(|age| age.as_secs()))?;
        fields.end()
    }
}

impl Serialize for Outcome {
    /// As text, the same as `Display`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Attempts as they stand in an error: one indented line each.
pub(crate) struct Lines<'a>(pub(crate) &'a [Attempt]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|attempt| write!(f, "\n  {attempt}"))
    }
}
