//! Journals that no writer of ours writes, and every changed bit of one that it does.

use std::{path::Path, sync::Arc};

use super::*;
use crate::{
    disk::Disk,
    error::{Damage, StoreError},
    frame::{self, HEADER_LENGTH, Header, Kind},
    keys::{Keys, Root},
    payload::{self, Genesis, Turn, Turns},
    simulated::SimulatedDisk,
};

const LENGTH: u64 = 8 << 10;

fn keys(sealed: bool) -> Arc<Keys> {
    let root = if sealed { Root::Sealed(zeroize::Zeroizing::new([1; 32])) } else { Root::Plain };
    Arc::new(Keys::new(root, [2; 16], [3; 32]))
}

/// One frame to write, whether or not it makes sense.
#[derive(Clone, Copy)]
struct Planned {
    header: Header,
    turns: &'static [u64],
}

fn planned(kind: Kind, number: u64, epoch: u64, turns: &'static [u64]) -> Planned {
    let header =
        Header { kind, group: number, preceding: 0, following: 0, sequence: number, epoch, incarnation: [0; 16] };
    Planned { header, turns }
}

/// A journal of these frames, chained and sealed as they should be.
fn written(keys: &Keys, frames: &[Planned]) -> Vec<u8> {
    let mut journal = Vec::new();
    let mut chain = [0; 16];
    let mut epoch = 0;
    for planned in frames {
        let mut bytes = vec![0; HEADER_LENGTH];
        match planned.header.kind {
            Kind::Genesis => payload::append(&mut bytes, &Genesis { vat: keys.vat() }),
            Kind::Epoch => payload::append(&mut bytes, &payload::Epoch { previous: epoch, turn: 0 }),
            Kind::Turns => {
                let turns = planned.turns.iter().map(|turn| Turn { turn: *turn, changes: Vec::new() }).collect();
                payload::append(&mut bytes, &Turns { turns });
            }
            Kind::Image | Kind::ImageRows | Kind::ImageEnd => {}
        }
        epoch = planned.header.epoch;
        let salt = [journal.len() as u8; 32];
        chain = frame::seal(keys, &planned.header, &chain, &salt, &mut bytes);
        journal.extend_from_slice(&bytes);
    }
    journal.resize(LENGTH as usize, 0);
    journal
}

/// Replays a journal of one segment: the last turn, and where it ends.
fn replayed(keys: &Keys, bytes: &[u8]) -> Result<(u64, u64), StoreError> {
    let disk = SimulatedDisk::new();
    disk.replace(Path::new("/journal/0000000000000000.segment"), bytes);
    disk.create_directory(Path::new("/journal")).unwrap();
    let journal = Journal::new(disk, Path::new("/"));
    let mut seen = 0;
    let mut no_vats = |_: &[u8; 16]| Ok(None);
    let replayed = replay(&journal, keys, &Place::default(), &mut no_vats, &mut |_, turn| {
        assert_eq!(turn.turn, seen + 1);
        seen = turn.turn;
    })?;
    assert_eq!(replayed.head(keys, Head::default()).turn, seen);
    Ok((seen, replayed.at.offset))
}

fn damage(keys: &Keys, frames: &[Planned]) -> Damage {
    match replayed(keys, &written(keys, frames)).unwrap_err() {
        StoreError::Damaged { damage, .. } => damage,
        other => panic!("{other}"),
    }
}

#[test]
fn authentic_frames_that_contradict_each_other_are_refused() {
    let keys = keys(true);
    let genesis = planned(Kind::Genesis, 1, 0, &[]);
    let turns = planned(Kind::Turns, 2, 0, &[1, 2]);
    let epoch = planned(Kind::Epoch, 3, 4, &[]);
    assert_eq!(replayed(&keys, &written(&keys, &[genesis, turns])).unwrap(), (2, 1024));

    assert_eq!(damage(&keys, &[planned(Kind::Turns, 1, 0, &[1])]), Damage::Order, "no genesis");
    assert_eq!(damage(&keys, &[genesis, planned(Kind::Genesis, 2, 0, &[])]), Damage::Order, "two");
    assert_eq!(damage(&keys, &[genesis, planned(Kind::Turns, 2, 1, &[1])]), Damage::Order, "an epoch never begun");
    assert_eq!(damage(&keys, &[genesis, planned(Kind::Epoch, 2, 0, &[])]), Damage::Order, "the same epoch");
    let after = [genesis, Planned { header: Header { sequence: 2, group: 2, ..epoch.header }, ..epoch }];
    assert_eq!(replayed(&keys, &written(&keys, &after)).unwrap(), (0, 1024));
    let back = [after[0], after[1], planned(Kind::Epoch, 3, 3, &[])];
    assert_eq!(damage(&keys, &back), Damage::Order, "an earlier epoch");
    for kind in [Kind::Image, Kind::ImageRows, Kind::ImageEnd] {
        assert_eq!(damage(&keys, &[planned(kind, 1, 0, &[])]), Damage::Order, "of an image");
        assert_eq!(damage(&keys, &[genesis, planned(kind, 2, 0, &[])]), Damage::Order, "of an image");
    }
    let mut incarnation = turns;
    incarnation.header.incarnation = [9; 16];
    assert_eq!(damage(&keys, &[genesis, incarnation]), Damage::Order, "another incarnation");
    let mut group = turns;
    group.header.group = 3;
    assert_eq!(damage(&keys, &[genesis, group]), Damage::Order, "a group that is missing");

    for turns in [&[][..], &[2], &[0], &[1, 1], &[1, 3]] {
        assert_eq!(damage(&keys, &[genesis, planned(Kind::Turns, 2, 0, turns)]), Damage::Contents, "{turns:?}");
    }
    assert_eq!(damage(&keys, &[genesis, turns, epoch]), Damage::Contents, "an epoch after another turn than it says");
}

#[test]
fn the_genesis_of_another_vat_says_nothing_about_this_one() {
    for sealed in [true, false] {
        let root = if sealed { Root::Sealed(zeroize::Zeroizing::new([1; 32])) } else { Root::Plain };
        let other = Keys::new(root, [2; 16], [9; 32]);
        let bytes = written(&other, &[planned(Kind::Genesis, 1, 0, &[])]);
        let (disk, mut seen) = (SimulatedDisk::new(), Vec::new());
        disk.replace(Path::new("/journal/0000000000000000.segment"), &bytes);
        disk.create_directory(Path::new("/journal")).unwrap();
        let journal = Journal::new(disk, Path::new("/"));
        let mut no_vats = |_: &[u8; 16]| Ok(None);
        let found = replay(&journal, &keys(sealed), &Place::default(), &mut no_vats, &mut |_, _| ()).unwrap();
        seen.extend(found.vats.values().map(|(keys, head)| (keys.vat(), head.sequence)));
        assert_eq!(seen, [([9; 32], 1)]);
        assert_eq!(found.head(&keys(sealed), Head::default()), Head::default());
    }
}

/// Complete: each single bit of each frame, in both kinds of store.
#[test]
fn every_changed_bit_of_a_journal_is_refused() {
    for sealed in [true, false] {
        let keys = keys(sealed);
        let frames =
            [planned(Kind::Genesis, 1, 0, &[]), planned(Kind::Turns, 2, 0, &[1]), planned(Kind::Turns, 3, 0, &[2])];
        let bytes = written(&keys, &frames);
        let end = 3 * 512;
        assert_eq!(replayed(&keys, &bytes).unwrap(), (2, end));
        for bit in 0..end as usize * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(replayed(&keys, &changed).is_err(), "bit {bit}, sealed {sealed}");
        }
    }
}
