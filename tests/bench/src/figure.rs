//! One line of output: a number and the baseline that gives it a meaning.

use std::fmt;

use serde_json::json;

use crate::rounds::Comparison;

/// One figure of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    /// Its name, which is stable for ever.
    pub(crate) name: &'static str,
    /// What value and baseline are counted in.
    pub(crate) unit: Unit,
    /// What was measured.
    pub(crate) comparison: Comparison,
}

/// What a figure is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Time of one operation; less is better.
    Microseconds,
    /// Operations in a second; more is better.
    CallsPerSecond,
    /// Turns that became durable in a second; more is better.
    TurnsPerSecond,
    /// Records that were registered in a second of one processor; more is better.
    RecordsPerSecond,
    /// Times that a file or a folder was synced; less is better.
    Syncs,
    /// Memory; less is better.
    Bytes,
    /// File descriptors; less is better.
    Descriptors,
    /// Pieces of memory that were asked for; less is better.
    Allocations,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, digits) = match self.unit {
            Unit::Microseconds => ("microseconds", 2),
            Unit::CallsPerSecond => ("calls/s", 0),
            Unit::TurnsPerSecond => ("turns/s", 0),
            Unit::RecordsPerSecond => ("records/s", 0),
            Unit::Syncs => ("syncs", 3),
            Unit::Bytes => ("bytes", 0),
            Unit::Descriptors => ("descriptors", 3),
            Unit::Allocations => ("allocations", 1),
        };
        let Comparison { value, baseline, .. } = &self.comparison;
        let line = json!({
            "name": self.name,
            "value": rounded(*value, digits),
            "unit": unit,
            "baseline": rounded(*baseline, digits),
            "ratio": rounded(self.comparison.ratio(), 3),
        });
        write!(f, "{line}")
    }
}

/// Digits that no measurement supports would only be noise for the reader.
fn rounded(number: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_one_json_line_with_the_five_fields_in_order() {
        let comparison = Comparison::of(vec![(41.2345, 20.0)]);
        let figure = Figure { name: "call_sequential", unit: Unit::Microseconds, comparison };
        assert_eq!(
            figure.to_string(),
            r#"{"name":"call_sequential","value":41.23,"unit":"microseconds","baseline":20.0,"ratio":2.062}"#
        );
        let rate =
            Figure { name: "durable_add_1", unit: Unit::CallsPerSecond, comparison: Comparison::of(vec![(1.6, 3.0)]) };
        assert_eq!(
            rate.to_string(),
            r#"{"name":"durable_add_1","value":2.0,"unit":"calls/s","baseline":3.0,"ratio":0.533}"#
        );
    }
}
