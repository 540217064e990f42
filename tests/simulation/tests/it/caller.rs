//! A host that calls: it keeps a session with the vat by itself, makes calls on several capabilities at once, and
//! writes down what comes of each.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use schemas::{Coded, ErrorCode, RemoteError, objects_capnp::counter, vat_capnp::vat};
use simulation::{Host, Outcome, What};
use tokio::{task::spawn_local, time::Instant};
use transport::{OutputGate, ResumeToken, Session};

use crate::{
    vat::{DIAL_DEADLINE, restored},
    world::{Mutation, Process, key, pause, vat_address},
};

/// Capabilities of one session in use.
pub(crate) const CAPABILITIES: u8 = 3;

/// How long a caller that waits for answers bears to hear nothing before it gives its session up.
///
/// QUIC alone would come back late from a long silence: a sender whose window is full of what was never
/// acknowledged sends nothing but probes, each after twice the time of the one before.
const SUSPICION: Duration = Duration::from_secs(6);

/// What a caller knows besides its session.
pub(crate) struct Caller {
    pub(crate) process: Process,
    /// Calls that failed with their session, for the mutation that repeats them.
    failed: RefCell<Vec<u64>>,
    /// Names the last session to the vat, which may not know yet that it is over.
    lost: Cell<Option<ResumeToken>>,
    waiting: Cell<usize>,
    /// When a call last ended, or the first of those that wait was made.
    heard_at: Cell<Instant>,
}

pub(crate) async fn call(process: Process) {
    let caller = Caller::new(process);
    while caller.is_calling() {
        match caller.begin().await {
            Ok(session) => caller.use_session(session).await,
            Err(code) => {
                caller.process.see(What::NotBegun { code: code.as_str().to_owned() });
                pause(caller.process.draw_millis(10..=200)).await;
            }
        }
    }
    // What waits is still to come; the run ends by its plan.
    std::future::pending().await
}

impl Caller {
    pub(crate) fn new(process: Process) -> Rc<Self> {
        let (failed, lost) = (RefCell::default(), Cell::new(None));
        Rc::new(Self { process, failed, lost, waiting: Cell::new(0), heard_at: Cell::new(Instant::now()) })
    }

    pub(crate) fn is_calling(&self) -> bool {
        turmoil::sim_elapsed().expect("on a host") < self.process.world.plan.last_call_at
    }

    fn is_suspicious(&self) -> bool {
        self.waiting.get() > 0 && self.heard_at.get().elapsed() > SUSPICION
    }

    async fn begin(&self) -> Result<Session, ErrorCode> {
        let id = key(Host::Vat).id();
        let dialled = self.process.endpoint.dial(id, vat_address(), DIAL_DEADLINE).await;
        let connection = dialled.map_err(|error| error.code())?;
        let options = self.process.options(None, OutputGate::always_open());
        Session::open_again(connection, options, self.lost.take()).await.map_err(|error| error.code())
    }

    /// Makes calls until the session is over or no more are to be made.
    async fn use_session(self: &Rc<Self>, session: Session) {
        let number = self.process.world.next_session();
        self.process.see(What::Began { session: number, epoch: session.peer().epoch });
        self.heard_at.set(Instant::now());
        self.lost.set(session.resume_token());
        let vat: vat::Client = session.bootstrap();
        let capabilities: Vec<counter::Client> = (0..CAPABILITIES).map(|_| restored(&vat)).collect();
        let session = Rc::new(session);
        spawn_local({
            let (caller, session) = (self.clone(), session.clone());
            async move {
                let end = session.closed().await;
                caller.process.see(What::Broken { session: number, holder: 0, code: end.code().as_str().to_owned() });
            }
        });
        while session.end().is_none() && self.is_calling() {
            for _ in 0..self.process.draw(1..=5) {
                let capability = self.process.draw(0..=CAPABILITIES - 1);
                self.make_call(number, capability, &capabilities[usize::from(capability)]);
            }
            let interval = self.process.draw_millis(20..=800);
            // Who is told of the end goes on at once.
            let _ = session.or_ended(pause(interval)).await;
            if self.is_suspicious() && session.end().is_none() {
                self.process.see(What::GaveUp { session: number });
                session.close();
            }
        }
        if session.end().is_some() {
            // A capability that is known to be broken.
            self.make_call(number, 0, &capabilities[0]);
        } else {
            // The last calls are answered, or fail, in their own time.
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn make_call(self: &Rc<Self>, session: u32, capability: u8, object: &counter::Client) {
        let retries = self.process.world.mutation == Mutation::SilentRetry;
        let again = if retries { self.failed.borrow_mut().pop() } else { None };
        let call = again.unwrap_or_else(|| {
            let call = self.process.world.next_call();
            self.process.see(What::Called { session, capability, call });
            call
        });
        let mut request = object.add_request();
        request.get().set_by(call);
        let answer = request.send().promise;
        if self.waiting.replace(self.waiting.get() + 1) == 0 {
            self.heard_at.set(Instant::now());
        }
        let caller = self.clone();
        spawn_local(async move {
            let answer = answer.await;
            caller.waiting.set(caller.waiting.get() - 1);
            caller.heard_at.set(Instant::now());
            let outcome = match answer {
                Ok(_) => Outcome::Answered,
                Err(error) if error.kind == capnp::ErrorKind::Disconnected => Outcome::Broken,
                Err(error) => {
                    let code = RemoteError::parse(&error.extra).map_or(ErrorCode::Internal, |remote| remote.code);
                    Outcome::Refused { code: code.as_str().to_owned() }
                }
            };
            if retries && outcome == Outcome::Broken {
                caller.failed.borrow_mut().push(call);
            } else {
                caller.process.see(What::Ended { session, call, outcome });
            }
        });
    }
}
