//! From what a user typed to a live capability: which vat is meant, by which way it is reached.
//!
//! A vat of this machine is reached through its own socket, whatever the search path is; every other one
//! through the search path. References are read here, and nowhere is any of their text repeated.

use std::time::Duration;

use capnp::{capability::FromClientHook, private::capability::ClientHook};
use console::Failure;
use schemas::{ErrorCode, IdentityKey, SturdyRef, VatAddress, VatId, objects_capnp::container, vat_capnp};
use transport::{Endpoint, Greeting, LocalError, OutputGate, Session, SessionError, SessionLimits, SessionOptions};
use vls_client::{Finder, LiveConfig, LiveRef, LiveRefs, RecordCache, Resolver, ResolverConfig};

use super::{Context, ask};
use crate::{
    address_book::AddressBook,
    home::{Name, Places},
    limits::{LOCAL_DEADLINE, MAX_CACHED_RECORDS, MAX_REFERENCE_BYTES},
    service::remote_failure,
};

/// What a command is about: an object, or one that it holds under a name, and so on.
pub(super) struct Target {
    begin: Begin,
    path: Vec<String>,
}

/// Where the path to an object begins.
enum Begin {
    /// An object, by a secret reference.
    Reference(SturdyRef),
    /// The root object of a vat of this machine, by its owner's right.
    Own(Name),
}

/// Reads a sturdyref from the command line, or from standard input for `-`.
pub(super) fn read_reference(text: &str) -> Result<SturdyRef, Failure> {
    if text != "-" {
        return Ok(text.parse::<SturdyRef>()?);
    }
    let no_input = |reason: &str| Failure::new(ErrorCode::RefNoInput, reason);
    let io = |error| Failure::new(ErrorCode::SystemIo, format!("standard input: {error}"));
    // One byte more shows that there is too much.
    let limit = MAX_REFERENCE_BYTES + 1;
    let input = if ask::is_terminal() {
        let line = ask::hidden_line("Paste the reference and press Enter (it is not shown): ", limit).map_err(io)?;
        line.ok_or_else(|| no_input("interrupted"))?
    } else {
        ask::piped(limit).map_err(io)?
    };
    if input.len() > MAX_REFERENCE_BYTES {
        return Err(no_input("standard input holds more than a reference"));
    }
    let text = std::str::from_utf8(&input).map_err(|_| no_input("standard input is not text"))?.trim();
    if text.is_empty() {
        return Err(no_input("standard input is empty"));
    }
    Ok(text.parse::<SturdyRef>()?)
}

/// Finds out what the user means: `-`, a reference, one's own vat, or an address book entry; behind either of the
/// latter a path may lead further.
pub(super) fn target(context: &Context, text: &str) -> Result<Target, Failure> {
    if text == "-" || text.contains("://") || text.contains('#') {
        return Ok(Target { begin: Begin::Reference(read_reference(text)?), path: Vec::new() });
    }
    let (name, path) = name_and_path(text)?;
    if context.home.places(&name).folder.is_dir() {
        context.home.vat(&name)?;
        return Ok(Target { begin: Begin::Own(name), path });
    }
    if let Some(book) = AddressBook::open(&context.home)?
        && let Some(reference) = book.find(&name)?
    {
        return Ok(Target { begin: Begin::Reference(reference), path });
    }
    let message = format!("there is no vat and no address book entry named {name} here");
    Err(Failure::new(ErrorCode::VatNotFound, message))
}

/// Reads `NAME` or `NAME/PATH`: the names below it, one after the other.
///
/// An empty name is refused, and never passed over: whoever types `home/$DIR` means something below `home`, also when
/// `DIR` is not set, and passing it over would lead to the root, and grant more than was meant.
pub(super) fn name_and_path(text: &str) -> Result<(Name, Vec<String>), Failure> {
    let Some((name, path)) = text.split_once('/') else { return Ok((text.parse()?, Vec::new())) };
    let name = name.parse()?;
    let path: Vec<String> = path.split('/').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        let message = format!("the path {text:?} has an empty name in it");
        return Err(Failure::new(ErrorCode::CliUsage, message)
            .next(format!("Leave the / away if you mean {name} itself; --help tells what a path is.")));
    }
    Ok((name, path))
}

/// An object that can be called now.
pub(super) struct Reached {
    pub(super) capability: Box<dyn ClientHook>,
    pub(super) interface_id: u64,
    pub(super) vat: vat_capnp::vat::Client,
    /// Kept open as long as the object is used.
    link: Link,
}

/// The session below an object, and the socket below that.
struct Link {
    session: Session,
    endpoint: Option<Endpoint>,
}

impl Reached {
    /// The session that it belongs to.
    pub(super) fn session(&self) -> &Session {
        &self.link.session
    }

    /// Says goodbye to the peer, so that it need not wait for a time-out.
    pub(super) async fn close(self) {
        let Self { capability, vat, link, .. } = self;
        drop((capability, vat));
        link.close().await;
    }
}

impl Link {
    async fn close(self) {
        drop(self.session);
        if let Some(endpoint) = self.endpoint {
            endpoint.close().await;
        }
    }
}

/// A reference to an object of a vat elsewhere that outlives its sessions.
pub(super) struct Live {
    pub(super) reference: LiveRef,
    /// From there to the object that is meant.
    pub(super) path: Vec<String>,
    endpoint: Endpoint,
}

impl Live {
    /// Says goodbye to the peer.
    pub(super) async fn close(self) {
        drop(self.reference);
        self.endpoint.close().await;
    }
}

/// The live reference to what the user means; `None` for a vat of this machine, whose socket does not break.
pub(super) fn live(context: &Context, target: &Target, deadline: Duration) -> Result<Option<Live>, Failure> {
    let Begin::Reference(reference) = &target.begin else { return Ok(None) };
    if context.home.name_of(reference.id)?.is_some() {
        return Ok(None);
    }
    let endpoint = client_endpoint()?;
    let finder = Finder::new(resolver(context, &endpoint, deadline)?, session_options);
    let reference = LiveRefs::new(finder, LiveConfig::default()).of(reference);
    Ok(Some(Live { reference, path: target.path.clone(), endpoint }))
}

/// Reaches an object. `deadline` bounds each step.
pub(super) async fn reach(context: &Context, target: &Target, deadline: Duration) -> Result<Reached, Failure> {
    let Reached { capability, interface_id, vat, link } = reach_begin(context, &target.begin, deadline).await?;
    match walk((capability, interface_id), &target.path, deadline).await {
        Ok((capability, interface_id)) => Ok(Reached { capability, interface_id, vat, link }),
        Err(failure) => {
            link.close().await;
            Err(failure)
        }
    }
}

/// Follows a path from an object: from name to name, through objects that hold others.
pub(super) async fn walk(
    begin: (Box<dyn ClientHook>, u64),
    path: &[String],
    deadline: Duration,
) -> Result<(Box<dyn ClientHook>, u64), Failure> {
    let (mut object, mut interface_id) = begin;
    for name in path {
        let mut request = container::Client::new(object).open_request();
        request.get().set_name(name);
        let response = match tokio::time::timeout(deadline, request.send().promise).await {
            Ok(Err(error)) if error.kind == capnp::ErrorKind::Unimplemented => return Err(no_container(name)),
            Ok(response) => response.map_err(failure)?,
            Err(_) => return Err(timed_out(deadline)),
        };
        let results = response.get().map_err(failure)?;
        object = results.get_object().get_as_capability::<capnp::capability::Client>().map_err(failure)?.hook;
        interface_id = results.get_interface_id();
    }
    Ok((object, interface_id))
}

fn no_container(name: &str) -> Failure {
    let message = format!("{name:?} cannot be looked up: what the path leads to before it holds no other objects");
    Failure::new(ErrorCode::ObjectNoContainer, message)
}

async fn reach_begin(context: &Context, begin: &Begin, deadline: Duration) -> Result<Reached, Failure> {
    match begin {
        Begin::Own(name) => {
            let (places, _) = context.home.vat(name)?;
            let (owner, session) = owner(name, &places).await?.ok_or_else(|| asleep(name))?;
            let root = within(deadline, owner.root_request().send().promise).await?;
            let (capability, interface_id) = root_of(root.get().map_err(failure)?)?;
            let vat = within(deadline, owner.vat_request().send().promise).await?;
            Ok(Reached {
                capability,
                interface_id,
                vat: vat.get().and_then(|results| results.get_vat()).map_err(failure)?,
                link: Link { session, endpoint: None },
            })
        }
        Begin::Reference(reference) => {
            let (vat, link) = reach_vat(context, reference, deadline).await?;
            match restore(&vat, reference, deadline).await {
                Ok((capability, interface_id)) => Ok(Reached { capability, interface_id, vat, link }),
                Err(failure) => {
                    link.close().await;
                    Err(failure)
                }
            }
        }
    }
}

/// The root object that a vat gives its owner.
pub(super) fn root_of(
    results: vat_capnp::owner::root_results::Reader<'_>,
) -> Result<(Box<dyn ClientHook>, u64), Failure> {
    let capability = results.get_capability().get_as_capability::<capnp::capability::Client>().map_err(failure)?;
    Ok((capability.hook, results.get_interface_id()))
}

async fn restore(
    vat: &vat_capnp::vat::Client,
    reference: &SturdyRef,
    deadline: Duration,
) -> Result<(Box<dyn ClientHook>, u64), Failure> {
    let mut request = vat.restore_request();
    request.get().set_secret(reference.secret.expose());
    let results = within(deadline, request.send().promise).await?;
    let results = results.get().map_err(failure)?;
    let capability = results.get_capability().get_as_capability::<capnp::capability::Client>().map_err(failure)?;
    Ok((capability.hook, results.get_interface_id()))
}

async fn reach_vat(
    context: &Context,
    reference: &SturdyRef,
    deadline: Duration,
) -> Result<(vat_capnp::vat::Client, Link), Failure> {
    if let Some((vat, session)) = own_vat(context, reference.id, deadline).await? {
        return Ok((vat, Link { session, endpoint: None }));
    }
    let endpoint = client_endpoint()?;
    let resolver = resolver(context, &endpoint, deadline)?;
    let (vat, session) = found_vat(&resolver, &reference.address()).await?;
    Ok((vat, Link { session, endpoint: Some(endpoint) }))
}

/// A vat of this machine that is awake, through its own socket. `None` if it has to be looked for.
pub(super) async fn own_vat(
    context: &Context,
    id: VatId,
    deadline: Duration,
) -> Result<Option<(vat_capnp::vat::Client, Session)>, Failure> {
    let Some(name) = context.home.name_of(id)? else { return Ok(None) };
    let (places, _) = context.home.vat(&name)?;
    if let Some((owner, session)) = owner(&name, &places).await? {
        let vat = within(deadline, owner.vat_request().send().promise).await?;
        let vat = vat.get().and_then(|results| results.get_vat()).map_err(failure)?;
        return Ok(Some((vat, session)));
    }
    if context.config.search_path.value.is_empty() { Err(asleep(&name)) } else { Ok(None) }
}

/// A vat that is found through the search path.
pub(super) async fn found_vat(
    resolver: &Resolver,
    address: &VatAddress,
) -> Result<(vat_capnp::vat::Client, Session), Failure> {
    let found = resolver.connect(address.id, &address.hints).await?;
    let session = Session::open(found.connection, session_options()).await?;
    Ok((session.bootstrap(), session))
}

/// An endpoint that only dials, under a key of this one command: whoever is called learns nothing of the
/// caller but what the call says.
pub(super) fn client_endpoint() -> Result<Endpoint, Failure> {
    let key = IdentityKey::generate()
        .map_err(|error| Failure::new(ErrorCode::SystemRandom, format!("no random numbers: {error}")))?;
    Ok(Endpoint::client(&key)?)
}

/// The resolver over the search path of the settings, with the cache on disk. It gives up within `deadline`,
/// with its reasons.
pub(super) fn resolver(context: &Context, endpoint: &Endpoint, deadline: Duration) -> Result<Resolver, Failure> {
    let path = context.config.search_path.value.clone();
    let folder = context.home.record_cache();
    context.home.make_parent(&folder)?;
    let cache = RecordCache::open(&folder, MAX_CACHED_RECORDS)?;
    let mut timing = ResolverConfig::default();
    timing.carriers = context.config.carriers();
    timing.lookup.deadline = timing.lookup.deadline.min(deadline);
    timing.dial.dial_deadline = timing.dial.dial_deadline.min(deadline);
    timing.dial.deadline = timing.dial.deadline.min(deadline);
    Ok(Resolver::new(endpoint.clone(), path, Some(cache), timing))
}

pub(super) fn session_options() -> SessionOptions {
    let mut limits = SessionLimits::default();
    // Every command waits with a deadline of its own, some of them as long as there is progress.
    limits.call_deadline = None;
    SessionOptions {
        // Epoch 0: not a vat. Nothing that runs for one command has to be told from its next start.
        greeting: Greeting { epoch: 0, incarnation: [0; 16], program: crate::PROGRAM.to_owned() },
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits,
    }
}

/// The owner's interface of a vat of this machine; `None` if it sleeps.
pub(super) async fn owner(
    name: &Name,
    places: &Places,
) -> Result<Option<(vat_capnp::owner::Client, Session)>, Failure> {
    let dialled = tokio::time::timeout(LOCAL_DEADLINE, Session::open_local(&places.socket, session_options())).await;
    match dialled {
        Ok(Ok(session)) => Ok(Some((session.bootstrap(), session))),
        Ok(Err(SessionError::Local(LocalError::Nobody { .. }))) => Ok(None),
        Ok(Err(error)) => Err(Failure::from(error).while_doing(&format!("the socket of {name}"))),
        Err(_) => {
            let message = format!("the vat {name} is awake and does not answer on its socket");
            Err(Failure::new(ErrorCode::NetTimeout, message))
        }
    }
}

pub(super) fn asleep(name: &Name) -> Failure {
    Failure::new(ErrorCode::VatAsleep, format!("the vat {name} is asleep"))
        .next(format!("Wake it with `{} run {name}`.", super::program()))
}

/// Waits for an answer, but not for ever: a peer may never send one.
pub(super) async fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, capnp::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure(error)),
        Err(_) => Err(timed_out(deadline)),
    }
}

pub(super) fn failure(error: capnp::Error) -> Failure {
    let (code, message) = remote_failure(&error);
    Failure::new(code, message)
}

pub(super) fn timed_out(deadline: Duration) -> Failure {
    Failure::new(ErrorCode::NetTimeout, format!("no answer within {} s", deadline.as_secs()))
}

/// The public address of a vat as users see it.
pub(super) fn address_of(id: VatId) -> String {
    format!("vat://{id}")
}
