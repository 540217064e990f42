//! Where a vat grows before it exists: under a name that no vat can have, so that it appears under its own all at
//! once and whole.
//!
//! Whether there is room for it is seen when it takes its place, under the lock of the home: two processes that make
//! the same vat at the same moment, from one image, would both have found the home without it before they began.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use checkpoint::{FileDisk, KeyslotsHold, Protection, hold_keyslots};
use console::Failure;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use schemas::{ErrorCode, VatId};

use super::Context;
use crate::{
    address_book::AddressBook,
    home::{HomeError, Name, Places, make_folder, replace_file},
    opener::Opener,
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

/// What a vat has left that another one has taken the place of.
pub(super) struct Kept {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// Its key file, under a name of its own: `vat key rotate` replaces that of its successor. `None`: it had none, or is
    /// opened with a credential.
    pub(super) key_file: Option<PathBuf>,
}

/// Puts a vat in the place of the one that has this name, and says where that one is kept.
pub(super) fn replace<T>(
    context: &Context,
    name: &Name,
    make: impl FnOnce(&Path, &Protection) -> Result<(VatId, T), Failure>,
) -> Result<(T, Kept), Failure> {
    let places = context.home.places(name);
    let kept_as = format!(".{name}.replaced.{}", system_clock()().as_seconds());
    let kept = Kept {
        folder: places.folder.with_file_name(&kept_as),
        // Before the new one is made, which makes a key file if there is none.
        key_file: Opener::of(&context.config, name, &places)
            .key_file()
            .filter(|path| path.exists())
            .map(|path| path.with_file_name(format!("{kept_as}.key"))),
    };
    // The new one is sealed under the key file that the old one has. `vat key rotate` must not replace that file in the
    // minutes before they change places: nothing would open the new one then.
    let _hold = hold(&places)?;
    let made = in_nursery(context, name, &places, make, |nursery, id| {
        let _lock = context.home.lock_vats()?;
        if context.home.name_of(id)?.as_ref() != Some(name) {
            // Somebody has removed it, or put another vat there, since it was looked at.
            return Err(HomeError::NoVat { name: name.to_string(), home: context.home.root().to_owned() });
        }
        Step::take_all(&Step::all(nursery, &places, &kept))
    })?;
    Ok((made, kept))
}

/// Keeps the key file of the vat that is there as it is. `None`: there is no store whose keys could be changed.
fn hold(places: &Places) -> Result<Option<KeyslotsHold>, Failure> {
    if !places.store.is_dir() {
        return Ok(None);
    }
    Ok(Some(hold_keyslots(&FileDisk, &places.store)?))
}

/// One step of a vat into the place of another.
///
/// Wherever the machine stops between two of them, or before they are durable, there is a whole vat of this name, and
/// what was there before is whole, with its key, as long as the new one has no place, and after that under the name
/// that it is kept by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Gives a file a second name.
    Link { file: PathBuf, second: PathBuf },
    /// Makes the names in a folder durable.
    Sync(PathBuf),
    /// Gives a folder a name that nothing has.
    Rename { from: PathBuf, to: PathBuf },
    /// Has two folders change names, at once.
    Exchange { one: PathBuf, other: PathBuf },
}

impl Step {
    /// The steps, in order, but for the last sync.
    fn all(nursery: &Path, places: &Places, kept: &Kept) -> Vec<Self> {
        let mut steps = Vec::new();
        if let Some(second) = &kept.key_file {
            steps.push(Self::Link { file: places.key_file.clone(), second: second.clone() });
            steps.extend(second.parent().map(|folder| Self::Sync(folder.to_owned())));
        }
        // The new vat takes the name that the old one will be kept under, and then the two change places in one
        // step: at no moment is there no vat of this name, and nothing is deleted once they have changed.
        steps.push(Self::Rename { from: nursery.to_owned(), to: kept.folder.clone() });
        steps.push(Self::Exchange { one: kept.folder.clone(), other: places.folder.clone() });
        steps
    }

    /// Takes these steps, or none of them.
    fn take_all(steps: &[Self]) -> Result<(), HomeError> {
        for (number, step) in steps.iter().enumerate() {
            step.take().inspect_err(|_| steps[..number].iter().rev().for_each(Self::undo))?;
        }
        Ok(())
    }

    /// What is left if this fails as well is a second name of a key, or a vat under a name that no vat has.
    fn undo(&self) {
        let _ = match self {
            Self::Link { second, .. } => fs::remove_file(second),
            Self::Sync(_) => Ok(()),
            Self::Rename { from, to } => fs::rename(to, from),
            Self::Exchange { one, other } => {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(io::Error::from)
            }
        };
    }

    fn take(&self) -> Result<(), HomeError> {
        let (path, taken) = match self {
            Self::Link { file, second } => (second, fs::hard_link(file, second)),
            Self::Sync(folder) => (folder, sync(folder)),
            Self::Rename { from, to } => {
                (to, renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from))
            }
            Self::Exchange { one, other } => {
                (other, renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(io::Error::from))
            }
        };
        taken.map_err(|error| HomeError::Io { path: path.clone(), error })
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

fn in_nursery<T>(
    context: &Context,
    name: &Name,
    places: &Places,
    make: impl FnOnce(&Path, &Protection) -> Result<(VatId, T), Failure>,
    settle: impl FnOnce(&Path, VatId) -> Result<(), HomeError>,
) -> Result<T, Failure> {
    context.home.make_parent(&places.folder)?;
    let opener = Opener::of(&context.config, name, places);
    opener.key_file().map_or(Ok(()), |path| context.home.make_parent(path))?;
    let protection = opener.protection()?;
    let nursery = places.folder.with_file_name(format!(".{name}.new.{}", std::process::id()));
    make_folder(&nursery)?;
    let grown = || -> Result<T, Failure> {
        let (id, made) = make(&nursery.join("store"), &protection)?;
        replace_file(&nursery.join("id"), format!("{id}\n").as_bytes())?;
        settle(&nursery, id)?;
        sync(places.folder.parent().unwrap_or(&places.folder))
            .map_err(|error| HomeError::Io { path: places.folder.clone(), error })?;
        Ok(made)
    }();
    if grown.is_err() {
        // What failed is reported; a left-over folder in the nursery is no vat and harms nobody.
        let _ = fs::remove_dir_all(&nursery);
    }
    grown
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use checkpoint::{Store, StoreError, StoreOptions, rotate_key_file};
    use schemas::{Coded, IdentityKey};

    use super::*;
    use crate::{config::Config, home::Home, kinds::Kinds};

    const OLD: &str = "the old one";
    const NEW: &str = "the new one";
    const OLD_KEY: &str = "the key of the old one";

    /// A home with a vat, another one that is to take its place, and the steps for that.
    fn before(root: &Path) -> (Home, Name, Kept, Vec<Step>) {
        let home = Home::open(&root.join("home")).unwrap();
        let name: Name = "tally".parse().unwrap();
        let places = home.places(&name);
        home.make_parent(&places.key_file).unwrap();
        fs::write(&places.key_file, OLD_KEY).unwrap();
        let nursery = places.folder.with_file_name(".tally.new.1");
        for (folder, what) in [(&places.folder, OLD), (&nursery, NEW)] {
            make_folder(folder).unwrap();
            fs::write(folder.join("id"), IdentityKey::from_seed(&[1; 32]).id().to_string()).unwrap();
            fs::write(folder.join("what"), what).unwrap();
        }
        let kept = Kept {
            folder: places.folder.with_file_name(".tally.replaced.2"),
            key_file: Some(places.key_file.with_file_name(".tally.replaced.2.key")),
        };
        let mut steps = Step::all(&nursery, &places, &kept);
        steps.extend(places.folder.parent().map(|folder| Step::Sync(folder.to_owned())));
        (home, name, kept, steps)
    }

    /// In which folder a step changes a name.
    fn folder(step: &Step) -> Option<&Path> {
        match step {
            Step::Link { second: path, .. } | Step::Rename { to: path, .. } | Step::Exchange { other: path, .. } => {
                path.parent()
            }
            Step::Sync(_) => None,
        }
    }

    /// Whether the step with this number may be lost with the power after `taken` of them.
    fn may_be_lost(steps: &[Step], number: usize, taken: usize) -> bool {
        let synced =
            |step: &Step| matches!(step, Step::Sync(synced) if Some(synced.as_path()) == folder(&steps[number]));
        folder(&steps[number]).is_some() && !steps[number..taken].iter().any(synced)
    }

    #[test]
    fn at_every_crash_there_is_a_whole_vat_and_the_one_before_it_with_its_key() {
        let all = before(tempfile::tempdir().unwrap().path()).3.len();
        let (mut old_ones, mut new_ones) = (0, 0);
        for taken in 0..=all {
            // Every choice of which steps are lost that may be.
            for lost in 0..1_u32 << taken {
                let root = tempfile::tempdir().unwrap();
                let (home, name, kept, steps) = before(root.path());
                let is_lost = |number: usize| lost & (1 << number) != 0;
                if (0..taken).any(|number| is_lost(number) && !may_be_lost(&steps, number, taken)) {
                    continue;
                }
                for step in (0..taken).filter(|number| !is_lost(*number)).map(|number| &steps[number]) {
                    // One that is not possible without a step that was lost is lost with it.
                    let _ = step.take();
                }
                let (places, _) = home.vat(&name).unwrap();
                let read = |path: &Path| fs::read_to_string(path).unwrap();
                if read(&places.folder.join("what")) == OLD {
                    assert_eq!(read(&places.key_file), OLD_KEY);
                    assert!(taken < all, "it has its place for good in the end");
                    old_ones += 1;
                } else {
                    assert_eq!(read(&kept.folder.join("what")), OLD, "{taken} steps, lost {lost:b}");
                    // As `vat key rotate` does to the new one.
                    replace_file(&places.key_file, b"another key").unwrap();
                    assert_eq!(read(kept.key_file.as_ref().unwrap()), OLD_KEY, "{taken} steps, lost {lost:b}");
                    new_ones += 1;
                }
            }
        }
        assert!(old_ones > 4 && new_ones > 1, "{old_ones} {new_ones}");
    }

    /// The key that the new vat is sealed under must still be in its place when the two have changed places.
    #[test]
    fn while_a_vat_gives_way_to_another_its_key_file_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(&root.path().join("home")).unwrap();
        let config = Config::load(&home).unwrap();
        let context = Context { home, config, kinds: Kinds::built_in(), output: console::Output::new(true) };
        let name: Name = "tally".parse().unwrap();
        let places = context.home.places(&name);
        let id = IdentityKey::from_seed(&[1; 32]).id();
        let make = |store: &Path, protection: &Protection| {
            let made = Store::create(Arc::new(FileDisk), store, id.as_bytes(), protection, StoreOptions::default());
            drop(made.map_err(Failure::from)?);
            Ok((id, ()))
        };
        let rotate = || rotate_key_file(&FileDisk, &places.store, &places.key_file);
        grow(&context, &name, make).unwrap();
        replace(&context, &name, |store, protection| {
            let made = make(store, protection);
            // Minutes later, of an import.
            assert!(matches!(rotate(), Err(StoreError::KeysBusy { .. })));
            made
        })
        .unwrap();
        let protection = Protection::KeyFile(places.key_file.clone());
        drop(
            Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, StoreOptions::default())
                .unwrap(),
        );
        rotate().unwrap();

        // And while somebody replaces it, no other vat is made that would be sealed under it.
        let held = hold_keyslots(&FileDisk, &places.store).unwrap();
        let refused = replace(&context, &name, make).map(drop).unwrap_err();
        assert_eq!(refused.code, StoreError::KeysBusy { directory: places.store.clone() }.code());
        drop(held);
        rotate().unwrap();
    }

    #[test]
    fn when_a_step_fails_everything_is_as_it_was() {
        for failing in 0..4 {
            let root = tempfile::tempdir().unwrap();
            let (home, name, kept, steps) = before(root.path());
            let (places, kept_key) = (home.places(&name), kept.key_file.unwrap());
            // What an earlier one is kept under is in the way of two of them.
            match &steps[failing] {
                Step::Link { second, .. } => fs::write(second, "an earlier one").unwrap(),
                Step::Sync(_) => continue,
                Step::Rename { to, .. } => make_folder(to).unwrap(),
                Step::Exchange { .. } => fs::rename(&places.folder, root.path().join("elsewhere")).unwrap(),
            }
            assert!(Step::take_all(&steps).is_err());
            let nursery = places.folder.with_file_name(".tally.new.1");
            assert_eq!(fs::read_to_string(nursery.join("what")).unwrap(), NEW);
            if let Step::Exchange { .. } = &steps[failing] {
                assert!(!places.folder.exists());
            } else {
                assert_eq!(fs::read_to_string(places.folder.join("what")).unwrap(), OLD);
            }
            assert_eq!(kept.folder.exists(), failing == 2, "what was there before is still there");
            assert_eq!(kept_key.exists(), failing == 0, "what was there before is still there");
        }
    }
}
