//! How many files the server may open: each TCP connection is one.
//!
//! One too many would not only turn somebody away: the journal needs another one now and then, and a server that cannot
//! write ends. So there are never more places for connections than there are files for them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::Configuration;
use crate::{limits, server::ServerConfig};

/// Connections that a reload has taken the port from finish beside those of the new one.
const GENERATIONS: usize = 2;

/// How many the configuration needs, at most.
pub(super) fn needed(configuration: &Configuration) -> u64 {
    let http = configuration.http.value.map_or(0, |_| limits::HTTP_CONNECTIONS);
    let dns = configuration.dns.value.map_or(0, |_| limits::DNS_CONNECTIONS);
    (limits::OWN_FILES + GENERATIONS * (http + dns)) as u64
}

/// How many this process may have if it asks for them.
pub(super) fn permitted() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Asks for as many as are needed, as far as that is permitted: what a process has at first is small for the sake of
/// programs that could not do with more.
pub(super) fn raise_limit(configuration: &Configuration) {
    let (limit, needed) = (getrlimit(Resource::Nofile), needed(configuration));
    let wanted = needed.min(permitted());
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
        if let Err(error) = raised {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
    if wanted < needed {
        tracing::warn!(wanted = needed, permitted = wanted, "too few files may be open for all connections");
    }
}

/// What the configuration asks for, with no more connections than this process may have files for.
pub(super) fn fitted(mut config: ServerConfig) -> ServerConfig {
    let carriers = usize::from(config.http.is_some()) + usize::from(config.dns.is_some());
    let for_all = usize::try_from(permitted()).unwrap_or(usize::MAX).saturating_sub(limits::OWN_FILES);
    let each = for_all / (GENERATIONS * carriers.max(1));
    config.http_limits.connections = config.http_limits.connections.min(each);
    config.dns_limits.connections = config.dns_limits.connections.min(each);
    config
}
