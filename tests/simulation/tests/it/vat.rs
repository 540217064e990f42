//! The host that is called: objects behind an output gate, on a disk that takes its time.

use std::{cell::RefCell, rc::Rc, time::Duration};

use capnp::capability::FromClientHook;
use schemas::{objects_capnp::counter, vat_capnp::vat};
use simulation::What;
use tokio::sync::mpsc;
use transport::{OutputGate, Sessions, peers::PeerLimits};

use crate::world::{Mutation, Process, pause};

/// The turn of a call: its number, and the call that the disk shall have.
type Turn = (u64, u64);

pub(crate) async fn serve(process: Process) {
    let process = Rc::new(process);
    let durable = process.world.disk.borrow().len() as u64;
    let is_open = process.world.mutation == Mutation::GateAlwaysOpen;
    let gate = if is_open { OutputGate::always_open() } else { OutputGate::new(durable) };
    let (turns, committing) = mpsc::unbounded_channel();
    tokio::task::spawn_local(commit(process.clone(), gate.clone(), committing));
    let ledger = Rc::new(Ledger { process: process.clone(), gate: gate.clone(), newest: RefCell::new(durable), turns });
    let bootstrap: vat::Client = capnp_rpc::new_client(Restorer(ledger));
    let sessions = Sessions::new(process.endpoint.id(), PeerLimits::default());
    while let Some(attempt) = process.endpoint.accept().await {
        let options = process.options(Some(bootstrap.client.clone()), gate.clone());
        let Some(handshake) = sessions.begin(attempt) else { continue };
        tokio::task::spawn_local(async move {
            // What fails here is seen by the caller.
            let _ = handshake.finish(|_| options).await;
        });
    }
}

/// Makes turns durable in groups, as the checkpoint does: all that queued while the last sync ran.
async fn commit(process: Rc<Process>, gate: OutputGate, mut turns: mpsc::UnboundedReceiver<Turn>) {
    while let Some(first) = turns.recv().await {
        let mut group = vec![first];
        while let Ok(next) = turns.try_recv() {
            group.push(next);
        }
        pause(process.draw_millis(1..=40)).await;
        process.world.disk.borrow_mut().extend(group.iter().map(|(_, call)| *call));
        if let Some((newest, _)) = group.last() {
            gate.release(*newest);
        }
    }
}

/// Gives the ledger for any secret.
struct Restorer(Rc<Ledger>);

impl vat::Server for Restorer {
    async fn restore(
        self: Rc<Self>,
        _params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let ledger: counter::Client = capnp_rpc::new_client_from_rc(self.0.clone());
        results.get().init_capability().set_as_capability(ledger.client.hook);
        Ok(())
    }
}

/// Writes down the number of each call.
struct Ledger {
    process: Rc<Process>,
    gate: OutputGate,
    newest: RefCell<u64>,
    turns: mpsc::UnboundedSender<Turn>,
}

impl counter::Server for Ledger {
    async fn add(
        self: Rc<Self>,
        params: counter::AddParams,
        mut results: counter::AddResults,
    ) -> Result<(), capnp::Error> {
        let call = params.get()?.get_by();
        let turn = {
            let mut newest = self.newest.borrow_mut();
            *newest += 1;
            *newest
        };
        self.process.see(What::Executed { call });
        if self.process.world.mutation != Mutation::GateAlwaysOpen {
            self.gate.produced(turn);
        }
        // The committer lives as long as the process.
        let _ = self.turns.send((turn, call));
        // Some answers take long, so that calls of very different age wait side by side.
        if call.is_multiple_of(5) {
            let patience = self.process.draw_millis(1..=2_000);
            pause(patience).await;
        }
        results.get().set_total(turn);
        Ok(())
    }
}

/// The ledger behind a vat's `restore`, without waiting for it.
pub(crate) fn restored(vat: &vat::Client) -> counter::Client {
    let restoring = vat.restore_request().send();
    FromClientHook::new(restoring.pipeline.get_capability().as_cap())
}

/// How long dialling may take: short, since a first packet that was lost in a cut that is over now is repeated
/// ever more rarely, while a new attempt sends a new first packet.
pub(crate) const DIAL_DEADLINE: Duration = Duration::from_secs(2);
