//! Programs in other languages: what `foreign/prepare` has made ready.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{command::wait_with_limit, limits, programs::target_folder};

/// A Python with pycapnp, a C++ program, and the schemas that both use.
#[derive(Debug)]
pub struct Foreign {
    folder: PathBuf,
}

impl Foreign {
    /// Prepares them once for all tests, however many find at the same time that they are missing.
    ///
    /// # Panics
    /// When they cannot be prepared: it says what to install.
    pub fn prepared() -> &'static Self {
        static PREPARED: OnceLock<Foreign> = OnceLock::new();
        PREPARED.get_or_init(|| {
            let folder = target_folder().join("foreign");
            let mut command = Command::new("bash");
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/prepare")).arg(&folder);
            let done = wait_with_limit(command, &[], limits::BUILD);
            assert!(done.status == Some(0), "foreign clients are not ready:\n{}{}", done.stdout, done.stderr);
            Self { folder }
        })
    }

    /// The folder with `python3` and its libraries.
    #[must_use]
    pub fn python_folder(&self) -> PathBuf {
        self.folder.join("python/bin")
    }

    /// Python with its libraries.
    #[must_use]
    pub fn python(&self) -> PathBuf {
        self.python_folder().join("python3")
    }

    /// The program in C++.
    #[must_use]
    pub fn client(&self) -> PathBuf {
        self.folder.join("client")
    }

    /// The schemas.
    #[must_use]
    pub fn schemas(&self) -> PathBuf {
        self.folder.join("schemas")
    }
}
