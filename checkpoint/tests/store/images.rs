//! Images: what goes out of one store comes into another, whole or not at all (DESIGN §8).

mod left_over;

use std::{
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use checkpoint::{
    Adoption, Census, Damage, Holder, ImageHead, ImageReader, Protection, RowKey, Store, StoreError, TurnDelta,
    simulated::{Fault, SimulatedDisk},
};
use schemas::Timestamp;

use crate::harness::*;

const COPY: [u8; 32] = [8; 32];
const SECTOR: usize = 512;

fn image_path() -> &'static Path {
    Path::new("an.image")
}

fn holder() -> Holder {
    Holder::KeyFile("/image.key".into())
}

fn opener() -> Protection {
    Protection::KeyFile("/image.key".into())
}

fn try_export(
    disk: &Arc<SimulatedDisk>,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(ImageHead, Census), StoreError> {
    let (label, created) = ("a vat", Timestamp::from_seconds(1_700_000_000));
    store.export(disk.as_ref(), (output, image_path()), &[holder()], (label, created), &mut |_| {})
}

fn export(disk: &Arc<SimulatedDisk>, store: &Store) -> Vec<u8> {
    let mut image = Vec::new();
    try_export(disk, store, &mut image).unwrap();
    image
}

fn reader<'a>(disk: &Arc<SimulatedDisk>, image: impl Read + 'a) -> Result<ImageReader<'a>, StoreError> {
    ImageReader::open(disk.as_ref(), (Box::new(image), image_path()), &opener())
}

/// Every row of an image, if it is whole.
fn rows_of(disk: &Arc<SimulatedDisk>, image: &[u8]) -> Result<Rows, StoreError> {
    let mut reader = reader(disk, image)?;
    let mut rows = Rows::new();
    while let Some((RowKey { space, name }, value)) = reader.next_row()? {
        assert!(rows.insert((space, name), value).is_none(), "a row came twice");
    }
    Ok(rows)
}

fn import(disk: &Arc<SimulatedDisk>, directory: &Path, image: &[u8]) -> Result<Store, StoreError> {
    let mut reader = reader(disk, image)?;
    Store::import(disk.clone(), directory, &sealed(), &mut reader, Adoption::Continue, no_folds())
}

/// A store with rows in its base, in a fold's reach and in the journal only, and what it holds.
fn lived_in(disk: &Arc<SimulatedDisk>, seed: u64) -> (Store, Rows) {
    let store = create(disk, no_folds()).unwrap();
    let (mut random, mut rows) = (Random(seed), Rows::new());
    store.begin_epoch(3, [5; 16]).unwrap();
    for round in 0..40 {
        let changes = random.changes();
        apply(&mut rows, &changes);
        if !changes.is_empty() {
            durable_turn(&store, changes).unwrap();
        }
        if round == 25 {
            store.fold().unwrap();
        }
    }
    (store, rows)
}

fn small(disk: &Arc<SimulatedDisk>) -> (Store, Vec<u8>) {
    let store = create(disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"name", b"value"), set(1, b"other", &[7; 600])]).unwrap();
    let image = export(disk, &store);
    (store, image)
}

#[test]
fn what_is_exported_is_imported_with_its_turn_and_its_epoch_and_goes_on() {
    for seed in 0..8 {
        let disk = SimulatedDisk::new();
        let (store, rows) = lived_in(&disk, seed);
        let mut image = Vec::new();
        let (head, census) = try_export(&disk, &store, &mut image).unwrap();
        let bytes: usize = rows.iter().map(|((_, name), value)| name.len() + value.len()).sum();
        assert_eq!(census, Census { rows: rows.len() as u64, bytes: bytes as u64 });
        assert_eq!(image.len() % SECTOR, 0);
        assert_eq!(store.verify(&mut |_| {}).unwrap(), (store.position().turn, census));

        let read = reader(&disk, &image[..]).unwrap();
        let expected = ImageHead {
            vat: VAT,
            turn: store.position().turn,
            epoch: 3,
            incarnation: [5; 16],
            created: Timestamp::from_seconds(1_700_000_000),
            label: "a vat".to_owned(),
        };
        assert_eq!((read.head(), &head), (&expected, &expected));
        assert_eq!(rows_of(&disk, &image).unwrap(), rows);

        let there = Path::new("/there");
        let imported = import(&disk, there, &image).unwrap();
        assert_eq!(contents(&imported).unwrap(), rows);
        assert_eq!((imported.position().turn, imported.position().epoch), (head.turn, 3));
        assert_eq!(imported.incarnation(), [5; 16]);
        let next = durable_turn(&imported, vec![set(0, b"new", b"row")]).unwrap();
        assert_eq!(next, head.turn + 1);
        imported.begin_epoch(4, [6; 16]).unwrap();
        imported.close().unwrap();
        let again = Store::open(disk.clone(), there, &VAT, &sealed(), no_folds()).unwrap();
        assert_eq!(get(&again, 0, b"new").as_deref(), Some(&b"row"[..]));
        assert_eq!(again.verify(&mut |_| {}).unwrap().1.rows, contents(&again).unwrap().len() as u64);
    }
}

#[test]
fn rows_of_several_frames_arrive_in_as_many() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, large_segments()).unwrap();
    let (mut random, mut rows) = (Random(3), Rows::new());
    for name in 0..24_u8 {
        let changes = vec![set(0, &[name], &random.bytes(50_000))];
        apply(&mut rows, &changes);
        durable_turn(&store, changes).unwrap();
    }
    let image = export(&disk, &store);
    assert!(image.len() > 4 * checkpoint::limits::IMAGE_FRAME_BYTES);
    assert_eq!(rows_of(&disk, &image).unwrap(), rows);
}

#[test]
fn a_copy_begins_anew_as_another_vat_without_what_was_left_out() {
    let disk = SimulatedDisk::new();
    let (store, rows) = lived_in(&disk, 5);
    let image = export(&disk, &store);
    let mut row = |key: &RowKey, value: Vec<u8>| match key.space {
        0 => None,
        1 => Some(b"changed".to_vec()),
        _ => Some(value),
    };
    let adoption = Adoption::Anew { vat: COPY, row: &mut row };
    let there = Path::new("/there");
    let copy =
        Store::import(disk.clone(), there, &sealed(), &mut reader(&disk, &image[..]).unwrap(), adoption, no_folds())
            .unwrap();
    let expected: Rows = rows
        .into_iter()
        .filter(|((space, _), _)| *space != 0)
        .map(|(key, value)| if key.0 == 1 { (key, b"changed".to_vec()) } else { (key, value) })
        .collect();
    assert_eq!(contents(&copy).unwrap(), expected);
    assert_eq!((copy.position().turn, copy.position().epoch), (0, 0));
    drop(copy);
    let refused = Store::open(disk, there, &VAT, &sealed(), no_folds()).unwrap_err();
    assert!(matches!(refused, StoreError::WrongVat { .. }), "{refused}");
}

#[test]
fn every_changed_bit_of_an_image_is_found() {
    let disk = SimulatedDisk::new();
    let (_store, image) = small(&disk);
    for bit in 0..image.len() * 8 {
        let mut changed = image.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(rows_of(&disk, &changed).is_err(), "bit {bit} of {}", image.len() * 8);
    }
}

#[test]
fn an_image_that_is_cut_off_anywhere_or_goes_on_is_refused() {
    let disk = SimulatedDisk::new();
    let (_store, image) = small(&disk);
    for length in 0..image.len() {
        assert!(rows_of(&disk, &image[..length]).is_err(), "{length} of {} bytes", image.len());
    }
    for more in [&[0][..], &[0; SECTOR], &image[image.len() - SECTOR..], &image] {
        let refused = rows_of(&disk, &[&image[..], more].concat()).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { damage: Damage::Trailing, .. }), "{refused}");
    }
}

#[test]
fn frames_that_are_dropped_repeated_moved_or_of_another_image_are_refused() {
    let disk = SimulatedDisk::new();
    let (store, image) = small(&disk);
    // The same vat, the same rows, the same holder: only the image is another one.
    let other = export(&disk, &store);
    assert_ne!(image, other);
    let sectors = image.len() / SECTOR;
    let slots = image.chunks(SECTOR).take_while(|sector| !sector.starts_with(b"vatframe")).count();
    for at in slots..sectors {
        for length in 1..=sectors - at {
            let (start, end) = (at * SECTOR, (at + length) * SECTOR);
            let dropped = [&image[..start], &image[end..]].concat();
            assert!(rows_of(&disk, &dropped).is_err(), "dropped {at} + {length}");
            let repeated = [&image[..end], &image[start..]].concat();
            assert!(rows_of(&disk, &repeated).is_err(), "repeated {at} + {length}");
            let spliced = [&image[..start], &other[start..end], &image[end..]].concat();
            assert!(rows_of(&disk, &spliced).is_err(), "spliced {at} + {length}");
        }
    }
    for (first, second) in (slots..sectors).flat_map(|one| (one + 1..sectors).map(move |two| (one, two))) {
        let mut swapped = image.clone();
        for byte in 0..SECTOR {
            swapped.swap(first * SECTOR + byte, second * SECTOR + byte);
        }
        assert!(rows_of(&disk, &swapped).is_err(), "swapped {first} and {second}");
    }
}

#[test]
fn an_image_opens_for_its_holder_only_and_shows_nothing_to_others() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"a telling name", b"a telling value")]).unwrap();
    let image = export(&disk, &store);
    for text in [&b"telling"[..], b"a vat", &VAT] {
        assert!(!image.windows(text.len()).any(|window| window == text));
    }
    let refused = ImageReader::open(disk.as_ref(), (Box::new(&image[..]), image_path()), &sealed());
    assert!(matches!(refused.err(), Some(StoreError::KeyWrong { .. })), "the store's own key is not the image's");
    for nothing in [&b""[..], b"PK\x03\x04", &[0; 4096]] {
        let refused = reader(&disk, nothing).err();
        assert!(matches!(refused, Some(StoreError::NotAnImage { .. })), "{refused:?}");
    }
}

#[test]
fn an_import_that_fails_or_is_killed_leaves_no_store_and_can_be_done_again() {
    let disk = SimulatedDisk::new();
    let (_store, image) = small(&disk);
    let there = Path::new("/there");
    for length in [image.len() - SECTOR, image.len() - 1] {
        assert!(import(&disk, there, &image[..length]).is_err());
        let missing = Store::open(disk.clone(), there, &VAT, &sealed(), no_folds()).unwrap_err();
        assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    }
    let whole = disk.copy();
    drop(import(&whole, there, &image).unwrap());
    assert!(whole.calls() > 20);
    for call in 1..=whole.calls() {
        for fault in [Fault::Broken, Fault::Full, Fault::Short] {
            let disk = disk.copy();
            disk.inject(call, fault);
            let imported = import(&disk, there, &image).is_ok();
            assert_there_or_not(&disk, &image, imported);
        }
    }
    let history = whole.history();
    for operations in 0..=history.len() {
        let mut history = whole.history();
        history.advance(operations);
        assert_there_or_not(&history.kill(), &image, operations == history.len());
        for seed in 0..4 {
            assert_there_or_not(&history.crash(seed), &image, operations == history.len());
        }
    }
}

/// There is either all of it or nothing, and then it can be imported (again).
fn assert_there_or_not(disk: &Arc<SimulatedDisk>, image: &[u8], imported: bool) {
    let (there, rows) = (Path::new("/there"), rows_of(disk, image).unwrap());
    let store = match Store::open(disk.clone(), there, &VAT, &sealed(), no_folds()) {
        Ok(store) => store,
        Err(StoreError::Missing { .. }) if !imported => import(disk, there, image).unwrap(),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(contents(&store).unwrap(), rows);
    store.verify(&mut |_| {}).unwrap();
}

#[test]
fn an_export_that_cannot_be_written_leaves_the_store_as_it_was() {
    /// Takes some bytes, then no more.
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            if self.0 == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }
    let disk = SimulatedDisk::new();
    let (store, image) = small(&disk);
    // With exactly as many bytes as it takes, flushing fails.
    for room in (0..=image.len()).step_by(100).chain([image.len()]) {
        let refused = try_export(&disk, &store, &mut Full(room)).unwrap_err();
        assert!(matches!(refused, StoreError::DiskFull { .. }), "{refused}");
    }
    assert!(store.poisoned().is_none());
    durable_turn(&store, vec![set(0, b"name", b"again")]).unwrap();
    try_export(&disk, &store, &mut Full(image.len() + 1)).unwrap();
}

#[test]
fn a_file_is_there_whole_or_not_at_all_whatever_fails() {
    let path = Path::new("/a.image");
    let to_file = |disk: &Arc<SimulatedDisk>, store: &Store| {
        let label = ("a vat", Timestamp::from_seconds(1_700_000_000));
        store.export_to_file(disk.as_ref(), path, &[holder()], label, &mut |_| {})
    };
    // On a disk of its own, as a backup should be: the store's calls are not counted.
    let of_store = SimulatedDisk::new();
    let (store, _) = small(&of_store);
    let whole = SimulatedDisk::new();
    let (head, _) = to_file(&whole, &store).unwrap();
    let calls = whole.calls();
    let rows = contents(&store).unwrap();
    let is_whole = |disk: &Arc<SimulatedDisk>| {
        let mut reader = ImageReader::open_file(disk.as_ref(), path, &opener()).unwrap();
        assert_eq!(reader.head(), &head);
        let mut found = Rows::new();
        while let Some((RowKey { space, name }, value)) = reader.next_row().unwrap() {
            found.insert((space, name), value);
        }
        assert_eq!(found, rows);
    };
    is_whole(&whole);
    let refused = to_file(&whole, &store).unwrap_err();
    assert!(matches!(refused, StoreError::ImageExists { .. }), "{refused}");
    is_whole(&whole);
    assert_eq!(whole.files(), [Path::new("/a.image"), Path::new("/image.key")]);

    for call in 1..=calls {
        let disk = SimulatedDisk::new();
        disk.inject(call, Fault::Short);
        if to_file(&disk, &store).is_ok() || disk.contents(path).is_some() {
            is_whole(&disk.copy());
        } else {
            to_file(&disk, &store).unwrap();
        }
    }
    let length = whole.history().len();
    for operations in 0..=length {
        let mut history = whole.history();
        history.advance(operations);
        for seed in 0..8 {
            let disk = history.crash(seed);
            if disk.contents(path).is_some() {
                is_whole(&disk);
            } else {
                assert!(operations < length, "it was said to be durable");
            }
        }
    }
}

/// Rows that are in the journal and in memory only are not on the disk where they will be read from.
#[test]
fn a_verification_covers_the_newest_turn_and_reads_it_from_the_base() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    for turn in 1..=3 {
        durable_turn(&store, vec![set(0, &[turn], b"value")]).unwrap();
        assert!(store.last_fold().turn < u64::from(turn));
        let (verified, census) = store.verify(&mut |_| {}).unwrap();
        assert_eq!((verified, census.rows), (u64::from(turn), u64::from(turn)));
        assert_eq!(store.last_fold().turn, u64::from(turn), "the base has it");
    }
    // Nothing is written for what the base has already.
    let before = disk.operations();
    store.verify(&mut |_| {}).unwrap();
    assert_eq!(disk.operations(), before);
    // A turn that is not durable yet becomes so.
    store.queue(TurnDelta { turn: 4, changes: vec![set(0, b"last", b"value")] }).unwrap();
    assert_eq!(store.verify(&mut |_| {}).unwrap().0, 4);
    assert_eq!(store.durable().turn, 4);
}

#[test]
fn damage_in_the_base_ends_an_export_and_a_verification() {
    for verify in [true, false] {
        let disk = plain_store_with_a_damaged_row();
        let store = Store::open(disk.clone(), directory(), &VAT, &Protection::Plain, no_folds()).unwrap();
        let refused = if verify {
            store.verify(&mut |_| {}).map(drop).unwrap_err()
        } else {
            try_export(&disk, &store, &mut Vec::new()).map(drop).unwrap_err()
        };
        assert!(matches!(refused, StoreError::Damaged { damage: Damage::Row, .. }), "{refused}");
        // What is whole can still be read and saved by other means.
        assert!(store.poisoned().is_none());
    }
}
