//! The repository keeps its own rules: what a reviewer would otherwise have to look for each time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use schemas::ErrorCode;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every file of the repository with one of these endings, without what is generated or built.
fn files(endings: &[&str]) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, endings: &[&str], found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | "generated" | ".git") {
                    walk(&path, endings, found);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), endings, &mut found);
    assert!(!found.is_empty());
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
}

#[test]
fn every_error_code_is_used_outside_its_registry() {
    let sources: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(path, _)| !path.ends_with("schemas/src/error_code.rs") && !is_test(path))
        .collect();
    let unused: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| format!("ErrorCode::{code:?}"))
        .filter(|name| {
            let used = |text: &str| {
                let ends = |at: usize| !text[at + name.len()..].starts_with(|c: char| c.is_ascii_alphanumeric());
                text.match_indices(name.as_str()).any(|(at, _)| ends(at))
            };
            !sources.iter().any(|(_, text)| used(text))
        })
        .collect();
    assert!(unused.is_empty(), "in the registry and nowhere else: {unused:?}");
}

#[test]
fn the_error_reference_is_fresh() {
    let mut fresh = String::from(
        "# Errors\n\nEvery error has a stable code. `vat help CODE` prints its page. This file is generated from the \
         registry,\n`schemas/src/error_code.rs`; the test `the_error_reference_is_fresh` compares it and, with \
         `UPDATE_DOCS=1`, rewrites it.\n\n| code | exit | what it means | what to do next |\n|---|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        let cell = |text: &str| text.replace('|', "\\|");
        writeln!(fresh, "| `{code}` | {} | {} | {} |", code.exit() as u8, cell(code.meaning()), cell(code.next()))
            .unwrap();
    }
    let path = root().join("docs/errors.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == fresh, "docs/errors.md is stale: UPDATE_DOCS=1 cargo test -p acceptance --test tidy");
}

#[test]
fn no_file_is_longer_than_a_room_should_be() {
    let long: Vec<_> = files(&[".rs"])
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > 700)
        .collect();
    assert!(long.is_empty(), "two rooms would be easier to live in: {long:?}");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME"), concat!("XX", "X")];
    for (path, text) in files(&[".rs", ".sh", ".md", ".toml", ".capnp"]) {
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", path.display());
        }
    }
}

#[test]
fn modules_are_files_beside_their_folder() {
    let found: Vec<_> = files(&[".rs"]).into_iter().filter(|(path, _)| path.ends_with("mod.rs")).collect();
    assert!(found.is_empty(), "foo.rs and foo/, no mod.rs: {found:?}");
}

#[test]
fn every_module_says_what_it_is() {
    for (path, text) in files(&[".rs"]) {
        assert!(
            text.starts_with("//!") || is_test(&path),
            "{} does not open with what it is and why it exists",
            path.display()
        );
    }
}

#[test]
fn tests_do_not_sleep() {
    let sleeping = [concat!("thread::", "sleep("), concat!("time::", "sleep(")];
    for (path, text) in files(&[".rs"]).into_iter().filter(|(path, _)| is_test(path)) {
        for call in sleeping {
            // The two good reasons: looking again whether something is so, and doing something at a random moment.
            let reasons = ["// polls a condition", "// a random moment"];
            let found =
                text.lines().any(|line| line.contains(call) && !reasons.iter().any(|reason| line.contains(reason)));
            assert!(!found, "{} sleeps and hopes", path.display());
        }
    }
}

#[test]
fn every_crate_is_covered_by_the_shared_lints() {
    let manifests = files(&["Cargo.toml"]);
    let workspace = manifests.iter().find(|(_, text)| text.contains("[workspace]")).unwrap();
    let shared = lints(&workspace.1, "[workspace.lints.");
    assert!(shared.contains(&"unsafe_code = \"forbid\"".to_owned()) && shared.len() > 5, "{shared:?}");
    for (path, text) in manifests.iter().filter(|(path, _)| *path != workspace.0) {
        // Who has a module that must say `unsafe` repeats them all, and denies it everywhere else.
        let own: Vec<_> =
            lints(text, "[lints.").into_iter().map(|lint| lint.replace("\"deny\"", "\"forbid\"")).collect();
        assert!(text.contains("[lints]\nworkspace = true") || own == shared, "{}", path.display());
    }
}

/// The lines of the tables whose names begin like this.
fn lints(manifest: &str, table: &str) -> Vec<String> {
    let tables = manifest.split("\n\n").filter(|part| part.lines().any(|line| line.starts_with(table)));
    let lines = tables.flat_map(|part| part.lines().filter(|line| !line.starts_with(['#', '['])));
    lines.map(str::to_owned).collect()
}
