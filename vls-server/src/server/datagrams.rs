//! Cold lookups: a question in one datagram, the answer in another (DESIGN §5; the format is in [`schemas::datagram`]).
//!
//! They come on the port of QUIC, are answered without a session, a task or a memory of who asked, and in bunches: what
//! has come since the last look is looked up and leaves in one system call. An answer is never longer than its
//! question, so nobody can be sent more than a forger has to send himself.

use std::{cell::Cell, pin::pin, rc::Rc};

use futures::future::OptionFuture;
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
    registry::Now,
    server::metrics::{DROPPED, Metrics},
};

/// Answers the cold lookups of one endpoint.
pub(super) struct ColdLookups {
    datagrams: DatagramsBeside,
    registry: Rc<DurableRegistry>,
    found: Counter,
    unknown: Counter,
    /// Thrown away unread, because too many came.
    dropped: Counter,
    counted_as_dropped: Cell<usize>,
}

impl ColdLookups {
    pub(super) fn new(endpoint: &Endpoint, registry: Rc<DurableRegistry>, metrics: &Metrics) -> Self {
        let datagrams = endpoint.datagrams_beside(QUESTION_KIND, QUESTION_HEAD_BYTES);
        let [found, unknown, dropped] =
            ["found", "unknown", DROPPED].map(|outcome| metrics.counter("datagram", outcome));
        Self { datagrams, registry, found, unknown, dropped, counted_as_dropped: Cell::new(0) }
    }

    /// Answers until it is dropped, or nothing can be said any more.
    pub(super) async fn answer(&self) {
        let (mut questions, mut answers, mut early) = (Bunch::default(), Bunch::default(), Bunch::default());
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
                Some(settled) = settling.as_mut(), if is_settling => {
                    if settled.is_err() {
                        return;
                    }
                    is_settling = false;
                    std::mem::swap(&mut questions, &mut early);
                    early.clear();
                }
            }
            self.look_up(&questions, &mut answers, &mut early);
            self.datagrams.send(&answers);
            let dropped = self.datagrams.dropped();
            let before = self.counted_as_dropped.replace(dropped);
            self.dropped.inc_by(dropped.saturating_sub(before) as u64);
        }
    }

    /// Those that ask for what is not durable yet go into `early`: they are asked again in a moment.
    fn look_up(&self, questions: &Bunch, answers: &mut Bunch, early: &mut Bunch) {
        answers.rest();
        // One reading of the clock for all: they came together.
        let now = self.registry.clock().now();
        let asked = questions.iter();
        let asked =
            asked.filter_map(|datagram| Some((datagram, LookupQuestion::read(datagram.bytes, datagram.length)?)));
        let asked: Vec<_> = asked.collect();
        self.registry.approach(asked.iter().map(|(_, question)| &question.id));
        for (datagram, question) in asked {
            if !self.answer_to(&question, now, datagram, answers) && early.len() < limits::EARLY_QUESTIONS {
                early.push_copy(&datagram);
            }
        }
    }

    fn answer_to(&self, question: &LookupQuestion, now: Now, asked: Datagram<'_>, answers: &mut Bunch) -> bool {
        self.registry.see(&question.id, now, |seen| {
            let known = match seen {
                Seen::Early => return false,
                Seen::Nothing => None,
                Seen::Record { packet, age, expired } => {
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
