//! The vat's own location record, and what the search path knew of it before (R7).

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use checkpoint::Position;
use schemas::{
    Address, Coded, LocationRecord, RecordError, SearchPathEntry, SignedRecord, State, Timestamp, VatId, vat_capnp,
};
use vls_client::{EntryReport, Expected, Newest, Outcome, RecordSource, RegisterError, Resolver};

use super::RunError;
use crate::{core::Vat, home::Name, limits::RECORD_VALIDITY};

/// Signs the vat's record as it is at each moment.
pub(super) struct OwnRecord {
    vat: Rc<Vat>,
    epoch: u64,
    search_path: Vec<SearchPathEntry>,
    addresses: RefCell<Vec<Address>>,
    state: Cell<State>,
    /// The timestamp of the newest record that was signed or seen; the next one is later (rule 4).
    last: Cell<Option<Timestamp>>,
}

impl OwnRecord {
    pub(super) fn new(
        vat: Rc<Vat>,
        epoch: u64,
        addresses: Vec<Address>,
        search_path: Vec<SearchPathEntry>,
        not_before: Option<Timestamp>,
    ) -> Self {
        Self {
            vat,
            epoch,
            search_path,
            addresses: RefCell::new(addresses),
            state: Cell::new(State::Live),
            last: Cell::new(not_before),
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
    fn current(&self, now: Timestamp) -> Result<SignedRecord, RecordError> {
        let durable = self.vat.engine().durable();
        let timestamp = match self.last.get() {
            Some(last) if last >= now => Timestamp::from_micros(last.as_micros().saturating_add(1)),
            _ => now,
        };
        self.last.set(Some(timestamp));
        let asleep = self.state.get() != State::Live;
        let record = LocationRecord {
            epoch: self.epoch,
            turn: durable.turn,
            chain_head: Some(durable.chain_head.iter().map(|byte| format!("{byte:02x}")).collect()),
            state: self.state.get(),
            expires: timestamp.saturating_add(RECORD_VALIDITY),
            addresses: if asleep { Vec::new() } else { self.addresses() },
            search_path: self.search_path.clone(),
            document: None,
        };
        SignedRecord::sign(self.vat.key(), &record, timestamp)
    }
}

/// What the search path knew of the vat when it woke.
pub(super) struct Seen {
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

    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        self.record().map(SignedRecord::timestamp)
    }

    pub(super) fn anyone_answered(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.witnesses() > 0)
    }

    /// One line per entry that was asked.
    pub(super) fn reasons(&self) -> String {
        let attempts = self.newest.iter().flat_map(|newest| &newest.attempts);
        attempts.map(|attempt| format!("  {attempt}")).collect::<Vec<_>>().join("\n")
    }

    /// The record that the first registration expects to find: of two copies that wake at the same time and
    /// both saw it, only one can replace it.
    pub(super) fn expected(&self) -> Expected {
        self.record().map_or(Expected::Absent, |record| Expected::Order(record.order()))
    }

    /// Whether the checkpoint is the newest state that anybody knows of.
    pub(super) fn compare(&self, name: &Name, own: Position) -> Result<(), RunError> {
        let Some(record) = self.record() else { return Ok(()) };
        let seen = record.record();
        if seen.turn > own.turn && seen.epoch >= own.epoch {
            return Err(RunError::RolledBack {
                name: name.clone(),
                own_turn: own.turn,
                own_epoch: own.epoch,
                seen_turn: seen.turn,
                seen_epoch: seen.epoch,
                source_name: self.witness(),
            });
        }
        // A record of the checkpoint's own epoch is what every vat finds that was killed.
        if seen.epoch == own.epoch {
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

/// Whether any entry refused the registration because another copy of the vat is ahead.
///
/// A record of our own epoch that we did not sign is another copy as well: an epoch belongs to one start.
pub(super) fn check_fence(name: &Name, own: Standing, reports: &[EntryReport]) -> Result<(), RunError> {
    let rivals = reports.iter().filter_map(EntryReport::error).filter_map(|error| match error {
        RegisterError::Stale { newer: record } | RegisterError::Unexpected { current: record } => record.as_ref(),
        RegisterError::Conflict { other } => Some(other),
        _ => None,
    });
    rivals.into_iter().try_for_each(|rival| fence(name, own, rival))
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
