//! Interfaces and their methods, as the command line asks for them.

use super::{
    arguments,
    decode::{decode, default_json},
    encode::encode,
    error::{CallError, Echo, SchemaError, suggest},
    limits::{MAX_SHOWN_DEFAULT_BYTES, MAX_SIGNATURE_BYTES},
    schema::{FieldNode, FieldPlace, InterfaceNode, Kind, MethodNode, Node, STREAM_RESULT, SchemaSet},
};
use capnp::any_pointer;
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Write as _};

/// An interface that a [`SchemaSet`] describes.
#[derive(Debug, Clone, Copy)]
pub struct Interface<'a> {
    schemas: &'a SchemaSet,
    node: &'a Node,
}

/// A method of an interface, its own or an inherited one.
#[derive(Debug, Clone, Copy)]
pub struct Method<'a> {
    schemas: &'a SchemaSet,
    declaring: &'a Node,
    ordinal: u16,
    node: &'a MethodNode,
}

/// One parameter or result of a method.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Parameter<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type, as the schema language writes it: `List(UInt64)`. `group` for a group or a named union.
    pub type_text: String,
    /// What it is if it is not given, unless that is zero, empty or absent, or too large to be shown.
    pub default: Option<Value>,
    /// Whether it is a member of the unnamed union, of which at most one is given.
    pub in_union: bool,
}

impl<'a> Interface<'a> {
    pub(super) fn new(schemas: &'a SchemaSet, node: &'a Node) -> Option<Self> {
        matches!(node.kind, Kind::Interface(_)).then_some(Self { schemas, node })
    }

    /// Its own name, without the scopes around it.
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.node.name
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.node.id
    }

    /// Its own methods in the order of their ordinals, then those of its superclasses, depth first, each
    /// once. Superclasses that are not described are passed over.
    pub fn methods(&self) -> impl Iterator<Item = Method<'a>> + use<'a> {
        let schemas = self.schemas;
        self.ancestry().0.into_iter().flat_map(move |(declaring, interface)| {
            (0..=u16::MAX).zip(&interface.methods).map(move |(ordinal, node)| Method {
                schemas,
                declaring,
                ordinal,
                node,
            })
        })
    }

    /// The method of this name. Of several, one of the interface's own comes first, then the superclasses'
    /// in the order in which they are declared.
    ///
    /// # Errors
    /// [`CallError::UnknownMethod`]; [`CallError::Schema`] if a superclass that may have it, or its
    /// parameters or results, are not described.
    pub fn method(&self, name: &str) -> Result<Method<'a>, CallError> {
        if let Some(method) = self.methods().find(|method| method.name() == name) {
            for id in [method.parameters_id(), method.results_id()] {
                if id != STREAM_RESULT {
                    self.schemas.structure(id)?;
                }
            }
            return Ok(method);
        }
        if let Some(id) = self.ancestry().1 {
            return Err(SchemaError::Missing { id }.into());
        }
        let known: Vec<String> = self.methods().map(|method| method.name().to_owned()).collect();
        let suggestion = suggest(name, known.iter().map(String::as_str));
        Err(CallError::UnknownMethod { interface: self.name().to_owned(), name: Echo::of(name), known, suggestion })
    }

    /// The interface and its superclasses, each once, and the first of them that is not described. The
    /// visited set ends it even if an interface extends itself.
    fn ancestry(&self) -> (Vec<(&'a Node, &'a InterfaceNode)>, Option<u64>) {
        let mut found = Vec::new();
        let mut missing = None;
        let mut visited = BTreeSet::new();
        let mut waiting = vec![self.node.id];
        while let Some(id) = waiting.pop() {
            if !visited.insert(id) {
                continue;
            }
            match self.schemas.node(id) {
                Ok(node @ Node { kind: Kind::Interface(interface), .. }) => {
                    found.push((node, interface));
                    waiting.extend(interface.superclasses.iter().rev());
                }
                _ => missing = missing.or(Some(id)),
            }
        }
        (found, missing)
    }
}

impl<'a> Method<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.node.name
    }

    /// The interface that declares it, which a call has to name: a superclass for inherited methods.
    #[must_use]
    pub fn interface_id(&self) -> u64 {
        self.declaring.id
    }

    /// Its number in the interface that declares it.
    #[must_use]
    pub fn ordinal(&self) -> u16 {
        self.ordinal
    }

    /// The struct type of its parameters, for [`encode`] and [`decode`].
    #[must_use]
    pub fn parameters_id(&self) -> u64 {
        self.node.parameters
    }

    /// The struct type of its results, for [`encode`] and [`decode`].
    #[must_use]
    pub fn results_id(&self) -> u64 {
        self.node.results
    }

    /// Its parameters, in the order of their declaration.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter<'a>> + use<'a> {
        members(self.schemas, self.node.parameters)
    }

    /// Its results, in the order of their declaration.
    pub fn results(&self) -> impl Iterator<Item = Parameter<'a>> + use<'a> {
        members(self.schemas, self.node.results)
    }

    /// Such as `add(by :UInt64 = 1) -> (total :UInt64)`.
    #[must_use]
    pub fn signature(&self) -> String {
        let mut text = self.name().to_owned();
        write_members(&mut text, self.parameters());
        text.push_str(" -> ");
        if self.node.results == STREAM_RESULT {
            text.push_str("stream");
        } else {
            write_members(&mut text, self.results());
        }
        text
    }

    /// The arguments of a call, as one JSON object: from `name=value` pairs, from one JSON object, or, if the
    /// method has exactly one parameter, from its value alone. Values of text parameters are taken as they
    /// stand; numbers, `true`, `false`, enumerants and base64 as plain text; lists, structs and groups as
    /// JSON. An argument that begins with `{` and stands alone is the JSON object.
    ///
    /// The result is checked against the schema: [`Method::encode`] takes it.
    ///
    /// # Errors
    /// [`CallError::Argument`], with the method's signature.
    pub fn arguments(&self, arguments: &[String]) -> Result<Value, CallError> {
        arguments::arguments(self, arguments).map_err(|error| self.with_signature(error))
    }

    /// Writes arguments into a request.
    ///
    /// # Errors
    /// [`CallError::Argument`], with the method's signature; [`CallError::Schema`].
    pub fn encode(&self, arguments: &Value, out: any_pointer::Builder<'_>) -> Result<(), CallError> {
        encode(self.schemas, self.node.parameters, arguments, out).map_err(|error| self.with_signature(error))
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn decode(&self, answer: any_pointer::Reader<'_>) -> Result<Value, CallError> {
        decode(self.schemas, self.node.results, answer)
    }

    pub(super) fn schemas(&self) -> &'a SchemaSet {
        self.schemas
    }

    fn with_signature(&self, mut error: CallError) -> CallError {
        if let CallError::Argument(argument) = &mut error {
            argument.signature = Some(self.signature());
        }
        error
    }
}

fn members(schemas: &SchemaSet, id: u64) -> impl Iterator<Item = Parameter<'_>> + use<'_> {
    let fields: &[FieldNode] = schemas.structure(id).map_or(&[], |node| &node.fields);
    fields.iter().map(move |field| Parameter {
        name: &field.name,
        type_text: match &field.place {
            FieldPlace::Group(_) => "group".to_owned(),
            FieldPlace::Slot(slot) => schemas.type_text(&slot.kind),
        },
        default: match &field.place {
            FieldPlace::Group(_) => None,
            FieldPlace::Slot(slot) => default_json(schemas, slot),
        },
        in_union: field.discriminant.is_some(),
    })
}

/// `(a :Text, b :UInt64 = 1, c :Void | d :Bool)`, cut when the whole becomes too long.
fn write_members<'a>(text: &mut String, members: impl Iterator<Item = Parameter<'a>>) {
    text.push('(');
    let mut previous: Option<Parameter<'_>> = None;
    for member in members {
        if let Some(previous) = &previous {
            text.push_str(if previous.in_union && member.in_union { " | " } else { ", " });
        }
        if text.len() > MAX_SIGNATURE_BYTES {
            text.push('…');
            break;
        }
        // Writing to a String cannot fail.
        _ = write!(text, "{} :{}", member.name, member.type_text);
        if let Some(default) = member.default.as_ref().map(Value::to_string) {
            let shown = if default.len() > MAX_SHOWN_DEFAULT_BYTES { "…" } else { &default };
            _ = write!(text, " = {shown}");
        }
        previous = Some(member);
    }
    text.push(')');
}
