//! Records of exactly the length that the figures are about, and clocks for who keeps them.

use std::{cell::Cell, net::IpAddr, rc::Rc, time::Duration};

use checkpoint::{Change, RowKey, Store, TurnDelta};
use schemas::{IdentityKey, Timestamp, VatId};
use vls_server::{
    Clock,
    registry::{Now, SourcePrefix},
};

use crate::Failure;

/// Bytes of a packet.
pub(super) const PACKET_BYTES: usize = 200;

/// Where the clocks begin, and when all records were signed.
pub(super) const BEGINNING: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// Where the records are in a store, and the version of their rows: see `vls-server/src/durable/rows.rs`.
pub(super) const SPACE: u64 = 1;
const ROW_VERSION: u8 = 2;

/// Rows in a turn, while a store is filled.
const TOGETHER: u32 = 1_000;

/// Networks that the records come from.
const NETWORKS: u32 = 1_000;

/// Both clocks, which stand still unless they are moved.
#[derive(Debug, Default)]
pub(super) struct HandClock(Cell<Duration>);

impl HandClock {
    pub(super) fn new() -> Rc<Self> {
        Rc::default()
    }

    pub(super) fn advance(&self, time: Duration) {
        self.0.set(self.0.get() + time);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Now {
        Now { wall: BEGINNING + self.0.get(), monotonic: self.0.get() }
    }
}

/// A record as it travels.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) id: [u8; 32],
    pub(super) bytes: Vec<u8>,
}

/// The record of a vat, signed by it.
pub(super) fn signed(number: u32) -> Packet {
    let mut seed = [0x6b; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    let key = IdentityKey::from_seed(&seed);
    let mut packet = unsigned(*key.id().as_bytes());
    let value = &packet.bytes[72..];
    // BEP44, without salt.
    let begins = format!("3:seqi{}e1:v{}:", BEGINNING.as_micros(), value.len());
    let signature = key.sign_raw(&[begins.as_bytes(), value].concat());
    packet.bytes[..64].copy_from_slice(&signature);
    packet
}

/// A record with zeros for a signature, of an id that is nobody's: for what does not verify.
pub(super) fn forged(number: u32) -> Packet {
    let mut id = [0x6b; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    unsigned(id)
}

/// Fills the store of a server with [`forged`] records, as if it had taken them in: whoever starts with a store does not
/// verify again.
pub(super) fn fill(store: &Store, records: u32) -> Result<(), Failure> {
    let until = BEGINNING + Duration::from_hours(1);
    let first_turn = store.position().turn + 1;
    for (turn, first) in (first_turn..).zip((0..records).step_by(TOGETHER as usize)) {
        let changes = (first..records.min(first + TOGETHER)).map(|number| {
            let packet = forged(number);
            let source = SourcePrefix::of(Some(source(number))).to_bits();
            let mut value = vec![ROW_VERSION];
            for field in [source, BEGINNING.as_micros(), until.as_micros()] {
                value.extend(field.to_be_bytes());
            }
            value.extend(&packet.bytes);
            Change { key: RowKey { space: SPACE, name: packet.id.to_vec() }, value: Some(value) }
        });
        store.submit(TurnDelta { turn, changes: changes.collect() })?;
    }
    Ok(store.fold()?)
}

/// Where a record came from.
pub(super) fn source(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0001 + ((number % NETWORKS) << 8)).to_be_bytes())
}

/// The strings of every record, of one length in all.
pub(super) fn fields() -> Vec<String> {
    // Signature, time, head of the reply, name, and the fixed part of a DNS record.
    let before = 64 + 8 + 12 + (1 + 4 + 1 + 52 + 1) + 10;
    let expires = (BEGINNING + Duration::from_hours(240)).as_seconds();
    let mut fields = ["v=1", "e=1", "t=7", "st=live"].map(str::to_owned).to_vec();
    fields.push(format!("exp={expires}"));
    let said: usize = fields.iter().map(|field| 1 + field.len()).sum();
    fields.push(format!("x={}", "x".repeat(PACKET_BYTES - before - said - 3)));
    fields
}

/// All fields in one DNS record, which is shorter than one for each: only so it has room in 200 bytes. A field that
/// nobody knows fills it up.
fn unsigned(id: [u8; 32]) -> Packet {
    let mut bytes = vec![0; 64];
    bytes.extend(BEGINNING.as_micros().to_be_bytes());
    // A reply with one answer.
    bytes.extend([0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    for label in ["_vat", &VatId::from_stored(id).to_string(), ""] {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    // TXT, IN, 300 seconds, and the length of the rest.
    let length = PACKET_BYTES - bytes.len() - 10;
    bytes.extend([0, 16, 0, 1, 0, 0, 1, 44, 0, u8::try_from(length).unwrap_or(0)]);
    for field in fields() {
        bytes.push(u8::try_from(field.len()).unwrap_or(0));
        bytes.extend(field.as_bytes());
    }
    Packet { id, bytes }
}
