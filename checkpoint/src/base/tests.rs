//! A base in which somebody who can write the file, and knows redb, has taken rows away or put old ones back.

use std::path::Path;

use super::*;
use crate::{
    keys::Root,
    simulated::SimulatedDisk,
    store::{Change, RowKey},
};

const PATH: &str = "/base.redb";

fn keys() -> Keys {
    Keys::new(Root::Sealed(zeroize::Zeroizing::new([1; 32])), [2; 16], [3; 32])
}

fn position(turn: u64) -> VatPosition {
    VatPosition { vat: [3; 32], turn, head: Head::default() }
}

/// Folds these rows of one vat.
fn write(base: &Base, keys: &Keys, rows: &Overlay, turn: u64) -> Result<(), StoreError> {
    let fold = VatFold { keys, rows, position: VatPosition { vat: keys.vat(), ..position(turn) } };
    base.write(keys, &[fold], &Place { group: turn, ..Place::default() }).map(drop)
}

fn overlay(changes: &[(u64, u8, Option<&[u8]>)]) -> Overlay {
    let mut overlay = Overlay::default();
    for (space, name, value) in changes {
        let change = Change { key: RowKey { space: *space, name: vec![*name] }, value: value.map(<[u8]>::to_vec) };
        overlay.set(change.key.space, change.key.name, change.value);
    }
    overlay
}

/// Two spaces with three rows each, after a first fold with other values.
fn base(disk: &SimulatedDisk) -> Base {
    let base = Base::create(disk, Path::new(PATH), &keys(), &[], &Place::default()).unwrap();
    let rows = overlay(&[(1, 1, Some(b"old")), (1, 2, Some(b"old")), (2, 1, Some(b"old"))]);
    write(&base, &keys(), &rows, 1).unwrap();
    base
}

fn fold(base: &Base) {
    let changes = [(1, 1, Some(&b"new"[..])), (1, 3, Some(b"new")), (2, 1, Some(b"new")), (2, 2, Some(b"new"))];
    write(base, &keys(), &overlay(&changes), 2).unwrap();
}

/// The stored bytes under a key.
fn stored(base: &Base, key: RowKeyBytes) -> Option<Vec<u8>> {
    base.snapshot(&keys()).unwrap().read(&key).unwrap()
}

/// What a tampering hand writes.
fn put(base: &Base, rows: &[(RowKeyBytes, Option<Vec<u8>>)]) {
    let transaction = base.database().unwrap().begin_write().unwrap();
    {
        let mut table = transaction.open_table(ROWS).unwrap();
        for (key, value) in rows {
            match value {
                Some(value) => drop(table.insert(key, value.as_slice()).unwrap()),
                None => drop(table.remove(key).unwrap()),
            }
        }
    }
    transaction.commit().unwrap();
}

fn scan(base: &Base, space: u64) -> Result<Vec<ScannedRow>, StoreError> {
    let (keys, snapshot) = (keys(), base.snapshot(&keys())?);
    let vat = snapshot.vat(&keys, &keys.vat_tag())?.unwrap();
    let mut rows = snapshot.scan(&keys, &vat, space)?;
    rows.sort();
    Ok(rows)
}

fn row(name: u8, value: &[u8]) -> ScannedRow {
    (vec![name], value.to_vec())
}

#[test]
fn a_scan_shows_every_row_of_its_space() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    assert_eq!(scan(&base, 1).unwrap(), [row(1, b"old"), row(2, b"old")]);
    fold(&base);
    assert_eq!(scan(&base, 1).unwrap(), [row(1, b"new"), row(2, b"old"), row(3, b"new")]);
    assert_eq!(scan(&base, 2).unwrap(), [row(1, b"new"), row(2, b"new")]);
    assert_eq!(scan(&base, 3).unwrap(), []);
    write(&base, &keys(), &overlay(&[(2, 1, None), (2, 2, None), (2, 9, None)]), 3).unwrap();
    assert_eq!(scan(&base, 2).unwrap(), []);
    assert_eq!(stored(&base, keys().tally_key(2)), None, "an empty space leaves nothing behind");
    assert_eq!(scan(&base, 1).unwrap().len(), 3);
}

#[test]
fn a_scan_finds_rows_that_were_hidden_put_back_or_moved() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    let (one, two, other) = (keys().row_key(1, &[1]), keys().row_key(1, &[2]), keys().row_key(2, &[1]));
    let (tally, other_tally) = (keys().tally_key(1), keys().tally_key(2));
    let old: Vec<_> = [one, two, other, tally, other_tally].map(|key| (key, stored(&base, key))).to_vec();
    fold(&base);
    let third = keys().row_key(1, &[3]);
    let new: Vec<_> = [one, two, third, other, tally, other_tally].map(|key| (key, stored(&base, key))).to_vec();
    let old_of = |key: RowKeyBytes| old.iter().find(|(found, _)| *found == key).cloned().unwrap();

    let hidden = vec![(two, None)];
    let put_back = vec![old_of(one)];
    let moved = vec![(two, stored(&base, one))];
    // Rows and tally of the space fit each other in these: the bucket knows better.
    let all_hidden = vec![(one, None), (two, None), (third, None), (tally, None)];
    let all_put_back = vec![old_of(one), old_of(two), (third, None), old_of(tally)];
    for changed in [hidden, put_back, moved, all_hidden, all_put_back] {
        put(&base, &changed);
        let error = scan(&base, 1).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { damage: Damage::Row, .. }), "{error}");
        assert_eq!(scan(&base, 2).unwrap().len(), 2, "the other space is whole");
        put(&base, &new);
        assert_eq!(scan(&base, 1).unwrap().len(), 3);
    }
}

#[test]
fn a_fold_onto_a_tampered_base_does_not_hide_it() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    put(&base, &[(keys().row_key(1, &[2]), None)]);
    fold(&base);
    assert!(scan(&base, 1).is_err());
    assert_eq!(scan(&base, 2).unwrap().len(), 2);
    // A tally of a space without its rows, and rows without their tally.
    put(&base, &[(keys().tally_key(2), None)]);
    assert!(write(&base, &keys(), &overlay(&[(2, 1, None), (2, 2, None)]), 3).is_err());
}

fn other() -> Keys {
    keys().of([9; 32])
}

fn vat(base: &Base, keys: &Keys) -> Result<Option<VatBase>, StoreError> {
    base.snapshot(keys)?.vat(keys, &keys.vat_tag())
}

#[test]
fn vats_of_one_base_do_not_see_each_other() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    assert_eq!(vat(&base, &other()).unwrap(), None);
    write(&base, &other(), &overlay(&[(1, 1, Some(b"other")), (7, 1, Some(b"other"))]), 5).unwrap();
    assert_eq!(scan(&base, 1).unwrap(), [row(1, b"old"), row(2, b"old")]);
    let (keys, snapshot) = (other(), base.snapshot(&other()).unwrap());
    let found = snapshot.vat(&keys, &keys.vat_tag()).unwrap().unwrap();
    assert_eq!(found.position.turn, 5);
    assert_eq!(snapshot.scan(&keys, &found, 1).unwrap(), [row(1, b"other")]);
    let mut walked = Vec::new();
    snapshot
        .walk(&keys, &found, &mut |space, _, value| {
            walked.push((space, value.to_vec()));
            Ok(())
        })
        .unwrap();
    walked.sort();
    assert_eq!(walked, [(1, b"other".to_vec()), (7, b"other".to_vec())]);
    let mut vats = snapshot.vats(&keys).unwrap();
    vats.sort_unstable();
    assert_eq!(vats, [[3; 32], [9; 32]]);
}

/// Everything that the base has of one vat, put back as it was: its rows, its tallies, and how far they go.
#[test]
fn a_vat_that_was_taken_back_beside_another_is_found() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    let own = [vat_key(&keys().vat_tag()), keys().tally_key(1), keys().tally_key(2)];
    let rows = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)].map(|(space, name)| keys().row_key(space, &[name]));
    let old: Vec<_> = own.iter().chain(&rows).map(|key| (*key, stored(&base, *key))).collect();
    fold(&base);
    write(&base, &other(), &overlay(&[(1, 1, Some(b"other"))]), 5).unwrap();
    put(&base, &old);
    let error = vat(&base, &keys()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { damage: Damage::Position, .. }), "{error}");

    // And one that was taken away altogether.
    put(&base, &[(vat_key(&keys().vat_tag()), None)]);
    assert!(vat(&base, &keys()).is_err());
    assert!(base.snapshot(&keys()).unwrap().vats(&keys()).is_err());
    assert_eq!(keys().vat_tag()[0] == other().vat_tag()[0], vat(&base, &other()).is_err(), "the other one is whole");
}

#[test]
fn a_base_without_a_place_in_the_journal_is_damaged() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    put(&base, &[(PLACE_KEY, None)]);
    let error = base.snapshot(&keys()).err().unwrap();
    assert!(matches!(error, StoreError::Damaged { damage: Damage::Position, .. }), "{error}");
}

/// redb finds rows by the keys in its branches, which are copies of keys of rows.
#[test]
fn a_row_that_is_written_again_below_a_changed_branch_is_never_there_twice() {
    let disk = SimulatedDisk::new();
    let base = base(&disk);
    let all = |value: &'static [u8]| (1..=40).map(move |name| (1, name, Some(value))).collect::<Vec<_>>();
    write(&base, &keys(), &overlay(&all(&[1; 600])), 2).unwrap();
    base.close().unwrap();
    let whole = disk.contents(Path::new(PATH)).unwrap();
    let (mut refused, mut written) = (0, 0);
    for name in 1..=40 {
        let key = keys().row_key(1, &[name]);
        let places = (0..whole.len() - key.len()).filter(|at| whole[*at..].starts_with(&key));
        for (at, up) in places.flat_map(|at| [(at, true), (at, false)]) {
            let disk = disk.copy();
            let mut changed = whole.clone();
            let byte = &mut changed[at + key.len() - 1];
            *byte = if up { byte.wrapping_add(1) } else { byte.wrapping_sub(1) };
            disk.replace(Path::new(PATH), &changed);
            let rows = Base::open(&*disk, Path::new(PATH), &keys()).and_then(|base| {
                let whole = scan(&base, 1)?;
                assert_eq!(whole.len(), 40);
                write(&base, &keys(), &overlay(&[(1, name, Some(b"new"))]), 3)?;
                scan(&base, 1)
            });
            match rows {
                Err(_) => refused += 1,
                Ok(rows) => {
                    let expected = (1..=40).map(|other| row(other, if other == name { b"new" } else { &[1; 600] }));
                    assert_eq!(rows, expected.collect::<Vec<_>>());
                    written += 1;
                }
            }
        }
    }
    assert!(refused > 40 && written > 0, "{refused} {written}");
}
