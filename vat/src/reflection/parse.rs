//! Reading a `CodeGeneratorRequest` (capnp's `schema.capnp`) into [`Node`]s.
//!
//! The bytes come from strangers. The size is checked first; capnp's reader then bounds how much is visited
//! and how deep; names that would be shown must be identifiers; and everything else that a schema can get
//! wrong (offsets, kinds, missing types, cycles) is left to whoever uses it, where it is checked anyway.

use super::{
    error::{SchemaError, is_identifier},
    limits::{MAX_REQUEST_BYTES, REQUEST_READ_FACTOR},
    scalar::Scalar,
    schema::{FieldNode, FieldPlace, InterfaceNode, Kind, MethodNode, Node, Slot, StructNode, Type},
};
use capnp::{
    any_pointer, message,
    schema_capnp::{brand, code_generator_request, enumerant, field, method, node, superclass, type_, value},
    serialize, struct_list,
};
use std::collections::BTreeSet;

/// For messages that were copied from one which was read under the limits.
pub(super) const READ_OWN: message::ReaderOptions =
    message::ReaderOptions { traversal_limit_in_words: None, nesting_limit: 64 };

/// First allocation of a message that holds one node or one default, in words.
const SMALL_MESSAGE_WORDS: u32 = 32;

/// Every struct, enum and interface that the request describes.
pub(super) fn nodes(request: &[u8]) -> Result<Vec<Node>, SchemaError> {
    if request.len() > MAX_REQUEST_BYTES {
        return Err(SchemaError::TooLarge { bytes: request.len(), limit: MAX_REQUEST_BYTES });
    }
    let mut options = message::ReaderOptions::new();
    options.traversal_limit_in_words(Some((request.len() / 8 + 1) * REQUEST_READ_FACTOR));
    let message = serialize::read_message(request, options)?;
    let root = message.get_root::<code_generator_request::Reader<'_>>()?;
    let mut nodes = Vec::new();
    for reader in root.get_nodes()? {
        nodes.extend(parse_node(reader)?);
    }
    Ok(nodes)
}

/// `None` for files, constants and annotations: no call mentions them.
fn parse_node(reader: node::Reader<'_>) -> Result<Option<Node>, SchemaError> {
    let id = reader.get_id();
    let mut parser = Parser { id, mentions: BTreeSet::new() };
    let kind = match reader.which()? {
        node::Struct(structure) => Kind::Struct(StructNode {
            data_words: structure.get_data_word_count(),
            pointers: structure.get_pointer_count(),
            discriminant_offset: structure.get_discriminant_offset(),
            fields: parser.fields(structure.get_fields()?)?,
        }),
        node::Enum(names) => Kind::Enum(parser.enumerants(names.get_enumerants()?)?),
        node::Interface(interface) => Kind::Interface(InterfaceNode {
            methods: parser.methods(interface.get_methods()?)?,
            superclasses: parser.superclasses(interface.get_superclasses()?)?,
        }),
        node::File(()) | node::Const(_) | node::Annotation(_) => return Ok(None),
    };
    let (name, qualified_name) = names(&reader)?;
    let encoded = copy(|message| message.set_root(reader))?;
    Ok(Some(Node { id, name, qualified_name, kind, mentions: parser.mentions, encoded }))
}

/// The type's own name and its name inside its file, out of `objects.capnp:Guestbook.Entry`. Names that the
/// schema language would not allow are replaced by the id: they would be shown.
fn names(reader: &node::Reader<'_>) -> Result<(String, String), SchemaError> {
    let display = reader.get_display_name()?.to_str().map_err(capnp::Error::from)?;
    let prefix = usize::try_from(reader.get_display_name_prefix_length()).unwrap_or(usize::MAX);
    let shown = |name: &str| {
        // `$` joins a method's name and `Params` or `Results` in the types made for it.
        let proper = name.split(['.', '$']).all(is_identifier);
        if proper { name.to_owned() } else { format!("@{:#018x}", reader.get_id()) }
    };
    let own = display.get(prefix..).unwrap_or_default();
    let inside = display.rsplit_once(':').map_or(display, |(_, inside)| inside);
    Ok((shown(own), shown(inside)))
}

/// One node's members, with the types that they mention.
struct Parser {
    id: u64,
    mentions: BTreeSet<u64>,
}

impl Parser {
    fn name(&self, name: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, SchemaError> {
        let name = name?.to_str().map_err(capnp::Error::from)?;
        if is_identifier(name) { Ok(name.to_owned()) } else { Err(SchemaError::Name { id: self.id }) }
    }

    fn mention(&mut self, id: u64) -> u64 {
        self.mentions.insert(id);
        id
    }

    fn fields(&mut self, list: struct_list::Reader<'_, field::Owned>) -> Result<Vec<FieldNode>, SchemaError> {
        let mut fields = Vec::new();
        for reader in list {
            let discriminant = reader.get_discriminant_value();
            fields.push(FieldNode {
                name: self.name(reader.get_name())?,
                discriminant: (discriminant != field::NO_DISCRIMINANT).then_some(discriminant),
                place: match reader.which()? {
                    field::Group(group) => FieldPlace::Group(self.mention(group.get_type_id())),
                    field::Slot(slot) => FieldPlace::Slot(self.slot(slot)?),
                },
            });
        }
        Ok(fields)
    }

    fn slot(&mut self, reader: field::slot::Reader<'_>) -> Result<Slot, SchemaError> {
        let kind = self.parse_type(reader.get_type()?)?;
        let default = reader.get_default_value()?;
        let default_bits = match &kind {
            Type::Scalar(scalar) => default_bits(&default)? & scalar.mask(),
            _ => 0,
        };
        let default_pointer = match &kind {
            Type::Text | Type::Data | Type::Struct(_) | Type::List(_) => default_pointer(&default)?,
            _ => None,
        };
        Ok(Slot { offset: reader.get_offset(), kind, default_bits, default_pointer })
    }

    fn enumerants(&self, list: struct_list::Reader<'_, enumerant::Owned>) -> Result<Vec<String>, SchemaError> {
        list.iter().map(|reader| self.name(reader.get_name())).collect()
    }

    fn methods(&mut self, list: struct_list::Reader<'_, method::Owned>) -> Result<Vec<MethodNode>, SchemaError> {
        let mut methods = Vec::new();
        for reader in list {
            self.brand(reader.get_param_brand()?)?;
            self.brand(reader.get_result_brand()?)?;
            methods.push(MethodNode {
                name: self.name(reader.get_name())?,
                parameters: self.mention(reader.get_param_struct_type()),
                results: self.mention(reader.get_result_struct_type()),
            });
        }
        Ok(methods)
    }

    fn superclasses(&mut self, list: struct_list::Reader<'_, superclass::Owned>) -> Result<Vec<u64>, SchemaError> {
        let mut superclasses = Vec::new();
        for reader in list {
            self.brand(reader.get_brand()?)?;
            superclasses.push(self.mention(reader.get_id()));
        }
        Ok(superclasses)
    }

    // Lists nest no deeper than the reader's nesting limit, which ends this recursion.
    fn parse_type(&mut self, reader: type_::Reader<'_>) -> Result<Type, SchemaError> {
        Ok(match reader.which()? {
            type_::Void(()) => Type::Void,
            type_::Bool(()) => Type::Scalar(Scalar::Bool),
            type_::Int8(()) => Type::Scalar(Scalar::Int8),
            type_::Int16(()) => Type::Scalar(Scalar::Int16),
            type_::Int32(()) => Type::Scalar(Scalar::Int32),
            type_::Int64(()) => Type::Scalar(Scalar::Int64),
            type_::Uint8(()) => Type::Scalar(Scalar::UInt8),
            type_::Uint16(()) => Type::Scalar(Scalar::UInt16),
            type_::Uint32(()) => Type::Scalar(Scalar::UInt32),
            type_::Uint64(()) => Type::Scalar(Scalar::UInt64),
            type_::Float32(()) => Type::Scalar(Scalar::Float32),
            type_::Float64(()) => Type::Scalar(Scalar::Float64),
            type_::Text(()) => Type::Text,
            type_::Data(()) => Type::Data,
            type_::List(list) => Type::List(Box::new(self.parse_type(list.get_element_type()?)?)),
            type_::Enum(named) => Type::Scalar(Scalar::Enum(self.mention(named.get_type_id()))),
            type_::Struct(named) => {
                self.brand(named.get_brand()?)?;
                Type::Struct(self.mention(named.get_type_id()))
            }
            type_::Interface(named) => {
                self.brand(named.get_brand()?)?;
                Type::Interface(self.mention(named.get_type_id()))
            }
            type_::AnyPointer(any) => match any.which()? {
                type_::any_pointer::Unconstrained(kind) => match kind.which()? {
                    type_::any_pointer::unconstrained::Capability(()) => Type::Capability,
                    _ => Type::AnyPointer,
                },
                type_::any_pointer::Parameter(_) | type_::any_pointer::ImplicitMethodParameter(_) => Type::AnyPointer,
            },
        })
    }

    /// Type arguments are not applied here, but whoever receives the description may want to.
    fn brand(&mut self, reader: brand::Reader<'_>) -> Result<(), SchemaError> {
        for scope in reader.get_scopes()? {
            if let brand::scope::Bind(bindings) = scope.which()? {
                for binding in bindings? {
                    if let brand::binding::Type(argument) = binding.which()? {
                        self.parse_type(argument?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn default_bits(reader: &value::Reader<'_>) -> Result<u64, SchemaError> {
    Ok(match reader.which()? {
        value::Bool(value) => u64::from(value),
        value::Int8(value) => i64::from(value).cast_unsigned(),
        value::Int16(value) => i64::from(value).cast_unsigned(),
        value::Int32(value) => i64::from(value).cast_unsigned(),
        value::Int64(value) => value.cast_unsigned(),
        value::Uint8(value) => u64::from(value),
        value::Uint16(value) | value::Enum(value) => u64::from(value),
        value::Uint32(value) => u64::from(value),
        value::Uint64(value) => value,
        value::Float32(value) => u64::from(value.to_bits()),
        value::Float64(value) => value.to_bits(),
        _ => 0,
    })
}

fn default_pointer(reader: &value::Reader<'_>) -> Result<Option<Vec<u8>>, SchemaError> {
    Ok(match reader.which()? {
        value::Text(text) => match text? {
            text if text.is_empty() => None,
            text => Some(copy(|message| message.set_root(text))?),
        },
        value::Data(data) => match data? {
            [] => None,
            data => Some(copy(|message| message.set_root::<capnp::data::Owned>(data))?),
        },
        value::List(pointer) | value::Struct(pointer) if !pointer.is_null() => {
            Some(copy(|message| message.set_root::<any_pointer::Owned>(pointer))?)
        }
        _ => None,
    })
}

/// A message of its own with what `fill` puts into it.
fn copy(
    fill: impl FnOnce(&mut message::Builder<message::HeapAllocator>) -> capnp::Result<()>,
) -> Result<Vec<u8>, SchemaError> {
    let mut message = message::Builder::new(message::HeapAllocator::new().first_segment_words(SMALL_MESSAGE_WORDS));
    fill(&mut message)?;
    Ok(serialize::write_message_to_words(&message))
}
