//! Location servers: real ones, and places where there is none.

use std::{net::UdpSocket, path::PathBuf, process::Command};

use schemas::{IdentityKey, VatId};

use crate::{programs::program, running::Running, world::World};

/// A location server of a world.
#[derive(Debug)]
pub struct LocationServer<'w> {
    world: &'w World,
    folder: PathBuf,
    entry: String,
    process: Option<Running>,
}

impl<'w> LocationServer<'w> {
    pub(crate) fn start(world: &'w World, folder: PathBuf) -> Self {
        let process = launch(world, &folder, "127.0.0.1:0");
        let entry = process.wait_for("its search path entry", |line| line.starts_with("vls://"));
        Self { world, folder, entry, process: Some(process) }
    }

    /// The line that others put into their search path.
    #[must_use]
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Its folder, or a path in it.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    /// The address on which it listens.
    ///
    /// # Panics
    /// Never: an entry has one.
    #[must_use]
    pub fn address(&self) -> &str {
        self.entry.split_once('@').expect("an entry has an address").1
    }

    /// `vls-server run` with its folder and address, not started.
    #[must_use]
    pub fn command(&self) -> Command {
        command(self.world, &self.folder, self.address())
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.process.take().expect("a running server").kill();
    }

    /// Ctrl-C.
    ///
    /// # Panics
    /// When it does not run, or does not end properly.
    pub fn interrupt(&mut self) {
        self.process.take().expect("a running server").interrupt().ok();
    }

    /// Starts it again, on the same address.
    ///
    /// # Panics
    /// When it does not come back as the same server.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let process = launch(self.world, &self.folder, self.address());
        let entry = process.wait_for("its search path entry", |line| line.starts_with("vls://"));
        assert_eq!(entry, self.entry, "a restarted server is the same one");
        self.process = Some(process);
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn process(&self) -> &Running {
        self.process.as_ref().expect("a running server")
    }
}

fn launch(world: &World, folder: &std::path::Path, listen: &str) -> Running {
    let mut command = command(world, folder, listen);
    command.env("VLS_LOG", "debug");
    world.start(command)
}

fn command(world: &World, folder: &std::path::Path, listen: &str) -> Command {
    let mut command = world.command(program("vls-server"));
    command.args(["run", "--listen", listen, "--data"]).arg(folder);
    command
}

/// The entry of a server that does not exist, at an address where nothing listens: the datagrams are
/// answered with "port unreachable".
///
/// # Panics
/// When the system has no random numbers.
#[must_use]
pub fn absent_server() -> String {
    // Port 1 is never given to anybody who asks for any free port.
    format!("vls://{}@127.0.0.1:1", new_id())
}

/// An address where somebody takes all datagrams and says nothing: what a firewall or a dead host looks
/// like.
#[derive(Debug)]
pub struct SilentAddress {
    socket: UdpSocket,
    id: VatId,
}

impl SilentAddress {
    /// Takes a free port.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn bind() -> Self {
        Self { socket: UdpSocket::bind("127.0.0.1:0").expect("a free port"), id: new_id() }
    }

    /// The address.
    ///
    /// # Panics
    /// Never: the socket is bound.
    #[must_use]
    pub fn address(&self) -> String {
        self.socket.local_addr().expect("a bound socket has an address").to_string()
    }

    /// The entry of a server that would be there.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("vls://{}@{}", self.id, self.address())
    }
}

/// An id whose key nobody has.
fn new_id() -> VatId {
    IdentityKey::generate().expect("random numbers").id()
}
