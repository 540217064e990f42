//! The sessions of a vat that is awake: who is let in, and what each is given. Who stays is decided by
//! [`transport::Sessions`].

use std::{cell::OnceCell, rc::Rc};

use schemas::{ErrorCode, VatId, vat_capnp};
use transport::{
    Endpoint, Greeting, Incoming, LocalListener, LocalStream, OutputGate, Session, SessionLimits, SessionOptions,
    peers::PeerLimits,
};

use crate::{
    core::Vat,
    limits::{ACCEPT_PAUSE, CLOSE_DEADLINE, DRAIN_DEADLINE},
    service::VatService,
};

/// All sessions of one vat.
#[derive(Clone)]
pub(super) struct Sessions {
    table: transport::Sessions,
    gate: OutputGate,
    greeting: Greeting,
}

impl Sessions {
    pub(super) fn new(ours: VatId, gate: OutputGate, epoch: u64, incarnation: [u8; 16]) -> Self {
        let greeting = Greeting { epoch, incarnation, program: crate::PROGRAM.to_owned() };
        Self { table: transport::Sessions::new(ours, PeerLimits::default()), gate, greeting }
    }

    pub(super) fn count(&self) -> usize {
        self.table.count()
    }

    /// Accepts sessions from the network and from this machine, each in a task of its own, until dropped.
    pub(super) async fn accept(
        &self,
        endpoint: &Endpoint,
        vat: &Rc<Vat>,
        listener: LocalListener,
        owner: &vat_capnp::owner::Client,
    ) {
        loop {
            tokio::select! {
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => self.admit_remote(incoming, vat.clone()),
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

    fn admit_remote(&self, incoming: Incoming, vat: Rc<Vat>) {
        let Some(handshake) = self.table.begin(incoming) else { return };
        // One for each session: it offers content on the streams beside that session's, and on no others.
        let begun = Rc::new(OnceCell::new());
        let public: vat_capnp::vat::Client = capnp_rpc::new_client(VatService::over(vat, begun.clone()));
        let options = self.options(public.client);
        tokio::task::spawn_local(async move {
            match handshake.finish(|_| options).await {
                // Set once, so it is never set already.
                Ok(session) => drop(begun.set(Rc::downgrade(&session))),
                Err(error) => tracing::debug!(%error, "no session"),
            }
        });
    }

    fn admit_local(&self, stream: LocalStream, owner: vat_capnp::owner::Client) {
        let (table, options) = (self.table.clone(), self.options(owner.client));
        tokio::task::spawn_local(async move {
            match Session::accept_local(stream, options).await {
                // Refused only while the vat falls asleep; the peer was told.
                Ok(session) => drop(table.admit_local(session)),
                Err(error) => tracing::debug!(%error, "no local session"),
            }
        });
    }

    fn options(&self, bootstrap: capnp::capability::Client) -> SessionOptions {
        SessionOptions {
            greeting: self.greeting.clone(),
            bootstrap: Some(bootstrap),
            gate: self.gate.clone(),
            limits: SessionLimits::default(),
        }
    }

    /// Lets nobody in any more, answers what was asked, and ends every session.
    pub(super) async fn drain(&self) {
        // A peer that is gone without a word must not keep the vat awake: the connection ends with the process.
        self.table.drain(ErrorCode::VatStopping, DRAIN_DEADLINE, CLOSE_DEADLINE).await;
    }
}
