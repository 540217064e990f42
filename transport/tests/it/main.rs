//! Behaviour of the transport through its public interface, over real loopback and local sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bulk;
mod calls;
mod capabilities;
mod deadlines;
mod endpoints;
mod exhaustion;
mod foreign;
mod gate;
mod greetings;
mod hostile;
mod local_sockets;
mod memory;
mod migration;
mod peers;
mod pipelines;
mod protocol;
mod raw;
mod refused;
mod scene;
mod sessions;
mod standard_output;
mod support;
mod tls_streams;
mod unsupported;
mod watched;
