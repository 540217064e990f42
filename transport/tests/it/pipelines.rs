//! Calls on results that are not there yet, or are not what they should be.

use std::{cell::RefCell, rc::Rc};

use capnp::capability::Client;
use capnp_rpc::rpc_capnp::return_;
use schemas::{
    ErrorCode, RemoteError,
    vat_capnp::{self, owner},
};
use transport::{SessionEnd, Violation, limits};

use crate::{
    raw::{Answer, COUNTER, OWNER, RawPeer, VAT, VERIFY, set_capability},
    scene::attack,
    support::new_counter,
};

/// Answers nothing.
struct Never;
impl vat_capnp::vat::Server for Never {
    async fn restore(
        self: Rc<Self>,
        _params: vat_capnp::vat::RestoreParams,
        _results: vat_capnp::vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        std::future::pending().await
    }
}

fn never() -> Client {
    let object: vat_capnp::vat::Client = capnp_rpc::new_client(Never);
    object.client
}

/// More calls than overflow a stack of 2 MiB, the size of those that this runs on, when each waits for the one
/// before: the whole process would end.
const CHAIN: u32 = 2_000;

/// How many of them are waited for.
const FOLLOWED: u32 = limits::PIPELINE_DEPTH as u32;

#[test]
fn a_chain_of_calls_each_on_the_result_of_the_one_before() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(never()).await;
        peer.bootstrap(0).await;
        peer.call(1, 0, VAT, 0).await;
        for question in 2..CHAIN {
            peer.call_with(question, question - 1, VAT, 0, |call| {
                let mut target = call.init_target().init_promised_answer();
                target.set_question_id(question - 1);
                target.init_transform(1).get(0).set_get_pointer_field(0);
            })
            .await;
        }
        assert_eq!(peer.answer_to(FOLLOWED + 1).await.code(), Some(ErrorCode::SessionTooDeep));
        // The next ones are made on the result of one that was refused.
        for question in FOLLOWED + 2..CHAIN {
            assert!(peer.answer_to(question).await.code().is_some());
        }
        peer.finish(1, true).await;
        scene.honest_peer_is_served().await;
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Keeps what it is given until it is told.
pub(crate) struct Waits(pub(crate) tokio::sync::watch::Receiver<bool>);
impl owner::Server for Waits {
    async fn verify(
        self: Rc<Self>,
        params: owner::VerifyParams,
        _results: owner::VerifyResults,
    ) -> Result<(), capnp::Error> {
        let given = params.get()?.get_progress()?;
        let _ = self.0.clone().wait_for(|told| *told).await;
        drop(given);
        Ok(())
    }
}

#[test]
fn a_chain_of_calls_each_with_the_result_of_the_one_before_as_its_parameter() {
    attack(async |scene| {
        let (tell, told) = tokio::sync::watch::channel(false);
        let object: owner::Client = capnp_rpc::new_client(Waits(told));
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        for question in 1..CHAIN {
            peer.call_with(question, 0, OWNER, VERIFY, |call| {
                let mut params = call.init_params();
                set_capability(params.reborrow(), 0);
                let mut passed = params.get_cap_table().unwrap().get(0).init_receiver_answer();
                passed.set_question_id(question - 1);
                passed.init_transform(1).get(0).set_get_pointer_field(0);
            })
            .await;
        }
        // The bootstrap is answered, so the chain begins with the first call; after one that was refused it begins again.
        for question in (FOLLOWED + 1..CHAIN).step_by(FOLLOWED as usize + 1) {
            assert_eq!(peer.answer_to(question).await.code(), Some(ErrorCode::SessionTooDeep));
        }
        tell.send(true).unwrap();
        scene.honest_peer_is_served().await;
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_million_steps_from_an_answer_to_a_capability() {
    attack(async |scene| {
        for as_parameter in [false, true] {
            let (mut peer, session) = scene.attack(never()).await;
            peer.bootstrap(0).await;
            peer.call_with(1, 0, VAT, 0, |call| {
                let mut target = if as_parameter {
                    let mut params = call.init_params();
                    set_capability(params.reborrow(), 0);
                    params.get_cap_table().unwrap().get(0).init_receiver_answer()
                } else {
                    call.init_target().init_promised_answer()
                };
                target.set_question_id(0);
                let mut steps = target.init_transform(1_000_000);
                (0..1_000_000).for_each(|index| steps.reborrow().get(index).set_get_pointer_field(1));
            })
            .await;
            let end = session.closed().await;
            let SessionEnd::Violation(Violation::Steps { found, limit }) = end else { panic!("{end}") };
            assert_eq!((found, limit), (1_000_000, 64));
            assert_eq!(peer.told().await.code, ErrorCode::SessionTooDeep);
        }
    });
}

/// Calls `restore` of the peer from this side, has it answered by `fill`, and returns what came of it.
async fn restored_from(
    scene: &crate::scene::Scene,
    fill: impl FnOnce(return_::Builder<'_>),
) -> (capnp::capability::RemotePromise<vat_capnp::vat::restore_results::Owned>, RawPeer, transport::Session) {
    let (mut peer, session) = scene.attack(new_counter()).await;
    let theirs: vat_capnp::vat::Client = session.bootstrap();
    let asked = theirs.restore_request().send();
    let question = peer.called().await;
    peer.answer(question, fill).await;
    (asked, peer, session)
}

#[test]
fn results_that_are_no_struct_fail_the_call_and_can_be_pipelined_on_late() {
    attack(async |scene| {
        let (asked, peer, session) =
            restored_from(scene, |answer| answer.init_results().init_content().set_as("no struct").unwrap()).await;
        let error = asked.promise.await.err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionProtocol);
        // capnp-rpc would panic here.
        let late: schemas::objects_capnp::counter::Client =
            capnp::capability::FromClientHook::new(asked.pipeline.get_capability().as_cap());
        assert!(crate::support::add(&late, 1).await.is_err());
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Pipelines on the peer's results after they have come.
struct TooLate(RefCell<Option<vat_capnp::vat::Client>>);
impl schemas::objects_capnp::counter::Server for TooLate {
    async fn get(
        self: Rc<Self>,
        _params: schemas::objects_capnp::counter::GetParams,
        _results: schemas::objects_capnp::counter::GetResults,
    ) -> Result<(), capnp::Error> {
        let theirs = self.0.borrow().clone().unwrap();
        let asked = theirs.restore_request().send();
        asked.promise.await?;
        let _ = asked.pipeline.get_capability().as_cap();
        Ok(())
    }
}

#[test]
fn a_missing_capability_that_an_object_pipelines_on_too_late_is_a_broken_one() {
    attack(async |scene| {
        let object = Rc::new(TooLate(Default::default()));
        let client: schemas::objects_capnp::counter::Client = capnp_rpc::new_client_from_rc(object.clone());
        let (mut peer, session) = scene.attack(client.client).await;
        *object.0.borrow_mut() = Some(session.bootstrap());
        peer.bootstrap(0).await;
        peer.call(1, 0, COUNTER, 1).await;
        let question = peer.called().await;
        peer.answer(question, |answer| {
            answer.init_results().init_content().init_as::<vat_capnp::vat::restore_results::Builder<'_>>();
        })
        .await;
        // capnp-rpc would panic here; the object may do with it what it likes, which is nothing.
        assert_eq!(peer.answer_to(1).await, Answer::Results(0));
        object.0.borrow_mut().take();
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_call_on_its_own_result() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.call(1, 1, COUNTER, 1).await;
        assert!(matches!(peer.answer_to(1).await, Answer::Exception(..)));
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// How much what an attacker holds may take of this thread, where without a bound it would be many times that.
const LITTLE: i64 = 2 << 20;

#[test]
fn calls_with_long_parameters_that_wait_for_another_and_are_given_up() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(never()).await;
        peer.bootstrap(0).await;
        peer.call(1, 0, VAT, 0).await;
        let before = crate::memory::held();
        for question in 2..302 {
            peer.call_with(question, 1, COUNTER, 1, |call| {
                let long: &[u8] = &[7; 64 << 10];
                call.init_params().init_content().set_as::<capnp::data::Owned>(long).unwrap();
            })
            .await;
            peer.finish(question, true).await;
            assert_eq!(peer.answer_to(question).await, Answer::Canceled);
        }
        assert!(crate::memory::held() < before + LITTLE, "{} bytes more", crate::memory::held() - before);
        (peer, session)
    });
}

#[test]
fn promises_that_are_passed_on_over_and_over_and_wanted_by_nobody() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(never()).await;
        peer.bootstrap(0).await;
        peer.call(1, 0, VAT, 0).await;
        let before = crate::memory::held();
        for _ in 0..300 {
            // To what no question brings, so that the call fails at once.
            peer.call_with(2, 99, COUNTER, 1, |call| {
                let mut params = call.init_params();
                set_capability(params.reborrow(), 255);
                let mut table = params.get_cap_table().unwrap();
                for index in 0..256 {
                    table.reborrow().get(index).init_receiver_answer().set_question_id(1);
                }
            })
            .await;
            assert!(matches!(peer.answer_to(2).await, Answer::Exception(..)));
            peer.finish(2, true).await;
        }
        assert!(crate::memory::held() < before + LITTLE, "{} bytes more", crate::memory::held() - before);
        (peer, session)
    });
}

#[test]
fn an_answer_that_cannot_be_read_and_needs_no_finish() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: vat_capnp::vat::Client = session.bootstrap();
        let asked = theirs.restore_request().send();
        let question = peer.called().await;
        let mut message = capnp::message::Builder::new_default();
        let mut answer = message.init_root::<capnp_rpc::rpc_capnp::message::Builder<'_>>().init_return();
        answer.set_answer_id(question);
        answer.set_no_finish_needed(true);
        let mut results = answer.init_results();
        set_capability(results.reborrow(), 0);
        results.get_cap_table().unwrap().get(0).set_receiver_hosted(0x0077_6655);
        let mut bytes = capnp::serialize::write_message_to_words(&message);
        // A descriptor of a kind that the schema does not have: its kind is the half-word before its number.
        let number = bytes.windows(4).position(|bytes| bytes == 0x0077_6655_u32.to_le_bytes()).unwrap();
        bytes[number - 4] = 9;
        peer.write(&bytes).await;
        assert!(asked.promise.await.is_err(), "whoever waits is told");
        (peer, session)
    });
}
