//! The one session with one vat that all live references to it share: the shell around [`crate::reconnect`].
//!
//! Everything that goes on in the background holds the link weakly: when the last reference is gone the session
//! is closed, timers end, and the outcome of an attempt is dropped.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    rc::{Rc, Weak},
};

use schemas::{ErrorCode, Hints, VatId, vat_capnp};
use tokio::{
    task::{AbortHandle, spawn_local},
    time::{sleep, timeout},
};
use transport::{ResumeToken, Session, SessionEnd, Silence};

use super::{
    Attempted, LiveError, LiveNetwork,
    board::{Board, Reader},
};
use crate::{
    clock::{Clock, Randomness},
    limits,
    reconnect::{Reconnect, ReconnectAction, ReconnectEvent, ReconnectTiming},
};

/// What all links of one table share.
pub(super) struct World {
    pub(super) network: Box<dyn LiveNetwork>,
    pub(super) clock: Rc<dyn Clock>,
    pub(super) random: RefCell<Box<dyn Randomness>>,
    pub(super) timing: ReconnectTiming,
}

/// A session that counts.
pub(super) struct Up {
    pub(super) session: Rc<Session>,
    pub(super) vat: vat_capnp::vat::Client,
    pub(super) generation: u64,
}

/// How the link stands, for those who wait for it.
#[derive(Clone, Default)]
pub(super) struct View {
    pub(super) up: Option<Rc<Up>>,
    /// Attempts that have come to their end, whatever it was.
    pub(super) attempts: u64,
    /// Why the last attempt failed, if it did.
    pub(super) failure: Option<LiveError>,
    /// The last session that ended, and why.
    pub(super) broken: Option<(u64, SessionEnd)>,
}

pub(super) struct Link {
    id: VatId,
    world: Rc<World>,
    hints: RefCell<Hints>,
    machine: RefCell<Reconnect>,
    view: Board<View>,
    /// How many wait or watch.
    interest: Cell<usize>,
    timer: RefCell<Option<AbortHandle>>,
    /// Names the last session to its peer, until there is another.
    lost: Cell<Option<ResumeToken>>,
    /// Waits for the session that counts to have ended.
    successor: RefCell<Option<Rc<Session>>>,
    this: Weak<Self>,
}

impl Link {
    pub(super) fn new(id: VatId, world: Rc<World>) -> Rc<Self> {
        let machine = RefCell::new(Reconnect::new(world.timing));
        Rc::new_cyclic(|this| Self {
            id,
            world,
            hints: RefCell::default(),
            machine,
            view: Board::new(View::default()),
            interest: Cell::new(0),
            timer: RefCell::default(),
            lost: Cell::new(None),
            successor: RefCell::default(),
            this: this.clone(),
        })
    }

    pub(super) fn id(&self) -> VatId {
        self.id
    }

    /// The next attempt uses these. Those of the newest reference are the newest.
    pub(super) fn set_hints(&self, hints: &Hints) {
        if *hints != Hints::default() {
            *self.hints.borrow_mut() = hints.clone();
        }
    }

    pub(super) fn view(&self) -> Reader<View> {
        self.view.reader()
    }

    /// The session, if there is one that has not ended. One that has is still the one that counts until all its
    /// capabilities are broken; nobody is given it any more.
    pub(super) fn up(&self) -> Option<Rc<Up>> {
        self.view.look().up.clone().filter(|up| up.session.end().is_none())
    }

    /// The session, or the one that the attempt under way brings, or the next attempt.
    pub(super) async fn reach(&self) -> Result<Rc<Up>, LiveError> {
        if let Some(up) = self.up() {
            return Ok(up);
        }
        let mut view = self.view();
        let attempts = view.look().attempts;
        let _interest = self.want();
        loop {
            if let Some(up) = self.up() {
                return Ok(up);
            }
            let failure = {
                let view = view.look();
                if view.attempts > attempts { view.failure.clone() } else { None }
            };
            if let Some(failure) = failure {
                return Err(failure);
            }
            view.changed().await;
        }
    }

    /// Somebody wants the vat to be reached, until the guard is dropped.
    pub(super) fn want(&self) -> Interest {
        self.interest.set(self.interest.get() + 1);
        self.handle(ReconnectEvent::Wanted);
        Interest { link: self.this.clone() }
    }

    /// The vat has come to this epoch.
    pub(super) fn saw(&self, epoch: u64) {
        self.handle(ReconnectEvent::Seen { epoch });
    }

    // ---- what happens

    /// Takes an event that brings nothing with it.
    fn handle(&self, event: ReconnectEvent) {
        for action in self.judge(event) {
            match action {
                ReconnectAction::Connect => self.connect(),
                ReconnectAction::Break => self.end_current(ErrorCode::SessionSuperseded),
                // Asked for only when a session comes; see `connected`.
                ReconnectAction::Keep { .. } | ReconnectAction::Discard { .. } | ReconnectAction::Replace => {}
            }
        }
        self.set_timer();
    }

    fn judge(&self, event: ReconnectEvent) -> Vec<ReconnectAction> {
        let now = self.world.clock.now().elapsed;
        self.machine.borrow_mut().handle(now, event, &mut **self.world.random.borrow_mut())
    }

    fn connect(&self) {
        let attempt = Attempted { id: self.id, hints: self.hints.borrow().clone(), lost: self.lost.get() };
        let (deadline, id, this) = (self.world.timing.attempt, self.id, self.this.clone());
        let attempt = timeout(deadline, self.world.network.connect(attempt));
        spawn_local(async move {
            let outcome = attempt.await.unwrap_or(Err(LiveError::Timeout { id, after: deadline }));
            let Some(link) = this.upgrade() else { return };
            match outcome {
                Ok(session) => link.connected(session),
                Err(error) => link.failed(error),
            }
        });
    }

    fn connected(&self, session: Rc<Session>) {
        let found = session.peer().epoch;
        for action in self.judge(ReconnectEvent::Connected { epoch: found }) {
            match action {
                ReconnectAction::Keep { generation } => return self.keep(session, generation),
                ReconnectAction::Discard { known } => {
                    session.dismiss(ErrorCode::SessionSuperseded);
                    self.failed_with(LiveError::Stale { id: self.id, found, known });
                }
                ReconnectAction::Replace => {
                    self.successor.replace(Some(session));
                    return self.end_current(ErrorCode::SessionStalled);
                }
                ReconnectAction::Connect => self.connect(),
                ReconnectAction::Break => self.end_current(ErrorCode::SessionSuperseded),
            }
        }
        self.set_timer();
    }

    fn keep(&self, session: Rc<Session>, generation: u64) {
        self.lost.set(None);
        let up = Rc::new(Up { vat: session.bootstrap(), session, generation });
        spawn_local(listen(self.this.clone(), &up.session, self.world.clock.clone()));
        let (closed, this) = (up.session.when_closed(), self.this.clone());
        spawn_local(async move {
            let end = closed.await;
            if let Some(link) = this.upgrade() {
                link.ended(generation, end);
            }
        });
        self.view.change(|view| {
            view.attempts += 1;
            view.failure = None;
            view.up = Some(up);
        });
    }

    fn failed(&self, error: LiveError) {
        self.failed_with(error);
        self.handle(ReconnectEvent::Failed);
    }

    fn failed_with(&self, error: LiveError) {
        tracing::debug!(id = %self.id, %error, "an attempt to reach a vat failed");
        self.view.change(|view| {
            view.attempts += 1;
            view.failure = Some(error);
        });
    }

    fn ended(&self, generation: u64, end: SessionEnd) {
        let Some(up) = self.view.look().up.clone().filter(|up| up.generation == generation) else { return };
        self.lost.set(up.session.resume_token());
        self.view.change(|view| {
            view.up = None;
            view.broken = Some((generation, end));
        });
        self.handle(ReconnectEvent::Ended);
        let successor = self.successor.borrow_mut().take();
        if let Some(successor) = successor {
            self.connected(successor);
        }
    }

    /// The peer of `session`, if that is the one that counts, has been silent for too long.
    fn doubt(&self, session: &Session) {
        if self.view.look().up.as_ref().is_some_and(|up| std::ptr::eq(&*up.session, session)) {
            // Should the attempt succeed, the vat is to end its half.
            self.lost.set(session.resume_token());
            self.handle(ReconnectEvent::Silent);
        }
    }

    fn end_current(&self, code: ErrorCode) {
        if let Some(up) = &self.view.look().up {
            up.session.dismiss(code);
        }
    }

    fn set_timer(&self) {
        let timer = self.machine.borrow().wake_at().map(|at| {
            let wait = at.saturating_sub(self.world.clock.now().elapsed);
            let this = self.this.clone();
            spawn_local(async move {
                sleep(wait).await;
                if let Some(link) = this.upgrade() {
                    link.handle(ReconnectEvent::Tick);
                }
            })
            .abort_handle()
        });
        if let Some(old) = std::mem::replace(&mut *self.timer.borrow_mut(), timer) {
            old.abort();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.get_mut() {
            timer.abort();
        }
    }
}

/// Tells a link when the peer of its session is silent, until the session has ended.
fn listen(link: Weak<Link>, session: &Rc<Session>, clock: Rc<dyn Clock>) -> impl Future<Output = ()> + 'static {
    let (closed, silence) =
        (session.when_closed(), session.traffic().map(|traffic| Silence::new(clock.now().elapsed, traffic)));
    // Who listens keeps nothing open.
    let session = Rc::downgrade(session);
    async move {
        let Some(mut silence) = silence else { return };
        let look = async {
            loop {
                sleep(limits::SILENCE_INTERVAL).await;
                let (Some(link), Some(session)) = (link.upgrade(), session.upgrade()) else { return };
                let Some(traffic) = session.traffic() else { return };
                if silence.after(clock.now().elapsed, traffic) >= limits::SILENCE {
                    link.doubt(&session);
                }
            }
        };
        futures::pin_mut!(closed, look);
        futures::future::select(closed, look).await;
    }
}

/// That somebody wants the vat to be reached.
pub(super) struct Interest {
    link: Weak<Link>,
}

impl Drop for Interest {
    fn drop(&mut self) {
        let Some(link) = self.link.upgrade() else { return };
        link.interest.set(link.interest.get() - 1);
        if link.interest.get() == 0 {
            link.handle(ReconnectEvent::Unwanted);
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link(vat://{})", self.id)
    }
}
