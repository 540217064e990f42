//! Why a vat was not found, or not reached.

use schemas::{Coded, ErrorCode, SignedRecord, State, VatId};

use crate::attempt::{Attempt, Lines};

/// Why a vat was not found, or not reached. `Display` has one line of reason per candidate.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is nobody to ask: no search path, no hint, nothing cached.
    #[error("there is nobody to ask for vat://{id}: the search path is empty")]
    EmptyPath {
        /// Who was looked for.
        id: VatId,
    },
    /// Nobody gave an answer that could be used.
    #[error("no location server gave an answer about vat://{id} that could be used:{}", Lines(.attempts))]
    NoAnswer {
        /// Who was looked for.
        id: VatId,
        /// Each candidate and its reason.
        attempts: Vec<Attempt>,
    },
    /// The servers that answered have no record.
    #[error("no location server that answered knows vat://{id}:{}", Lines(.attempts))]
    Unknown {
        /// Who was looked for.
        id: VatId,
        /// Each candidate and its reason.
        attempts: Vec<Attempt>,
    },
    /// The servers that answered have no record of a vat, but something else that was signed with this key.
    #[error("what the location servers hold under the key of vat://{id} says nothing of a vat:{}", Lines(.attempts))]
    NoVat {
        /// Who was looked for.
        id: VatId,
        /// Each candidate and its reason.
        attempts: Vec<Attempt>,
    },
    /// The newest record says that the vat is not awake.
    #[error(
        "vat://{} {} (epoch {}, signed at {}):{}", .record.id(), absence(.record.record().state),
        .record.record().epoch, .record.timestamp(), Lines(.attempts)
    )]
    Dormant {
        /// The newest record, verified.
        record: SignedRecord,
        /// Each candidate and its reason.
        attempts: Vec<Attempt>,
    },
    /// Nobody at its addresses proved to be the vat.
    #[error("nobody at the addresses of vat://{id} proved to be it:{}", Lines(.attempts))]
    NoDial {
        /// Who was looked for.
        id: VatId,
        /// The record that was used; none if only hinted addresses could be dialled.
        record: Option<SignedRecord>,
        /// Each candidate and each address with its reason.
        attempts: Vec<Attempt>,
    },
}

impl ResolveError {
    /// Each candidate and its reason.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        match self {
            Self::EmptyPath { .. } => &[],
            Self::NoAnswer { attempts, .. }
            | Self::Unknown { attempts, .. }
            | Self::NoVat { attempts, .. }
            | Self::Dormant { attempts, .. }
            | Self::NoDial { attempts, .. } => attempts,
        }
    }
}

impl Coded for ResolveError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::EmptyPath { .. } => ErrorCode::VlsEmptyPath,
            Self::NoAnswer { .. } => ErrorCode::VlsNoAnswer,
            Self::Unknown { .. } => ErrorCode::VlsUnknownVat,
            Self::NoVat { .. } => ErrorCode::RecordNoVat,
            Self::Dormant { .. } => ErrorCode::VlsDormant,
            Self::NoDial { .. } => ErrorCode::VlsNoDial,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Dormant { record, .. } => match record.record().state {
                State::Revoked => {
                    Some("Its owner has ended this identity for good; ask for a new reference.".to_owned())
                }
                State::Departed => Some("It is being moved; try again later.".to_owned()),
                State::Dormant | State::Live => None,
            },
            _ => None,
        }
    }
}

fn absence(state: State) -> &'static str {
    match state {
        State::Live => "is awake",
        State::Dormant => "sleeps",
        State::Departed => "has departed and not yet arrived elsewhere",
        State::Revoked => "was revoked by its owner",
    }
}
