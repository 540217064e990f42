//! What every carrier of a server has in common.

use std::{
    cell::{Cell, RefCell},
    net::Ipv4Addr,
    rc::Rc,
    time::Duration,
};

use schemas::{Timestamp, VatId};
use transport::HandshakeCounts;

use super::{
    dns::Zone,
    metrics::{Metrics, Readings},
    peers::{Asker, Peers},
    sessions::Calls,
};
use crate::{
    durable::{DurableRegistry, Seen},
    peering::Share,
    registry::{Id, Now},
    server::dns::Known,
};

/// What every carrier of a server has in common.
pub(super) struct Shared {
    pub(super) id: VatId,
    pub(super) registry: Rc<DurableRegistry>,
    pub(super) calls: Rc<Calls>,
    pub(super) metrics: Rc<Metrics>,
    pub(super) peers: Rc<Peers>,
    pub(super) started: Now,
    /// For how long a record is answered after its vat was last seen.
    pub(super) lease: Cell<Duration>,
    pub(super) zone: RefCell<Option<Rc<Zone>>>,
    /// How many sessions there are.
    pub(super) sessions: Box<dyn Fn() -> usize>,
    /// What has become of those who wanted one.
    pub(super) handshakes: Box<dyn Fn() -> HandshakeCounts>,
}

impl Shared {
    /// What is answered below which name, if anything is.
    pub(super) fn zone(&self) -> Option<Rc<Zone>> {
        self.zone.borrow().clone()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.registry.clock().now().wall
    }

    pub(super) fn uptime(&self) -> Duration {
        self.registry.clock().now().monotonic.saturating_sub(self.started.monotonic)
    }

    pub(super) fn readings(&self) -> Readings {
        let (records, turn, durable_turn) = self.registry.counts();
        let (sessions, handshakes) = ((self.sessions)(), (self.handshakes)());
        let (work, ..) = self.registry.admissions();
        Readings { records, work, sessions, handshakes, turn, durable_turn, uptime: self.uptime() }
    }

    /// For the DNS core, which does not wait: what other servers know of an id is found by who asks a second time.
    pub(super) fn known(&self, id: &Id) -> Known {
        // Resolvers ask for whoever asks them, and from everywhere: all of them have one network's share.
        let asker = Asker { id: None, network: Ipv4Addr::UNSPECIFIED.into(), hops: 0 };
        drop(self.peers.inquire(id, self.registry.clock().now(), asker, Share::Part));
        self.registry.see(id, self.registry.clock().now(), |seen| match seen {
            Seen::Early => Known::Early,
            Seen::Nothing | Seen::Record { expired: true, .. } => Known::Nothing,
            Seen::Record { packet, left, .. } => Known::Record { packet: packet.to_vec(), left },
        })
    }
}
