//! Asks one location server whether it is there and what time it has, without anything of the resolver in
//! between: for `vat vls test` and `vat doctor`.

use console::Failure;
use schemas::{ErrorCode, SearchPathEntry, Timestamp, location_capnp::location_service};
use transport::{Endpoint, Session};
use vls_client::{CarrierConfig, LeftOut, Resolver, ResolverConfig, addresses_of};

use super::connect::{failure, session_options, within};
use crate::limits::PROBE_DEADLINE;

/// What a location server said.
pub(super) struct Answer {
    /// Its clock.
    pub(super) time: Timestamp,
    /// The address from which it sees this machine, if it tells.
    pub(super) seen_from: Option<String>,
}

pub(super) async fn probe(
    carriers: CarrierConfig,
    endpoint: &Endpoint,
    entry: &SearchPathEntry,
) -> Result<Answer, Failure> {
    if let Some(why) = LeftOut::of(entry).filter(|_| carriers.local_only) {
        return Err(Failure::new(ErrorCode::VlsLeftOut, why.to_string()));
    }
    let SearchPathEntry::Vls { id, host, port } = entry else {
        let mut config = ResolverConfig::default();
        config.carriers = carriers;
        let asked = Resolver::new(endpoint.clone(), Vec::new(), None, config).time_at(entry).await;
        return Ok(Answer { time: asked.map_err(Failure::from)?, seen_from: None });
    };
    let addresses = addresses_of(host, *port).await.map_err(Failure::from)?;
    let mut last = Failure::new(ErrorCode::NetName, format!("{host} has no address"));
    for address in addresses {
        match endpoint.dial(*id, address, PROBE_DEADLINE).await {
            Ok(connection) => {
                let session = Session::open(connection, session_options()).await?;
                let server: location_service::Client = session.bootstrap();
                let response = within(PROBE_DEADLINE, server.now_request().send().promise).await?;
                let now = response.get().map_err(failure)?;
                return Ok(Answer {
                    time: Timestamp::from_micros(now.get_time()),
                    seen_from: Some(now.get_address().and_then(|text| Ok(text.to_string()?)).map_err(failure)?),
                });
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
