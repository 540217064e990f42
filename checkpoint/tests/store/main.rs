//! The store as its users see it: what it promises when everything goes well, and what it keeps of that when
//! nothing does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod commits;
mod compat;
mod crash;
mod damage;
mod faults;
mod flips;
mod harness;
mod hosts;
mod images;
mod keys;
mod model;
mod protection;
mod recycling;
mod small;
mod splices;
mod waiting;
