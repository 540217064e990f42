//! Clients of other implementations: no preface, no greeting, and objects named in the first message.

use std::{cell::RefCell, rc::Rc};

use capnp::{
    any_pointer,
    capability::{Client, Promise},
    message::{Builder, Reader, ReaderOptions},
};
use capnp_rpc::rpc_capnp::{message, return_};
use schemas::{Coded, ErrorCode, RemoteError, objects_capnp::counter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use transport::{
    ForeignOptions, LocalListener, OutputGate, Session, SessionEnd, SessionLimits, Violation,
    frames::{Frame, FrameDecoder, FrameLimits},
};

use crate::{
    raw::{COUNTER, RawPeer},
    support::{Counter, counter, new_counter, run, server, serving, vat},
};

/// A client that speaks the two-party protocol and nothing else.
struct Stock {
    stream: UnixStream,
    decoder: FrameDecoder,
    session: Session,
    _folder: tempfile::TempDir,
}

/// The one id that leads to an object.
const KNOWN: &[u8] = b"the id of the counter";

fn options(object: Client, asked: &Rc<RefCell<Vec<Vec<u8>>>>) -> ForeignOptions {
    let asked = asked.clone();
    ForeignOptions {
        bootstrap: vat(new_counter()),
        restore: Rc::new(move |id| {
            asked.borrow_mut().push(id.to_vec());
            let found = id.strip_suffix(&[0]).unwrap_or(id) == KNOWN;
            let denied = || capnp::Error::failed(ErrorCode::RefDenied.to_wire("no such object"));
            let object = Client::new(object.hook.clone());
            // Not at once: what is called on it meanwhile has to wait.
            Promise::from_future(async move {
                tokio::task::yield_now().await;
                found.then_some(object).ok_or_else(denied)
            })
        }),
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

impl Stock {
    async fn connect(options: ForeignOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = LocalListener::bind(&folder.path().join("socket")).unwrap();
        let (stream, accepted) = tokio::join!(UnixStream::connect(listener.path()), listener.accept());
        let session = Session::accept_foreign(accepted.unwrap().into(), options);
        let decoder = FrameDecoder::new(FrameLimits { message_bytes: 8 << 20, segments: 512 });
        Self { stream: stream.unwrap(), decoder, session, _folder: folder }
    }

    async fn send(&mut self, fill: impl FnOnce(message::Builder<'_>)) {
        let mut message = Builder::new_default();
        fill(message.init_root());
        self.stream.write_all(&capnp::serialize::write_message_to_words(&message)).await.unwrap();
    }

    async fn bootstrap(&mut self, question: u32, id: impl FnOnce(any_pointer::Builder<'_>)) {
        self.send(|message| {
            let mut bootstrap = message.init_bootstrap();
            bootstrap.set_question_id(question);
            id(bootstrap.init_deprecated_object_id());
        })
        .await;
    }

    /// Calls `add` on what the answer to `target` is, before it is there.
    async fn add(&mut self, question: u32, target: u32, by: u64) {
        self.send(|message| {
            let mut call = message.init_call();
            call.set_question_id(question);
            call.set_interface_id(COUNTER);
            call.reborrow().init_target().init_promised_answer().set_question_id(target);
            call.init_params().init_content().init_as::<counter::add_params::Builder<'_>>().set_by(by);
        })
        .await;
    }

    async fn finish(&mut self, question: u32) {
        self.send(|message| {
            let mut finish = message.init_finish();
            finish.set_question_id(question);
            finish.set_release_result_caps(true);
        })
        .await;
    }

    /// The next message; `None` when the stream has ended.
    async fn receive(&mut self) -> Option<Reader<Frame>> {
        let mut space = [0; 4096];
        loop {
            let wanted = self.decoder.needed().min(space.len());
            let length = self.stream.read(&mut space[..wanted]).await.unwrap();
            if length == 0 {
                return None;
            }
            if let Some(frame) = self.decoder.push(&mut &space[..length]).unwrap() {
                return Some(Reader::new(frame, ReaderOptions::new()));
            }
        }
    }

    /// The answer to a question, which must be the next message: how many capabilities its results have, and the
    /// total that they tell if they are those of `add`; or the error.
    async fn answer(&mut self, question: u32) -> Result<(u32, Option<u64>), RemoteError> {
        let message = self.receive().await.expect("an answer");
        let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
            panic!("no answer")
        };
        let answer = answer.unwrap();
        assert_eq!(answer.get_answer_id(), question);
        match answer.which().unwrap() {
            return_::Results(results) => {
                let results = results.unwrap();
                let capabilities = results.get_cap_table().unwrap().len();
                let total = results.get_content().get_as::<counter::add_results::Reader<'_>>();
                Ok((capabilities, total.ok().map(counter::add_results::Reader::get_total)))
            }
            return_::Exception(reason) => {
                let reason = reason.unwrap().get_reason().unwrap().to_string().unwrap();
                Err(RemoteError::parse(&reason).unwrap_or_else(|| panic!("no code: {reason}")))
            }
            _ => panic!("another kind of answer"),
        }
    }
}

fn as_data(id: &[u8]) -> impl FnOnce(any_pointer::Builder<'_>) {
    move |mut pointer| pointer.set_as::<capnp::data::Owned>(id).unwrap()
}

fn as_text(id: &str) -> impl FnOnce(any_pointer::Builder<'_>) {
    move |mut pointer| pointer.set_as::<capnp::text::Owned>(id).unwrap()
}

#[test]
fn the_first_byte_of_a_foreign_client_is_the_first_of_a_message() {
    run(async {
        let asked = Rc::default();
        let mut client = Stock::connect(options(new_counter(), &asked)).await;
        // Nobody greets: had the other side sent anything, it would be what is read next.
        client.bootstrap(0, |_| ()).await;
        assert_eq!(client.answer(0).await.unwrap().0, 1);
        assert_eq!(client.session.peer_id(), None);
        drop(client.stream);
        assert!(matches!(client.session.closed().await, SessionEnd::Peer(_)));
        assert!(asked.borrow().is_empty());
    });
}

#[test]
fn an_object_named_in_the_first_message_is_restored_and_can_be_called_before_it_is_there() {
    run(async {
        let (asked, object) = (Rc::default(), Rc::new(Counter::default()));
        let mut client = Stock::connect(options(counter(object.clone()), &asked)).await;
        client.bootstrap(0, as_data(KNOWN)).await;
        for by in 1..=3 {
            client.add(u32::try_from(by).unwrap(), 0, by).await;
        }
        assert_eq!(client.answer(0).await.unwrap().0, 1);
        for (question, total) in [(1, 1), (2, 3), (3, 6)] {
            assert_eq!(client.answer(question).await.unwrap(), (0, Some(total)));
        }
        assert_eq!(*object.seen.borrow(), [1, 2, 3], "in the order in which they were made");
        // A Text is a name just as well. Its last byte is zero.
        client.bootstrap(4, as_text(std::str::from_utf8(KNOWN).unwrap())).await;
        assert_eq!(client.answer(4).await.unwrap().0, 1);
        assert_eq!(*asked.borrow(), [KNOWN.to_vec(), [KNOWN, &[0]].concat()]);
    });
}

#[test]
fn an_empty_id_is_the_name_of_the_bootstrap_capability() {
    run(async {
        let asked = Rc::default();
        let mut client = Stock::connect(options(new_counter(), &asked)).await;
        client.bootstrap(0, as_text("")).await;
        client.bootstrap(1, as_data(b"")).await;
        assert_eq!(client.answer(0).await.unwrap().0, 1);
        assert_eq!(client.answer(1).await.unwrap().0, 1);
        assert!(asked.borrow().is_empty());
    });
}

#[test]
fn an_id_that_leads_nowhere_fails_with_its_code_and_so_does_what_was_called_on_it() {
    run(async {
        let asked = Rc::default();
        let mut client = Stock::connect(options(new_counter(), &asked)).await;
        client.bootstrap(0, as_data(b"another")).await;
        client.add(1, 0, 5).await;
        for question in [0, 1] {
            assert_eq!(client.answer(question).await.unwrap_err().code, ErrorCode::RefDenied);
        }
        // The session goes on.
        client.bootstrap(2, as_data(KNOWN)).await;
        assert_eq!(client.answer(2).await.unwrap().0, 1);
    });
}

#[test]
fn what_cannot_be_an_id_is_refused_without_asking_for_it() {
    run(async {
        let asked = Rc::default();
        let mut client = Stock::connect(options(new_counter(), &asked)).await;
        let a_struct = |pointer: any_pointer::Builder<'_>| {
            pointer.init_as::<counter::add_params::Builder<'_>>();
        };
        client.bootstrap(0, a_struct).await;
        client.bootstrap(1, as_data(&vec![1; transport::limits::OBJECT_ID_BYTES + 1])).await;
        for question in [0, 1] {
            assert_eq!(client.answer(question).await.unwrap_err().code, ErrorCode::RefMalformed);
        }
        client.bootstrap(2, as_data(&vec![1; transport::limits::OBJECT_ID_BYTES])).await;
        assert_eq!(client.answer(2).await.unwrap_err().code, ErrorCode::RefDenied);
        assert_eq!(asked.borrow().len(), 1);
    });
}

#[test]
fn restoring_again_and_again_leaves_no_question_open() {
    run(async {
        let asked = Rc::default();
        let mut options = options(new_counter(), &asked);
        options.limits.open_questions = 2;
        let mut client = Stock::connect(options).await;
        for _ in 0..50 {
            client.bootstrap(7, as_data(KNOWN)).await;
            assert_eq!(client.answer(7).await.unwrap().0, 1);
            client.finish(7).await;
        }
        // Two may be open, and the third is told so.
        for question in 0..3 {
            client.bootstrap(question, as_data(KNOWN)).await;
        }
        for question in 0..2 {
            assert_eq!(client.answer(question).await.unwrap().0, 1);
        }
        assert_eq!(client.answer(2).await.unwrap_err().code, ErrorCode::SessionTooManyQuestions);
    });
}

#[test]
fn the_question_that_is_ours_is_no_question_of_a_peer() {
    run(async {
        let asked = Rc::default();
        let mut client = Stock::connect(options(new_counter(), &asked)).await;
        // Nothing can be reached through our question: it is finished before anything else is looked at.
        client.bootstrap(0, as_data(KNOWN)).await;
        client.add(1, u32::MAX, 5).await;
        assert!(client.receive().await.is_some());
        client.bootstrap(u32::MAX, |_| ()).await;
        let end = client.session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
        assert_eq!(end.code(), ErrorCode::SessionProtocol);
    });
}

#[test]
fn a_session_of_our_own_peers_looks_at_no_ids() {
    run(async {
        let (mut peer, _session) = RawPeer::greeted(&server(), serving(new_counter())).await;
        peer.send(|message| as_data(KNOWN)(message.init_bootstrap().init_deprecated_object_id())).await;
        let message = peer.receive().await.unwrap();
        let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
            panic!("no answer")
        };
        assert!(matches!(answer.unwrap().which(), Ok(return_::Results(_))));
    });
}
