//! The rows of the record table, as they stand in the store.
//!
//! | space | name | value, after a byte `1` for this version of the row |
//! |---|---|---|
//! | 1 records | id 32 | source prefix 8 ‖ packet |
//! | 2 leases | id 32 | last seen 8 ‖ end of the lease 8 |
//! | 3 marks | id 32 | epoch 8 ‖ timestamp 8 ‖ turn 8 |
//! | 4 evidence | id 32 | turn 8 ‖ length of the lower packet 2 ‖ lower packet ‖ higher packet |
//!
//! Numbers are big-endian, times microseconds since 1970. The lease stands apart from its record, so that a
//! renewal writes a few bytes and not the packet again.

use std::collections::HashMap;

use checkpoint::{Change, RowKey, Store, StoreError};
use schemas::{Coded, ErrorCode, IdentityError, RecordError, SignedRecord, Timestamp, VatId};

use crate::registry::{Evidence, HighWaterMark, Id, Restored, RestoredRecord, SourcePrefix, Write};

const VERSION: u8 = 1;

const RECORDS: u64 = 1;
const LEASES: u64 = 2;
const MARKS: u64 = 3;
const EVIDENCE: u64 = 4;

/// Why a stored row is none of ours. The store has found every accident before: this is a newer program's row,
/// or a defect of this one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Written by a newer program.
    #[error("it has a row of version {found}, this program knows {VERSION}")]
    Version {
        /// The version.
        found: u8,
    },
    /// Too short or too long.
    #[error("one of its rows has an impossible length")]
    Length,
    /// The name is not an id.
    #[error("one of its rows is named by something that is no id: {0}")]
    Id(#[from] IdentityError),
    /// A lease without its record, or the other way round.
    #[error("a record and its lease do not go together")]
    Unpaired,
    /// What stands as evidence is none.
    #[error("what it holds as evidence is none: {0}")]
    Evidence(#[from] RecordError),
    /// The two packets of a pair do not contradict each other.
    #[error("what it holds as evidence does not contradict itself")]
    Agreement,
}

impl Coded for RowError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Version { .. } => ErrorCode::CheckpointVersion,
            _ => ErrorCode::CheckpointDamaged,
        }
    }
}

/// How a write looks in the store.
pub(super) fn change(write: &Write) -> Change {
    let row = |space, id: &Id, value| Change { key: RowKey { space, name: id.to_vec() }, value };
    match write {
        Write::PutRecord { id, source, packet } => {
            row(RECORDS, id, Some(value(&[&source.to_bits().to_be_bytes(), packet])))
        }
        Write::PutLease { id, seen, until } => row(LEASES, id, Some(value(&[&time(*seen), &time(*until)]))),
        Write::RemoveRecord { id } => row(RECORDS, id, None),
        Write::RemoveLease { id } => row(LEASES, id, None),
        Write::PutMark { id, mark, turn } => {
            let parts = [mark.epoch.to_be_bytes(), time(mark.timestamp), turn.to_be_bytes()];
            row(MARKS, id, Some(value(&[&parts.concat()])))
        }
        Write::RemoveMark { id } => row(MARKS, id, None),
        Write::PutEvidence { id, evidence, turn } => {
            let (lowest, highest) = (evidence.lowest().packet(), evidence.highest().packet());
            // Proof: a packet has at most 1072 bytes.
            let length = u16::try_from(lowest.len()).unwrap_or(u16::MAX);
            row(EVIDENCE, id, Some(value(&[&turn.to_be_bytes(), &length.to_be_bytes(), lowest, highest])))
        }
        Write::RemoveEvidence { id } => row(EVIDENCE, id, None),
    }
}

fn value(parts: &[&[u8]]) -> Vec<u8> {
    let mut value = vec![VERSION];
    parts.iter().for_each(|part| value.extend_from_slice(part));
    value
}

fn time(time: Timestamp) -> [u8; 8] {
    time.as_micros().to_be_bytes()
}

type Row = (Vec<u8>, Vec<u8>);

/// All rows, as the store gives them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    records: Vec<Row>,
    leases: Vec<Row>,
    marks: Vec<Row>,
    evidence: Vec<Row>,
}

impl Rows {
    pub(super) fn read(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            records: store.scan(RECORDS)?,
            leases: store.scan(LEASES)?,
            marks: store.scan(MARKS)?,
            evidence: store.scan(EVIDENCE)?,
        })
    }

    /// What they mean.
    pub(super) fn restore(self, turn: u64) -> Result<Restored, RowError> {
        let mut leases = HashMap::with_capacity(self.leases.len());
        for (name, value) in self.leases {
            let mut fields = Fields::of(&value)?;
            let lease = (fields.time()?, fields.time()?);
            fields.end()?;
            leases.insert(name, lease);
        }
        let mut records = Vec::with_capacity(self.records.len());
        for (name, value) in self.records {
            let (seen, until) = leases.remove(&name).ok_or(RowError::Unpaired)?;
            let mut fields = Fields::of(&value)?;
            let source = SourcePrefix::from_bits(fields.number()?);
            records.push(RestoredRecord {
                id: VatId::from_slice(&name)?,
                source,
                packet: fields.rest().into(),
                seen,
                until,
            });
        }
        if !leases.is_empty() {
            return Err(RowError::Unpaired);
        }
        let marks = self.marks.iter().map(|(name, value)| {
            let mut fields = Fields::of(value)?;
            let mark = HighWaterMark { epoch: fields.number()?, timestamp: fields.time()? };
            let turn = fields.number()?;
            fields.end()?;
            Ok((*VatId::from_slice(name)?.as_bytes(), mark, turn))
        });
        let evidence = self.evidence.iter().map(|(name, value)| {
            let id = VatId::from_slice(name)?;
            let mut fields = Fields::of(value)?;
            let turn = fields.number()?;
            let length = usize::from(u16::from_be_bytes(fields.take()?));
            let (lowest, highest) = fields.rest().split_at_checked(length).ok_or(RowError::Length)?;
            let (lowest, highest) = (SignedRecord::verify(id, lowest)?, SignedRecord::verify(id, highest)?);
            Ok((Evidence::of(lowest, highest).ok_or(RowError::Agreement)?, turn))
        });
        Ok(Restored {
            turn,
            records,
            marks: marks.collect::<Result<_, RowError>>()?,
            evidence: evidence.collect::<Result<_, RowError>>()?,
        })
    }
}

/// Reads the fields of a value from its beginning.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn of(value: &'a [u8]) -> Result<Self, RowError> {
        match value.split_first() {
            Some((&VERSION, rest)) => Ok(Self(rest)),
            Some((&found, _)) => Err(RowError::Version { found }),
            None => Err(RowError::Length),
        }
    }

    fn take<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], RowError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(RowError::Length)?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u64, RowError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn time(&mut self) -> Result<Timestamp, RowError> {
        Ok(Timestamp::from_micros(self.number()?))
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }

    fn end(self) -> Result<(), RowError> {
        if self.0.is_empty() { Ok(()) } else { Err(RowError::Length) }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{IdentityKey, LocationRecord, State};

    use super::*;

    fn record(turn: u64) -> SignedRecord {
        let record = LocationRecord {
            epoch: 3,
            turn,
            chain_head: None,
            state: State::Dormant,
            expires: Timestamp::from_seconds(2_000_000_000),
            addresses: Vec::new(),
            search_path: Vec::new(),
            document: None,
        };
        SignedRecord::sign(&IdentityKey::from_seed(&[1; 32]), &record, Timestamp::from_micros(77)).unwrap()
    }

    fn rows(writes: &[Write]) -> Rows {
        let mut rows = Rows::default();
        for write in writes {
            let change = change(write);
            let space = match change.key.space {
                RECORDS => &mut rows.records,
                LEASES => &mut rows.leases,
                MARKS => &mut rows.marks,
                EVIDENCE => &mut rows.evidence,
                other => panic!("space {other}"),
            };
            space.extend(change.value.map(|value| (change.key.name, value)));
        }
        rows
    }

    fn writes() -> [Write; 4] {
        let (one, other) = (record(1), record(2));
        let id = *one.id().as_bytes();
        let source = SourcePrefix::of(Some([192, 0, 2, 1].into()));
        let mark = HighWaterMark::of(&one);
        [
            Write::PutRecord { id, source, packet: one.packet().into() },
            Write::PutLease { id, seen: Timestamp::from_micros(5), until: Timestamp::from_micros(6) },
            Write::PutMark { id, mark, turn: 9 },
            Write::PutEvidence { id, evidence: Evidence::of(other, one).unwrap(), turn: 11 },
        ]
    }

    #[test]
    fn what_was_written_is_restored() {
        let restored = rows(&writes()).restore(13).unwrap();
        let one = record(1);
        let id = one.id();
        assert_eq!(restored.turn, 13);
        let expected = RestoredRecord {
            id,
            source: SourcePrefix::of(Some([192, 0, 2, 200].into())),
            packet: one.packet().into(),
            seen: Timestamp::from_micros(5),
            until: Timestamp::from_micros(6),
        };
        assert_eq!(restored.records, [expected]);
        assert_eq!(restored.marks, [(*id.as_bytes(), HighWaterMark::of(&one), 9)]);
        assert_eq!(restored.evidence, [(Evidence::of(one, record(2)).unwrap(), 11)]);
    }

    #[test]
    fn rows_that_are_none_are_refused_and_a_newer_programs_are_named_as_such() {
        let [record, lease, mark, evidence] = writes();
        for alone in [&record, &lease] {
            assert_eq!(rows(std::slice::from_ref(alone)).restore(0).unwrap_err(), RowError::Unpaired);
        }
        for (space, write) in [(0, record), (1, lease), (2, mark), (3, evidence)] {
            let of = |rows: &mut Rows, change: &dyn Fn(&mut Vec<u8>)| {
                let rows = [&mut rows.records, &mut rows.leases, &mut rows.marks, &mut rows.evidence];
                rows.into_iter().nth(space).unwrap().iter_mut().for_each(|(_, value)| change(value));
            };
            let mut newer = rows(&writes());
            of(&mut newer, &|value| value[0] = 2);
            let error = newer.restore(0).unwrap_err();
            assert_eq!(error, RowError::Version { found: 2 });
            assert_eq!(error.code(), ErrorCode::CheckpointVersion);
            let mut cut = rows(&[write]);
            of(&mut cut, &|value| value.truncate(9));
            let mut empty = rows(&writes());
            of(&mut empty, &|value| value.clear());
            assert!(cut.restore(0).is_err() || space == 0, "a packet is judged by the registry");
            assert_eq!(empty.restore(0).unwrap_err(), RowError::Length);
        }
    }
}
