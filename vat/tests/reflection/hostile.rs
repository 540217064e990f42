//! Schemas and answers come from strangers. Whatever they send, the answer is a value or an error, soon.

use crate::support::{KINDS, OFFICIAL_SAMPLE, everything, kinds, kinds_id, objects, round_trip, to_json, to_message};
use capnp::{
    message,
    schema_capnp::{code_generator_request, field, node, type_},
    serialize,
};
use proptest::{collection::vec, prelude::*};
use schemas::{Coded, ErrorCode};
use serde_json::{Value, json};
use vat::reflection::{ArgumentError, ArgumentProblem, CallError, SchemaError, SchemaSet, decode};

/// Everything that a program may do with a schema.
fn exercise(schemas: &SchemaSet, ids: &[u64]) {
    let sample: Value = serde_json::from_str(OFFICIAL_SAMPLE).unwrap();
    for interface in ids.iter().filter_map(|id| schemas.interface(*id)) {
        _ = interface.method("ech");
        _ = schemas.closure(interface.id()).map(|closure| SchemaSet::parse(&closure).unwrap());
        for method in interface.methods() {
            assert!(method.signature().len() < 4096);
            _ = method.arguments(&["7".to_owned()]);
            for value in [json!({}), sample.clone()] {
                for id in [method.parameters_id(), method.results_id()] {
                    if let Ok(message) = to_message(schemas, id, &value) {
                        _ = to_json(schemas, id, &message);
                    }
                }
            }
        }
    }
}

fn ids() -> Vec<u64> {
    let (kinds, objects) = (kinds(), objects());
    let names =
        ["Everything", "Left", "Right", "Root", "Listener", "Counter", "Guestbook", "Notes", "Directory", "Vat"];
    let find = |name| kinds.interface_by_name(name).or(objects.interface_by_name(name)).unwrap().id();
    names.map(find).to_vec()
}

proptest! {
    #[test]
    fn changed_schemas_never_panic(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), ours: bool) {
        let mut bytes = if ours { schemas::SCHEMA_REQUEST } else { KINDS }.to_vec();
        for (place, with) in changes {
            let place = place.index(bytes.len());
            bytes[place] ^= with;
        }
        if let Ok(schemas) = SchemaSet::parse(&bytes) {
            exercise(&schemas, &ids());
        }
    }

    #[test]
    fn schemas_with_a_changed_pointer_never_panic(place: prop::sample::Index, with: u64) {
        let mut bytes = KINDS.to_vec();
        let word = place.index(bytes.len() / 8) * 8;
        bytes[word..word + 8].copy_from_slice(&with.to_le_bytes());
        if let Ok(schemas) = SchemaSet::parse(&bytes) {
            exercise(&schemas, &ids());
        }
    }

    #[test]
    fn truncated_schemas_are_refused(length in 0..KINDS.len()) {
        prop_assert!(SchemaSet::parse(&KINDS[..length]).is_err());
    }

    #[test]
    fn random_bytes_are_no_schema_and_no_answer(bytes: Vec<u8>) {
        _ = SchemaSet::parse(&bytes).map(|schemas| exercise(&schemas, &ids()));
        let schemas = kinds();
        if let Ok(message) = serialize::read_message(&bytes[..], message::ReaderOptions::new())
            && let Ok(root) = message.get_root()
        {
            _ = decode(&schemas, kinds_id(&schemas), root);
        }
    }

    #[test]
    fn changed_answers_never_panic(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let schemas = kinds();
        let sample = serde_json::from_str(OFFICIAL_SAMPLE).unwrap();
        let message = to_message(&schemas, kinds_id(&schemas), &sample).unwrap();
        let mut bytes = serialize::write_message_to_words(&message);
        for (place, with) in changes {
            let place = place.index(bytes.len());
            bytes[place] ^= with;
        }
        if let Ok(message) = serialize::read_message(&bytes[..], message::ReaderOptions::new())
            && let Ok(root) = message.get_root()
            && let Ok(json) = decode(&schemas, kinds_id(&schemas), root)
        {
            // Whatever could be shown can be sent. Active members of unions that are not known were left out,
            // so it may read as another member; from then on it stays the same.
            let sent = round_trip(&schemas, kinds_id(&schemas), &json);
            prop_assert_eq!(round_trip(&schemas, kinds_id(&schemas), &sent), sent);
        }
    }
}

/// A schema in which `define` describes types 1, 2, 3, … as it likes.
fn forge(count: u32, define: impl Fn(u64, node::Builder<'_>)) -> Result<SchemaSet, SchemaError> {
    let mut message = message::Builder::new_default();
    let mut nodes = message.init_root::<code_generator_request::Builder<'_>>().init_nodes(count);
    for index in 0..count {
        let id = u64::from(index) + 1;
        let mut node = nodes.reborrow().get(index);
        node.set_id(id);
        node.set_display_name("forged.capnp:Forged");
        node.set_display_name_prefix_length(13);
        define(id, node);
    }
    SchemaSet::parse(&serialize::write_message_to_words(&message))
}

/// Makes the node a struct of one word and one pointer with fields `a`, `b`, … that `define` may change.
fn forge_struct(node: node::Builder<'_>, fields: u32, define: impl Fn(u32, field::Builder<'_>)) {
    let mut structure = node.init_struct();
    structure.set_data_word_count(1);
    structure.set_pointer_count(1);
    let mut list = structure.init_fields(fields);
    for index in 0..fields {
        let mut field = list.reborrow().get(index);
        field.set_name(["a", "b", "c"][usize::try_from(index).unwrap() % 3]);
        define(index, field);
    }
}

fn forge_slot(field: field::Builder<'_>, offset: u32, kind: impl Fn(type_::Builder<'_>)) {
    let mut slot = field.init_slot();
    slot.set_offset(offset);
    slot.reborrow().init_default_value();
    kind(slot.init_type());
}

fn forge_interface(node: node::Builder<'_>, method: &str, superclasses: &[u64]) {
    let mut interface = node.init_interface();
    let mut methods = interface.reborrow().init_methods(1);
    let mut only = methods.reborrow().get(0);
    only.set_name(method);
    only.set_param_struct_type(99);
    only.set_result_struct_type(99);
    let mut list = interface.init_superclasses(u32::try_from(superclasses.len()).unwrap());
    for (index, id) in (0..).zip(superclasses) {
        list.reborrow().get(index).set_id(*id);
    }
}

#[test]
fn interfaces_that_extend_each_other_end() {
    let schemas =
        forge(2, |id, node| forge_interface(node, ["x", "y"][usize::from(id == 2)], &[id, 3 - id, id])).unwrap();
    let interface = schemas.interface(1).unwrap();
    assert_eq!(interface.methods().map(|method| method.name()).collect::<Vec<_>>(), ["x", "y"]);
    assert!(matches!(interface.method("x"), Err(CallError::Schema(SchemaError::Missing { id: 99 }))));
    assert!(matches!(interface.method("z"), Err(CallError::UnknownMethod { .. })));
    assert!(matches!(schemas.closure(1), Err(SchemaError::Missing { id: 99 })));
}

#[test]
fn a_method_that_may_be_inherited_from_an_undescribed_interface_is_not_called_unknown() {
    let schemas = forge(1, |_, node| forge_interface(node, "x", &[77])).unwrap();
    let error = schemas.interface(1).unwrap().method("y").unwrap_err();
    assert!(matches!(error, CallError::Schema(SchemaError::Missing { id: 77 })), "{error}");
}

#[test]
fn groups_that_contain_themselves_end() {
    let forged = forge(1, |_, node| forge_struct(node, 2, |_, field| field.init_group().set_type_id(1)));
    let schemas = forged.unwrap();
    let message = to_message(&schemas, 1, &json!({})).unwrap();
    assert!(matches!(to_json(&schemas, 1, &message), Err(CallError::AnswerTooDeep { .. })));
    let deep = (0..100).fold(json!({}), |inner, _| json!({"a": inner}));
    assert!(is_too_deep(to_message(&schemas, 1, &deep).map(drop)));
}

#[test]
fn structs_that_double_with_every_level_end() {
    // Each of 40 structs holds the next one twice, by a group: 2^40 fields, all in one word.
    let schemas = forge(40, |id, node| {
        forge_struct(node, 2, |_, field| {
            if id == 40 {
                forge_slot(field, 0, |mut kind| kind.set_bool(()));
            } else {
                field.init_group().set_type_id(id + 1);
            }
        });
    })
    .unwrap();
    let message = to_message(&schemas, 1, &json!({})).unwrap();
    assert!(matches!(to_json(&schemas, 1, &message), Err(CallError::AnswerTooLarge { .. })));
}

#[test]
fn offsets_outside_the_struct_are_never_written() {
    type Forge = fn(type_::Builder<'_>);
    let kinds: [(u32, Forge, Value); 4] = [
        (64, |mut kind| kind.set_bool(()), json!(true)),
        (1, |mut kind| kind.set_uint64(()), json!(1)),
        (u32::MAX, |mut kind| kind.set_uint64(()), json!(1)),
        (1, |mut kind| kind.set_text(()), json!("text")),
    ];
    for (offset, kind, value) in kinds {
        let schemas = forge(1, |_, node| forge_struct(node, 1, |_, field| forge_slot(field, offset, kind))).unwrap();
        let error = to_message(&schemas, 1, &json!({"a": value})).map(drop).unwrap_err();
        assert!(matches!(error, CallError::Schema(SchemaError::OutOfBounds { id: 1 })), "{error}");
        assert_eq!(error.code(), ErrorCode::SessionProtocol);
        // Reading there is reading what was never set.
        let message = to_message(&schemas, 1, &json!({})).unwrap();
        let unset = to_json(&schemas, 1, &message).unwrap();
        assert!([json!(false), json!(0), json!("")].contains(&unset["a"]), "{unset}");
    }
    let union = forge(1, |_, node| {
        forge_struct(node, 1, |_, mut field| {
            field.set_discriminant_value(1);
            forge_slot(field, 0, |mut kind| kind.set_void(()));
        });
    });
    assert!(to_message(&union.unwrap(), 1, &json!({"a": null})).is_ok(), "the default place is inside");
}

#[test]
fn a_type_that_is_something_else_is_refused() {
    let schemas = forge(2, |id, node| match id {
        1 => forge_struct(node, 1, |_, field| forge_slot(field, 0, |kind| kind.init_struct().set_type_id(2))),
        _ => _ = node.init_enum(),
    })
    .unwrap();
    let error = to_message(&schemas, 1, &json!({"a": {}})).map(drop).unwrap_err();
    assert!(matches!(error, CallError::Schema(SchemaError::Kind { id: 2, .. })), "{error}");
    let error = to_message(&schemas, 2, &json!({})).map(drop).unwrap_err();
    assert!(matches!(error, CallError::Schema(SchemaError::Kind { id: 2, .. })), "{error}");
    assert!(schemas.interface(1).is_none() && schemas.interface(2).is_none());
}

#[test]
fn a_signature_is_cut_before_it_fills_the_screen() {
    let schemas = forge(2, |id, node| match id {
        1 => {
            let mut methods = node.init_interface().init_methods(1);
            let mut only = methods.reborrow().get(0);
            only.set_name("long");
            only.set_param_struct_type(2);
            only.set_result_struct_type(2);
        }
        _ => forge_struct(node, 9999, |_, field| forge_slot(field, 0, |mut kind| kind.set_bool(()))),
    })
    .unwrap();
    let signature = schemas.interface(1).unwrap().method("long").unwrap().signature();
    assert!(
        signature.starts_with("long(a :Bool, b :Bool, c :Bool, ") && signature.ends_with(", …) -> (…)"),
        "{signature}"
    );
    assert!(signature.len() < 2000, "{}", signature.len());
}

#[test]
fn one_id_has_one_description() {
    let twice = |different: bool| {
        forge(2, |id, mut node| {
            node.set_id(1);
            forge_struct(node, if different && id == 2 { 1 } else { 0 }, |_, _| {});
        })
    };
    assert!(twice(false).is_ok());
    assert!(matches!(twice(true), Err(SchemaError::Conflict { id: 1 })));
}

#[test]
fn names_that_would_reach_a_terminal_are_identifiers() {
    for name in ["\u{1b}[2J", "a b", "", "a\n", "ä", "1a"] {
        let forged = forge(1, |_, node| forge_interface(node, name, &[]));
        assert!(matches!(forged, Err(SchemaError::Name { id: 1 })), "{name:?}");
    }
    let schemas = forge(1, |_, mut node| {
        node.set_display_name("forged.capnp:\u{1b}[2J");
        forge_interface(node, "x", &[]);
    });
    assert_eq!(schemas.unwrap().interface(1).unwrap().name(), "@0x0000000000000001");
}

#[test]
fn too_many_bytes_are_not_looked_at() {
    let error = SchemaSet::parse(&vec![0; (4 << 20) + 1]).unwrap_err();
    assert!(matches!(error, SchemaError::TooLarge { .. }));
    // A header that announces a gigabyte of segment.
    let error = SchemaSet::parse(&[0, 0, 0, 0, 0, 0, 0, 8]).unwrap_err();
    assert!(matches!(error, SchemaError::Malformed(_)));
    assert_eq!(error.code(), ErrorCode::SessionProtocol);
}

/// A message of one struct without data whose pointers are `pointers`, followed by `rest`.
fn answer(pointers: &[u64], rest: &[u64]) -> Vec<u8> {
    let words = 1 + pointers.len() + rest.len();
    let mut bytes = vec![0; 4];
    bytes.extend(u32::try_from(words).unwrap().to_le_bytes());
    bytes.extend((u64::try_from(pointers.len()).unwrap() << 48).to_le_bytes());
    bytes.extend(pointers.iter().chain(rest).flat_map(|word| word.to_le_bytes()));
    bytes
}

#[test]
fn a_list_that_is_longer_than_its_bytes_is_not_built() {
    let schemas = kinds();
    let id = kinds_id(&schemas);
    // Kinds has five pointers, the third leads to Lists, whose first is List(Void) with 2^29 - 1 elements.
    let lists = (2 << 2) | (1 << 48);
    let voids = 1 | ((1u64 << 29) - 1) << 35;
    let bytes = answer(&[0, 0, lists, 0, 0], &[voids]);
    let unlimited = message::ReaderOptions { traversal_limit_in_words: None, nesting_limit: 64 };
    let message = serialize::read_message(&bytes[..], unlimited).unwrap();
    let error = decode(&schemas, id, message.get_root().unwrap()).unwrap_err();
    assert!(matches!(error, CallError::AnswerTooLarge { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::ObjectAnswerTooLarge);
}

#[test]
fn answers_and_arguments_that_are_too_deep_are_refused() {
    let schemas = kinds();
    let id = kinds_id(&schemas);
    // A tree whose only child is itself: the pointer leads back to its own struct.
    let tree = 3u64 << 48;
    let itself = u64::from((-3i32 << 2).cast_unsigned()) | (3 << 48);
    let bytes = answer(&[0, 0, 0, 0, tree], &[0, 0, itself]);
    let unlimited = message::ReaderOptions { traversal_limit_in_words: None, nesting_limit: i32::MAX };
    let message = serialize::read_message(&bytes[..], unlimited).unwrap();
    let error = decode(&schemas, id, message.get_root().unwrap()).unwrap_err();
    assert!(matches!(error, CallError::AnswerTooDeep { .. }), "{error}");
    let nested = |depth| json!({"tree": (0..depth).fold(json!({}), |inner, _| json!({"only": inner}))});
    assert!(is_too_deep(to_message(&schemas, id, &nested(48)).map(drop)));
    // What is accepted here is within what generated readers accept.
    let message = to_message(&schemas, id, &nested(46)).unwrap();
    let bytes = serialize::write_message_to_words(&message);
    let message = serialize::read_message(&bytes[..], message::ReaderOptions::new()).unwrap();
    assert!(decode(&schemas, id, message.get_root().unwrap()).is_ok());
}

#[test]
fn arguments_that_fit_no_message_are_refused() {
    let schemas = kinds();
    let id = kinds_id(&schemas);
    let too_large = |value: Value| {
        let error = to_message(&schemas, id, &value).map(drop).unwrap_err();
        let problem = ArgumentProblem::TooLarge { limit: 8 << 20 };
        matches!(error, CallError::Argument(ArgumentError { problem: found, .. }) if found == problem)
    };
    assert!(too_large(json!({"defaults": {"text": "x".repeat(8 << 20)}})));
    assert!(too_large(json!({"lists": {"int64s": vec![0; 1 << 20]}})));
    assert!(to_message(&schemas, id, &json!({"lists": {"int64s": vec![0; 1 << 19]}})).is_ok());
}

fn is_too_deep(result: Result<(), CallError>) -> bool {
    matches!(result, Err(CallError::Argument(ArgumentError { problem: ArgumentProblem::TooDeep, .. })))
}

#[test]
fn an_answer_that_is_not_what_the_schema_says_names_the_place() {
    let schemas = kinds();
    let id = kinds_id(&schemas);
    // The tree's label is a list of words instead of text.
    let bytes = answer(&[0, 0, 0, 0, 3 << 48], &[1 | 6 << 32, 0, 0]);
    let message = serialize::read_message(&bytes[..], message::ReaderOptions::new()).unwrap();
    let error = decode(&schemas, id, message.get_root().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("the answer `tree.label` is not what its schema says: "), "{error}");
    assert_eq!(error.code(), ErrorCode::SessionProtocol);
    assert_eq!(everything(&schemas, "stream").decode(message.get_root().unwrap()).unwrap(), json!({}));
}
