//! Regenerates all code and `CodeGeneratorRequest`s that come from `.capnp` files:
//! `cargo run -p schemas --example generate`.
//!
//! The schema compiler is the official one, embedded as WebAssembly, so no `capnp` program is needed.
//! `tests/generated.rs` fails when what is committed differs from what this would write.

#[path = "../tests/support/compile.rs"]
mod compile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    compile::SETS.iter().try_for_each(|set| compile::compile(set, &compile::root().join(set.generated)))
}
