//! The sessions of a vat that is awake: who is connected, and how they end.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use schemas::{ErrorCode, vat_capnp};
use transport::{
    Endpoint, Greeting, Incoming, LocalListener, LocalStream, OutputGate, PeerConnection, Session, SessionLimits,
    SessionOptions,
};

use crate::limits::{ACCEPT_PAUSE, CLOSE_DEADLINE, MAX_SESSIONS};

/// All sessions of one vat.
#[derive(Clone)]
pub(super) struct Sessions {
    inner: Rc<Inner>,
}

struct Inner {
    gate: OutputGate,
    greeting: Greeting,
    next: Cell<u64>,
    /// Handshakes under way count as well: they cost as much.
    pending: Cell<usize>,
    /// Nobody is let in any more.
    stopping: Cell<bool>,
    open: RefCell<HashMap<u64, Open>>,
}

struct Open {
    session: Rc<Session>,
    /// What it runs over; `None`: the local socket.
    connection: Option<PeerConnection>,
}

impl Sessions {
    pub(super) fn new(gate: OutputGate, epoch: u64, incarnation: [u8; 16]) -> Self {
        let greeting = Greeting { epoch, incarnation, program: crate::PROGRAM.to_owned() };
        Self {
            inner: Rc::new(Inner {
                gate,
                greeting,
                next: Cell::new(0),
                pending: Cell::new(0),
                stopping: Cell::new(false),
                open: RefCell::default(),
            }),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.inner.open.borrow().len()
    }

    /// Accepts sessions from the network and from this machine, each in a task of its own, until dropped.
    pub(super) async fn accept(
        &self,
        endpoint: &Endpoint,
        public: &vat_capnp::vat::Client,
        listener: LocalListener,
        owner: &vat_capnp::owner::Client,
    ) {
        loop {
            tokio::select! {
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => self.admit_remote(incoming, public.clone()),
                    None => return,
                },
                stream = listener.accept() => match stream {
                    Ok(stream) => self.admit_local(stream, owner.clone()),
                    Err(error) => {
                        // Too many open files, say: asking again at once would only burn the processor.
                        tracing::warn!(%error, "the local socket failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit_remote(&self, incoming: Incoming, public: vat_capnp::vat::Client) {
        let sessions = self.clone();
        if self.is_full() || self.inner.stopping.get() {
            // Dropped is refused: the peer hears of it at once.
            return drop(incoming);
        }
        let options = self.options(public.client);
        self.inner.pending.set(self.inner.pending.get() + 1);
        tokio::task::spawn_local(async move {
            let begun = async {
                let connection =
                    incoming.accept().await.map_err(|error| tracing::debug!(%error, "no connection")).ok()?;
                let session = Session::accept(connection.clone(), options).await;
                let session = session.map_err(|error| tracing::debug!(%error, "no session")).ok()?;
                Some((session, connection))
            }
            .await;
            sessions.inner.pending.set(sessions.inner.pending.get() - 1);
            if let Some((session, connection)) = begun {
                sessions.keep(session, Some(connection)).await;
            }
        });
    }

    fn admit_local(&self, stream: LocalStream, owner: vat_capnp::owner::Client) {
        // The owner is admitted however full it is: somebody must be able to look and to end it.
        let sessions = self.clone();
        let options = self.options(owner.client);
        tokio::task::spawn_local(async move {
            match Session::accept_local(stream, options).await {
                Ok(session) => sessions.keep(session, None).await,
                Err(error) => tracing::debug!(%error, "no local session"),
            }
        });
    }

    fn is_full(&self) -> bool {
        self.inner.open.borrow().len() + self.inner.pending.get() >= MAX_SESSIONS
    }

    fn options(&self, bootstrap: capnp::capability::Client) -> SessionOptions {
        SessionOptions {
            greeting: self.inner.greeting.clone(),
            bootstrap: Some(bootstrap),
            gate: self.inner.gate.clone(),
            limits: SessionLimits::default(),
        }
    }

    /// Keeps a session until it ends. A vat that comes back with a higher epoch supersedes its old sessions.
    async fn keep(&self, session: Session, connection: Option<PeerConnection>) {
        if self.inner.stopping.get() {
            // It shook hands while the vat fell asleep.
            connection.iter().for_each(|connection| connection.close(ErrorCode::VatStopping));
            return;
        }
        let number = self.inner.next.replace(self.inner.next.get() + 1);
        let session = Rc::new(session);
        let (peer, epoch) = (session.peer().id, session.peer().epoch);
        for old in self.inner.open.borrow().values() {
            if peer.is_some() && old.session.peer().id == peer && old.session.peer().epoch < epoch {
                old.connection.iter().for_each(|connection| connection.close(ErrorCode::SessionSuperseded));
            }
        }
        self.inner.open.borrow_mut().insert(number, Open { session: session.clone(), connection });
        let end = session.closed().await;
        tracing::debug!(%end, "session ended");
        self.inner.open.borrow_mut().remove(&number);
    }

    /// Lets nobody in any more, and ends every session, each after the answers that it may still send.
    pub(super) async fn close_all(&self) {
        self.inner.stopping.set(true);
        let open: Vec<Rc<Session>> = self.inner.open.borrow().values().map(|open| open.session.clone()).collect();
        open.iter().for_each(|session| session.close());
        // A peer that is gone without a word must not keep the vat awake: the connection ends with the process.
        let closed = futures::future::join_all(open.iter().map(|session| session.closed()));
        let _ = tokio::time::timeout(CLOSE_DEADLINE, closed).await;
    }
}
