//! The manual is true: what a page shows is what happens, and code that it quotes is the code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use acceptance::{Foreign, World, run_page, run_page_with, run_text};

const PAGES: [&str; 7] = ["location-server", "vat", "keys", "backup", "call", "object", "foreign"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn follow(page: &str) {
    let world = World::new();
    run_page(&world, &root().join("docs/tutorial").join(page).with_extension("md"));
    world.no_secret_leaked();
}

#[test]
fn the_page_for_the_volunteer_is_true() {
    follow("location-server");
}

#[test]
fn the_page_for_the_owner_is_true() {
    follow("vat");
}

#[test]
fn the_page_about_keys_is_true() {
    follow("keys");
}

#[test]
fn the_page_for_the_friend_is_true() {
    follow("call");
}

#[test]
fn the_page_for_the_developer_is_true() {
    follow("object");
}

#[test]
fn the_page_about_backups_is_true() {
    follow("backup");
}

#[test]
fn the_page_for_other_languages_is_true() {
    let world = World::new();
    let foreign = Foreign::prepared();
    let user = world.path("user");
    fs::create_dir(user.join("schemas")).unwrap();
    for schema in fs::read_dir(foreign.schemas()).unwrap() {
        let schema = schema.unwrap();
        fs::copy(schema.path(), user.join("schemas").join(schema.file_name())).unwrap();
    }
    for program in ["tally.py", "tally.c++"] {
        fs::copy(root().join("examples/foreign").join(program), user.join(program)).unwrap();
    }
    // As if the page's `venv` were active.
    run_page_with(&world, &root().join("docs/tutorial/foreign.md"), &[foreign.python_folder()]);
    world.no_secret_leaked();
}

#[test]
fn the_page_for_other_languages_quotes_programs_as_they_are() {
    let page = fs::read_to_string(root().join("docs/tutorial/foreign.md")).unwrap();
    let sources = |files: &[&str]| -> String {
        files.iter().map(|file| fs::read_to_string(root().join(file)).unwrap()).collect()
    };
    for (language, files) in [
        ("python", &["examples/foreign/tally.py", "tests/acceptance/foreign/client.py"][..]),
        ("c++", &["examples/foreign/tally.c++"]),
        ("capnp", &["schemas/capnp/bridge.capnp"]),
    ] {
        let source = sources(files);
        let quoted: Vec<_> = blocks(&page).into_iter().filter(|(block, _)| block == language).collect();
        assert!(!quoted.is_empty(), "it quotes some {language}");
        for (_, code) in quoted {
            assert!(source.contains(&code), "this is not in {files:?}:\n{code}");
        }
    }
}

/// The fenced blocks of a page: (language, contents).
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(language) => {
                blocks.push((language.to_owned(), String::new()));
                open = true;
            }
            None if open => {
                let (_, contents) = blocks.last_mut().unwrap();
                *contents = format!("{contents}{line}\n");
            }
            None => {}
        }
    }
    assert!(!open, "a block is not closed");
    blocks
}

#[test]
fn the_page_for_the_developer_quotes_the_example_as_it_is() {
    let page = fs::read_to_string(root().join("docs/tutorial/object.md")).unwrap();
    for (language, file) in [("rust", "src/main.rs"), ("capnp", "schema/poll.capnp")] {
        let source = fs::read_to_string(root().join("examples/poll").join(file)).unwrap();
        let quoted: Vec<_> = blocks(&page).into_iter().filter(|(block, _)| block == language).collect();
        assert!(!quoted.is_empty(), "it quotes some {language}");
        for (_, code) in quoted {
            assert!(source.contains(&code), "this is not in examples/poll/{file}:\n{code}");
        }
    }
}

#[test]
fn every_page_is_followed_and_every_block_says_what_it_is() {
    let mut found: Vec<_> =
        fs::read_dir(root().join("docs/tutorial")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let mut pages: Vec<_> =
        PAGES.iter().map(|page| root().join("docs/tutorial").join(page).with_extension("md")).collect();
    pages.sort();
    assert_eq!(found, pages, "each page has its test above");
    for page in pages {
        for (language, contents) in blocks(&fs::read_to_string(&page).unwrap()) {
            let known = ["console", "sh", "ini", "toml", "rust", "capnp", "python", "c++"].contains(&language.as_str());
            assert!(known, "{}: a block of {language:?}:\n{contents}", page.display());
        }
    }
}

/// A line of the README's quick start as a page of the manual would have it. `None`: nothing to run here.
fn as_console(line: &str) -> Option<String> {
    let (command, comment) = line.split_once(" # ").unwrap_or((line, ""));
    let command = command.trim().replace("<id>", "…");
    if command.is_empty() || command.starts_with("cargo install ") {
        return None;
    }
    if command.starts_with("vat accept ") {
        // At a terminal it asks for the reference; here it is piped in.
        return Some(format!("$ echo 'vat://…#…' | {command}\n…\n"));
    }
    let shown = comment.strip_prefix("prints ").unwrap_or("").replace("<id>", "…");
    Some(if shown.is_empty() { format!("$ {command}\n…\n") } else { format!("$ {command}\n…\n{shown}\n") })
}

#[test]
fn the_quick_start_of_the_readme_works_to_its_last_line() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Use it\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines: Vec<String> =
        blocks(section).iter().flat_map(|(_, block)| block.lines().filter_map(as_console)).collect();
    assert!(lines.len() >= 8, "the quick start has its commands: {lines:?}");
    let world = World::new();
    run_text(&world, "README.md", &format!("```console\n{}```\n", lines.concat()));
    world.no_secret_leaked();
}
