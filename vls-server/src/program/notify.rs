//! Telling the service manager how it stands: one datagram to the socket that it names (`sd_notify(3)`).
//!
//! The protocol is a few lines of text, so there is no library for it here. Without a service manager nothing is told
//! and nothing is lost.

use std::{env, io, os::unix::net::UnixDatagram, time::Duration};

/// Where the service manager listens.
pub(super) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    pub(super) fn from_environment() -> Self {
        let socket = env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty()).and_then(|name| {
            let connected = connect(&name);
            if let Err(error) = &connected {
                tracing::warn!(%error, "the service manager cannot be told anything");
            }
            connected.ok()
        });
        // Another process's, if there is a number and it is not ours.
        let ours = env::var("WATCHDOG_PID").map_or(true, |number| number == std::process::id().to_string());
        let microseconds = env::var("WATCHDOG_USEC").ok().filter(|_| ours).and_then(|number| number.parse().ok());
        let watchdog = microseconds.filter(|microseconds| *microseconds > 0).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// It serves.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// It reads its configuration again; [`Self::ready`] says that it has.
    pub(super) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // Neither is ever negative on this clock.
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// It ends.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// The event loop goes round.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How often [`Self::alive`] has to be said: twice as often as the manager demands. `None`: never.
    pub(super) fn interval(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog).map(|watchdog| watchdog / 2)
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(%error, "the service manager was not told {state:?}");
        }
    }
}

/// A path, or behind an @ the name of an abstract socket. Telling never waits.
fn connect(name: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.strip_prefix('@') {
        Some(name) => connect_abstract(&socket, name)?,
        None => socket.connect(name)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn connect_abstract(socket: &UnixDatagram, name: &str) -> io::Result<()> {
    use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
    socket.connect_addr(&SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_: &UnixDatagram, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
