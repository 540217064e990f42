//! Streams of calls: how much of them may be on its way to one capability.
//!
//! Who streams goes on when there is room, and not when there is an answer. So a call of a stream has nobody who waits for its
//! answer: the call itself counts it when it comes ([`Question`]), and nothing runs for a stream beside that. A stream ends
//! with its capability or with the last of its calls, whichever is later: dropping the capability takes back no call.

use std::{cell::RefCell, rc::Rc};

use capnp::{Error, capability::Promise};
use futures::channel::oneshot;

use super::question::Question;
use crate::limits;

/// The calls that were streamed to one capability. Most have none.
#[derive(Default)]
pub(super) struct Stream(RefCell<Option<Rc<Window>>>);

/// Where one of them is counted.
#[derive(Default)]
pub(super) struct Window(RefCell<Counted>);

#[derive(Default)]
struct Counted {
    /// Bytes of calls that were not answered.
    in_flight: usize,
    /// The largest call so far. The window is wider by it: else one that is larger than the window would be alone on its way.
    largest: usize,
    /// Who waits for room.
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
    /// Why the first call failed that did. Who goes on streaming learns of it.
    failed: Option<Error>,
}

impl Counted {
    fn has_room(&self) -> bool {
        self.in_flight < limits::STREAMED_BYTES.saturating_add(self.largest)
    }
}

/// A call that is on its way holds itself until it is answered, or the session ends.
pub(super) struct Streamed {
    window: Rc<Window>,
    bytes: usize,
    _itself: Rc<Question>,
}

impl Stream {
    /// Counts a call of `bytes` bytes that was sent. Ready when there is room for another.
    pub(super) fn count(&self, question: &Rc<Question>, bytes: usize) -> Promise<(), Error> {
        let window = self.0.borrow_mut().get_or_insert_default().clone();
        let room = {
            let counted = &mut *window.0.borrow_mut();
            counted.in_flight = counted.in_flight.saturating_add(bytes);
            counted.largest = counted.largest.max(bytes);
            match &counted.failed {
                Some(error) => Promise::err(error.clone()),
                None if counted.has_room() => Promise::ok(()),
                None => {
                    let (sender, receiver) = oneshot::channel();
                    counted.waiting.push(sender);
                    Promise::from_future(async {
                        // Kept until there is an answer, which every call has at the end of the session at the latest.
                        receiver.await.unwrap_or_else(|_| Err(Error::failed("the stream is gone".to_owned())))
                    })
                }
            }
        };
        question.is_streamed(Streamed { window, bytes, _itself: question.clone() });
        room
    }
}

impl Streamed {
    /// It was answered. The last handle to the question may go with this.
    pub(super) fn answered(self, outcome: Result<(), Error>) {
        let (ready, outcome) = {
            let counted = &mut *self.window.0.borrow_mut();
            counted.in_flight = counted.in_flight.saturating_sub(self.bytes);
            if let Err(error) = outcome {
                counted.failed.get_or_insert(error);
            }
            match &counted.failed {
                Some(error) => (std::mem::take(&mut counted.waiting), Err(error.clone())),
                None if counted.has_room() => (std::mem::take(&mut counted.waiting), Ok(())),
                None => return,
            }
        };
        // Whoever waited may have lost interest.
        ready.into_iter().for_each(|waiting| drop(waiting.send(outcome.clone())));
    }
}
