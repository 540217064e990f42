//! What reads bytes of strangers, given bytes that a machine made up: one function per reader, which panics if the
//! reader does not keep its promise.
//!
//! Twice in use. `tests/replay.rs` runs every input of `corpus/` on the stable compiler, with everything else that
//! is tested. `tests/libfuzzer/` calls the same functions under libFuzzer, which finds new inputs; those that taught
//! something are kept in `corpus/`. Where the corpus comes from is in [`seeds`].
//!
//! A reader must neither panic, hang, nor hold much more memory than it was given. The last two are seen from
//! outside: by libFuzzer's limits, and by those of the replay.
// A target fails by panicking; that is what a fuzzer waits for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod seeds;

mod parsers;
mod reflection;
mod session;
mod stream;

pub use parsers::{images, records, references};
pub use reflection::{answers, arguments, schema_sets};
pub use session::{greetings, messages};
pub use stream::frames;

/// A reader under test.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus/` and of its program in `tests/libfuzzer/`.
pub const TARGETS: [(&str, Target); 9] = [
    ("answers", answers),
    ("arguments", arguments),
    ("frames", frames),
    ("greetings", greetings),
    ("images", images),
    ("messages", messages),
    ("records", records),
    ("references", references),
    ("schema_sets", schema_sets),
];
