//! What the bridge keeps of the sessions below it: when it dials, and when it does not.

use std::{cell::Cell, collections::VecDeque};

use bridge_capnp::bridge;
use schemas::{Hints, IdentityKey, Secret};
use tokio::task::LocalSet;
use transport::{ForeignOptions, LocalListener, LocalStream, OutputGate, SessionLimits, dial_local};

use super::*;

/// Vats that are all reached in the same way: through a session on which nothing is said.
#[derive(Default)]
struct World {
    dials: Cell<usize>,
    /// Of the next dials, those that fail.
    failing: RefCell<VecDeque<RemoteError>>,
    /// The far ends of the sessions. Dropping one ends its session.
    far_ends: RefCell<Vec<LocalStream>>,
    /// While set, no vat answers.
    silent: Rc<Cell<bool>>,
}

/// Restores every secret, to itself.
struct AnyVat {
    silent: Rc<Cell<bool>>,
}

impl vat_capnp::vat::Server for AnyVat {
    async fn restore(
        self: Rc<Self>,
        _: vat_capnp::vat::RestoreParams,
        mut results: vat_capnp::vat::RestoreResults,
    ) -> capnp::Result<()> {
        if self.silent.get() {
            return std::future::pending().await;
        }
        let object: vat_capnp::vat::Client = capnp_rpc::new_client_from_rc(self);
        results.get().init_capability().set_as_capability(object.client.hook);
        results.get().set_interface_id(7);
        Ok(())
    }
}

impl World {
    fn reach(self: &Rc<Self>) -> Reach {
        let world = self.clone();
        Rc::new(move |_| Box::pin(world.clone().dial()))
    }

    async fn dial(self: Rc<Self>) -> Result<Reached, RemoteError> {
        self.dials.set(self.dials.get() + 1);
        let failing = self.failing.borrow_mut().pop_front();
        if let Some(error) = failing {
            return Err(error);
        }
        let folder = tempfile::tempdir().unwrap();
        let listener = LocalListener::bind(&folder.path().join("socket")).unwrap();
        let (far, near) = tokio::join!(dial_local(listener.path()), listener.accept());
        self.far_ends.borrow_mut().push(far.unwrap());
        let vat: vat_capnp::vat::Client = capnp_rpc::new_client(AnyVat { silent: self.silent.clone() });
        let options = ForeignOptions {
            bootstrap: vat.client.clone(),
            restore: Rc::new(|_| Promise::err(capnp::Error::failed(String::new()))),
            gate: OutputGate::always_open(),
            limits: SessionLimits::default(),
        };
        Ok((vat, Session::accept_foreign(near.unwrap().into(), options)))
    }
}

/// A client of a bridge of its own, or of that of another client.
fn client(vats: &Rc<Vats>) -> bridge::Client {
    capnp_rpc::new_client_from_rc(BridgeService::new(vats.clone()))
}

fn reference(vat: u16) -> SturdyRef {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&vat.to_le_bytes());
    let id = IdentityKey::from_seed(&seed).id();
    SturdyRef { id, secret: Secret::from_slice(&[1; 32]).unwrap(), hints: Hints::default() }
}

/// The interface that it is told, or the code of the failure.
async fn connect(client: &bridge::Client, vat: u16) -> Result<u64, ErrorCode> {
    let mut request = client.connect_request();
    request.get().set_uri(reference(vat).expose().as_str());
    let answer = request.send().promise.await.map_err(|error| remote_failure(&error).0)?;
    Ok(answer.get().unwrap().get_interface_id())
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

const DEADLINE: Duration = Duration::from_secs(30);

fn scene() -> (Rc<World>, Rc<Vats>) {
    let world = Rc::new(World::default());
    let vats = Vats::new(world.reach(), DEADLINE);
    (world, vats)
}

#[test]
fn all_clients_share_one_session_with_a_vat_and_it_ends_with_the_last_of_them() {
    run(async {
        let (world, vats) = scene();
        let (one, other) = (client(&vats), client(&vats));
        let all = [connect(&one, 1), connect(&other, 1), connect(&one, 1)];
        assert_eq!(futures::future::join_all(all).await, [Ok(7), Ok(7), Ok(7)]);
        assert_eq!((connect(&other, 1).await, world.dials.get()), (Ok(7), 1));
        assert_eq!((connect(&other, 2).await, world.dials.get()), (Ok(7), 2));
        drop(one);
        assert_eq!((connect(&other, 1).await, world.dials.get()), (Ok(7), 2));
        drop(other);
        assert_eq!((connect(&client(&vats), 1).await, world.dials.get()), (Ok(7), 3));
    });
}

#[test]
fn a_vat_that_was_not_reached_is_looked_for_again_by_the_next_who_asks() {
    run(async {
        let (world, vats) = scene();
        let unknown = RemoteError { code: ErrorCode::VlsUnknownVat, message: "nobody knows it".to_owned() };
        world.failing.borrow_mut().push_back(unknown);
        let client = client(&vats);
        let all = [connect(&client, 1), connect(&client, 1)];
        assert_eq!(futures::future::join_all(all).await, [Err(ErrorCode::VlsUnknownVat); 2]);
        assert_eq!((world.dials.get(), connect(&client, 1).await, world.dials.get()), (1, Ok(7), 2));
    });
}

#[test]
fn a_session_that_has_ended_is_not_used_again() {
    run(async {
        let (world, vats) = scene();
        let client = client(&vats);
        assert_eq!(connect(&client, 1).await, Ok(7));
        let link = vats.link(reference(1).address()).await.unwrap();
        world.far_ends.borrow_mut().clear();
        link.session.closed().await;
        assert_eq!((connect(&client, 1).await, world.dials.get()), (Ok(7), 2));
    });
}

#[test]
fn a_vat_that_is_silent_is_dialled_anew_for_the_next_who_asks_and_may_still_answer_the_first() {
    run(async {
        let (world, vats) = scene();
        let client = client(&vats);
        assert_eq!(connect(&client, 1).await, Ok(7));
        world.silent.set(true);
        let waiting = connect(&client, 1);
        futures::pin_mut!(waiting);
        assert!(timeout(SILENCE_PATIENCE * 2, &mut waiting).await.is_err());
        world.silent.set(false);
        assert_eq!((connect(&client, 1).await, world.dials.get()), (Ok(7), 2));
        // The old session was left to those who use it, until its vat is silent for too long.
        assert_eq!(waiting.await, Err(ErrorCode::NetTimeout));
        assert!(vats.link(reference(1).address()).await.is_ok_and(|link| link.session.end().is_none()));
    });
}

#[test]
fn one_client_holds_sessions_with_so_many_vats_and_no_more() {
    run(async {
        let (world, vats) = scene();
        let client = client(&vats);
        let most = u16::try_from(MAX_VATS_PER_CLIENT).unwrap();
        for vat in 0..most {
            assert_eq!(connect(&client, vat).await, Ok(7));
        }
        assert_eq!(connect(&client, most).await, Err(ErrorCode::SessionLimit));
        assert_eq!(connect(&client, 3).await, Ok(7), "one of those that it has");
        let link = vats.link(reference(3).address()).await.unwrap();
        world.far_ends.borrow_mut().remove(3);
        link.session.closed().await;
        assert_eq!(connect(&client, most).await, Ok(7), "in the place of one that has ended");
    });
}

#[test]
fn what_is_no_reference_is_refused_before_anything_is_dialled() {
    run(async {
        let (world, vats) = scene();
        let client = client(&vats);
        for (uri, code) in [("", ErrorCode::RefMalformed), ("vat://x", ErrorCode::RefMalformed)] {
            let mut request = client.connect_request();
            request.get().set_uri(uri);
            assert_eq!(remote_failure(&request.send().promise.await.err().unwrap()).0, code);
        }
        let mut request = client.vat_request();
        request.get().set_address(reference(1).expose().as_str());
        let error = request.send().promise.await.err().unwrap();
        assert_eq!(remote_failure(&error).0, ErrorCode::RefMalformed, "a secret is no address: {error}");
        assert_eq!(world.dials.get(), 0);
    });
}
