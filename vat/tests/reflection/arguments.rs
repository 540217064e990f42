//! From the words of a command line to the arguments of a call.

use crate::support::{everything, kinds, objects, to_message};
use schemas::{Coded, ErrorCode};
use serde_json::{Value, json};
use vat::reflection::{ArgumentProblem, CallError, Found, SchemaSet};

fn arguments(schemas: &SchemaSet, interface: &str, method: &str, words: &[&str]) -> Result<Value, CallError> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    schemas.interface_by_name(interface).unwrap().method(method).unwrap().arguments(&words)
}

fn scalars(words: &[&str]) -> Result<Value, CallError> {
    arguments(&kinds(), "Everything", "scalars", words)
}

fn problem(result: Result<Value, CallError>) -> (String, ArgumentProblem) {
    match result {
        Err(error @ CallError::Argument(_)) => {
            assert_eq!(error.code(), ErrorCode::ObjectArgument);
            let CallError::Argument(argument) = error else { unreachable!() };
            assert!(argument.signature.is_some(), "{argument} names the method");
            (argument.path, argument.problem)
        }
        other => panic!("expected a wrong argument, got {other:?}"),
    }
}

#[test]
fn pairs_are_read_by_the_type_of_the_parameter() {
    let pairs = [
        "flag=false",
        "int=-5",
        "big=18446744073709551615",
        "float=1.5",
        "color=blue",
        "text=a = \"b\" {c}",
        "data=aGk=",
        "numbers=[1, -2]",
        r#"point={"y": 4}"#,
        "void=",
    ];
    assert_eq!(
        scalars(&pairs).unwrap(),
        json!({"flag": false, "int": -5, "big": u64::MAX, "float": "1.5", "color": "blue", "text": "a = \"b\" {c}",
            "data": "aGk=", "numbers": [1, -2], "point": {"y": 4}, "void": null})
    );
    // Text is taken as it stands, whatever it looks like.
    assert_eq!(scalars(&["text=12"]).unwrap(), json!({"text": "12"}));
    assert_eq!(scalars(&["text="]).unwrap(), json!({"text": ""}));
    assert_eq!(scalars(&["float=-Infinity", "color=1"]).unwrap(), json!({"float": "-Infinity", "color": 1}));
    assert_eq!(scalars(&[]).unwrap(), json!({}));
}

#[test]
fn one_json_object_stands_for_all() {
    assert_eq!(scalars(&[r#" {"int": 3, "text": "x"}"#]).unwrap(), json!({"int": 3, "text": "x"}));
    let schemas = objects();
    assert_eq!(arguments(&schemas, "Counter", "add", &[r#"{"by": "7"}"#]).unwrap(), json!({"by": "7"}));
}

#[test]
fn one_value_stands_for_the_only_parameter() {
    let schemas = objects();
    assert_eq!(arguments(&schemas, "Counter", "add", &["5"]).unwrap(), json!({"by": 5}));
    assert_eq!(arguments(&schemas, "Notes", "get", &["to do"]).unwrap(), json!({"name": "to do"}));
    assert_eq!(arguments(&schemas, "Notes", "get", &["name=to do"]).unwrap(), json!({"name": "to do"}));
    assert_eq!(arguments(&schemas, "Notes", "get", &["1 + 1 = 2"]).unwrap(), json!({"name": "1 + 1 = 2"}));
    let (_, found) = problem(arguments(&schemas, "Notes", "put", &["5"]));
    assert_eq!(found, ArgumentProblem::NotAPair { position: 1 });
    let (_, found) = problem(arguments(&schemas, "Counter", "get", &["5"]));
    assert_eq!(found, ArgumentProblem::NotAPair { position: 1 });
}

#[test]
fn messages_name_the_argument_the_type_and_the_signature() {
    let schemas = objects();
    let message = |words: &[&str]| arguments(&schemas, "Counter", "add", words).unwrap_err().to_string();
    let method = "the method is add(by :UInt64 = 1) -> (total :UInt64)";
    assert_eq!(message(&["by=x"]), format!("argument `by`: expected UInt64, found other text; {method}"));
    assert_eq!(message(&["-1"]), format!("argument `by`: expected UInt64, found a number outside its range; {method}"));
    assert_eq!(
        message(&["bye=1"]),
        format!("the arguments: there is no such argument or member: `bye` (did you mean `by`?); {method}")
    );
    assert_eq!(message(&["by=1", "by=2"]), format!("argument `by`: given twice; {method}"));
    assert_eq!(message(&["by=1", "2"]), format!("the arguments: number 2 is not of the form name=value; {method}"));
    assert_eq!(
        message(&[r#"{"by": 1,}"#]),
        format!("the arguments: not JSON: a mistake at line 1, column 10; {method}")
    );
    let message = scalars(&["color=pink"]).unwrap_err().to_string();
    assert!(
        message.starts_with("argument `color`: expected Color (red, green, blue), found other text; "),
        "{message}"
    );
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let cases: &[(&str, &str, Found)] = &[
        ("flag=yes", "flag", Found::Text),
        ("int=32768", "int", Found::OutOfRange),
        ("int=-32769", "int", Found::OutOfRange),
        ("int=1.5", "int", Found::Text),
        ("big=18446744073709551616", "big", Found::OutOfRange),
        ("big=-1", "big", Found::OutOfRange),
        ("float=1e39", "float", Found::OutOfRange),
        ("float=fast", "float", Found::Text),
        ("color=65536", "color", Found::Text),
        ("data=aGk", "data", Found::NotBase64),
        ("data=a b", "data", Found::NotBase64),
        ("numbers=[1, 128]", "numbers[1]", Found::OutOfRange),
        ("numbers=[1, 1.5]", "numbers[1]", Found::Number),
        ("numbers=[null]", "numbers[0]", Found::Null),
        ("numbers={}", "numbers", Found::Object),
        ("point=[]", "point", Found::List),
        (r#"point={"x": true}"#, "point.x", Found::Boolean),
        (r#"{"text": 1}"#, "text", Found::Number),
        (r#"{"void": 0}"#, "void", Found::Number),
        (r#"{"flag": "true"}"#, "flag", Found::Text),
        (r#"{"big": 18446744073709551616}"#, "big", Found::OutOfRange),
        (r#"{"data": [256]}"#, "data", Found::List),
    ];
    for (word, path, found) in cases {
        match problem(scalars(&[word])) {
            (at, ArgumentProblem::Type { found: what, .. }) => {
                assert_eq!((at.as_str(), what), (*path, *found), "{word}")
            }
            other => panic!("{word}: {other:?}"),
        }
    }
    let (path, found) = problem(scalars(&[r#"point={"x": 1, "z": 2}"#]));
    assert!(path == "point" && matches!(found, ArgumentProblem::Unknown { .. }), "{found}");
    let (path, found) = problem(scalars(&["numbers=[1"]));
    assert!(path == "numbers" && matches!(found, ArgumentProblem::NotJson { .. }), "{found}");
}

#[test]
fn no_digit_of_an_integer_is_lost() {
    for text in ["9007199254740993", "9007199254740992", "18446744073709551615", "0"] {
        for word in [format!("big={text}"), format!(r#"{{"big": {text}}}"#), format!(r#"{{"big": "{text}"}}"#)] {
            let schemas = kinds();
            let method = everything(&schemas, "scalars");
            let value = method.arguments(std::slice::from_ref(&word)).unwrap();
            let message = to_message(&schemas, method.parameters_id(), &value).unwrap();
            let back = crate::support::to_json(&schemas, method.parameters_id(), &message).unwrap();
            let shown = back["big"].as_str().map_or_else(|| back["big"].to_string(), str::to_owned);
            assert_eq!(shown, text, "{word}");
        }
    }
    // Whole numbers in floating-point notation are integers as long as it is certain which ones.
    assert!(scalars(&[r#"{"big": 1e6}"#]).is_ok());
    assert!(scalars(&[r#"{"big": 3.0}"#]).is_ok());
    let (_, found) = problem(scalars(&[r#"{"big": 1e17}"#]));
    assert!(matches!(found, ArgumentProblem::Type { found: Found::OutOfRange, .. }), "{found}");
}

#[test]
fn a_union_holds_one_member() {
    let schemas = kinds();
    let union = |words: &[&str]| arguments(&schemas, "Everything", "union", words);
    assert!(union(&["number=3", r#"shape={"free": []}"#, r#"plain={"a": false}"#]).is_ok());
    let (path, found) = problem(union(&["number=3", "nothing="]));
    assert!(path.is_empty() && matches!(found, ArgumentProblem::TwoUnionMembers { .. }), "{found}");
    let (path, found) = problem(union(&[r#"shape={"square": {"fill": {"none": null, "solid": "red"}}}"#]));
    assert_eq!(path, "shape.square.fill");
    assert_eq!(found.to_string(), "holds `none` or `solid`, not both");
}

#[test]
fn capabilities_and_foreign_pointers_cannot_be_written_as_text() {
    let schemas = kinds();
    let subscribe = |words: &[&str]| arguments(&schemas, "Everything", "subscribe", words);
    let (path, found) = problem(subscribe(&[r#"listener={"capability": "Listener"}"#]));
    assert_eq!((path.as_str(), found), ("listener", ArgumentProblem::Capability { interface: "Listener".to_owned() }));
    assert!(subscribe(&["listener=null"]).is_ok());
    let (path, found) = problem(arguments(&schemas, "Everything", "generic", &["value=1"]));
    assert_eq!(path, "value");
    assert_eq!(found.to_string(), "expected AnyPointer, which cannot be written as text, found another kind of number");
}

#[test]
fn no_message_repeats_a_value() {
    let secret = "ybndrfg8ejkmcpqxot1uwisza345h769ybndrfg8ejkmcpqxot1uwisza3";
    let reference = format!("vat://id?at=host:1#{secret}");
    let schemas = kinds();
    let words = |words: &[String]| everything(&schemas, "scalars").arguments(words).unwrap_err().to_string();
    for message in [
        words(&[secret.to_owned()]),
        words(std::slice::from_ref(&reference)),
        words(&[format!("{secret}=1")]),
        words(&[format!("int={secret}")]),
        words(&[format!("color={secret}")]),
        words(&[format!("data={reference}")]),
        words(&[format!("flag={secret}")]),
        words(&[format!("void={secret}")]),
        words(&[format!("numbers={secret}")]),
        words(&[format!("numbers=[\"{secret}\"]")]),
        words(&[format!("{{\"{secret}\": 1}}")]),
        words(&[format!("{{\"text\": {secret}}}")]),
    ] {
        assert!(!message.contains(&secret[..8]), "{message}");
    }
}
