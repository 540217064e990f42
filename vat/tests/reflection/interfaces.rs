//! Finding interfaces and methods, and saying how they are called.

use crate::support::{everything, kinds, objects, round_trip, to_json, to_message};
use capnp::{message, serialize};
use schemas::{Coded, ErrorCode, objects_capnp::counter};
use serde_json::json;
use vat::reflection::{CallError, SchemaError, SchemaSet, decode};

#[test]
fn signatures_say_types_and_defaults() {
    let schemas = objects();
    let counter = schemas.interface_by_name("Counter").unwrap();
    assert_eq!(counter.method("add").unwrap().signature(), "add(by :UInt64 = 1) -> (total :UInt64)");
    let guestbook = schemas.interface_by_name("Guestbook").unwrap();
    assert_eq!(
        guestbook.method("list").unwrap().signature(),
        "list(after :UInt64, limit :UInt32 = 50) -> (entries :List(Entry), more :Bool)"
    );
    let kinds = kinds();
    let signature = |method| everything(&kinds, method).signature();
    assert_eq!(signature("ping"), "ping(text :Text = \"hello\") -> (text :Text)");
    assert_eq!(signature("stream"), "stream(chunk :Data) -> stream");
    assert_eq!(signature("generic"), "generic(value :AnyPointer) -> (value :AnyPointer, box :Box)");
    assert_eq!(signature("subscribe"), "subscribe(listener :Listener) -> (opaque :Opaque)");
    assert_eq!(
        signature("scalars"),
        "scalars(flag :Bool = true, int :Int16, big :UInt64 = \"9007199254740993\", float :Float32, \
         color :Color = \"green\", text :Text, data :Data, numbers :List(Int8) = [1,-1], \
         point :Point = {\"x\":2,\"y\":-1}, void :Void) -> ()"
    );
    assert_eq!(
        signature("union"),
        "union(before :UInt8, nothing :Void | number :UInt32 = 5 | words :List(Text) | pair :group, shape :group, \
         plain :group) -> ()"
    );
}

#[test]
fn ids_and_ordinals_are_those_of_the_generated_code() {
    let schemas = objects();
    let interface = schemas.interface(<counter::Client as capnp::traits::HasTypeId>::TYPE_ID).unwrap();
    assert_eq!(interface.name(), "Counter");
    let methods: Vec<_> = interface.methods().map(|method| (method.name(), method.ordinal())).collect();
    assert_eq!(methods, [("add", 0), ("get", 1)]);
    assert!(interface.methods().all(|method| method.interface_id() == interface.id()));
    let parameters: Vec<_> = interface.method("add").unwrap().parameters().collect();
    assert_eq!((parameters[0].name, parameters[0].type_text.as_str()), ("by", "UInt64"));
    assert_eq!(parameters[0].default, Some(json!(1)));
    assert!(interface.method("get").unwrap().parameters().next().is_none());
}

#[test]
fn inherited_methods_are_called_on_the_interface_that_declares_them() {
    let schemas = kinds();
    let interface = schemas.interface_by_name("Everything").unwrap();
    let id = |name| schemas.interface_by_name(name).unwrap().id();
    let method = |name| interface.method(name).unwrap();
    assert_eq!((method("echo").interface_id(), method("echo").ordinal()), (id("Everything"), 0));
    assert_eq!((method("left").interface_id(), method("left").ordinal()), (id("Left"), 0));
    assert_eq!((method("right").interface_id(), method("right").ordinal()), (id("Right"), 0));
    assert_eq!((method("ping").interface_id(), method("ping").ordinal()), (id("Root"), 0));
    // Both superclasses have it: the one declared first is meant.
    assert_eq!((method("same").interface_id(), method("same").ordinal()), (id("Left"), 1));
    let names: Vec<_> = interface.methods().map(|method| method.name()).collect();
    let ping = names.iter().filter(|name| **name == "ping").count();
    assert_eq!(ping, 1, "reached along two ways, listed once: {names:?}");
}

#[test]
fn an_unknown_method_lists_the_known_ones_and_the_one_that_was_meant() {
    let schemas = objects();
    let counter = schemas.interface_by_name("Counter").unwrap();
    let error = counter.method("Ad").unwrap_err();
    assert_eq!(error.to_string(), "Counter has no such method: `Ad` (did you mean `add`?); it has: add, get");
    assert_eq!(error.code(), ErrorCode::ObjectUnknownMethod);
    let error = counter.method("frobnicate").unwrap_err();
    assert_eq!(error.to_string(), "Counter has no such method: `frobnicate`; it has: add, get");
    // Arguments in the wrong order must not put a reference into a message.
    let error = counter.method("vat://somebody#secretsecret").unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_closure_is_whole_and_small() {
    let schemas = objects();
    let counter = schemas.interface_by_name("Counter").unwrap();
    let closure = schemas.closure(counter.id()).unwrap();
    assert!(closure.len() < 4096, "a small part of {} bytes: {}", schemas::SCHEMA_REQUEST.len(), closure.len());
    let alone = SchemaSet::parse(&closure).unwrap();
    assert!(alone.interface_by_name("Guestbook").is_none());
    let add = alone.interface(counter.id()).unwrap().method("add").unwrap();
    assert_eq!(add.signature(), "add(by :UInt64 = 1) -> (total :UInt64)");
    let message = to_message(&alone, add.parameters_id(), &add.arguments(&["41".to_owned()]).unwrap()).unwrap();
    assert_eq!(message.get_root_as_reader::<counter::add_params::Reader<'_>>().unwrap().get_by(), 41);
}

#[test]
fn every_interface_survives_its_closure_unchanged() {
    for schemas in [objects(), kinds()] {
        for name in ["Counter", "Guestbook", "Notes", "Directory", "Vat", "Owner", "LocationService", "Everything"] {
            let Some(interface) = schemas.interface_by_name(name) else { continue };
            let closure = schemas.closure(interface.id()).unwrap();
            let alone = SchemaSet::parse(&closure).unwrap();
            let signatures = |schemas: &SchemaSet| -> Vec<String> {
                let interface = schemas.interface(interface.id()).unwrap();
                interface.methods().map(|method| method.signature()).collect()
            };
            assert_eq!(signatures(&alone), signatures(&schemas));
            assert_eq!(alone.closure(interface.id()).unwrap(), closure, "a closure is its own closure");
        }
    }
}

#[test]
fn a_missing_schema_is_an_error_of_its_own() {
    let schemas = objects();
    assert!(schemas.interface(1).is_none());
    let error = schemas.closure(1).unwrap_err();
    assert!(matches!(error, SchemaError::Missing { id: 1 }));
    assert_eq!(error.code(), ErrorCode::ObjectUnknownInterface);
    let error = to_message(&schemas, 1, &json!({})).map(drop).unwrap_err();
    assert!(matches!(error, CallError::Schema(SchemaError::Missing { id: 1 })));
    assert_eq!(error.code(), ErrorCode::ObjectUnknownInterface);
}

#[test]
fn merging_adds_and_never_redefines() {
    let mut schemas = SchemaSet::default();
    assert!(schemas.interface_by_name("Counter").is_none());
    schemas.merge(objects());
    let before = schemas.interface_by_name("Counter").unwrap().method("add").unwrap().signature();
    // The same interface, described by somebody who would like its default to be 255.
    let mut forged = schemas.closure(schemas.interface_by_name("Counter").unwrap().id()).unwrap();
    let changed = (0..forged.len()).any(|index| {
        forged[index] ^= 0xfe;
        let other = SchemaSet::parse(&forged);
        let reaches = other.is_ok_and(|other| {
            let counter = other.interface_by_name("Counter").map(|counter| counter.method("add"));
            counter.is_some_and(|add| add.is_ok_and(|add| add.signature().contains("= 255")))
        });
        if !reaches {
            forged[index] ^= 0xfe;
        }
        reaches
    });
    assert!(changed, "the forgery is one");
    schemas.merge(SchemaSet::parse(&forged).unwrap());
    assert_eq!(schemas.interface_by_name("Counter").unwrap().method("add").unwrap().signature(), before);
    schemas.merge(kinds());
    assert!(schemas.interface_by_name("Everything").is_some() && schemas.interface_by_name("Counter").is_some());
}

#[test]
fn a_default_that_contains_itself_is_shown_once() {
    let schemas = kinds();
    let matryoshka = everything(&schemas, "matryoshka");
    let message = to_message(&schemas, matryoshka.results_id(), &json!({"doll": {"name": "outer"}})).unwrap();
    let expected = json!({"doll": {"name": "outer", "inner": {"name": "doll", "inner": null}}});
    assert_eq!(to_json(&schemas, matryoshka.results_id(), &message).unwrap(), expected);
}

#[test]
fn capabilities_in_answers_are_named_and_foreign_pointers_are_opaque() {
    let schemas = kinds();
    let subscribe = everything(&schemas, "subscribe");
    let nothing = json!({"any": null, "capability": null, "listener": null, "listeners": [], "box": null});
    assert_eq!(round_trip(&schemas, subscribe.results_id(), &json!({"opaque": {}})), json!({"opaque": nothing}));
    // Root → struct with one pointer → Opaque with five: a struct, two capabilities, a list of one, a Box.
    let capability = 3u64;
    let words: [u64; 11] = [
        1 << 48,
        5 << 48,
        (4 << 2) | (1 << 32),
        capability,
        capability | 1 << 32,
        (2 << 2) | 1 | (6 << 32) | (1 << 35),
        (2 << 2) | (1 << 48),
        42,
        capability,
        1 | (2 << 32) | (2 << 35),
        u64::from(b'b'),
    ];
    let mut bytes = vec![0, 0, 0, 0, 11, 0, 0, 0];
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let message = serialize::read_message(&bytes[..], message::ReaderOptions::new()).unwrap();
    assert_eq!(
        decode(&schemas, subscribe.results_id(), message.get_root().unwrap()).unwrap(),
        json!({"opaque": {
            "any": {"opaque": "AnyPointer"},
            "capability": {"capability": "Capability"},
            "listener": {"capability": "Listener"},
            "listeners": [{"capability": "Listener"}],
            "box": {"value": {"opaque": "AnyPointer"}},
        }})
    );
}

#[test]
fn an_enumerant_that_is_not_known_is_its_number() {
    let schemas = kinds();
    let echo = everything(&schemas, "echo");
    let json = round_trip(&schemas, echo.parameters_id(), &json!({"scalars": {"color": 77}}));
    assert_eq!(json["scalars"]["color"], json!(77));
    assert_eq!(round_trip(&schemas, echo.parameters_id(), &json), json);
}

#[test]
fn an_active_union_member_that_is_not_known_is_left_out() {
    let schemas = kinds();
    let union = everything(&schemas, "union");
    let message = to_message(&schemas, union.parameters_id(), &json!({"before": 3, "number": 8})).unwrap();
    let bytes = serialize::write_message_to_words(&message);
    // The active member is one of the message's 16-bit units: the one with which all four members go.
    let gone = (8..bytes.len()).step_by(2).any(|place| {
        let mut changed = bytes.clone();
        changed[place..place + 2].copy_from_slice(&[99, 0]);
        let message = serialize::read_message(&changed[..], message::ReaderOptions::new()).unwrap();
        let Ok(json) = decode(&schemas, union.parameters_id(), message.get_root().unwrap()) else { return false };
        let members: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        members == ["before", "shape", "plain"]
    });
    assert!(gone);
}
