//! `transport`, briefly: by its program, so that nobody else's memory is counted.
#![allow(clippy::unwrap_used)]

use std::process::Command;

const NAMES: [&str; 6] = [
    "pipelined_vs_stock",
    "pipelined_vs_tonic",
    "sequential_vs_quinn",
    "allocations_per_call",
    "connect_first_call",
    "idle_session_bytes",
];

#[test]
fn all_six_figures_come_once_under_their_stable_names_and_a_call_allocates_as_little_as_it_should() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["transport", "--brief"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
    for figure in &figures {
        assert!(figure["value"].as_f64().unwrap() > 0.0 && figure["baseline"].as_f64().unwrap() > 0.0, "{figure}");
    }
    // A count, which no load of the machine changes.
    assert!(figures[3]["value"].as_f64().unwrap() <= 50.0, "{}", figures[3]);
}
