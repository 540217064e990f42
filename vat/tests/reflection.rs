//! Calling objects through schemas that are read at run time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "reflection/agreement.rs"]
mod agreement;
#[path = "reflection/arguments.rs"]
mod arguments;
#[path = "reflection/hostile.rs"]
mod hostile;
#[path = "reflection/interfaces.rs"]
mod interfaces;
#[path = "reflection/properties.rs"]
mod properties;
#[path = "reflection/support.rs"]
mod support;
