//! Streams of calls: who streams waits for room, and not for answers.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use capnp::capability::{Client, Promise};
use futures::FutureExt;
use schemas::{objects_capnp::counter, vat_capnp::vat};
use tokio::{sync::Notify, task::spawn_local};
use transport::limits;

use crate::{
    memory,
    raw::COUNTER,
    support::{Vat, add, options, restored, run, serving, sessions},
};

/// Counts calls, and answers each when it is told to.
#[derive(Default)]
struct Slow {
    calls: Cell<usize>,
    given_up: Rc<Cell<usize>>,
    answered: RefCell<Rc<Notify>>,
    fails: Cell<bool>,
}

impl Slow {
    fn answer_all(&self) {
        self.answered.replace(Rc::default()).notify_waiters();
    }

    async fn called(&self, times: usize) {
        while self.calls.get() < times {
            tokio::task::yield_now().await;
        }
    }
}

/// Counts when it is dropped.
struct Dropped(Rc<Cell<usize>>);
impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl counter::Server for Slow {
    async fn add(
        self: Rc<Self>,
        _params: counter::AddParams,
        _results: counter::AddResults,
    ) -> Result<(), capnp::Error> {
        self.calls.set(self.calls.get() + 1);
        let running = Dropped(self.given_up.clone());
        let answered = self.answered.borrow().clone();
        answered.notified().await;
        std::mem::forget(running);
        if self.fails.get() { Err(capnp::Error::failed("no room left".to_owned())) } else { Ok(()) }
    }
}

/// Streams a call of `bytes` bytes and some.
fn stream(client: &Client, bytes: usize) -> Promise<(), capnp::Error> {
    let mut request = client.hook.new_call(COUNTER, 0, None);
    request.get().set_as::<capnp::data::Owned>(&vec![7; bytes][..]).unwrap();
    request.hook.send_streaming()
}

/// So many calls of a fourth of what may be on its way are sent without waiting.
const PART: usize = limits::STREAMED_BYTES / 4;

#[test]
fn who_streams_waits_while_a_window_is_on_its_way_and_goes_on_with_the_answers() {
    run(async {
        let slow = Rc::new(Slow::default());
        let object: counter::Client = capnp_rpc::new_client_from_rc(slow.clone());
        let (dialling, _accepting) = sessions(options(), serving(object.client)).await;
        let theirs: Client = dialling.bootstrap();
        for _ in 0..4 {
            assert!(stream(&theirs, PART).now_or_never().expect("room").is_ok());
        }
        let mut waiting = [stream(&theirs, PART), stream(&theirs, PART)];
        // They have been sent all the same: order is kept, and who does not wait is not held up.
        slow.called(6).await;
        for waiting in &mut waiting {
            assert!(waiting.now_or_never().is_none());
        }
        slow.answer_all();
        for waiting in waiting {
            waiting.await.unwrap();
        }
        assert!(stream(&theirs, PART).now_or_never().expect("room again").is_ok());
    });
}

#[test]
fn who_streams_learns_that_a_call_has_failed() {
    run(async {
        let slow = Rc::new(Slow::default());
        slow.fails.set(true);
        let object: counter::Client = capnp_rpc::new_client_from_rc(slow.clone());
        let (dialling, _accepting) = sessions(options(), serving(object.client)).await;
        let theirs: Client = dialling.bootstrap();
        theirs.hook.when_resolved().await.unwrap();
        for _ in 0..2 {
            stream(&theirs, 2 * PART).await.unwrap();
        }
        let mut waiting = stream(&theirs, 2 * PART);
        assert!((&mut waiting).now_or_never().is_none());
        slow.called(3).await;
        slow.answer_all();
        let error = waiting.await.unwrap_err();
        assert!(error.extra.contains("no room left"), "{error}");
        let error = stream(&theirs, 1).await.unwrap_err();
        assert!(error.extra.contains("no room left"), "{error}");
    });
}

#[test]
fn who_streams_learns_that_the_session_has_ended() {
    run(async {
        let object: counter::Client = capnp_rpc::new_client(Slow::default());
        let (dialling, accepting) = sessions(options(), serving(object.client)).await;
        let theirs: Client = dialling.bootstrap();
        let (first, second) = (stream(&theirs, 4 * PART), stream(&theirs, 4 * PART));
        first.await.unwrap();
        let third = stream(&theirs, 4 * PART);
        accepting.close();
        for waiting in [second, third] {
            assert_eq!(waiting.await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
        }
    });
}

#[test]
fn streamed_calls_outlive_the_capability() {
    run(async {
        let slow = Rc::new(Slow::default());
        let object: counter::Client = capnp_rpc::new_client_from_rc(slow.clone());
        let vat: vat::Client = capnp_rpc::new_client(Vat(object.client));
        let (dialling, _accepting) = sessions(options(), serving(vat.client)).await;
        let vat: vat::Client = dialling.bootstrap();
        let theirs = restored(&vat);
        for _ in 0..3 {
            stream(&theirs.client, 10).await.unwrap();
        }
        slow.called(3).await;
        drop(theirs);
        // A round trip behind whatever the drop has said.
        vat.restore_request().send().promise.await.unwrap();
        assert_eq!(slow.given_up.get(), 0);
        slow.answer_all();
    });
}

/// Makes a counter of its own for each who asks.
struct Many;
impl vat::Server for Many {
    async fn restore(
        self: Rc<Self>,
        _params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        results.get().init_capability().set_as_capability(crate::support::new_counter().hook);
        Ok(())
    }
}

#[test]
fn nothing_is_left_of_a_stream_when_its_capability_is_gone() {
    run(async {
        let vat: vat::Client = capnp_rpc::new_client(Many);
        let (dialling, _accepting) = sessions(options(), serving(vat.client)).await;
        let vat: vat::Client = dialling.bootstrap();
        let round = async || {
            let (promised, there) = (restored(&vat), restored(&vat));
            there.client.when_resolved().await.unwrap();
            for counter in [promised, there] {
                let mut request = counter.add_request();
                request.get().set_by(1);
                spawn_local(request.hook.send_streaming()).await.unwrap().unwrap();
                assert_eq!(add(&counter, 1).await.unwrap(), 2);
            }
        };
        for _ in 0..100 {
            round().await;
        }
        let before = memory::held();
        for _ in 0..500 {
            round().await;
        }
        let more = memory::held() - before;
        assert!(more < 10_000, "{more} bytes are left of 1,000 streams");
    });
}
