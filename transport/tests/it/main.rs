//! Behaviour of the transport through its public interface, over real loopback and local sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod endpoints;
mod gate;
mod hostile;
mod local_sockets;
mod raw;
mod refused;
mod support;
