//! Random bytes, from the operating system only and never from anything stored (DESIGN §8, Sealing): two
//! copies of a store must not go on with the same numbers.

use crate::error::StoreError;

pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), StoreError> {
    Ok(getrandom::fill(bytes)?)
}

pub(crate) fn salt() -> Result<[u8; 32], StoreError> {
    let mut salt = [0; 32];
    fill(&mut salt)?;
    Ok(salt)
}
