//! Following other servers (DESIGN §5: peers): the shell around [`peering`](crate::peering).
//!
//! What is not held is asked for at the servers that the operator has named, and what is registered here is told to
//! them. What they say goes through the registry like everything else; only how long ago a vat was seen is taken on
//! their word, reckoned from the moment at which they were asked. So a record that goes from server to server, in a
//! circle even, ends where it began with: nobody's lease grows by being told of.
//!
//! Whoever waits for peers waits in a task of its own and for a bounded time. There are so many places for questions,
//! and each network may cause so many; who finds no place is answered from what is held.

mod link;

use std::{
    cell::RefCell, collections::HashMap, fmt, future::Future, net::IpAddr, rc::Rc, str::FromStr, time::Duration,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use schemas::{Coded, ErrorCode, Network, RecordError, SearchPathEntry, SearchPathError, VatId};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet, spawn_local},
    time::{Instant, sleep_until},
};
use transport::{Endpoint, Greeting};

use self::link::{Link, aged};
use super::{
    dht::{Dht, DhtConfig},
    metrics::Metrics,
    rates::Rates,
    status::{DhtStatus, PeerStatus},
};
use crate::{
    durable::{DurableRegistry, Seen},
    limits,
    peering::{Asking, Begun, Heard, PeerNumber, Question, Share},
    registry::{Id, Now, Outcome, RefusalReason, SourcePrefix},
};

/// Another server that is followed: `vls://<id>@<host>:<port>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which it proves to be.
    pub id: VatId,
    /// A DNS name or an address.
    pub host: String,
    /// Its UDP port.
    pub port: u16,
}

/// Why some text is not a server that can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// It is no entry of a search path.
    #[error(transparent)]
    Entry(#[from] SearchPathError),
    /// It is another kind of entry.
    #[error("only servers of the form vls://<id>@<host>:<port> can be followed")]
    Kind,
}

impl Coded for PeerError {
    fn code(&self) -> ErrorCode {
        ErrorCode::VlsEntryMalformed
    }
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        match text.parse()? {
            SearchPathEntry::Vls { id, host, port } => Ok(Self { id, host, port }),
            _ => Err(PeerError::Kind),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, host, port } = self.clone();
        SearchPathEntry::Vls { id, host, port }.fmt(f)
    }
}

/// Who asks for an id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    /// Its key, if it has proved one.
    pub(crate) id: Option<VatId>,
    /// Where it is, or seems to be.
    pub(crate) network: IpAddr,
    /// Over how many servers its question has come.
    pub(crate) hops: u8,
}

/// The servers that this one follows.
pub(crate) struct Peers {
    registry: Rc<DurableRegistry>,
    metrics: Rc<Metrics>,
    endpoint: Endpoint,
    greeting: Greeting,
    asked_for: RefCell<Rates>,
    /// The same, in the DHT.
    looked_up: RefCell<Rates>,
    following: RefCell<Rc<Following>>,
    dht: RefCell<Option<Dht>>,
}

/// Some servers that are followed, until others are.
struct Following {
    links: Vec<Rc<Link>>,
    asking: RefCell<Asking>,
    /// Tells those who wait for a question.
    answers: RefCell<HashMap<Question, watch::Receiver<()>>>,
    flights: RefCell<JoinSet<()>>,
    /// Of the links.
    tasks: Vec<AbortHandle>,
}

impl Peers {
    /// Follows nobody yet. `seed` is a secret random number.
    pub(super) fn new(
        registry: Rc<DurableRegistry>,
        metrics: Rc<Metrics>,
        endpoint: Endpoint,
        greeting: Greeting,
        seed: u64,
    ) -> Rc<Self> {
        let asked_for = RefCell::new(Rates::new(limits::ASKED_FOR, seed));
        let following = RefCell::new(Rc::new(Following::of(Vec::new(), limits::PEERS_DEADLINE, Vec::new())));
        let looked_up = RefCell::new(Rates::new(limits::DHT_ASKED_FOR, seed));
        let dht = RefCell::default();
        let peers = Rc::new(Self { registry, metrics, endpoint, greeting, asked_for, looked_up, following, dht });
        let weak = Rc::downgrade(&peers);
        peers.registry.on_registered(move |id| {
            if let Some(peers) = weak.upgrade() {
                peers.registered(id);
            }
        });
        peers
    }

    /// Follows these from now on, of which the first [`limits::MOST_PEERS`] that are not this server itself count; asks
    /// them for `deadline` before a finder is answered.
    pub(super) fn follow(&self, peers: &[Peer], deadline: Duration) {
        let others = peers.iter().filter(|peer| peer.id != self.endpoint.id()).take(limits::MOST_PEERS);
        let others: Vec<Peer> = others.cloned().collect();
        {
            let following = self.following.borrow();
            following.asking.borrow_mut().set_deadline(deadline);
            if following.links.iter().map(|link| &link.peer).eq(&others) {
                return;
            }
        }
        let links: Vec<_> = others.into_iter().map(Link::to).collect();
        let keeping = links.iter().map(|link| {
            let keeping = Rc::clone(link).keep(self.endpoint.clone(), self.greeting.clone());
            spawn_local(keeping).abort_handle()
        });
        let telling = links.iter().map(|link| {
            let telling = Rc::clone(link).tell(Rc::clone(&self.registry), Rc::clone(&self.metrics));
            spawn_local(telling).abort_handle()
        });
        let tasks = keeping.chain(telling).collect();
        let before = self.following.replace(Rc::new(Following::of(links, deadline, tasks)));
        // Each of them has a handle to what it belongs to.
        before.flights.borrow_mut().abort_all();
    }

    /// Takes part in the DHT from now on, or not any more.
    pub(super) fn join(&self, dht: Option<&DhtConfig>) {
        if self.dht.borrow().as_ref().map(Dht::config) != dht {
            // The old one ends first.
            self.dht.replace(None);
            let (registry, metrics) = (&self.registry, &self.metrics);
            let joined = dht.map(|config| Dht::join(config.clone(), Rc::clone(registry), Rc::clone(metrics)));
            self.dht.replace(joined);
        }
    }

    /// The part in the DHT, for the operator.
    pub(super) fn dht(&self) -> Option<DhtStatus> {
        self.dht.borrow().as_ref().map(Dht::status)
    }

    /// Follows nobody any more, and leaves the DHT.
    pub(super) fn forget(&self) {
        self.join(None);
        self.follow(&[], limits::PEERS_DEADLINE);
    }

    /// How each of them is to be reached, for the operator.
    pub(super) fn states(&self) -> Vec<PeerStatus> {
        self.following.borrow().links.iter().map(|link| link.status()).collect()
    }

    /// Whether there is nobody to ask.
    pub(super) fn are_none(&self) -> bool {
        self.following.borrow().links.is_empty() && self.dht.borrow().is_none()
    }

    /// For whom a record is held that this caller tells of: a server that is followed has a share of its own.
    pub(crate) fn source_of(&self, caller: VatId, network: IpAddr) -> SourcePrefix {
        match self.following.borrow().number(caller) {
            Some(_) => SourcePrefix::of_server(caller),
            None => SourcePrefix::of(Some(network)),
        }
    }

    /// Asks others for an id if it is not held, or its lease has ended, and waits until the answer is in the registry or
    /// none is to be expected. What has been held for a while is looked into, too, but nobody waits for that.
    pub(crate) async fn seek(self: &Rc<Self>, id: &Id, asker: Asker) {
        let now = self.registry.clock().now();
        if let Some(answered) = self.inquire(id, now, asker, Share::Whole) {
            answered.await;
        }
    }

    /// The same for who cannot wait, or may be invented: gives what to wait for if others are being asked.
    pub(crate) fn inquire(
        self: &Rc<Self>,
        id: &Id,
        now: Now,
        asker: Asker,
        share: Share,
    ) -> Option<impl Future<Output = ()> + 'static + use<>> {
        if self.are_none() {
            return None;
        }
        let held = self.registry.see(id, now, |seen| match seen {
            Seen::Nothing | Seen::Record { expired: true, .. } => Held::Missing,
            Seen::Record { age, .. } if age >= limits::CONFIRMED && asker.hops == 0 => Held::Old,
            Seen::Record { .. } | Seen::Early => Held::Now,
        });
        let (share, has_dht) = match held {
            Held::Now => return None,
            Held::Missing => (share, self.dht.borrow().is_some()),
            Held::Old => (Share::Part, false),
        };
        let mut answered = self.begin(Question { id: *id, hops: asker.hops }, now, asker, (share, has_dht))?;
        // An error: the question is over.
        matches!(held, Held::Missing).then_some(async move { drop(answered.changed().await) })
    }

    /// Has a question under way; `None` if there is nobody to ask, or no need, or no room.
    fn begin(
        self: &Rc<Self>,
        question: Question,
        now: Now,
        asker: Asker,
        (share, has_dht): (Share, bool),
    ) -> Option<watch::Receiver<()>> {
        let following = Rc::clone(&self.following.borrow());
        let number = asker.id.and_then(|id| following.number(id));
        let begun = following.asking.borrow_mut().begin(now.monotonic, question, number, share, has_dht);
        match begun {
            Begun::Nobody => return None,
            Begun::Joined => return following.answers.borrow().get(&question).cloned(),
            Begun::Started => {}
        }
        // Most ids that are no key are asked for by who tries something. Peers have a bound of their own: the room.
        let network = Network::of(asker.network);
        let may_ask = VatId::from_bytes(question.id).is_ok()
            && (number.is_some() || self.asked_for.borrow_mut().take(network, now).is_ok());
        if !may_ask {
            following.asking.borrow_mut().take_back(question);
            return None;
        }
        let (told, answered) = watch::channel(());
        following.answers.borrow_mut().insert(question, answered.clone());
        let flying = Flying { following: Rc::clone(&following), question, peers: Rc::clone(self) };
        let flight = Rc::clone(self).carry_out(flying, network, told);
        let mut flights = following.flights.borrow_mut();
        while flights.try_join_next().is_some() {}
        flights.spawn_local(flight);
        Some(answered)
    }

    async fn carry_out(self: Rc<Self>, flying: Flying, network: Network, told: watch::Sender<()>) {
        let (begun, question, following) = (Instant::now(), flying.question, &flying.following);
        let mut answers = FuturesUnordered::new();
        let mut lookups = FuturesUnordered::new();
        loop {
            let step = following.asking.borrow_mut().step(question, begun.elapsed());
            for number in step.ask {
                answers.push(self.ask(&following.links[number], question).map(move |heard| (number, heard)));
            }
            if step.look_up {
                let now = self.registry.clock().now();
                let may_look_up = self.looked_up.borrow_mut().take(network, now).is_ok();
                match self.dht.borrow().as_ref().filter(|_| may_look_up) {
                    Some(dht) => lookups.push(dht.look_up(question.id)),
                    // The network has had its share, or the DHT was left meanwhile.
                    None => {
                        following.asking.borrow_mut().spare_dht(question);
                        continue;
                    }
                }
            }
            if step.is_answered {
                told.send_replace(());
            }
            if step.is_over {
                return;
            }
            tokio::select! {
                Some((number, heard)) = answers.next(), if !answers.is_empty() => {
                    let now = self.registry.clock().now().monotonic;
                    following.asking.borrow_mut().heard(now, question, number, heard);
                    self.metrics.of_peers(name(heard), 1);
                }
                Some(heard) = lookups.next(), if !lookups.is_empty() => {
                    following.asking.borrow_mut().heard_dht(question, heard);
                }
                () = sleep_until(begun + step.wake) => {}
            }
        }
    }

    /// Asks one peer, and has the registry judge what it says.
    async fn ask(&self, link: &Link, question: Question) -> Heard {
        let asked = self.registry.clock().now().monotonic;
        let told = match link.lookup(&question.id, question.hops + 1).await {
            Ok(Some(told)) => told,
            Ok(None) => return Heard::Nothing,
            Err(error) => {
                tracing::debug!(peer = %link.peer.id, %error, "another server did not answer");
                return Heard::Failure;
            }
        };
        // From the question on, not from the answer: a peer that is slow makes no lease longer.
        let claim = aged(told.claim, self.registry.clock().now().monotonic.saturating_sub(asked));
        let source = SourcePrefix::of_server(link.peer.id);
        let Ok(outcome) = self.registry.learn(source, &question.id, &told.packet, claim).await else {
            return Heard::Nothing;
        };
        match outcome {
            Outcome::Stored { lease } | Outcome::Refreshed { lease } if !lease.is_zero() => Heard::Live,
            Outcome::Refused(refusal) if is_lie(&refusal.reason, told.expired) => {
                tracing::debug!(peer = %link.peer.id, reason = %refusal.reason, "another server told of a wrong record");
                Heard::Lie
            }
            _ => Heard::Nothing,
        }
    }

    fn registered(&self, id: &Id) {
        if let Some(dht) = self.dht.borrow().as_ref() {
            dht.registered(id);
        }
        let untold = self.following.borrow().links.iter().filter(|link| !link.note(id)).count();
        if untold > 0 {
            self.metrics.of_peers("untold", untold as u64);
        }
    }
}

/// What is held of an id.
enum Held {
    /// Nothing that says where the vat is.
    Missing,
    /// Something that has not been looked into for a while.
    Old,
    /// Enough.
    Now,
}

impl Following {
    fn of(links: Vec<Rc<Link>>, deadline: Duration, tasks: Vec<AbortHandle>) -> Self {
        let asking = RefCell::new(Asking::new(links.len(), deadline));
        Self { links, asking, answers: RefCell::default(), flights: RefCell::default(), tasks }
    }

    fn number(&self, id: VatId) -> Option<PeerNumber> {
        self.links.iter().position(|link| link.peer.id == id)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A question that is under way, whatever becomes of the task.
struct Flying {
    following: Rc<Following>,
    question: Question,
    peers: Rc<Peers>,
}

impl Drop for Flying {
    fn drop(&mut self) {
        let now = self.peers.registry.clock().now().monotonic;
        self.following.asking.borrow_mut().end(now, self.question);
        self.following.answers.borrow_mut().remove(&self.question);
    }
}

/// Whether a server that goes by the rules cannot have said this: it has verified what it holds. That a record's validity
/// has ended it may not have noticed, unless it says that the record is live.
fn is_lie(reason: &RefusalReason, expired: bool) -> bool {
    match reason {
        RefusalReason::Record(RecordError::Expired { .. }) => !expired,
        RefusalReason::Record(_) | RefusalReason::Id(_) => true,
        _ => false,
    }
}

/// Answers of peers as metrics name them.
fn name(heard: Heard) -> &'static str {
    match heard {
        Heard::Live => "found",
        Heard::Nothing => "unknown",
        Heard::Lie => "lie",
        Heard::Failure => "failure",
    }
}
