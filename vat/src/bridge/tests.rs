//! What the bridge keeps of the sessions below it: when it dials, and when it does not.

use std::{cell::Cell, collections::VecDeque};

use bridge_capnp::bridge;
use schemas::{Hints, IdentityKey, Secret};
use tokio::{
    sync::Notify,
    task::{LocalSet, yield_now},
};
use transport::{Greeting, LocalListener, OutputGate, SessionLimits, SessionOptions};

use super::*;

/// Vats that are all reached in the same way: each through a session of its own.
#[derive(Default)]
struct World {
    dials: Cell<usize>,
    /// Of the next dials, those that fail.
    failing: RefCell<VecDeque<RemoteError>>,
    /// If there is one, who is not dialled there is not reached until told so.
    only_at: RefCell<Option<String>>,
    give_up: Notify,
    /// The far ends of the sessions. Dropping one ends its session.
    far_ends: RefCell<Vec<Session>>,
    /// While set, no vat answers.
    silent: Rc<Cell<bool>>,
}

/// Restores every secret, to another of its kind.
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
        let object: vat_capnp::vat::Client = capnp_rpc::new_client(AnyVat { silent: self.silent.clone() });
        results.get().init_capability().set_as_capability(object.client.hook);
        results.get().set_interface_id(7);
        Ok(())
    }

    async fn transfer(
        self: Rc<Self>,
        _: vat_capnp::vat::TransferParams,
        mut results: vat_capnp::vat::TransferResults,
    ) -> capnp::Result<()> {
        results.get().set_token(&[9; 32]);
        Ok(())
    }

    async fn schema(
        self: Rc<Self>,
        _: vat_capnp::vat::SchemaParams,
        mut results: vat_capnp::vat::SchemaResults,
    ) -> capnp::Result<()> {
        results.get().set_request(b"a schema");
        Ok(())
    }
}

impl World {
    fn reach(self: &Rc<Self>) -> Reach {
        let world = self.clone();
        Rc::new(move |address| Box::pin(world.clone().dial(address)))
    }

    async fn dial(self: Rc<Self>, address: VatAddress) -> Result<Reached, RemoteError> {
        self.dials.set(self.dials.get() + 1);
        let failing = self.failing.borrow_mut().pop_front();
        if let Some(error) = failing {
            return Err(error);
        }
        let is_elsewhere = self.only_at.borrow().as_ref().is_some_and(|at| !address.hints.addresses.contains(at));
        if is_elsewhere {
            self.give_up.notified().await;
            return Err(nowhere());
        }
        let folder = tempfile::tempdir().unwrap();
        let listener = LocalListener::bind(&folder.path().join("socket")).unwrap();
        let vat: vat_capnp::vat::Client = capnp_rpc::new_client(AnyVat { silent: self.silent.clone() });
        let accept = async { Session::accept_local(listener.accept().await.unwrap(), options(Some(vat.client))).await };
        let (far, near) = tokio::join!(accept, Session::open_local(listener.path(), options(None)));
        self.far_ends.borrow_mut().push(far.unwrap());
        let near = near.unwrap();
        Ok((near.bootstrap(), near))
    }
}

fn options(bootstrap: Option<Client>) -> SessionOptions {
    SessionOptions {
        greeting: Greeting { epoch: 0, incarnation: [0; 16], program: String::new() },
        bootstrap,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

fn nowhere() -> RemoteError {
    RemoteError { code: ErrorCode::VlsUnknownVat, message: "nobody knows it".to_owned() }
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

/// The object that it is given, or the code of the failure.
async fn object(client: &bridge::Client, reference: SturdyRef) -> Result<Client, ErrorCode> {
    let mut request = client.connect_request();
    request.get().set_uri(reference.expose().as_str());
    let answer = request.send().promise.await.map_err(|error| remote_failure(&error).0)?;
    assert_eq!(answer.get().unwrap().get_interface_id(), 7);
    Ok(answer.get().unwrap().get_object().get_as_capability().unwrap())
}

/// The interface that it is told, or the code of the failure. The object is released at once.
async fn connect(client: &bridge::Client, vat: u16) -> Result<u64, ErrorCode> {
    object(client, reference(vat)).await.map(|_| 7)
}

/// The same with a place where the vat may be.
async fn connect_at(client: &bridge::Client, vat: u16, address: &str) -> Result<u64, ErrorCode> {
    let hints = Hints { addresses: vec![address.to_owned()], ..Hints::default() };
    object(client, SturdyRef { hints, ..reference(vat) }).await.map(|_| 7)
}

/// The vat's own capability, as the bridge gives it.
async fn vat(client: &bridge::Client, vat: u16) -> Result<vat_capnp::vat::Client, ErrorCode> {
    let mut request = client.vat_request();
    request.get().set_address(reference(vat).address().to_string().as_str());
    let answer = request.send().promise.await.map_err(|error| remote_failure(&error).0)?;
    Ok(answer.get().unwrap().get_vat().unwrap())
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
        world.failing.borrow_mut().push_back(nowhere());
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
fn a_vat_is_dialled_at_every_place_that_somebody_knows_and_whoever_waits_gets_what_is_reached_first() {
    run(async {
        let (world, vats) = scene();
        world.only_at.replace(Some("192.0.2.7:1".to_owned()));
        let (one, other) = (client(&vats), client(&vats));
        // The first two know nothing, or a place where it is not; the third would wait for them in vain.
        let all =
            futures::join!(connect(&one, 1), connect_at(&one, 1, "192.0.2.8:1"), connect_at(&other, 1, "192.0.2.7:1"));
        assert_eq!(all, (Ok(7), Ok(7), Ok(7)));
        assert_eq!(world.dials.get(), 3);
        // Late failures change nothing.
        world.give_up.notify_waiters();
        yield_now().await;
        assert_eq!((connect_at(&other, 1, "192.0.2.9:1").await, world.dials.get()), (Ok(7), 3));
    });
}

#[test]
fn one_vat_is_dialled_a_few_times_at_once_and_other_places_are_tried_when_those_have_failed() {
    run(async {
        let (world, vats) = scene();
        world.only_at.replace(Some("192.0.2.7:1".to_owned()));
        let client = client(&vats);
        let wrong: Vec<String> = (0..MAX_DIALS_PER_VAT).map(|place| format!("192.0.2.8:{}", place + 1)).collect();
        let lost = futures::future::join_all(wrong.iter().map(|place| connect_at(&client, 1, place)));
        let found = connect_at(&client, 1, "192.0.2.7:1");
        futures::pin_mut!(lost, found);
        assert!(futures::poll!(&mut lost).is_pending() && futures::poll!(&mut found).is_pending());
        while world.dials.get() < MAX_DIALS_PER_VAT {
            yield_now().await;
        }
        world.give_up.notify_waiters();
        let (lost, found) = futures::join!(lost, found);
        assert_eq!((found, world.dials.get()), (Ok(7), MAX_DIALS_PER_VAT + 1));
        assert!(lost.iter().all(|lost| *lost == Err(ErrorCode::VlsUnknownVat)), "their places were tried: {lost:?}");
    });
}

#[test]
fn a_dial_that_panics_leaves_nobody_waiting_and_the_next_is_made_anew() {
    run(async {
        let (world, _) = scene();
        let (dial, broken) = (world.reach(), Cell::new(true));
        let reach: Reach = Rc::new(move |address| match broken.replace(false) {
            true => Box::pin(async { panic!("in the resolver") }),
            false => dial(address),
        });
        let client = client(&Vats::new(reach, DEADLINE));
        assert_eq!((connect(&client, 1).await, connect(&client, 1).await), (Err(ErrorCode::Internal), Ok(7)));
    });
}

#[test]
fn a_vat_offers_no_streams_through_the_bridge_and_all_else() {
    run(async {
        let (_world, vats) = scene();
        let client = client(&vats);
        let vat = vat(&client, 1).await.unwrap();
        let error = vat.transfer_request().send().promise.await.err().unwrap();
        assert_eq!(remote_failure(&error).0, ErrorCode::BulkUnavailable);
        let schema = vat.schema_request().send().promise.await.unwrap();
        assert_eq!(schema.get().unwrap().get_request().unwrap(), b"a schema");
        let mut request = vat.restore_request();
        request.get().set_secret(&[1; 32]);
        let asked = request.send();
        let object = vat_capnp::vat::Client { client: Client::new(asked.pipeline.get_capability().as_cap()) };
        let (answer, schema) = futures::join!(asked.promise, object.schema_request().send().promise);
        assert_eq!(answer.unwrap().get().unwrap().get_interface_id(), 7);
        assert!(schema.is_ok(), "what is called on the answer goes to the vat");
    });
}

#[test]
fn one_client_holds_something_of_so_many_vats_at_once_and_meets_as_many_as_it_likes() {
    run(async {
        let (world, vats) = scene();
        let client = client(&vats);
        let most = u16::try_from(MAX_VATS_PER_CLIENT).unwrap();
        let mut objects = Vec::new();
        for number in 1..most {
            objects.push(object(&client, reference(number)).await.unwrap());
        }
        // The last place goes from one vat to the next, as nothing of them is kept.
        for number in most..most + 5 {
            assert_eq!(connect(&client, number).await, Ok(7));
        }
        assert_eq!(world.dials.get(), usize::from(most) + 4);
        // A vat's own capability is something too.
        let own = vat(&client, most).await.unwrap();
        assert_eq!(connect(&client, most + 1).await, Err(ErrorCode::SessionLimit));
        assert_eq!(connect(&client, 3).await, Ok(7), "one of those that it has");
        drop(own);
        assert_eq!(connect(&client, most + 1).await, Ok(7));
        let own = vat(&client, most).await.unwrap();
        // Whoever releases its object of a vat makes room, and nobody loses any by that.
        objects.remove(6);
        while connect(&client, most + 2).await.is_err() {
            yield_now().await;
        }
        assert!(own.schema_request().send().promise.await.is_ok());
        for object in objects {
            let object = vat_capnp::vat::Client { client: object };
            assert!(object.schema_request().send().promise.await.is_ok());
        }
    });
}

#[test]
fn a_session_that_has_ended_takes_no_place() {
    run(async {
        let (world, vats) = scene();
        let client = client(&vats);
        let most = u16::try_from(MAX_VATS_PER_CLIENT).unwrap();
        let mut objects = Vec::new();
        for number in 0..most {
            objects.push(object(&client, reference(number)).await.unwrap());
        }
        assert_eq!(connect(&client, most).await, Err(ErrorCode::SessionLimit));
        let link = vats.link(reference(3).address()).await.unwrap();
        world.far_ends.borrow_mut().remove(3);
        link.session.closed().await;
        assert_eq!(connect(&client, most).await, Ok(7));
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
