//! Loss of power at every point of a store's life, and again while it recovers (R2, R5).
//!
//! A life is recorded; then, for every prefix of what it did to its disk, images are built in which a subset of
//! what was not synced is lost: whole operations and single sectors, lengths and names, exhaustively where that is
//! little. Each must open to exactly one of the states that there were, at or after the last one that was
//! acknowledged, and then take another turn. Journal, base, keyslots and key file are on the same disk, so a crash
//! falls on all of them together.

mod campaign;
mod check;
mod images;
mod life;
mod many;
mod mutations;

use std::sync::Arc;

use checkpoint::simulated::SimulatedDisk;
use schemas::{Coded, ErrorCode};

use self::{
    campaign::{Effort, crash_lives},
    check::{Allowed, GoOn},
    images::{Coverage, Kind},
    life::{Life, live},
};
use crate::harness::*;

/// What an ordinary run tries: lives until there were enough images. How many there are in one depends on how its
/// threads took turns; these are twice as many as are needed.
const ORDINARY: Effort = Effort { steps: 24, samples: 12, second_crash: 6 };
const MOST_LIVES: u64 = 28;
const LEAST_IMAGES: u64 = 50_000;

/// How many lives the long campaign has, and how many it has if nobody says.
const LIVES_VARIABLE: &str = "CHECKPOINT_CRASH_LIVES";
const MANY_LIVES: u64 = 60;

/// Shows the numbers to whoever asks for output, and holds them to what was promised.
#[allow(clippy::print_stdout)]
fn assert_covered(coverage: &Coverage, least_images: u64) {
    println!("{coverage:?}");
    assert!(coverage.images >= least_images, "{coverage:?}");
    for kind in Kind::ALL {
        assert!(coverage.kinds.contains_key(&kind), "no image was {kind:?}: {coverage:?}");
    }
}

#[test]
fn every_crash_image_opens_to_a_state_not_older_than_what_was_acknowledged() {
    let coverage = crash_lives(1..=MOST_LIVES, ORDINARY, LEAST_IMAGES).unwrap_or_else(|what| panic!("{what}"));
    assert_covered(&coverage, LEAST_IMAGES);
}

/// The same for longer, with other lives.
#[test]
#[ignore = "takes many minutes; set CHECKPOINT_CRASH_LIVES to say how many lives"]
fn every_crash_image_of_a_longer_campaign_opens_as_well() {
    let lives = std::env::var(LIVES_VARIABLE).map_or(MANY_LIVES, |lives| lives.parse().unwrap());
    let effort = Effort { steps: 60, samples: 30, second_crash: 3 };
    let coverage = crash_lives(1_001..=1_000 + lives, effort, u64::MAX).unwrap_or_else(|what| panic!("{what}"));
    assert_covered(&coverage, LEAST_IMAGES);
}

/// The disk at each moment at which a frame is written and not synced, seen by the next process after this one was
/// killed; and what that may find there.
fn killed_before_a_sync(life: &Life) -> Vec<(Arc<SimulatedDisk>, Allowed)> {
    let mut killed = Vec::new();
    let (mut history, mut next) = (life.disk.history(), life.disk.history());
    let mut marks = 0;
    for point in 1..=next.len() {
        next.advance(point);
        let marked = next.marks().count() > marks;
        marks += usize::from(marked);
        // The report comes right after the sync, so one operation before that the frame is not synced.
        if marked && matches!(next.marks().last().map(Mark::from_number), Some(Mark::Durable(_))) {
            history.advance(point - 2);
            killed.push((history.kill(), Allowed::after(history.marks())));
        }
    }
    killed
}

/// What a restarted process shows must survive a loss of power, also what its killed predecessor had written
/// and not synced.
#[test]
fn what_is_shown_after_a_kill_survives_a_loss_of_power() {
    let disk = SimulatedDisk::new();
    let life = live(&disk, &disk, 11, 30, || ()).unwrap();
    let mut unsynced = 0;
    for (disk, allowed) in killed_before_a_sync(&life) {
        let store = open(&disk, smallest_segments()).unwrap();
        let shown = store.position().turn;
        unsynced += u64::from(shown > *allowed.turns.start());
        let mut after = disk.history();
        after.advance(after.len());
        drop(store);
        for seed in 0..4 {
            allowed.shown(shown).check(&after.crash(seed), &life, GoOn::Reopen).unwrap();
        }
    }
    assert!(unsynced > 5, "{unsynced} were killed between write and sync");
}

#[test]
fn a_store_that_was_never_finished_is_missing_and_can_be_created() {
    let disk = SimulatedDisk::new();
    drop(create(&disk, no_folds()).unwrap());
    let mut history = disk.history();
    let (mut missing, mut whole) = (0, 0);
    for point in 0..=history.len() {
        history.advance(point);
        let image = history.crash(point as u64);
        match open(&image, no_folds()) {
            Ok(_) => whole += 1,
            Err(error) => {
                assert!([ErrorCode::CheckpointMissing, ErrorCode::KeyMissing].contains(&error.code()), "{error}");
                missing += 1;
                drop(create(&image, no_folds()).unwrap());
                drop(open(&image, no_folds()).unwrap());
            }
        }
    }
    assert!(missing > 10 && whole > 0, "{missing} {whole}");
}
