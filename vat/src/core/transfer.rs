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
        let (of, mut proven) = (image.head().vat, false);
        let mut row = |row: &RowKey, value: Vec<u8>| match row.space {
            SPACE_IDENTITY => (row.name == ROW_SEED).then(|| {
                proven = proves(&Zeroizing::new(value), of);
                key.seed().to_vec()
            }),
            SPACE_GRANTS => None,
            _ => Some(value),
        };
        let adoption = Adoption::Anew { vat: *key.id().as_bytes(), row: &mut row };
        let store = Store::import(disk, directory, protection, image, adoption, StoreOptions::default())?;
        if !proven {
            return Err(NOT_ITS_OWN);
        }
        Self::open(store, key.id(), kinds, clock, Box::new(NoOutputs))
    }

    /// Reads an image to its end. When this succeeds it is whole, and was made by somebody who had the vat's identity.
    ///
    /// # Errors
    /// What the image refuses; [`VatError::NotAVat`].
    pub fn verify_image(image: &mut ImageReader<'_>) -> Result<(), VatError> {
        let (of, mut proven) = (image.head().vat, false);
        while let Some((key, value)) = image.next_row()? {
            if key.space == SPACE_IDENTITY && key.name == ROW_SEED {
                proven = proves(&Zeroizing::new(value), of);
            }
        }
        if proven { Ok(()) } else { Err(NOT_ITS_OWN) }
    }
}

const NOT_ITS_OWN: VatError = VatError::NotAVat("the image was not made by the vat that it names");

/// Whether this is the seed of the vat's identity. An image proves nothing about its author by itself: whoever knows
/// for whom to seal can make one.
fn proves(seed: &[u8], vat: [u8; 32]) -> bool {
    <&[u8; 32]>::try_from(seed).is_ok_and(|seed| *IdentityKey::from_seed(seed).id().as_bytes() == vat)
}
