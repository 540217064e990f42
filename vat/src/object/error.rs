//! Why an object refuses a call, and what can be wrong with a stored row.

use checkpoint::StoreError;
use schemas::{Coded, ErrorCode};

use super::reference::ObjectId;
use crate::limits::MAX_OBJECTS;

/// Why an object refused a call. Whatever the reason, the turn was undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The object has nothing of this name.
    #[error("there is no {what} named {name:?}")]
    NotFound {
        /// What kind of thing was looked for.
        what: &'static str,
        /// The name that was looked for.
        name: String,
    },
    /// A number would not fit.
    #[error("{what} would not fit 64 bits")]
    Overflow {
        /// Which number.
        what: &'static str,
    },
    /// A value is larger than the object stores.
    #[error("{what} has {found} bytes; at most {limit} are stored")]
    TooLarge {
        /// Which value.
        what: &'static str,
        /// Its size in bytes.
        found: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// An argument is not what the method takes.
    #[error("{what}: {reason}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Any other refusal, in the object's own words.
    #[error("{0}")]
    Refused(String),
    /// The object's code panicked.
    #[error("the object's code panicked; its turn was undone")]
    Panicked,
    /// A turn was begun inside a turn.
    #[error("a turn was begun inside a turn; both were undone")]
    Nested,
    /// The grant through which the object was reached was revoked or has expired.
    #[error("the reference through which this object was reached was revoked or has expired")]
    Withdrawn,
    /// There is something of this name already.
    #[error("there is something named {name:?} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// A reference leads to an object that is not there: it was removed when nothing led to it any more, or the
    /// number was made up. Also one that leads to an object which whoever uses it was never given.
    #[error(
        "the vat has no object {object}; it was removed when nothing led to it any more, or was never given to this one"
    )]
    NoSuchObject {
        /// The object's number.
        object: ObjectId,
    },
    /// The vat has as many objects as it keeps.
    #[error("this vat has {MAX_OBJECTS} objects already")]
    TooManyObjects,
    /// This program does not know a kind of object.
    #[error("this program has no object of kind {kind:?}; it knows {known}")]
    UnknownKind {
        /// The kind that was asked for, or that the checkpoint names.
        kind: String,
        /// The kinds that it knows, for the message.
        known: String,
    },
    /// A row is of a type that its object's kind did not declare, with
    /// [`Kind::with_entry`](crate::Kind::with_entry).
    #[error("the object's kind does not declare that it stores a {what}")]
    UndeclaredType {
        /// The row's type.
        what: String,
    },
    /// One object was asked for under two state types.
    #[error("object {object} is awake with a state of another type")]
    TwoTypes {
        /// The object's number.
        object: u64,
    },
    /// A stored row was written by a newer program.
    #[error("a stored {what} has version {found}, this program knows {known}")]
    NewerRow {
        /// The row's type.
        what: String,
        /// The version that is stored.
        found: u32,
        /// The newest version that this program can read.
        known: u32,
    },
    /// A stored row is not what its type says.
    #[error("a stored {what} cannot be read: {reason}")]
    Row {
        /// The row's type.
        what: &'static str,
        /// Why.
        reason: RowProblem,
    },
    /// The checkpoint below refused.
    #[error(transparent)]
    Checkpoint(#[from] StoreError),
}

/// What is wrong with a stored row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// It does not decode.
    #[error("it does not decode ({0})")]
    Decode(#[from] postcard::Error),
    /// It is of another type.
    #[error("it is a {found}")]
    Type {
        /// The type that is stored.
        found: String,
    },
    /// Its references cannot be told.
    #[error("it cannot be stored: {0}")]
    Unreadable(String),
    /// It is of an older version that the type has no upgrade from.
    #[error("there is no way from its version {found}")]
    NoUpgrade {
        /// The version that is stored.
        found: u32,
    },
}

impl Coded for ObjectError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ObjectNotFound,
            Self::Overflow { .. } => ErrorCode::ObjectOverflow,
            Self::TooLarge { .. } => ErrorCode::ObjectTooLarge,
            Self::Argument { .. } => ErrorCode::ObjectArgument,
            Self::Refused(_) | Self::Panicked | Self::Nested => ErrorCode::ObjectFailed,
            Self::Withdrawn => ErrorCode::RefDenied,
            Self::Exists { .. } => ErrorCode::ObjectExists,
            Self::NoSuchObject { .. } => ErrorCode::ObjectGone,
            Self::TooManyObjects => ErrorCode::ObjectLimit,
            Self::UnknownKind { .. } => ErrorCode::VatUnknownObject,
            Self::UndeclaredType { .. } => ErrorCode::ObjectFailed,
            Self::TwoTypes { .. } => ErrorCode::Internal,
            Self::NewerRow { .. } => ErrorCode::CheckpointVersion,
            Self::Row { .. } => ErrorCode::CheckpointDamaged,
            Self::Checkpoint(error) => error.code(),
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.next(),
            _ => None,
        }
    }
}

impl From<ObjectError> for capnp::Error {
    fn from(error: ObjectError) -> Self {
        wire_error(&error)
    }
}

/// The exception that carries an error over a session, with its code where every client can read it.
pub fn wire_error(error: &dyn Coded) -> capnp::Error {
    capnp::Error::failed(error.code().to_wire(&error.to_string()))
}
