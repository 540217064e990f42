//! How much memory a record takes: the packet, the index, the lease, its source, its place in the order, and what
//! is remembered of those that were written last. All of it, but for what an empty registry has.

use std::time::Duration;

use schemas::verify_all;
use vls_server::{
    Clock,
    registry::{Admission, Examined, Expected, Outcome, Policy, Rate, Registry, Seed},
};

use super::records::{HandClock, PACKET_BYTES, signed, source};
use crate::{
    Failure,
    allocations::Counting,
    rounds::{Comparison, Effort},
};

/// Registrations whose signatures are verified together.
const TOGETHER: u32 = 512;

/// What a packet in the table takes against its own length, after all were registered one by one, each a millisecond
/// after the one before.
pub(super) fn measure(effort: Effort) -> Result<Comparison, Failure> {
    let records = effort.records;
    // All of it happens on this thread; what others take and give back meanwhile is not of the records.
    let counting = Counting::start_with_this_thread();
    let clock = HandClock::new();
    let quick = Rate { burst: u32::MAX, interval: Duration::from_nanos(1) };
    let policy = Policy {
        max_records: records as usize,
        new_ids: quick,
        signature_checks: quick,
        work: None,
        ..Policy::default()
    };
    let mut registry = Registry::new(policy, Seed::of([0x5e; 32]));
    let empty = counting.held();
    for first in (0..records).step_by(TOGETHER as usize) {
        register(&mut registry, &clock, first..records.min(first + TOGETHER))?;
    }
    let held = counting.held() - empty;
    drop(counting);
    if registry.len() != records as usize {
        return Err(format!("{} of {records} records are held", registry.len()).into());
    }
    Ok(Comparison::of(vec![(held as f64 / f64::from(records), PACKET_BYTES as f64)]))
}

/// Everything that is made for this is gone afterwards, but for what the registry keeps.
fn register(registry: &mut Registry, clock: &HandClock, numbers: std::ops::Range<u32>) -> Result<(), Failure> {
    let (mut records, mut origins) = (Vec::new(), Vec::new());
    for number in numbers {
        clock.advance(Duration::from_millis(1));
        let packet = signed(number);
        // A thousand records of each network, as among a million.
        let source = Some(source(number / 1_000));
        match registry.examine(clock.now(), source, &packet.id, &packet.bytes, &Expected::Anything, &Admission::None) {
            Examined::Unverified(candidate) => {
                let (record, origin) = candidate.into_parts();
                records.push(record);
                origins.push(origin);
            }
            Examined::Decided(decision) => return Err(format!("decided: {decision:?}").into()),
        }
    }
    for (origin, verified) in origins.into_iter().zip(verify_all(records)) {
        let decision = registry.admit(clock.now(), origin, verified);
        match decision.outcome.reveal(u64::MAX) {
            Ok(Outcome::Stored { .. }) => {}
            other => return Err(format!("not stored: {other:?}").into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a twentieth of a million what is there only once still counts: some three bytes for each.
    #[test]
    fn a_record_of_200_bytes_takes_hardly_more_than_that() {
        let comparison = measure(Effort { records: 50_000, ..Effort::LEAST }).unwrap();
        assert!(comparison.ratio() > 1.0 && comparison.ratio() <= 1.13, "{}", comparison.ratio());
    }
}
