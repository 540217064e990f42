//! How the registrations of a vat stand: one report per entry of its search path (DESIGN §5: shows per entry
//! when it last succeeded, or why not).

use std::fmt;

use schemas::{Coded, ErrorCode, SearchPathEntry, Timestamp};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{
    failure::Seconds,
    register::{RegisterError, Registered},
};

/// How the registration at one entry stands. Times are of the wall clock.
#[derive(Debug, Clone)]
pub struct EntryReport {
    /// Which entry.
    pub entry: SearchPathEntry,
    /// What came of the last attempt; none before the first.
    pub outcome: Option<Result<Registered, RegisterError>>,
    /// When the last attempt ended.
    pub last_attempt: Option<Timestamp>,
    /// When the last attempt ended that succeeded.
    pub last_success: Option<Timestamp>,
    /// Until when the server answers with the last record, as it said, or the record says.
    pub leased_until: Option<Timestamp>,
    /// When the next attempt is due; none while one is under way, or if none can succeed.
    pub next_attempt: Option<Timestamp>,
}

impl EntryReport {
    pub(crate) fn new(entry: SearchPathEntry) -> Self {
        Self { entry, outcome: None, last_attempt: None, last_success: None, leased_until: None, next_attempt: None }
    }

    /// Whether the last attempt succeeded.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self.outcome, Some(Ok(_)))
    }

    /// Why the last attempt failed, if it did.
    #[must_use]
    pub fn error(&self) -> Option<&RegisterError> {
        self.outcome.as_ref().and_then(|outcome| outcome.as_ref().err())
    }
}

impl fmt::Display for EntryReport {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.entry)?;
        match &self.outcome {
            None => f.write_str("not tried yet")?,
            Some(Ok(registered)) => write!(f, "registered for {}", Seconds(registered.lease()))?,
            Some(Err(error)) => write!(f, "{error} ({})", error.code())?,
        }
        match (self.is_registered(), self.last_success) {
            (false, Some(success)) => write!(f, "; last success at {success}")?,
            (false, None) if self.outcome.is_some() => f.write_str("; never registered there")?,
            _ => {}
        }
        self.next_attempt.map_or(Ok(()), |next| write!(f, "; next attempt at {next}"))
    }
}

impl Serialize for EntryReport {
    /// `{entry, registered, code, reason, last_attempt_us, last_success_us, leased_until_us, next_attempt_us}`;
    /// times are microseconds since 1970, what does not apply is null.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = |time: Option<Timestamp>| time.map(Timestamp::as_micros);
        let error = self.error();
        let mut fields = serializer.serialize_struct("EntryReport", 8)?;
        fields.serialize_field("entry", &self.entry.to_string())?;
        fields.serialize_field("registered", &self.is_registered())?;
        fields.serialize_field("code", &error.map(|error| error.code()).map(ErrorCode::as_str))?;
        fields.serialize_field("reason", &error.map(ToString::to_string))?;
        fields.serialize_field("last_attempt_us", &micros(self.last_attempt))?;
        fields.serialize_field("last_success_us", &micros(self.last_success))?;
        fields.serialize_field("leased_until_us", &micros(self.leased_until))?;
        fields.serialize_field("next_attempt_us", &micros(self.next_attempt))?;
        fields.end()
    }
}
