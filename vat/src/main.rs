//! The `vat` program with the objects that are built in.

fn main() -> std::process::ExitCode {
    vat::program::main(vat::Kinds::built_in())
}
