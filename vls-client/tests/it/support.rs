//! What the tests of the shells stand on: records, and location servers and vats in this process.

pub(crate) mod entries;
pub(crate) mod net;
pub(crate) mod records;
