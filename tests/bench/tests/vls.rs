//! `vls`, briefly: by its program, because the servers that are asked are processes of it.
#![allow(clippy::unwrap_used)]

use std::process::Command;

const NAMES: [&str; 10] = [
    "lookup_cold_vs_echo",
    "lookup_cold_vs_knot",
    "dns_udp",
    "http_get",
    "lookup_many_64",
    "overload_p99",
    "resident_1m",
    "record_memory",
    "restart_1m",
    "register_durable",
];

/// Those that need a program which not everybody has.
const AGAINST_KNOT: [&str; 2] = ["lookup_cold_vs_knot", "dns_udp"];

#[test]
fn all_figures_come_once_under_their_stable_names_and_those_against_knot_where_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["vls", "--brief"]).output().unwrap();
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{notes}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    let without_knot = notes.contains("there is no knotd");
    let expected: Vec<_> = NAMES.into_iter().filter(|name| !(without_knot && AGAINST_KNOT.contains(name))).collect();
    assert_eq!(names, expected);
    for figure in figures {
        assert!(figure["value"].as_f64().unwrap() > 0.0 && figure["baseline"].as_f64().unwrap() > 0.0, "{figure}");
    }
}
