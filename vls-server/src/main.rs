//! The location server.

fn main() -> std::process::ExitCode {
    vls_server::program::main()
}
