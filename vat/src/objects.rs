//! The objects that are built into every vat: of use from the first day, and examples of how to write one.

mod counter;
mod directory;
mod guestbook;
mod notes;

pub(crate) use counter::counter;
pub(crate) use directory::directory;
pub(crate) use guestbook::guestbook;
pub(crate) use notes::notes;

use crate::{
    limits::{MAX_KEY_BYTES, MAX_LIST_BYTES, MAX_LIST_ENTRIES},
    object::{Entries, ObjectError},
};

/// Refuses a value that is larger than the object stores.
fn bounded(what: &'static str, text: &str, limit: usize) -> Result<String, ObjectError> {
    if text.len() > limit {
        return Err(ObjectError::TooLarge { what, found: text.len(), limit });
    }
    Ok(text.to_owned())
}

/// One page of the names of an object's entries.
fn list_names(
    entries: &Entries<'_>,
    prefix: &str,
    after: &str,
    limit: u32,
) -> Result<(Vec<String>, bool), ObjectError> {
    let limit = (limit as usize).min(MAX_LIST_ENTRIES).min(MAX_LIST_BYTES / MAX_KEY_BYTES);
    let after = (!after.is_empty()).then_some(after.as_bytes());
    let (names, more) = entries.names(prefix.as_bytes(), after, limit)?;
    // Names were text when they were stored; a damaged one shows as such instead of hiding the rest.
    Ok((names.into_iter().map(|name| String::from_utf8_lossy(&name).into_owned()).collect(), more))
}
