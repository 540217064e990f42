//! Random bytes, from the operating system only and never from anything stored (DESIGN §8, Sealing): two
//! copies of a store must not go on with the same numbers.
//!
//! Nor must two copies of a process, so nothing is drawn ahead, although the system call is a fifth of what sealing a
//! short frame costs: a fork, or a virtual machine that was copied while it ran, would use the same bytes for different
//! contents. A salt is drawn once everything that it will seal is fixed. If the machine is copied after that, both
//! copies seal the same frame. If it is copied before, the kernel reseeds as soon as the hypervisor tells it (`vmgenid`).
//! Where the C library keeps random bytes in the process (`getrandom` in the vDSO: glibc 2.41 with Linux 6.11), it does
//! so with the kernel's help and by the same rule, and the call takes a third of the time or less.

use crate::error::StoreError;

pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), StoreError> {
    Ok(getrandom::fill(bytes)?)
}

pub(crate) fn salt() -> Result<[u8; 32], StoreError> {
    let mut salt = [0; 32];
    fill(&mut salt)?;
    Ok(salt)
}
