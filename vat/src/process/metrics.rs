//! What a vat that is awake tells whoever monitors it, in the text form of Prometheus (OpenMetrics).

use prometheus_client::{encoding::text, metrics::gauge::Gauge, registry::Registry};

use super::Awake;
use crate::object::wire_error;

impl Awake {
    /// All counts of now.
    pub(crate) fn metrics(&self) -> capnp::Result<String> {
        let engine = self.vat.engine();
        let sizes = engine.store().sizes().map_err(|error| wire_error(&error))?;
        let mut registry = Registry::with_prefix("vat");
        self.store_metrics.register(&mut registry);
        let gauges = [
            ("turn", "The newest turn", engine.newest_turn()),
            ("durable_turn", "The newest turn that is durable", engine.durable().turn),
            ("epoch", "How often this identity was taken over by a start", self.epoch),
            ("objects", "Objects", self.vat.object_count()?),
            ("sessions", "Sessions that are open", self.sessions.count() as u64),
            ("journal_bytes", "Lengths of the journal's segments", sizes.journal_bytes),
            ("unfolded_bytes", "Frames that the base does not contain yet", sizes.unfolded_bytes),
            ("base_bytes", "Length of the base", sizes.base_bytes),
            ("started_seconds", "When it woke, in seconds since 1970", self.started_at.as_seconds()),
            (
                "last_backup_seconds",
                "When the newest backup was made, in seconds since 1970; 0: none",
                self.backups.newest(&self.series()),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        }
        let mut out = String::new();
        text::encode(&mut out, &registry).map_err(|error| capnp::Error::failed(error.to_string()))?;
        Ok(out)
    }
}
