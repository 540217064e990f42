//! The session with one other server, made when somebody wants it and kept for as long as both like.

use std::{cell::RefCell, rc::Rc, time::Duration};

use capnp::ErrorKind;
use futures::{StreamExt, stream::FuturesUnordered};
use schemas::{Coded, location_capnp::location_service};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use transport::{DialError, Endpoint, Greeting, OutputGate, Session, SessionError, SessionLimits, SessionOptions};

use super::Peer;
use crate::server::status::{PeerStatus, Reached};
use crate::{
    durable::DurableRegistry,
    limits,
    peering::Outbox,
    registry::{Answer, Claim, Id},
    server::metrics::Metrics,
    service::{read_claim, write_answer},
};

/// What a peer says of a record.
pub(super) struct Told {
    pub(super) packet: Vec<u8>,
    pub(super) claim: Claim,
    pub(super) expired: bool,
}

/// One other server.
pub(super) struct Link {
    pub(super) peer: Peer,
    state: watch::Sender<State>,
    /// Somebody has something to ask or to tell.
    wanted: Notify,
    outbox: RefCell<Outbox>,
    /// Something lies in the outbox.
    noted: Notify,
}

enum State {
    Idle,
    /// Nobody waits for one that was not there the last time, or hung up.
    Dialling {
        again: bool,
    },
    Open(location_service::Client),
    /// It could not be dialled, or has just hung up.
    Resting,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("its name has no address: {0}")]
    Name(std::io::Error),
    #[error("its name has no address")]
    NoAddress,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Link {
    pub(super) fn to(peer: Peer) -> Rc<Self> {
        let state = watch::Sender::new(State::Idle);
        let outbox = RefCell::new(Outbox::new(limits::UNTOLD));
        Rc::new(Self { peer, state, wanted: Notify::new(), outbox, noted: Notify::new() })
    }

    /// Something was registered here; `false` if the peer will not be told, because too much waits already.
    pub(super) fn note(&self, id: &Id) -> bool {
        let is_noted = self.outbox.borrow_mut().note(id);
        self.noted.notify_one();
        is_noted
    }

    /// Asks for an id; `None` if the peer knows nothing. Waits for as long as it is let.
    pub(super) async fn lookup(&self, id: &Id, hops: u8) -> Result<Option<Told>, capnp::Error> {
        let service = self.service().await.ok_or_else(unreachable_now)?;
        let mut request = service.lookup_request();
        request.get().set_id(id);
        request.get().set_hops(hops);
        let response = request.send().promise.await?;
        let answer = response.get()?.get_answer()?;
        let packet = answer.get_packet()?;
        let told = || Told { packet: packet.to_vec(), claim: read_claim(answer), expired: answer.get_expired() };
        Ok((!packet.is_empty()).then(told))
    }

    /// How it is to be reached, for the operator.
    pub(super) fn status(&self) -> PeerStatus {
        let reached = match &*self.state.borrow() {
            State::Idle => Reached::Unasked,
            State::Dialling { .. } => Reached::Dialling,
            State::Open(_) => Reached::Open,
            State::Resting => Reached::Failed,
        };
        PeerStatus { peer: self.peer.clone(), reached, untold: self.outbox.borrow().len() }
    }

    /// The peer, once there is a session with it; `None` if there will not be one soon.
    async fn service(&self) -> Option<location_service::Client> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Open(service) => return Some(service.clone()),
                State::Resting | State::Dialling { again: true } => return None,
                State::Dialling { again: false } => {}
                State::Idle => self.wanted.notify_one(),
            }
            state.changed().await.ok()?;
        }
    }

    /// Makes a session whenever one is wanted.
    pub(super) async fn keep(self: Rc<Self>, endpoint: Endpoint, greeting: Greeting) {
        let (mut rest, mut again) = (limits::REDIAL, false);
        loop {
            self.wanted.notified().await;
            self.state.send_replace(State::Dialling { again });
            let begun = Instant::now();
            match self.dial(&endpoint, &greeting).await {
                Ok(session) => {
                    self.state.send_replace(State::Open(session.bootstrap()));
                    let end = session.closed().await;
                    tracing::debug!(peer = %self.peer.id, %end, "the session with another server has ended");
                }
                Err(error) => tracing::debug!(peer = %self.peer.id, %error, "another server is not to be reached"),
            }
            // Who hangs up at once is as good as one who is not there.
            again = begun.elapsed() < limits::LONGEST_REDIAL;
            if !again {
                rest = limits::REDIAL;
            }
            self.state.send_replace(State::Resting);
            sleep(rest).await;
            rest = (rest * 2).min(limits::LONGEST_REDIAL);
            self.state.send_replace(State::Idle);
        }
    }

    async fn dial(&self, endpoint: &Endpoint, greeting: &Greeting) -> Result<Session, LinkError> {
        let Peer { id, host, port } = &self.peer;
        let found = timeout(limits::PEER_DIAL_DEADLINE, tokio::net::lookup_host((host.as_str(), *port))).await;
        let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        // One after the other without waiting for who does not answer (RFC 8305): an address may lead nowhere from here.
        let attempts = found.map_err(LinkError::Name)?.take(limits::PEER_ADDRESSES).zip(0..);
        let mut attempts: FuturesUnordered<_> = attempts
            .map(async |(address, number)| {
                sleep(limits::NEXT_PEER_ADDRESS * number).await;
                endpoint.dial(*id, address, limits::PEER_DIAL_DEADLINE).await
            })
            .collect();
        let mut last = LinkError::NoAddress;
        while let Some(dialled) = attempts.next().await {
            match dialled {
                Ok(connection) => {
                    let options = SessionOptions {
                        greeting: greeting.clone(),
                        bootstrap: None,
                        gate: OutputGate::always_open(),
                        limits: session_limits(),
                    };
                    return Ok(Session::open(connection, options).await?);
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Tells the peer what is registered here, as fast as it takes it: what gathers meanwhile goes together.
    pub(super) async fn tell(self: Rc<Self>, registry: Rc<DurableRegistry>, metrics: Rc<Metrics>) {
        loop {
            self.noted.notified().await;
            while !self.outbox.borrow().is_empty() {
                let Some(service) = self.service().await else {
                    let mut state = self.state.subscribe();
                    // Its sender is ours.
                    let _ = state.wait_for(|state| matches!(state, State::Idle | State::Open(_))).await;
                    continue;
                };
                let ids = self.outbox.borrow_mut().take(limits::MAX_LEARNED_PER_CALL as usize);
                let count = ids.len() as u64;
                match timeout(limits::TELLING_DEADLINE, tell_of(&service, &registry, &ids)).await {
                    Ok(Ok(())) => metrics.of_peers("told", count),
                    Ok(Err(error)) if error.kind == ErrorKind::Unimplemented => {
                        // An older server. What it is asked for it will answer.
                        tracing::debug!(peer = %self.peer.id, "another server does not learn what it is told");
                        metrics.of_peers("untold", count);
                    }
                    // Not sent again: whoever asks for them finds them.
                    _ => metrics.of_peers("untold", count),
                }
            }
        }
    }
}

async fn tell_of(
    service: &location_service::Client,
    registry: &DurableRegistry,
    ids: &[Id],
) -> Result<(), capnp::Error> {
    let mut records: Vec<(&Id, Answer)> = Vec::with_capacity(ids.len());
    for id in ids {
        let answer = registry.lookup(id).await.map_err(|error| capnp::Error::failed(error.code().to_string()))?;
        if answer.packet.is_some() && !answer.expired {
            records.push((id, answer));
        }
    }
    let mut request = service.learn_request();
    let mut list = request.get().init_records(u32::try_from(records.len()).unwrap_or(0));
    for (index, (id, Answer { packet, age, left, expired })) in (0..).zip(&records) {
        let mut known = list.reborrow().get(index);
        known.set_id(*id);
        write_answer(packet.as_deref().unwrap_or_default(), (*age, *left), *expired, known.init_answer());
    }
    request.send().promise.await.map(drop)
}

fn unreachable_now() -> capnp::Error {
    capnp::Error::disconnected("no session".to_owned())
}

/// A peer answers one record at a time.
fn session_limits() -> SessionLimits {
    let mut session = SessionLimits::default();
    session.message_bytes = limits::PEER_MESSAGE_BYTES;
    session.capabilities_per_message = limits::CAPABILITIES_PER_MESSAGE;
    session
}

/// How long a claim has been under way is taken off it: nobody's lease grows by being told of.
pub(super) fn aged(claim: Claim, by: Duration) -> Claim {
    Claim { age: claim.age.saturating_add(by), left: claim.left.saturating_sub(by) }
}
