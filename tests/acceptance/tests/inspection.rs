//! What a vat tells its owner about itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use acceptance::World;

/// The value of one line of metrics.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("there is no {name} in\n{metrics}")).parse().unwrap()
}

#[test]
fn metrics_count_commits_groups_folds_and_turns() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    alice.fails(&["metrics", "tally"], 5, "vat.asleep");
    let awake = alice.wake("tally");
    for _ in 0..3 {
        alice.vat(&["call", "tally", "add"]).ok();
    }
    let metrics = alice.vat(&["metrics", "tally"]).ok().stdout;
    assert!(metrics.ends_with("# EOF\n"), "OpenMetrics ends so:\n{metrics}");
    assert_eq!(value(&metrics, "vat_turn"), 4.0);
    assert_eq!(value(&metrics, "vat_durable_turn"), 4.0);
    assert_eq!(value(&metrics, "vat_checkpoint_poisoned"), 0.0);
    // Three turns, and the frame that began the epoch.
    assert_eq!(value(&metrics, "vat_checkpoint_commit_seconds_count"), 4.0);
    assert_eq!(value(&metrics, "vat_checkpoint_group_turns_count"), 3.0);
    assert_eq!(value(&metrics, "vat_checkpoint_group_turns_sum"), 3.0);
    assert!(value(&metrics, "vat_checkpoint_commit_seconds_sum") > 0.0);
    assert!(value(&metrics, "vat_journal_bytes") > 0.0);

    // Folds come by themselves, some seconds after the first commit.
    let asked = Instant::now();
    let status = loop {
        let status = alice.json(&["status", "tally"]);
        if status["folded_turn"] == 4 {
            break status;
        }
        assert!(asked.elapsed() < Duration::from_secs(60), "no fold came: {status}");
    };
    assert_eq!(status["durable_turn"], 4);
    let metrics = alice.json(&["metrics", "tally"])["metrics"].as_str().unwrap().to_owned();
    assert_eq!(value(&metrics, "vat_checkpoint_fold_seconds_count"), 1.0);
    awake.sleep();
    assert_eq!(alice.json(&["status", "tally"])["folded_turn"], 4);
    world.no_secret_leaked();
}
