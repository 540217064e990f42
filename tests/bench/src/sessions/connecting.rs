//! What a call costs by itself, and what a connection costs with its first one.

use schemas::objects_capnp::counter;

use super::{Servers, adder, ours};
use crate::{
    Failure, bare,
    echo::Echo,
    exchange::Exchange,
    rounds::{Comparison, Effort, compare, median_time},
};

/// What the bare echo exchanges in place of a call.
fn exchange() -> Result<Exchange, Failure> {
    Ok(Exchange::of_call(
        |params| {
            params.init_as::<counter::add_params::Builder<'_>>().set_by(1);
            Ok(())
        },
        |results| {
            results.init_as::<counter::add_results::Builder<'_>>().set_total(1);
            Ok(())
        },
    )?)
}

/// One call after the other.
pub(super) async fn sequential(effort: Effort, servers: &Servers) -> Result<Comparison, Failure> {
    let dialler = ours::Dialler::new()?;
    let session = dialler.session(*servers.ours.greeting()).await?;
    let counter = session.bootstrap();
    let mut echo = Echo::connect(servers.echo.greeting(), exchange()?).await?;
    compare(
        effort,
        async || median_time(effort.samples, async || adder::add(&counter).await).await,
        async || median_time(effort.samples, async || echo.exchange().await).await,
    )
    .await
}

/// A new connection with its first call, from the first packet to the answer.
pub(super) async fn first_call(effort: Effort, servers: &Servers) -> Result<Comparison, Failure> {
    let (ours, bare) = (ours::Dialler::new()?, bare::Dialler::new(servers.echo.greeting())?);
    let connections = effort.cold_samples;
    let sessions = async || {
        let mut open = Vec::with_capacity(connections);
        let begun = processor_time();
        for _ in 0..connections {
            open.push(ours.first_call(*servers.ours.greeting()).await?);
        }
        let used = processor_time() - begun;
        for session in open.drain(..) {
            session.close();
            session.closed().await;
        }
        ours.idle().await;
        Ok(used / connections as f64)
    };
    let echoes = async || {
        let mut open = Vec::with_capacity(connections);
        let begun = processor_time();
        for _ in 0..connections {
            open.push(Echo::connect_from(&bare, exchange()?).await?);
        }
        let used = processor_time() - begun;
        open.drain(..).for_each(Echo::close);
        bare.idle().await;
        Ok(used / connections as f64)
    };
    compare(effort, sessions, echoes).await
}

/// What this process has used of its processors, in microseconds.
pub(super) fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
