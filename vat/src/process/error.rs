//! Why a vat cannot wake, or has to stop.

use std::sync::Arc;

use checkpoint::StoreError;
use schemas::{Coded, ErrorCode};
use transport::BindError;

use crate::{
    core::VatError,
    home::{HomeError, Name},
    opener::OpenerError,
};

/// Why a vat did not wake, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Its places cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Its checkpoint cannot be opened, or stopped taking turns.
    #[error(transparent)]
    Checkpoint(#[from] StoreError),
    /// What opens its checkpoint is not here.
    #[error(transparent)]
    Opener(#[from] OpenerError),
    /// The disk failed while the vat was awake.
    #[error("the vat stopped: {0}")]
    Disk(Arc<StoreError>),
    /// The disk did not answer when the vat was to go to sleep.
    #[error("the disk did not make the newest turns durable within {seconds} s; they were not acknowledged")]
    DiskSilent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// It cannot be opened as a vat.
    #[error(transparent)]
    Vat(#[from] VatError),
    /// It cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It cannot listen on its local socket.
    #[error("the local socket: {0}")]
    Local(#[from] transport::LocalError),
    /// A location server knows a later turn.
    #[error(
        "the checkpoint of {name} stands at turn {own_turn} (epoch {own_epoch}), but the vat itself has signed that it \
         reached turn {seen_turn} (epoch {seen_epoch}), as {witness} shows: this folder is an older copy, or \
         another copy is alive"
    )]
    RolledBack {
        /// The vat's name here.
        name: Name,
        /// Turn of the checkpoint.
        own_turn: u64,
        /// Epoch of the checkpoint.
        own_epoch: u64,
        /// Turn of the record.
        seen_turn: u64,
        /// Epoch of the record.
        seen_epoch: u64,
        /// Who showed the record.
        witness: String,
    },
    /// A location server knows a later epoch.
    #[error(
        "{name} was started somewhere else: epoch {seen_epoch} (turn {seen_turn}) is registered, this copy has epoch \
         {own_epoch} (turn {own_turn})"
    )]
    Fenced {
        /// The vat's name here.
        name: Name,
        /// Epoch of this copy.
        own_epoch: u64,
        /// Turn of this copy.
        own_turn: u64,
        /// Epoch of the record.
        seen_epoch: u64,
        /// Turn of the record.
        seen_turn: u64,
    },
    /// The witness is required and nobody answered.
    #[error("witness = \"required\", and no location server said whether a newer copy exists:\n{reasons}")]
    NoWitness {
        /// One line per entry.
        reasons: String,
    },
    /// The operating system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Coded for RunError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Home(error) => error.code(),
            Self::Opener(error) => error.code(),
            Self::Checkpoint(error) => error.code(),
            Self::Disk(error) => error.code(),
            Self::Vat(error) => error.code(),
            Self::Bind(error) => error.code(),
            Self::Local(error) => error.code(),
            Self::DiskSilent { .. } => ErrorCode::CheckpointDisk,
            Self::RolledBack { .. } => ErrorCode::VatRolledBack,
            Self::Fenced { .. } => ErrorCode::VatFenced,
            Self::NoWitness { .. } => ErrorCode::VlsNoAnswer,
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::RolledBack { name, own_turn, seen_turn, .. } => Some(format!(
                "Find the newer copy. Only if it is lost: `vat run {name} --take-over` goes on from turn {own_turn} and \
                 gives up what turns {} to {seen_turn} did.",
                own_turn + 1
            )),
            Self::Fenced { name, .. } => {
                Some(format!("Put the other copy to sleep. Only if it is lost: `vat run {name} --take-over`."))
            }
            Self::Home(error) => error.next(),
            Self::Opener(error) => error.next(),
            Self::Checkpoint(error) => error.next(),
            Self::Disk(error) => error.next(),
            Self::Vat(error) => error.next(),
            Self::Bind(error) => error.next(),
            Self::Local(error) => error.next(),
            Self::NoWitness { .. } | Self::DiskSilent { .. } | Self::Random(_) => None,
        }
    }
}
