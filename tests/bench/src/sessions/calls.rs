//! How many calls are answered in a second, and what each of them allocates.

use std::time::Instant;

use futures::{StreamExt, stream::FuturesUnordered};

use super::{Servers, adder, grpc, ours, stock};
use crate::{
    Failure,
    allocations::Counting,
    rounds::{Comparison, Effort, compare, median_time, rate},
};

/// Calls on the way at once.
const OUTSTANDING: usize = 1_000;

/// Calls answered in a second by `call` when [`OUTSTANDING`] are on the way at any time.
async fn calls_per_second<F>(effort: Effort, call: impl Fn() -> F) -> Result<f64, Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let begun = Instant::now();
    let mut answered = 0;
    let mut outstanding: FuturesUnordered<_> = (0..OUTSTANDING).map(|_| call()).collect();
    while let Some(outcome) = outstanding.next().await {
        outcome?;
        answered += 1;
        if begun.elapsed() < effort.window {
            outstanding.push(call());
        }
    }
    Ok(rate(answered, begun.elapsed()))
}

/// Against capnp-rpc's own network.
pub(super) async fn pipelined_vs_stock(effort: Effort, servers: &Servers) -> Result<Comparison, Failure> {
    let (dialler, stock) = (ours::Dialler::new()?, stock::Caller::connect(servers.stock.greeting()).await?);
    let session = dialler.session(*servers.ours.greeting()).await?;
    let counter = session.bootstrap();
    compare(
        effort,
        async || calls_per_second(effort, || adder::add(&counter)).await,
        async || calls_per_second(effort, || adder::add(&stock.counter)).await,
    )
    .await
}

/// Against gRPC.
pub(super) async fn pipelined_vs_tonic(effort: Effort, servers: &Servers) -> Result<Comparison, Failure> {
    let (dialler, tonic) = (ours::Dialler::new()?, grpc::Caller::connect(servers.grpc.greeting()).await?);
    let session = dialler.session(*servers.ours.greeting()).await?;
    let counter = session.bootstrap();
    compare(
        effort,
        async || calls_per_second(effort, || adder::add(&counter)).await,
        async || calls_per_second(effort, || tonic.add()).await,
    )
    .await
}

/// Allocations of one call, both ends together, against capnp-rpc's own network.
pub(super) async fn allocations_per_call(effort: Effort, servers: &Servers) -> Result<Comparison, Failure> {
    let (dialler, stock) = (ours::Dialler::new()?, stock::Caller::connect(servers.stock.greeting()).await?);
    let session = dialler.session(*servers.ours.greeting()).await?;
    let counter = session.bootstrap();
    let samples = effort.samples;
    compare(
        effort,
        async || allocations(samples, async || adder::add(&counter).await).await,
        async || allocations(samples, async || adder::add(&stock.counter).await).await,
    )
    .await
}

async fn allocations(calls: usize, call: impl AsyncFnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let counting = Counting::start();
    median_time(calls, call).await?;
    Ok(counting.allocations() as f64 / calls as f64)
}
