//! What a running server gives up before it hears anybody (DESIGN §10: defences by default).
//!
//! Whoever should find a way to run code of his own in the server is to find a process that can do little but serve.
//! Three things are given up, each as far as the kernel can hold it:
//!
//! | what | how |
//! |---|---|
//! | rights that a program on the disk could give | `PR_SET_NO_NEW_PRIVS` |
//! | files: written in the data folder alone, read there and where [`Places`] says | Landlock ([`files`]) |
//! | system calls that no server needs, other programs and processes among them | seccomp ([`system_calls`]) |
//!
//! None of it can be taken back, and each thread has its own; threads inherit it from the one that starts them. So it is
//! done while there is one thread, before the store opens, and holds for the reading of what the disk says, too.
//!
//! It is never a reason not to serve. A kernel without it serves as before, and says so in the log, in
//! `vls-server status` and in `vls-server check`.

mod files;
mod system_calls;

use std::{fmt, path::PathBuf, thread};

use serde_json::{Value, json};

pub(super) use self::files::Places;
use super::config::Configuration;

/// How far something is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    Wholly,
    /// The kernel is too old for all of it.
    Partly,
    /// Why not.
    Not(String),
}

/// What holds of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Confinement {
    /// The operator does not want it.
    Off,
    On {
        files: Held,
        system_calls: Held,
    },
}

impl Confinement {
    /// Confines the calling thread and those that it starts from now on, if the operator wants it.
    pub(super) fn of(configuration: &Configuration, places: &Places) -> Self {
        if !configuration.sandbox.value {
            return Self::Off;
        }
        // Both of the others ask for it, too; alone it still keeps programs from giving rights.
        if let Err(error) = rustix::thread::set_no_new_privs(true) {
            tracing::warn!(%error, "programs could give this process more rights");
        }
        let files = files::confine(places);
        Self::On { files, system_calls: system_calls::confine() }
    }

    /// What would hold of a server: tried on a thread that ends.
    pub(super) fn tried(configuration: &Configuration) -> Self {
        let places = Places::of(configuration);
        let tried = thread::scope(|scope| scope.spawn(|| Self::of(configuration, &places)).join());
        tried.unwrap_or_else(|_| {
            let why = "it could not be tried".to_owned();
            Self::On { files: Held::Not(why.clone()), system_calls: Held::Not(why) }
        })
    }

    /// Says it in the log.
    pub(super) fn log(&self) {
        match self {
            Self::On { files: Held::Wholly | Held::Partly, system_calls: Held::Wholly | Held::Partly } => {
                tracing::info!("confined: {self}");
            }
            _ => tracing::warn!("confined: {self}"),
        }
    }

    /// For programs.
    pub(super) fn object(&self) -> Value {
        let held = |held: &Held| match held {
            Held::Wholly => json!({"held": "wholly"}),
            Held::Partly => json!({"held": "partly"}),
            Held::Not(why) => json!({"held": "not", "why": why}),
        };
        match self {
            Self::Off => json!({"enabled": false, "summary": self.to_string()}),
            Self::On { files, system_calls } => json!({
                "enabled": true, "files": held(files), "system_calls": held(system_calls), "summary": self.to_string(),
            }),
        }
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::On { files, system_calls } = self else { return f.write_str("no, by sandbox.enabled") };
        for (index, (what, held)) in [("files", files), ("system calls", system_calls)].into_iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            match held {
                Held::Wholly => f.write_str(what)?,
                Held::Partly => write!(f, "{what} (as far as this kernel can)")?,
                Held::Not(why) => write!(f, "not {what}: {why}")?,
            }
        }
        Ok(())
    }
}

/// A file that a reload names and that the server may not read, because it began without knowing of it.
pub(super) fn out_of_reach(
    confinement: &Confinement,
    places: &Places,
    configuration: &Configuration,
) -> Option<PathBuf> {
    match confinement {
        Confinement::On { files: Held::Wholly | Held::Partly, .. } => places.lacks(configuration),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::ErrorKind,
        os::unix::{net::UnixListener, process::CommandExt},
        path::Path,
        process::Command,
    };

    use rustix::{
        io::Errno,
        net::{AddressFamily, SocketType, socket},
        process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
        thread::no_new_privs,
    };

    use super::*;
    use crate::program::config::Flags;

    fn configuration(text: &str, folder: &Path) -> Configuration {
        let file = folder.join("vls-server.toml");
        fs::write(&file, format!("data = \"{}/data\"\n{text}", folder.display())).unwrap();
        Configuration::load(&Flags::of(Some(file), None)).unwrap()
    }

    /// Runs `then` on a thread that is confined as a server of `configuration` is.
    fn confined<T: Send>(configuration: &Configuration, then: impl FnOnce(&Confinement) -> T + Send) -> T {
        fs::create_dir_all(&configuration.data.value).unwrap();
        let places = Places::of(configuration);
        thread::scope(|scope| scope.spawn(|| then(&Confinement::of(configuration, &places))).join().unwrap())
    }

    #[allow(clippy::print_stderr)]
    fn say_that_nothing_was_seen(why: &str) {
        eprintln!("this kernel does not confine, so it was not seen: {why}");
    }

    fn refused<T: fmt::Debug>(result: std::io::Result<T>) {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn files_are_written_in_the_data_folder_alone_and_read_there_and_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (folder.path().join("own"), tempfile::tempdir().unwrap());
        fs::create_dir(&own).unwrap();
        let secret = other.path().join("secret");
        fs::write(&secret, "s").unwrap();
        let configuration = configuration("", &own);
        let data = configuration.data.value.clone();
        confined(&configuration, |confinement| {
            let Confinement::On { files, .. } = confinement else { panic!("{confinement}") };
            if let Held::Not(why) = files {
                assert!(why.starts_with("this kernel has no Landlock"), "{why}");
                say_that_nothing_was_seen(why);
                return;
            }
            // What a store does: make, write, rename, link, list, remove, and listen for its owner.
            fs::create_dir(data.join("store")).unwrap();
            fs::write(data.join("store/a"), "a").unwrap();
            fs::rename(data.join("store/a"), data.join("b")).unwrap();
            fs::hard_link(data.join("b"), data.join("c")).unwrap();
            assert_eq!(fs::read_dir(&data).unwrap().count(), 3);
            fs::remove_file(data.join("b")).unwrap();
            UnixListener::bind(data.join("control.sock")).unwrap();
            assert!(fs::read_to_string(own.join("vls-server.toml")).is_ok(), "for the next reload");
            assert!(fs::read("/etc/passwd").is_ok(), "as what name lookups need");
            refused(fs::read_dir("/etc"));
            refused(fs::read(&secret));
            refused(fs::write(&secret, "t"));
            refused(fs::write(other.path().join("new"), "n"));
            refused(fs::write(own.join("vls-server.toml"), "listen = 1"));
            refused(fs::remove_file(&secret));
            refused(fs::read_dir(other.path()));
        });
        // The thread is gone, and this one was never confined.
        assert_eq!(fs::read(&secret).unwrap(), b"s");
    }

    #[test]
    fn no_program_is_run_and_no_process_made_and_threads_still_are() {
        let folder = tempfile::tempdir().unwrap();
        let configuration = configuration("", folder.path());
        confined(&configuration, |confinement| {
            let Confinement::On { system_calls, .. } = confinement else { panic!("{confinement}") };
            if let Held::Not(why) = system_calls {
                assert!(!Path::new("/proc/sys/kernel/seccomp").exists(), "{why}");
                say_that_nothing_was_seen(why);
                return;
            }
            assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);
            refused(Command::new("/bin/true").status());
            // Where it was not forbidden, it would not be found.
            assert_eq!(Command::new("/nowhere/at/all").exec().kind(), ErrorKind::PermissionDenied);
            // What everybody may do otherwise.
            let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
            assert_eq!(pidfd_getfd(&process, 0, PidfdGetfdFlags::empty()).map(drop), Err(Errno::PERM));
            assert_eq!(socket(AddressFamily::VSOCK, SocketType::STREAM, None).map(drop), Err(Errno::PERM));
            assert!(no_new_privs().unwrap());
            assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
        });
    }

    #[test]
    fn who_does_not_want_it_has_all_his_rights() {
        let folder = tempfile::tempdir().unwrap();
        let configuration = configuration("[sandbox]\nenabled = false\n", folder.path());
        confined(&configuration, |confinement| {
            assert_eq!(*confinement, Confinement::Off);
            assert!(Command::new("/bin/true").status().unwrap().success());
        });
        assert_eq!(Confinement::tried(&configuration).to_string(), "no, by sandbox.enabled");
    }

    #[test]
    fn what_does_not_hold_is_said_with_its_reason() {
        let confinement = Confinement::On { files: Held::Not("no Landlock".to_owned()), system_calls: Held::Wholly };
        assert_eq!(confinement.to_string(), "not files: no Landlock, system calls");
        let object = confinement.object();
        assert_eq!((&object["files"]["held"], &object["files"]["why"]), (&json!("not"), &json!("no Landlock")));
        let confinement = Confinement::On { files: Held::Partly, system_calls: Held::Wholly };
        assert_eq!(confinement.to_string(), "files (as far as this kernel can), system calls");
    }
}
