//! One test's world: a folder for everything, and an account of what was written and which secrets exist.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit, umask},
};
use tempfile::TempDir;

use crate::{
    command::{Done, wait_with_limit},
    home::Home,
    leaks, limits,
    location_server::LocationServer,
    programs::program,
    running::Running,
};

/// Everything of one test. Make it first, so that it is dropped last.
///
/// Dropping it without [`World::no_secret_leaked`] fails the test: no test can forget to look.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    /// Sturdyrefs whose secrets nobody but their holder may have.
    minted: Mutex<Vec<String>>,
    /// Other texts that nobody may write down.
    passphrases: Mutex<Vec<String>>,
    /// Folders in which nothing may be open to others.
    private: Mutex<Vec<PathBuf>>,
    outputs: AtomicU64,
    /// Whose output lies where: told when it holds a secret.
    commands: Mutex<Vec<(PathBuf, String)>>,
    searched: AtomicBool,
}

impl World {
    /// A new, empty world.
    ///
    /// # Panics
    /// When its folder cannot be made, or the programs under test do not build.
    #[must_use]
    pub fn new() -> Self {
        let _built = program("vat");
        invite_mistakes();
        // Sockets lie below this folder, and the path of a socket has at most 107 bytes.
        let folder = tempfile::Builder::new().prefix("vat-").tempdir().expect("a temporary folder");
        let world = Self {
            folder,
            minted: Mutex::default(),
            passphrases: Mutex::default(),
            private: Mutex::default(),
            outputs: AtomicU64::new(0),
            commands: Mutex::default(),
            searched: AtomicBool::new(false),
        };
        for name in ["written", "tmp", "cwd", "user"] {
            make_folder(&world.path(name));
        }
        world
    }

    /// The home folder of somebody, which no command has touched yet.
    #[must_use]
    pub fn home(&self, name: &str) -> Home<'_> {
        let folder = self.path(name);
        self.keep_private(&folder);
        Home::new(self, folder)
    }

    /// A location server that has just been started for the first time.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn location_server(&self, name: &str) -> LocationServer<'_> {
        let folder = self.path(name);
        self.keep_private(&folder);
        LocationServer::start(self, folder)
    }

    /// A path in this world.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Below this folder nothing may be open to other users, and everything is searched.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the lock.
    pub fn keep_private(&self, folder: &Path) {
        self.private.lock().expect("no panic while locked").push(folder.to_owned());
    }

    /// Tells the world of a secret that was minted.
    ///
    /// # Panics
    /// When it is not a sturdyref.
    pub fn mint(&self, sturdyref: &str) {
        let parsed = sturdyref.parse::<schemas::SturdyRef>();
        assert!(parsed.is_ok(), "this is no sturdyref: {sturdyref:?}");
        self.minted.lock().expect("no panic while locked").push(sturdyref.to_owned());
    }

    /// Tells the world of a passphrase, which must not be found in any file.
    ///
    /// # Panics
    /// When another thread panicked meanwhile.
    pub fn keep_secret(&self, passphrase: &str) {
        self.passphrases.lock().expect("no panic while locked").push(passphrase.to_owned());
    }

    /// A program, with an environment that holds nothing of the machine on which the test runs.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().current_dir(self.path("cwd"));
        command.env("HOME", self.path("user")).env("TMPDIR", self.path("tmp")).env("LANG", "C.UTF-8");
        for kept in ["PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command
    }

    /// Runs a command to its end, and keeps what it wrote for the search.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn run(&self, command: Command, input: &str) -> Done {
        self.run_and_keep(command, input, true)
    }

    /// The same for a command whose very purpose is to print a secret: only its standard error is kept.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn run_disclosing(&self, command: Command, input: &str) -> Done {
        self.run_and_keep(command, input, false)
    }

    fn run_and_keep(&self, command: Command, input: &str, all: bool) -> Done {
        let done = wait_with_limit(command, input.as_bytes(), limits::COMMAND);
        let place = self.output_place("command");
        fs::write(place.with_extension("err"), &done.stderr).expect("a file in the world");
        if all {
            fs::write(place.with_extension("out"), &done.stdout).expect("a file in the world");
        }
        self.commands.lock().expect("no panic while locked").push((place, done.command.clone()));
        done
    }

    /// Starts a program that goes on running; what it writes is kept for the search.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(&self, command: Command) -> Running {
        Running::start(command, &self.output_place("process"))
    }

    /// A new place for what a process writes.
    pub(crate) fn output_place(&self, kind: &str) -> PathBuf {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        self.path("written").join(format!("{number:04}-{kind}"))
    }

    /// Searches everything that was written in this world for every secret that was minted in it, and the
    /// private folders for files that others may use.
    ///
    /// # Panics
    /// When it finds one.
    pub fn no_secret_leaked(&self) {
        self.searched.store(true, Ordering::Relaxed);
        let minted = self.minted.lock().expect("no panic while locked").clone();
        let private = self.private.lock().expect("no panic while locked").clone();
        let passphrases = self.passphrases.lock().expect("no panic while locked").clone();
        let found = leaks::search(self.folder.path(), &minted, &passphrases, &private);
        let commands = self.commands.lock().expect("no panic while locked");
        let lines = found.iter().map(|found| {
            let command = commands.iter().find(|(place, _)| found.path.with_extension("") == *place);
            let command = command.map_or(String::new(), |(_, command)| format!(", written by: {command}"));
            format!("\n  {} {}{command}", found.path.display(), found.what)
        });
        assert!(found.is_empty(), "secrets are where they must not be:{}", lines.collect::<String>());
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        assert!(
            thread::panicking() || self.searched.load(Ordering::Relaxed),
            "a test must end with `world.no_secret_leaked()`"
        );
    }
}

/// Lets every child make the worst of its mistakes: files open to all unless it says otherwise, and core
/// dumps as large as they come, into a folder that is searched.
fn invite_mistakes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        umask(Mode::empty());
        let most = getrlimit(Resource::Core).maximum;
        setrlimit(Resource::Core, Rlimit { current: most, maximum: most }).expect("core dumps up to the hard limit");
    });
}

pub(crate) fn make_folder(path: &Path) {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
