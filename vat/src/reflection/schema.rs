//! Descriptions of types, as data: what a `CodeGeneratorRequest` says, in a form that can be asked.

use super::{
    error::SchemaError,
    interface::Interface,
    limits::MAX_REQUEST_BYTES,
    parse::{self, READ_OWN},
    scalar::Scalar,
};
use capnp::{message, schema_capnp, serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    sync::Arc,
};

/// The id of `StreamResult` in capnp's `stream.capnp`: what a method returns that is declared `-> stream`.
pub(super) const STREAM_RESULT: u64 = 0x995f_9a33_77c0_b16e;

/// Descriptions of interfaces and of the types that they mention, from one or more `CodeGeneratorRequest`s.
/// Cheap to clone. The empty set is the `Default`.
#[derive(Debug, Clone, Default)]
pub struct SchemaSet {
    nodes: BTreeMap<u64, Arc<Node>>,
}

/// One described type.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    /// Its own name, without the scopes around it: `Entry`.
    pub(super) name: String,
    /// Its name inside its file: `Guestbook.Entry`.
    pub(super) qualified_name: String,
    pub(super) kind: Kind,
    /// Every type that its description mentions.
    pub(super) mentions: BTreeSet<u64>,
    /// The description itself, as a message of its own, for [`SchemaSet::closure`].
    pub(super) encoded: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Struct(StructNode),
    /// The names, in the order of their numbers.
    Enum(Vec<String>),
    Interface(InterfaceNode),
}

#[derive(Debug)]
pub(super) struct StructNode {
    pub(super) data_words: u16,
    pub(super) pointers: u16,
    /// In units of 16 bits.
    pub(super) discriminant_offset: u32,
    pub(super) fields: Vec<FieldNode>,
}

#[derive(Debug)]
pub(super) struct FieldNode {
    pub(super) name: String,
    /// For members of the struct's union: the value that makes this one the active member.
    pub(super) discriminant: Option<u16>,
    pub(super) place: FieldPlace,
}

#[derive(Debug)]
pub(super) enum FieldPlace {
    /// A struct type whose fields lie in this struct's own sections.
    Group(u64),
    Slot(Slot),
}

#[derive(Debug)]
pub(super) struct Slot {
    /// In units of the type's own size; for pointers, the index of the pointer.
    pub(super) offset: u32,
    pub(super) kind: Type,
    /// The default of a scalar, which the stored bits are XORed with.
    pub(super) default_bits: u64,
    /// The default of a pointer, as a message of its own.
    pub(super) default_pointer: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct InterfaceNode {
    /// In the order of their ordinals.
    pub(super) methods: Vec<MethodNode>,
    pub(super) superclasses: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct MethodNode {
    pub(super) name: String,
    pub(super) parameters: u64,
    pub(super) results: u64,
}

/// The type of a field or of a list's elements. Type parameters are `AnyPointer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Void,
    Scalar(Scalar),
    Text,
    Data,
    Struct(u64),
    Interface(u64),
    /// `Capability`: of any interface.
    Capability,
    AnyPointer,
    List(Box<Type>),
}

impl SchemaSet {
    /// Reads a `CodeGeneratorRequest`: the output of `capnp compile -o-`, or of [`SchemaSet::closure`].
    pub fn parse(request: &[u8]) -> Result<Self, SchemaError> {
        let mut set = Self::default();
        for node in parse::nodes(request)? {
            match set.nodes.entry(node.id) {
                Entry::Vacant(place) => _ = place.insert(Arc::new(node)),
                Entry::Occupied(known) if known.get().encoded == node.encoded => {}
                Entry::Occupied(_) => return Err(SchemaError::Conflict { id: node.id }),
            }
        }
        Ok(set)
    }

    /// Adds what `other` describes. What is known already stays: a stranger cannot redefine it.
    pub fn merge(&mut self, other: Self) {
        for (id, node) in other.nodes {
            self.nodes.entry(id).or_insert(node);
        }
    }

    /// The interface with this id, if it is described.
    #[must_use]
    pub fn interface(&self, id: u64) -> Option<Interface<'_>> {
        self.nodes.get(&id).and_then(|node| Interface::new(self, node))
    }

    /// The interface with this name inside its file, such as `Counter`, if exactly one is described.
    #[must_use]
    pub fn interface_by_name(&self, name: &str) -> Option<Interface<'_>> {
        let mut found = self
            .nodes
            .values()
            .filter(|node| node.qualified_name == name)
            .filter_map(|node| Interface::new(self, node));
        let interface = found.next()?;
        found.next().is_none().then_some(interface)
    }

    /// A `CodeGeneratorRequest` that describes the interface with everything it mentions: superclasses,
    /// parameters, results, and the types of their fields, to any depth.
    ///
    /// # Errors
    /// [`SchemaError::Missing`] if one of them is not described here, [`SchemaError::TooLarge`] if nobody
    /// would read the result.
    pub fn closure(&self, interface_id: u64) -> Result<Vec<u8>, SchemaError> {
        let mut chosen = BTreeMap::new();
        let mut waiting = VecDeque::from([interface_id]);
        while let Some(id) = waiting.pop_front() {
            if let Entry::Vacant(place) = chosen.entry(id) {
                let node = self.node(id)?;
                place.insert(node);
                waiting.extend(&node.mentions);
            }
        }
        let mut message = message::Builder::new_default();
        let request = message.init_root::<schema_capnp::code_generator_request::Builder<'_>>();
        // Every node came out of a message of bounded size with its own bytes in it, so their number fits.
        let mut nodes = request.init_nodes(u32::try_from(chosen.len()).unwrap_or(u32::MAX));
        for (index, node) in (0..).zip(chosen.values()) {
            let own = serialize::read_message(&node.encoded[..], READ_OWN)?;
            nodes.set_with_caveats(index, own.get_root::<schema_capnp::node::Reader<'_>>()?)?;
        }
        let bytes = serialize::write_message_to_words(&message);
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(SchemaError::TooLarge { bytes: bytes.len(), limit: MAX_REQUEST_BYTES });
        }
        Ok(bytes)
    }

    pub(super) fn node(&self, id: u64) -> Result<&Node, SchemaError> {
        self.nodes.get(&id).map(|node| &**node).ok_or(SchemaError::Missing { id })
    }

    pub(super) fn structure(&self, id: u64) -> Result<&StructNode, SchemaError> {
        match &self.node(id)?.kind {
            Kind::Struct(structure) => Ok(structure),
            _ => Err(SchemaError::Kind { id, used_as: "a struct" }),
        }
    }

    /// The names of an enum, in the order of their numbers; none if it is not described.
    pub(super) fn enumerants(&self, id: u64) -> &[String] {
        match self.nodes.get(&id).map(|node| &node.kind) {
            Some(Kind::Enum(names)) => names,
            _ => &[],
        }
    }

    /// A type's name as the schema language writes it; its id if it is not described.
    pub(super) fn name(&self, id: u64) -> String {
        self.nodes.get(&id).map_or_else(|| format!("@{id:#018x}"), |node| node.name.clone())
    }

    pub(super) fn type_text(&self, kind: &Type) -> String {
        match kind {
            Type::Void => "Void".to_owned(),
            Type::Scalar(scalar) => match scalar {
                Scalar::Enum(id) => self.name(*id),
                _ => format!("{scalar:?}"),
            },
            Type::Text => "Text".to_owned(),
            Type::Data => "Data".to_owned(),
            Type::Struct(id) | Type::Interface(id) => self.name(*id),
            Type::Capability => "Capability".to_owned(),
            Type::AnyPointer => "AnyPointer".to_owned(),
            Type::List(element) => format!("List({})", self.type_text(element)),
        }
    }
}

impl StructNode {
    pub(super) fn field(&self, name: &str) -> Option<&FieldNode> {
        self.fields.iter().find(|field| field.name == name)
    }

    pub(super) fn field_names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.name.as_str())
    }
}
