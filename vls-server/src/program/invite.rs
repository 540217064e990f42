//! `vls-server invite`: whom a closed server lets in.
//!
//! An invite is drawn here and shown once; the server is told its hash and never sees it before a vat shows it. The server
//! that runs does the rest, through its control socket; when none runs, its folder is opened here.

use std::{rc::Rc, str::FromStr, time::Duration};

use console::{Failure, Output, ago, table};
use data_encoding::HEXLOWER;
use schemas::{ErrorCode, Exit, Invite, InviteHash, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Place, config::Configuration, control, transfer};
use crate::{
    clock::{Clock, SystemClock},
    durable::DurableRegistry,
    registry::InviteTerms,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum InviteCommand {
    /// Make an invite, and show it once: whoever has the text can register new vats with it
    New(NewArguments),
    /// Tell which invites there are, by name
    List(Place),
    /// Take an invite back; vats that have come in by it stay
    Revoke(RevokeArguments),
}

#[derive(Debug, clap::Args)]
pub(super) struct NewArguments {
    #[command(flatten)]
    place: Place,
    /// How many new vats it lets in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// When it ends: 30d, 12h, 45m or 90s from now [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<Span>,
    /// Whom it is for, to be told by `list`
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArguments {
    #[command(flatten)]
    place: Place,
    /// The name of the invite, as `new` and `list` tell it
    name: String,
}

/// A length of time as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span(Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a time is a number and d, h, m or s, such as 30d";
        let seconds = match text.as_bytes().last() {
            Some(b'd') => 86_400,
            Some(b'h') => 3_600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(WRONG),
        };
        // Its last byte is ASCII.
        let number = &text[..text.len() - 1];
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u32 = number.parse().ok().filter(|number| is_number && *number > 0).ok_or(WRONG)?;
        Ok(Self(Duration::from_secs(u64::from(number) * seconds)))
    }
}

/// What is asked about invites, as it goes over the control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Question {
    /// To add the invite with this hash.
    New {
        /// In hexadecimal digits.
        hash: String,
        /// How many new ids it admits.
        uses: u32,
        /// Seconds since 1970 at which it ends.
        until: Option<u64>,
        /// For the operator.
        note: String,
    },
    /// To tell all of them.
    List,
    /// To take the one with this name back.
    Revoke(String),
}

/// `vls-server invite`
pub(super) async fn invite(command: &InviteCommand, output: Output) -> Result<Exit, Failure> {
    match command {
        InviteCommand::New(arguments) => new(arguments, output).await,
        InviteCommand::List(place) => list(place, output).await,
        InviteCommand::Revoke(RevokeArguments { place, name }) => {
            ask(&Configuration::load(&place.flags())?, &Question::Revoke(name.clone())).await?;
            output.result(&format!("{name} lets nobody in any more"), &json!({"revoked": name}))?;
            Ok(Exit::Ok)
        }
    }
}

async fn new(arguments: &NewArguments, output: Output) -> Result<Exit, Failure> {
    let configuration = Configuration::load(&arguments.place.flags())?;
    let invite = Invite::generate()
        .map_err(|error| Failure::new(ErrorCode::SystemRandom, format!("no random numbers: {error}")))?;
    let until = arguments.expires.map(|Span(span)| SystemClock.now().wall.saturating_add(span).as_seconds());
    let hash = HEXLOWER.encode(invite.hash().as_bytes());
    let question = Question::New { hash, uses: arguments.uses, until, note: arguments.note.clone() };
    let made = ask(&configuration, &question).await?;
    let name = invite.hash().to_string();
    let text = invite.expose();
    let vats = if arguments.uses == 1 { "one new vat".to_owned() } else { format!("{} new vats", arguments.uses) };
    let mut human = format!(
        "{}\nIt lets in {vats}, is called {name}, and is not shown again. Who has it says: vat vls add ENTRY --invite TEXT",
        text.as_str()
    );
    if made["closed"] != json!(true) {
        human.push_str(
            "\nThe server is not closed: without registration.closed = true in its configuration nobody needs an invite.",
        );
    }
    let data = json!({"invite": text.as_str(), "name": name, "uses": arguments.uses, "until": until});
    output.result(&human, &data)?;
    Ok(Exit::Ok)
}

async fn list(place: &Place, output: Output) -> Result<Exit, Failure> {
    let answer = ask(&Configuration::load(&place.flags())?, &Question::List).await?;
    let now = SystemClock.now().wall.as_seconds();
    let rows: Vec<_> = answer["invites"].as_array().into_iter().flatten().map(|invite| row(invite, now)).collect();
    let human = if rows.is_empty() { "There are no invites.".to_owned() } else { table(&rows) };
    output.result(&human, &answer)?;
    Ok(Exit::Ok)
}

fn row(invite: &Value, now: u64) -> Vec<String> {
    let number = |key: &str| invite[key].as_u64();
    let text = |key: &str| console::printable(invite[key].as_str().unwrap_or_default());
    let end = match number("until") {
        None => "does not end".to_owned(),
        Some(until) if until <= now => "has ended".to_owned(),
        Some(until) => match (until - now).div_ceil(3_600) {
            hours @ ..=48 => format!("ends within {hours} h"),
            hours => format!("ends in {} days", hours / 24),
        },
    };
    let made = format!("made {}", ago(now.saturating_sub(number("made").unwrap_or(now))));
    vec![text("name"), format!("for {} more", number("uses").unwrap_or(0)), end, made, text("note")]
}

/// Has a question answered by the server of this data folder, whether it runs or not.
async fn ask(configuration: &Configuration, question: &Question) -> Result<Value, Failure> {
    if let Some(stream) = control::reach(&configuration.data.value).await? {
        let question = serde_json::to_string(question).map_err(internal)?;
        return control::question(stream, &format!("{}{question}", control::INVITE)).await;
    }
    let registry = transfer::open(configuration)?;
    let answered = answer(&registry, question).await;
    registry.close().map_err(Failure::from)?;
    answered
}

/// Answers a question that came over the control socket.
pub(super) async fn answer_text(registry: &Rc<DurableRegistry>, question: &str) -> Result<Value, Failure> {
    let unknown = |_| Failure::new(ErrorCode::SessionUnsupported, "this server does not know what it is asked");
    answer(registry, &serde_json::from_str(question).map_err(unknown)?).await
}

async fn answer(registry: &DurableRegistry, question: &Question) -> Result<Value, Failure> {
    match question {
        Question::New { hash, uses, until, note } => {
            let hash = HEXLOWER.decode(hash.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
            let hash = hash.map(InviteHash::from_bytes).ok_or_else(|| internal("a hash has 64 hexadecimal digits"))?;
            let made = registry.clock().now().wall;
            let terms =
                InviteTerms { uses: *uses, made, until: until.map(Timestamp::from_seconds), note: note.clone() };
            registry.invite(hash, terms).await??;
            tracing::info!(invite = %hash, uses, "an invite was made");
            let (_, is_closed, _) = registry.admissions();
            Ok(json!({"name": hash.to_string(), "closed": is_closed}))
        }
        Question::List => {
            let invites = registry.invites().await?;
            let shown = invites.iter().map(|(hash, terms)| {
                json!({
                    "name": hash.to_string(), "uses": terms.uses, "made": terms.made.as_seconds(),
                    "until": terms.until.map(Timestamp::as_seconds), "note": terms.note,
                })
            });
            Ok(json!({"invites": shown.collect::<Vec<_>>()}))
        }
        Question::Revoke(name) => {
            if !registry.revoke_invite(name).await? {
                return Err(Failure::new(ErrorCode::VlsInviteNotFound, format!("there is no invite {name}")));
            }
            tracing::info!(invite = %name, "an invite was revoked");
            Ok(json!({"revoked": name}))
        }
    }
}

fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        let seconds = |text: &str| text.parse::<Span>().map(|Span(span)| span.as_secs());
        assert_eq!(
            [seconds("30d"), seconds("12h"), seconds("45m"), seconds("90s")],
            [Ok(2_592_000), Ok(43_200), Ok(2_700), Ok(90)]
        );
        for wrong in ["", "d", "30", "30x", "+3d", "-3d", "0d", "3 d", "3é", "4294967296d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
