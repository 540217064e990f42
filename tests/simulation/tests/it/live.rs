//! A host that calls through live references: the same calls as those of [`crate::caller`], with sessions that
//! come and go underneath.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use schemas::{Coded, Hints, Secret, SturdyRef};
use simulation::{Host, What};
use tokio::task::spawn_local;
use transport::OutputGate;
use vls_client::{Finder, LiveConfig, LiveEvent, LiveRef, LiveRefs, Resolver, ResolverConfig};

use crate::{
    caller::{CAPABILITIES, Caller},
    clock::WallClock,
    world::{Process, key, pause, vat_address},
};

/// A caller with references, and the sessions that they have had.
struct LiveCaller {
    caller: Rc<Caller>,
    references: Vec<LiveRef>,
    /// By generation: the session's number in the trace.
    sessions: RefCell<BTreeMap<u64, u32>>,
}

pub(crate) async fn call(process: Process) {
    let caller = Caller::new(process);
    let references = references(&caller);
    let live = Rc::new(LiveCaller { caller, references, sessions: RefCell::default() });
    for holder in 0..CAPABILITIES {
        spawn_local(live.clone().hold(holder));
    }
    while live.caller.is_calling() {
        for _ in 0..live.caller.process.draw(1..=5) {
            let capability = live.caller.process.draw(0..=CAPABILITIES - 1);
            live.call(capability).await;
        }
        pause(live.caller.process.draw_millis(20..=800)).await;
    }
    // What waits is still to come; the run ends by its plan.
    std::future::pending().await
}

fn references(caller: &Rc<Caller>) -> Vec<LiveRef> {
    let process = &caller.process;
    let clock = Rc::new(WallClock::new(process.clock.clone()));
    let mut resolver = ResolverConfig::default();
    resolver.clock = clock.clone();
    let resolver = Resolver::new(process.endpoint.clone(), Vec::new(), None, resolver);
    let mut config = LiveConfig::default();
    config.clock = clock;
    config.randomness = Box::new({
        let caller = caller.clone();
        move || caller.process.draw_number()
    });
    let finder = Finder::new(resolver, {
        let caller = caller.clone();
        move || caller.process.options(None, OutputGate::always_open())
    });
    let refs = LiveRefs::new(finder, config);
    let reference = |holder: u8| {
        let hints = Hints { addresses: vec![vat_address().to_string()], ..Hints::default() };
        let secret = Secret::from_slice(&[holder + 1; 32]).expect("32 bytes");
        refs.of(&SturdyRef { id: key(Host::Vat).id(), secret, hints })
    };
    (0..CAPABILITIES).map(reference).collect()
}

impl LiveCaller {
    /// The number of a session; it is seen to begin when it is first asked for.
    fn session(&self, generation: u64, epoch: u64) -> u32 {
        *self.sessions.borrow_mut().entry(generation).or_insert_with(|| {
            let session = self.caller.process.world.next_session();
            self.caller.process.see(What::Began { session, epoch });
            session
        })
    }

    /// Is told what becomes of one reference.
    async fn hold(self: Rc<Self>, holder: u8) {
        let mut events = self.references[usize::from(holder)].events();
        loop {
            match events.next().await {
                LiveEvent::Live { generation, epoch } => _ = self.session(generation, epoch),
                LiveEvent::Broken { generation, reason } => {
                    // Proof: what is broken was told to be live.
                    let session = self.sessions.borrow()[&generation];
                    let code = reason.code().as_str().to_owned();
                    self.caller.process.see(What::Broken { session, holder, code });
                }
                LiveEvent::Failed(error) | LiveEvent::Refused { error, .. } => {
                    self.caller.process.see(What::NotBegun { code: error.code().as_str().to_owned() });
                }
                _ => {}
            }
        }
    }

    async fn call(&self, capability: u8) {
        match self.references[usize::from(capability)].get().await {
            Ok(held) => {
                let session = self.session(held.generation(), held.epoch());
                self.caller.make_call(session, capability, &held.capability());
            }
            // The holders write down why.
            Err(_) => pause(self.caller.process.draw_millis(10..=200)).await,
        }
    }
}
