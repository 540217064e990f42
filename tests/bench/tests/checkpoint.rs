//! `checkpoint`, briefly: by its program, because one figure needs a process that can be killed.
#![allow(clippy::unwrap_used)]

use std::process::Command;

const NAMES: [&str; 12] = [
    "group_commit_1",
    "group_commit_16",
    "group_commit_128",
    "turns_128_vs_redb",
    "turns_128_vs_sqlite",
    "syncs_per_group",
    "open_after_kill_100m",
    "small_write_64k",
    "syncs_per_small_write",
    "sleeping_vats_10k_fds",
    "sleeping_vats_10k_bytes",
    "seal_4k",
];

#[test]
fn all_figures_come_once_under_their_stable_names_and_a_group_costs_one_sync() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["checkpoint", "--brief"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
    // What costs nothing is nothing; and few vats say little about bytes.
    let (sleepers, others): (Vec<_>, Vec<_>) =
        figures.iter().partition(|figure| figure["name"].as_str().unwrap().starts_with("sleeping_vats"));
    assert_eq!(sleepers[0]["value"], 0.0, "{}", sleepers[0]);
    for figure in others {
        assert!(figure["value"].as_f64().unwrap() > 0.0 && figure["baseline"].as_f64().unwrap() > 0.0, "{figure}");
    }
    let syncs = figures.iter().find(|figure| figure["name"] == "syncs_per_group").unwrap();
    assert_eq!((&syncs["value"], &syncs["baseline"]), (&1.0.into(), &1.0.into()), "{syncs}");
}
