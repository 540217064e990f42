//! How many files the server may open: each TCP connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::Configuration;
use crate::limits;

/// How many the configuration needs, at most.
pub(super) fn needed(configuration: &Configuration) -> u64 {
    let http = configuration.http.value.map_or(0, |_| limits::HTTP_CONNECTIONS);
    let dns = configuration.dns.value.map_or(0, |_| limits::DNS_CONNECTIONS);
    limits::OWN_FILES + (http + dns) as u64
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
