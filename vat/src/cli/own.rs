//! `vat new`, `list`, `status`, `share`, `grants`, `revoke`: one's own vats, awake or asleep.
//!
//! A vat that is awake is asked through its socket; a vat that sleeps is opened here, under its lock, for
//! as long as the command takes.

use std::{fs, rc::Rc, sync::Arc};

use checkpoint::{FileDisk, Protection, Store, StoreOptions};
use console::{Failure, ago, table};
use schemas::{ErrorCode, Exit, Hints, Secret, SturdyRef, VatId, vat_capnp};
use serde_json::{Value, json};

use super::{
    Context, block_on,
    connect::{address_of, failure, owner, within},
};
use crate::{
    address_book::AddressBook,
    core::Vat,
    home::{HomeError, Name, Places, make_folder, replace_file},
    limits::LOCAL_DEADLINE,
    process::{publishable_addresses, system_clock},
};

/// `vat new NAME --object KIND`
pub(super) fn new(context: &Context, name: &str, kind: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    context.kinds.find(kind)?;
    let places = context.home.places(&name);
    if places.folder.exists() {
        return Err(HomeError::Exists { name: name.to_string() }.into());
    }
    if let Some(book) = AddressBook::open(&context.home)?
        && book.find(&name)?.is_some()
    {
        let message = format!("the name {name} is taken by an entry of the address book");
        return Err(Failure::new(ErrorCode::VatExists, message));
    }
    context.home.make_parent(&places.folder)?;
    context.home.make_parent(&places.key_file)?;
    // The vat grows under a name that no vat can have, and appears under its own all at once.
    let nursery = places.folder.with_file_name(format!(".{name}.new.{}", std::process::id()));
    make_folder(&nursery)?;
    let made = make(context, &nursery, &places, kind);
    if made.is_err() {
        // What failed is reported; a left-over folder in the nursery is no vat and harms nobody.
        let _ = fs::remove_dir_all(&nursery);
    }
    let id = made?;
    let human = format!(
        "{name} is a {kind}: {}\nWake it with: vat run {name}\nGrant it with: vat share {name}",
        address_of(id)
    );
    let data = json!({"name": name.as_str(), "vat": address_of(id), "object": kind});
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

fn make(context: &Context, nursery: &std::path::Path, places: &Places, kind: &str) -> Result<VatId, Failure> {
    let protection = Protection::KeyFile(places.key_file.clone());
    let id = Vat::create(Arc::new(FileDisk), &nursery.join("store"), &protection, &context.kinds, kind)?;
    replace_file(&nursery.join("id"), format!("{id}\n").as_bytes())?;
    let io = |error| HomeError::Io { path: places.folder.clone(), error };
    fs::rename(nursery, &places.folder).map_err(io)?;
    let parent = places.folder.parent().unwrap_or(&places.folder);
    fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(id)
}

/// Opens a vat that sleeps. Holds its lock until the result is dropped.
fn open_asleep(context: &Context, places: &Places, id: VatId) -> Result<Vat, Failure> {
    let protection = Protection::KeyFile(places.key_file.clone());
    let options = StoreOptions::default();
    let store = Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, options)?;
    Ok(Vat::open(store, id, context.kinds.clone(), system_clock(), Box::new(|_| ()))?)
}

/// Waits until everything that a sleeping vat was made to do is durable, and closes it.
fn put_back(vat: Vat) -> Result<(), Failure> {
    let engine = vat.engine().clone();
    drop(vat);
    engine.store().wait_durable(engine.newest_turn())?;
    match Rc::try_unwrap(engine) {
        Ok(engine) => Ok(engine.into_store().close()?),
        // An object still holds the engine; dropping the last handle closes the store as well.
        Err(_) => Ok(()),
    }
}

/// `vat list`
pub(super) fn list(context: &Context) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    let mut vats = Vec::new();
    block_on(async {
        for name in context.home.names()? {
            let (places, id) = context.home.vat(&name)?;
            let state = match owner(&name, &places).await {
                Ok(Some(_)) => "awake",
                Ok(None) => "asleep",
                Err(_) => "not answering",
            };
            rows.push(vec![name.to_string(), state.to_owned(), address_of(id)]);
            vats.push(json!({"name": name.as_str(), "state": state, "vat": address_of(id)}));
        }
        Ok(())
    })?;
    let mut contacts = Vec::new();
    if let Some(book) = AddressBook::open(&context.home)? {
        for (name, reference) in book.entries()? {
            rows.push(vec![name.to_string(), "accepted".to_owned(), address_of(reference.id)]);
            contacts.push(json!({"petname": name.as_str(), "vat": address_of(reference.id)}));
        }
    }
    let human = match rows.is_empty() {
        true => "There are no vats here yet. Make one with: vat new NAME --object counter".to_owned(),
        false => table(&rows),
    };
    context.output.result(&human, &json!({"vats": vats, "address_book": contacts}))?;
    Ok(Exit::Ok)
}

/// `vat status NAME`
pub(super) fn status(context: &Context, name: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let awake = block_on(async {
        let Some((owner, _session)) = owner(&name, &places).await? else { return Ok(None) };
        let response = within(LOCAL_DEADLINE, owner.status_request().send().promise).await?;
        let status = response.get().and_then(|results| results.get_status()).map_err(failure)?;
        Ok(Some(awake_status(&name, id, status).map_err(failure)?))
    })?;
    let (human, data) = match awake {
        Some(status) => status,
        None => asleep_status(context, &name, &places, id)?,
    };
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

fn awake_status(name: &Name, id: VatId, status: vat_capnp::status::Reader<'_>) -> capnp::Result<(String, Value)> {
    let addresses: Vec<String> =
        status.get_addresses()?.iter().map(|address| Ok(address?.to_string()?)).collect::<capnp::Result<_>>()?;
    let object = status.get_object()?.to_str()?;
    let mut rows = vec![
        vec!["vat".to_owned(), address_of(id)],
        vec!["state".to_owned(), format!("awake, process {}", status.get_process_id())],
        vec!["object".to_owned(), object.to_owned()],
        vec!["epoch".to_owned(), status.get_epoch().to_string()],
        vec!["turn".to_owned(), format!("{} ({} durable)", status.get_turn(), status.get_durable_turn())],
        vec!["sessions".to_owned(), status.get_sessions().to_string()],
        vec!["grants".to_owned(), status.get_grants().to_string()],
        vec!["journal".to_owned(), format!("{} bytes", status.get_journal_bytes())],
        vec!["base".to_owned(), format!("{} bytes", status.get_base_bytes())],
    ];
    rows.extend(addresses.iter().map(|address| vec!["address".to_owned(), address.clone()]));
    let now = system_clock()().as_seconds();
    let mut registrations = Vec::new();
    for registration in status.get_registrations()? {
        let entry = registration.get_entry()?.to_str()?;
        let (code, message) = (registration.get_code()?.to_str()?, registration.get_message()?.to_str()?);
        let last = registration.get_last_success();
        let mut line = match last {
            0 => "never registered".to_owned(),
            last => format!("registered {}", ago(now.saturating_sub(last))),
        };
        if !code.is_empty() {
            line = format!("{line}; last attempt: {message} [{code}]");
        }
        rows.push(vec!["server".to_owned(), format!("{entry}: {line}")]);
        registrations.push(json!({"entry": entry, "last_success": last, "code": code, "message": message}));
    }
    let data = json!({
        "name": name.as_str(), "vat": address_of(id), "state": "awake", "process": status.get_process_id(),
        "object": object, "epoch": status.get_epoch(), "turn": status.get_turn(),
        "durable_turn": status.get_durable_turn(), "sessions": status.get_sessions(), "grants": status.get_grants(),
        "objects": status.get_objects(), "journal_bytes": status.get_journal_bytes(),
        "base_bytes": status.get_base_bytes(), "started_at": status.get_started_at(), "addresses": addresses,
        "registrations": registrations,
    });
    Ok((table(&rows), data))
}

fn asleep_status(context: &Context, name: &Name, places: &Places, id: VatId) -> Result<(String, Value), Failure> {
    let vat = open_asleep(context, places, id)?;
    let position = vat.engine().durable();
    let sizes = vat.engine().store().sizes()?;
    let object = vat.root_kind()?.name();
    let grants = vat.grants()?.len();
    let rows = [
        vec!["vat".to_owned(), address_of(id)],
        vec!["state".to_owned(), format!("asleep; wake it with: vat run {name}")],
        vec!["object".to_owned(), object.to_owned()],
        vec!["epoch".to_owned(), position.epoch.to_string()],
        vec!["turn".to_owned(), position.turn.to_string()],
        vec!["grants".to_owned(), grants.to_string()],
        vec!["journal".to_owned(), format!("{} bytes", sizes.journal_bytes)],
        vec!["base".to_owned(), format!("{} bytes", sizes.base_bytes)],
    ];
    let data = json!({
        "name": name.as_str(), "vat": address_of(id), "state": "asleep", "object": object, "epoch": position.epoch,
        "turn": position.turn, "durable_turn": position.turn, "grants": grants, "objects": vat.object_count()?,
        "journal_bytes": sizes.journal_bytes, "base_bytes": sizes.base_bytes,
    });
    put_back(vat)?;
    Ok((table(&rows), data))
}

/// The terms of a new grant.
pub(super) struct Terms {
    pub(super) label: String,
    pub(super) expires_in: Option<u64>,
    pub(super) under: Option<u64>,
}

/// `vat share NAME`
pub(super) fn share(context: &Context, name: &str, terms: &Terms, with_hints: bool) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let expires = terms.expires_in.map(|seconds| system_clock()().as_seconds().saturating_add(seconds));
    let awake = block_on(async {
        let Some((owner, _session)) = owner(&name, &places).await? else { return Ok(None) };
        let mut request = owner.share_request();
        request.get().set_label(&terms.label);
        request.get().set_parent(terms.under.unwrap_or(0));
        request.get().set_expires(expires.unwrap_or(0));
        let response = within(LOCAL_DEADLINE, request.send().promise).await?;
        let secret = response.get().and_then(|results| results.get_secret()).map_err(failure)?;
        let secret = Secret::from_slice(secret)?;
        let response = within(LOCAL_DEADLINE, owner.status_request().send().promise).await?;
        let addresses = response.get().and_then(|results| results.get_status()?.get_addresses()).map_err(failure)?;
        let addresses = addresses.iter().map(|address| Ok(address?.to_string()?)).collect::<capnp::Result<Vec<_>>>();
        Ok(Some((secret, addresses.map_err(failure)?)))
    })?;
    let (secret, addresses) = match awake {
        Some(shared) => shared,
        None => {
            let vat = open_asleep(context, &places, id)?;
            let secret = vat.grant(&terms.label, expires, terms.under)?;
            put_back(vat)?;
            (secret, Vec::new())
        }
    };
    let mut hints = Hints::default();
    if with_hints {
        hints.search_path = context.config.search_path.value.clone();
        hints.addresses = publishable_addresses(&addresses);
    }
    let reference = SturdyRef { id, secret, hints };
    let text = reference.expose();
    context.output.notice("Whoever has this reference can use the object. Treat it like a key:");
    context.output.result(&text, &json!({"sturdyref": text.as_str(), "hash": reference.secret.hash().to_string()}))?;
    Ok(Exit::Ok)
}

struct GrantLine {
    number: u64,
    label: String,
    created_at: u64,
    expires: Option<u64>,
    hash: String,
    parent: Option<u64>,
}

/// `vat grants NAME`
pub(super) fn grants(context: &Context, name: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let awake = block_on(async {
        let Some((owner, _session)) = owner(&name, &places).await? else { return Ok(None) };
        let response = within(LOCAL_DEADLINE, owner.grants_request().send().promise).await?;
        let grants = response.get().and_then(|results| results.get_grants()).map_err(failure)?;
        let line = |grant: vat_capnp::grant::Reader<'_>| -> capnp::Result<GrantLine> {
            Ok(GrantLine {
                number: grant.get_number(),
                label: grant.get_label()?.to_string()?,
                created_at: grant.get_created_at(),
                expires: Some(grant.get_expires()).filter(|expires| *expires != 0),
                hash: grant.get_hash()?.to_string()?,
                parent: Some(grant.get_parent()).filter(|parent| *parent != 0),
            })
        };
        Ok(Some(grants.iter().map(line).collect::<capnp::Result<Vec<_>>>().map_err(failure)?))
    })?;
    let grants = match awake {
        Some(grants) => grants,
        None => {
            let vat = open_asleep(context, &places, id)?;
            let line = |(hash, grant): (schemas::SecretHash, crate::core::Grant)| GrantLine {
                number: grant.number,
                label: grant.label,
                created_at: grant.created_at,
                expires: grant.expires,
                hash: hash.to_string(),
                parent: grant.parent,
            };
            let grants = vat.grants()?.into_iter().map(line).collect();
            put_back(vat)?;
            grants
        }
    };
    print_grants(context, &name, &grants)
}

fn print_grants(context: &Context, name: &Name, grants: &[GrantLine]) -> Result<Exit, Failure> {
    let now = system_clock()().as_seconds();
    let mut rows = Vec::new();
    let mut data = Vec::new();
    for grant in grants {
        let state = match grant.expires {
            None => String::new(),
            Some(expires) if expires <= now => "expired".to_owned(),
            Some(expires) => format!("expires in {} s", expires - now),
        };
        let made = format!("made {}", ago(now.saturating_sub(grant.created_at)));
        let under = grant.parent.map_or_else(String::new, |parent| format!("under {parent}"));
        rows.push(vec![grant.number.to_string(), grant.hash.clone(), made, state, under, grant.label.clone()]);
        data.push(json!({
            "number": grant.number, "hash": grant.hash, "label": grant.label, "created_at": grant.created_at,
            "expires": grant.expires, "parent": grant.parent,
        }));
    }
    let human = match rows.is_empty() {
        true => format!("{name} has no grants. Make one with: vat share {name}"),
        false => table(&rows),
    };
    context.output.result(&human, &json!({"name": name.as_str(), "grants": data}))?;
    Ok(Exit::Ok)
}

/// `vat revoke NAME NUMBER`
pub(super) fn revoke(context: &Context, name: &str, number: u64) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let awake = block_on(async {
        let Some((owner, _session)) = owner(&name, &places).await? else { return Ok(false) };
        let mut request = owner.revoke_request();
        request.get().set_number(number);
        within(LOCAL_DEADLINE, request.send().promise).await?;
        Ok(true)
    })?;
    if !awake {
        let vat = open_asleep(context, &places, id)?;
        vat.revoke(number)?;
        put_back(vat)?;
    }
    context.output.result(&format!("grant {number} of {name} is revoked"), &json!({"revoked": number}))?;
    Ok(Exit::Ok)
}
