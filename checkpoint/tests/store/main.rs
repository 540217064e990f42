//! The store as its users see it: what it promises when everything goes well, and what it keeps of that when
//! nothing does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod commits;
mod crash;
mod damage;
mod faults;
mod harness;
mod model;
mod protection;
mod waiting;
