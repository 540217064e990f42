//! `vat resolve`, `vat vls test`: what the search path knows.

use std::time::Instant;

use console::{Failure, ago, table};
use schemas::{Coded, ErrorCode, Exit, Hints, SignedRecord, VatAddress, VatId};
use serde_json::{Value, json};
use vls_client::{Attempt, ClockSkew, Outcome, Resolution, Sighting, Summary};

use super::{
    Context, block_on,
    connect::{address_of, client_endpoint, owner, resolver},
    probe::probe,
    settings::parse_entry,
};
use crate::{
    address_book::AddressBook,
    home::Name,
    process::{clock_warning, system_clock},
};

/// `vat resolve TARGET [--explain]`
pub(super) fn resolve(context: &Context, target: &str, explain: bool) -> Result<Exit, Failure> {
    let (id, hints, own) = subject(context, target)?;
    block_on(async {
        let endpoint = client_endpoint()?;
        let resolver = resolver(context, &endpoint, context.config.timeout.value)?;
        let skew = async { if explain { resolver.clock_skew().await } else { None } };
        let (found, skew) = futures::join!(resolver.resolve(id, &hints), skew);
        drop(resolver);
        endpoint.close().await;
        if let Some(skew) = &skew {
            context.output.notice(&clock_warning(skew));
        }
        match found {
            Ok(resolution) => print(context, id, &resolution, skew.filter(|_| explain), explain),
            Err(error) => match own {
                // One's own vat is never lost: it is found through its socket, whatever the search path says.
                Some(name) => print_local(context, &name, id, &error.to_string()).await,
                // The error has a line for each place already.
                None => Err(error.into()),
            },
        }
    })
}

/// Whom the command is about: a public address, one's own vat, or an address book entry.
fn subject(context: &Context, target: &str) -> Result<(VatId, Hints, Option<Name>), Failure> {
    if target.contains("://") || target.len() == VatId::TEXT_LENGTH {
        let address: VatAddress = target.parse()?;
        let own = context.home.name_of(address.id)?;
        return Ok((address.id, address.hints, own));
    }
    let name: Name = target.parse()?;
    if context.home.places(&name).folder.is_dir() {
        let (_, id) = context.home.vat(&name)?;
        return Ok((id, Hints::default(), Some(name)));
    }
    if let Some(book) = AddressBook::open(&context.home)?
        && let Some(reference) = book.find(&name)?
    {
        return Ok((reference.id, reference.hints, None));
    }
    let message = format!("there is no vat and no address book entry named {name} here");
    Err(Failure::new(ErrorCode::VatNotFound, message))
}

fn print(
    context: &Context,
    id: VatId,
    found: &Resolution,
    skew: Option<ClockSkew>,
    explain: bool,
) -> Result<Exit, Failure> {
    let record = found.record.record();
    let age = age_of(&found.record);
    let mut rows = vec![
        vec!["vat".to_owned(), address_of(id)],
        vec!["state".to_owned(), format!("{}, signed {}", record.state, ago(age))],
        vec!["epoch".to_owned(), format!("{}, turn {}", record.epoch, record.turn)],
    ];
    rows.extend(record.addresses.iter().map(|address| vec!["address".to_owned(), address.described()]));
    rows.push(vec!["record".to_owned(), found.freshness.as_str().to_owned()]);
    let mut human = table(&rows);
    if explain {
        human = format!("{human}\n\n{}", attempts_table(found));
    }
    let mut data = described(&found.record);
    data["freshness"] = json!(found.freshness.as_str());
    data["attempts"] = json!(found.attempts);
    if let Some(skew) = skew {
        data["clock_skew"] =
            json!({"code": skew.code().as_str(), "reason": skew.to_string(), "seconds": skew.difference.as_secs()});
    }
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// What a record says.
fn described(signed: &SignedRecord) -> Value {
    let record = signed.record();
    let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
    let path: Vec<_> = record.search_path.iter().map(ToString::to_string).collect();
    json!({
        "vat": address_of(signed.id()), "state": record.state.as_str(), "age": age_of(signed), "epoch": record.epoch,
        "turn": record.turn, "timestamp": signed.timestamp().as_micros(), "expires": record.expires.as_seconds(),
        "addresses": addresses, "search_path": path,
    })
}

/// Seconds since it was signed.
fn age_of(signed: &SignedRecord) -> u64 {
    system_clock()().as_seconds().saturating_sub(signed.timestamp().as_seconds())
}

/// `vat resolve TARGET --watch`
pub(super) fn watch(context: &Context, target: &str) -> Result<Exit, Failure> {
    let (id, hints, _) = subject(context, target)?;
    block_on(async {
        let endpoint = client_endpoint()?;
        let mut watching = resolver(context, &endpoint, context.config.timeout.value)?.watch(id, &hints)?;
        let interrupted = tokio::signal::ctrl_c();
        futures::pin_mut!(interrupted);
        loop {
            tokio::select! {
                sighting = watching.next() => print_sighting(context, id, &sighting)?,
                _ = &mut interrupted => break,
            }
        }
        drop(watching);
        endpoint.close().await;
        Ok(Exit::Ok)
    })
}

fn print_sighting(context: &Context, id: VatId, sighting: &Sighting) -> Result<(), Failure> {
    match sighting {
        Sighting::Registered(signed) => {
            let record = signed.record();
            let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
            let human = format!(
                "{}, epoch {}, turn {}, signed {}  {}",
                record.state,
                record.epoch,
                record.turn,
                ago(age_of(signed)),
                addresses.join(" ")
            );
            // A vat that sleeps has no address.
            context.output.result(human.trim_end(), &described(signed))
        }
        Sighting::Unreachable => context
            .output
            .result("unknown: no location server can be reached", &json!({"vat": address_of(id), "state": "unknown"})),
        // Or something that a later version of the library tells: it is not seen where it was.
        _ => context
            .output
            .result("gone: nobody has heard from it lately", &json!({"vat": address_of(id), "state": "gone"})),
    }
}

async fn print_local(context: &Context, name: &Name, id: VatId, why: &str) -> Result<Exit, Failure> {
    let (places, _) = context.home.vat(name)?;
    let state = match owner(name, &places).await? {
        Some(_) => "awake",
        None => "asleep",
    };
    context.output.notice(&format!("{name} is on this machine, but the search path does not lead to it:\n{why}"));
    let human = format!("{}\n{state} on this machine, as {name}", address_of(id));
    let data = json!({"vat": address_of(id), "state": state, "name": name.as_str(), "local": true});
    context.output.result(&human, &data)?;
    Ok(if context.config.search_path.value.is_empty() { Exit::Ok } else { Exit::Degraded })
}

/// What each place answered; what the record says stands above already.
fn attempts_table(found: &Resolution) -> String {
    let shown = Summary::from(&found.record);
    let row = |attempt: &Attempt| {
        let milliseconds = format!("{:.1} ms", attempt.elapsed.as_secs_f64() * 1000.0);
        let outcome = match &attempt.outcome {
            Outcome::Record { summary, age } if *summary == shown => match age {
                Some(age) => format!("this record, renewed {}", ago(age.as_secs())),
                None => "this record".to_owned(),
            },
            other => other.to_string(),
        };
        vec![attempt.candidate.to_string(), milliseconds, outcome]
    };
    table(&found.attempts.iter().map(row).collect::<Vec<_>>())
}

/// `vat vls test ENTRY`
pub(super) fn test(context: &Context, entry: &str) -> Result<Exit, Failure> {
    let entry = parse_entry(entry)?;
    block_on(async {
        let endpoint = client_endpoint()?;
        let began = Instant::now();
        let answer = probe(context.config.carriers(), &endpoint, &entry).await;
        let elapsed = began.elapsed();
        endpoint.close().await;
        let answer = answer.map_err(|failure| failure.while_doing(&entry.to_string()))?;
        let skew = system_clock()().as_micros().cast_signed() - answer.time.as_micros().cast_signed();
        let (milliseconds, skew) = (elapsed.as_secs_f64() * 1000.0, skew as f64 / 1e6);
        let human = format!(
            "{entry} answers after {milliseconds:.1} ms{}\nIts clock differs from this one by {skew:.1} s.",
            answer.seen_from.as_ref().map(|from| format!(" and sees this machine as {from}")).unwrap_or_default()
        );
        let data = json!({
            "entry": entry.to_string(), "milliseconds": milliseconds, "clock_skew_seconds": skew,
            "seen_from": answer.seen_from,
        });
        context.output.result(&human, &data)?;
        Ok(Exit::Ok)
    })
}
