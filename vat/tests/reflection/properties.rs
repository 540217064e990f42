//! JSON → message → JSON changes nothing, for everything that a schema can describe.

use crate::support::{everything, kinds, kinds_id, round_trip, to_json, to_message};
use data_encoding::BASE64;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    strategy::{BoxedStrategy, Strategy},
};
use serde_json::{Value, json};

/// Integers as this program writes them.
fn int64(integer: i64) -> Value {
    if integer.unsigned_abs() <= 1 << 53 { json!(integer) } else { json!(integer.to_string()) }
}

fn uint64(integer: u64) -> Value {
    if integer <= 1 << 53 { json!(integer) } else { json!(integer.to_string()) }
}

fn float64(float: f64) -> Value {
    if float.is_nan() {
        json!("NaN")
    } else if float.is_infinite() {
        json!(if float > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        json!(float)
    }
}

/// The shortest digits that name the Float32.
fn float32(float: f32) -> Value {
    float64(float.to_string().parse().unwrap())
}

fn edge<T: Copy + std::fmt::Debug + 'static>(
    any: impl Strategy<Value = T> + 'static,
    edges: &'static [T],
) -> BoxedStrategy<T> {
    prop_oneof![4 => any, 1 => select(edges)].boxed()
}

fn i64s() -> BoxedStrategy<Value> {
    edge(any::<i64>(), &[i64::MIN, i64::MAX, 0, -1, 1 << 53, (1 << 53) + 1, -(1 << 53) - 1]).prop_map(int64).boxed()
}

fn u64s() -> BoxedStrategy<Value> {
    edge(any::<u64>(), &[u64::MAX, 0, 1 << 53, (1 << 53) + 1, 1 << 63]).prop_map(uint64).boxed()
}

fn f64s() -> BoxedStrategy<Value> {
    prop::num::f64::ANY.prop_map(float64).boxed()
}

fn f32s() -> BoxedStrategy<Value> {
    prop::num::f32::ANY.prop_map(float32).boxed()
}

fn of<T: Arbitrary + Into<Value> + 'static>() -> BoxedStrategy<Value> {
    any::<T>().prop_map(Into::into).boxed()
}

fn void() -> BoxedStrategy<Value> {
    Just(Value::Null).boxed()
}

fn data() -> BoxedStrategy<Value> {
    vec(any::<u8>(), 0..20).prop_map(|bytes| json!(BASE64.encode(&bytes))).boxed()
}

fn color() -> BoxedStrategy<Value> {
    prop_oneof![select(vec![json!("red"), json!("green"), json!("blue")]), (3u16..).prop_map(Value::from)].boxed()
}

fn list(element: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    vec(element, 0..9).prop_map(Value::from).boxed()
}

/// An object with these members.
fn object(members: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = members.into_iter().unzip();
    values.prop_map(move |values| names.iter().map(|name| (*name).to_owned()).zip(values).collect()).boxed()
}

/// An object with one of these members.
fn one_of(members: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let members: Vec<_> = members.into_iter().map(|member| object(vec![member])).collect();
    proptest::strategy::Union::new(members).boxed()
}

fn point() -> BoxedStrategy<Value> {
    object(vec![("x", of::<i32>()), ("y", of::<i32>())])
}

fn scalars() -> BoxedStrategy<Value> {
    object(vec![
        ("void", void()),
        ("bool", of::<bool>()),
        ("int8", of::<i8>()),
        ("int16", of::<i16>()),
        ("int32", of::<i32>()),
        ("int64", i64s()),
        ("uint8", of::<u8>()),
        ("uint16", of::<u16>()),
        ("uint32", of::<u32>()),
        ("uint64", u64s()),
        ("float32", f32s()),
        ("float64", f64s()),
        ("color", color()),
    ])
}

fn defaults() -> BoxedStrategy<Value> {
    object(vec![
        ("bool", of::<bool>()),
        ("int8", of::<i8>()),
        ("int16", of::<i16>()),
        ("int32", of::<i32>()),
        ("int64", i64s()),
        ("uint8", of::<u8>()),
        ("uint16", of::<u16>()),
        ("uint32", of::<u32>()),
        ("uint64", u64s()),
        ("float32", f32s()),
        ("float64", f64s()),
        ("color", color()),
        ("text", of::<String>()),
        ("data", data()),
        ("point", point()),
        ("numbers", list(of::<u16>())),
        ("points", list(point())),
    ])
}

fn lists() -> BoxedStrategy<Value> {
    object(vec![
        ("voids", list(void())),
        ("bools", vec(of::<bool>(), 0..80).prop_map(Value::from).boxed()),
        ("int8s", list(of::<i8>())),
        ("int16s", list(of::<i16>())),
        ("int32s", list(of::<i32>())),
        ("int64s", list(i64s())),
        ("uint8s", list(of::<u8>())),
        ("uint16s", list(of::<u16>())),
        ("uint32s", list(of::<u32>())),
        ("uint64s", list(u64s())),
        ("float32s", list(f32s())),
        ("float64s", list(f64s())),
        ("texts", list(of::<String>())),
        ("datas", list(data())),
        ("colors", list(color())),
        ("points", list(point())),
        ("empties", list(Just(json!({})).boxed())),
        ("deep", list(list(list(of::<i8>())))),
        ("pointLists", list(list(point()))),
    ])
}

fn unions() -> BoxedStrategy<Value> {
    let active = one_of(vec![
        ("nothing", void()),
        ("number", of::<u32>()),
        ("words", list(of::<String>())),
        ("pair", object(vec![("left", of::<i16>()), ("right", of::<String>())])),
    ]);
    let shape = one_of(vec![
        ("round", object(vec![("radius", f64s())])),
        ("square", object(vec![("side", f64s()), ("fill", one_of(vec![("none", void()), ("solid", color())]))])),
        ("free", list(point())),
    ]);
    let rest = object(vec![
        ("before", of::<u8>()),
        ("shape", shape),
        ("plain", object(vec![("a", of::<bool>()), ("b", data())])),
    ]);
    (rest, active)
        .prop_map(|(mut rest, mut active)| {
            rest.as_object_mut().unwrap().append(active.as_object_mut().unwrap());
            rest
        })
        .boxed()
}

fn tree() -> BoxedStrategy<Value> {
    let leaf = any::<String>().prop_map(|label| json!({"label": label, "children": [], "only": null}));
    leaf.prop_recursive(5, 24, 4, |tree| {
        (any::<String>(), vec(tree.clone(), 0..4), option::of(tree))
            .prop_map(|(label, children, only)| json!({"label": label, "children": children, "only": only}))
    })
    .boxed()
}

fn anything() -> BoxedStrategy<Value> {
    object(vec![
        ("scalars", scalars()),
        ("defaults", defaults()),
        ("lists", lists()),
        ("unions", unions()),
        ("tree", tree()),
    ])
}

proptest! {
    #[test]
    fn json_to_message_to_json_changes_nothing(json in anything()) {
        let schemas = kinds();
        prop_assert_eq!(round_trip(&schemas, kinds_id(&schemas), &json), json);
    }

    #[test]
    fn what_is_shown_can_be_typed_in_again(json in anything()) {
        let schemas = kinds();
        let echo = everything(&schemas, "echo");
        let whole = echo.arguments(&[json.to_string()]).unwrap();
        prop_assert_eq!(&round_trip(&schemas, echo.parameters_id(), &whole), &json);
        let pairs: Vec<_> = json.as_object().unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let paired = echo.arguments(&pairs).unwrap();
        prop_assert_eq!(round_trip(&schemas, echo.parameters_id(), &paired), json);
    }

    #[test]
    fn members_that_are_left_out_read_as_their_defaults(json in anything(), keep in vec(any::<bool>(), 20)) {
        let schemas = kinds();
        let id = kinds_id(&schemas);
        let untouched = round_trip(&schemas, id, &json!({"scalars": {}, "defaults": {}, "lists": {}, "unions": {}}));
        for part in ["scalars", "defaults", "lists"] {
            let members = json[part].as_object().unwrap();
            let mut kept = keep.iter().cycle();
            let some: Value = members.clone().into_iter().filter(|_| *kept.next().unwrap()).collect();
            let mut expected = untouched[part].clone();
            for (name, value) in some.as_object().unwrap() {
                expected[name] = value.clone();
            }
            prop_assert_eq!(&round_trip(&schemas, id, &json!({part: some}))[part], &expected);
        }
    }

    #[test]
    fn a_float32_keeps_its_bits(bits: u32) {
        let float = f32::from_bits(bits);
        let schemas = kinds();
        let json = json!({"scalars": {"float32": float32(float)}});
        let back = round_trip(&schemas, kinds_id(&schemas), &json);
        let shown = &back["scalars"]["float32"];
        let read: f32 = shown.as_str().map_or_else(|| shown.to_string(), str::to_owned).parse().unwrap();
        prop_assert!(read.to_bits() == bits || (read.is_nan() && float.is_nan()), "{read} is not {float}");
    }

    #[test]
    fn data_may_be_a_list_of_bytes(bytes: Vec<u8>) {
        let schemas = kinds();
        let id = kinds_id(&schemas);
        let from_list = to_message(&schemas, id, &json!({"defaults": {"data": bytes}})).unwrap();
        let json = to_json(&schemas, id, &from_list).unwrap();
        prop_assert_eq!(&json["defaults"]["data"], &json!(BASE64.encode(&bytes)));
    }
}
