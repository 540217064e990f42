//! What opens a vat here: its key file, or what the service manager hands over (DESIGN §8, Keyslots).
//!
//! A key file is on the disk in clear, for its owner only. A credential is not: the service manager keeps it sealed, on
//! a machine with a TPM under a key that cannot leave it, and shows it to one service while that runs. Which of the two
//! it is stands in the configuration, by the vat's name, and holds for every command.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use checkpoint::Protection;
use schemas::{Coded, ErrorCode};

use crate::{
    config::Config,
    home::{Name, Places},
};

/// Where the service manager says that the credentials are (systemd.exec(5), "Credentials").
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// What opens one vat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opener {
    /// This file.
    KeyFile(PathBuf),
    /// A credential.
    Credential {
        /// The vat.
        vat: Name,
        /// What the credential is called.
        credential: Name,
    },
}

/// What opens a vat is not here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenerError {
    /// The program was not started by a service manager that hands over credentials.
    #[error(
        "{vat} is opened with the credential {credential}, and no service manager has handed one over: \
         {CREDENTIALS_DIRECTORY} is not set"
    )]
    NoServiceManager {
        /// The vat.
        vat: Name,
        /// What the credential is called.
        credential: Name,
    },
}

impl Coded for OpenerError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoServiceManager { .. } => ErrorCode::KeyMissing,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::NoServiceManager { credential, .. } => Some(format!(
                "Run it with: systemd-run --pty --wait --property=LoadCredentialEncrypted={credential}:FILE vat …. A vat \
                 that is awake is reached without."
            )),
        }
    }
}

impl Opener {
    /// What the configuration says.
    pub(crate) fn of(config: &Config, name: &Name, places: &Places) -> Self {
        match config.credentials.get(name) {
            Some(credential) => Self::Credential { vat: name.clone(), credential: credential.value.clone() },
            None => Self::KeyFile(places.key_file.clone()),
        }
    }

    /// The key file, if it is one.
    pub(crate) fn key_file(&self) -> Option<&Path> {
        match self {
            Self::KeyFile(path) => Some(path),
            Self::Credential { .. } => None,
        }
    }

    /// What a checkpoint is opened with, or made for.
    pub(crate) fn protection(&self) -> Result<Protection, OpenerError> {
        match self {
            Self::KeyFile(path) => Ok(Protection::KeyFile(path.clone())),
            Self::Credential { vat, credential } => {
                let directory = env::var_os(CREDENTIALS_DIRECTORY).ok_or_else(|| OpenerError::NoServiceManager {
                    vat: vat.clone(),
                    credential: credential.clone(),
                })?;
                Ok(Protection::Credential { directory: directory.into(), name: credential.to_string() })
            }
        }
    }
}

impl fmt::Display for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyFile(path) => path.display().fmt(f),
            Self::Credential { credential, .. } => write!(f, "the credential {credential}"),
        }
    }
}
