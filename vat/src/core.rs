//! The vat itself, without a network: its identity, its objects, and who was granted them.
//!
//! Everything a vat is lives in its checkpoint: the seed of its identity, its objects with their kinds and rows, what
//! they refer to, and its grants. This module reads and changes them through turns and nothing else,
//! so whatever hosts a vat (the process of `vat run`, a command while the vat sleeps) keeps the same rules.

mod error;
mod grants;
mod sweep;
mod transfer;
mod upgrade;

use std::{cell::RefCell, collections::HashMap, path::Path, rc::Rc, sync::Arc};

use capnp::private::capability::ClientHook;
use checkpoint::{Change, Disk, Protection, RowKey, Store, StoreOptions, TurnDelta};
use schemas::{IdentityKey, Secret, SecretHash, Timestamp, VatId};
use zeroize::Zeroizing;

pub use self::{error::VatError, grants::Grant, sweep::Swept};
use crate::{
    engine::{Clock, Engine, Outputs},
    kinds::Kinds,
    object::{Authority, Kind, ObjectId, ObjectTable, decode_row, encode_row},
    tables::{
        Description, FIRST_OBJECT, ROW_SEED, ROW_VAT, SPACE_GRANTS, SPACE_IDENTITY, SPACE_OBJECTS, SPACE_VAT,
        object_of_name,
    },
};

/// A vat whose checkpoint is open in this process.
pub struct Vat {
    engine: Rc<Engine>,
    key: IdentityKey,
    objects: Rc<ObjectTable>,
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
    /// [`VatError::NotAVat`], also if it names one of the vat's own tables as an object;
    /// [`ObjectError::UnknownKind`](crate::ObjectError::UnknownKind) if the root is of no kind
    /// that this program knows; [`ObjectError::NewerRow`](crate::ObjectError::NewerRow) if a newer program has stored
    /// rows that this one cannot read; or what the checkpoint refuses.
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
        upgrade::refuse_newer(&store, &kinds)?;
        let engine = Rc::new(Engine::new(store, clock, outputs));
        let description = description(&engine)?;
        check_numbers(&engine, &description)?;
        kinds.find(&description.root_kind)?;
        let objects = Rc::new(ObjectTable::new(engine.clone(), kinds, &description));
        Ok(Self { engine, key, objects, authorities: RefCell::default() })
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
        self.objects.kinds()
    }

    /// The kind of the root object.
    ///
    /// # Errors
    /// Never, since a vat whose root is of an unknown kind cannot be opened.
    pub fn root_kind(&self) -> Result<&Kind, VatError> {
        Ok(self.objects.kind_of(self.objects.root())?)
    }

    /// The root object, by the owner's own right.
    ///
    /// # Errors
    /// When the object's rows cannot be read.
    pub fn root(&self) -> Result<(Box<dyn ClientHook>, u64), VatError> {
        self.reach(self.objects.root(), Authority::default())
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

    /// The object that a capability stands for, if it is one that this vat has handed out.
    #[must_use]
    pub fn object_of(&self, capability: &dyn ClientHook) -> Option<ObjectId> {
        self.objects.object_of(capability)
    }

    /// All objects with the names of their kinds, the root first.
    ///
    /// # Errors
    /// When the vat's own rows cannot be read.
    pub fn objects(&self) -> Result<Vec<(ObjectId, String)>, VatError> {
        let mut objects = vec![(self.objects.root(), self.objects.root_kind().to_owned())];
        objects.extend(self.objects.others()?);
        Ok(objects)
    }

    /// How many objects there are.
    ///
    /// # Errors
    /// When the vat's own rows cannot be read.
    pub fn object_count(&self) -> Result<u64, VatError> {
        Ok(1 + self.objects.count_others()? as u64)
    }

    fn reach(&self, object: ObjectId, authority: Authority) -> Result<(Box<dyn ClientHook>, u64), VatError> {
        let interface_id = self.objects.kind_of(object)?.interface_id();
        Ok((self.objects.activate(object, authority)?, interface_id))
    }

    fn description(&self) -> Result<Description, VatError> {
        description(&self.engine)
    }
}

/// Refuses a checkpoint in which something is called an object that cannot be one.
///
/// An image can come from anybody. If one of the vat's own tables were an object, whoever is granted it could read and
/// write grants, and the identity itself; and a number that is still to be given away would lead to two objects.
fn check_numbers(engine: &Engine, description: &Description) -> Result<(), VatError> {
    let numbers = FIRST_OBJECT..description.next_object;
    if !numbers.contains(&description.root) {
        return Err(VatError::NotAVat("the number of its root is not one of an object"));
    }
    let possible = |name: &Vec<u8>| {
        object_of_name(name).is_some_and(|object| numbers.contains(&object.0) && object.0 != description.root)
    };
    match engine.with_rows(SPACE_OBJECTS, |rows| rows.keys().all(possible))? {
        true => Ok(()),
        false => Err(VatError::NotAVat("it names an object with a number that is not one of an object")),
    }
}

fn description(engine: &Engine) -> Result<Description, VatError> {
    let row = engine.get(SPACE_VAT, ROW_VAT)?.ok_or(VatError::NotAVat("it does not say what it is"))?;
    Ok(decode_row(&row)?)
}
