//! `vat call`: any method of any object, driven by schemas that are read at run time.

use std::{fmt::Write as _, time::Duration};

use console::{Failure, printable};
use schemas::{ErrorCode, Exit};
use serde_json::{Value, json};

use super::{
    Context, block_on,
    connect::{self, Reached, failure, within},
};
use crate::{
    limits::MAX_SCHEMA_BYTES,
    reflection::{Interface, SchemaSet},
};

/// `vat call TARGET [METHOD [key=value … | JSON]]`
pub(super) fn call(
    context: &Context,
    target: &str,
    method: Option<&str>,
    arguments: &[String],
    timeout: Option<Duration>,
) -> Result<Exit, Failure> {
    let deadline = timeout.unwrap_or(context.config.timeout.value);
    let target = connect::target(context, target)?;
    block_on(async {
        let reached = connect::reach(context, &target, deadline).await?;
        let outcome = match method {
            Some(method) => call_method(context, &reached, method, arguments, deadline).await,
            None => describe(context, &reached, deadline).await,
        };
        reached.close().await;
        let (human, data) = outcome?;
        context.output.result(&human, &data)?;
        Ok(Exit::Ok)
    })
}

async fn call_method(
    context: &Context,
    reached: &Reached,
    method: &str,
    arguments: &[String],
    deadline: Duration,
) -> Result<(String, Value), Failure> {
    let schemas = schema_of(context, reached, deadline).await?;
    let method = interface_of(&schemas, reached)?.method(method)?;
    let arguments = method.arguments(arguments)?;
    let mut request = reached.capability.new_call(method.interface_id(), method.ordinal(), None);
    method.encode(&arguments, request.get())?;
    let response = within(deadline, request.send().promise).await?;
    let results = method.decode(response.get().map_err(failure)?)?;
    Ok((render(&results), results))
}

async fn describe(context: &Context, reached: &Reached, deadline: Duration) -> Result<(String, Value), Failure> {
    let schemas = schema_of(context, reached, deadline).await?;
    let interface = interface_of(&schemas, reached)?;
    let methods: Vec<String> = interface.methods().map(|method| method.signature()).collect();
    let human = format!("{}\n  {}", interface.name(), methods.join("\n  "));
    Ok((human, json!({"interface": interface.name(), "methods": methods})))
}

fn interface_of<'a>(schemas: &'a SchemaSet, reached: &Reached) -> Result<Interface<'a>, Failure> {
    schemas.interface(reached.interface_id).ok_or_else(|| {
        let message = format!("the schema does not describe the object's interface {:#018x}", reached.interface_id);
        Failure::new(ErrorCode::ObjectUnknownInterface, message)
    })
}

/// The schema of the object's interface: built in, or else from the vat that has the object.
async fn schema_of(context: &Context, reached: &Reached, deadline: Duration) -> Result<SchemaSet, Failure> {
    let wanted = reached.interface_id;
    if let Some(kind) = context.kinds.iter().find(|kind| kind.interface_id() == wanted) {
        return Ok(SchemaSet::parse(kind.schema())?);
    }
    let mut request = reached.vat.schema_request();
    request.get().set_interface_id(wanted);
    let response = within(deadline, request.send().promise).await?;
    let bytes = response.get().and_then(|results| results.get_request()).map_err(failure)?;
    if bytes.len() > MAX_SCHEMA_BYTES {
        let message = format!("the vat's schema has {} bytes; at most {MAX_SCHEMA_BYTES} are read", bytes.len());
        return Err(Failure::new(ErrorCode::SessionProtocol, message));
    }
    Ok(SchemaSet::parse(bytes)?)
}

/// Results for a person: one `name: value` per line.
fn render(results: &Value) -> String {
    let Value::Object(fields) = results else { return results.to_string() };
    if fields.is_empty() {
        return "ok".to_owned();
    }
    let mut text = String::new();
    for (name, value) in fields {
        // Writing to a string cannot fail.
        let _ = match value {
            Value::String(value) => writeln!(text, "{name}: {}", printable(value)),
            Value::Array(items) => {
                let _ = writeln!(text, "{name}:{}", if items.is_empty() { " none" } else { "" });
                items.iter().try_for_each(|item| match item {
                    Value::String(item) => writeln!(text, "  {}", printable(item)),
                    item => writeln!(text, "  {item}"),
                })
            }
            value => writeln!(text, "{name}: {value}"),
        };
    }
    text
}
