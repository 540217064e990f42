//! What all tests of reflection use.

use capnp::{any_pointer, message};
use serde_json::Value;
use std::path::Path;
use vat::reflection::{CallError, Method, SchemaSet, decode, encode};

/// What `kinds.capnp` compiles to.
pub(crate) const KINDS: &[u8] = include_bytes!("kinds.cgr");

/// The constant `sample` of `kinds.capnp`, as the official `capnp eval -ojson` prints it.
pub(crate) const OFFICIAL_SAMPLE: &str = include_str!("sample.json");

pub(crate) fn kinds() -> SchemaSet {
    SchemaSet::parse(KINDS).unwrap()
}

pub(crate) fn objects() -> SchemaSet {
    SchemaSet::parse(schemas::SCHEMA_REQUEST).unwrap()
}

pub(crate) fn everything<'a>(schemas: &'a SchemaSet, method: &str) -> Method<'a> {
    schemas.interface_by_name("Everything").unwrap().method(method).unwrap()
}

/// The id of the struct type `Kinds`.
pub(crate) fn kinds_id(schemas: &SchemaSet) -> u64 {
    everything(schemas, "echo").parameters_id()
}

pub(crate) type Message = message::Builder<message::HeapAllocator>;

pub(crate) fn to_message(schemas: &SchemaSet, id: u64, value: &Value) -> Result<Message, CallError> {
    let mut message = message::Builder::new_default();
    encode(schemas, id, value, message.init_root::<any_pointer::Builder<'_>>())?;
    Ok(message)
}

pub(crate) fn to_json(schemas: &SchemaSet, id: u64, message: &Message) -> Result<Value, CallError> {
    decode(schemas, id, message.get_root_as_reader().unwrap())
}

/// There and back.
pub(crate) fn round_trip(schemas: &SchemaSet, id: u64, value: &Value) -> Value {
    to_json(schemas, id, &to_message(schemas, id, value).unwrap()).unwrap()
}

pub(crate) fn compile_kinds() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reflection");
    capnpc_embedded::CompileCommand::new().src_prefix(&folder).file(folder.join("kinds.capnp")).compile().unwrap()
}

#[test]
fn committed_request_is_fresh() {
    assert!(KINDS == compile_kinds(), "stale: run `cargo test -p vat --test reflection -- --ignored regenerate`");
}

#[test]
#[ignore = "writes tests/reflection/kinds.cgr"]
fn regenerate() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reflection/kinds.cgr");
    std::fs::write(path, compile_kinds()).unwrap();
}
