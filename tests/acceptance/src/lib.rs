//! Support for the acceptance tests: the real programs as child processes, in real folders, over real UDP on
//! loopback.
//!
//! A test makes a [`World`], homes and location servers in it, and runs commands as their users would. It
//! ends with [`World::no_secret_leaked`], which searches everything that was written meanwhile, by whichever
//! process, for every secret that was minted (DESIGN §3), and the homes for files that others can read.
//!
//! Nothing here sleeps: waiting is for a line, an end of a process or an answer, and the hard limits in
//! [`limits`] only turn a hang into a failure.

// This crate is test code: what is not as expected ends the test, with everything that was seen.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod command;
mod foreign;
mod home;
mod leaks;
pub mod limits;
mod location_server;
mod mount;
mod programs;
mod random;
mod router;
mod running;
mod tutorial;
mod world;

pub use command::{Done, Failure};
pub use foreign::Foreign;
pub use home::{Awake, Home};
pub use location_server::{LocationServer, SilentAddress, absent_server};
pub use mount::SmallDisk;
pub use programs::program;
pub use random::Random;
pub use router::Router;
pub use running::Running;
pub use tutorial::{run_page, run_page_with, run_text};
pub use world::World;
