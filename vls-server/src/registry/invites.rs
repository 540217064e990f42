//! Invites: whom the operator of a closed server lets in (rule 9).
//!
//! An invite is used in the turn that stores the record of a new id: either both are durable, or neither is, so a crash
//! neither loses a use nor gives one twice, and a vat whose answer was lost is known here when it comes again. Their ends
//! are times of day, for they outlive the process; a clock that was wrong makes one end early or late and does no other
//! harm.

use std::collections::BTreeMap;

use schemas::{Coded, ErrorCode, InviteHash, Timestamp};

use super::{Decision, NotInvited, Registry, Turn, Withheld, Write};
use crate::limits;

/// What the operator has said of an invite, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteTerms {
    /// How many new ids it admits yet; at least 1.
    pub uses: u32,
    /// When it was made.
    pub made: Timestamp,
    /// When it ends; `None`: never.
    pub until: Option<Timestamp>,
    /// For the operator; at most [`limits::INVITE_NOTE_BYTES`].
    pub note: String,
}

/// Why an invite is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NewInviteError {
    /// There are enough.
    #[error("there are {} invites already", limits::MAX_INVITES)]
    TooMany,
    /// Another one has this name.
    #[error("there is an invite with this name already")]
    Exists,
    /// It would admit nobody, or is over already.
    #[error("an invite has at least one use, and ends in the future")]
    Useless,
    /// Its note is too long.
    #[error("a note has at most {} bytes", limits::INVITE_NOTE_BYTES)]
    Note,
}

impl Coded for NewInviteError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::TooMany => ErrorCode::VlsQuota,
            Self::Exists => ErrorCode::VlsEntryExists,
            Self::Useless | Self::Note => ErrorCode::CliUsage,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::TooMany => Some("Revoke some: vls-server invite list".to_owned()),
            Self::Exists => Some("Try again: another one is drawn.".to_owned()),
            Self::Useless | Self::Note => None,
        }
    }
}

/// All invites, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Invites(BTreeMap<InviteHash, InviteTerms>);

impl Invites {
    /// Whether an invite admits anybody now.
    pub(super) fn holds(&self, hash: &InviteHash, wall: Timestamp) -> Result<(), NotInvited> {
        match self.0.get(hash) {
            None => Err(NotInvited::Unknown),
            Some(terms) if terms.until.is_some_and(|until| until <= wall) => Err(NotInvited::Ended),
            Some(_) => Ok(()),
        }
    }

    /// Puts one that was stored.
    pub(super) fn restore(&mut self, hash: InviteHash, terms: InviteTerms) {
        self.0.insert(hash, terms);
    }

    /// Takes one use of an invite that holds.
    pub(super) fn consume(&mut self, hash: InviteHash, turn: &mut Turn) {
        let Some(terms) = self.0.get_mut(&hash) else {
            debug_assert!(false, "what is used holds");
            return;
        };
        terms.uses = terms.uses.saturating_sub(1);
        if terms.uses > 0 {
            turn.writes.push(Write::PutInvite { hash, terms: terms.clone() });
        } else {
            self.remove(hash, turn);
        }
    }

    fn put(&mut self, hash: InviteHash, terms: InviteTerms, turn: &mut Turn) {
        turn.writes.push(Write::PutInvite { hash, terms: terms.clone() });
        self.0.insert(hash, terms);
    }

    fn remove(&mut self, hash: InviteHash, turn: &mut Turn) {
        self.0.remove(&hash);
        turn.writes.push(Write::RemoveInvite { hash });
    }

    /// The invite that people call so; no two have the same name.
    fn named(&self, name: &str) -> Option<InviteHash> {
        self.0.keys().find(|hash| hash.to_string() == name).copied()
    }
}

impl Registry {
    /// Adds an invite. Those that have ended meanwhile go.
    ///
    /// # Errors
    /// [`NewInviteError`]; nothing has changed then.
    pub fn invite(&mut self, hash: InviteHash, terms: InviteTerms) -> Result<Decision<()>, NewInviteError> {
        let has_ended = |other: &InviteTerms| other.until.is_some_and(|until| until <= terms.made);
        if terms.uses == 0 || has_ended(&terms) {
            return Err(NewInviteError::Useless);
        }
        if terms.note.len() > limits::INVITE_NOTE_BYTES {
            return Err(NewInviteError::Note);
        }
        if self.invites.named(&hash.to_string()).is_some() {
            return Err(NewInviteError::Exists);
        }
        let ended: Vec<InviteHash> =
            self.invites.0.iter().filter(|(_, other)| has_ended(other)).map(|(hash, _)| *hash).collect();
        if self.invites.0.len() - ended.len() >= limits::MAX_INVITES {
            return Err(NewInviteError::TooMany);
        }
        let mut turn = self.begin();
        for hash in ended {
            self.invites.remove(hash, &mut turn);
        }
        self.invites.put(hash, terms, &mut turn);
        Ok(self.end(turn, ()))
    }

    /// Takes the invite with this name back; `None` if there is none.
    pub fn revoke_invite(&mut self, name: &str) -> Option<Decision<()>> {
        let hash = self.invites.named(name)?;
        let mut turn = self.begin();
        self.invites.remove(hash, &mut turn);
        Some(self.end(turn, ()))
    }

    /// All invites, for the operator, withheld until what they say is durable.
    pub fn invites(&self) -> Withheld<Vec<(InviteHash, InviteTerms)>> {
        let invites = self.invites.0.iter().map(|(hash, terms)| (*hash, terms.clone())).collect();
        Withheld::until(self.turn, invites)
    }

    /// How many invites there are, those that have ended included.
    #[must_use]
    pub fn invite_count(&self) -> usize {
        self.invites.0.len()
    }
}
