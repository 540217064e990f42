//! The vat itself, without a network: its identity, its objects, and who was granted them.
//!
//! Everything a vat is lives in its checkpoint: the seed of its identity, the kind of its root object, its
//! grants, and the rows of its objects. This module reads and changes them through turns and nothing else,
//! so whatever hosts a vat (the process of `vat run`, a command while the vat sleeps) keeps the same rules.
//!
//! A grant stores the hash of a secret and never the secret (DESIGN §3): whoever reads the checkpoint
//! learns who was granted something, and can impersonate nobody.

mod transfer;

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    path::Path,
    rc::Rc,
    sync::Arc,
};

use capnp::private::capability::ClientHook;
use checkpoint::{Change, Disk, Protection, RowKey, Store, StoreError, StoreOptions, TurnDelta};
use schemas::{Coded, ErrorCode, IdentityKey, Secret, SecretHash, Timestamp, VatId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    engine::{Clock, Engine, Outputs},
    kinds::Kinds,
    limits::{MAX_GRANTS, MAX_LABEL_BYTES},
    object::{Authority, Kind, ObjectError, ObjectId, State, decode_row, encode_row},
};

/// Spaces of the vat's own tables. Objects take the numbers from [`FIRST_OBJECT`] on.
const SPACE_IDENTITY: u64 = 0;
const SPACE_VAT: u64 = 1;
const SPACE_GRANTS: u64 = 2;
const FIRST_OBJECT: u64 = 16;

const ROW_SEED: &[u8] = b"seed";
const ROW_VAT: &[u8] = b"vat";

/// What the vat knows of itself.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Description {
    root: u64,
    root_kind: String,
    next_object: u64,
    next_grant: u64,
}

impl State for Description {
    const TYPE: &'static str = "vat.description";
}

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

/// Why a vat cannot be made, opened or changed by its owner.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VatError {
    /// The checkpoint refused.
    #[error(transparent)]
    Checkpoint(#[from] StoreError),
    /// A turn failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// This program does not know the kind of the root object.
    #[error("this program has no object of kind {kind:?}; it knows {known}")]
    UnknownKind {
        /// The kind that was asked for, or that the checkpoint names.
        kind: String,
        /// The kinds that it knows, for the message.
        known: String,
    },
    /// The checkpoint lacks a row that every vat has, or the identity in it is another one.
    #[error("the checkpoint is not one of a vat: {0}")]
    NotAVat(&'static str),
    /// The secret was never granted, was revoked, or has expired.
    #[error("the vat knows no such reference")]
    Denied,
    /// No grant has this number.
    #[error("this vat has no grant number {number}")]
    NoSuchGrant {
        /// The number that was asked for.
        number: u64,
    },
    /// The label of a grant is too long.
    #[error("a label has at most {MAX_LABEL_BYTES} bytes, this one has {found}")]
    LabelTooLong {
        /// Its size in bytes.
        found: usize,
    },
    /// The vat has as many grants as it keeps.
    #[error("this vat has {MAX_GRANTS} grants already; revoke some first")]
    TooManyGrants,
    /// The operating system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Coded for VatError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Checkpoint(error) => error.code(),
            Self::Object(error) => error.code(),
            Self::UnknownKind { .. } => ErrorCode::VatUnknownObject,
            Self::NotAVat(_) => ErrorCode::CheckpointDamaged,
            Self::Denied => ErrorCode::RefDenied,
            Self::NoSuchGrant { .. } => ErrorCode::RefNotFound,
            Self::LabelTooLong { .. } => ErrorCode::ObjectTooLarge,
            Self::TooManyGrants => ErrorCode::RefLimit,
            Self::Random(_) => ErrorCode::SystemRandom,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.next(),
            Self::Object(error) => error.next(),
            _ => None,
        }
    }
}

/// A vat whose checkpoint is open in this process.
pub struct Vat {
    engine: Rc<Engine>,
    key: IdentityKey,
    kinds: Kinds,
    /// The authority of each grant through which something was reached since the vat woke.
    authorities: RefCell<HashMap<SecretHash, Authority>>,
}

impl Vat {
    /// Makes the checkpoint of a new vat in `directory`, durably, and returns its id.
    ///
    /// # Errors
    /// [`VatError::UnknownKind`], [`VatError::Random`], or what the checkpoint refuses.
    pub fn create(
        disk: Arc<dyn Disk>,
        directory: &Path,
        protection: &Protection,
        kinds: &Kinds,
        kind: &str,
    ) -> Result<VatId, VatError> {
        kinds.find(kind)?;
        let key = IdentityKey::generate()?;
        let store = Store::create(disk, directory, key.id().as_bytes(), protection, StoreOptions::default())?;
        let description = Description {
            root: FIRST_OBJECT,
            root_kind: kind.to_owned(),
            next_object: FIRST_OBJECT + 1,
            next_grant: 1,
        };
        let row = |space, name: &[u8], value| Change { key: RowKey { space, name: name.to_vec() }, value: Some(value) };
        let changes = vec![
            row(SPACE_IDENTITY, ROW_SEED, key.seed().to_vec()),
            row(SPACE_VAT, ROW_VAT, encode_row(&description)?),
        ];
        store.submit(TurnDelta { turn: 1, changes })?;
        store.wait_durable(1)?;
        store.close()?;
        Ok(key.id())
    }

    /// Takes over an open checkpoint (see [`Engine::new`]).
    ///
    /// # Errors
    /// [`VatError::NotAVat`], [`VatError::UnknownKind`], or what the checkpoint refuses.
    pub fn open(
        store: Store,
        id: VatId,
        kinds: Kinds,
        clock: Clock,
        outputs: Box<dyn Outputs>,
    ) -> Result<Self, VatError> {
        let seed = store.get(&RowKey { space: SPACE_IDENTITY, name: ROW_SEED.to_vec() })?.map(Zeroizing::new);
        let seed = seed.ok_or(VatError::NotAVat("it holds no identity"))?;
        let seed: Zeroizing<[u8; 32]> =
            Zeroizing::new(seed.as_slice().try_into().map_err(|_| VatError::NotAVat("its identity has a wrong size"))?);
        let key = IdentityKey::from_seed(&seed);
        if key.id() != id {
            return Err(VatError::NotAVat("the identity in it is another one than its folder says"));
        }
        let vat =
            Self { engine: Rc::new(Engine::new(store, clock, outputs)), key, kinds, authorities: RefCell::default() };
        vat.root_kind()?;
        Ok(vat)
    }

    /// The vat's id.
    #[must_use]
    pub fn id(&self) -> VatId {
        self.key.id()
    }

    /// The vat's identity, to sign its records and to prove itself in sessions.
    #[must_use]
    pub fn key(&self) -> &IdentityKey {
        &self.key
    }

    /// The engine that runs its turns.
    #[must_use]
    pub fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    /// The kinds of objects that this program can make.
    #[must_use]
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// The kind of the root object.
    ///
    /// # Errors
    /// [`VatError::UnknownKind`] if this program does not know it.
    pub fn root_kind(&self) -> Result<&Kind, VatError> {
        self.kinds.find(&self.description()?.root_kind)
    }

    /// The root object, by the owner's own right.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn root(&self) -> Result<(Box<dyn ClientHook>, u64), VatError> {
        self.reach(ObjectId(self.description()?.root), Authority::default())
    }

    /// Exchanges a secret for the object that it was granted for.
    ///
    /// # Errors
    /// [`VatError::Denied`], the same for every reason: a caller learns nothing from it.
    pub fn restore(&self, secret: &Secret) -> Result<(Box<dyn ClientHook>, u64), VatError> {
        let hash = secret.hash();
        let row = self.engine.get(SPACE_GRANTS, hash.as_bytes())?.ok_or(VatError::Denied)?;
        let grant: Grant = decode_row(&row)?;
        let expires = grant.expires.map(Timestamp::from_seconds);
        if expires.is_some_and(|expires| expires <= self.engine.now()) {
            return Err(VatError::Denied);
        }
        let authority = self
            .authorities
            .borrow_mut()
            .entry(hash)
            .or_insert_with(|| Authority { expires, ..Authority::default() })
            .clone();
        self.reach(ObjectId(grant.object), authority)
    }

    /// Grants the root object to whoever will know the returned secret. The secret is not kept.
    ///
    /// With a `parent`, the grant dies when that one is revoked. It is made by a turn: show the secret only once that turn is durable (R3).
    ///
    /// # Errors
    /// [`VatError::LabelTooLong`], [`VatError::TooManyGrants`], or what the turn refuses.
    pub fn grant(&self, label: &str, expires: Option<u64>, parent: Option<u64>) -> Result<Secret, VatError> {
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
                object: description.root,
                created_at: turn.time().as_seconds(),
                expires,
                parent,
            };
            description.next_grant += 1;
            turn.put(SPACE_VAT, ROW_VAT, encode_row(&description)?)?;
            turn.put(SPACE_GRANTS, secret.hash().as_bytes(), encode_row(&grant)?)?;
            Ok::<(), ObjectError>(())
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
        for hash in ended {
            if let Some(authority) = self.authorities.borrow_mut().remove(&hash) {
                authority.revoked.set(true);
            }
        }
        Ok(())
    }

    /// How many objects there are.
    ///
    /// # Errors
    /// When the vat's own rows cannot be read.
    pub fn object_count(&self) -> Result<u64, VatError> {
        Ok(self.description()?.next_object - FIRST_OBJECT)
    }

    fn reach(&self, object: ObjectId, authority: Authority) -> Result<(Box<dyn ClientHook>, u64), VatError> {
        let kind = self.root_kind()?;
        Ok((kind.activate(&self.engine, object, authority)?, kind.interface_id()))
    }

    fn description(&self) -> Result<Description, VatError> {
        let row = self.engine.get(SPACE_VAT, ROW_VAT)?.ok_or(VatError::NotAVat("it does not say what it is"))?;
        Ok(decode_row(&row)?)
    }
}
