//! Records for tests: one vat that has signed many things, and somebody who is not that vat.

use std::time::Duration;

use schemas::{Address, IdentityKey, LocationRecord, SignedRecord, State, Timestamp, VatId};
use vls_client::{Clock, Moment, SystemClock};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A fixed moment for tests with simulated time.
pub(crate) fn noon() -> Timestamp {
    Timestamp::from_seconds(1_800_000_000)
}

/// A clock that is wrong.
pub(crate) struct Ahead(pub(crate) Duration);

impl Clock for Ahead {
    fn now(&self) -> Moment {
        let now = SystemClock::default().now();
        Moment { wall: now.wall + self.0, ..now }
    }
}

/// Now, by this machine's clock.
pub(crate) fn now() -> Timestamp {
    SystemClock::default().now().wall
}

pub(crate) fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

pub(crate) fn vat() -> VatId {
    key(1).id()
}

/// A record under construction; the defaults are those of a live vat without an address.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) seed: u8,
    pub(crate) epoch: u64,
    pub(crate) timestamp: Timestamp,
    pub(crate) validity: Duration,
    pub(crate) state: State,
    pub(crate) addresses: Vec<Address>,
}

pub(crate) fn draft(epoch: u64, timestamp: Timestamp) -> Draft {
    Draft { seed: 1, epoch, timestamp, validity: HOUR, state: State::Live, addresses: vec![] }
}

impl Draft {
    pub(crate) fn by(self, seed: u8) -> Self {
        Self { seed, ..self }
    }

    pub(crate) fn valid_for(self, validity: Duration) -> Self {
        Self { validity, ..self }
    }

    pub(crate) fn state(self, state: State) -> Self {
        Self { state, ..self }
    }

    pub(crate) fn at(self, addresses: &[&str]) -> Self {
        Self { addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(), ..self }
    }

    pub(crate) fn sign(self) -> SignedRecord {
        let record = LocationRecord {
            epoch: self.epoch,
            turn: 7,
            chain_head: None,
            state: self.state,
            expires: self.timestamp + self.validity,
            addresses: self.addresses,
            search_path: vec![],
            document: None,
        };
        SignedRecord::sign(&key(self.seed), &record, self.timestamp).unwrap()
    }
}

/// A packet of the vat's key without any DNS record, as pkarr's own client might publish it.
pub(crate) fn foreign(timestamp: Timestamp) -> Vec<u8> {
    let value = [0; 12];
    let signed = [format!("3:seqi{}e1:v{}:", timestamp.as_micros(), value.len()).as_bytes(), &value].concat();
    [&key(1).sign_raw(&signed)[..], &timestamp.as_micros().to_be_bytes(), &value].concat()
}

/// A packet of the vat with one bit of its content changed.
pub(crate) fn altered(record: &SignedRecord) -> Vec<u8> {
    let mut packet = record.packet().to_vec();
    // Within the signature: everything else about the packet still looks right.
    packet[17] ^= 4;
    packet
}
