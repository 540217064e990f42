//! From the words of a command line to the JSON object of a call's arguments.

use super::{
    encode::{check, expected},
    error::{ArgumentProblem, CallError, Echo, Found, is_identifier, suggest},
    interface::Method,
    limits::MAX_ECHOED_NAME,
    scalar::{Scalar, found},
    schema::{FieldNode, FieldPlace, SchemaSet, StructNode, Type},
};
use serde_json::{Map, Value, error::Category};

pub(super) fn arguments(method: &Method<'_>, arguments: &[String]) -> Result<Value, CallError> {
    let schemas = method.schemas();
    let parameters = schemas.structure(method.parameters_id())?;
    let value = match arguments {
        [only] if only.trim_start().starts_with('{') => from_json(only).map_err(ArgumentProblem::here)?,
        [only] => match (pair(parameters, only), &parameters.fields[..]) {
            (None, [field]) => Value::Object(Map::from_iter([member(schemas, field, only)?])),
            _ => pairs(schemas, parameters, arguments)?,
        },
        _ => pairs(schemas, parameters, arguments)?,
    };
    check(schemas, method.parameters_id(), &value)?;
    Ok(value)
}

fn pairs(schemas: &SchemaSet, parameters: &StructNode, arguments: &[String]) -> Result<Value, CallError> {
    let mut object = Map::new();
    for (index, argument) in arguments.iter().enumerate() {
        let (name, text) =
            pair(parameters, argument).ok_or_else(|| ArgumentProblem::NotAPair { position: index + 1 }.here())?;
        let field = parameters.field(name).ok_or_else(|| unknown(parameters, name))?;
        let (name, value) = member(schemas, field, text)?;
        if object.insert(name.clone(), value).is_some() {
            return Err(ArgumentProblem::Duplicate.here().in_member(&name));
        }
    }
    Ok(Value::Object(object))
}

/// Splits `name=value`. What precedes the `=` must be a parameter's name or look like one: text with an `=`
/// somewhere in it, such as a reference with hints, is no pair.
fn pair<'a>(parameters: &StructNode, argument: &'a str) -> Option<(&'a str, &'a str)> {
    let (name, value) = argument.split_once('=')?;
    let fits = is_identifier(name) && (name.len() <= MAX_ECHOED_NAME || parameters.field(name).is_some());
    fits.then_some((name, value))
}

pub(super) fn unknown(structure: &StructNode, name: &str) -> CallError {
    let suggestion = suggest(name, structure.field_names());
    ArgumentProblem::Unknown { name: Echo::of(name), suggestion }.here()
}

fn member(schemas: &SchemaSet, field: &FieldNode, text: &str) -> Result<(String, Value), CallError> {
    let value = match &field.place {
        FieldPlace::Group(_) => from_json(text),
        FieldPlace::Slot(slot) => from_text(schemas, &slot.kind, text),
    };
    value.map(|value| (field.name.clone(), value)).map_err(|problem| problem.here().in_member(&field.name))
}

/// Only what the text means is decided here; whether it fits is [`check`]'s business.
fn from_text(schemas: &SchemaSet, kind: &Type, text: &str) -> Result<Value, ArgumentProblem> {
    let other = || ArgumentProblem::Type { expected: expected(schemas, kind), found: Found::Text };
    match kind {
        Type::Text | Type::Data => Ok(Value::String(text.to_owned())),
        Type::Void if matches!(text, "" | "null") => Ok(Value::Null),
        Type::Void => Err(other()),
        Type::Scalar(Scalar::Bool) => text.parse().map(Value::Bool).map_err(|_| other()),
        Type::Scalar(Scalar::Enum(id)) => {
            let named = schemas.enumerants(*id).iter().any(|name| name == text);
            let number = text.parse::<u16>().ok().filter(|_| !named);
            Ok(number.map_or_else(|| Value::String(text.to_owned()), Value::from))
        }
        Type::Scalar(Scalar::Float32 | Scalar::Float64) => Ok(Value::String(text.to_owned())),
        Type::Scalar(_) => {
            let number = text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from));
            Ok(number.unwrap_or_else(|_| Value::String(text.to_owned())))
        }
        Type::Struct(_) | Type::List(_) | Type::Interface(_) | Type::Capability | Type::AnyPointer => from_json(text),
    }
}

/// The text itself is not repeated, and neither is serde_json's message, which may contain parts of it.
fn from_json(text: &str) -> Result<Value, ArgumentProblem> {
    serde_json::from_str(text).map_err(|error| ArgumentProblem::NotJson {
        kind: match error.classify() {
            Category::Eof => "it ends too early",
            Category::Io | Category::Syntax | Category::Data => "a mistake",
        },
        line: error.line(),
        column: error.column(),
    })
}

/// For values that should be an object and are something else.
pub(super) fn not_an_object(name: String, value: &Value) -> CallError {
    ArgumentProblem::Type { expected: format!("an object ({name})"), found: found(value) }.here()
}
