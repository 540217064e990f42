//! Backups: images of a vat in a folder, made now and then, the oldest removed (DESIGN §8).
//!
//! The folder is all there is to know: a backup is called `NAME-<beginning of the id>-YYYYMMDDTHHMMSSZ.vatimage`, so
//! the names sort by time and say what they are, and what was deleted there does not exist. Only files of exactly this
//! form are ever removed: other vats may be called the same in other homes that share the folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use checkpoint::{Census, FileDisk, Holder, ImageHead, RecipientKey, Store, StoreError};
use schemas::{Coded, ErrorCode, Recipient, Timestamp, VatId};

use crate::{
    config::Config,
    home::{Home, HomeError, Name},
};

const SUFFIX: &str = ".vatimage";
/// Length of `YYYYMMDDTHHMMSSZ`.
const TIME_LENGTH: usize = 16;
/// How much of a vat's id stands in the names: 40 bits tell one's own vats apart.
const ID_CHARACTERS: usize = 8;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// Nobody said where to.
    #[error("no folder is named for backups")]
    NoFolder,
    /// The image could not be written, or the key for it is not usable.
    #[error(transparent)]
    Image(#[from] StoreError),
    /// The folder cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
}

impl Coded for BackupError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoFolder => ErrorCode::ConfigInvalid,
            Self::Image(error) => error.code(),
            Self::Home(error) => error.code(),
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::NoFolder => Some("Give --folder, or set backup.folder in the configuration file.".to_owned()),
            Self::Image(error) => error.next(),
            Self::Home(error) => error.next(),
        }
    }
}

/// What the backups of one vat have in common: the beginning of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Series(String);

impl Series {
    pub(crate) fn of(name: &Name, id: VatId) -> Self {
        let id: String = id.to_string().chars().take(ID_CHARACTERS).collect();
        Self(format!("{name}-{id}-"))
    }
}

/// Where a vat's backups go, for whom they are sealed, and how many are kept.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) folder: PathBuf,
    pub(crate) recipient: Recipient,
    pub(crate) keep: usize,
    /// How old the newest may become while the vat is awake; `None`: nobody makes them but their owner.
    pub(crate) every: Option<Duration>,
}

/// The newest backup of a vat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newest {
    pub(crate) path: PathBuf,
    pub(crate) made: Timestamp,
}

impl Plan {
    /// What the configuration says; `folder` overrides it.
    pub(crate) fn of(home: &Home, config: &Config, folder: Option<&Path>) -> Result<Self, BackupError> {
        let backup = &config.backup;
        let folder = folder.map(Path::to_owned).or_else(|| backup.folder.value.clone()).ok_or(BackupError::NoFolder)?;
        let recipient = match backup.to.value {
            Some(recipient) => recipient,
            None => own_recipient_key(home)?.recipient()?,
        };
        Ok(Self { folder, recipient, keep: backup.keep.value, every: backup.every.value })
    }

    /// The file of a backup that is made now.
    pub(crate) fn path(&self, series: &Series, now: Timestamp) -> PathBuf {
        // `2026-11-22T04:23:18…` without what some file systems do not have in names.
        let time = now.to_string();
        let seconds = time.split(['.', 'Z']).next().unwrap_or_default();
        self.folder.join(format!("{}{}Z{SUFFIX}", series.0, seconds.replace(['-', ':'], "")))
    }

    /// Writes one, and removes the oldest that are too many.
    pub(crate) fn make(
        &self,
        store: &Store,
        (name, series): (&Name, &Series),
        now: Timestamp,
        progress: &mut dyn FnMut(Census),
    ) -> Result<(PathBuf, ImageHead, Census), BackupError> {
        let path = self.path(series, now);
        let label = (name.as_str(), now);
        let holders = [Holder::Recipient(self.recipient)];
        let (head, census) = store.export_to_file(&FileDisk, &path, &holders, label, progress)?;
        self.prune(series, &path)?;
        Ok((path, head, census))
    }

    /// Removes the oldest backups of a vat that are too many, but never the one that was just made: clocks that went
    /// wrong once have left names that sort behind it.
    pub(crate) fn prune(&self, series: &Series, made: &Path) -> Result<(), BackupError> {
        let mut all = self.all(series)?;
        all.retain(|path| path != made);
        all.truncate((all.len() + 1).saturating_sub(self.keep));
        for path in all {
            match fs::remove_file(&path) {
                // Somebody else prunes, too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| HomeError::Io { path, error })?,
            }
        }
        Ok(())
    }

    /// The newest backup of a vat, if there is one.
    pub(crate) fn newest(&self, series: &Series) -> Result<Option<Newest>, BackupError> {
        let Some(path) = self.all(series)?.pop() else { return Ok(None) };
        let made = fs::metadata(&path).and_then(|file| file.modified());
        let made = made.map_err(|error| HomeError::Io { path: path.clone(), error })?;
        let since = made.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Some(Newest { path, made: Timestamp::from_seconds(since.as_secs()) }))
    }

    /// All backups of a vat, the oldest first.
    fn all(&self, series: &Series) -> Result<Vec<PathBuf>, BackupError> {
        let at = |error| HomeError::Io { path: self.folder.clone(), error };
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(at)? {
            let entry = entry.map_err(at)?;
            if entry.file_name().to_str().is_some_and(|file| is_backup_of(series, file)) {
                all.push(entry.path());
            }
        }
        all.sort();
        Ok(all)
    }
}

/// How long until a backup is due: none, if the newest one is too old or dated in the future.
pub(crate) fn due_in(newest: Option<Timestamp>, every: Duration, now: Timestamp) -> Duration {
    let Some(age) = newest.and_then(|made| now.as_seconds().checked_sub(made.as_seconds())) else {
        return Duration::ZERO;
    };
    every.saturating_sub(Duration::from_secs(age))
}

fn is_backup_of(series: &Series, file: &str) -> bool {
    let Some(time) = file.strip_prefix(&series.0).and_then(|rest| rest.strip_suffix(SUFFIX)) else { return false };
    time.len() == TIME_LENGTH
        && time.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
}

/// The private key for which this home's images are sealed; it is made when it is first needed.
pub(crate) fn own_recipient_key(home: &Home) -> Result<RecipientKey, BackupError> {
    let path = home.recipient_key();
    home.make_parent(&path)?;
    Ok(RecipientKey::load_or_create(&FileDisk, &path)?)
}

#[cfg(test)]
mod tests {
    use schemas::IdentityKey;

    use super::*;

    fn plan(folder: &Path, keep: usize) -> Plan {
        let recipient = RecipientKey::generate().unwrap().recipient().unwrap();
        Plan { folder: folder.to_owned(), recipient, keep, every: None }
    }

    #[test]
    fn a_backup_is_called_by_name_and_time() {
        let plan = plan(Path::new("/backups"), 7);
        let series = Series::of(&"my-vat.2".parse().unwrap(), IdentityKey::from_seed(&[1; 32]).id());
        let path = plan.path(&series, Timestamp::from_micros(1_795_321_398_752_628));
        let id = &IdentityKey::from_seed(&[1; 32]).id().to_string()[..8];
        assert_eq!(path, PathBuf::from(format!("/backups/my-vat.2-{id}-20261122T042318Z.vatimage")));
    }

    #[test]
    fn pruning_removes_the_oldest_backups_of_this_vat_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (plan, name) = (plan(folder.path(), 2), "tally".parse::<Name>().unwrap());
        let series = Series::of(&name, IdentityKey::from_seed(&[1; 32]).id());
        let namesake = Series::of(&name, IdentityKey::from_seed(&[2; 32]).id());
        let times = [1_000_000_000, 1_200_000_000, 1_100_000_000, 1_300_000_000].map(Timestamp::from_seconds);
        let paths = times.map(|time| plan.path(&series, time));
        let of_namesake = plan.path(&namesake, times[0]);
        let others = [
            "tally-notes.txt",
            "tally-20010909T014640Z.vatimage.old",
            "tally-2-20010909T014640Z.vatimage",
            "tall-20010909T014640Z.vatimage",
            "tally-20010909X014640Z.vatimage",
            ".tally-20010909T014640Z.vatimage.12345678.unfinished",
        ];
        for path in
            paths.iter().cloned().chain([of_namesake.clone()]).chain(others.iter().map(|name| folder.path().join(name)))
        {
            fs::write(path, "").unwrap();
        }
        plan.prune(&series, &paths[3]).unwrap();
        assert_eq!(plan.all(&series).unwrap(), [paths[1].clone(), paths[3].clone()]);
        assert_eq!(plan.newest(&series).unwrap().unwrap().path, paths[3]);
        assert!(of_namesake.exists(), "another vat that is called the same");
        // Made while the clock was right again, after it had been years ahead.
        fs::write(&paths[0], "").unwrap();
        plan.prune(&series, &paths[0]).unwrap();
        assert_eq!(plan.all(&series).unwrap(), [paths[0].clone(), paths[3].clone()]);
        assert!(others.iter().all(|name| folder.path().join(name).exists()));
    }

    #[test]
    fn a_backup_is_due_when_the_newest_is_too_old_missing_or_from_the_future() {
        let (now, every) = (Timestamp::from_seconds(1_000_000), Duration::from_secs(3600));
        let due = |made: u64| due_in(Some(Timestamp::from_seconds(made)), every, now);
        assert_eq!(due(1_000_000), every);
        assert_eq!(due(999_000), Duration::from_secs(2600));
        assert_eq!(due(1_000_000 - 3600), Duration::ZERO);
        assert_eq!(due(0), Duration::ZERO);
        assert_eq!(due(1_000_001), Duration::ZERO);
        assert_eq!(due_in(None, every, now), Duration::ZERO);
    }
}
