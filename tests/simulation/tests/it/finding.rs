//! Finding vats on a simulated network: the real location server, publisher and resolver over turmoil's UDP.

mod finder;
mod laws_in_action;
mod liar;
mod numbers;
mod seeds;
mod server;
mod vat;
mod wire;
mod world;
