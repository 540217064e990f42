//! Calls that are formed at run time: the arguments that people type, the schemas and the answers that vats send.

use std::sync::LazyLock;

use capnp::{
    any_pointer,
    message::{Builder, ReaderOptions},
};
use schemas::SCHEMA_REQUEST;
use vat::reflection::{Interface, Method, SchemaSet};

pub(crate) static SCHEMAS: LazyLock<SchemaSet> =
    LazyLock::new(|| SchemaSet::parse(SCHEMA_REQUEST).expect("our own schemas"));

/// Interfaces with parameters and results of every kind that ours have.
const INTERFACES: [&str; 8] =
    ["Counter", "Guestbook", "Notes", "Directory", "Vat", "Owner", "Progress", "LocationService"];

/// The method that the first byte names, and the rest.
fn method(data: &[u8]) -> Option<(Method<'static>, &[u8])> {
    let (first, rest) = data.split_first()?;
    let method = methods().cycle().nth(usize::from(*first))?;
    Some((method, rest))
}

fn methods() -> impl Iterator<Item = Method<'static>> + Clone {
    let interfaces = INTERFACES.iter().filter_map(|name| SCHEMAS.interface_by_name(name));
    let methods: Vec<Method<'static>> = interfaces.flat_map(|interface| interface.methods()).collect();
    methods.into_iter()
}

/// The first byte for a method.
pub(crate) fn byte_for(interface: &str, method: &str) -> u8 {
    let id = SCHEMAS.interface_by_name(interface).expect("an interface of ours").id();
    let position = methods().position(|known| known.interface_id() == id && known.name() == method);
    u8::try_from(position.expect("a method of ours")).unwrap()
}

/// Arguments of a method, one a line. What is accepted can be encoded, and a message that was encoded can be read.
pub fn arguments(data: &[u8]) {
    let Some((method, text)) = method(data) else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let arguments: Vec<String> = text.lines().map(str::to_owned).collect();
    let Ok(value) = method.arguments(&arguments) else { return };
    let mut message = Builder::new_default();
    method.encode(&value, message.init_root::<any_pointer::Builder<'_>>()).expect("it was checked");
    let reader = message.get_root_as_reader::<any_pointer::Reader<'_>>().unwrap();
    // Parameters are read only where methods are the other way round: as results.
    let _ = vat::reflection::decode(&SCHEMAS, method.parameters_id(), reader);
}

/// The answer to a method: a message of one segment.
pub fn answers(data: &[u8]) {
    let Some((method, segment)) = method(data) else { return };
    let mut words = vec![capnp::word(0, 0, 0, 0, 0, 0, 0, 0); segment.len().div_ceil(8)];
    capnp::Word::words_to_bytes_mut(&mut words)[..segment.len()].copy_from_slice(segment);
    let bytes = capnp::Word::words_to_bytes(&words);
    let segments = [bytes];
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(words.len() * 16 + 64)).nesting_limit(64);
    let message = capnp::message::Reader::new(capnp::message::SegmentArray::new(&segments), options);
    let Ok(root) = message.get_root::<any_pointer::Reader<'_>>() else { return };
    let Ok(value) = method.decode(root) else { return };
    // What was read is a tree that fits what was sent.
    assert!(value.to_string().len() <= bytes.len() * 400 + 10_000);
}

/// What a vat says of its interfaces.
pub fn schema_sets(data: &[u8]) {
    let Ok(set) = SchemaSet::parse(data) else { return };
    // A stranger describes the interface that it was asked for; which that is, it can choose here.
    for id in ids(data) {
        let Some(interface) = set.interface(id) else { continue };
        describe(&interface);
        if let Ok(closure) = set.closure(id) {
            SchemaSet::parse(&closure).expect("what we write, we read");
        }
    }
    // What is known already, a stranger cannot redefine.
    let mut known = SchemaSet::parse(SCHEMA_REQUEST).unwrap();
    known.merge(set);
    for name in INTERFACES {
        let ours = SCHEMAS.interface_by_name(name).expect("ours");
        let now = known.interface(ours.id()).expect("it stays");
        assert!(now.methods().map(|method| method.signature()).eq(ours.methods().map(|method| method.signature())));
    }
}

fn describe(interface: &Interface<'_>) {
    for method in interface.methods() {
        let _ = method.signature();
        let _ = method.arguments(&["{}".to_owned()]);
        let _ = method.arguments(&["a=1".to_owned()]);
        let mut message = Builder::new_default();
        message.init_root::<any_pointer::Builder<'_>>().init_as::<schemas::session_capnp::hello::Builder<'_>>();
        let _ = method.decode(message.get_root_as_reader().unwrap());
    }
}

/// Every word of the input, as an id.
fn ids(data: &[u8]) -> impl Iterator<Item = u64> {
    data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()))
}
