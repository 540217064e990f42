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

#[cfg(test)]
mod tests {
    use capnp::capability::Promise;
    use schemas::Coded;
    use tokio::{task::LocalSet, time::advance};
    use transport::{LocalListener, LocalStream, OutputGate, SessionLimits, dial_local};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    fn options() -> ForeignOptions {
        ForeignOptions {
            bootstrap: capnp_rpc::new_broken_cap(capnp::Error::failed("nothing here".to_owned())),
            restore: Rc::new(|_| Promise::err(capnp::Error::failed(String::new()))),
            gate: OutputGate::always_open(),
            limits: SessionLimits::default(),
        }
    }

    /// A client that has a place and says nothing: its own end, and its session.
    async fn enter(clients: &ForeignClients, place: Place) -> (LocalStream, Rc<Session>) {
        let folder = tempfile::tempdir().unwrap();
        let listener = LocalListener::bind(&folder.path().join("socket")).unwrap();
        let (own, accepted) = tokio::join!(dial_local(listener.path()), listener.accept());
        let (clients_too, accepted) = (clients.clone(), accepted.unwrap());
        tokio::task::spawn_local(async move { clients_too.serve(accepted.into(), options(), place).await });
        let before = clients.count();
        while clients.count() == before {
            tokio::task::yield_now().await;
        }
        let session = clients.inner.open.borrow().last().cloned();
        (own.unwrap(), session.unwrap())
    }

    #[test]
    fn the_client_that_is_idle_for_the_longest_makes_room_but_not_at_once() {
        run(async {
            let clients = ForeignClients::new(2);
            let (_one, first) = enter(&clients, clients.place_or_eviction().unwrap()).await;
            advance(EVICTABLE_AFTER / 2).await;
            let (_two, second) = enter(&clients, clients.place_or_eviction().unwrap()).await;
            assert!(clients.place_or_eviction().is_none(), "both may only have paused");
            advance(EVICTABLE_AFTER / 2).await;
            let place = clients.place_or_eviction();
            assert_eq!(first.closed().await.code(), ErrorCode::SessionEvicted);
            assert!(second.end().is_none());
            assert!(clients.place_or_eviction().is_none(), "the other one is not idle for long enough");
            drop(place);
            assert!(clients.place_or_eviction().is_some());
        });
    }

    #[test]
    fn one_who_waits_for_a_place_gets_that_of_the_next_who_leaves() {
        run(async {
            let clients = ForeignClients::new(1);
            let (own, _session) = enter(&clients, clients.place().await).await;
            let waiting = clients.place();
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            drop(own);
            drop(waiting.await);
            assert_eq!(clients.count(), 0);
        });
    }

    #[test]
    fn nobody_stays_after_a_drain_nor_enters_during_it() {
        run(async {
            let clients = ForeignClients::new(2);
            let late = clients.place().await;
            let (_own, session) = enter(&clients, clients.place().await).await;
            clients.drain(ErrorCode::VatStopping).await;
            assert_eq!(session.end().map(|end| end.code()), Some(ErrorCode::VatStopping));
            let folder = tempfile::tempdir().unwrap();
            let listener = LocalListener::bind(&folder.path().join("socket")).unwrap();
            let (_other, accepted) = tokio::join!(dial_local(listener.path()), listener.accept());
            // Ends by itself, since the session does.
            clients.serve(accepted.unwrap().into(), options(), late).await;
            assert_eq!(clients.count(), 0);
        });
    }
}
