//! Sessions with clients of other Cap'n Proto implementations (DESIGN §6, "Foreign clients").
//!
//! Such a client knows neither our preface nor our greeting: its first byte is already the first of an RPC
//! message. Everything behind that is the same as for our own peers, the output gate, every limit, and the
//! screening of each message.
//!
//! Who it is was found out below, or was not: the kernel says whose process is behind a local socket, and a raw
//! key in TLS is a proof. Everyone else is anonymous, which costs them nothing, because it is references that
//! give authority here.
//!
//! Some clients name the object that they want in the very first message (`Bootstrap.deprecatedObjectId`), OCaml's
//! for one, whose sturdyrefs work in no other way. capnp-rpc does not look at it. Here such a message becomes a
//! call to [`Front`], which has the object restored; see [`screen`](crate::connection) for how.

use std::{fmt, rc::Rc};

use capnp::{
    MessageSize, any_pointer,
    capability::{Client, Promise, Request},
    private::capability::{ClientHook, ParamsHook, ResultsHook},
};
use schemas::VatId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Session, SessionEnd, driver::Carrier};
use crate::{
    OutputGate, SessionLimits,
    connection::{RESTORE_INTERFACE, RESTORE_METHOD},
    hello::Peer,
    local::LocalStream,
};

/// Gives the object of an id that a client has named in its first message. The id is the client's word and may
/// be a secret. The object, or why there is none.
pub type Restore = Rc<dyn Fn(&[u8]) -> Promise<Client, capnp::Error>>;

/// What this side brings to a session with a foreign client.
pub struct ForeignOptions {
    /// What the client gets when it asks for the bootstrap capability.
    pub bootstrap: Client,
    /// What it gets when it asks for an object by its id instead.
    pub restore: Restore,
    /// Holds back what we say until what caused it is durable.
    pub gate: OutputGate,
    /// What the client may cost us.
    pub limits: SessionLimits,
}

impl fmt::Debug for ForeignOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignOptions").field("gate", &self.gate).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// An accepted stream whose other end is a foreign client.
pub struct ForeignStream {
    pub(crate) input: Box<dyn AsyncRead + Unpin>,
    pub(crate) output: Box<dyn AsyncWrite + Unpin>,
    /// The id that the client has proven, if it has proven one.
    pub(crate) peer: Option<VatId>,
}

impl fmt::Debug for ForeignStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl From<LocalStream> for ForeignStream {
    /// The process at the other end belongs to the same user; no id is proven.
    fn from(stream: LocalStream) -> Self {
        let (input, output) = stream.into_split();
        Self { input: Box::new(input), output: Box::new(output), peer: None }
    }
}

impl Session {
    /// Begins the session of a foreign client. There is no greeting to wait for, so it begins at once.
    ///
    /// Must be called on a tokio `LocalSet`, where the session then lives.
    #[must_use]
    pub fn accept_foreign(stream: ForeignStream, options: ForeignOptions) -> Self {
        let ForeignStream { input, output, peer } = stream;
        let ForeignOptions { bootstrap, restore, gate, limits } = options;
        let front = Client::new(Box::new(Front { bootstrap: bootstrap.hook, restore }));
        let peer = Peer { id: peer, epoch: 0, incarnation: [0; 16], program: String::new(), resumes: None };
        let explain = Box::new(|error| SessionEnd::Lost(std::sync::Arc::new(error)));
        let session = Self::start(input, Box::new(output), Carrier::Local, explain, peer, Some(front), gate, limits);
        session.wire.restore_by_id();
        session
    }
}

/// The bootstrap capability of a foreign client: the real one, and beside it the one method by which the
/// connection has an object restored.
struct Front {
    bootstrap: Box<dyn ClientHook>,
    restore: Restore,
}

impl Front {
    fn restore(&self, params: &dyn ParamsHook, mut results: Box<dyn ResultsHook>) -> Promise<(), capnp::Error> {
        let id = params.get().and_then(|params| params.get_as::<capnp::data::Reader<'_>>());
        let object = match id {
            Ok(id) => (self.restore)(id),
            Err(error) => return Promise::err(error),
        };
        Promise::from_future(async move {
            let object = object.await?;
            // The whole answer is the object, as the answer to a Bootstrap has to be.
            results.get()?.set_as_capability(object.hook);
            Ok(())
        })
    }
}

impl ClientHook for Front {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self { bootstrap: self.bootstrap.add_ref(), restore: self.restore.clone() })
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        self.bootstrap.new_call(interface_id, method_id, size_hint)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), capnp::Error> {
        if (interface_id, method_id) == (RESTORE_INTERFACE, RESTORE_METHOD) {
            return self.restore(&*params, results);
        }
        self.bootstrap.call(interface_id, method_id, params, results)
    }

    // It is of no connection, and known by the capability that it stands for.

    fn get_brand(&self) -> usize {
        0
    }

    fn get_ptr(&self) -> usize {
        self.bootstrap.get_ptr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, capnp::Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), capnp::Error> {
        Promise::ok(())
    }
}
