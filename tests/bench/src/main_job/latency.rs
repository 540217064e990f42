//! How long one operation takes when nothing else is going on.

use std::time::Instant;

use futures::future::join_all;
use schemas::{Hints, IdentityKey, SearchPathEntry, location_capnp::location_service, objects_capnp::counter};
use transport::Endpoint;
use vat::process::Live;
use vls_client::{Resolver, ResolverConfig};

use crate::{
    Failure,
    bare::BareServer,
    echo::Echo,
    exchange::Exchange,
    live_vat::CounterVat,
    rounds::{Comparison, Effort, compare, median, median_time, microseconds},
};

/// Who is there to be asked.
pub(super) struct Setting<'a> {
    pub(super) effort: Effort,
    pub(super) vat: &'a CounterVat,
    pub(super) live: &'a Live,
    /// The search path: one location server.
    pub(super) path: &'a SearchPathEntry,
    pub(super) echo: &'a BareServer,
}

impl Setting<'_> {
    fn resolver(&self, endpoint: Endpoint) -> Resolver {
        Resolver::new(endpoint, vec![self.path.clone()], None, ResolverConfig::default())
    }

    async fn resolve(&self, resolver: &Resolver) -> Result<usize, Failure> {
        let found = resolver.resolve(self.vat.id(), &Hints::default()).await?;
        Ok(found.record.packet().len())
    }

    /// A warm echo that exchanges what a lookup of this vat does.
    async fn echo_of_lookup(&self, packet: usize) -> Result<Echo, Failure> {
        let exchange = Exchange::of_call(
            |params| {
                params.init_as::<location_service::lookup_params::Builder<'_>>().set_id(self.vat.id().as_bytes());
                Ok(())
            },
            |results| {
                let results = results.init_as::<location_service::lookup_results::Builder<'_>>();
                results.init_answer().set_packet(&vec![0; packet]);
                Ok(())
            },
        )?;
        Echo::connect(self.echo, exchange).await
    }
}

/// A lookup by a finder that has a session with the location server.
pub(super) async fn resolve_warm(setting: &Setting<'_>) -> Result<Comparison, Failure> {
    let endpoint = Endpoint::client(&IdentityKey::generate()?)?;
    let resolver = setting.resolver(endpoint.clone());
    let packet = setting.resolve(&resolver).await?;
    let mut echo = setting.echo_of_lookup(packet).await?;
    let samples = setting.effort.samples;
    let resolve = async || setting.resolve(&resolver).await.map(drop);
    let comparison = compare(
        setting.effort,
        async || median_time(samples, resolve).await,
        async || median_time(samples, async || echo.exchange().await).await,
    )
    .await?;
    drop(resolver);
    endpoint.close().await;
    Ok(comparison)
}

/// A lookup by a finder that begins with nothing but its key and a search path.
pub(super) async fn resolve_cold(setting: &Setting<'_>) -> Result<Comparison, Failure> {
    let endpoint = Endpoint::client(&IdentityKey::generate()?)?;
    let packet = setting.resolve(&setting.resolver(endpoint.clone())).await?;
    endpoint.close().await;
    let mut echo = setting.echo_of_lookup(packet).await?;
    let samples = setting.effort.samples;
    let cold_lookups = async || {
        let (mut times, mut used) = (Vec::new(), Vec::new());
        for _ in 0..setting.effort.cold_samples {
            let key = IdentityKey::generate()?;
            let begun = Instant::now();
            let endpoint = Endpoint::client(&key)?;
            let resolver = setting.resolver(endpoint.clone());
            setting.resolve(&resolver).await?;
            times.push(microseconds(begun.elapsed()));
            used.push((resolver, endpoint));
        }
        // Not among the lookups: a closing connection lingers for some round trips.
        join_all(used.into_iter().map(async |(resolver, endpoint)| {
            drop(resolver);
            endpoint.close().await;
        }))
        .await;
        Ok(median(times))
    };
    let exchanges = async || median_time(samples, async || echo.exchange().await).await;
    compare(setting.effort, cold_lookups, exchanges).await
}

/// A call that reads, over a session that is open.
pub(super) async fn call_sequential(setting: &Setting<'_>) -> Result<Comparison, Failure> {
    let caller = setting.vat.connect(setting.live).await?;
    let exchange = Exchange::of_call(
        |params| {
            params.init_as::<counter::get_params::Builder<'_>>();
            Ok(())
        },
        |results| {
            results.init_as::<counter::get_results::Builder<'_>>().set_total(1);
            Ok(())
        },
    )?;
    let mut echo = Echo::connect(setting.echo, exchange).await?;
    let samples = setting.effort.samples;
    let comparison = compare(
        setting.effort,
        async || median_time(samples, async || caller.get().await.map(drop)).await,
        async || median_time(samples, async || echo.exchange().await).await,
    )
    .await?;
    caller.close().await;
    Ok(comparison)
}
