//! What the operator has decided: one TOML file, and the command line above it (DESIGN §10).
//!
//! The file is the one that `--config` names. Without `--config` it is `/etc/vls-server/vls-server.toml`, if that is
//! there and `--data` is not given: who names a data folder on the command line runs a server of his own, and the
//! system's file is not about that one. [`TEMPLATE`](super::init) shows every setting with its default.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use console::{Failure, InvalidSetting, Output, Setting, SettingsFile, Source, show_settings, table};
use schemas::ErrorCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Spanned;

use super::advertise;
use crate::{
    limits,
    registry::Policy,
    server::{Bootstrap, CertificateFiles, DhtConfig, Peer, ProxyNetwork, ServerConfig, dns::DomainName},
};

/// The file of the server that belongs to the system.
pub(super) const DEFAULT_FILE: &str = "/etc/vls-server/vls-server.toml";

/// The command line's part. What it says is above the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Flags {
    /// Configuration file [default: /etc/vls-server/vls-server.toml, if it is there and --data is not given]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// UDP address to listen on; [::] takes IPv4 too, port 0 any free port [default: [::]:4433]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
    /// Folder of the server's key and records; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    /// How long a record is answered after its vat was last seen [default: 3600]
    #[arg(
        long, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(limits::MIN_LEASE.as_secs()..=limits::MAX_LEASE.as_secs()),
    )]
    lease: Option<u64>,
    /// Host name or address to print instead of the one found: what others reach this machine by
    #[arg(long, value_name = "HOST", value_parser = advertise::parse_host)]
    pub(super) advertise: Option<String>,
    /// Another server that is asked for what is not held here, and told what is registered here, as vls://<id>@<host>:<port>; repeatable
    #[arg(long, value_name = "ENTRY")]
    peer: Vec<Peer>,
    /// Take part in the Mainline DHT: publish there what is registered here, and look up there what is not held
    #[arg(long)]
    dht: bool,
    /// TCP address for HTTP: records as pkarr relays and iroh's DNS server offer them, a page for people, /metrics
    #[arg(long, value_name = "ADDR")]
    pub(super) http: Option<SocketAddr>,
    /// Certificate for HTTPS, with its chain, PEM; looked at again every ten minutes
    #[arg(long, value_name = "FILE", requires = "http_key")]
    http_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "http_cert")]
    http_key: Option<PathBuf>,
    /// Network of proxies whose X-Forwarded-For or Forwarded is believed, such as 127.0.0.1 or 10.0.0.0/8; repeatable
    #[arg(long, value_name = "NETWORK")]
    http_proxy: Vec<ProxyNetwork>,
    /// Address for DNS, UDP and TCP; on a machine with several, the one that the zone above leads to
    #[arg(long, value_name = "ADDR")]
    dns: Option<SocketAddr>,
    /// Zone that ids stand below, such as vls.example.org; with --http it is answered at /dns-query, too
    #[arg(long, value_name = "NAME")]
    dns_origin: Option<DomainName>,
    /// Name of this host to which the zone above delegates the origin, if it is not the origin itself
    #[arg(long, value_name = "NAME")]
    dns_server: Option<DomainName>,
    /// Take new vats by invitation only (vls-server invite); those that are known here go on
    #[arg(long)]
    closed: bool,
    /// How the log is written [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl Flags {
    /// Nothing but which server is meant.
    pub(super) fn of(config: Option<PathBuf>, data: Option<PathBuf>) -> Self {
        Self { config, data, ..Self::default() }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogLevel {
    /// What ends the server.
    Error,
    /// What the operator has to see to.
    Warn,
    /// What happens to the server.
    Info,
    /// What happens inside.
    Debug,
}

impl LogLevel {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Spanned<String>>,
    data: Option<Spanned<String>>,
    lease: Option<Spanned<u64>>,
    advertise: Option<Spanned<String>>,
    peers: Option<Spanned<Vec<Spanned<String>>>>,
    dht: Option<Spanned<bool>>,
    dht_bootstrap: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    registration: RegistrationTable,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    http: HttpTable,
    #[serde(default)]
    dns: DnsTable,
    #[serde(default)]
    sandbox: SandboxTable,
    #[serde(default)]
    log: LogTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistrationTable {
    closed: Option<Spanned<bool>>,
    work: Option<Spanned<bool>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    records: Option<Spanned<u64>>,
    sessions: Option<Spanned<u64>>,
    sessions_per_network: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTable {
    listen: Option<Spanned<String>>,
    certificate: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    trusted_proxies: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DnsTable {
    listen: Option<Spanned<String>>,
    origin: Option<Spanned<String>>,
    server: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxTable {
    enabled: Option<Spanned<bool>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    level: Option<Spanned<LogLevel>>,
    format: Option<Spanned<LogFormat>>,
}

/// The configuration as it applies.
#[derive(Debug, Clone)]
pub(super) struct Configuration {
    /// Where the settings of [`Source::Line`] stand.
    pub(super) file: Option<PathBuf>,
    pub(super) listen: Setting<SocketAddr>,
    pub(super) data: Setting<PathBuf>,
    lease: Setting<Duration>,
    pub(super) advertise: Setting<Option<String>>,
    peers: Setting<Vec<Peer>>,
    dht: Setting<bool>,
    dht_bootstrap: Setting<Vec<Bootstrap>>,
    /// Whether new vats are taken by invitation only.
    closed: Setting<bool>,
    /// Whether a new vat's place costs work where the table is nearly full.
    work: Setting<bool>,
    records: Setting<usize>,
    pub(super) sessions: Setting<usize>,
    sessions_per_network: Setting<usize>,
    pub(super) http: Setting<Option<SocketAddr>>,
    certificate: Setting<Option<PathBuf>>,
    key: Setting<Option<PathBuf>>,
    trusted_proxies: Setting<Vec<ProxyNetwork>>,
    pub(super) dns: Setting<Option<SocketAddr>>,
    origin: Setting<Option<DomainName>>,
    server: Setting<Option<DomainName>>,
    /// Whether the server gives up what it does not need.
    pub(super) sandbox: Setting<bool>,
    pub(super) log_level: Setting<LogLevel>,
    pub(super) log_format: Setting<LogFormat>,
}

impl Configuration {
    /// Reads the file and puts the command line above it.
    pub(super) fn load(flags: &Flags) -> Result<Self, Failure> {
        let file = match &flags.config {
            Some(path) => Some(read(path)?.ok_or_else(|| {
                let message = format!("there is no configuration file {}", path.display());
                Failure::new(ErrorCode::ConfigInvalid, message)
                    .next(format!("Make it with: vls-server init --config {}", path.display()))
            })?),
            None if flags.data.is_none() => read(Path::new(DEFAULT_FILE))?,
            None => None,
        };
        let configuration = match &file {
            Some(file) => Self::merge(file, file.parse()?, flags)?,
            None => Self::merge(&SettingsFile::new(Path::new("-"), String::new()), File::default(), flags)?,
        };
        let configuration = Self { file: file.map(|file| file.path().to_owned()), ..configuration };
        configuration.check()?;
        Ok(configuration)
    }

    fn merge(file: &SettingsFile, text: File, flags: &Flags) -> Result<Self, Failure> {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 4433));
        let no_data = || {
            let message = "there is no data folder: neither --data nor a configuration file names one";
            Failure::new(ErrorCode::CliUsage, message)
                .next("Give --data DIR or --config FILE; `vls-server init` makes both. See also --help.")
        };
        let data = file.setting(text.data.as_ref(), None, |text| absolute(text).map(Some))?;
        let Setting { value: Some(data), source } = data.or_argument(flags.data.clone().map(Some)) else {
            return Err(no_data());
        };
        let LimitsTable { records, sessions, sessions_per_network } = text.limits;
        let peers = (!flags.peer.is_empty()).then(|| flags.peer.clone());
        let proxies = (!flags.http_proxy.is_empty()).then(|| flags.http_proxy.clone());
        Ok(Self {
            file: None,
            listen: file.setting(text.listen.as_ref(), any, str::parse)?.or_argument(flags.listen),
            data: Setting { value: data, source },
            lease: lease(file, text.lease)?.or_argument(flags.lease.map(Duration::from_secs)),
            advertise: file
                .setting(text.advertise.as_ref(), None, |text| advertise::parse_host(text).map(Some))?
                .or_argument(flags.advertise.clone().map(Some)),
            peers: file.list(text.peers.as_ref(), str::parse)?.or_argument(peers),
            dht: chosen(file, text.dht, false).or_argument(flags.dht.then_some(true)),
            dht_bootstrap: file.list(text.dht_bootstrap.as_ref(), str::parse)?,
            closed: chosen(file, text.registration.closed, false).or_argument(flags.closed.then_some(true)),
            work: chosen(file, text.registration.work, true),
            records: number(file, "limits.records", records, limits::MAX_RECORDS, limits::MOST_RECORDS)?,
            sessions: number(file, "limits.sessions", sessions, limits::SESSIONS, limits::MOST_SESSIONS)?,
            sessions_per_network: number(
                file,
                "limits.sessions_per_network",
                sessions_per_network,
                limits::SESSIONS_PER_NETWORK,
                limits::MOST_SESSIONS,
            )?,
            http: optional(file, text.http.listen.as_ref(), str::parse)?.or_argument(flags.http.map(Some)),
            certificate: optional(file, text.http.certificate.as_ref(), absolute)?
                .or_argument(flags.http_cert.clone().map(Some)),
            key: optional(file, text.http.key.as_ref(), absolute)?.or_argument(flags.http_key.clone().map(Some)),
            trusted_proxies: file.list(text.http.trusted_proxies.as_ref(), str::parse)?.or_argument(proxies),
            dns: optional(file, text.dns.listen.as_ref(), str::parse)?.or_argument(flags.dns.map(Some)),
            origin: optional(file, text.dns.origin.as_ref(), str::parse)?
                .or_argument(flags.dns_origin.clone().map(Some)),
            server: optional(file, text.dns.server.as_ref(), str::parse)?
                .or_argument(flags.dns_server.clone().map(Some)),
            sandbox: chosen(file, text.sandbox.enabled, true),
            log_level: chosen(file, text.log.level, LogLevel::Info),
            log_format: chosen(file, text.log.format, LogFormat::Text).or_argument(flags.log_format),
        })
    }

    /// What settings have to do with each other.
    fn check(&self) -> Result<(), Failure> {
        let needs = [
            (self.certificate.value.is_some(), self.certificate.source, self.key.value.is_some(), "key", "certificate"),
            (self.key.value.is_some(), self.key.source, self.certificate.value.is_some(), "certificate", "key"),
        ];
        for (given, source, has, needed, by) in needs {
            if given && !has {
                return Err(self.wrong(source, format!("http.{by} needs http.{needed}: both belong together")));
            }
        }
        if self.peers.value.len() > limits::MOST_PEERS {
            let reason = format!("a server follows at most {} others", limits::MOST_PEERS);
            return Err(self.wrong(self.peers.source, reason));
        }
        if self.dht_bootstrap.value.len() > limits::MOST_DHT_BOOTSTRAP {
            let reason = format!("the DHT is joined by at most {} nodes", limits::MOST_DHT_BOOTSTRAP);
            return Err(self.wrong(self.dht_bootstrap.source, reason));
        }
        let http = self.http.value.is_some();
        if self.certificate.value.is_some() && !http {
            return Err(self.wrong(self.certificate.source, "a certificate is for http.listen (--http)".to_owned()));
        }
        if !self.trusted_proxies.value.is_empty() && !http {
            let reason = "proxies are trusted at http.listen (--http)".to_owned();
            return Err(self.wrong(self.trusted_proxies.source, reason));
        }
        let origin = self.origin.value.is_some();
        for (given, source) in
            [(self.dns.value.is_some(), self.dns.source), (self.server.value.is_some(), self.server.source)]
        {
            if given && !origin {
                return Err(self.wrong(source, "it needs the zone, dns.origin (--dns-origin)".to_owned()));
            }
        }
        Ok(())
    }

    fn wrong(&self, source: Source, reason: String) -> Failure {
        match (source, &self.file) {
            (Source::Line(line), Some(path)) => InvalidSetting { path: path.clone(), line, column: 1, reason }.into(),
            _ => Failure::new(ErrorCode::CliUsage, reason),
        }
    }

    /// For the server.
    pub(super) fn server(&self) -> ServerConfig {
        let mut config = ServerConfig::new(self.listen.value, self.data.value.clone());
        let policy = Policy::default();
        config.policy = Policy {
            lease: self.lease.value,
            max_records: self.records.value,
            closed: self.closed.value,
            work: policy.work.filter(|_| self.work.value),
            ..policy
        };
        config.sessions = self.sessions.value;
        config.sessions_per_network = self.sessions_per_network.value;
        config.peers.clone_from(&self.peers.value);
        config.dht = self.dht.value.then(|| {
            let mut dht = DhtConfig::beside(self.listen.value);
            dht.bootstrap.clone_from(&self.dht_bootstrap.value);
            dht
        });
        config.http = self.http.value;
        config.certificate = self.certificate_files();
        config.trusted_proxies.clone_from(&self.trusted_proxies.value);
        config.dns = self.dns.value;
        config.dns_origin.clone_from(&self.origin.value);
        config.dns_server.clone_from(&self.server.value);
        config
    }

    pub(super) fn certificate_files(&self) -> Option<CertificateFiles> {
        let files = self.certificate.value.clone().zip(self.key.value.clone());
        files.map(|(certificate, key)| CertificateFiles { certificate, key })
    }

    pub(super) fn settings(&self) -> Vec<(String, Value, Source)> {
        fn row<T>(name: &str, setting: &Setting<T>, show: impl Fn(&T) -> Value) -> (String, Value, Source) {
            (name.to_owned(), show(&setting.value), setting.source)
        }
        fn texts<T: ToString>(value: &Option<T>) -> Value {
            json!(value.as_ref().map(ToString::to_string))
        }
        fn list<T: ToString>(list: &[T]) -> Value {
            json!(list.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        vec![
            row("listen", &self.listen, |value| json!(value.to_string())),
            row("data", &self.data, |value| json!(value)),
            row("lease", &self.lease, |value| json!(value.as_secs())),
            row("advertise", &self.advertise, |value| json!(value)),
            row("peers", &self.peers, |value| list(value)),
            row("dht", &self.dht, |value| json!(value)),
            row("dht_bootstrap", &self.dht_bootstrap, |value| list(value)),
            row("registration.closed", &self.closed, |value| json!(value)),
            row("registration.work", &self.work, |value| json!(value)),
            row("limits.records", &self.records, |value| json!(value)),
            row("limits.sessions", &self.sessions, |value| json!(value)),
            row("limits.sessions_per_network", &self.sessions_per_network, |value| json!(value)),
            row("http.listen", &self.http, texts),
            row("http.certificate", &self.certificate, |value| json!(value)),
            row("http.key", &self.key, |value| json!(value)),
            row("http.trusted_proxies", &self.trusted_proxies, |value| list(value)),
            row("dns.listen", &self.dns, texts),
            row("dns.origin", &self.origin, texts),
            row("dns.server", &self.server, texts),
            row("sandbox.enabled", &self.sandbox, |value| json!(value)),
            row("log.level", &self.log_level, |value| json!(value)),
            row("log.format", &self.log_format, |value| json!(value)),
        ]
    }
}

/// `vls-server config show`
pub(super) fn show(flags: &Flags, output: Output) -> Result<(), Failure> {
    let configuration = Configuration::load(flags)?;
    let (rows, settings) = show_settings(configuration.settings(), configuration.file.as_deref());
    output.result(&table(&rows), &settings.into())
}

fn read(path: &Path) -> Result<Option<SettingsFile>, Failure> {
    SettingsFile::read(path).map_err(|error| {
        Failure::new(ErrorCode::ConfigInvalid, format!("cannot read {}: {error}", path.display()))
            .next("Let the user that runs the server read it.")
    })
}

/// A server is started from anywhere.
fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("a path begins with a /: the server is started from anywhere") }
}

fn optional<T, E: std::fmt::Display>(
    file: &SettingsFile,
    text: Option<&Spanned<String>>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Setting<Option<T>>, InvalidSetting> {
    file.setting(text, None, |text| parse(text).map(Some))
}

fn chosen<T>(file: &SettingsFile, value: Option<Spanned<T>>, default: T) -> Setting<T> {
    match value {
        None => Setting::default(default),
        Some(value) => Setting { source: file.source(&value), value: value.into_inner() },
    }
}

fn lease(file: &SettingsFile, seconds: Option<Spanned<u64>>) -> Result<Setting<Duration>, InvalidSetting> {
    let Some(seconds) = seconds else { return Ok(Setting::default(limits::LEASE)) };
    let value = Duration::from_secs(*seconds.get_ref());
    if !(limits::MIN_LEASE..=limits::MAX_LEASE).contains(&value) {
        let (least, most) = (limits::MIN_LEASE.as_secs(), limits::MAX_LEASE.as_secs());
        return Err(file.invalid(Some(seconds.span()), format!("a lease is from {least} to {most} seconds long")));
    }
    Ok(Setting { value, source: file.source(&seconds) })
}

fn number(
    file: &SettingsFile,
    name: &str,
    found: Option<Spanned<u64>>,
    default: usize,
    most: usize,
) -> Result<Setting<usize>, InvalidSetting> {
    let Some(found) = found else { return Ok(Setting::default(default)) };
    match usize::try_from(*found.get_ref()) {
        Ok(value) if (1..=most).contains(&value) => Ok(Setting { value, source: file.source(&found) }),
        _ => Err(file.invalid(Some(found.span()), format!("{name} is from 1 to {most}"))),
    }
}
