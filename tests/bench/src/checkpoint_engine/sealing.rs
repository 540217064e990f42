//! What sealing a frame costs.

use std::{hint::black_box, time::Instant};

use checkpoint::measure::Sealer;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::{
    Failure,
    rounds::{Comparison, Effort, compare, microseconds},
};

const FRAME_BYTES: usize = 4 << 10;
/// What header and tag leave of it.
const BODY_BYTES: usize = FRAME_BYTES - 160 - 16;

/// One frame of 4 KiB as the committer seals it: 32 random bytes from the system, the frame's own key and commitment,
/// encryption; against encryption alone, of as many bytes. Both work in place. Means of a few thousand, for one
/// alone is as short as a look at the clock.
pub(super) async fn measure(effort: Effort) -> Result<Comparison, Failure> {
    let mut sealer = Sealer::new(BODY_BYTES)?;
    let found = sealer.seal()?.len();
    if found != FRAME_BYTES {
        return Err(format!("the frame has {found} bytes").into());
    }
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "a key of another length")?);
    let mut body = vec![0x5a; BODY_BYTES];
    compare(
        effort,
        async || {
            mean_time(effort, || {
                black_box(sealer.seal()?);
                Ok(())
            })
        },
        async || {
            mean_time(effort, || {
                let nonce = Nonce::assume_unique_for_key([0; 12]);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut body);
                let tag = tag.map_err(|_| "the message is too long")?;
                black_box((tag.as_ref(), &body));
                Ok(())
            })
        },
    )
    .await
}

fn mean_time(effort: Effort, mut operation: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let count = u32::try_from(effort.samples)? * 10;
    let begun = Instant::now();
    for _ in 0..count {
        operation()?;
    }
    Ok(microseconds(begun.elapsed()) / f64::from(count))
}
