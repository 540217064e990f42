//! How many calls a vat makes durable in a second.

use std::{cell::Cell, path::Path, time::Instant};

use futures::future::try_join_all;

use crate::{
    Failure,
    journal::{Commits, Journal},
    live_vat::{Caller, CounterVat},
    note,
    program::run as on_this_thread,
    rounds::{Comparison, Effort, compare, rate},
};

/// `Counter.add` with `callers` calls under way at any time, against the journal alone with as many waiters.
///
/// The vat is woken for this figure alone, so that its frames can be counted afterwards.
pub(super) fn add(
    effort: Effort,
    vat: &CounterVat,
    folder: &Path,
    callers: u64,
    name: &str,
) -> Result<Comparison, Failure> {
    let folder = folder.join(name);
    std::fs::create_dir(&folder)?;
    let mut journal = Journal::create(&folder)?;
    let before = vat.commits()?;
    let awake = vat.wake()?;
    let comparison = on_this_thread(async {
        let caller = vat.connect(awake.greeting()).await?;
        let (first, added) = (caller.get().await?, Cell::new(0));
        let comparison = compare(
            effort,
            async || adds(&caller, callers, effort, &added).await,
            async || journal.run(callers, effort.window),
        )
        .await?;
        let (found, expected) = (caller.get().await?, first + added.get());
        caller.close().await;
        if found == expected {
            Ok(comparison)
        } else {
            Err(format!("{name}: the counter stands at {found}, and {expected} was acknowledged").into())
        }
    })?;
    awake.stop()?;
    let after = vat.commits()?;
    let commits = Commits { turns: after.turns - before.turns, frames: after.frames - before.frames };
    note(&format!("{name}: vat {}; journal alone {}", grouping(commits), grouping(journal.commits())));
    Ok(comparison)
}

/// Acknowledged calls per second.
async fn adds(caller: &Caller, callers: u64, effort: Effort, added: &Cell<u64>) -> Result<f64, Failure> {
    let (first, begun) = (added.get(), Instant::now());
    let call_until_the_end = async |_| {
        while begun.elapsed() < effort.window {
            caller.add().await?;
            added.set(added.get() + 1);
        }
        Ok::<(), Failure>(())
    };
    try_join_all((0..callers).map(call_until_the_end)).await?;
    Ok(rate(added.get() - first, begun.elapsed()))
}

fn grouping(Commits { turns, frames }: Commits) -> String {
    let per_frame = rate(turns, std::time::Duration::from_secs(frames.max(1)));
    format!("{turns} turns with {frames} fdatasyncs ({per_frame:.1} each)")
}
