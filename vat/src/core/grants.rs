//! Grants: who may reach which object, until when, and under whose grant.
//!
//! A grant stores the hash of a secret and never the secret (DESIGN §3): whoever reads the checkpoint
//! learns who was granted something, and can impersonate nobody.

use std::collections::BTreeSet;

use schemas::{Secret, SecretHash};
use serde::{Deserialize, Serialize};

use super::{Vat, VatError};
use crate::{
    limits::{MAX_GRANTS, MAX_LABEL_BYTES},
    object::{ObjectError, ObjectId, State, decode_row, put_own},
    tables::{ROW_VAT, SPACE_GRANTS, SPACE_VAT},
};

/// One grant: the right to reach one object, for whoever knows the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Counts the vat's grants from 1; never used again.
    pub number: u64,
    /// The owner's note of whom it was made for.
    pub label: String,
    /// The object that it reaches.
    pub object: u64,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
    /// When it ends, in seconds since 1970; `None`: never.
    pub expires: Option<u64>,
    /// The number of the grant with which it dies.
    pub parent: Option<u64>,
}

impl State for Grant {
    const TYPE: &'static str = "vat.grant";
}

impl Vat {
    /// Grants the root object to whoever will know the returned secret. The secret is not kept.
    ///
    /// With a `parent`, the grant dies when that one is revoked. It is made by a turn: show the secret only once that turn is durable (R3).
    ///
    /// # Errors
    /// [`VatError::LabelTooLong`], [`VatError::TooManyGrants`], or what the turn refuses.
    pub fn grant(&self, label: &str, expires: Option<u64>, parent: Option<u64>) -> Result<Secret, VatError> {
        self.grant_object(self.objects.root(), label, expires, parent)
    }

    /// The same for any object of the vat ([`Vat::object_of`]).
    ///
    /// # Errors
    /// As [`Vat::grant`]; [`ObjectError::NoSuchObject`].
    pub fn grant_object(
        &self,
        object: ObjectId,
        label: &str,
        expires: Option<u64>,
        parent: Option<u64>,
    ) -> Result<Secret, VatError> {
        self.objects.kind_of(object)?;
        if label.len() > MAX_LABEL_BYTES {
            return Err(VatError::LabelTooLong { found: label.len() });
        }
        if self.engine.with_rows(SPACE_GRANTS, std::collections::BTreeMap::len)? >= MAX_GRANTS {
            return Err(VatError::TooManyGrants);
        }
        let expires = match parent {
            None => expires,
            Some(number) => {
                let now = self.engine.now().as_seconds();
                let alive = |grant: &Grant| grant.number == number && grant.expires.is_none_or(|end| end > now);
                let grants = self.grants()?;
                let parent = grants.iter().find(|(_, grant)| alive(grant)).ok_or(VatError::NoSuchGrant { number })?;
                // A child dies with its parent, which by the same rule ends no later than its own.
                [expires, parent.1.expires].into_iter().flatten().min()
            }
        };
        let secret = Secret::generate()?;
        let mut description = self.description()?;
        self.engine.turn(|turn| {
            let grant = Grant {
                number: description.next_grant,
                label: label.to_owned(),
                object: object.number(),
                created_at: turn.time().as_seconds(),
                expires,
                parent,
            };
            description.next_grant += 1;
            put_own(turn, SPACE_VAT, ROW_VAT, &description)?;
            put_own(turn, SPACE_GRANTS, secret.hash().as_bytes(), &grant)
        })?;
        Ok(secret)
    }

    /// All grants with the hashes of their secrets, in the order in which they were made.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn grants(&self) -> Result<Vec<(SecretHash, Grant)>, VatError> {
        let rows = self.engine.with_rows(SPACE_GRANTS, Clone::clone)?;
        let mut grants = rows
            .iter()
            .map(|(hash, row)| {
                let hash = hash.as_slice().try_into().map_err(|_| VatError::NotAVat("a grant has a wrong name"))?;
                Ok((SecretHash::from_bytes(hash), decode_row::<Grant>(row)?))
            })
            .collect::<Result<Vec<_>, VatError>>()?;
        grants.sort_by_key(|(_, grant)| grant.number);
        Ok(grants)
    }

    /// The name of the kind of the object that a grant reaches, whether or not this program knows it.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchObject`], or when the vat's own rows cannot be read.
    pub fn kind_name(&self, grant: &Grant) -> Result<String, VatError> {
        Ok(self.objects.kind_name(ObjectId(grant.object))?)
    }

    /// Ends a grant and every grant that was made from it, together with the capabilities that were reached
    /// through them.
    ///
    /// # Errors
    /// [`VatError::NoSuchGrant`], or what the turn refuses.
    pub fn revoke(&self, number: u64) -> Result<(), VatError> {
        let grants = self.grants()?;
        if !grants.iter().any(|(_, grant)| grant.number == number) {
            return Err(VatError::NoSuchGrant { number });
        }
        // Children have higher numbers than their parents, so one pass in order finds all descendants.
        let mut numbers = BTreeSet::from([number]);
        let mut ended = Vec::new();
        for (hash, grant) in grants {
            if numbers.contains(&grant.number) || grant.parent.is_some_and(|parent| numbers.contains(&parent)) {
                numbers.insert(grant.number);
                ended.push(hash);
            }
        }
        self.engine.turn(|turn| {
            ended.iter().try_for_each(|hash| turn.remove(SPACE_GRANTS, hash.as_bytes())).map_err(ObjectError::from)
        })?;
        self.objects.litter();
        for hash in ended {
            if let Some(authority) = self.authorities.borrow_mut().remove(&hash) {
                authority.revoked.set(true);
            }
        }
        Ok(())
    }
}
