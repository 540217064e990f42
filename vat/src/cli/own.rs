//! `vat new`, `list`, `status`, `share`, `grants`, `revoke`: one's own vats, awake or asleep.
//!
//! A vat that is awake is asked through its socket; a vat that sleeps is opened here, under its lock, for
//! as long as the command takes.

use std::sync::Arc;

use checkpoint::FileDisk;
use console::{Failure, ago, table};
use schemas::{Address, Coded, ErrorCode, Exit, Hints, Secret, SecretHash, SturdyRef, VatId, vat_capnp};
use serde_json::{Value, json};

use super::{
    Context, block_on,
    capnp_uri::{Place, capnp_uri},
    connect::{address_of, asleep, failure, name_and_path, owner, root_of, walk, within},
    nursery::grow,
    outside::Outside,
    way::{Intent, Way, put_back, way},
};
use crate::{
    address_book::AddressBook,
    backup::{BackupError, Plan, Series},
    core::{Grant, Vat},
    home::Name,
    limits::LOCAL_DEADLINE,
    process::{publishable_addresses, system_clock},
    tables::FIRST_OBJECT,
};

/// `vat new NAME --object KIND`
pub(super) fn new(context: &Context, name: &str, kind: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    context.kinds.find(kind)?;
    let id = grow(context, &name, |store, protection| {
        let id = Vat::create(Arc::new(FileDisk), store, protection, &context.kinds, kind)?;
        Ok((id, id))
    })?;
    let human = format!(
        "{name} is a {kind}: {}\nWake it with: {program} run {name}\nGrant it with: {program} share {name}",
        address_of(id),
        program = super::program()
    );
    let data = json!({"name": name.as_str(), "vat": address_of(id), "object": kind});
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// `vat list`
pub(super) fn list(context: &Context) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    let mut vats = Vec::new();
    block_on(async {
        for name in context.home.names()? {
            let (places, id) = match context.home.vat(&name) {
                Ok(found) => found,
                Err(error) => {
                    // One damaged folder hides no other vat.
                    rows.push(vec![name.to_string(), "damaged".to_owned(), error.to_string()]);
                    vats.push(json!({"name": name.as_str(), "state": "damaged", "reason": error.to_string()}));
                    continue;
                }
            };
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

/// `vat metrics NAME`
pub(super) fn metrics(context: &Context, name: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, _) = context.home.vat(&name)?;
    let text = block_on(async {
        let (owner, _session) = owner(&name, &places).await?.ok_or_else(|| asleep(&name))?;
        let response = within(LOCAL_DEADLINE, owner.metrics_request().send().promise).await?;
        let text = response.get().and_then(|results| Ok(results.get_text()?.to_string()?));
        text.map_err(failure)
    })?;
    context.output.result(text.trim_end(), &json!({"name": name.as_str(), "metrics": text}))?;
    Ok(Exit::Ok)
}

/// `vat status NAME`
pub(super) fn status(context: &Context, name: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let (human, data) = block_on(async {
        match way(context, &name, &places, id, Intent::Look).await? {
            Way::Awake(owner, _session) => {
                let response = within(LOCAL_DEADLINE, owner.status_request().send().promise).await?;
                let status = response.get().and_then(|results| results.get_status()).map_err(failure)?;
                awake_status(&name, id, status).map_err(failure)
            }
            Way::Asleep(vat) => asleep_status(context, &name, vat),
        }
    })?;
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

fn awake_status(name: &Name, id: VatId, status: vat_capnp::status::Reader<'_>) -> capnp::Result<(String, Value)> {
    let addresses = addresses(status)?;
    let object = status.get_object()?.to_str()?;
    let mut rows = vec![
        vec!["vat".to_owned(), address_of(id)],
        vec!["state".to_owned(), format!("awake, process {}", status.get_process_id())],
        vec!["object".to_owned(), object.to_owned()],
        vec!["objects".to_owned(), status.get_objects().to_string()],
        vec!["epoch".to_owned(), status.get_epoch().to_string()],
        vec!["turn".to_owned(), format!("{} ({} durable)", status.get_turn(), status.get_durable_turn())],
        vec!["sessions".to_owned(), status.get_sessions().to_string()],
        vec!["grants".to_owned(), status.get_grants().to_string()],
        vec!["journal".to_owned(), format!("{} bytes", status.get_journal_bytes())],
        vec!["base".to_owned(), format!("{} bytes", status.get_base_bytes())],
    ];
    // As they are, if a later version has others.
    let described = |text: &String| text.parse().map_or(text.clone(), |address: Address| address.described());
    rows.extend(addresses.iter().map(|address| vec!["address".to_owned(), described(address)]));
    let outside = Outside::read(status.get_outside()?)?;
    if let Some(outside) = &outside {
        let code = outside.reason.as_ref().map_or_else(String::new, |(code, _)| format!(" [{code}]"));
        rows.push(vec!["outside".to_owned(), format!("{}{code}", outside.line())]);
    }
    let backup = BackupLine {
        made: Some(status.get_last_backup()).filter(|made| *made != 0),
        file: status.get_last_backup_file()?.to_string()?,
        problem: status.get_backup_message()?.to_string()?,
        code: status.get_backup_code()?.to_string()?,
    };
    let now = system_clock()().as_seconds();
    let folded = Some(status.get_last_fold()).filter(|at| *at != 0);
    rows.push(fold_row(status.get_folded_turn(), folded.map(|at| now.saturating_sub(at))));
    rows.push(backup.row());
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
        "outside": outside.as_ref().map(Outside::json),
        "registrations": registrations, "folded_turn": status.get_folded_turn(), "last_backup": backup.json(),
    });
    Ok((table(&rows), data))
}

/// Up to which turn the base has everything; `ago` in seconds, if that was since the vat woke.
fn fold_row(turn: u64, ago_seconds: Option<u64>) -> Vec<String> {
    let when = ago_seconds.map_or_else(String::new, |seconds| format!(", {}", ago(seconds)));
    vec!["folded".to_owned(), format!("up to turn {turn}{when}")]
}

/// How the backups of a vat stand.
#[derive(Default)]
struct BackupLine {
    made: Option<u64>,
    file: String,
    problem: String,
    code: String,
}

impl BackupLine {
    fn of_sleeping(context: &Context, name: &Name, id: VatId) -> Self {
        let newest = Plan::of(&context.home, &context.config, None).and_then(|plan| plan.newest(&Series::of(name, id)));
        match newest {
            Ok(None) | Err(BackupError::NoFolder) => Self::default(),
            Ok(Some(newest)) => Self {
                made: Some(newest.made.as_seconds()),
                file: newest.path.display().to_string(),
                ..Self::default()
            },
            Err(error) => {
                Self { problem: error.to_string(), code: error.code().as_str().to_owned(), ..Self::default() }
            }
        }
    }

    fn row(&self) -> Vec<String> {
        let now = system_clock()().as_seconds();
        let mut text = match self.made {
            Some(made) => format!("{}: {}", ago(now.saturating_sub(made)), self.file),
            None => "none".to_owned(),
        };
        if !self.code.is_empty() {
            text = format!("{text}; last attempt: {} [{}]", self.problem, self.code);
        }
        vec!["backup".to_owned(), text]
    }

    fn json(&self) -> Value {
        json!({"made_at": self.made, "file": self.file, "code": self.code, "message": self.problem})
    }
}

fn asleep_status(context: &Context, name: &Name, vat: Box<Vat>) -> Result<(String, Value), Failure> {
    let id = vat.id();
    let position = vat.engine().durable();
    let sizes = vat.engine().store().sizes()?;
    let object = vat.root_kind()?.name();
    let (objects, grants) = (vat.object_count()?, vat.grants()?.len());
    let backup = BackupLine::of_sleeping(context, name, id);
    let fold = vat.engine().store().last_fold();
    let rows = [
        vec!["vat".to_owned(), address_of(id)],
        vec!["state".to_owned(), format!("asleep; wake it with: {} run {name}", super::program())],
        vec!["object".to_owned(), object.to_owned()],
        vec!["objects".to_owned(), objects.to_string()],
        vec!["epoch".to_owned(), position.epoch.to_string()],
        vec!["turn".to_owned(), position.turn.to_string()],
        vec!["grants".to_owned(), grants.to_string()],
        vec!["journal".to_owned(), format!("{} bytes", sizes.journal_bytes)],
        vec!["base".to_owned(), format!("{} bytes", sizes.base_bytes)],
        fold_row(fold.turn, None),
        backup.row(),
    ];
    let data = json!({
        "name": name.as_str(), "vat": address_of(id), "state": "asleep", "last_backup": backup.json(), "folded_turn": fold.turn, "object": object, "epoch": position.epoch,
        "turn": position.turn, "durable_turn": position.turn, "grants": grants, "objects": objects,
        "journal_bytes": sizes.journal_bytes, "base_bytes": sizes.base_bytes,
    });
    put_back(vat)?;
    Ok((table(&rows), data))
}

pub(super) fn addresses(status: vat_capnp::status::Reader<'_>) -> capnp::Result<Vec<String>> {
    status.get_addresses()?.iter().map(|address| Ok(address?.to_string()?)).collect()
}

/// The terms of a new grant.
pub(super) struct Terms {
    pub(super) label: String,
    pub(super) expires_in: Option<u64>,
    pub(super) under: Option<u64>,
}

/// How a reference is printed.
pub(super) enum Form {
    /// As `vat://`, for this program and a bridge.
    Vat { with_hints: bool },
    /// As `capnp://`, for programs that come through the TLS port at this place.
    Capnp(Place),
}

/// `vat share NAME[/PATH]`
pub(super) fn share(context: &Context, target: &str, terms: &Terms, form: &Form) -> Result<Exit, Failure> {
    let (name, path) = name_and_path(target)?;
    let (places, id) = context.home.vat(&name)?;
    let expires = terms.expires_in.map(|seconds| system_clock()().as_seconds().saturating_add(seconds));
    let (secret, addresses) = block_on(async {
        match way(context, &name, &places, id, Intent::Change).await? {
            Way::Awake(owner, _session) => {
                let mut request = owner.share_request();
                request.get().set_label(&terms.label);
                request.get().set_parent(terms.under.unwrap_or(0));
                request.get().set_expires(expires.unwrap_or(0));
                // The capability itself says which object is meant, also if it is the root.
                let root = within(LOCAL_DEADLINE, owner.root_request().send().promise).await?;
                let object = walk(root_of(root.get().map_err(failure)?)?, &path, LOCAL_DEADLINE).await?;
                request.get().init_object().set_as_capability(object.0);
                let response = within(LOCAL_DEADLINE, request.send().promise).await?;
                let secret = response.get().and_then(|results| results.get_secret()).map_err(failure)?;
                let secret = Secret::from_slice(secret)?;
                let response = within(LOCAL_DEADLINE, owner.status_request().send().promise).await?;
                let status = response.get().and_then(|results| results.get_status()).map_err(failure)?;
                Ok((secret, addresses(status).map_err(failure)?))
            }
            Way::Asleep(vat) => {
                let object = walk(vat.root()?, &path, LOCAL_DEADLINE).await?.0;
                let granted = vat.object_of(&*object).ok_or_else(|| no_object_of(&name))?;
                let secret = vat.grant_object(granted, &terms.label, expires, terms.under)?;
                drop(object);
                put_back(vat)?;
                Ok((secret, Vec::new()))
            }
        }
    })?;
    let mut hints = Hints::default();
    if let Form::Vat { with_hints: true } = form {
        hints.search_path = context.config.search_path.value.clone();
        hints.addresses = publishable_addresses(&addresses);
    }
    let reference = SturdyRef { id, secret, hints };
    let text = match form {
        Form::Vat { .. } => reference.expose(),
        Form::Capnp(place) => capnp_uri(&reference, place),
    };
    context.output.notice("Whoever has this reference can use the object. Treat it like a key:");
    context.output.result(&text, &json!({"sturdyref": text.as_str(), "hash": reference.secret.hash().to_string()}))?;
    Ok(Exit::Ok)
}

/// An object that lives elsewhere is for its own vat to grant.
fn no_object_of(name: &Name) -> Failure {
    Failure::new(ErrorCode::ObjectArgument, format!("the path leads to an object that is not one of {name}"))
}

struct GrantLine {
    number: u64,
    label: String,
    created_at: u64,
    expires: Option<u64>,
    hash: String,
    parent: Option<u64>,
    object: u64,
    kind: String,
}

impl GrantLine {
    fn of_message(grant: vat_capnp::grant::Reader<'_>) -> capnp::Result<Self> {
        Ok(Self {
            number: grant.get_number(),
            label: grant.get_label()?.to_string()?,
            created_at: grant.get_created_at(),
            expires: Some(grant.get_expires()).filter(|expires| *expires != 0),
            hash: grant.get_hash()?.to_string()?,
            parent: Some(grant.get_parent()).filter(|parent| *parent != 0),
            object: grant.get_object(),
            kind: grant.get_kind()?.to_string()?,
        })
    }

    fn of_grant(vat: &Vat, (hash, grant): (SecretHash, Grant)) -> Result<Self, Failure> {
        let kind = vat.kind_name(&grant)?;
        let Grant { number, label, created_at, expires, parent, object } = grant;
        Ok(Self { number, label, created_at, expires, hash: hash.to_string(), parent, object, kind })
    }

    /// What it grants. Objects below the root have numbers, since the vat does not know by which paths they are reached.
    fn what(&self) -> String {
        if self.object == FIRST_OBJECT { self.kind.clone() } else { format!("{} #{}", self.kind, self.object) }
    }
}

/// `vat grants NAME`
pub(super) fn grants(context: &Context, name: &str) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let grants = block_on(async {
        match way(context, &name, &places, id, Intent::Look).await? {
            Way::Awake(owner, _session) => {
                let response = within(LOCAL_DEADLINE, owner.grants_request().send().promise).await?;
                let grants = response.get().and_then(|results| results.get_grants()).map_err(failure)?;
                grants.iter().map(GrantLine::of_message).collect::<capnp::Result<Vec<_>>>().map_err(failure)
            }
            Way::Asleep(vat) => {
                let grants = vat.grants()?.into_iter().map(|grant| GrantLine::of_grant(&vat, grant));
                let grants = grants.collect::<Result<Vec<_>, Failure>>()?;
                put_back(vat)?;
                Ok(grants)
            }
        }
    })?;
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
        let (number, hash, what) = (grant.number.to_string(), grant.hash.clone(), grant.what());
        rows.push(vec![number, hash, what, made, state, under, grant.label.clone()]);
        data.push(json!({
            "number": grant.number, "hash": grant.hash, "label": grant.label, "created_at": grant.created_at,
            "expires": grant.expires, "parent": grant.parent, "object": grant.object, "kind": grant.kind,
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
    block_on(async {
        match way(context, &name, &places, id, Intent::Change).await? {
            Way::Awake(owner, _session) => {
                let mut request = owner.revoke_request();
                request.get().set_number(number);
                within(LOCAL_DEADLINE, request.send().promise).await?;
            }
            Way::Asleep(vat) => {
                vat.revoke(number)?;
                // From here on the grant has ended, and whatever fails is no failure of this command.
                vat.engine().store().wait_durable(vat.engine().newest_turn())?;
                // What only this grant led to need not wait until the vat wakes.
                let swept = vat.sweep().map_err(Failure::from).and_then(|_| put_back(vat));
                if let Err(failure) = swept {
                    let Failure { code, message, .. } = failure;
                    context.output.notice(&format!("what only this grant led to was not removed: {message} [{code}]"));
                }
            }
        }
        Ok(())
    })?;
    context.output.result(&format!("grant {number} of {name} is revoked"), &json!({"revoked": number}))?;
    Ok(Exit::Ok)
}
