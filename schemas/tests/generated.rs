//! What is committed as generated code is what the schemas compile to today.

#![allow(clippy::unwrap_used)]

#[path = "support/compile.rs"]
mod compile;

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

fn contents(folder: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn committed_code_is_fresh() {
    for set in &compile::SETS {
        let folder = tempfile::tempdir().unwrap();
        compile::compile(set, folder.path()).unwrap();
        let (fresh, committed) = (contents(folder.path()), contents(&compile::root().join(set.generated)));
        let names = |files: &BTreeMap<OsString, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&committed), names(&fresh), "{} holds exactly what the schemas produce", set.generated);
        for (name, text) in fresh {
            let name = Path::new(&name).display().to_string();
            assert!(
                committed[&OsString::from(&name)] == text,
                "{}/{name} is stale: run `cargo run -p schemas --example generate`",
                set.generated
            );
        }
    }
}
