//! `vat run`: a vat awake in the foreground.

use std::net::SocketAddr;

use console::Failure;
use schemas::Exit;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, block_on, connect::address_of};
use crate::{
    home::Name,
    process::{self, Live, Report, RunOptions},
};

/// Where a vat is to listen, as far as the command says.
pub(super) struct Listen {
    pub(super) quic: Option<SocketAddr>,
    pub(super) tls: Option<SocketAddr>,
}

/// `vat run NAME [--listen ADDR] [--listen-tls ADDR] [--take-over]`
pub(super) fn run(context: Context, name: &str, listen: Listen, take_over: bool) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let options = RunOptions {
        listen: listen.quic.unwrap_or(context.config.listen.value),
        listen_tls: listen.tls.or(context.config.listen_tls.value),
        take_over,
        back_up: true,
    };
    let Context { home, config, kinds, output } = context;
    block_on(async {
        let io = |error| Failure::new(schemas::ErrorCode::SystemIo, format!("signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
        let stop = async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        };
        let mut unprinted = None;
        let mut notices = Vec::new();
        let mut report = |report: Report| match report {
            Report::Notice(text) => {
                output.notice(&text);
                notices.push(text);
            }
            Report::Live(live) => {
                let (human, data) = describe(&name, &live, &notices);
                // A closed pipe is no reason to stop serving: who started this may have read enough.
                unprinted = output.result(&human, &data).err();
                notice_failures(&live, |text| output.notice(text));
            }
        };
        process::run(&home, &name, &config, kinds, options, stop, &mut report).await?;
        output.notice(&format!("{name} sleeps."));
        unprinted.map_or(Ok(Exit::Ok), Err)
    })
}

fn describe(name: &Name, live: &Live, notices: &[String]) -> (String, serde_json::Value) {
    let mut lines = vec![address_of(live.id)];
    lines.extend(live.addresses.iter().map(|address| format!("  at {}", address.described())));
    if let Some(tls) = &live.tls {
        lines.push(format!("  TLS on {}, certificate in {}", tls.address, tls.certificate.display()));
        lines.push(format!("  with the key {}", tls.key_fingerprint));
    }
    lines.push(format!("{name} is awake: epoch {}, turn {}. Ctrl-C puts it to sleep.", live.epoch, live.turn));
    let registrations: Vec<_> = live
        .registrations
        .iter()
        .map(|report| json!({"entry": report.entry.to_string(), "registered": report.is_registered()}))
        .collect();
    let addresses: Vec<_> = live.addresses.iter().map(ToString::to_string).collect();
    let mut data = json!({
        "name": name.as_str(), "vat": address_of(live.id), "addresses": addresses, "epoch": live.epoch,
        "turn": live.turn, "registrations": registrations, "notices": notices,
    });
    if let Some(tls) = &live.tls {
        data["tls"] = json!({"address": tls.address, "key": tls.key_fingerprint, "certificate": tls.certificate.display().to_string()});
    }
    (lines.join("\n"), data)
}

fn notice_failures(live: &Live, notice: impl Fn(&str)) {
    for report in &live.registrations {
        match report.error() {
            None => notice(&format!("registered with {}", report.entry)),
            Some(error) => {
                let again = if report.next_attempt.is_some() { "; trying again" } else { "" };
                notice(&format!("not registered with {}: {error}{again}", report.entry));
            }
        }
    }
}
