//! Why a vat cannot be made, opened or changed by its owner.

use checkpoint::StoreError;
use schemas::{Coded, ErrorCode};

use crate::{
    limits::{MAX_GRANTS, MAX_LABEL_BYTES},
    object::ObjectError,
};

/// Why a vat cannot be made, opened or changed by its owner.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VatError {
    /// The checkpoint refused.
    #[error(transparent)]
    Checkpoint(#[from] StoreError),
    /// A turn failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The checkpoint lacks a row that every vat has, or the identity in it is another one.
    #[error("the checkpoint is not one of a vat: {0}")]
    NotAVat(&'static str),
    /// The secret was never granted, was revoked, or has expired.
    #[error("the vat knows no such reference")]
    Denied,
    /// No grant has this number.
    #[error("this vat has no grant number {number}")]
    NoSuchGrant {
        /// The number that was asked for.
        number: u64,
    },
    /// The label of a grant is too long.
    #[error("a label has at most {MAX_LABEL_BYTES} bytes, this one has {found}")]
    LabelTooLong {
        /// Its size in bytes.
        found: usize,
    },
    /// The vat has as many grants as it keeps.
    #[error("this vat has {MAX_GRANTS} grants already; revoke some first")]
    TooManyGrants,
    /// The operating system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Coded for VatError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Checkpoint(error) => error.code(),
            Self::Object(error) => error.code(),
            Self::NotAVat(_) => ErrorCode::CheckpointDamaged,
            Self::Denied => ErrorCode::RefDenied,
            Self::NoSuchGrant { .. } => ErrorCode::RefNotFound,
            Self::LabelTooLong { .. } => ErrorCode::ObjectTooLarge,
            Self::TooManyGrants => ErrorCode::RefLimit,
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.next(),
            Self::Object(error) => error.next(),
            _ => None,
        }
    }
}
