//! The same on files of the operating system, and with processes that end.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use checkpoint::{FileDisk, Protection, SmallStore, StoreError, limits, wait_at_most};

use super::commit;
use crate::harness::*;

/// Tells the process that is to be killed where the store is.
const FOLDER: &str = "CHECKPOINT_SMALL_FOLDER";

/// Much longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn open_in(folder: &Path, patience: Duration) -> Result<SmallStore, StoreError> {
    let protection = Protection::KeyFile(folder.join("key"));
    SmallStore::open(Arc::new(FileDisk), &folder.join("vat"), &VAT, &protection, &mut wait_at_most(patience))
}

fn create_in(folder: &Path) -> SmallStore {
    let protection = Protection::KeyFile(folder.join("key"));
    SmallStore::create(Arc::new(FileDisk), &folder.join("vat"), &VAT, &protection).unwrap()
}

#[test]
fn requests_on_real_files_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    drop(create_in(folder.path()));
    let (requests, each) = (4, 40);
    let begin = Barrier::new(requests);
    thread::scope(|scope| {
        for _ in 0..requests {
            scope.spawn(|| {
                begin.wait();
                for _ in 0..each {
                    let mut store = open_in(folder.path(), LONG).unwrap();
                    let turn = store.position().turn;
                    commit(&mut store, vec![set(0, &turn.to_le_bytes(), b"1")]).unwrap();
                }
            });
        }
    });
    let store = open_in(folder.path(), Duration::ZERO).unwrap();
    let turns = requests as u64 * each;
    assert!(turns > 2 * limits::SMALL_TAIL_FRAMES);
    assert_eq!((store.position().turn, store.scan(0).unwrap().len() as u64), (turns, turns));
    for patience in [Duration::ZERO, Duration::from_millis(5)] {
        let refused = open_in(folder.path(), patience).unwrap_err();
        let StoreError::Locked { holder: Some(holder), .. } = refused else { panic!("{refused}") };
        assert_eq!(holder.process_id, std::process::id());
    }
    let mut names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["key", "vat", "vat.lock", "vat.synced"]);
}

/// Not a test by itself: the process that [`a_killed_process_loses_no_turn_that_it_told_of`] kills.
#[test]
#[ignore = "is started by another test, which kills it"]
#[allow(clippy::print_stdout)]
fn commits_until_it_is_killed() {
    let folder = std::env::var_os(FOLDER).unwrap();
    let mut store = open_in(Path::new(&folder), LONG).unwrap();
    loop {
        let before = store.position().turn.to_le_bytes();
        let turn = commit(&mut store, vec![set(0, b"turn", &before)]).unwrap();
        println!("durable {turn}");
    }
}

#[test]
fn a_killed_process_loses_no_turn_that_it_told_of() {
    let folder = tempfile::tempdir().unwrap();
    drop(create_in(folder.path()));
    let mut oldest = 0;
    for kill in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "small::real::commits_until_it_is_killed", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines {
            let told = line.strip_prefix("durable ").and_then(|turn| turn.parse::<u64>().ok());
            oldest = told.unwrap_or(oldest);
            // Each time somewhere else between two folds.
            if told.is_some() && oldest >= kill * 90 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(oldest >= kill * 90, "it ended by itself");
        // The lock has gone with the process.
        let store = open_in(folder.path(), Duration::ZERO).unwrap();
        assert!(store.position().turn >= oldest);
        assert_eq!(store.scan(0).unwrap(), [(b"turn".to_vec(), (store.position().turn - 1).to_le_bytes().to_vec())]);
        oldest = store.position().turn;
    }
}
