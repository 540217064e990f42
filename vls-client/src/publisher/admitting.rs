//! One registration, until the server takes it or has been shown all that can be shown ([`crate::admission`]).

use std::time::Duration;

use schemas::{ErrorCode, Invite, Task};
use tokio::time::{Instant, timeout_at};

use super::{Condition, Entry, Inner, Offered, Taken};
use crate::{
    admission::Admission,
    failure::Failure,
    limits,
    register::{Refused, RegisterError},
};

/// How long a registration may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// Each part of it as long as is reasonable.
    Each,
    /// All of it until then: somebody waits.
    Until(Instant),
}

impl Pace {
    /// The end of a part that begins now.
    fn end(self, reasonable: Duration) -> Instant {
        match self {
            Self::Each => Instant::now() + reasonable,
            Self::Until(end) => end,
        }
    }
}

/// What a server asks for before it takes a new vat.
enum Asked {
    Invite(Invite),
    Work(Task),
}

impl Inner {
    /// Offers a record to a server, and again with what the server asks for before it takes a new vat.
    pub(super) async fn offer_until_admitted(
        &self,
        entry: &Entry,
        condition: Condition,
        pace: Pace,
    ) -> Result<Taken, Offered> {
        let mut admission = Admission::None;
        for left in (0..=limits::ADMISSIONS).rev() {
            let result = self.offer_within(entry, condition, pace, &admission).await;
            let Err(Offered { sent: Some(sent), error }) = &result else { return result };
            admission = match self.asked(entry, &admission, error).filter(|_| left > 0) {
                None => return result,
                Some(Asked::Invite(invite)) => Admission::Invite(invite),
                Some(Asked::Work(task)) => {
                    let begun = Instant::now();
                    let solved = self.worker.solve(task, sent.id());
                    match timeout_at(pace.end(limits::WORK_DEADLINE), solved).await {
                        Ok(Some(nonce)) => Admission::Work(nonce),
                        Ok(None) => return result,
                        // The server has not asked for patience: without it the work is begun anew soon, and in peace.
                        Err(_) => return Err(timed_out(begun)),
                    }
                }
            };
        }
        // Proof: the last turn of the loop returns.
        Err(timed_out(Instant::now()))
    }

    async fn offer_within(
        &self,
        entry: &Entry,
        condition: Condition,
        pace: Pace,
        admission: &Admission,
    ) -> Result<Taken, Offered> {
        let begun = Instant::now();
        let registered = async {
            let mut last = entry.last.lock().await;
            let result = self.offer(&entry.place, condition, *last, admission).await;
            if let Ok(Taken { record, .. }) = &result {
                *last = Some(record.order());
                self.source.accepted(record);
            }
            result
        };
        timeout_at(pace.end(self.register_deadline), registered).await.unwrap_or_else(|_| Err(timed_out(begun)))
    }

    /// What a refusal asks for that this publisher can show, and has not just shown.
    fn asked(&self, entry: &Entry, shown: &Admission, error: &RegisterError) -> Option<Asked> {
        match error {
            RegisterError::Refused(Refused { code: ErrorCode::VlsWork, task, .. }) => task.map(Asked::Work),
            RegisterError::Refused(Refused { code: ErrorCode::VlsInvite, .. }) => {
                let has_shown = matches!(shown, Admission::Invite(_));
                self.invites.of(&entry.place).filter(|_| !has_shown).cloned().map(Asked::Invite)
            }
            _ => None,
        }
    }
}

fn timed_out(begun: Instant) -> Offered {
    Offered { sent: None, error: Failure::Timeout { after: begun.elapsed() }.into() }
}
