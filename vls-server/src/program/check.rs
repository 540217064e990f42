//! `vls-server check`: looks at everything that a location server depends on, and says what is wrong and what to do.
//!
//! Before the server starts it tries what the server will do: it reads the key, writes to the folder, and opens the
//! ports. Beside a server that runs it looks at the same things and leaves the ports to it. With `--from` another
//! server dials back, which alone can tell whether others get through; and its clock is compared with this one.

mod local;
mod others;

use console::{Failure, Output, table};
use schemas::{Exit, SearchPathEntry};
use serde_json::{Value, json};

use super::{
    config::{Configuration, Flags},
    control,
    sandbox::Confinement,
};

#[derive(Debug, clap::Args)]
pub(super) struct CheckArguments {
    #[command(flatten)]
    flags: Flags,
    /// Another location server, which dials back and tells its time
    #[arg(long, value_name = "ENTRY")]
    from: Option<SearchPathEntry>,
}

/// What was found of one thing.
pub(super) struct Finding {
    what: String,
    outcome: Outcome,
}

pub(super) enum Outcome {
    Well(String),
    /// It serves, but not as well as it should.
    Degraded(Failure),
    /// It cannot serve, or nobody reaches it.
    Failed(Failure),
}

impl Finding {
    fn new(what: impl Into<String>, outcome: Outcome) -> Self {
        Self { what: what.into(), outcome }
    }
}

impl From<Result<String, Failure>> for Outcome {
    fn from(result: Result<String, Failure>) -> Self {
        match result {
            Ok(detail) => Self::Well(detail),
            Err(failure) => Self::Failed(failure),
        }
    }
}

/// `vls-server check`
pub(super) async fn check(arguments: &CheckArguments, output: Output) -> Result<Exit, Failure> {
    let configuration = match Configuration::load(&arguments.flags) {
        Ok(configuration) => configuration,
        Err(failure) => return report(vec![Finding::new("configuration", Outcome::Failed(failure))], output),
    };
    let file =
        configuration.file.as_ref().map_or_else(|| "the command line".to_owned(), |file| file.display().to_string());
    let mut findings = vec![Finding::new("configuration", Outcome::Well(file))];
    let status = status(&configuration, &mut findings).await;
    let key = local::folder(&configuration, &mut findings);
    findings.push(Finding::new("open files", local::open_files(&configuration)));
    findings.push(Finding::new("confinement", Outcome::Well(confinement(&configuration, status.as_ref()))));
    findings.push(Finding::new("clock", local::clock()));
    if let Some(files) = configuration.certificate_files() {
        let host = configuration.advertise.value.as_deref();
        findings.push(Finding::new("certificate", local::certificate(&files, host)));
    }
    let ports = local::ports(&configuration, status.as_ref(), &key, &mut findings).await;
    if let Some(entry) = &arguments.from {
        others::look_from(entry, &key, &ports, &mut findings).await;
    }
    ports.close().await;
    report(findings, output)
}

/// What the server that runs says of itself; `None` if none runs.
async fn status(configuration: &Configuration, findings: &mut Vec<Finding>) -> Option<Value> {
    let asked = match control::reach(&configuration.data.value).await {
        Ok(None) => return None,
        Ok(Some(stream)) => control::question(stream, "status").await,
        Err(failure) => Err(failure),
    };
    match asked {
        Ok(status) => {
            let detail = format!("runs as process {}", status["process"]);
            findings.push(Finding::new("server", Outcome::Well(detail)));
            Some(status)
        }
        Err(failure) => {
            findings.push(Finding::new("server", Outcome::Failed(failure)));
            None
        }
    }
}

/// To what the server that runs is confined, or would be. Less than all of it is nothing that the operator has done wrong.
fn confinement(configuration: &Configuration, status: Option<&Value>) -> String {
    let running = status.and_then(|status| status["confined"]["summary"].as_str()).map(str::to_owned);
    running.unwrap_or_else(|| Confinement::tried(configuration).to_string())
}

fn report(findings: Vec<Finding>, output: Output) -> Result<Exit, Failure> {
    let (mut rows, mut data, mut exit) = (Vec::new(), Vec::new(), Exit::Ok);
    for Finding { what, outcome } in findings {
        let (level, failure) = match outcome {
            Outcome::Well(detail) => {
                data.push(json!({"check": what, "level": "ok", "detail": detail}));
                rows.push(vec!["ok".to_owned(), what, detail]);
                continue;
            }
            Outcome::Degraded(failure) => ("warning", failure),
            Outcome::Failed(failure) => ("problem", failure),
        };
        exit = match (level, exit) {
            // The first problem counts.
            ("problem", Exit::Ok | Exit::Degraded) => failure.code.exit(),
            ("warning", Exit::Ok) => Exit::Degraded,
            (_, exit) => exit,
        };
        let next = failure.next.as_deref().unwrap_or(failure.code.next());
        data.push(json!({
            "check": what, "level": level, "detail": failure.message, "code": failure.code.as_str(), "next": next,
        }));
        rows.push(vec![level.to_uppercase(), what, format!("{} [{}]", failure.message, failure.code)]);
        rows.push(vec![String::new(), String::new(), format!("next: {next}")]);
    }
    output.result(&table(&rows), &json!({"findings": data}))?;
    Ok(exit)
}
