//! Whether those beyond this machine's network can dial the vat (DESIGN §5).
//!
//! A vat behind a router does not know where it is seen, and where it is seen others may not be let in. So it asks a
//! location server for the one and has it try the other, from a port that the router has not seen anything go to; only
//! an address that was dialled like that is published beside the vat's own. If nobody gets through, its owner is told
//! what to do.

use std::{cell::RefCell, net::SocketAddr, time::Duration};

use schemas::{Address, Coded, Reach, SearchPathEntry, vat_capnp};
use vls_client::{DialledBack, Resolver};

use crate::limits::{DIAL_BACK_PAUSE, OUTSIDE_AGAIN, OUTSIDE_INTERVAL};

/// What location servers have found out.
#[derive(Debug, Default)]
pub(super) struct Outside {
    last: RefCell<Option<(SearchPathEntry, DialledBack)>>,
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
            if found.as_ref().is_none_or(|(_, found)| found.reached.is_ok()) {
                break;
            }
        }
        // A server that is away says nothing about this vat.
        let is_new = found.is_some() && found != *self.last.borrow();
        if is_new {
            self.last.replace(found);
        }
        is_new
    }

    /// When to look again.
    pub(super) fn again_after(&self) -> Duration {
        let is_reached = self.last.borrow().as_ref().is_some_and(|(_, found)| found.reached.is_ok());
        if is_reached { OUTSIDE_INTERVAL } else { OUTSIDE_AGAIN }
    }

    /// Where the vat was dialled.
    pub(super) fn address(&self) -> Option<Address> {
        self.last.borrow().as_ref().filter(|(_, found)| found.reached.is_ok()).map(|(_, found)| found.dialled.into())
    }

    /// What its owner should know, if something is wrong: `local` is where the vat listens.
    pub(super) fn warning(&self, local: SocketAddr) -> Option<String> {
        let last = self.last.borrow();
        let (entry, DialledBack { seen, dialled, reached, .. }) = last.as_ref()?;
        let reason = reached.as_ref().err()?;
        let place = match Reach::of(seen.ip()) {
            Reach::Anywhere => "outside this network",
            Reach::ThisMachine | Reach::ThisNetwork => "elsewhere",
        };
        Some(format!(
            "others {place} cannot reach this vat: {entry} sees it at {seen}, has dialled {dialled}, and got no answer ({reason}). \
             Have the router pass on UDP port {} to this machine, and open it in the firewall",
            local.port()
        ))
    }

    /// For the owner.
    pub(super) fn describe(&self, mut out: vat_capnp::outside::Builder<'_>) {
        if let Some((entry, DialledBack { dialled, reached, .. })) = &*self.last.borrow() {
            out.set_server(entry.to_string());
            out.set_address(dialled.to_string());
            if let Err(reason) = reached {
                out.set_code(reason.code().as_str());
                out.set_message(&reason.message);
            }
        }
    }
}

/// Asks one entry of the path after the other, until one answers.
async fn ask(resolver: &Resolver, port: Option<u16>) -> Option<(SearchPathEntry, DialledBack)> {
    for entry in resolver.path() {
        if !matches!(entry, SearchPathEntry::Vls { .. }) {
            continue;
        }
        match resolver.dialled_back(entry, port).await {
            Ok(found) => return Some((entry.clone(), found)),
            Err(error) => tracing::debug!(%entry, %error, "a location server did not dial back"),
        }
    }
    None
}
