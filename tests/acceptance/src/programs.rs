//! The programs under test: those that cargo built in the same profile as the running test, or the ones in the
//! folder that `VAT_TEST_PROGRAMS` names, such as an installation.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

use crate::{command::wait_with_limit, limits};

const PACKAGES: [&str; 3] = ["vat", "vls-server", "poll"];

/// The path of the program, which is up to date with the sources.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        if let Some(folder) = env::var_os("VAT_TEST_PROGRAMS") {
            return PathBuf::from(folder);
        }
        let folder = profile_folder();
        build_if_stale(&folder);
        folder
    });
    folder.join(name)
}

/// `target/debug`, `target/release` or another profile's: where this test lies in `deps`.
fn profile_folder() -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    let deps = test.parent().expect("a test lies in a folder");
    deps.parent().expect("cargo puts tests into a folder of the profile's").to_owned()
}

/// `target`, or what stands for it.
pub(crate) fn target_folder() -> PathBuf {
    profile_folder().parent().expect("a profile's folder lies in the target folder").to_owned()
}

/// Builds the programs once, however many tests find at the same time that they are missing.
fn build_if_stale(folder: &Path) {
    let lock = File::create(folder.join(".acceptance-lock")).expect("a lock file in the target folder");
    lock.lock().expect("the lock");
    if PACKAGES.iter().all(|package| is_fresh(folder, package).unwrap_or(false)) {
        return;
    }
    let target = target_folder();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} names no profile", folder.display()),
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--bins", "--profile", profile, "--target-dir"]).arg(&target);
    command.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let done = wait_with_limit(command, &[], limits::BUILD);
    assert!(done.status == Some(0), "the programs under test do not build:\n{}", done.stderr);
}

/// Whether the program is newer than each source that cargo lists for it, and than the choice of
/// dependencies.
fn is_fresh(folder: &Path, package: &str) -> io::Result<bool> {
    let built = modified(&folder.join(package))?;
    let listed = fs::read_to_string(folder.join(format!("{package}.d")))?;
    let sources = listed.lines().filter_map(|line| line.split_once(": ")).flat_map(|(_, sources)| paths(sources));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let choice = ["Cargo.toml", "Cargo.lock"].map(|file| root.join(file));
    for source in sources.chain(choice) {
        if modified(&source)? > built {
            return Ok(false);
        }
    }
    Ok(true)
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// The paths of a makefile rule, in which spaces are escaped.
fn paths(sources: &str) -> Vec<PathBuf> {
    let marked = sources.replace("\\ ", "\0");
    marked.split_whitespace().map(|path| PathBuf::from(path.replace('\0', " "))).collect()
}
