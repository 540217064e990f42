//! Whether those beyond this machine's network can dial the vat (DESIGN §5).
//!
//! A vat behind a router does not know where it is seen, and where it is seen others may not be let in. So it asks a
//! location server for the one and has it try the other, from a port that the router has not seen anything go to; only
//! an address that was dialled like that is published beside the vat's own. If nobody gets through, its owner is told
//! what to do.

use std::{cell::RefCell, net::SocketAddr, time::Duration};

use schemas::{Address, Coded, Reach, RemoteError, SearchPathEntry, vat_capnp};
use vls_client::{DialledBack, Resolver};

use crate::limits::{DIAL_BACK_PAUSE, OUTSIDE_AGAIN, OUTSIDE_INTERVAL};

/// What location servers have found out.
#[derive(Debug, Default)]
pub(super) struct Outside {
    last: RefCell<Option<Found>>,
}

/// Who has dialled the vat, and what came of it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    entry: SearchPathEntry,
    /// Where the vat was seen.
    seen: SocketAddr,
    /// Where it was dialled.
    dialled: SocketAddr,
    reached: Result<(), RemoteError>,
}

impl Outside {
    /// Has the vat dialled, at each of `ports` until it is reached; `None` is the one that it is seen at. Tells whether
    /// anything is new.
    pub(super) async fn look(&self, resolver: &Resolver, ports: &[Option<u16>]) -> bool {
        let mut found = None;
        for (number, port) in ports.iter().enumerate() {
            if number > 0 {
                // Servers dial back no more often.
                tokio::time::sleep(DIAL_BACK_PAUSE).await;
            }
            found = ask(resolver, *port).await.or(found);
            if found.as_ref().is_none_or(|found| found.reached.is_ok()) {
                break;
            }
        }
        // A server that is away says nothing about this vat.
        found.is_some_and(|found| self.learn(found))
    }

    /// Takes in what a server has found out; tells whether it is new.
    fn learn(&self, found: Found) -> bool {
        let is_new = self.last.borrow().as_ref() != Some(&found);
        self.last.replace(Some(found));
        is_new
    }

    /// When to look again.
    pub(super) fn again_after(&self) -> Duration {
        let is_reached = self.last.borrow().as_ref().is_some_and(|found| found.reached.is_ok());
        if is_reached { OUTSIDE_INTERVAL } else { OUTSIDE_AGAIN }
    }

    /// Where the vat was dialled.
    pub(super) fn address(&self) -> Option<Address> {
        self.last.borrow().as_ref().filter(|found| found.reached.is_ok()).map(|found| found.dialled.into())
    }

    /// What its owner should know, if something is wrong: `local` is where the vat listens.
    pub(super) fn warning(&self, local: SocketAddr) -> Option<String> {
        let last = self.last.borrow();
        let Found { entry, seen, dialled, reached } = last.as_ref()?;
        let reason = reached.as_ref().err()?;
        let place = match Reach::of(seen.ip()) {
            Reach::Anywhere => "outside this network",
            Reach::ThisMachine | Reach::ThisNetwork => "elsewhere",
        };
        Some(format!(
            "others {place} cannot reach this vat: {entry} sees it at {seen}, has dialled {dialled}, and got no answer ({reason}). \
             {}",
            let_others_in(local.port())
        ))
    }

    /// For the owner.
    pub(super) fn describe(&self, mut out: vat_capnp::outside::Builder<'_>) {
        if let Some(Found { entry, dialled, reached, .. }) = &*self.last.borrow() {
            out.set_server(entry.to_string());
            out.set_address(dialled.to_string());
            if let Err(reason) = reached {
                out.set_code(reason.code().as_str());
                out.set_message(&reason.message);
            }
        }
    }
}

/// What the owner can do when nobody gets through to a vat that listens at `port`.
pub(crate) fn let_others_in(port: u16) -> String {
    format!("Have the router pass on UDP port {port} to this machine, and open it in the firewall")
}

/// Asks one entry of the path after the other, until one answers.
async fn ask(resolver: &Resolver, port: Option<u16>) -> Option<Found> {
    for entry in resolver.path() {
        if !matches!(entry, SearchPathEntry::Vls { .. }) {
            continue;
        }
        match resolver.dialled_back(entry, port).await {
            Ok(DialledBack { seen, dialled, reached, .. }) => {
                return Some(Found { entry: entry.clone(), seen, dialled, reached });
            }
            Err(error) => tracing::debug!(%entry, %error, "a location server did not dial back"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use schemas::{ErrorCode, IdentityKey};

    use super::*;

    const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)), 4433);

    fn found(dialled: SocketAddr, reached: Result<(), ErrorCode>) -> Found {
        let id = IdentityKey::from_seed(&[3; 32]).id();
        let entry = SearchPathEntry::Vls { id, host: "198.51.100.1".to_owned(), port: 4433 };
        let reached = reached.map_err(|code| RemoteError { code, message: "no answer".to_owned() });
        Found { entry, seen: HERE, dialled, reached }
    }

    #[test]
    fn only_what_differs_from_the_last_finding_is_news() {
        let (outside, elsewhere) = (Outside::default(), SocketAddr::new(HERE.ip(), 4434));
        let news = [
            (Ok(()), HERE, true),
            (Ok(()), HERE, false),
            (Err(ErrorCode::NetTimeout), HERE, true),
            (Err(ErrorCode::NetTimeout), HERE, false),
            (Ok(()), elsewhere, true),
            (Ok(()), HERE, true),
        ];
        for (number, (reached, dialled, is_new)) in news.into_iter().enumerate() {
            assert_eq!(outside.learn(found(dialled, reached)), is_new, "the finding number {number}");
            assert_eq!(outside.address(), reached.is_ok().then(|| dialled.into()), "the last one counts");
        }
    }

    #[test]
    fn who_is_not_reached_looks_again_sooner_and_tells_the_owner_which_port_to_open() {
        let outside = Outside::default();
        assert_eq!((outside.again_after(), outside.warning(HERE)), (OUTSIDE_AGAIN, None));
        outside.learn(found(HERE, Err(ErrorCode::NetTimeout)));
        assert_eq!(outside.again_after(), OUTSIDE_AGAIN);
        assert!(outside.warning(SocketAddr::new(HERE.ip(), 5)).is_some_and(|warning| warning.contains("UDP port 5 ")));
        outside.learn(found(HERE, Ok(())));
        assert_eq!((outside.again_after(), outside.warning(HERE)), (OUTSIDE_INTERVAL, None));
    }
}
