//! Sessions: the greeting of a stream, and RPC messages after a valid one.
//!
//! Over a real local socket, since that is a stream without keys: the input is written, the stream is ended, and
//! the session must come to its end by itself.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use capnp::{
    capability::{Client, FromClientHook},
    message::Builder,
};
use schemas::{session_capnp::hello, vat_capnp};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::Runtime,
    task::LocalSet,
};
use transport::{
    Greeting, LocalListener, OutputGate, Session, SessionError, SessionLimits, SessionOptions, frames::FrameDecoder,
    hello::SESSION_VERSION,
};

/// How long a session may take to end after its stream has: no input takes a thousandth of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most words of one message of [`messages`]; more than any that does something new.
const MESSAGE_WORDS: usize = 256;

struct Scene {
    runtime: Runtime,
    listener: LocalListener,
    folder: TempDir,
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

impl Scene {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listener = runtime.block_on(async { LocalListener::bind(&folder.path().join("socket")) }).unwrap();
        Self { runtime, listener, folder }
    }

    /// What becomes of a session whose peer sends `bytes` and then ends its stream.
    fn receive(&self, bytes: &[u8], call: impl Fn(&Session)) -> Result<(), SessionError> {
        let began = Instant::now();
        let local = LocalSet::new();
        let outcome = local.block_on(&self.runtime, async {
            let stranger = async {
                let mut stream = UnixStream::connect(self.folder.path().join("socket")).await.unwrap();
                let (mut input, mut output) = stream.split();
                let send = async {
                    // The other side may have had enough.
                    let _ = output.write_all(bytes).await;
                    let _ = output.shutdown().await;
                };
                let mut heard = Vec::new();
                let (_, ()) = tokio::join!(input.read_to_end(&mut heard), send);
                heard
            };
            let ours = async {
                let stream = self.listener.accept().await.unwrap();
                let session = Session::accept_local(stream, options()).await?;
                call(&session);
                let end = session.closed().await;
                assert!(session.end().is_some(), "{end}");
                Ok(())
            };
            let both = async { tokio::join!(stranger, ours) };
            let (heard, outcome) = tokio::time::timeout(PATIENCE, both).await.expect("a session that does not end");
            check_what_was_heard(&heard);
            outcome
        });
        assert!(began.elapsed() < PATIENCE, "an input that takes that long hangs a thread");
        outcome
    }
}

fn with_scene<T>(work: impl FnOnce(&Scene) -> T) -> T {
    SCENE.with_borrow_mut(|scene| work(scene.get_or_insert_with(Scene::new)))
}

fn options() -> SessionOptions {
    let bootstrap: vat_capnp::vat::Client = capnp_rpc::new_client(Public);
    SessionOptions {
        greeting: Greeting { epoch: 1, incarnation: [1; 16], program: "fuzz".to_owned() },
        bootstrap: Some(bootstrap.client),
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

/// Whatever a stranger says, what we say is well-formed.
fn check_what_was_heard(heard: &[u8]) {
    let limits = SessionLimits::default();
    let mut decoder = FrameDecoder::new(transport::frames::FrameLimits {
        message_bytes: limits.message_bytes,
        segments: limits.segments,
    });
    let Some(mut rest) = heard.get(preface().len()..) else { return };
    while !rest.is_empty() {
        decoder.push(&mut rest).expect("frames");
    }
}

/// The first bytes of a stream, up to its end.
pub fn greetings(data: &[u8]) {
    let outcome = with_scene(|scene| scene.receive(data, |_| {}));
    if outcome.is_ok() {
        assert!(data.starts_with(b"vat\0"));
    }
}

/// RPC messages after a valid greeting. The input is cut into messages by the number of words before each, 16 bits
/// little-endian; what is missing at the end is zero. That leaves the framing, which has a target of its own, out
/// of the way.
///
/// Before them the stranger asks for the bootstrap capability (question 0) and restores an object of it (question 1),
/// and this side does the same with the stranger's (questions 0 and 1), so that there is something to answer, to
/// call, to finish and to release.
pub fn messages(data: &[u8]) {
    let mut bytes = greeting();
    for message in [crate::seeds::bootstrap(0), crate::seeds::restore(1, 0)] {
        bytes.extend(message);
    }
    bytes.extend(framed(data));
    let outcome = with_scene(|scene| {
        scene.receive(&bytes, |session| {
            let theirs: vat_capnp::vat::Client = session.bootstrap();
            let restoring = theirs.restore_request().send();
            let object: vat_capnp::owner::Client = FromClientHook::new(restoring.pipeline.get_capability().as_cap());
            let asked = object.status_request().send().promise;
            tokio::task::spawn_local(async move {
                // Whatever is answered is looked at, as a caller would.
                if let Ok(answer) = restoring.promise.await
                    && let Ok(results) = answer.get()
                {
                    let _ = results.get_capability().get_as_capability::<Client>();
                    let _ = results.get_interface_id();
                }
            });
            tokio::task::spawn_local(async move {
                let Ok(answer) = asked.await else { return };
                let Ok(status) = answer.get().and_then(vat_capnp::owner::status_results::Reader::get_status) else {
                    return;
                };
                let _ = (status.get_id().is_ok(), status.get_object().is_ok(), status.get_registrations().is_ok());
            });
        })
    });
    outcome.expect("the greeting is valid");
}

/// The messages of an input of [`messages`] in stream framing.
fn framed(mut data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let words = usize::from(u16::from_le_bytes(*length)).min(MESSAGE_WORDS);
        let (content, rest) = rest.split_at(rest.len().min(words * 8));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(u32::try_from(words).unwrap().to_le_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len() + words * 8 - content.len(), 0);
        data = rest;
    }
    bytes
}

/// The first bytes of every stream of a session.
pub(crate) fn preface() -> Vec<u8> {
    [b"vat\0", &1_u16.to_le_bytes()[..], &SESSION_VERSION.to_le_bytes()[..]].concat()
}

/// A valid greeting.
pub(crate) fn greeting() -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut hello: hello::Builder<'_> = message.init_root();
    hello.set_version(SESSION_VERSION);
    hello.set_epoch(1);
    hello.set_incarnation(&[2; 16]);
    hello.set_program("stranger 1.0");
    [preface(), capnp::serialize::write_message_to_words(&message)].concat()
}

/// Restores an object for any secret.
struct Public;

impl vat_capnp::vat::Server for Public {
    async fn restore(
        self: Rc<Self>,
        params: vat_capnp::vat::RestoreParams,
        mut results: vat_capnp::vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        params.get()?.get_secret()?;
        let object: vat_capnp::owner::Client = capnp_rpc::new_client(Object::default());
        results.get().init_capability().set_as_capability(object.client.hook);
        Ok(())
    }
}

/// Keeps a capability that it is given, calls it, and passes it on.
#[derive(Default)]
struct Object {
    kept: RefCell<Option<Client>>,
}

impl vat_capnp::owner::Server for Object {
    /// Keeps a capability.
    async fn share(
        self: Rc<Self>,
        params: vat_capnp::owner::ShareParams,
        mut results: vat_capnp::owner::ShareResults,
    ) -> Result<(), capnp::Error> {
        let object = params.get()?.get_object().get_as_capability::<Client>()?;
        self.kept.replace(Some(object));
        results.get().set_secret(&[7; 32]);
        Ok(())
    }

    /// Passes it on, to where it came from.
    async fn root(
        self: Rc<Self>,
        _params: vat_capnp::owner::RootParams,
        mut results: vat_capnp::owner::RootResults,
    ) -> Result<(), capnp::Error> {
        if let Some(kept) = &*self.kept.borrow() {
            results.get().init_capability().set_as_capability(kept.hook.add_ref());
        }
        Ok(())
    }

    /// Calls a capability and waits for its answer.
    async fn verify(
        self: Rc<Self>,
        params: vat_capnp::owner::VerifyParams,
        mut results: vat_capnp::owner::VerifyResults,
    ) -> Result<(), capnp::Error> {
        let progress = params.get()?.get_progress()?;
        progress.advanced_request().send().promise.await?;
        results.get().set_turn(1);
        Ok(())
    }

    /// A capability of its own.
    async fn vat(
        self: Rc<Self>,
        _params: vat_capnp::owner::VatParams,
        mut results: vat_capnp::owner::VatResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_vat(capnp_rpc::new_client(Public));
        Ok(())
    }
}
