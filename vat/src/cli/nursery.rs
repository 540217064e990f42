//! Where a vat grows before it exists: under a name that no vat can have, so that it appears under its own all at
//! once and whole.
//!
//! Whether there is room for it is seen when it takes its place, under the lock of the home: two processes that make
//! the same vat at the same moment, from one image, would both have found the home without it before they began.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use checkpoint::Protection;
use console::Failure;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use schemas::{ErrorCode, VatId};

use super::Context;
use crate::{
    address_book::AddressBook,
    home::{HomeError, Name, Places, make_folder, replace_file},
    process::system_clock,
};

/// Makes a vat of this name. `make` fills its store, and says which vat it is.
pub(super) fn grow<T>(
    context: &Context,
    name: &Name,
    make: impl FnOnce(&Path, &Protection) -> Result<(VatId, T), Failure>,
) -> Result<T, Failure> {
    let places = context.home.places(name);
    if places.folder.exists() {
        return Err(HomeError::Exists { name: name.to_string() }.into());
    }
    if let Some(book) = AddressBook::open(&context.home)?
        && book.find(name)?.is_some()
    {
        let message = format!("the name {name} is taken by an entry of the address book");
        return Err(Failure::new(ErrorCode::VatExists, message));
    }
    in_nursery(context, name, &places, make, |nursery, id| {
        let _lock = context.home.lock_vats()?;
        if let Some(name) = context.home.name_of(id)? {
            return Err(HomeError::Present { name });
        }
        fs::rename(nursery, &places.folder).map_err(|error| match error.kind() {
            // Somebody else was faster: a folder is only ever replaced by nobody.
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                HomeError::Exists { name: name.to_string() }
            }
            _ => HomeError::Io { path: places.folder.clone(), error },
        })
    })
}

/// Puts a vat in the place of the one that has this name, and says where that one is kept.
pub(super) fn replace<T>(
    context: &Context,
    name: &Name,
    make: impl FnOnce(&Path, &Protection) -> Result<(VatId, T), Failure>,
) -> Result<(T, PathBuf), Failure> {
    let places = context.home.places(name);
    let now = system_clock()().as_seconds();
    let kept = places.folder.with_file_name(format!(".{name}.replaced.{now}"));
    let made = in_nursery(context, name, &places, make, |nursery, id| {
        let _lock = context.home.lock_vats()?;
        if context.home.name_of(id)?.as_ref() != Some(name) {
            // Somebody has removed it, or put another vat there, since it was looked at.
            return Err(HomeError::NoVat { name: name.to_string(), home: context.home.root().to_owned() });
        }
        let at = |error: rustix::io::Errno| HomeError::Io { path: places.folder.clone(), error: error.into() };
        // The new vat takes the name that the old one will be kept under, and then the two change places in one
        // step: at no moment is there no vat of this name, and nothing is deleted once they have changed.
        renameat_with(CWD, nursery, CWD, &kept, RenameFlags::NOREPLACE).map_err(at)?;
        renameat_with(CWD, &kept, CWD, &places.folder, RenameFlags::EXCHANGE).map_err(|error| {
            // Still the new one: they have not changed places.
            let _ = fs::remove_dir_all(&kept);
            at(error)
        })
    })?;
    Ok((made, kept))
}

fn in_nursery<T>(
    context: &Context,
    name: &Name,
    places: &Places,
    make: impl FnOnce(&Path, &Protection) -> Result<(VatId, T), Failure>,
    settle: impl FnOnce(&Path, VatId) -> Result<(), HomeError>,
) -> Result<T, Failure> {
    context.home.make_parent(&places.folder)?;
    context.home.make_parent(&places.key_file)?;
    let nursery = places.folder.with_file_name(format!(".{name}.new.{}", std::process::id()));
    make_folder(&nursery)?;
    let grown = || -> Result<T, Failure> {
        let (id, made) = make(&nursery.join("store"), &Protection::KeyFile(places.key_file.clone()))?;
        replace_file(&nursery.join("id"), format!("{id}\n").as_bytes())?;
        settle(&nursery, id)?;
        let parent = places.folder.parent().unwrap_or(&places.folder);
        let synced = fs::File::open(parent).and_then(|folder| folder.sync_all());
        synced.map_err(|error| HomeError::Io { path: places.folder.clone(), error })?;
        Ok(made)
    }();
    if grown.is_err() {
        // What failed is reported; a left-over folder in the nursery is no vat and harms nobody.
        let _ = fs::remove_dir_all(&nursery);
    }
    grown
}
