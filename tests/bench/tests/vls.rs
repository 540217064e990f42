//! `vls`, briefly: by its program, because the servers that are asked are processes of it.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// The program's own list. That each is measured, and comes under the name by which it can be asked for, is seen here.
#[path = "../src/vls/names.rs"]
mod names;

use names::{AGAINST_KNOT, LOOKUPS, OTHERS};

#[test]
fn all_figures_come_once_under_their_stable_names_and_those_against_knot_where_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["vls", "--brief"]).output().unwrap();
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{notes}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    let without_knot = notes.contains("there is no knotd");
    let all = LOOKUPS.iter().chain(OTHERS).copied();
    let expected: Vec<_> = all.filter(|name| !(without_knot && AGAINST_KNOT.contains(name))).collect();
    assert_eq!(names, expected);
    // A name that is said in the manual does not change.
    let manual = include_str!("../../../docs/benchmarks.md");
    for name in LOOKUPS.iter().chain(OTHERS) {
        assert!(manual.contains(&format!("| `{name}` |")), "{name}");
    }
    for figure in figures {
        assert!(figure["value"].as_f64().unwrap() > 0.0 && figure["baseline"].as_f64().unwrap() > 0.0, "{figure}");
    }
}
