//! Fair comparison on a machine that does other things as well.
//!
//! What is measured and its baseline take turns: A B A B … A slow moment then strikes both, and the median
//! over the rounds forgets it. The first round warms caches and memory and is not counted.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::Failure;

/// How long a benchmark measures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// The only figure that is wanted; `None`: all.
    pub(crate) only: Option<&'static str>,
    /// Counted rounds of each figure.
    pub(crate) rounds: usize,
    /// Operations per round, where the time of one is measured.
    pub(crate) samples: usize,
    /// The same where each one begins with a handshake.
    pub(crate) cold_samples: usize,
    /// Length of a round where operations per second are measured.
    pub(crate) window: Duration,
    /// Operations per round where each one needs a process that is killed.
    pub(crate) opens: usize,
    /// Least length of a large base, in bytes.
    pub(crate) base_bytes: u64,
    /// Vats that sleep in one store.
    pub(crate) sleepers: u64,
    /// Records in the table of a location server.
    pub(crate) records: u32,
}

impl Effort {
    /// Whether anybody wants to know one of these figures.
    pub(crate) fn wants_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.wants(name))
    }

    /// Whether anybody wants to know this figure.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_none_or(|only| only == name)
    }

    /// Many short rounds rather than few long ones: a busy disk changes its pace from one second to the next, and
    /// neighbours must have met the same one. The whole of `main-job` stays below a minute.
    pub(crate) const FULL: Self = Self {
        only: None,
        rounds: 25,
        samples: 500,
        cold_samples: 10,
        window: Duration::from_millis(100),
        opens: 3,
        base_bytes: 100_000_000,
        sleepers: 10_000,
        records: 1_000_000,
    };

    /// Just enough to see that a benchmark works.
    pub(crate) const LEAST: Self = Self {
        only: None,
        rounds: 1,
        samples: 20,
        cold_samples: 2,
        window: Duration::from_millis(20),
        opens: 1,
        base_bytes: 1_000_000,
        sleepers: 200,
        records: 2_000,
    };
}

/// Medians of what was measured and of its baseline, and how far the rounds lay apart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    /// Median over the rounds.
    pub(crate) value: f64,
    /// Median over the baseline's rounds.
    pub(crate) baseline: f64,
    pairs: Vec<(f64, f64)>,
}

impl Comparison {
    /// Of pairs (value, baseline), one for each round.
    pub(crate) fn of(pairs: Vec<(f64, f64)>) -> Self {
        let value = median(pairs.iter().map(|pair| pair.0));
        let baseline = median(pairs.iter().map(|pair| pair.1));
        Self { value, baseline, pairs }
    }

    /// The ratio of the medians.
    pub(crate) fn ratio(&self) -> f64 {
        self.value / self.baseline
    }

    /// Median of the ratios of neighbouring rounds: close to [`ratio`](Self::ratio) unless the machine was busy.
    fn ratio_of_pairs(&self) -> f64 {
        median(self.pairs.iter().map(|pair| pair.0 / pair.1))
    }
}

/// How steady the rounds were, for a person who wonders how much to believe.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = span(self.pairs.iter().map(|pair| pair.0));
        let (baseline_least, baseline_most) = span(self.pairs.iter().map(|pair| pair.1));
        write!(
            f,
            "{} rounds from {least:.1} to {most:.1}, baseline from {baseline_least:.1} to {baseline_most:.1}, median of \
             the ratios of neighbours {:.3}",
            self.pairs.len(),
            self.ratio_of_pairs(),
        )
    }
}

fn span(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), number| (least.min(number), most.max(number)))
}

/// Lets both take turns, each of which gives one number.
pub(crate) async fn compare(
    effort: Effort,
    mut measured: impl AsyncFnMut() -> Result<f64, Failure>,
    mut baseline: impl AsyncFnMut() -> Result<f64, Failure>,
) -> Result<Comparison, Failure> {
    let mut pairs = Vec::with_capacity(effort.rounds);
    for round in 0..=effort.rounds {
        let pair = (measured().await?, baseline().await?);
        if round > 0 {
            pairs.push(pair);
        }
    }
    Ok(Comparison::of(pairs))
}

/// The median time of one operation in microseconds, over `samples` of them one after the other.
pub(crate) async fn median_time(
    samples: usize,
    mut operation: impl AsyncFnMut() -> Result<(), Failure>,
) -> Result<f64, Failure> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let begun = Instant::now();
        operation().await?;
        times.push(microseconds(begun.elapsed()));
    }
    Ok(median(times))
}

/// A time as a figure counts it.
pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Operations in a second.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    // Exact below 2^53, which no round reaches.
    #[allow(clippy::cast_precision_loss)]
    let count = count as f64;
    count / time.as_secs_f64()
}

/// The median; of an even number, the mean of the middle two. Not a number if there are none.
pub(crate) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 0) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        (middle, _) => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_median_ignores_outliers_and_order() {
        assert!(median([]).is_nan());
        assert_eq!(median([7.0]), 7.0);
        assert_eq!(median([900.0, 1.0, 3.0]), 3.0);
        assert_eq!(median([4.0, 1.0, 900.0, 2.0]), 3.0);
    }

    #[test]
    fn one_disturbed_round_changes_neither_ratio() {
        let comparison = Comparison::of(vec![(20.0, 10.0), (900.0, 10.0), (22.0, 11.0)]);
        assert_eq!((comparison.value, comparison.baseline), (22.0, 10.0));
        assert_eq!((comparison.ratio(), comparison.ratio_of_pairs()), (2.2, 2.0));
        let shown = comparison.to_string();
        assert!(shown.starts_with("3 rounds from 20.0 to 900.0, baseline from 10.0 to 11.0, "), "{shown}");
    }

    #[test]
    fn both_take_turns_and_the_first_round_does_not_count() {
        let order = RefCell::new(String::new());
        let effort = Effort { rounds: 2, ..Effort::LEAST };
        let turn = |name| {
            order.borrow_mut().push(name);
            Ok(if order.borrow().len() <= 2 { 1e9 } else { 5.0 })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let comparison = runtime.block_on(compare(effort, async || turn('A'), async || turn('B'))).unwrap();
        assert_eq!(order.into_inner(), "ABABAB");
        assert_eq!((comparison.value, comparison.baseline), (5.0, 5.0));
    }
}
