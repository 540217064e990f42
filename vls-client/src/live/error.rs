//! Why a live reference gives no capability.

use std::{sync::Arc, time::Duration};

use schemas::{Coded, ErrorCode, RemoteError, VatId};
use transport::{SessionEnd, SessionError};

use crate::{ResolveError, failure::Seconds};

/// Why a [`LiveRef`](crate::LiveRef) gives no capability now. Cheap to clone: all who waited for one attempt get
/// the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The vat was not found, or nobody at its addresses proved to be it.
    #[error(transparent)]
    Resolve(Arc<ResolveError>),
    /// It was reached, and no session could be begun.
    #[error("vat://{id} was reached, but no session began: {source}")]
    Session {
        /// The vat.
        id: VatId,
        /// Why not.
        source: Arc<SessionError>,
    },
    /// A session began, and was not let into the table of sessions of this process.
    #[error("a session with vat://{id} began and was not kept: {}", .code.meaning())]
    NotAdmitted {
        /// The vat.
        id: VatId,
        /// Why not.
        code: ErrorCode,
    },
    /// Whoever answered has the key of the vat and an older epoch than it is known to have come to.
    #[error(
        "whoever answers as vat://{id} is an old copy of it: epoch {found}, while epoch {known} has been seen already"
    )]
    Stale {
        /// The vat.
        id: VatId,
        /// The epoch that was greeted with.
        found: u64,
        /// The epoch that it is known to have come to.
        known: u64,
    },
    /// The attempt as a whole took too long.
    #[error("vat://{id} could not be reached within {}", Seconds(*.after))]
    Timeout {
        /// The vat.
        id: VatId,
        /// How long was waited.
        after: Duration,
    },
    /// The session ended before the reference was restored.
    #[error("the session ended before the reference was restored: {0}")]
    Ended(SessionEnd),
    /// The vat does not restore the reference.
    #[error("the vat answered: {} ({})", .0.message, .0.code)]
    Refused(RemoteError),
}

impl Coded for LiveError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Resolve(error) => error.code(),
            Self::Session { source, .. } => source.code(),
            Self::NotAdmitted { code, .. } => *code,
            Self::Stale { .. } => ErrorCode::SessionSuperseded,
            Self::Timeout { .. } => ErrorCode::NetTimeout,
            Self::Ended(end) => end.code(),
            Self::Refused(remote) => remote.code,
        }
    }
}
