//! Images that somebody else made than the vat that they name: none becomes a vat, whoever they are sealed for.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, rc::Rc, sync::Arc};

use checkpoint::{
    Adoption, Change, Holder, ImageReader, Protection, RowKey, Store, StoreKey, StoreOptions, TurnDelta,
    simulated::SimulatedDisk,
};
use schemas::{Coded, ErrorCode, IdentityKey, Timestamp, VatId};
use vat::{
    Kinds,
    core::{Vat, VatError},
    engine::Clock,
};

const KEY: [u8; 32] = [3; 32];

fn clock() -> Clock {
    Rc::new(|| Timestamp::from_seconds(1_700_000_000))
}

fn kinds() -> Kinds {
    Kinds::built_in()
}

fn export(store: &Store) -> Vec<u8> {
    let (mut image, disk) = (Vec::new(), SimulatedDisk::new());
    let holders = [Holder::Key(StoreKey::new(&KEY))];
    let label = ("a vat", Timestamp::from_seconds(1_700_000_000));
    store.export(disk.as_ref(), (&mut image, Path::new("image")), &holders, label, &mut |_| {}).unwrap();
    image
}

fn reader(image: &[u8]) -> ImageReader<'_> {
    let opener = Protection::Key(StoreKey::new(&KEY));
    ImageReader::open(SimulatedDisk::new().as_ref(), (Box::new(image), Path::new("image")), &opener).unwrap()
}

/// An image that its vat has made.
fn honest() -> (VatId, Vec<u8>) {
    let (disk, directory) = (SimulatedDisk::new(), Path::new("/store"));
    let id = Vat::create(disk.clone(), directory, &Protection::Plain, &kinds(), "counter").unwrap();
    let store = Store::open(disk, directory, id.as_bytes(), &Protection::Plain, StoreOptions::default()).unwrap();
    (id, export(&store))
}

/// The same image with another vat's name on it, and what `seed` gives for the secret of its identity.
fn forged(image: &[u8], names: VatId, seed: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let secret = |row: &RowKey| row.name == b"seed";
    let mut row = |row: &RowKey, value: Vec<u8>| if secret(row) { seed(value) } else { Some(value) };
    let adoption = Adoption::Anew { vat: *names.as_bytes(), row: &mut row };
    let (disk, directory) = (SimulatedDisk::new(), Path::new("/forger"));
    let store =
        Store::import(disk, directory, &Protection::Plain, &mut reader(image), adoption, StoreOptions::default());
    export(&store.unwrap())
}

/// Every way in which an image is used.
fn uses(image: &[u8]) -> [Result<(), VatError>; 3] {
    let (disk, plain) = (SimulatedDisk::new(), Protection::Plain);
    let with = || (kinds(), clock());
    [
        Vat::verify_image(&mut reader(image)),
        Vat::import(disk.clone(), Path::new("/import"), &plain, &mut reader(image), with()).map(drop),
        Vat::import_as_copy(Arc::clone(&disk) as Arc<_>, Path::new("/copy"), &plain, &mut reader(image), with())
            .map(drop),
    ]
}

#[test]
fn an_image_that_the_vat_that_it_names_has_not_made_is_refused_in_every_use() {
    let (id, image) = honest();
    for done in uses(&image) {
        done.unwrap();
    }
    let victim = IdentityKey::from_seed(&[9; 32]).id();
    let forgeries = [
        // The name of another vat, and one's own secret.
        forged(&image, victim, Some),
        // A secret that is one of nobody, is too short, too long, or is not there.
        forged(&image, id, |_| Some(vec![1; 32])),
        forged(&image, id, |seed| Some(seed[1..].to_vec())),
        forged(&image, id, |seed| Some([&seed[..], &[0]].concat())),
        forged(&image, id, |_| None),
    ];
    for (number, image) in forgeries.iter().enumerate() {
        for (used, done) in uses(image).into_iter().enumerate() {
            let refused = done.expect_err(&format!("forgery {number}, use {used}"));
            assert!(matches!(refused, VatError::NotAVat(_)), "forgery {number}, use {used}: {refused}");
            assert_eq!(refused.code(), ErrorCode::CheckpointDamaged);
        }
    }
}

/// A row as it is stored: {type, version, body}.
fn stored(kind: &str, body: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_stdvec(&(kind, 1_u32, postcard::to_stdvec(body).unwrap())).unwrap()
}

/// An image that its own vat has made, after it has put a row of its own invention among the vat's own.
fn with_row(space: u64, name: &[u8], value: Vec<u8>) -> Vec<u8> {
    let (disk, directory) = (SimulatedDisk::new(), Path::new("/store"));
    let id = Vat::create(disk.clone(), directory, &Protection::Plain, &kinds(), "counter").unwrap();
    let store = Store::open(disk, directory, id.as_bytes(), &Protection::Plain, StoreOptions::default()).unwrap();
    let change = Change { key: RowKey { space, name: name.to_vec() }, value: Some(value) };
    store.submit(TurnDelta { turn: 2, changes: vec![change] }).unwrap();
    store.wait_durable(2).unwrap();
    export(&store)
}

#[test]
fn an_image_that_calls_a_table_of_the_vat_or_a_number_that_is_still_to_be_given_an_object_is_refused() {
    // {root, its kind, next object, next grant}
    let described = |root: u64, next: u64| stored("vat.description", &(root, "notes", next, 1_u64));
    let notes = || stored("vat.object", &"notes");
    let object = |number: u64| with_row(3, &number.to_be_bytes(), notes());
    for image in [with_row(1, b"vat", described(16, 18)), with_row(1, b"vat", described(16, 17))] {
        uses(&image).into_iter().for_each(|used| used.unwrap());
    }
    let images = [
        ("the identity", object(0)),
        ("the grants", object(2)),
        ("the last that is reserved", object(15)),
        ("the root once more", object(16)),
        ("the next to be made", object(17)),
        ("the last of all", object(u64::MAX)),
        ("a name that is no number", with_row(3, b"x", notes())),
        ("the identity as the root", with_row(1, b"vat", described(0, 17))),
        ("the grants as the root", with_row(1, b"vat", described(2, 17))),
        ("a root that is still to be made", with_row(1, b"vat", described(17, 17))),
    ];
    for (what, image) in images {
        let [_, imported, copied] = uses(&image);
        for refused in [imported, copied] {
            let refused = refused.expect_err(what);
            assert!(matches!(refused, VatError::NotAVat(_)), "{what}: {refused}");
            assert_eq!(refused.code(), ErrorCode::CheckpointDamaged);
        }
    }
}
