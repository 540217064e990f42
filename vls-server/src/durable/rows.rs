//! The rows of the record table, as they stand in the store.
//!
//! | space | name | value |
//! |---|---|---|
//! | 1 records | id 32 | `2` ‖ source prefix 8 ‖ last seen 8 ‖ end of the lease 8 ‖ packet |
//! | 3 marks | id 32 | `1` ‖ epoch 8 ‖ timestamp 8 ‖ turn 8 |
//! | 4 evidence | id 32 | `1` ‖ turn 8 ‖ length of the lower packet 2 ‖ lower packet ‖ higher packet |
//! | 5 invites | hash 32 | `1` ‖ uses left 4 ‖ made 8 ‖ end 8, all bits set if there is none ‖ note |
//!
//! The first byte is the version of the row. Numbers are big-endian, times microseconds since 1970. Record and lease
//! are one row, because a server that starts reads all of them: half as many rows are half the time that nobody is
//! answered. A renewal writes the packet again for that.
//!
//! The first version of a record's row was `1` ‖ source prefix 8 ‖ packet, and its lease `1` ‖ last seen 8 ‖ end of the
//! lease 8 in space 2. Such rows are read, and then written anew.

use std::collections::HashMap;

use checkpoint::{Change, RowKey, Store, StoreError};
use schemas::{Coded, ErrorCode, IdentityError, InviteHash, RecordError, SignedPacket, Timestamp, VatId};

use crate::registry::{Evidence, HighWaterMark, Id, InviteTerms, RestoredRecord, Restoring, SourcePrefix, Write};

/// The version of all rows, but of records.
const VERSION: u8 = 1;
/// The version of the rows of records.
const RECORD_VERSION: u8 = 2;

const RECORDS: u64 = 1;
/// Only in stores of the first format.
const LEASES: u64 = 2;
const MARKS: u64 = 3;
const EVIDENCE: u64 = 4;
const INVITES: u64 = 5;

/// The end of an invite that has none.
const NEVER: Timestamp = Timestamp::from_micros(u64::MAX);

/// Why a stored row is none of ours. The store has found every accident before: this is a newer program's row,
/// or a defect of this one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Written by a newer program.
    #[error("it has a row of version {found}, this program knows {RECORD_VERSION}")]
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
    /// What stands as a record, or as evidence, is none.
    #[error("what it holds as a record is none: {0}")]
    Record(#[from] RecordError),
    /// The two packets of a pair do not contradict each other.
    #[error("what it holds as evidence does not contradict itself")]
    Agreement,
    /// The note of an invite is no text.
    #[error("the note of an invite is no text")]
    Note,
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
    match write {
        Write::PutRecord { id, source, seen, until, packet } => {
            let record = RestoredRecord { id: *id, source: *source, seen: *seen, until: *until, packet };
            record_row(&record)
        }
        Write::RemoveRecord { id } => row(RECORDS, id, None),
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
        Write::PutInvite { hash, terms: InviteTerms { uses, made, until, note } } => {
            let parts: [&[u8]; 4] = [&uses.to_be_bytes(), &time(*made), &time(until.unwrap_or(NEVER)), note.as_bytes()];
            row(INVITES, hash.as_bytes(), Some(value(&parts)))
        }
        Write::RemoveInvite { hash } => row(INVITES, hash.as_bytes(), None),
    }
}

fn row(space: u64, id: &Id, value: Option<Vec<u8>>) -> Change {
    Change { key: RowKey { space, name: id.to_vec() }, value }
}

fn record_row(record: &RestoredRecord<'_>) -> Change {
    let source = record.source.to_bits().to_be_bytes();
    let mut value = Vec::with_capacity(25 + record.packet.len());
    value.push(RECORD_VERSION);
    for field in [source, time(record.seen), time(record.until)] {
        value.extend_from_slice(&field);
    }
    value.extend_from_slice(record.packet);
    row(RECORDS, &record.id, Some(value))
}

fn value(parts: &[&[u8]]) -> Vec<u8> {
    let mut value = vec![VERSION];
    parts.iter().for_each(|part| value.extend_from_slice(part));
    value
}

fn time(time: Timestamp) -> [u8; 8] {
    time.as_micros().to_be_bytes()
}

/// Where rows come from: [`Store::for_each_row`], or a list of them.
pub(super) trait Source {
    fn for_each_row(&self, space: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError>;
}

impl Source for Store {
    fn for_each_row(&self, space: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        Self::for_each_row(self, space, visit)
    }
}

/// Gives all rows to a registry, one by one. What comes back is to be written: rows of the first format, as they are
/// written today. The rest of it is for who made the store.
pub(super) fn read(
    source: &impl Source,
    restoring: &mut Restoring,
) -> Result<Result<Vec<Change>, RowError>, StoreError> {
    let mut reading = Reading { source, error: None };
    let mut leases = HashMap::new();
    reading.each(LEASES, |id, fields| {
        let mut fields = fields.of_version(VERSION)?;
        leases.insert(id, (fields.time()?, fields.time()?));
        fields.end()
    })?;
    let mut anew = Vec::new();
    reading.each(RECORDS, |id, fields| {
        let old = fields.version == VERSION;
        let mut fields = if old { fields } else { fields.of_version(RECORD_VERSION)? };
        let source = SourcePrefix::from_bits(fields.number()?);
        // Nearly always there are none, and to hash a million ids for that would be felt.
        let lease = if leases.is_empty() { None } else { leases.remove(&id) };
        let (seen, until) = match lease {
            Some(lease) if old => lease,
            None if !old => (fields.time()?, fields.time()?),
            _ => return Err(RowError::Unpaired),
        };
        let packet = fields.rest();
        let record = RestoredRecord { id, source, seen, until, packet };
        restoring.record(&record)?;
        if old {
            anew.extend([record_row(&record), row(LEASES, &id, None)]);
        }
        Ok(())
    })?;
    reading.each(MARKS, |id, fields| {
        let mut fields = fields.of_version(VERSION)?;
        let mark = HighWaterMark { epoch: fields.number()?, timestamp: fields.time()? };
        restoring.mark(id, mark, fields.number()?);
        fields.end()
    })?;
    reading.each(EVIDENCE, |id, fields| {
        let mut fields = fields.of_version(VERSION)?;
        let id = VatId::from_bytes(id)?;
        let turn = fields.number()?;
        let length = usize::from(u16::from_be_bytes(fields.take()?));
        let (lowest, highest) = fields.rest().split_at_checked(length).ok_or(RowError::Length)?;
        let (lowest, highest) = (SignedPacket::verify(id, lowest)?, SignedPacket::verify(id, highest)?);
        restoring.evidence(Evidence::of(lowest, highest).ok_or(RowError::Agreement)?, turn);
        Ok(())
    })?;
    reading.each(INVITES, |hash, fields| {
        let mut fields = fields.of_version(VERSION)?;
        let (uses, made, until) = (u32::from_be_bytes(fields.take()?), fields.time()?, fields.time()?);
        let note = str::from_utf8(fields.rest()).map_err(|_| RowError::Note)?.to_owned();
        let until = Some(until).filter(|until| *until != NEVER);
        restoring.invite(InviteHash::from_bytes(hash), InviteTerms { uses, made, until, note });
        Ok(())
    })?;
    Ok(match reading.error {
        Some(error) => Err(error),
        None if !leases.is_empty() => Err(RowError::Unpaired),
        None => Ok(anew),
    })
}

/// Reads space after space until a row is none of ours.
struct Reading<'a, S> {
    source: &'a S,
    error: Option<RowError>,
}

impl<S: Source> Reading<'_, S> {
    fn each(
        &mut self,
        space: u64,
        mut visit: impl FnMut(Id, Fields<'_>) -> Result<(), RowError>,
    ) -> Result<(), StoreError> {
        let error = &mut self.error;
        self.source.for_each_row(space, &mut |name, value| {
            if error.is_none() {
                *error = id(name).and_then(|id| visit(id, Fields::of(value)?)).err();
            }
        })
    }
}

/// Ids of rows were checked when they were registered; to find each again on the curve would take most of a start.
fn id(name: &[u8]) -> Result<Id, RowError> {
    Ok(name.try_into().map_err(|_| IdentityError::Length { found: name.len() })?)
}

/// Reads the fields of a value from its beginning.
struct Fields<'a> {
    version: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(value: &'a [u8]) -> Result<Self, RowError> {
        let (version, rest) = value.split_first().ok_or(RowError::Length)?;
        Ok(Self { version: *version, rest })
    }

    fn of_version(self, version: u8) -> Result<Self, RowError> {
        if self.version == version { Ok(self) } else { Err(RowError::Version { found: self.version }) }
    }

    fn take<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], RowError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(RowError::Length)?;
        self.rest = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u64, RowError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn time(&mut self) -> Result<Timestamp, RowError> {
        Ok(Timestamp::from_micros(self.number()?))
    }

    fn rest(self) -> &'a [u8] {
        self.rest
    }

    fn end(self) -> Result<(), RowError> {
        if self.rest.is_empty() { Ok(()) } else { Err(RowError::Length) }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use schemas::{IdentityKey, LocationRecord, SignedRecord, State};

    use super::*;
    use crate::registry::{Admission, Expected, Now, Outcome, Policy, Registry, Seed};

    fn record(turn: u64) -> SignedPacket {
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
        SignedRecord::sign(&IdentityKey::from_seed(&[1; 32]), &record, Timestamp::from_micros(77)).unwrap().into()
    }

    /// Rows in memory.
    #[derive(Clone, Default)]
    struct Rows(BTreeMap<(u64, Vec<u8>), Vec<u8>>);

    impl Source for Rows {
        fn for_each_row(&self, space: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
            for ((_, name), value) in self.0.range((space, Vec::new())..(space + 1, Vec::new())) {
                visit(name, value);
            }
            Ok(())
        }
    }

    impl Rows {
        fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
            for Change { key, value } in changes {
                match value {
                    Some(value) => self.0.insert((key.space, key.name), value),
                    None => self.0.remove(&(key.space, key.name)),
                };
            }
        }

        /// The registry, and what is to be written anew.
        fn restore(&self) -> Result<(Registry, Vec<Change>), RowError> {
            let mut restoring = Registry::restoring(Policy::default(), Seed::of([7; 32]), NOW);
            let anew = read(self, &mut restoring).unwrap()?;
            Ok((restoring.finish(13), anew))
        }
    }

    const NOW: Now = Now { wall: Timestamp::from_seconds(1_000), monotonic: Duration::from_secs(1) };

    fn rows(writes: &[Write]) -> Rows {
        let mut rows = Rows::default();
        rows.apply(writes.iter().map(change));
        rows
    }

    fn writes() -> [Write; 3] {
        let (one, other) = (record(1), record(2));
        let id = *one.id().as_bytes();
        let gone = *IdentityKey::from_seed(&[2; 32]).id().as_bytes();
        let source = SourcePrefix::of(Some([192, 0, 2, 1].into()));
        let (seen, until) = (Timestamp::from_seconds(990), Timestamp::from_seconds(1_005));
        [
            Write::PutRecord { id, source, seen, until, packet: one.packet().into() },
            Write::PutMark { id: gone, mark: HighWaterMark::of(&one), turn: 9 },
            Write::PutEvidence { id, evidence: Evidence::of(other, one).unwrap(), turn: 11 },
        ]
    }

    /// The record of [`writes`] as the first format had it.
    fn first_format() -> [Change; 2] {
        let [Write::PutRecord { id, source, seen, until, packet }, ..] = writes() else { panic!("the first one") };
        [
            row(RECORDS, &id, Some(value(&[&source.to_bits().to_be_bytes(), &packet]))),
            row(LEASES, &id, Some(value(&[&time(seen), &time(until)]))),
        ]
    }

    fn assert_is_restored(registry: &Registry) {
        let (one, id) = (record(1), *record(1).id().as_bytes());
        assert_eq!((registry.turn(), registry.len()), (13, 1));
        let answer = registry.lookup(NOW, &id).reveal(13).unwrap();
        assert_eq!(answer.packet.as_deref(), Some(one.packet()));
        assert_eq!((answer.age, answer.expired), (Duration::from_secs(10), false));
        let later = |seconds| Now { monotonic: Duration::from_secs(seconds), ..NOW };
        assert!(!registry.peek(later(5), &id).unwrap().expired);
        assert!(registry.peek(later(6), &id).unwrap().expired);
        assert_eq!(registry.evidence(&id), Evidence::of(one, record(2)).as_ref());
    }

    #[test]
    fn what_was_written_is_restored() {
        let (mut registry, anew) = rows(&writes()).restore().unwrap();
        assert_is_restored(&registry);
        assert_eq!(anew, []);
        // The mark of a record that is gone: an older one of the same vat is stale.
        let key = IdentityKey::from_seed(&[2; 32]);
        let older = LocationRecord { epoch: 2, ..record(1).record().unwrap().record().clone() };
        let older = SignedRecord::sign(&key, &older, Timestamp::from_micros(77)).unwrap();
        let decision =
            registry.register(NOW, None, key.id().as_bytes(), older.packet(), &Expected::Anything, &Admission::None);
        assert_eq!(decision.outcome.reveal(0), Ok(Outcome::Stale { current: None }));
    }

    #[test]
    fn rows_of_the_first_format_are_restored_and_written_anew() {
        let [_, mark, evidence] = writes();
        let mut old = rows(&[mark, evidence]);
        old.apply(first_format());
        let (registry, anew) = old.restore().unwrap();
        assert_is_restored(&registry);
        old.apply(anew);
        assert!(old.0 == rows(&writes()).0, "as if they had been written today");
        for alone in first_format() {
            let mut rows = Rows::default();
            rows.apply([alone]);
            assert_eq!(rows.restore().unwrap_err(), RowError::Unpaired);
        }
        let [_, lease] = first_format();
        let mut both = rows(&writes());
        both.apply([lease]);
        assert_eq!(both.restore().unwrap_err(), RowError::Unpaired);
    }

    #[test]
    fn rows_that_are_none_are_refused_and_a_newer_programs_are_named_as_such() {
        for write in writes() {
            let changed = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut rows = rows(std::slice::from_ref(&write));
                rows.0.values_mut().for_each(change);
                rows.restore().map(drop).unwrap_err()
            };
            let newer = changed(&|value| value[0] = 3);
            assert_eq!(newer, RowError::Version { found: 3 });
            assert_eq!(newer.code(), ErrorCode::CheckpointVersion);
            assert_eq!(changed(&Vec::clear), RowError::Length);
            for length in 1..25 {
                let cut = changed(&|value| value.truncate(length));
                assert!(matches!(cut, RowError::Length | RowError::Record(_)), "{cut:?}");
            }
            let mut named = Rows::default();
            named.apply([Change { key: RowKey { name: vec![1; 31], ..change(&write).key }, ..change(&write) }]);
            assert_eq!(named.restore().unwrap_err(), RowError::Id(IdentityError::Length { found: 31 }));
        }
    }
}
