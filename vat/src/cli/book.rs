//! `vat accept`, `vat forget`: the address book.

use console::Failure;
use schemas::{ErrorCode, Exit};
use serde_json::json;

use super::{Context, connect};
use crate::{address_book::AddressBook, home::Name};

/// `vat accept PETNAME STURDYREF|-`
pub(super) fn accept(context: &Context, petname: &str, sturdyref: &str) -> Result<Exit, Failure> {
    let petname: Name = petname.parse()?;
    let reference = connect::read_reference(sturdyref)?;
    if context.home.places(&petname).folder.exists() {
        return Err(taken(&petname, "a vat of this machine"));
    }
    let book = AddressBook::open_or_create(&context.home)?;
    match book.find(&petname)? {
        Some(known) if known != reference => return Err(taken(&petname, "another reference in the address book")),
        Some(_) => {}
        None => book.put(&petname, &reference)?,
    }
    let human = format!("{petname} is vat://{}\nTry: vat call {petname}", reference.id);
    context.output.result(&human, &json!({"petname": petname.as_str(), "vat": format!("vat://{}", reference.id)}))?;
    Ok(Exit::Ok)
}

/// `vat forget PETNAME`
pub(super) fn forget(context: &Context, petname: &str) -> Result<Exit, Failure> {
    let petname: Name = petname.parse()?;
    let missing = || Failure::new(ErrorCode::VatNotFound, format!("the address book has no entry {petname}"));
    let book = AddressBook::open(&context.home)?.ok_or_else(missing)?;
    book.find(&petname)?.ok_or_else(missing)?;
    book.remove(&petname)?;
    context.output.result(&format!("{petname} is forgotten"), &json!({"forgotten": petname.as_str()}))?;
    Ok(Exit::Ok)
}

fn taken(name: &Name, by: &str) -> Failure {
    Failure::new(ErrorCode::VatExists, format!("the name {name} is taken by {by}"))
}
