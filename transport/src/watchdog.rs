//! Notices when a thread of sessions hangs, and says whose session it was busy with.
//!
//! All sessions of a thread take turns, and nothing can take the thread from one that does not end its turn: a loop
//! without end in the RPC layer or in an object stops them all, and no timer of that thread will tell. So another
//! thread looks. The watched one beats as long as its event loop goes round; who looks counts the looks in a row
//! without a beat between them.
//!
//! Looks are counted and not time, because time passes for who is stopped, too: after a debugger, a `SIGSTOP` or a
//! machine that slept, a clock says that the thread was silent for an hour, but only one look has found it so.
//!
//! What to do about it is the program's decision ([`log_and_abort`] is that of ours): nobody can end a hung thread
//! without the process, and only the process's supervisor can start it again.

use std::{
    cell::RefCell,
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use schemas::VatId;

use crate::limits;

/// How closely a thread is watched.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WatchdogConfig {
    /// Between two looks ([`limits::WATCHDOG_LOOK`]). The thread beats twice in that time.
    pub look: Duration,
    /// After so many looks in a row without a beat it hangs ([`limits::LOOKS_UNTIL_HUNG`]).
    pub hung_after: u32,
    /// After so many there is no hope for it ([`limits::LOOKS_UNTIL_HOPELESS`]).
    pub hopeless_after: u32,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self {
            look: limits::WATCHDOG_LOOK,
            hung_after: limits::LOOKS_UNTIL_HUNG,
            hopeless_after: limits::LOOKS_UNTIL_HOPELESS,
        }
    }
}

/// A thread that does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hang {
    /// How long it has been found so, at least.
    pub found_for: Duration,
    /// What it is busy with.
    pub busy_with: Busy,
    /// Whether there is hope, or it has gone on again.
    pub stage: HangStage,
}

/// How it stands with a thread that hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangStage {
    /// It does not go on.
    Hung,
    /// It has not gone on for so long that it never will.
    Hopeless,
    /// It went on after all.
    Recovered,
}

/// What a thread is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// The session with this peer: the RPC layer, or an object that it calls.
    Session(VatId),
    /// A session on a local socket.
    LocalSession,
    /// Something else.
    Other,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(peer) => write!(f, "the session with {peer}"),
            Self::LocalSession => f.write_str("a session on a local socket"),
            Self::Other => f.write_str("something that is no session"),
        }
    }
}

/// Watches the thread that started it, until dropped.
#[derive(Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    beating: tokio::task::JoinHandle<()>,
    looking: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    beats: AtomicU64,
    busy: Mutex<Busy>,
    is_over: Mutex<bool>,
    over: Condvar,
}

thread_local! {
    /// Who watches this thread.
    static WATCHED: RefCell<Weak<Shared>> = const { RefCell::new(Weak::new()) };
}

impl Watchdog {
    /// Has the calling thread watched. `report` is called on another thread, once for each [`HangStage`] that is
    /// reached. Sessions that begin on the thread from now on are named in it.
    ///
    /// # Errors
    /// The second thread could not be started.
    ///
    /// # Panics
    /// Not called on a tokio `LocalSet`.
    pub fn start(config: WatchdogConfig, report: impl FnMut(&Hang) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            beats: AtomicU64::new(0),
            busy: Mutex::new(Busy::Other),
            is_over: Mutex::new(false),
            over: Condvar::new(),
        });
        let looking = std::thread::Builder::new().name("watchdog".to_owned()).spawn({
            let (shared, config) = (shared.clone(), config.clone());
            move || look(&shared, &config, report)
        })?;
        WATCHED.set(Arc::downgrade(&shared));
        let beating = tokio::task::spawn_local({
            let shared = shared.clone();
            async move {
                let mut interval = tokio::time::interval(config.look / 2);
                interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    interval.tick().await;
                    shared.beats.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { shared, beating, looking: Some(looking) })
    }

    /// Has the calling thread watched as our programs have theirs: as closely as by default, and with
    /// [`log_and_abort`]. Without a second thread the program works as well, unwatched, and says so.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use = "dropped, it watches no more"]
    pub fn of_a_program() -> Option<Self> {
        Self::start(WatchdogConfig::default(), log_and_abort)
            .inspect_err(|error| tracing::warn!(%error, "nobody will notice if the event loop hangs"))
            .ok()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.beating.abort();
        *locked(&self.shared.is_over) = true;
        self.shared.over.notify_all();
        if let Some(looking) = self.looking.take() {
            // It panics only if the report did, which said so itself.
            let _ = looking.join();
        }
    }
}

/// The decision of our programs: say what hangs, and when there is no hope end the process, so that a supervisor
/// starts it again. An abort runs no code of the process that may wait for the thread; what was acknowledged is
/// durable, as after any crash.
pub fn log_and_abort(hang: &Hang) {
    let (busy_with, found_for) = (hang.busy_with, hang.found_for);
    match hang.stage {
        HangStage::Hung => tracing::error!(%busy_with, ?found_for, "the event loop hangs; no session is served"),
        HangStage::Recovered => tracing::warn!(?found_for, "the event loop goes on again"),
        HangStage::Hopeless => {
            tracing::error!(%busy_with, ?found_for, "the event loop hangs for good; this process ends");
            std::process::abort();
        }
    }
}

/// What a session tells whoever watches its thread.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    shared: Weak<Shared>,
    as_session: Busy,
}

impl Watched {
    /// For a session that begins on this thread.
    pub(crate) fn new(peer: Option<VatId>) -> Self {
        let as_session = peer.map_or(Busy::LocalSession, Busy::Session);
        Self { shared: WATCHED.with_borrow(Weak::clone), as_session }
    }

    /// Does `work` on behalf of the session.
    pub(crate) fn busy<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(shared) = self.shared.upgrade() else { return work() };
        // A panic that passes by leaves the session's name, which is where it came from; the next turn replaces it.
        *locked(&shared.busy) = self.as_session;
        let done = work();
        *locked(&shared.busy) = Busy::Other;
        done
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nobody panics while holding one; and what is in them is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look(shared: &Shared, config: &WatchdogConfig, mut report: impl FnMut(&Hang)) {
    let mut silence = Silence::default();
    let mut is_over = locked(&shared.is_over);
    while !*is_over {
        is_over = shared.over.wait_timeout(is_over, config.look).unwrap_or_else(PoisonError::into_inner).0;
        if *is_over {
            return;
        }
        if let Some((stage, looks)) = silence.look(shared.beats.load(Ordering::Relaxed), config) {
            let busy_with = *locked(&shared.busy);
            report(&Hang { found_for: config.look.saturating_mul(looks), busy_with, stage });
        }
    }
}

/// Looks in a row without a beat.
#[derive(Debug, Default)]
struct Silence {
    beats: u64,
    looks: u32,
}

impl Silence {
    /// One look, which finds so many beats since the beginning. Tells what there is to report, and how many looks
    /// were in vain.
    fn look(&mut self, beats: u64, config: &WatchdogConfig) -> Option<(HangStage, u32)> {
        if beats != self.beats {
            self.beats = beats;
            let looks = std::mem::take(&mut self.looks);
            return (looks >= config.hung_after).then_some((HangStage::Recovered, looks));
        }
        self.looks = self.looks.saturating_add(1);
        let stage = if self.looks == config.hopeless_after {
            HangStage::Hopeless
        } else if self.looks == config.hung_after {
            HangStage::Hung
        } else {
            return None;
        };
        Some((stage, self.looks))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn config() -> WatchdogConfig {
        WatchdogConfig { look: Duration::from_millis(10), hung_after: 3, hopeless_after: 6 }
    }

    #[test]
    fn looks_without_a_beat_are_counted_and_each_stage_is_told_once() {
        let mut silence = Silence::default();
        let mut looks = |beats: &[u64]| beats.iter().map(|beats| silence.look(*beats, &config())).collect::<Vec<_>>();
        assert_eq!(looks(&[1, 2, 2, 2, 3]), [None; 5], "two looks are no hang");
        assert_eq!(looks(&[3, 3, 3]), [None, None, Some((HangStage::Hung, 3))]);
        assert_eq!(looks(&[3, 3, 3]), [None, None, Some((HangStage::Hopeless, 6))]);
        assert_eq!(looks(&[3, 4, 5]), [None, Some((HangStage::Recovered, 7)), None]);
    }

    #[test]
    fn a_thread_that_does_not_go_on_is_noticed_and_told_with_what_it_is_busy() {
        let (sender, reports) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let _watchdog = Watchdog::start(config(), move |hang| sender.send(hang.clone()).unwrap()).unwrap();
            let watched = Watched::new(None);
            // This thread now does nothing but wait for what the other finds: it hangs.
            let (hung, hopeless) = watched.busy(|| (reports.recv().unwrap(), reports.recv().unwrap()));
            assert_eq!((hung.stage, hung.busy_with), (HangStage::Hung, Busy::LocalSession));
            assert_eq!((hopeless.stage, hopeless.busy_with), (HangStage::Hopeless, Busy::LocalSession));
            assert!(hopeless.found_for > hung.found_for);
            let recovered = loop {
                tokio::task::yield_now().await;
                if let Ok(report) = reports.try_recv() {
                    break report;
                }
            };
            assert_eq!((recovered.stage, recovered.busy_with), (HangStage::Recovered, Busy::Other));
        });
    }

    #[test]
    fn an_unwatched_thread_works_as_well() {
        assert_eq!(Watched::new(None).busy(|| 7), 7);
    }
}
