//! The program as a user meets it.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn no_name_and_an_unknown_name_list_the_names_and_exit_with_2() {
    for arguments in [&[][..], &["no-such-bench"], &["main-job", "twice"], &["vls", "flood_p99"], &["--help"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "standard output is for figures");
        let listed = String::from_utf8(output.stderr).unwrap();
        assert!(listed.lines().any(|line| line.trim_start().starts_with("main-job ")), "{listed}");
    }
}
