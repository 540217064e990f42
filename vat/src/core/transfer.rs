//! A vat out of an image: the same one going on, or a copy that is another vat (R8).

use std::{path::Path, sync::Arc};

use checkpoint::{Adoption, Disk, ImageReader, Protection, RowKey, Store, StoreOptions};
use schemas::{IdentityKey, VatId};
use zeroize::Zeroizing;

use super::{Vat, VatError};
use crate::{
    engine::{Clock, NoOutputs},
    kinds::Kinds,
    tables::{ROW_SEED, SPACE_GRANTS, SPACE_IDENTITY},
};

impl Vat {
    /// Makes the checkpoint of the vat that an image shows, at the turn and in the epoch of the image, and opens
    /// it. Nothing is left in `directory` that could be opened if the image is not whole.
    ///
    /// The vat must not run before a witness was asked (R7): the image may be an old one.
    ///
    /// # Errors
    /// What the image or the checkpoint refuses; what [`Vat::open`] refuses.
    pub fn import(
        disk: Arc<dyn Disk>,
        directory: &Path,
        protection: &Protection,
        image: &mut ImageReader<'_>,
        (kinds, clock): (Kinds, Clock),
    ) -> Result<Self, VatError> {
        let not_an_id = |_| VatError::NotAVat("the image names a vat that cannot exist");
        let id = VatId::from_bytes(image.head().vat).map_err(not_an_id)?;
        let store = Store::import(disk, directory, protection, image, Adoption::Continue, StoreOptions::default())?;
        Self::open(store, id, kinds, clock, Box::new(NoOutputs))
    }

    /// The same for a new vat that begins with the objects of the old one: its identity is new, it was never
    /// awake, and nobody was granted anything of it. References to the old vat do not open it, and objects to which
    /// only its grants led are garbage in the new one.
    ///
    /// # Errors
    /// As [`Vat::import`]; [`VatError::Random`].
    pub fn import_as_copy(
        disk: Arc<dyn Disk>,
        directory: &Path,
        protection: &Protection,
        image: &mut ImageReader<'_>,
        (kinds, clock): (Kinds, Clock),
    ) -> Result<Self, VatError> {
        let key = IdentityKey::generate()?;
        let mut proof = Proof::of(image);
        let mut row = |row: &RowKey, value: Vec<u8>| {
            let value = proof.look(row, value);
            match row.space {
                SPACE_IDENTITY => (row.name == ROW_SEED).then(|| key.seed().to_vec()),
                SPACE_GRANTS => None,
                _ => value,
            }
        };
        let adoption = Adoption::Anew { vat: *key.id().as_bytes(), row: &mut row };
        let store = Store::import(disk, directory, protection, image, adoption, StoreOptions::default())?;
        proof.check()?;
        Self::open(store, key.id(), kinds, clock, Box::new(NoOutputs))
    }

    /// Reads an image to its end. When this succeeds it is whole, and was made by somebody who had the vat's identity.
    ///
    /// # Errors
    /// What the image refuses; [`VatError::NotAVat`].
    pub fn verify_image(image: &mut ImageReader<'_>) -> Result<(), VatError> {
        let mut proof = Proof::of(image);
        while let Some((key, value)) = image.next_row()? {
            proof.look(&key, value);
        }
        proof.check()
    }
}

/// Looks in the rows of an image for the identity of the vat that it names. An image proves nothing about its author by
/// itself: whoever knows for whom to seal can make one.
struct Proof {
    of: [u8; 32],
    found: bool,
}

impl Proof {
    fn of(image: &ImageReader<'_>) -> Self {
        Self { of: image.head().vat, found: false }
    }

    /// Looks at a row, of which none comes twice. Gives its value back, unless it is the secret.
    fn look(&mut self, row: &RowKey, value: Vec<u8>) -> Option<Vec<u8>> {
        if row.space != SPACE_IDENTITY || row.name != ROW_SEED {
            return Some(value);
        }
        let seed = Zeroizing::new(value);
        let key = <&[u8; 32]>::try_from(seed.as_slice()).map(IdentityKey::from_seed);
        self.found = key.is_ok_and(|key| *key.id().as_bytes() == self.of);
        None
    }

    fn check(self) -> Result<(), VatError> {
        match self.found {
            true => Ok(()),
            false => Err(VatError::NotAVat("the image was not made by the vat that it names")),
        }
    }
}
