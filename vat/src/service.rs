//! What a vat offers over its sessions: [`VatService`] to everyone, [`OwnerService`] on the local socket.
//!
//! Both answer from the state as of the newest turn; the session's output gate keeps the answers until
//! that turn is durable (R3), so nothing here waits.

mod progress;

use std::{
    cell::OnceCell,
    path::PathBuf,
    rc::{Rc, Weak},
};

use capnp::{capability::FromClientHook, private::capability::ClientHook};
use checkpoint::{Census, FileDisk, Holder, Passphrase, Store};
use futures::{FutureExt, future::LocalBoxFuture};
use schemas::{Coded, ErrorCode, Recipient, Secret, objects_capnp::content, vat_capnp};
use transport::{BulkError, BulkSource, Session};
use zeroize::Zeroizing;

use self::progress::on_a_thread;
pub(crate) use self::progress::{ProgressService, while_advancing};

use crate::{
    core::{Vat, VatError},
    object::wire_error,
    process::Awake,
    reflection::SchemaSet,
};

impl From<VatError> for capnp::Error {
    fn from(error: VatError) -> Self {
        wire_error(&error)
    }
}

/// The bootstrap capability of every session: gives no authority by itself.
pub(crate) struct VatService {
    vat: Rc<Vat>,
    /// The session that this was given to, if it was to one alone, and that has begun.
    session: Rc<OnceCell<Weak<Session>>>,
}

impl VatService {
    /// For sessions in which no content is transferred on streams.
    pub(crate) fn new(vat: Rc<Vat>) -> Self {
        Self::over(vat, Rc::default())
    }

    /// For the one session that `session` will hold once it has begun.
    pub(crate) fn over(vat: Rc<Vat>, session: Rc<OnceCell<Weak<Session>>>) -> Self {
        Self { vat, session }
    }
}

impl vat_capnp::vat::Server for VatService {
    async fn restore(
        self: Rc<Self>,
        params: vat_capnp::vat::RestoreParams,
        mut results: vat_capnp::vat::RestoreResults,
    ) -> capnp::Result<()> {
        // Bytes that are no secret at all get the same answer as a secret that was never granted.
        let secret = Secret::from_slice(params.get()?.get_secret()?).map_err(|_| VatError::Denied)?;
        let (object, interface_id) = self.vat.restore(&secret)?;
        let mut results = results.get();
        results.reborrow().init_capability().set_as_capability(object);
        results.set_interface_id(interface_id);
        Ok(())
    }

    async fn schema(
        self: Rc<Self>,
        params: vat_capnp::vat::SchemaParams,
        mut results: vat_capnp::vat::SchemaResults,
    ) -> capnp::Result<()> {
        let wanted = params.get()?.get_interface_id();
        let unknown = || {
            let message = format!("this vat has no object with interface {wanted:#018x}");
            capnp::Error::failed(ErrorCode::ObjectUnknownInterface.to_wire(&message))
        };
        let kind = self.vat.kinds().iter().find(|kind| kind.interface_id() == wanted).ok_or_else(unknown)?;
        let request = SchemaSet::parse(kind.schema())
            .and_then(|schemas| schemas.closure(wanted))
            .map_err(|error| wire_error(&error))?;
        results.get().set_request(&request);
        Ok(())
    }

    async fn transfer(
        self: Rc<Self>,
        params: vat_capnp::vat::TransferParams,
        mut results: vat_capnp::vat::TransferResults,
    ) -> capnp::Result<()> {
        let unavailable = || wire_error(&BulkError::Unavailable);
        let session = self.session.get().and_then(Weak::upgrade).ok_or_else(unavailable)?;
        let content = settled(params.get()?.get_content().get_as_capability()?).await?;
        // Whatever came over some session has a brand. Reading it here would only carry it back and forth.
        if content.get_brand() != LOCAL_BRAND {
            return Err(not_ours());
        }
        let client = content::Client::new(content);
        let length = client.describe_request().send().promise.await?.get()?.get_length();
        let random = |_| capnp::Error::failed(ErrorCode::SystemRandom.to_wire("no random numbers"));
        let token = Secret::generate().map_err(random)?;
        let offered = session.offer(&token, Box::new(ContentSource { client, length }));
        offered.map_err(|error| wire_error(&error))?;
        results.get().set_token(token.expose());
        Ok(())
    }
}

/// The brand of capabilities that lead to objects of this process (`capnp_rpc`'s local clients).
const LOCAL_BRAND: usize = 0;

/// Content of an object, read as the peer takes it. Each part is a call like any other, so it ends with the right to
/// make that call.
struct ContentSource {
    client: content::Client,
    length: u64,
}

impl BulkSource for ContentSource {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, count: usize) -> LocalBoxFuture<'_, capnp::Result<Vec<u8>>> {
        async move {
            let mut request = self.client.read_request();
            request.get().set_offset(offset);
            request.get().set_count(u32::try_from(count).unwrap_or(u32::MAX));
            Ok(request.send().promise.await?.get()?.get_bytes()?.to_vec())
        }
        .boxed_local()
    }
}

/// What the owner may ask of a vat that is awake. Reached only through the local socket.
pub(crate) struct OwnerService {
    pub(crate) public: vat_capnp::vat::Client,
    pub(crate) awake: Rc<Awake>,
}

impl vat_capnp::owner::Server for OwnerService {
    async fn status(
        self: Rc<Self>,
        _: vat_capnp::owner::StatusParams,
        mut results: vat_capnp::owner::StatusResults,
    ) -> capnp::Result<()> {
        self.awake.describe(results.get().init_status())
    }

    async fn share(
        self: Rc<Self>,
        params: vat_capnp::owner::ShareParams,
        mut results: vat_capnp::owner::ShareResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let expires = Some(params.get_expires()).filter(|expires| *expires != 0);
        let parent = Some(params.get_parent()).filter(|parent| *parent != 0);
        let label = params.get_label()?.to_str()?;
        let vat = self.awake.vat();
        // What names no object is refused: a caller that lost the one it meant must not be given the root.
        if !params.has_object() {
            return Err(not_ours());
        }
        let object = settled(params.get_object().get_as_capability()?).await?;
        let object = vat.object_of(&*object).ok_or_else(not_ours)?;
        let secret = vat.grant_object(object, label, expires, parent)?;
        results.get().set_secret(secret.expose());
        Ok(())
    }

    async fn grants(
        self: Rc<Self>,
        _: vat_capnp::owner::GrantsParams,
        mut results: vat_capnp::owner::GrantsResults,
    ) -> capnp::Result<()> {
        let vat = self.awake.vat();
        let grants = vat.grants()?;
        let count = u32::try_from(grants.len()).map_err(|_| capnp::Error::failed("too many grants".into()))?;
        let mut list = results.get().init_grants(count);
        for (index, (hash, grant)) in (0..).zip(grants) {
            let mut out = list.reborrow().get(index);
            out.set_number(grant.number);
            out.set_label(&grant.label);
            out.set_created_at(grant.created_at);
            out.set_expires(grant.expires.unwrap_or(0));
            out.set_hash(hash.to_string());
            out.set_parent(grant.parent.unwrap_or(0));
            out.set_object(grant.object);
            out.set_kind(vat.kind_name(&grant)?);
        }
        Ok(())
    }

    async fn revoke(
        self: Rc<Self>,
        params: vat_capnp::owner::RevokeParams,
        _: vat_capnp::owner::RevokeResults,
    ) -> capnp::Result<()> {
        Ok(self.awake.vat().revoke(params.get()?.get_number())?)
    }

    async fn root(
        self: Rc<Self>,
        _: vat_capnp::owner::RootParams,
        mut results: vat_capnp::owner::RootResults,
    ) -> capnp::Result<()> {
        let (object, interface_id) = self.awake.vat().root()?;
        let mut results = results.get();
        results.reborrow().init_capability().set_as_capability(object);
        results.set_interface_id(interface_id);
        Ok(())
    }

    async fn vat(
        self: Rc<Self>,
        _: vat_capnp::owner::VatParams,
        mut results: vat_capnp::owner::VatResults,
    ) -> capnp::Result<()> {
        results.get().set_vat(self.public.clone());
        Ok(())
    }

    async fn export(
        self: Rc<Self>,
        params: vat_capnp::owner::ExportParams,
        mut results: vat_capnp::owner::ExportResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let path = PathBuf::from(params.get_path()?.to_str()?);
        let holder = holder(params.get_holder()?)?;
        let engine = self.awake.vat().engine();
        let (label, now) = (self.awake.name().to_string(), engine.now());
        let export = move |store: &Store, progress: &mut dyn FnMut(Census)| {
            store.export_to_file(&FileDisk, &path, &[holder], (&label, now), progress)
        };
        let (head, census) = on_a_thread(engine.store().clone(), params.get_progress()?, export).await?;
        let mut results = results.get();
        results.set_turn(head.turn);
        results.set_epoch(head.epoch);
        set_amount(results.init_amount(), census);
        Ok(())
    }

    async fn verify(
        self: Rc<Self>,
        params: vat_capnp::owner::VerifyParams,
        mut results: vat_capnp::owner::VerifyResults,
    ) -> capnp::Result<()> {
        let store = self.awake.vat().engine().store().clone();
        let progress = params.get()?.get_progress()?;
        let (turn, census) = on_a_thread(store, progress, |store, progress| store.verify(progress)).await?;
        let mut results = results.get();
        results.set_turn(turn);
        set_amount(results.init_amount(), census);
        Ok(())
    }

    async fn metrics(
        self: Rc<Self>,
        _: vat_capnp::owner::MetricsParams,
        mut results: vat_capnp::owner::MetricsResults,
    ) -> capnp::Result<()> {
        results.get().set_text(self.awake.metrics()?);
        Ok(())
    }

    async fn sleep(
        self: Rc<Self>,
        _: vat_capnp::owner::SleepParams,
        _: vat_capnp::owner::SleepResults,
    ) -> capnp::Result<()> {
        self.awake.put_to_sleep();
        Ok(())
    }
}

/// What a capability turns out to be, if it is still a promise.
async fn settled(capability: capnp::capability::Client) -> capnp::Result<Box<dyn ClientHook>> {
    let mut hook = capability.hook;
    hook.when_resolved().await?;
    while let Some(resolved) = hook.get_resolved() {
        hook = resolved;
    }
    Ok(hook)
}

/// Only objects of this vat can be granted here.
fn not_ours() -> capnp::Error {
    capnp::Error::failed(ErrorCode::ObjectArgument.to_wire("object: it is not an object of this vat"))
}

fn set_amount(mut amount: vat_capnp::amount::Builder<'_>, census: Census) {
    amount.set_rows(census.rows);
    amount.set_bytes(census.bytes);
}

/// For whom the owner wants an image to be sealed.
fn holder(holder: vat_capnp::holder::Reader<'_>) -> capnp::Result<Holder> {
    Ok(match holder.which()? {
        vat_capnp::holder::Recipient(text) => {
            let recipient = text?.to_str()?.parse::<Recipient>();
            Holder::Recipient(recipient.map_err(|error| wire_error(&error))?)
        }
        vat_capnp::holder::Passphrase(text) => {
            let passphrase = Passphrase::new(Zeroizing::new(text?.to_string()?));
            Holder::Passphrase(passphrase.map_err(|error| wire_error(&error))?)
        }
    })
}

/// The error that a peer reported through an exception, or what an exception without a code means.
pub(crate) fn remote_failure(error: &capnp::Error) -> (ErrorCode, String) {
    match schemas::RemoteError::parse(&error.to_string()) {
        Some(remote) => (remote.code(), remote.message),
        None if error.kind == capnp::ErrorKind::Disconnected => {
            (ErrorCode::SessionClosed, "the session ended before the answer came".to_owned())
        }
        None => (ErrorCode::ObjectFailed, error.to_string()),
    }
}
