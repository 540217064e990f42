//! How many new records one processor takes in: signed, verified and durable before each is acknowledged.

use std::{cell::Cell, path::Path, sync::Arc, time::Duration};

use checkpoint::FileDisk;
use futures::future::try_join_all;
use rustix::time::{ClockId, clock_gettime};
use schemas::{IdentityKey, UnverifiedPacket, VatId};
use vls_server::{
    DurableRegistry,
    registry::{Admission, Expected, Outcome, Policy},
};

use super::records::{HandClock, Packet, signed};
use crate::{
    Failure,
    placement::{Side, on_processor_of},
    program::run as on_this_thread,
    rounds::{Comparison, Effort, compare, rate},
};

/// Callers that wait at the same time: publishers of some hundred sessions.
const CALLERS: usize = 1_500;

/// Records that each of them registers, one after the other, in a round.
const EACH: usize = 6;

/// Everything on one processor, by the processor time that the whole process takes: the disk's waiting is nobody's work.
/// The baseline verifies the signatures of the same records one after the other, and does nothing else.
pub(super) fn measure(effort: Effort, folder: &Path) -> Result<Comparison, Failure> {
    let effort = Effort { rounds: effort.rounds.min(5), ..effort };
    let (callers, directory) = (CALLERS.min(effort.records as usize / 10), folder.join("registering"));
    on_processor_of(Side::Server, || {
        on_this_thread(async {
            let clock = HandClock::new();
            let id = IdentityKey::from_seed(&[0x12; 32]).id();
            let registry = DurableRegistry::open(Arc::new(FileDisk), &directory, id, Policy::default(), clock)?;
            let next = Cell::new(0);
            let packets = || -> Vec<_> {
                let first = next.get();
                next.set(first + u32::try_from(callers * EACH).unwrap_or(u32::MAX));
                (first..next.get()).map(signed).collect()
            };
            let comparison = compare(
                effort,
                async || {
                    let packets = packets();
                    let begun = processor_time();
                    let callers = packets.chunks(EACH).map(|packets| one_after_the_other(&registry, packets));
                    try_join_all(callers).await?;
                    Ok(rate(packets.len() as u64, processor_time() - begun))
                },
                async || {
                    let packets = packets();
                    let parsed = packets
                        .iter()
                        .map(|packet| UnverifiedPacket::parse(VatId::from_stored(packet.id), &packet.bytes));
                    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
                    let begun = processor_time();
                    for record in parsed {
                        record.verify()?;
                    }
                    Ok(rate(packets.len() as u64, processor_time() - begun))
                },
            )
            .await;
            registry.close()?;
            comparison
        })
    })?
}

async fn one_after_the_other(registry: &DurableRegistry, packets: &[Packet]) -> Result<(), Failure> {
    for packet in packets {
        let outcome = registry.register(None, &packet.id, &packet.bytes, &Expected::Anything, &Admission::None).await?;
        if !matches!(outcome, Outcome::Stored { .. }) {
            return Err(format!("not stored: {outcome:?}").into());
        }
    }
    Ok(())
}

/// What this process has taken of all processors so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
