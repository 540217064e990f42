//! One thread with an event loop, a clock that tests turn by hand, and records to register.

use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

use schemas::{IdentityKey, LocationRecord, SignedPacket, SignedRecord, State, Timestamp};
use vls_server::{Clock, registry::Now};

pub(crate) const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// Runs `work` on one thread, with tasks that stay on it.
pub(crate) fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// Both clocks, turned by hand.
#[derive(Debug)]
pub(crate) struct HandClock(Cell<Now>);

impl HandClock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self(Cell::new(Now { wall: START, monotonic: Duration::from_secs(9) })))
    }

    /// Lets time pass.
    pub(crate) fn wait(&self, duration: Duration) {
        let now = self.0.get();
        self.0.set(Now { wall: now.wall + duration, monotonic: now.monotonic + duration });
    }

    /// What the clocks show to a process that starts now: the monotonic one begins anew.
    pub(crate) fn in_new_process(&self) -> Rc<Self> {
        Rc::new(Self(Cell::new(Now { wall: self.0.get().wall, monotonic: Duration::ZERO })))
    }
}

impl Clock for HandClock {
    fn now(&self) -> Now {
        self.0.get()
    }
}

/// The key number `n`.
pub(crate) fn key(n: u32) -> IdentityKey {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    IdentityKey::from_seed(&seed)
}

/// A record of `epoch`, signed `signed` seconds after `base` and valid for ten days from then on.
pub(crate) fn record_at(base: Timestamp, key: &IdentityKey, epoch: u64, signed: i64) -> SignedRecord {
    let distance = Duration::from_secs(signed.unsigned_abs());
    let timestamp = if signed < 0 { base - distance } else { base + distance };
    let record = LocationRecord {
        epoch,
        turn: 1,
        chain_head: None,
        state: State::Live,
        expires: timestamp + Duration::from_hours(240),
        addresses: Vec::new(),
        search_path: Vec::new(),
        document: None,
    };
    SignedRecord::sign(key, &record, timestamp).unwrap()
}

/// What the pkarr crate makes of two DNS records: an address, and a text at `_iroh`.
pub(crate) fn foreign(key: &IdentityKey, timestamp: Timestamp, text: &str) -> SignedPacket {
    let packet = pkarr::SignedPacket::builder()
        .address(".".try_into().unwrap(), "192.0.2.9".parse().unwrap(), 300)
        .txt("_iroh".try_into().unwrap(), text.try_into().unwrap(), 60)
        .timestamp(timestamp.as_micros().into())
        .sign(&pkarr::Keypair::from_secret_key(&key.seed()))
        .unwrap();
    SignedPacket::verify(key.id(), &packet.to_relay_payload()).unwrap()
}

/// The same by the hand-turned clock's beginning.
pub(crate) fn record(key: &IdentityKey, epoch: u64, signed: i64) -> SignedRecord {
    record_at(START, key, epoch, signed)
}
