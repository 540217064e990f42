//! The vat's own location record, and what the search path knew of it before (R7).

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use checkpoint::{Position, Store};
use schemas::{
    Address, Coded, ErrorCode, LocationRecord, RecordError, SearchPathEntry, SignedRecord, State, Timestamp, VatId,
    vat_capnp,
};
use vls_client::{
    Attempt, EntryReport, Expected, Newest, Outcome, Reading, RecordDates, RecordSource, RegisterError, Resolver,
};

use super::RunError;
use crate::{
    core::Vat,
    home::Name,
    limits::{DORMANT_VALIDITY, KEPT_RECORDS, RECORD_VALIDITY},
};

/// What a record's `h=` says: which start of the vat signed it, and the head of its chain of frames. 16 hex
/// digits each, of 64 bits: an accident will not repeat them, and an attacker cannot sign.
fn chain_head(incarnation: [u8; 16], chain_head: [u8; 16]) -> String {
    let digits = |bytes: &[u8]| bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
    digits(&incarnation) + &digits(&chain_head)
}

/// Whether a record was signed by the start of the vat that drew this incarnation. An epoch belongs to one
/// start, so a record of the same epoch with another incarnation is another copy's.
fn is_signed_by(incarnation: [u8; 16], epoch: u64, record: &LocationRecord) -> bool {
    let own = chain_head(incarnation, [0; 16]);
    record.epoch == epoch && record.chain_head.as_ref().is_some_and(|head| head.get(..16) == own.get(..16))
}

/// Signs the vat's record as it is at each moment.
pub(super) struct OwnRecord {
    vat: Rc<Vat>,
    epoch: u64,
    incarnation: [u8; 16],
    search_path: Vec<SearchPathEntry>,
    addresses: RefCell<Vec<Address>>,
    state: Cell<State>,
    /// The newest records that were signed, the last one first: by the vat's clock, and by those of servers that are
    /// behind it.
    newest: RefCell<VecDeque<SignedRecord>>,
    dates: RecordDates,
}

impl OwnRecord {
    pub(super) fn new(
        vat: Rc<Vat>,
        epoch: u64,
        incarnation: [u8; 16],
        addresses: Vec<Address>,
        search_path: Vec<SearchPathEntry>,
    ) -> Self {
        Self {
            vat,
            epoch,
            incarnation,
            search_path,
            addresses: RefCell::new(addresses),
            state: Cell::new(State::Live),
            newest: RefCell::default(),
            dates: RecordDates::default(),
        }
    }

    pub(super) fn addresses(&self) -> Vec<Address> {
        self.addresses.borrow().clone()
    }

    /// Whether that changed anything.
    pub(super) fn set_addresses(&self, addresses: Vec<Address>) -> bool {
        self.addresses.replace(addresses.clone()) != addresses
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.set(state);
    }
}

impl RecordSource for OwnRecord {
    fn current(&self, now: Reading) -> Result<SignedRecord, RecordError> {
        let durable = self.vat.engine().durable();
        let awake = self.state.get() == State::Live;
        let mut record = LocationRecord {
            epoch: self.epoch,
            turn: durable.turn,
            chain_head: Some(chain_head(self.incarnation, durable.chain_head)),
            state: self.state.get(),
            expires: Timestamp::default(),
            addresses: if awake { self.addresses() } else { Vec::new() },
            search_path: self.search_path.clone(),
            document: None,
        };
        record.addresses.truncate(schemas::limits::MAX_ADDRESSES);
        record.search_path.truncate(schemas::limits::MAX_SEARCH_PATH);
        let is_of_use = |newest: &&SignedRecord| {
            still_says(newest, &record, now.time()) && self.dates.may_offer(newest.timestamp(), now)
        };
        if let Some(newest) = self.newest.borrow().iter().find(is_of_use) {
            return Ok(newest.clone());
        }
        let timestamp = self.dates.next(now);
        record.expires = timestamp.saturating_add(if awake { RECORD_VALIDITY } else { DORMANT_VALIDITY });
        // The first addresses and entries are the most useful ones; what does not fit stays out.
        loop {
            match SignedRecord::sign(self.vat.key(), &record, timestamp) {
                Err(error) if error.code() == ErrorCode::RecordTooLarge => {
                    if record.search_path.pop().is_none() && record.addresses.pop().is_none() {
                        return Err(error);
                    }
                }
                signed => {
                    let signed = signed?;
                    let mut newest = self.newest.borrow_mut();
                    newest.truncate(KEPT_RECORDS - 1);
                    newest.push_front(signed.clone());
                    return Ok(signed);
                }
            }
        }
    }

    fn is_own(&self, record: &SignedRecord) -> bool {
        is_signed_by(self.incarnation, self.epoch, record.record())
    }

    fn accepted(&self, record: &SignedRecord) {
        self.dates.accepted(record.timestamp());
    }
}

/// Whether `signed` says the same as a record that would be signed now, its end aside, and for long enough: then a server
/// that has it needs to be told nothing new, and has nothing to check.
fn still_says(signed: &SignedRecord, record: &LocationRecord, now: Timestamp) -> bool {
    let said = signed.record();
    let is_same = *said == LocationRecord { expires: said.expires, ..record.clone() };
    is_same && said.expires.saturating_since(now) >= RECORD_VALIDITY / 2
}

/// What the search path knew of the vat when it woke.
pub(crate) struct Seen {
    newest: Option<Newest>,
}

impl Seen {
    pub(super) fn nothing() -> Self {
        Self { newest: None }
    }

    pub(super) async fn ask(resolver: &Resolver, id: VatId) -> Self {
        Self { newest: Some(resolver.newest(id).await) }
    }

    fn record(&self) -> Option<&SignedRecord> {
        self.newest.as_ref()?.record.as_ref()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.record().map_or(0, |record| record.record().epoch)
    }

    pub(super) fn turn(&self) -> u64 {
        self.record().map_or(0, |record| record.record().turn)
    }

    /// Whether the newest record says that the vat is awake, and has not run out.
    pub(super) fn is_live(&self, now: Timestamp) -> bool {
        self.record().is_some_and(|record| record.record().state == State::Live && record.record().expires > now)
    }

    pub(super) fn anyone_answered(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.witnesses() > 0)
    }

    /// One line per entry that was asked.
    pub(super) fn reasons(&self) -> String {
        let attempts = self.newest.iter().flat_map(|newest| &newest.attempts);
        let line = |attempt: &Attempt| {
            let counts = attempt.is_testimony() || !attempt.outcome.is_answer();
            let why_not =
                if counts { "" } else { ", which only a location server's own word would prove to be the newest" };
            format!("  {attempt}{why_not}")
        };
        attempts.map(line).collect::<Vec<_>>().join("\n")
    }

    /// The record that the first registration expects to find: of two copies that wake at the same time and
    /// both saw it, only one can replace it.
    pub(super) fn expected(&self) -> Expected {
        self.record().map_or(Expected::Absent, |record| Expected::Order(record.order()))
    }

    /// Whether the checkpoint is the newest state that anybody knows of.
    pub(super) fn compare(&self, name: &Name, store: &Store) -> Result<(), RunError> {
        let Some(record) = self.record() else { return Ok(()) };
        let own = store.durable();
        rolled_back(name, own, record, || self.witness())?;
        // A record that this copy signed in its last epoch is what every vat finds that was killed.
        if is_signed_by(store.incarnation(), own.epoch, record.record()) {
            return Ok(());
        }
        fence(name, Standing { epoch: own.epoch, turn: own.turn }, record)
    }

    /// Who showed the record.
    fn witness(&self) -> String {
        let is_the_one = |outcome: &Outcome| match outcome {
            Outcome::Record { summary, .. } | Outcome::Lapsed { summary, .. } => {
                self.record().is_some_and(|record| record.timestamp() == summary.timestamp)
            }
            _ => false,
        };
        let attempts = self.newest.iter().flat_map(|newest| &newest.attempts);
        let witness = attempts.into_iter().find(|attempt| is_the_one(&attempt.outcome));
        witness.map_or_else(|| "a location server".to_owned(), |attempt| attempt.candidate.to_string())
    }
}

/// How far a copy of a vat has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) epoch: u64,
    pub(super) turn: u64,
}

/// Refuses to go on beside a copy of this epoch or a later one.
pub(super) fn fence(name: &Name, own: Standing, rival: &SignedRecord) -> Result<(), RunError> {
    let seen = rival.record();
    if seen.epoch < own.epoch {
        return Ok(());
    }
    Err(RunError::Fenced {
        name: name.clone(),
        own_epoch: own.epoch,
        own_turn: own.turn,
        seen_epoch: seen.epoch,
        seen_turn: seen.turn,
    })
}

/// Refuses to go on from a state that the vat has left behind. Turns are durable before a record tells of
/// them and never taken back, so a record of a later turn proves it, whatever its epoch.
fn rolled_back(
    name: &Name,
    own: Position,
    record: &SignedRecord,
    witness: impl FnOnce() -> String,
) -> Result<(), RunError> {
    let seen = record.record();
    if seen.turn <= own.turn {
        return Ok(());
    }
    Err(RunError::RolledBack {
        name: name.clone(),
        own_turn: own.turn,
        own_epoch: own.epoch,
        seen_turn: seen.turn,
        seen_epoch: seen.epoch,
        witness: witness(),
    })
}

/// Whether any entry has shown that another copy of the vat is ahead, or that this one is behind its own word.
/// `begun_at` is where the checkpoint stood when the vat woke, or the later turn that was taken over from.
pub(super) fn check_rivals(
    name: &Name,
    own: Standing,
    begun_at: Position,
    record: &OwnRecord,
    reports: &[EntryReport],
) -> Result<(), RunError> {
    for report in reports {
        let Some(shown) = report.error().and_then(RegisterError::shown).filter(|shown| !record.is_own(shown)) else {
            continue;
        };
        rolled_back(name, begun_at, shown, || report.entry.to_string())?;
        fence(name, own, shown)?;
    }
    Ok(())
}

/// Whether another copy is seen at the search path while this one runs.
pub(super) fn check_newest(name: &Name, own: Standing, record: &OwnRecord, newest: &Newest) -> Result<(), RunError> {
    match &newest.record {
        Some(shown) if !record.is_own(shown) => fence(name, own, shown),
        _ => Ok(()),
    }
}

/// Whether an entry has another record than the one that was expected, although no copy is ahead: it was away
/// when the newer one was registered.
pub(super) fn has_older_record(reports: &[EntryReport]) -> bool {
    reports.iter().any(|report| matches!(report.error(), Some(RegisterError::Unexpected { .. })))
}

/// How one entry stands, for the owner.
pub(super) fn describe(report: &EntryReport, mut out: vat_capnp::registration::Builder<'_>) {
    out.set_entry(report.entry.to_string());
    out.set_last_success(report.last_success.map_or(0, Timestamp::as_seconds));
    if let Some(error) = report.error() {
        out.set_code(error.code().as_str());
        out.set_message(error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use schemas::IdentityKey;

    use super::*;

    fn record(turn: u64) -> LocationRecord {
        LocationRecord {
            epoch: 3,
            turn,
            chain_head: Some(chain_head([1; 16], [2; 16])),
            state: State::Live,
            expires: Timestamp::default(),
            addresses: vec!["quic:192.0.2.1:4433".parse().unwrap()],
            search_path: Vec::new(),
            document: None,
        }
    }

    #[test]
    fn a_record_is_used_again_while_it_is_true_and_lasts() {
        let start = Timestamp::from_seconds(1_800_000_000);
        let key = IdentityKey::from_seed(&[7; 32]);
        let expires = start.saturating_add(RECORD_VALIDITY);
        let signed = SignedRecord::sign(&key, &LocationRecord { expires, ..record(9) }, start).unwrap();
        let at = |seconds| start.saturating_add(Duration::from_secs(seconds));
        assert!(still_says(&signed, &record(9), at(0)));
        assert!(still_says(&signed, &record(9), at(3600)), "it lasts for a usual lease");
        assert!(!still_says(&signed, &record(9), at(3601)));
        assert!(!still_says(&signed, &record(10), at(0)), "a turn was taken");
        let moved = LocationRecord { addresses: Vec::new(), ..record(9) };
        assert!(!still_says(&signed, &moved, at(0)));
        let asleep = LocationRecord { state: State::Dormant, ..record(9) };
        assert!(!still_says(&signed, &asleep, at(0)));
    }
}
