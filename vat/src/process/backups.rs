//! Backups of a vat that is awake, made when they are due.

use std::{cell::RefCell, rc::Rc, time::Duration};

use schemas::{Coded, ErrorCode, vat_capnp};

use super::Awake;
use crate::{
    backup::{BackupError, Plan, Series, due_in},
    limits::{BACKUP_LOOK, BACKUP_RETRY},
};

/// How the backups of this vat stand.
pub(super) struct Backups {
    /// `None`: the configuration names no folder.
    plan: Option<Plan>,
    /// Why the last one was not made.
    failure: RefCell<Option<(ErrorCode, String)>>,
}

impl Backups {
    pub(super) fn new(plan: Result<Plan, BackupError>) -> Self {
        let failure = match &plan {
            Ok(_) | Err(BackupError::NoFolder) => None,
            Err(error) => Some((error.code(), error.to_string())),
        };
        Self { plan: plan.ok(), failure: RefCell::new(failure) }
    }

    /// When the newest one was made, in seconds since 1970; 0: there is none, or nobody can tell.
    pub(super) fn newest(&self, series: &Series) -> u64 {
        let newest = self.plan.as_ref().and_then(|plan| plan.newest(series).ok().flatten());
        newest.map_or(0, |newest| newest.made.as_seconds())
    }

    /// Tells the owner.
    pub(super) fn describe(&self, awake: &Awake, mut status: vat_capnp::status::Builder<'_>) {
        let newest = self.plan.as_ref().map_or(Ok(None), |plan| plan.newest(&awake.series()));
        if let Ok(Some(newest)) = &newest {
            status.set_last_backup(newest.made.as_seconds());
            status.set_last_backup_file(newest.path.to_string_lossy().as_ref());
        }
        let failure = self.failure.borrow().clone();
        if let Some((code, text)) = failure.or_else(|| newest.err().map(|error| (error.code(), error.to_string()))) {
            status.set_backup_code(code.as_str());
            status.set_backup_message(text);
        }
    }
}

impl Awake {
    /// What its backups are called.
    pub(super) fn series(&self) -> Series {
        Series::of(&self.name, self.vat.id())
    }

    /// Makes a backup whenever the newest one is older than the owner wants. Ends only with the vat.
    pub(super) async fn back_up(self: Rc<Self>) {
        let Some((plan, every)) = self.backups.plan.as_ref().and_then(|plan| Some((plan, plan.every?))) else { return };
        loop {
            let pause = match self.back_up_if_due(plan, every).await {
                Ok(pause) => {
                    self.backups.failure.replace(None);
                    // Clocks are set, and folders emptied, while one waits.
                    pause.min(BACKUP_LOOK)
                }
                Err(error) => {
                    tracing::warn!(code = error.code().as_str(), %error, "no backup could be made; trying again later");
                    self.backups.failure.replace(Some((error.code(), error.to_string())));
                    BACKUP_RETRY.min(every)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Gives the time until the next one is due.
    async fn back_up_if_due(&self, plan: &Plan, every: Duration) -> Result<Duration, BackupError> {
        let now = self.vat.engine().now();
        let newest = plan.newest(&self.series())?.map(|newest| newest.made);
        let pause = due_in(newest, every, now);
        if !pause.is_zero() {
            return Ok(pause);
        }
        let (plan, name, store) = (plan.clone(), self.name.clone(), self.vat.engine().store().clone());
        let series = self.series();
        let made = tokio::task::spawn_blocking(move || plan.make(&store, (&name, &series), now, &mut |_| {})).await;
        match made {
            Ok(made) => made.map(|(path, ..)| tracing::info!(path = %path.display(), "a backup was made"))?,
            // The vat is on its way to sleep.
            Err(error) => tracing::debug!(%error, "a backup was given up"),
        }
        Ok(every)
    }
}
