//! What a store counts while it works, for monitoring (Prometheus).

use prometheus_client::{
    metrics::{gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Bounds of times, in seconds: from a fast disk's sync to a disk that hardly answers.
const SECONDS: [f64; 14] = [0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Bounds of groups, in turns.
const TURNS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0, 8192.0];

/// Counts of one store. Clones count together, so that a host can keep one.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    pub(crate) commit_seconds: Histogram,
    pub(crate) group_turns: Histogram,
    pub(crate) fold_seconds: Histogram,
    pub(crate) poisoned: Gauge,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            commit_seconds: Histogram::new(SECONDS),
            group_turns: Histogram::new(TURNS),
            fold_seconds: Histogram::new(SECONDS),
            poisoned: Gauge::default(),
        }
    }
}

impl StoreMetrics {
    /// Has a registry show them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("checkpoint");
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "commit",
            "From taking a group of turns to its being durable",
            seconds(),
            self.commit_seconds.clone(),
        );
        registry.register("group_turns", "Turns that became durable with one sync", self.group_turns.clone());
        registry.register_with_unit(
            "fold",
            "Writing what the journal has to the base, in the background",
            seconds(),
            self.fold_seconds.clone(),
        );
        registry.register(
            "poisoned",
            "1 once the disk has failed: nothing becomes durable any more",
            self.poisoned.clone(),
        );
    }
}
