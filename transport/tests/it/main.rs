//! Behaviour of the transport through its public interface, over real loopback and local sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod endpoints;
mod exhaustion;
mod foreign;
mod gate;
mod greetings;
mod hostile;
mod local_sockets;
mod raw;
mod refused;
mod scene;
mod standard_output;
mod support;
mod tls_streams;
