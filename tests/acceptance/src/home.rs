//! Somebody's home folder, and the commands that they type.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use data_encoding::BASE64URL_NOPAD;
use schemas::{Secret, SturdyRef, VatAddress};
use serde_json::Value;

use crate::{
    command::{Done, Failure},
    programs::program,
    running::Running,
    world::World,
};

/// A home folder (`VAT_HOME`) in a world.
#[derive(Debug, Clone)]
pub struct Home<'w> {
    world: &'w World,
    folder: PathBuf,
    program: PathBuf,
    credentials: Option<PathBuf>,
}

impl<'w> Home<'w> {
    pub(crate) fn new(world: &'w World, folder: PathBuf) -> Self {
        Self { world, folder, program: program("vat"), credentials: None }
    }

    /// The same home, used with another program of the same command line.
    #[must_use]
    pub fn with_program(&self, name: &str) -> Self {
        Self { program: program(name), ..self.clone() }
    }

    /// The same home, used by a service to which the service manager shows the credentials in this folder.
    #[must_use]
    pub fn with_credentials(&self, folder: PathBuf) -> Self {
        Self { credentials: Some(folder), ..self.clone() }
    }

    /// The folder, or a path in it.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    /// A command with its arguments, not started yet.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(&self.program);
        command.env("VAT_HOME", &self.folder).args(arguments);
        command.envs(self.credentials.iter().map(|folder| ("CREDENTIALS_DIRECTORY", folder)));
        command
    }

    /// `vat ARGUMENTS`, to its end.
    pub fn vat(&self, arguments: &[&str]) -> Done {
        self.world.run(self.command(arguments), "")
    }

    /// The same with something on standard input.
    pub fn vat_with_input(&self, arguments: &[&str], input: &str) -> Done {
        self.world.run(self.command(arguments), input)
    }

    /// `vat --json ARGUMENTS`, which must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.vat(&[&["--json"], arguments].concat()).ok().json()
    }

    /// A command that must fail, with and without `--json`, and so be of no effect.
    ///
    /// # Panics
    /// When it fails in another way than DESIGN §10 has it, or does not fail.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str], exit: i32, code: &str) -> Failure {
        self.fails_with_input(arguments, "", exit, code)
    }

    /// The same with something on standard input.
    ///
    /// # Panics
    /// As [`Home::fails`].
    #[track_caller]
    pub fn fails_with_input(&self, arguments: &[&str], input: &str, exit: i32, code: &str) -> Failure {
        self.vat_with_input(arguments, input).failed_for_a_person(exit, code);
        self.vat_with_input(&[&["--json"], arguments].concat(), input).failed(exit, code)
    }

    /// `vat share NAME MORE`: the new reference, of which the world is told.
    ///
    /// # Panics
    /// When it is not alone on the last line of standard output.
    #[track_caller]
    #[must_use]
    pub fn share(&self, name: &str, more: &[&str]) -> String {
        let arguments = [&["share", name], more].concat();
        let done = self.world.run_disclosing(self.command(&arguments), "").ok();
        let reference = done.stdout.lines().next_back().unwrap_or_default().to_owned();
        self.world.mint(&reference);
        reference
    }

    /// `vat share NAME --capnp PLACE`: the new reference, of whose secret the world is told.
    ///
    /// # Panics
    /// When it is not alone on the last line of standard output, or holds no secret.
    #[track_caller]
    #[must_use]
    pub fn share_as_capnp(&self, name: &str, place: &str) -> String {
        let done = self.discloses(&["share", name, "--capnp", place]).ok();
        let reference = done.stdout.lines().next_back().unwrap_or_default().to_owned();
        let (_, secret) = reference.rsplit_once('/').expect("a path");
        let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).expect("the secret in base64");
        let secret = Secret::from_slice(&secret).expect("32 bytes");
        let address = self.json(&["status", name])["vat"].as_str().expect("the address of a vat").to_owned();
        let address: VatAddress = address.parse().expect("an address");
        self.world.mint(&SturdyRef { id: address.id, secret, hints: address.hints }.expose());
        reference
    }

    /// A command whose very purpose is to print a secret: what it prints is not searched.
    pub fn discloses(&self, arguments: &[&str]) -> Done {
        self.world.run_disclosing(self.command(arguments), "")
    }

    /// `vat vls add ENTRY`
    #[track_caller]
    pub fn add_server(&self, entry: &str) {
        self.vat(&["vls", "add", entry]).ok();
    }

    /// `vat new NAME --object KIND`: its public address.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn new_vat(&self, name: &str, kind: &str) -> String {
        let made = self.json(&["new", name, "--object", kind]);
        made["vat"].as_str().expect("the address of a new vat").to_owned()
    }

    /// `vat run NAME` on a free port of loopback, once it is live.
    ///
    /// # Panics
    /// When it does not become live.
    #[track_caller]
    #[must_use]
    pub fn wake(&self, name: &str) -> Awake {
        self.wake_with(name, &[])
    }

    /// The same with more options.
    ///
    /// # Panics
    /// As [`Home::wake`].
    #[track_caller]
    #[must_use]
    pub fn wake_with(&self, name: &str, more: &[&str]) -> Awake {
        let process = self.start(&[&["--json", "run", name, "--listen", "127.0.0.1:0"], more].concat());
        let line = process.wait_for("that it is live", |_| true);
        let live = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {}", process.so_far()));
        Awake { live, process }
    }

    /// Starts a command that goes on running. It logs all that it can.
    #[must_use]
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        command.env("VAT_LOG", "debug");
        self.world.start(command)
    }

    /// Writes a file of this home, as its owner would: for nobody else to read.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, relative: &str, contents: &str) {
        crate::world::make_folder(&self.folder);
        let path = self.path(relative);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, contents.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Changes the mode of a file of this home.
    ///
    /// # Panics
    /// When there is none.
    pub fn set_mode(&self, relative: &str, mode: u32) {
        set_mode(&self.path(relative), mode);
    }
}

/// Changes the mode of a file.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    let changed = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    changed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A vat that is awake.
#[derive(Debug)]
pub struct Awake {
    /// What `vat run --json` said when it was live.
    pub live: Value,
    /// Its process.
    pub process: Running,
}

impl Awake {
    /// Its first published address, as `host:port`.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn address(&self) -> String {
        let address = self.live["addresses"][0].as_str().expect("a vat that is awake has an address");
        address.strip_prefix("quic:").expect("an address for QUIC").to_owned()
    }

    /// The epoch that it began.
    ///
    /// # Panics
    /// When it did not say.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.live["epoch"].as_u64().expect("a live vat has an epoch")
    }

    /// SIGKILL.
    pub fn kill(self) {
        self.process.kill();
    }

    /// Ctrl-C, which must put it to sleep properly.
    #[track_caller]
    pub fn sleep(self) -> Done {
        self.process.interrupt().ok()
    }
}
