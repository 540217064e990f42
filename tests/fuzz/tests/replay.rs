//! Every input of the corpus once, with the stable compiler; and the corpus itself.
//!
//! `UPDATE_CORPUS=1` writes the seeds into the corpus.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use fuzz::{TARGETS, Target, seeds};

/// How long one input may take, on a busy machine. Most take less than a thousandth of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much memory one target may gain over its whole corpus. What is granted to one session at most is far less.
const GROWTH_BYTES: u64 = 128 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut inputs: Vec<_> = fs::read_dir(corpus().join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// Runs a target on each input, and says which it was that did not pass.
fn replay(name: &str, target: Target) {
    let (sender, results) = mpsc::channel();
    let inputs = inputs(name);
    assert!(inputs.len() >= 5, "{name} has no corpus");
    let paths: Vec<PathBuf> = inputs.iter().map(|(path, _)| path.clone()).collect();
    let worker = thread::spawn(move || {
        for (_, bytes) in inputs {
            target(&bytes);
            sender.send(()).unwrap();
        }
    });
    for path in paths {
        match results.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} hangs", path.display()),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{} fails, as said above", path.display()),
        }
    }
    worker.join().unwrap();
}

#[test]
fn every_input_of_the_corpus_is_borne() {
    let before = resident_bytes();
    for (name, target) in TARGETS {
        replay(name, target);
    }
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES, "{growth} bytes more than before");
}

fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let resident: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    resident * 4096
}

#[test]
fn the_corpus_has_every_seed() {
    for ((target, name), bytes) in seeds::all() {
        let path = corpus().join(target).join(&name);
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let committed = fs::read(&path).unwrap_or_default();
        assert!(committed == bytes, "{target}/{name} is stale: UPDATE_CORPUS=1 cargo test -p fuzz");
    }
}

#[test]
fn every_folder_of_the_corpus_and_every_program_of_libfuzzer_is_of_a_target() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let listed = |folder: &Path| {
        let mut found: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        found.sort();
        found
    };
    assert_eq!(listed(&corpus()), names);
    assert_eq!(listed(&corpus().join("../../libfuzzer/fuzz_targets")), names);
}

#[test]
fn an_image_that_ends_anywhere_is_borne() {
    let (_, image) = inputs("images").into_iter().find(|(path, _)| path.ends_with("many")).unwrap();
    for length in (0..image.len()).step_by(97) {
        fuzz::images(&image[..length]);
    }
}
