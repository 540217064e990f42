//! The log: on standard error, for people or one JSON object a line.
//!
//! `VLS_LOG=debug` shows what happens inside, the addresses of clients included; `VLS_LOG=vls_server::clients=debug`
//! these alone. Without the variable no client is ever named, whatever the configuration says. With `--json` standard
//! error belongs to failures, so nothing is logged there unless the variable asks for it.

use std::io;

use console::Output;
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

use super::config::{Configuration, LogFormat, LogLevel};

const VARIABLE: &str = "VLS_LOG";

/// What the log shows can be changed while it is written.
pub(super) struct Logging {
    set: Box<dyn Fn(EnvFilter)>,
    silent: bool,
}

impl Logging {
    pub(super) fn start(configuration: &Configuration, output: Output) -> Self {
        let silent = output.is_json();
        let filter = filter(configuration.log_level.value, silent);
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
        // Starting fails only if the program that we are part of has a log of its own: then that is where ours goes.
        // Changing fails only when the log is gone.
        let set: Box<dyn Fn(EnvFilter)> = match configuration.log_format.value {
            LogFormat::Text => {
                let colours = io::IsTerminal::is_terminal(&io::stderr());
                let subscriber = subscriber.with_ansi(colours).with_filter_reloading();
                let handle = subscriber.reload_handle();
                let _ = subscriber.finish().try_init();
                Box::new(move |filter| drop(handle.reload(filter)))
            }
            LogFormat::Json => {
                let subscriber = subscriber.json().flatten_event(true).with_filter_reloading();
                let handle = subscriber.reload_handle();
                let _ = subscriber.finish().try_init();
                Box::new(move |filter| drop(handle.reload(filter)))
            }
        };
        Self { set, silent }
    }

    pub(super) fn set_level(&self, level: LogLevel) {
        (self.set)(filter(level, self.silent));
    }
}

fn filter(level: LogLevel, silent: bool) -> EnvFilter {
    EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| match (silent, level) {
        (true, _) => EnvFilter::new("off"),
        (false, LogLevel::Error) => EnvFilter::new("error,vls_server::clients=off"),
        (false, level) => EnvFilter::new(format!("warn,vls_server={},vls_server::clients=off", level.as_str())),
    })
}
