//! Lookups without a session: one datagram each way (DESIGN §5; the format is in [`schemas::datagram`]).
//!
//! For a server that no session is open with. What comes back was signed by the vat, but not for this question: whoever
//! sees the question can answer first, with an older record of the vat's, or say that there is none or how old it is.
//! Over a session nobody but the server can. So a witness (R7) is never asked like this.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    time::Duration,
};

use futures::channel::oneshot;
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
    waiting: RefCell<HashMap<Nonce, oneshot::Sender<Answer>>>,
}

impl ColdLookups {
    /// Must be called within a `LocalSet`.
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let datagrams = endpoint.datagrams_beside(ANSWER_KIND, MAX_ANSWER_BYTES);
        let inner = Rc::new(Inner { datagrams, waiting: RefCell::default() });
        let receiving = spawn_local(receive(inner.clone())).abort_handle();
        Self { inner, receiving }
    }

    /// Asks `target` for the record of `id`: the first of its addresses at once, then, as long as nobody answers, the
    /// next and the first ones again, ever more slowly.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn ask(&self, target: &Target, id: VatId, deadline: Duration) -> Result<Answer, Failure> {
        let end = Instant::now() + deadline;
        let silence = |_| Failure::Timeout { after: deadline };
        let addresses = timeout_at(end, resolve(target)).await.map_err(silence)??;
        let (nonce, mut answer) = self.inner.expect()?;
        let mut question = Bunch::default();
        let mut wait = limits::COLD_REPEAT;
        for address in addresses.iter().cycle() {
            question.clear();
            question.push(*address, None, |bytes| LookupQuestion::new(id, nonce.0).write(bytes));
            self.inner.datagrams.send(&question);
            tokio::select! {
                biased;
                // The sender is dropped only together with `inner`.
                Ok(answer) = &mut answer => return Ok(answer),
                () = sleep_until(end) => break,
                () = sleep(wait) => wait = wait.saturating_mul(3) / 2,
            }
        }
        Err(Failure::Timeout { after: deadline })
    }
}

impl Drop for ColdLookups {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

impl Inner {
    /// A nonce, and what will bring its answer; it is waited for until the first is dropped.
    fn expect(self: &Rc<Self>) -> Result<(Expected, oneshot::Receiver<Answer>), Failure> {
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(Failure::Random)?;
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(nonce, sender);
        Ok((Expected(nonce, Rc::downgrade(self)), receiver))
    }
}

/// An answer that is waited for.
struct Expected(Nonce, Weak<Inner>);

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(inner) = self.1.upgrade() {
            inner.waiting.borrow_mut().remove(&self.0);
        }
    }
}

/// Hands answers to those who wait for them.
async fn receive(inner: Rc<Inner>) {
    let mut bunch = Bunch::default();
    loop {
        inner.datagrams.receive(&mut bunch).await;
        for answer in bunch.iter().filter_map(|datagram| LookupAnswer::read(datagram.bytes)) {
            let Some(waiting) = inner.waiting.borrow_mut().remove(&answer.nonce) else { continue };
            let known = answer.known.map_or(Answer::Unknown, |known| Answer::Packet {
                packet: known.packet.to_vec(),
                age: Some(Duration::from_secs(known.age.into())),
                lapsed: known.expired,
            });
            // Whoever asked may have lost interest.
            let _ = waiting.send(known);
        }
    }
}
