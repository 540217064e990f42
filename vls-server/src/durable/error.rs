//! Why there are no records to serve.

use std::path::PathBuf;

use checkpoint::StoreError;
use schemas::{Coded, ErrorCode};

use super::RowError;

/// Why the records could not be opened, or are not served any more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// Another process serves from this folder.
    #[error("{source}")]
    InUse {
        /// Who.
        source: StoreError,
    },
    /// The store.
    #[error(transparent)]
    Store(StoreError),
    /// A row is not one of ours.
    #[error("the store {} cannot be used: {source}", directory.display())]
    Row {
        /// The store.
        directory: PathBuf,
        /// What is wrong with the row.
        source: RowError,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(getrandom::Error),
}

impl From<StoreError> for RecordsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Locked { .. } => Self::InUse { source: error },
            StoreError::Poisoned { cause } => Self::Store(StoreError::clone(&cause)),
            error => Self::Store(error),
        }
    }
}

impl Coded for RecordsError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::InUse { .. } => ErrorCode::ServerRunning,
            Self::Store(error) => error.code(),
            Self::Row { source, .. } => source.code(),
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::InUse { source: StoreError::Locked { holder: Some(holder), .. } } => {
                Some(format!("Use the server that runs, or end process {}.", holder.process_id))
            }
            Self::Store(StoreError::DiskFull { .. }) => Some("Make room, then start the server again.".to_owned()),
            Self::Store(error) => error.next(),
            _ => None,
        }
    }
}

/// The disk has failed, or the server is stopping: nothing is answered any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the location server is stopping")]
pub struct Stopping;

impl Coded for Stopping {
    fn code(&self) -> ErrorCode {
        ErrorCode::ServerStopping
    }
}
