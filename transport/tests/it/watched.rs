//! What our programs do when their event loop hangs.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use transport::watchdog::{Watchdog, WatchdogConfig, log_and_abort};

use crate::support::run;

/// The signal of an abort.
const SIGABRT: i32 = 6;

/// The process that [`a_program_whose_event_loop_hangs_is_ended`] starts.
#[test]
#[ignore = "hangs for ever, until it is ended"]
fn hangs() {
    run(async {
        let mut config = WatchdogConfig::default();
        (config.look, config.hung_after, config.hopeless_after) = (Duration::from_millis(20), 2, 4);
        let _watchdog = Watchdog::start(config, log_and_abort).unwrap();
        loop {
            std::thread::park();
        }
    });
}

#[test]
fn a_program_whose_event_loop_hangs_is_ended() {
    let hanging = ["--ignored", "--exact", "watched::hangs", "--nocapture"];
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(hanging)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(SIGABRT), "{status}");
}
