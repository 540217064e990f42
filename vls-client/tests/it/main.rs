//! Behaviour of the finder's and the publisher's side: pure cores with simulated time, shells against real
//! in-process location servers, honest and lying.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admission;
mod cache;
mod cold;
mod connect;
mod dial_schedule;
mod entries;
mod live;
mod publish_schedule;
mod publisher;
mod reconnect;
mod resolver;
mod schedule;
mod support;
mod watching;
mod web_servers;
