//! A disk that is really full.
//!
//! A small tmpfs is mounted over a folder in a mount namespace of the command's own, so that nobody else
//! sees it. Where that is not permitted there is still the file size limit (`RLIMIT_FSIZE`): the system then
//! refuses to let a file grow, with EFBIG in place of ENOSPC.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// How a small disk is put in the place of a folder.
#[derive(Debug, Clone, Copy)]
pub struct SmallDisk {
    unshare: &'static str,
}

/// Copies what is in the folder to the small disk, runs the command, and copies it back to where there is
/// room: as an owner would who moves to a larger disk.
const SCRIPT: &str = r#"
    set -eu
    folder=$1 scratch=$2 size=$3; shift 3
    mount -t tmpfs -o "size=$size,mode=0700" none "$scratch"
    cp -a "$folder/." "$scratch/"
    mount --bind "$scratch" "$folder"
    status=0; "$@" || status=$?
    umount "$folder"
    find "$folder" -mindepth 1 -delete
    cp -a "$scratch/." "$folder/"
    exit $status
"#;

impl SmallDisk {
    /// `None` where this user may not mount anything, not even in a namespace of its own.
    #[must_use]
    pub fn permitted() -> Option<Self> {
        // For root, a namespace of mounts; for others, one in which they are root.
        ["-m", "-rm"].into_iter().map(|unshare| Self { unshare }).find(|disk| {
            let mount = ["sh", "-c", "mount -t tmpfs none /mnt"];
            let tried = Command::new("unshare").arg(disk.unshare).args(mount).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        })
    }

    /// The command, on a disk of `bytes` in the place of `folder`.
    #[must_use]
    pub fn wrap(self, command: &Command, folder: &Path, scratch: &Path, bytes: u64) -> Command {
        let mut words = vec!["unshare".into(), self.unshare.into(), "sh".into(), "-c".into(), SCRIPT.into()];
        words.extend(["sh".into(), folder.into(), scratch.into(), bytes.to_string().into()]);
        wrap(command, words)
    }

    /// The command, which may write no file beyond `bytes`.
    #[must_use]
    pub fn limit_files(command: &Command, bytes: u64) -> Command {
        // The signal that comes with the limit is ignored, as service managers do, so that the error is seen.
        let script = r#"trap "" XFSZ; exec prlimit --fsize="$0" -- "$@""#;
        wrap(command, ["sh", "-c", script, &bytes.to_string()].map(PathBuf::from).to_vec())
    }
}

fn wrap(command: &Command, words: Vec<PathBuf>) -> Command {
    let mut wrapped = Command::new(&words[0]);
    wrapped.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}
