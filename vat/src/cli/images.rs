//! `vat export`, `import`, `backup`, `restore`, `verify`: vats as files (DESIGN §8).
//!
//! An image is sealed for a recipient, by default for this home itself, whose private key never leaves it. What an
//! image holds becomes a vat of this home only after it was read to its end and found whole.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{Census, FileDisk, Holder, ImageHead, ImageReader, Protection, Store, StoreLock};
use console::{Failure, size};
use schemas::{ErrorCode, Exit, Recipient, VatId, vat_capnp};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    Context, block_on,
    connect::{address_of, client_endpoint, failure, owner},
    key::{known_passphrase, new_passphrase},
    nursery::{Kept, grow, replace},
    way::{Intent, Way, put_back, way},
};
use crate::{
    backup::{Plan, Series, own_recipient_key},
    core::{Vat, VatError},
    home::Name,
    opener::Opener,
    process::{self, Report, RunOptions, system_clock},
    service::{ProgressService, while_advancing},
};

/// What `--passphrase` says: `None` where it is not given.
pub(super) type PassphraseFrom = Option<Option<String>>;

/// `vat export NAME -o FILE [--to RECIPIENT | --passphrase [-]]`
pub(super) fn export(
    context: &Context,
    name: &str,
    file: &Path,
    to: Option<&str>,
    passphrase: PassphraseFrom,
) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (_, id) = context.home.vat(&name)?;
    let (holder, sealed_for) = match (to, passphrase) {
        (Some(text), _) => (Holder::Recipient(text.parse::<Recipient>()?), "the recipient"),
        (None, Some(from)) => (Holder::Passphrase(new_passphrase(from)?), "whoever knows the passphrase"),
        (None, None) => (Holder::Recipient(own_recipient_key(&context.home)?.recipient()?), "this home"),
    };
    let path = std::path::absolute(file).map_err(|error| io_failure(file, &error))?;
    let (turn, epoch, census) = export_to(context, &name, &path, &holder)?;
    let human = format!(
        "{name} as of turn {turn} is in {}: {} rows, {}, sealed for {sealed_for}",
        file.display(),
        census.rows,
        size(census.bytes)
    );
    let data = json!({
        "name": name.as_str(), "vat": address_of(id), "file": path, "turn": turn, "epoch": epoch,
        "rows": census.rows, "bytes": census.bytes, "recipient": match &holder {
            Holder::Recipient(recipient) => json!(recipient.to_string()),
            _ => Value::Null,
        },
    });
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// `vat backup NAME` and `vat backup --all`
pub(super) fn backup(context: &Context, name: Option<&str>, folder: Option<&Path>) -> Result<Exit, Failure> {
    let folder = folder.map(std::path::absolute).transpose();
    let folder = folder.map_err(|error| Failure::new(ErrorCode::SystemIo, format!("the folder: {error}")))?;
    let plan = Plan::of(&context.home, &context.config, folder.as_deref())?;
    let names = match name {
        Some(name) => vec![name.parse::<Name>()?],
        None => context.home.names()?,
    };
    let (mut lines, mut data, mut failed) = (Vec::new(), Vec::new(), None);
    for name in &names {
        match back_up(context, &plan, name) {
            Ok((path, turn, census)) => {
                lines.push(format!("{name} as of turn {turn}: {} ({})", path.display(), size(census.bytes)));
                data.push(json!({"name": name.as_str(), "file": path, "turn": turn, "bytes": census.bytes}));
            }
            // One vat that cannot be read keeps no other from its backup.
            Err(failure) if names.len() > 1 => {
                context.output.notice(&format!("{name}: {} [{}]", failure.message, failure.code));
                data.push(json!({"name": name.as_str(), "code": failure.code.as_str(), "message": failure.message}));
                failed.get_or_insert(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    if lines.is_empty()
        && let Some(failure) = failed
    {
        return Err(failure);
    }
    let human = if names.is_empty() { "There are no vats here.".to_owned() } else { lines.join("\n") };
    context.output.result(&human, &json!({"backups": data}))?;
    Ok(if failed.is_some() { Exit::Degraded } else { Exit::Ok })
}

fn back_up(context: &Context, plan: &Plan, name: &Name) -> Result<(PathBuf, u64, Census), Failure> {
    let (_, id) = context.home.vat(name)?;
    let series = Series::of(name, id);
    let path = plan.path(&series, system_clock()());
    let (turn, _, census) = export_to(context, name, &path, &Holder::Recipient(plan.recipient))?;
    plan.prune(&series, &path)?;
    Ok((path, turn, census))
}

/// Writes the image of a vat, awake or asleep; gives its turn, its epoch, and how much it is.
fn export_to(context: &Context, name: &Name, path: &Path, holder: &Holder) -> Result<(u64, u64, Census), Failure> {
    let (places, id) = context.home.vat(name)?;
    let mut progress = context.output.progress(&format!("exporting {name}"));
    let mut shown = |census: Census| progress.show(census.bytes, None);
    block_on(async {
        match way(context, name, &places, id, Intent::Look).await? {
            Way::Awake(owner, _session) => {
                let no_text = || Failure::new(ErrorCode::CliUsage, "the name of the file is not UTF-8");
                let mut request = owner.export_request();
                request.get().set_path(path.to_str().ok_or_else(no_text)?);
                tell_holder(request.get().init_holder(), holder)?;
                let (advances, service) = ProgressService::listen();
                request.get().set_progress(service);
                let response = while_advancing(request.send().promise, advances, shown).await.map_err(failure)?;
                let results = response.get().map_err(failure)?;
                let amount = results.get_amount().map_err(failure)?;
                let census = Census { rows: amount.get_rows(), bytes: amount.get_bytes() };
                Ok((results.get_turn(), results.get_epoch(), census))
            }
            Way::Asleep(vat) => {
                let label = (name.as_str(), system_clock()());
                let holders = std::slice::from_ref(holder);
                let exported = vat.engine().store().export_to_file(&FileDisk, path, holders, label, &mut shown);
                put_back(vat)?;
                let (head, census) = exported?;
                Ok((head.turn, head.epoch, census))
            }
        }
    })
}

/// Tells a vat that is awake for whom to seal. What it is told stays on this machine.
fn tell_holder(mut told: vat_capnp::holder::Builder<'_>, holder: &Holder) -> Result<(), Failure> {
    match holder {
        Holder::Recipient(recipient) => told.set_recipient(recipient.to_string()),
        Holder::Passphrase(passphrase) => told.set_passphrase(passphrase.expose()),
        other => return Err(Failure::new(ErrorCode::Internal, format!("no image is sealed for {other:?}"))),
    }
    Ok(())
}

/// `vat import FILE [NAME]`
pub(super) fn import(
    context: &Context,
    file: &Path,
    name: Option<&str>,
    passphrase: PassphraseFrom,
) -> Result<Exit, Failure> {
    let mut image = open(context, file, passphrase)?;
    let head = image.head().clone();
    let name = name_for(&head, name)?;
    if let Some(existing) = context.home.name_of(id_of(&head)?)? {
        let message = format!("the vat of this image is here already, as {existing}");
        return Err(Failure::new(ErrorCode::VatExists, message).next(format!(
            "To go back to the image: {program} restore {} --take-over. To have a second vat that begins like it: \
             {program} restore {} --as-copy NAME",
            file.display(),
            file.display(),
            program = super::program()
        )));
    }
    refuse_if_live(context, &name, id_of(&head)?)?;
    let census = grow(context, &name, |store, protection| {
        let vat = received(context, file, &mut image, |image| {
            Vat::import(Arc::new(FileDisk), store, protection, image, (context.kinds.clone(), system_clock()))
        })?;
        put_back(Box::new(vat))?;
        Ok((id_of(&head)?, image.progress().1))
    })?;
    let human = format!(
        "{name} is here, as of turn {}: {} rows, {}\nWake it with: {} run {name}",
        head.turn,
        census.rows,
        size(census.bytes),
        super::program()
    );
    context.output.result(&human, &described(&name, &head, census)?)?;
    Ok(Exit::Ok)
}

/// A vat that is awake somewhere goes on taking turns that are not in the image; whoever wakes it from the image takes
/// over, and has to say so.
fn refuse_if_live(context: &Context, name: &Name, id: VatId) -> Result<(), Failure> {
    if context.config.search_path.value.is_empty() {
        return Ok(());
    }
    let is_live = block_on(async {
        let endpoint = client_endpoint()?;
        let is_live = process::is_live(&context.config, id, &endpoint).await;
        endpoint.close().await;
        Ok(is_live)
    })?;
    if !is_live {
        return Ok(());
    }
    let message = format!("{name} is awake somewhere else, so it may have gone on since the image was made");
    Err(Failure::new(ErrorCode::VatFenced, message).next(format!(
        "Put it to sleep there, export it again, and import that. Only if it is lost: {} restore FILE --take-over",
        super::program()
    )))
}

/// `vat restore FILE --as-copy NAME`
pub(super) fn restore_as_copy(
    context: &Context,
    file: &Path,
    name: &str,
    passphrase: PassphraseFrom,
) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let mut image = open(context, file, passphrase)?;
    let head = image.head().clone();
    let id = grow(context, &name, |store, protection| {
        let vat = received(context, file, &mut image, |image| {
            Vat::import_as_copy(Arc::new(FileDisk), store, protection, image, (context.kinds.clone(), system_clock()))
        })?;
        let id = vat.id();
        put_back(Box::new(vat))?;
        Ok((id, id))
    })?;
    let human = format!(
        "{name} is a new vat that begins as {} was at turn {}: {}\nReferences to the old one do not open it. Grant it \
         with: {} share {name}",
        address_of(id_of(&head)?),
        head.turn,
        address_of(id),
        super::program()
    );
    let data = json!({"name": name.as_str(), "vat": address_of(id), "copy_of": address_of(id_of(&head)?)});
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// `vat restore FILE --take-over [NAME]`
pub(super) fn restore_taking_over(
    context: &Context,
    file: &Path,
    name: Option<&str>,
    passphrase: PassphraseFrom,
) -> Result<Exit, Failure> {
    let mut image = open(context, file, passphrase)?;
    let (head, id) = (image.head().clone(), id_of(image.head())?);
    let existing = context.home.name_of(id)?;
    if let (Some(existing), Some(name)) = (&existing, name)
        && existing.as_str() != name
    {
        let message = format!("the vat of this image is here already, as {existing}, not as {name}");
        return Err(Failure::new(ErrorCode::VatExists, message));
    }
    let name = existing.clone().map_or_else(|| name_for(&head, name), Ok)?;
    // Nobody may wake the copy that is here, or change it, until the other one has its place.
    let mut held = None;
    let make = |store: &Path, protection: &Protection| {
        let vat = received(context, file, &mut image, |image| {
            Vat::import(Arc::new(FileDisk), store, protection, image, (context.kinds.clone(), system_clock()))
        })?;
        let known = match &existing {
            Some(name) => {
                let (epoch, lock) = give_up(context, name, head.turn)?;
                held = Some(lock);
                epoch
            }
            None => 0,
        };
        process::begin_epoch_after(vat.engine().store(), known)?;
        put_back(Box::new(vat))?;
        Ok((id, image.progress().1))
    };
    let (census, kept) = match &existing {
        Some(name) => replace(context, name, make).map(|(made, kept)| (made, Some(kept)))?,
        None => (grow(context, &name, make)?, None),
    };
    drop(held);
    let (epoch, announced) = announce(context, &name).inspect_err(|_| {
        // Otherwise it stands in the result.
        kept.iter().for_each(|kept| context.output.notice(&kept_where(kept)));
    })?;
    let mut human = format!(
        "{name} goes on from turn {} in epoch {epoch}: {} rows, {}\nWake it with: {} run {name}",
        head.turn,
        census.rows,
        size(census.bytes),
        super::program()
    );
    if let Some(kept) = &kept {
        human.push_str(&format!("\n{}", kept_where(kept)));
    }
    let mut data = described(&name, &head, census)?;
    data["epoch"] = json!(epoch);
    data["kept"] = json!(kept.as_ref().map(|kept| &kept.folder));
    data["kept_key"] = json!(kept.as_ref().map(|kept| &kept.key_file));
    data["announced"] = json!(announced);
    context.output.result(&human, &data)?;
    Ok(if announced { Exit::Ok } else { Exit::Degraded })
}

fn kept_where(kept: &Kept) -> String {
    let key =
        kept.key_file.as_ref().map_or_else(String::new, |key| format!("\nIts key is kept as well: {}", key.display()));
    format!("What was here before is kept, and can be deleted: {}{key}", kept.folder.display())
}

/// Wakes a vat for a moment, taking over from every other copy, so that the search path knows of its epoch; gives
/// that epoch, and whether all of them heard it.
fn announce(context: &Context, name: &Name) -> Result<(u64, bool), Failure> {
    // It is awake to say one thing. A backup would keep it from its sleep, and is of nothing that the image is not.
    let options = RunOptions { listen: context.config.listen.value, listen_tls: None, take_over: true, back_up: false };
    let (live, is_live) = (Cell::new((0, false)), Notify::new());
    let mut report = |report| match report {
        Report::Notice(text) => context.output.notice(&text),
        Report::Live(now) => {
            let unheard = now.registrations.iter().filter(|report| !report.is_registered());
            for report in unheard.clone() {
                context.output.notice(&format!("{} has not heard of the new epoch", report.entry));
            }
            live.set((now.epoch, unheard.count() == 0));
            is_live.notify_one();
        }
    };
    let (home, config, kinds) = (&context.home, &context.config, context.kinds.clone());
    let told = block_on(async {
        Ok(process::run(home, name, config, kinds, options, is_live.notified(), &mut report).await?)
    });
    told.map_err(|failure| {
        failure
            .while_doing("it was restored, but not announced")
            .next(format!("Wake it with: {} run {name} --take-over", super::program()))
    })?;
    Ok(live.get())
}

/// Says what of the copy that is here will be given up, and which epoch it has; keeps it locked from then on. It must
/// sleep.
fn give_up(context: &Context, name: &Name, turn: u64) -> Result<(u64, StoreLock), Failure> {
    let (places, id) = context.home.vat(name)?;
    if block_on(owner(name, &places))?.is_some() {
        let message = format!("the vat {name} is awake: put it to sleep before another copy takes its place");
        return Err(Failure::new(ErrorCode::VatRunning, message));
    }
    let protection = Opener::of(&context.config, name, &places).protection()?;
    match Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, Default::default()) {
        Ok(store) => {
            let own = store.durable();
            if own.turn > turn {
                context.output.notice(&format!(
                    "The copy of {name} that is here has come to turn {}; what its turns {} to {} did is given up.",
                    own.turn,
                    turn + 1,
                    own.turn
                ));
            }
            Ok((own.epoch, store.close_and_keep_locked()?))
        }
        Err(error @ checkpoint::StoreError::Locked { .. }) => Err(error.into()),
        Err(error) => {
            context.output.notice(&format!("The copy of {name} that is here cannot be opened: {error}"));
            Ok((0, Store::lock(&FileDisk, &places.store)?))
        }
    }
}

/// `vat verify FILE|NAME`
pub(super) fn verify(context: &Context, target: &str, passphrase: PassphraseFrom) -> Result<Exit, Failure> {
    if let Ok(name) = target.parse::<Name>()
        && context.home.places(&name).folder.is_dir()
    {
        return verify_vat(context, &name);
    }
    let file = PathBuf::from(target);
    let mut image = open(context, &file, passphrase)?;
    received(context, &file, &mut image, Vat::verify_image)?;
    let (head, (_, census)) = (image.head(), image.progress());
    let human = format!(
        "{} is whole: {} as of turn {} in epoch {}, made {}, {} rows, {}",
        file.display(),
        address_of(id_of(head)?),
        head.turn,
        head.epoch,
        head.created,
        census.rows,
        size(census.bytes)
    );
    let name: Option<Name> = head.label.parse().ok();
    let mut data = json!({"vat": address_of(id_of(head)?), "label": name.map(|name| name.to_string())});
    add_head(&mut data, head, census);
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

fn verify_vat(context: &Context, name: &Name) -> Result<Exit, Failure> {
    let (places, id) = context.home.vat(name)?;
    let mut progress = context.output.progress(&format!("verifying {name}"));
    let (turn, census) = block_on(async {
        match way(context, name, &places, id, Intent::Look).await? {
            Way::Awake(owner, _session) => {
                let mut request = owner.verify_request();
                let (advances, service) = ProgressService::listen();
                request.get().set_progress(service);
                let shown = |census: Census| progress.show(census.bytes, None);
                let response = while_advancing(request.send().promise, advances, shown).await.map_err(failure)?;
                let results = response.get().map_err(failure)?;
                let amount = results.get_amount().map_err(failure)?;
                Ok((results.get_turn(), Census { rows: amount.get_rows(), bytes: amount.get_bytes() }))
            }
            Way::Asleep(vat) => {
                let verified = vat.engine().store().verify(&mut |census| progress.show(census.bytes, None));
                put_back(vat)?;
                Ok(verified?)
            }
        }
    })?;
    drop(progress);
    let human = format!("{name} is whole as of turn {turn}: {} rows, {}", census.rows, size(census.bytes));
    let data = json!({
        "name": name.as_str(), "vat": address_of(id), "turn": turn, "rows": census.rows, "bytes": census.bytes,
    });
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// Opens an image that is sealed for this home, or under a passphrase.
fn open(context: &Context, file: &Path, passphrase: PassphraseFrom) -> Result<ImageReader<'static>, Failure> {
    let protection = match passphrase {
        Some(from) => Protection::Passphrase(known_passphrase(from)?),
        None => Protection::Recipient(own_recipient_key(&context.home)?),
    };
    Ok(ImageReader::open_file(&FileDisk, file, &protection)?)
}

/// Reads an image with `read`, and shows meanwhile how far that is.
fn received<T>(
    context: &Context,
    file: &Path,
    image: &mut ImageReader<'static>,
    read: impl FnOnce(&mut ImageReader<'_>) -> Result<T, VatError>,
) -> Result<T, Failure> {
    let length = fs::metadata(file).ok().map(|file| file.len());
    let mut progress = context.output.progress(&format!("reading {}", file.display()));
    image.on_progress(move |read, _| progress.show(read, length));
    let read = read(image);
    // Takes the line off the terminal.
    image.on_progress(|_, _| {});
    Ok(read?)
}

fn id_of(head: &ImageHead) -> Result<VatId, Failure> {
    Ok(VatId::from_bytes(head.vat)?)
}

/// What to call the vat of an image: what the user says, or else what its maker called it.
fn name_for(head: &ImageHead, name: Option<&str>) -> Result<Name, Failure> {
    Ok(name.unwrap_or(&head.label).parse()?)
}

fn described(name: &Name, head: &ImageHead, census: Census) -> Result<Value, Failure> {
    let mut data = json!({"name": name.as_str(), "vat": address_of(id_of(head)?)});
    add_head(&mut data, head, census);
    Ok(data)
}

fn add_head(data: &mut Value, head: &ImageHead, census: Census) {
    data["turn"] = json!(head.turn);
    data["epoch"] = json!(head.epoch);
    data["created_at"] = json!(head.created.as_seconds());
    data["rows"] = json!(census.rows);
    data["bytes"] = json!(census.bytes);
}

fn io_failure(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::SystemIo, format!("{}: {error}", path.display()))
}
