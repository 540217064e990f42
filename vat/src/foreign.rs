//! Foreign clients that are connected: how many there may be, who makes room, and how they are sent away.
//!
//! Beside [`transport::Sessions`], which counts peers by the ids that they have proven: these have proven none.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use schemas::ErrorCode;
use tokio::{sync::Notify, time::timeout};
use transport::{ForeignOptions, ForeignStream, Session, limits::EVICTABLE_AFTER};

use crate::limits::{CLOSE_DEADLINE, DRAIN_DEADLINE};

/// The foreign clients of one listener. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct ForeignClients {
    inner: Rc<Inner>,
}

struct Inner {
    most: usize,
    /// Places that are taken, by those who still shake hands too.
    taken: Cell<usize>,
    /// Told when a place has become free.
    left: Notify,
    open: RefCell<Vec<Rc<Session>>>,
    /// Nobody is let in any more: what newcomers are told.
    stopping: Cell<Option<ErrorCode>>,
}

/// The place of one client, from before its handshake to its end.
pub(crate) struct Place {
    inner: Rc<Inner>,
}

impl Place {
    fn of(inner: &Rc<Inner>) -> Self {
        inner.taken.set(inner.taken.get() + 1);
        Self { inner: inner.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.taken.set(self.inner.taken.get() - 1);
        self.inner.left.notify_one();
    }
}

impl ForeignClients {
    /// Room for so many.
    pub(crate) fn new(most: usize) -> Self {
        let inner = Inner {
            most,
            taken: Cell::new(0),
            left: Notify::new(),
            open: RefCell::default(),
            stopping: Cell::new(None),
        };
        Self { inner: Rc::new(inner) }
    }

    pub(crate) fn count(&self) -> usize {
        self.inner.open.borrow().len()
    }

    /// Waits until there is a place. Who dials meanwhile waits at the listener.
    pub(crate) async fn place(&self) -> Place {
        while self.inner.taken.get() >= self.inner.most {
            self.inner.left.notified().await;
        }
        Place::of(&self.inner)
    }

    /// A place, if need be that of the client that has been idle for the longest. `None` if none was idle for long
    /// enough: else a stranger could end every session that pauses between two calls.
    pub(crate) fn place_or_eviction(&self) -> Option<Place> {
        if self.inner.taken.get() >= self.inner.most {
            let open = self.inner.open.borrow();
            let idle = open.iter().filter(|session| session.end().is_none());
            let idle = idle.filter_map(|session| Some((session.idle_since()?, session)));
            let (_, longest) =
                idle.filter(|(since, _)| since.elapsed() >= EVICTABLE_AFTER).min_by_key(|(since, _)| *since)?;
            // It ends at once, so that for a moment only one more is there than may be.
            longest.dismiss(ErrorCode::SessionEvicted);
        }
        Some(Place::of(&self.inner))
    }

    /// Serves a client until its session ends.
    pub(crate) async fn serve(&self, stream: ForeignStream, options: ForeignOptions, _place: Place) {
        let session = Rc::new(Session::accept_foreign(stream, options));
        if let Some(code) = self.inner.stopping.get() {
            // It shook hands while the others were sent away.
            session.dismiss(code);
        }
        self.inner.open.borrow_mut().push(session.clone());
        let end = session.closed().await;
        tracing::debug!(%end, "a foreign client has left");
        self.inner.open.borrow_mut().retain(|other| !Rc::ptr_eq(other, &session));
    }

    /// Lets nobody in any more, refuses new calls with `code`, answers those that were taken, and ends every session.
    pub(crate) async fn drain(&self, code: ErrorCode) {
        self.inner.stopping.set(Some(code));
        let open = self.inner.open.borrow().clone();
        open.iter().for_each(|session| session.drain(code));
        let closed = futures::future::join_all(open.iter().map(|session| session.closed()));
        tokio::pin!(closed);
        if timeout(DRAIN_DEADLINE, &mut closed).await.is_err() {
            open.iter().for_each(|session| session.close());
            // A client that takes nothing must not keep the process: its connection ends with it.
            let _ = timeout(CLOSE_DEADLINE, closed).await;
        }
    }
}
