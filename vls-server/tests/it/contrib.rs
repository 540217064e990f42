//! What is in `contrib/` fits the server: metrics that are looked at exist, and the unit starts it as it can be started.

use std::{collections::BTreeSet, fs, path::Path};

use schemas::{
    ErrorCode,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
};
use serde_json::Value;
use vls_server::limits::{MAX_RECORDS, SESSIONS};

use crate::{
    finder::Finder,
    http_client::HttpClient,
    local::{key, on_one_thread},
    program::{run, text},
    supervised::Supervised,
};

fn contrib(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(name)).unwrap()
}

/// The names of our metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("vls_"));
    words.map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_dashboard_and_the_alerts_is_one_that_the_server_has() {
    let server = Supervised::start("[http]\nlisten = \"127.0.0.1:0\"\n");
    let address = server.status()["http"].as_str().unwrap().parse().unwrap();
    let shown = on_one_thread(async {
        // What was never counted is not shown.
        Finder::dial_entry(1, &server.running.line).await.lookup(key(1).id().as_bytes()).await.unwrap();
        let mut client = HttpClient::to(address).await;
        client.get("/healthz").await;
        client.get("/metrics").await.text().to_owned()
    });
    let samples = shown.lines().filter(|line| !line.starts_with('#'));
    let known: BTreeSet<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    for file in ["grafana-dashboard.json", "prometheus-alerts.yml"] {
        let named = metrics(&contrib(file));
        assert!(named.len() >= 5, "{file}: {named:?}");
        for name in named {
            assert!(known.contains(name.as_str()), "{file} looks at {name}, which the server does not have: {known:?}");
        }
    }
    let dashboard: Value = serde_json::from_str(&contrib("grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has a number of its own");
    // Outcomes that are looked for are those that the server counts as asking too much.
    assert!(contrib("prometheus-alerts.yml").contains("quota|429|slowed"));
}

#[test]
fn the_unit_starts_the_server_with_a_configuration_in_which_nothing_is_out_of_reach() {
    let unit = contrib("vls-server.service");
    let line = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}"));
    let command: Vec<&str> = line("ExecStart=").split(' ').collect();
    assert_eq!(command, ["/usr/bin/vls-server", "run", "--config", "/etc/vls-server/vls-server.toml"]);
    assert_eq!((line("Type="), line("ExecReload=")), ("notify", "/bin/kill -HUP $MAINPID"));
    // The folder that systemd makes is the one that the configuration names.
    let config = contrib("vls-server.toml");
    assert!(config.contains(&format!("data = \"/var/lib/{}\"", line("StateDirectory="))), "{config}");
    assert_eq!(line("StateDirectoryMode="), "0700");
    for hardening in ["NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryMax=512M", "DynamicUser=yes"] {
        assert!(unit.lines().any(|line| line == hardening), "{hardening}");
    }
    // It comes back for as long as there is a machine, but not with a configuration that it has refused.
    assert_eq!((line("Restart="), line("StartLimitIntervalSec=")), ("always", "0"));
    let refused = ErrorCode::ConfigInvalid.exit() as u8;
    assert_eq!(line("RestartPreventExitStatus="), refused.to_string());
    // A limit that `check` would not complain of, for HTTP and DNS together.
    let files: u64 = line("LimitNOFILE=").parse().unwrap();
    assert!(files >= 4096 + 512 + 64, "{files}");
}

/// Whoever may register can make every record as long as may be.
#[test]
fn the_units_memory_is_enough_for_the_longest_records_and_all_sessions() {
    /// Measured: `resident_1m` less `record_memory` of `bench -- vls`, for each of the 2,000 sessions.
    const SESSION: usize = 50_000;
    let unit = contrib("vls-server.service");
    let megabytes = unit.lines().find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('M')).unwrap();
    let memory = megabytes.parse::<usize>().unwrap() << 20;
    let record = PACKET_HEADER + MAX_ACCEPTED_VALUE + 20;
    assert!(MAX_RECORDS * record + SESSIONS * SESSION + (32 << 20) < memory);
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vls-server.service");
    // The program need not be installed for that.
    fs::write(&file, contrib("vls-server.service").replace("/usr/bin/vls-server", crate::program::PROGRAM)).unwrap();
    match std::process::Command::new("systemd-analyze").arg("verify").arg(&file).output() {
        Ok(output) => {
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(output.status.success() && !said.contains("vls-server.service:"), "{said}");
        }
        Err(error) => println!("there is no systemd-analyze here: {error}"),
    }
    assert_eq!(run(&["run", "--help"]).status.code(), Some(0));
}

#[test]
fn the_package_has_files_that_are_there_and_its_scripts_start_nothing_new() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest: toml::Table = fs::read_to_string(folder.join("Cargo.toml")).unwrap().parse().unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    let assets = package["assets"].as_array().unwrap();
    let sources: Vec<&str> = assets.iter().map(|asset| asset[0].as_str().unwrap()).collect();
    assert_eq!(sources[0], "target/release/vls-server");
    for source in &sources[1..] {
        assert!(folder.join(source).is_file(), "{source}");
    }
    assert!(sources.contains(&"contrib/vls-server.service"));
    let scripts = folder.join(package["maintainer-scripts"].as_str().unwrap());
    for script in fs::read_dir(scripts).unwrap() {
        let script = script.unwrap().path();
        let checked = std::process::Command::new("sh").arg("-n").arg(&script).status().unwrap();
        assert!(checked.success(), "{}", script.display());
        let text = fs::read_to_string(&script).unwrap();
        for surprise in ["curl", "wget", "systemctl enable", "systemctl start", "rm -r", "/etc/", "/var/"] {
            assert!(!text.contains(surprise), "{}: {surprise}", script.display());
        }
    }
}
