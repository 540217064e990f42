//! `vat key …`: who can open the checkpoint of a vat (DESIGN §8, Keyslots).
//!
//! These commands work on the keyslots alone. So they need neither the vat's lock nor its socket, and work the
//! same whether it is awake or asleep.

use std::path::{Path, PathBuf};

use checkpoint::{
    FileDisk, Holder, Passphrase, Protection, RecipientKey, SlotId, SlotIdError, SlotInfo, StoreError, add_holder,
    limits::MAX_PASSPHRASE_BYTES, remove_holder, rotate_key_file, slots,
};
use clap::Subcommand;
use console::{Failure, table};
use schemas::{ErrorCode, Exit, Recipient};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Context, ask};
use crate::{
    backup::own_recipient_key,
    home::{Name, Places},
    opener::Opener,
};

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// What opens a vat's checkpoint
    Show {
        /// The vat's name
        name: String,
    },
    /// Replace a vat's key file by a new one, also while the vat is awake
    Rotate {
        /// The vat's name
        name: String,
    },
    /// Let a passphrase, another key file, or a key that you do not have, open a vat's checkpoint as well
    #[command(group = clap::ArgGroup::new("holder").required(true))]
    Add {
        /// The vat's name
        name: String,
        /// vatkey:… as `vat key recipient` prints it
        #[arg(long, value_name = "RECIPIENT", group = "holder")]
        recipient: Option<String>,
        /// Ask for a passphrase, or with - read it from standard input
        #[arg(long, value_name = "-", group = "holder")]
        passphrase: Option<Option<String>>,
        /// A key file outside of the vat's folder; it is made if it is not there
        #[arg(long, value_name = "FILE", group = "holder")]
        key_file: Option<PathBuf>,
    },
    /// Take a keyslot away
    Remove {
        /// The vat's name
        name: String,
        /// The slot, as `vat key show` names it
        slot: String,
    },
    /// Make a key file for a vat whose key file is lost, with a passphrase or with this home's recipient key
    Recover {
        /// The vat's name
        name: String,
        /// Ask for the passphrase, or with - read it from standard input
        #[arg(long, value_name = "-")]
        passphrase: Option<Option<String>>,
    },
    /// Print this home's recipient: others can seal something for you with it
    Recipient,
}

pub(super) fn key(context: &Context, command: KeyCommand) -> Result<Exit, Failure> {
    match command {
        KeyCommand::Show { name } => show(context, &name),
        KeyCommand::Rotate { name } => rotate(context, &name),
        KeyCommand::Add { name, recipient, passphrase, key_file } => {
            add(context, &name, recipient.as_deref(), passphrase, key_file.as_deref())
        }
        KeyCommand::Remove { name, slot } => remove(context, &name, &slot),
        KeyCommand::Recover { name, passphrase } => recover(context, &name, passphrase),
        KeyCommand::Recipient => recipient(context),
    }
}

/// `vat key show NAME`
fn show(context: &Context, name: &str) -> Result<Exit, Failure> {
    let (_, places, opener) = find(context, name)?;
    let slots = slots(&FileDisk, &places.store, &opener.protection()?)?;
    let rows: Vec<Vec<String>> =
        slots.iter().map(|slot| vec![slot.id.to_string(), slot.kind.to_string(), describe(slot, &opener)]).collect();
    let data: Vec<_> = slots
        .iter()
        .map(|slot| {
            json!({
                "slot": slot.id.to_string(),
                "kind": slot.kind.to_string(),
                "own": slot.own,
                "recipient": slot.recipient.map(|recipient| recipient.to_string()),
                "rotating": slot.rotating,
            })
        })
        .collect();
    let credential = match &opener {
        Opener::KeyFile(_) => None,
        Opener::Credential { credential, .. } => Some(credential.as_str()),
    };
    let data = json!({"name": name, "key_file": opener.key_file(), "credential": credential, "slots": data});
    context.output.result(&table(&rows), &data)?;
    Ok(Exit::Ok)
}

fn describe(slot: &SlotInfo, opener: &Opener) -> String {
    match (slot.own, slot.rotating, slot.recipient) {
        (true, ..) => format!("this vat's own: {opener}"),
        (false, true, _) => "left by a rotation that was interrupted; the next one removes it".to_owned(),
        (false, false, Some(recipient)) => recipient.to_string(),
        (false, false, None) => String::new(),
    }
}

/// `vat key rotate NAME`
fn rotate(context: &Context, name: &str) -> Result<Exit, Failure> {
    let (name, places, opener) = find(context, name)?;
    let Some(key_file) = opener.key_file() else {
        let message = format!("{name} is opened with {opener}, which is not this program's to replace");
        let next = format!(
            "Make another key with `vat key add {name} --key-file FILE`, have the service manager hand that one over, and \
             take the old slot away with `vat key remove`."
        );
        return Err(Failure::new(ErrorCode::KeyInUse, message).next(next));
    };
    let slot = rotate_key_file(&FileDisk, &places.store, key_file)?;
    let human = format!(
        "{name} has a new key file: {}\nThe old one does not open it any more. It still opens copies of the checkpoint \
         that were made before.",
        key_file.display()
    );
    context.output.result(&human, &json!({"name": name.as_str(), "slot": slot.to_string()}))?;
    Ok(Exit::Ok)
}

/// `vat key add NAME --recipient RECIPIENT | --passphrase [-] | --key-file FILE`
fn add(
    context: &Context,
    name: &str,
    recipient: Option<&str>,
    passphrase: Option<Option<String>>,
    key_file: Option<&Path>,
) -> Result<Exit, Failure> {
    let (name, places, opener) = find(context, name)?;
    let own = opener.protection()?;
    let (holder, who) = match (recipient, passphrase, key_file) {
        (_, _, Some(file)) => {
            let path = std::path::absolute(file);
            let path =
                path.map_err(|error| Failure::new(ErrorCode::SystemIo, format!("{}: {error}", file.display())))?;
            // Before a key file is made that opens nothing.
            slots(&FileDisk, &places.store, &own)?;
            let who = format!("the key file {}", path.display());
            (Holder::KeyFile(path), who)
        }
        (Some(text), ..) => {
            let recipient: Recipient = text.parse()?;
            (Holder::Recipient(recipient), format!("the holder of {recipient}"))
        }
        (None, passphrase, None) => {
            // Before somebody thinks of a passphrase for a vat that cannot be opened.
            slots(&FileDisk, &places.store, &own)?;
            (Holder::Passphrase(new_passphrase(passphrase.flatten())?), "this passphrase".to_owned())
        }
    };
    let slot = add_holder(&FileDisk, &places.store, &own, &holder)?;
    let human = format!("{who} opens the checkpoint of {name} as well, until `vat key remove {name} {slot}`");
    context.output.result(&human, &json!({"name": name.as_str(), "slot": slot.to_string()}))?;
    Ok(Exit::Ok)
}

/// `vat key remove NAME SLOT`
fn remove(context: &Context, name: &str, slot: &str) -> Result<Exit, Failure> {
    let (name, places, opener) = find(context, name)?;
    let id: SlotId = slot.parse().map_err(|error: SlotIdError| Failure::from(error).next(lists(&name)))?;
    remove_holder(&FileDisk, &places.store, &opener.protection()?, id).map_err(|error| match error {
        StoreError::UnknownSlot { .. } => Failure::from(error).next(lists(&name)),
        StoreError::SlotInUse { .. } => {
            Failure::from(error).next(format!("`vat key rotate {name}` replaces the vat's own key."))
        }
        other => other.into(),
    })?;
    let human = format!("keyslot {id} of {name} is gone");
    context.output.result(&human, &json!({"name": name.as_str(), "removed": id.to_string()}))?;
    Ok(Exit::Ok)
}

/// `vat key recover NAME [--passphrase [-]]`
fn recover(context: &Context, name: &str, passphrase: Option<Option<String>>) -> Result<Exit, Failure> {
    let (name, places, opener) = find(context, name)?;
    let Some(key_file) = opener.key_file() else {
        let message = format!("{name} is opened with {opener}: a key file would not be used");
        let next = format!("Take {name} out of [credentials] in the configuration file first.");
        return Err(Failure::new(ErrorCode::ConfigInvalid, message).next(next));
    };
    if slots(&FileDisk, &places.store, &opener.protection()?).is_ok() {
        let message = format!("the key file of {name} opens its checkpoint: there is nothing to recover");
        let next = format!("`vat key rotate {name}` replaces it by a new one.");
        return Err(Failure::new(ErrorCode::KeyInUse, message).next(next));
    }
    let protection = match passphrase {
        Some(from) => Protection::Passphrase(known_passphrase(from)?),
        None => {
            let key = RecipientKey::load(&FileDisk, &context.home.recipient_key());
            Protection::Recipient(key.map_err(|error| match error {
                StoreError::KeyMissing { .. } => Failure::from(error).next(format!(
                    "This home has no recipient key. If a passphrase opens the checkpoint: vat key recover {name} \
                     --passphrase"
                )),
                other => other.into(),
            })?)
        }
    };
    // Before a key file is made that opens nothing.
    slots(&FileDisk, &places.store, &protection)?;
    context.home.make_parent(key_file)?;
    let holder = Holder::KeyFile(key_file.to_owned());
    let slot = add_holder(&FileDisk, &places.store, &protection, &holder)?;
    let human = format!(
        "{name} has a key file again: {}\nThe keyslot of the lost one is still there: `vat key show {name}` lists it.",
        key_file.display()
    );
    context.output.result(&human, &json!({"name": name.as_str(), "slot": slot.to_string()}))?;
    Ok(Exit::Ok)
}

/// `vat key recipient`
fn recipient(context: &Context) -> Result<Exit, Failure> {
    let recipient = own_recipient_key(&context.home)?.recipient()?;
    let human = format!("With this, others can seal something for you. It is not a secret:\n{recipient}");
    context.output.result(&human, &json!({"recipient": recipient.to_string()}))?;
    Ok(Exit::Ok)
}

fn find(context: &Context, name: &str) -> Result<(Name, Places, Opener), Failure> {
    let name: Name = name.parse()?;
    let (places, _) = context.home.vat(&name)?;
    let opener = Opener::of(&context.config, &name, &places);
    Ok((name, places, opener))
}

fn lists(name: &Name) -> String {
    format!("`vat key show {name}` lists the keyslots.")
}

/// A passphrase that is to be set: at a terminal it is typed twice, because nobody sees it.
pub(super) fn new_passphrase(from: Option<String>) -> Result<Passphrase, Failure> {
    let passphrase = read_passphrase(from.as_deref(), "New passphrase (it is not shown): ")?;
    if ask::is_terminal() && *read_passphrase(None, "The same again: ")? != *passphrase {
        return Err(Failure::new(ErrorCode::KeyPassphrase, "the two passphrases are not the same").next("Try again."));
    }
    Ok(Passphrase::new(passphrase)?)
}

/// A passphrase that was set before.
pub(super) fn known_passphrase(from: Option<String>) -> Result<Passphrase, Failure> {
    Ok(Passphrase::new(read_passphrase(from.as_deref(), "Passphrase (it is not shown): ")?)?)
}

/// One line, without its end.
fn read_passphrase(from: Option<&str>, prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let io = |error| Failure::new(ErrorCode::SystemIo, format!("standard input: {error}"));
    let none = |reason: &str| {
        let next = "Pipe it in: `--passphrase - < FILE` reads the first line.";
        Failure::new(ErrorCode::KeyPassphrase, reason).next(next)
    };
    // One byte more shows that it is too long, and two are the end of the line.
    let limit = MAX_PASSPHRASE_BYTES + 3;
    let line = match from {
        // Not repeated: it may be the passphrase.
        Some(text) if text != "-" => {
            return Err(none("others can read what stands on a command line, so no passphrase is taken from it"));
        }
        _ if ask::is_terminal() => ask::hidden_line(prompt, limit).map_err(io)?.ok_or_else(|| none("interrupted"))?,
        Some(_) => ask::piped_line(limit).map_err(io)?,
        None => return Err(none("there is no terminal to ask for the passphrase at")),
    };
    let line = std::str::from_utf8(&line).map_err(|_| none("the passphrase is not UTF-8 text"))?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    Ok(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}
