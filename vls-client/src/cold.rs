//! Lookups without a session: one datagram each way (DESIGN §5; the format is in [`schemas::datagram`]).
//!
//! For a server that no session is open with. What comes back was signed by the vat, but not for this question: whoever
//! sees the question can answer first, with an older record of the vat's, or say that there is none or how old it is.
//! Over a session nobody but the server can. So a witness (R7) is never asked like this.
//!
//! Nor is the first answer the last: a question that is asked again, or that the network delivers twice, is answered
//! twice, and what the server knows may have changed in between. All that is said to one question is heard as long as the
//! lookup lasts, up to [`COLD_ANSWERS`](limits::COLD_ANSWERS) different things: who is faster than the server has the first
//! word, and the last one only if nobody else is waited for, or if he says so many others that the server is not heard.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use futures::{StreamExt, channel::mpsc};
use schemas::{
    VatId,
    datagram::{ANSWER_KIND, LookupAnswer, LookupQuestion, MAX_ANSWER_BYTES, Nonce},
};
use tokio::{
    task::{AbortHandle, spawn_local},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use transport::{Endpoint, beside::DatagramsBeside, datagrams::Bunch};

use crate::{dial::resolve, dial_schedule::Target, failure::Failure, limits, schedule::Answer};

/// The cold lookups of one endpoint.
pub(crate) struct ColdLookups {
    inner: Rc<Inner>,
    receiving: AbortHandle,
}

struct Inner {
    datagrams: DatagramsBeside,
    waiting: RefCell<HashMap<Nonce, Waiting>>,
}

/// Who waits for answers to a question.
struct Waiting {
    sender: mpsc::UnboundedSender<Answer>,
    heard: Vec<Heard>,
}

/// What an answer says, but for how old it is: if there is a packet, which one, and whether its lease has ended.
type Heard = Option<(Box<[u8]>, bool)>;

/// A question. It may be answered until it is dropped.
pub(crate) struct Question {
    inner: Rc<Inner>,
    id: VatId,
    nonce: Nonce,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl ColdLookups {
    /// Must be called within a `LocalSet`.
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let datagrams = endpoint.datagrams_beside(ANSWER_KIND, MAX_ANSWER_BYTES);
        let inner = Rc::new(Inner { datagrams, waiting: RefCell::default() });
        let receiving = spawn_local(receive(inner.clone())).abort_handle();
        Self { inner, receiving }
    }

    /// A question about `id`, which nobody has been asked yet.
    ///
    /// # Errors
    /// [`Failure::Random`].
    pub(crate) fn question(&self, id: VatId) -> Result<Question, Failure> {
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(Failure::Random)?;
        let (sender, answers) = mpsc::unbounded();
        let waiting = Waiting { sender, heard: Vec::new() };
        self.inner.waiting.borrow_mut().insert(nonce, waiting);
        Ok(Question { inner: self.inner.clone(), id, nonce, answers })
    }
}

impl Drop for ColdLookups {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

impl Question {
    /// Asks `target`: the first of its addresses at once, then, as long as nobody answers, the next and the first ones
    /// again, ever more slowly.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn ask(&mut self, target: &Target, deadline: Duration) -> Result<Answer, Failure> {
        let end = Instant::now() + deadline;
        let silence = |_| Failure::Timeout { after: deadline };
        let addresses = timeout_at(end, resolve(target)).await.map_err(silence)??;
        let mut question = Bunch::default();
        let mut wait = limits::COLD_REPEAT;
        for address in addresses.iter().cycle() {
            question.clear();
            question.push(*address, None, |bytes| LookupQuestion::new(self.id, self.nonce).write(bytes));
            self.inner.datagrams.send(&question);
            tokio::select! {
                biased;
                // The sender is kept as long as the question.
                Some(answer) = self.answers.next() => return Ok(answer),
                () = sleep_until(end) => break,
                () = sleep(wait) => wait = wait.saturating_mul(3) / 2,
            }
        }
        Err(Failure::Timeout { after: deadline })
    }

    /// The next answer to what was asked that says something else.
    pub(crate) async fn answered_again(&mut self) -> Option<Answer> {
        self.answers.next().await
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.inner.waiting.borrow_mut().remove(&self.nonce);
    }
}

/// Hands answers to those who wait for them.
async fn receive(inner: Rc<Inner>) {
    let mut bunch = Bunch::default();
    loop {
        inner.datagrams.receive(&mut bunch).await;
        for answer in bunch.iter().filter_map(|datagram| LookupAnswer::read(datagram.bytes)) {
            let mut waiting = inner.waiting.borrow_mut();
            let Some(Waiting { sender, heard }) = waiting.get_mut(&answer.nonce) else { continue };
            let said = answer.known.as_ref().map(|known| (known.packet, known.expired));
            // What has been said already, as when the network delivers twice, is nothing new.
            let is_said = heard.iter().any(|heard| heard.as_ref().map(|(packet, lapsed)| (&**packet, *lapsed)) == said);
            if is_said || heard.len() >= limits::COLD_ANSWERS {
                continue;
            }
            heard.push(said.map(|(packet, lapsed)| (packet.into(), lapsed)));
            let known = answer.known.map_or(Answer::Unknown, |known| Answer::Packet {
                packet: known.packet.to_vec(),
                age: Some(Duration::from_secs(known.age.into())),
                lapsed: known.expired,
            });
            // Whoever asked is there: what is dropped is not waited for.
            let _ = sender.unbounded_send(known);
        }
    }
}
