//! Disks that are full or lie: the vat stops with its reason, and what it acknowledged is there when the
//! disk is repaired.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use acceptance::{Done, Home, SmallDisk, World};

/// A vat folds its journal five seconds after the first turn that is not in its base.
const BEFORE_THE_FOLD: Duration = Duration::from_secs(4);

/// Puts notes until one fails; returns how many were acknowledged, and the failure.
fn fill(alice: &Home<'_>, text: &str) -> (usize, Done) {
    for acknowledged in 0.. {
        let (name, text) = (format!("name={acknowledged:06}"), format!("text={text}"));
        let done = alice.vat(&["--json", "call", "pad", "put", &name, &text]);
        if done.status != Some(0) {
            return (acknowledged, done);
        }
        assert!(acknowledged < 1000, "the disk does not fill up");
    }
    unreachable!("the loop ends by returning");
}

/// Checks that the vat, awake again, has every note that was acknowledged, and takes more.
fn has_all(alice: &Home<'_>, acknowledged: usize, text: &str) {
    let vat = alice.wake("pad");
    for number in 0..acknowledged {
        let note = alice.json(&["call", "pad", "get", &format!("name={number:06}")]);
        assert_eq!(note["text"], text, "note {number} of {acknowledged}");
    }
    assert_eq!(alice.json(&["call", "pad", "put", "name=one more", "text=x"])["replaced"], false);
    vat.sleep();
}

/// Runs the vat in the given way until its disk is full. Nothing that it acknowledged may be lost.
fn fills_up(world: &World, alice: &Home<'_>, command: Command, exit: i32, code: &str) {
    // As long as one argument of a command may be.
    let text = "x".repeat(100_000);
    let mut process = world.start(command);
    process.wait_for("that it is live", |_| true);
    let (acknowledged, refused) = fill(alice, &text);
    assert!(acknowledged > 0, "the first note already failed: {refused}");
    assert!(refused.stdout.is_empty(), "a note that is not durable is not acknowledged: {refused}");
    let ended = process.wait();
    // The first line of standard output said that it was live; the failure is alone on standard error.
    Done { stdout: String::new(), ..ended }.failed(exit, code);
    has_all(alice, acknowledged, &text);
}

fn pad(alice: &Home<'_>) -> PathBuf {
    alice.new_vat("pad", "notes");
    alice.path("vats/pad/store")
}

const RUN: [&str; 5] = ["--json", "run", "pad", "--listen", "127.0.0.1:0"];

#[test]
fn a_full_disk_stops_the_vat_and_loses_nothing() {
    let Some(disk) = SmallDisk::permitted() else {
        println!("no small disk may be mounted here; the file size limit of the next test stands for it");
        return;
    };
    let world = World::new();
    let alice = world.home("alice");
    let store = pad(&alice);
    let scratch = world.path("scratch");
    fs::create_dir(&scratch).unwrap();
    let command = disk.wrap(&alice.command(&RUN), &store, &scratch, 10 << 20);
    fills_up(&world, &alice, command, 8, "checkpoint.disk_full");
    world.no_secret_leaked();
}

#[test]
fn a_limit_on_file_sizes_stops_the_vat_and_loses_nothing() {
    let world = World::new();
    let alice = world.home("alice");
    pad(&alice);
    let command = SmallDisk::limit_files(&alice.command(&RUN), 2 << 20);
    fills_up(&world, &alice, command, 1, "checkpoint.disk");
    world.no_secret_leaked();
}

#[test]
fn on_a_full_disk_no_vat_is_made_and_nothing_is_left_behind() {
    let Some(disk) = SmallDisk::permitted() else {
        println!("no small disk may be mounted here");
        return;
    };
    let world = World::new();
    let alice = world.home("alice");
    alice.vat(&["list"]).ok();
    let scratch = world.path("scratch");
    fs::create_dir(&scratch).unwrap();
    let command = alice.command(&["--json", "new", "pad", "--object", "notes"]);
    let done = world.run(disk.wrap(&command, &alice.path(""), &scratch, 128 << 10), "");
    done.failed(8, "checkpoint.disk_full");
    assert_eq!(alice.json(&["list"])["vats"], serde_json::json!([]));
    let left: Vec<_> = fs::read_dir(alice.path("vats")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    alice.new_vat("pad", "notes");
    world.no_secret_leaked();
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Where the frames of a store begin: (file, offset), in the order in which they were written.
fn frames(store: &Path) -> Vec<(PathBuf, u64)> {
    let mut frames = Vec::new();
    let mut files = files(store);
    files.sort();
    for file in files {
        let contents = fs::read(&file).unwrap();
        let begins = contents.chunks(512).enumerate().filter(|(_, sector)| sector.starts_with(b"vatframe"));
        frames.extend(begins.map(|(sector, _)| (file.clone(), sector as u64 * 512)));
    }
    frames
}

/// Copies a folder as `cp -a` does.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

fn flip(file: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// A store with this many notes, each in a frame of its own, of a vat that was killed before it folded its journal:
/// frames that are in the base already are not read again.
fn notes_in_the_journal(alice: &Home<'_>, notes: usize) {
    loop {
        alice.new_vat("pad", "notes");
        let vat = alice.wake("pad");
        let began = Instant::now();
        for number in 0..notes {
            alice.json(&["call", "pad", "put", &format!("name={number:06}"), "text=precious"]);
        }
        alice.json(&["call", "pad", "put", "name=long", &format!("text={}", "x".repeat(5000))]);
        vat.kill();
        if began.elapsed() < BEFORE_THE_FOLD {
            return;
        }
        // A machine this slow gets another chance.
        fs::remove_dir_all(alice.path("vats/pad")).unwrap();
    }
}

#[test]
fn a_damaged_byte_of_the_journal_is_noticed_and_changes_nothing() {
    let world = World::new();
    let alice = world.home("alice");
    notes_in_the_journal(&alice, 8);
    let store = alice.path("vats/pad/store");
    let frames = frames(&store);
    assert!(frames.len() >= 11, "genesis, epoch, and a frame for each note: {}", frames.len());
    // In the header and in the body of a frame in the middle, and in the last one, after which nothing was
    // written: it must not be taken for a write that did not finish.
    for frame in [frames.len() / 2, frames.len() - 1] {
        let (file, begin) = &frames[frame];
        for offset in [3, 40, 100, 200, 511] {
            flip(file, begin + offset);
            for command in [&["run", "pad", "--listen", "127.0.0.1:0"][..], &["status", "pad"]] {
                let failure = alice.fails(command, 9, "checkpoint.damaged");
                failure.says(&[&file.file_name().unwrap().to_string_lossy(), &begin.to_string()]);
                failure.hints("backup");
            }
            flip(file, begin + offset);
        }
    }
    has_all(&alice, 8, "precious");
    world.no_secret_leaked();
}

#[test]
fn a_write_that_did_not_finish_is_cut_and_what_was_acknowledged_is_there() {
    let world = World::new();
    let alice = world.home("alice");
    notes_in_the_journal(&alice, 3);
    // The last frame, of which one sector did not reach the disk before the power was gone: in the middle, at
    // its end, and its very header.
    let (file, begin) = frames(&alice.path("vats/pad/store")).pop().unwrap();
    let contents = fs::read(&file).unwrap();
    let extent = contents.iter().rposition(|byte| *byte != 0).unwrap() as u64 / 512 + 1 - begin / 512;
    assert!(extent >= 8, "the last note takes many sectors: {extent}");
    let write = |sector: u64, bytes: &[u8]| {
        let file = fs::OpenOptions::new().write(true).open(&file).unwrap();
        file.write_all_at(bytes, begin + sector * 512).unwrap();
    };
    let backup = world.path("backup");
    for sector in [extent / 2, extent - 1, 0] {
        copy(&alice.path("vats/pad"), &backup);
        write(sector, &[0; 512]);
        alice.json(&["status", "pad"]);
        alice.json(&["grants", "pad"]);
        let vat = alice.wake("pad");
        alice.fails(&["call", "pad", "get", "name=long"], 3, "object.not_found");
        vat.kill();
        has_all(&alice, 3, "precious");
        fs::remove_dir_all(alice.path("vats/pad")).unwrap();
        fs::rename(&backup, alice.path("vats/pad")).unwrap();
    }
    has_all(&alice, 3, "precious");
    world.no_secret_leaked();
}
