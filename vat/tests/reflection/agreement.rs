//! What is written and read here is what everybody else writes and reads: capnp's own compiler and JSON codec,
//! and the generated code.

use crate::support::{KINDS, OFFICIAL_SAMPLE, kinds, kinds_id, objects, round_trip, to_json, to_message};
use capnp::{
    message,
    schema_capnp::{code_generator_request, node, value},
    serialize,
};
use proptest::prelude::*;
use schemas::objects_capnp::{counter, guestbook, notes};
use serde_json::{Value, json};
use vat::reflection::decode;

/// Hands the constant `name` of `kinds.capnp`, as capnp's compiler encoded it, to `check`.
fn with_constant(name: &str, check: impl FnOnce(capnp::any_pointer::Reader<'_>)) {
    let message = serialize::read_message(KINDS, message::ReaderOptions::new()).unwrap();
    let request = message.get_root::<code_generator_request::Reader<'_>>().unwrap();
    let is_it = |node: &node::Reader<'_>| node.get_display_name().unwrap().to_str().unwrap().ends_with(name);
    let node = request.get_nodes().unwrap().iter().find(is_it).unwrap();
    let node::Const(constant) = node.which().unwrap() else { panic!("{name} is a constant") };
    let value::Struct(pointer) = constant.get_value().unwrap().which().unwrap() else { panic!("{name} is a struct") };
    check(pointer);
}

fn sample() -> Value {
    json!({
        "scalars": {"void": null, "bool": true, "int8": -128, "int16": -32768, "int32": -2147483648i64,
            "int64": "-9223372036854775808", "uint8": 255, "uint16": 65535, "uint32": 4294967295u32,
            "uint64": "18446744073709551615", "float32": 0.1, "float64": 1e300, "color": "green"},
        "defaults": {"bool": false, "int8": 0, "int16": 1, "int32": 2, "int64": 9007199254740992u64, "uint8": 4,
            "uint16": 5, "uint32": 6, "uint64": "9007199254740993", "float32": "Infinity", "float64": 2.5,
            "color": "red", "text": "x", "data": "aGk=", "point": {"x": 0, "y": 3}, "numbers": [],
            "points": [{"x": 0, "y": -1}]},
        "lists": {"voids": [null, null], "bools": [true, false, true, true, false, false, true, false, true],
            "int8s": [-1, 2], "int16s": [-3, 4], "int32s": [5], "int64s": [-6], "uint8s": [7, 8, 9], "uint16s": [10],
            "uint32s": [11, 12], "uint64s": [13], "float32s": [0.5, "-Infinity"], "float64s": [1.25],
            "texts": ["a", "", "long enough for two words"], "datas": ["AQ==", "AgM="], "colors": ["blue", "red"],
            "points": [{"x": 1, "y": -1}, {"x": 0, "y": 2}], "empties": [{}, {}, {}], "deep": [[], [[1], [2, 3]]],
            "pointLists": [[{"x": 4, "y": 5}], []]},
        "unions": {"before": 9, "pair": {"left": -2, "right": "r"},
            "shape": {"square": {"side": 2.0, "fill": {"solid": "blue"}}}, "plain": {"a": false, "b": "/w=="}},
        "tree": {"label": "root", "children": [
            {"label": "leaf", "children": [], "only": null},
            {"label": "", "children": [], "only": {"label": "inner", "children": [], "only": null}}], "only": null},
    })
}

#[test]
fn reads_what_the_official_compiler_encodes() {
    let schemas = kinds();
    with_constant("sample", |pointer| {
        assert_eq!(decode(&schemas, kinds_id(&schemas), pointer).unwrap(), sample());
    });
}

#[test]
fn writes_the_same_message_as_the_official_compiler_from_official_and_own_json() {
    let schemas = kinds();
    let official: Value = serde_json::from_str(OFFICIAL_SAMPLE).unwrap();
    with_constant("sample", |pointer| {
        let mut theirs = message::Builder::new_default();
        theirs.set_root_canonical::<capnp::any_pointer::Owned>(pointer).unwrap();
        let theirs = serialize::write_message_to_words(&theirs);
        // Absent members stay absent in the official form, and `null` leaves a pointer null in ours; only the
        // lists that are empty by default differ, so those are taken out of ours.
        let mut own = sample();
        own["tree"]["children"][1].as_object_mut().unwrap().retain(|name, _| name == "only");
        own["tree"]["children"][1]["only"].as_object_mut().unwrap().retain(|name, _| name == "label");
        for json in [official, own] {
            let message = to_message(&schemas, kinds_id(&schemas), &json).unwrap();
            let mut ours = message::Builder::new_default();
            let root = message.get_root_as_reader::<capnp::any_pointer::Reader<'_>>().unwrap();
            ours.set_root_canonical::<capnp::any_pointer::Owned>(root).unwrap();
            assert_eq!(serialize::write_message_to_words(&ours), theirs);
        }
    });
}

#[test]
fn what_was_never_set_reads_as_its_default_and_is_kept_by_a_round_trip() {
    let schemas = kinds();
    let untouched = json!({
        "scalars": {"void": null, "bool": false, "int8": 0, "int16": 0, "int32": 0, "int64": 0, "uint8": 0,
            "uint16": 0, "uint32": 0, "uint64": 0, "float32": 0.0, "float64": 0.0, "color": "red"},
        "defaults": {"bool": true, "int8": -8, "int16": -1600, "int32": -320000, "int64": "-9223372036854775808",
            "uint8": 200, "uint16": 60000, "uint32": 4000000000u32, "uint64": "18446744073709551615",
            "float32": 0.1, "float64": "-Infinity", "color": "blue", "text": "né à Paris", "data": "AP8Q",
            "point": {"x": 7, "y": -1}, "numbers": [1, 2, 65535], "points": [{"x": 1, "y": 2}, {"x": 3, "y": -1}]},
        "lists": {"voids": [], "bools": [], "int8s": [], "int16s": [], "int32s": [], "int64s": [], "uint8s": [],
            "uint16s": [], "uint32s": [], "uint64s": [], "float32s": [], "float64s": [], "texts": [], "datas": [],
            "colors": [], "points": [], "empties": [], "deep": [], "pointLists": []},
        "unions": {"before": 0, "nothing": null, "shape": {"round": {"radius": 1.0}}, "plain": {"a": true, "b": ""}},
        "tree": null,
    });
    with_constant("untouched", |pointer| {
        assert_eq!(decode(&schemas, kinds_id(&schemas), pointer).unwrap(), untouched);
    });
    let empty = json!({"scalars": {}, "defaults": {}, "lists": {}, "unions": {}});
    assert_eq!(round_trip(&schemas, kinds_id(&schemas), &empty), untouched);
    assert_eq!(round_trip(&schemas, kinds_id(&schemas), &untouched), untouched);
}

#[test]
fn generated_code_reads_defaults_and_values_of_arguments() {
    let schemas = objects();
    let add = schemas.interface_by_name("Counter").unwrap().method("add").unwrap();
    for (arguments, by) in [(json!({}), 1), (json!({"by": 0}), 0), (json!({"by": "18446744073709551615"}), u64::MAX)] {
        let message = to_message(&schemas, add.parameters_id(), &arguments).unwrap();
        assert_eq!(message.get_root_as_reader::<counter::add_params::Reader<'_>>().unwrap().get_by(), by);
    }
}

fn entry() -> impl Strategy<Value = (u64, u64, String, String)> {
    (any::<u64>(), any::<u64>(), any::<String>(), any::<String>())
}

proptest! {
    #[test]
    fn generated_code_reads_what_is_written_here(
        entries in prop::collection::vec(entry(), 0..8), more: bool, name: String, text: String,
    ) {
        let schemas = objects();
        let list = schemas.interface_by_name("Guestbook").unwrap().method("list").unwrap();
        let json = json!({"more": more, "entries": entries.iter().map(|(number, time, name, text)| {
            json!({"number": number, "time": time.to_string(), "name": name, "text": text})
        }).collect::<Vec<_>>()});
        let message = to_message(&schemas, list.results_id(), &json).unwrap();
        let results = message.get_root_as_reader::<guestbook::list_results::Reader<'_>>().unwrap();
        prop_assert_eq!(results.get_more(), more);
        let read: Vec<_> = results.get_entries().unwrap().iter().map(|entry| (
            entry.get_number(),
            entry.get_time(),
            entry.get_name().unwrap().to_string().unwrap(),
            entry.get_text().unwrap().to_string().unwrap(),
        )).collect();
        prop_assert_eq!(read, entries);

        let put = schemas.interface_by_name("Notes").unwrap().method("put").unwrap();
        let arguments = put.arguments(&[format!("text={text}"), format!("name={name}")]).unwrap();
        let message = to_message(&schemas, put.parameters_id(), &arguments).unwrap();
        let params = message.get_root_as_reader::<notes::put_params::Reader<'_>>().unwrap();
        prop_assert_eq!(params.get_name().unwrap().to_str().unwrap(), name);
        prop_assert_eq!(params.get_text().unwrap().to_str().unwrap(), text);
    }

    #[test]
    fn what_generated_code_writes_is_read_here(entries in prop::collection::vec(entry(), 0..8), more: bool) {
        let schemas = objects();
        let list = schemas.interface_by_name("Guestbook").unwrap().method("list").unwrap();
        let mut message = message::Builder::new_default();
        let mut results = message.init_root::<guestbook::list_results::Builder<'_>>();
        results.set_more(more);
        let mut list_builder = results.init_entries(u32::try_from(entries.len()).unwrap());
        for (index, (number, time, name, text)) in (0..).zip(&entries) {
            let mut entry = list_builder.reborrow().get(index);
            entry.set_number(*number);
            entry.set_time(*time);
            entry.set_name(name);
            entry.set_text(text);
        }
        let json = to_json(&schemas, list.results_id(), &message).unwrap();
        prop_assert_eq!(&json["more"], &json!(more));
        let integer = |value: &Value| value.as_u64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap());
        let read: Vec<_> = json["entries"].as_array().unwrap().iter().map(|entry| (
            integer(&entry["number"]),
            integer(&entry["time"]),
            entry["name"].as_str().unwrap().to_owned(),
            entry["text"].as_str().unwrap().to_owned(),
        )).collect();
        prop_assert_eq!(read, entries);
    }
}
