//! Cold lookups: a question in one datagram, the answer in another (DESIGN §5; the format is in [`schemas::datagram`]).
//!
//! They come on the port of QUIC, are answered without a session, a task or a memory of who asked, and in bunches: what
//! has come since the last look is looked up and leaves in one system call. An answer is never longer than its
//! question, so nobody can be sent more than a forger has to send himself. A few wait, while other servers are asked
//! for what is not held here.

use std::{cell::Cell, pin::pin, rc::Rc};

use futures::{
    FutureExt, StreamExt,
    future::{LocalBoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use prometheus_client::metrics::counter::Counter;
use schemas::datagram::{Known, LookupAnswer, LookupQuestion, QUESTION_HEAD_BYTES, QUESTION_KIND};
use transport::{
    Endpoint,
    beside::DatagramsBeside,
    datagrams::{Bunch, Datagram},
};

use crate::{
    durable::{DurableRegistry, Seen},
    limits,
    peering::Share,
    registry::Now,
    server::{
        metrics::DROPPED,
        peers::{Asker, Peers},
        shared::Shared,
    },
};

/// Questions that wait for other servers, each in a bunch of its own.
type Patient = FuturesUnordered<LocalBoxFuture<'static, Bunch>>;

/// Answers the cold lookups of one endpoint.
pub(super) struct ColdLookups {
    datagrams: DatagramsBeside,
    registry: Rc<DurableRegistry>,
    peers: Rc<Peers>,
    found: Counter,
    unknown: Counter,
    /// Thrown away unread, because too many came.
    dropped: Counter,
    counted_as_dropped: Cell<usize>,
}

impl ColdLookups {
    pub(super) fn new(endpoint: &Endpoint, shared: &Shared) -> Self {
        let datagrams = endpoint.datagrams_beside(QUESTION_KIND, QUESTION_HEAD_BYTES);
        let counter = |outcome| shared.metrics.counter("datagram", outcome);
        let [found, unknown, dropped] = ["found", "unknown", DROPPED].map(counter);
        let (registry, peers) = (Rc::clone(&shared.registry), Rc::clone(&shared.peers));
        Self { datagrams, registry, peers, found, unknown, dropped, counted_as_dropped: Cell::new(0) }
    }

    /// Answers until it is dropped, or nothing can be said any more.
    pub(super) async fn answer(&self) {
        let (mut questions, mut answers, mut early) = (Bunch::default(), Bunch::default(), Bunch::default());
        let mut patient = Patient::new();
        let mut settling = pin!(OptionFuture::default());
        let mut is_settling = false;
        loop {
            if !early.is_empty() && !is_settling {
                // Kept until it is over: begun anew with each bunch, it would never be while others register.
                settling.set(Some(self.registry.settled()).into());
                is_settling = true;
            }
            tokio::select! {
                () = self.datagrams.receive(&mut questions) => {}
                Some(question) = patient.next(), if !patient.is_empty() => {
                    questions = question;
                    // Nobody is asked again for it: what is held now is the answer.
                    self.look_up(&questions, &mut answers, &mut early, None);
                    self.datagrams.send(&answers);
                    continue;
                }
                Some(settled) = settling.as_mut(), if is_settling => {
                    if settled.is_err() {
                        return;
                    }
                    is_settling = false;
                    std::mem::swap(&mut questions, &mut early);
                    early.clear();
                }
            }
            self.look_up(&questions, &mut answers, &mut early, Some(&patient).filter(|_| !self.peers.are_none()));
            self.datagrams.send(&answers);
            let dropped = self.datagrams.dropped();
            let before = self.counted_as_dropped.replace(dropped);
            self.dropped.inc_by(dropped.saturating_sub(before) as u64);
        }
    }

    /// Those that ask for what is not durable yet go into `early`: they are asked again in a moment. Those for whom others
    /// are asked go among the `patient`, where there are any.
    fn look_up(&self, questions: &Bunch, answers: &mut Bunch, early: &mut Bunch, patient: Option<&Patient>) {
        answers.rest();
        // One reading of the clock for all: they came together.
        let now = self.registry.clock().now();
        let asked = questions.iter();
        let asked =
            asked.filter_map(|datagram| Some((datagram, LookupQuestion::read(datagram.bytes, datagram.length)?)));
        let asked: Vec<_> = asked.collect();
        self.registry.approach(asked.iter().map(|(_, question)| &question.id));
        for (datagram, question) in asked {
            let is_waiting = patient.is_some_and(|patient| self.has_others_asked(&question, now, datagram, patient));
            if !is_waiting
                && !self.answer_to(&question, now, datagram, answers)
                && early.len() < limits::EARLY_QUESTIONS
            {
                early.push_copy(&datagram);
            }
        }
    }

    /// Whether the question waits for what other servers know.
    fn has_others_asked(&self, question: &LookupQuestion, now: Now, asked: Datagram<'_>, patient: &Patient) -> bool {
        let asker = Asker { id: None, network: asked.peer.ip(), hops: 0 };
        // Who asks may be invented: nobody else is kept from asking by it.
        let Some(told) = self.peers.inquire(&question.id, now, asker, Share::Part) else {
            return false;
        };
        if patient.len() >= limits::PATIENT_DATAGRAMS {
            return false;
        }
        let mut kept = Bunch::default();
        kept.push_copy(&asked);
        patient.push(told.map(|()| kept).boxed_local());
        true
    }

    fn answer_to(&self, question: &LookupQuestion, now: Now, asked: Datagram<'_>, answers: &mut Bunch) -> bool {
        self.registry.see(&question.id, now, |seen| {
            let known = match seen {
                Seen::Early => return false,
                Seen::Nothing => None,
                Seen::Record { packet, age, expired, .. } => {
                    Some(Known { packet, age: u32::try_from(age.as_secs()).unwrap_or(u32::MAX), expired })
                }
            };
            if known.is_some() {
                self.found.inc()
            } else {
                self.unknown.inc()
            };
            let answer = LookupAnswer { nonce: question.nonce, known, time: now.wall };
            answers.push(asked.peer, asked.local, |bytes| answer.write(bytes));
            true
        })
    }
}
