//! From a message to JSON.
//!
//! The message is a stranger's, and so may be the schema. capnp's readers check every pointer and every
//! offset that is used here; the depth and the size of what is made of them are bounded by `limits.rs`.

use super::{
    error::CallError,
    limits::{MAX_ANSWER_BYTES, MAX_DEFAULT_BYTES, MAX_DEPTH},
    parse::READ_OWN,
    scalar::Scalar,
    schema::{FieldPlace, STREAM_RESULT, SchemaSet, Slot, Type},
};
use capnp::{
    any_pointer, any_pointer_list, data,
    introspect::Introspect,
    primitive_list,
    private::layout::{PrimitiveElement, StructReader},
    schema_capnp, serialize, struct_list, text,
    traits::IntoInternalStructReader,
};
use data_encoding::BASE64;
use serde_json::{Map, Value};

/// Reads a struct of type `struct_id`.
///
/// # Errors
/// [`CallError::Answer`] if the message is not what the schema says; [`CallError::AnswerTooDeep`] and
/// [`CallError::AnswerTooLarge`]; [`CallError::Schema`] if a type is not described, or not consistently.
pub fn decode(schemas: &SchemaSet, struct_id: u64, reader: any_pointer::Reader<'_>) -> Result<Value, CallError> {
    if struct_id == STREAM_RESULT {
        return Ok(Value::Object(Map::new()));
    }
    Decoder::new(schemas, MAX_ANSWER_BYTES).structure(struct_id, structure(reader)?)
}

/// What a field is if it is not set; `None` if that is zero, empty or absent, too large or not readable.
pub(super) fn default_json(schemas: &SchemaSet, slot: &Slot) -> Option<Value> {
    match (&slot.kind, &slot.default_pointer) {
        (Type::Scalar(scalar), _) if slot.default_bits != 0 => Some(scalar.to_json(schemas, slot.default_bits)),
        (kind, Some(message)) => Decoder::new(schemas, MAX_DEFAULT_BYTES).message(message, kind).ok(),
        _ => None,
    }
}

/// Generated readers are struct readers in a typed coat. This one's coat is taken off at once: it is only
/// the way in for which capnp has no untyped one.
type Coat = schema_capnp::node::Owned;

fn structure(reader: any_pointer::Reader<'_>) -> capnp::Result<StructReader<'_>> {
    reader.get_as::<schema_capnp::node::Reader<'_>>().map(IntoInternalStructReader::into_internal_struct_reader)
}

struct Decoder<'a> {
    schemas: &'a SchemaSet,
    depth: usize,
    /// The most memory that the result may take, in bytes.
    limit: usize,
    /// What may still be used up of it.
    budget: usize,
    /// The pointer defaults that are being shown. One that contains itself (`next :Node = ()`) is shown once.
    defaults: Vec<*const Slot>,
}

impl<'a> Decoder<'a> {
    fn new(schemas: &'a SchemaSet, limit: usize) -> Self {
        Self { schemas, depth: 0, limit, budget: limit, defaults: Vec::new() }
    }

    /// A struct or group of type `id`.
    fn structure(&mut self, id: u64, reader: StructReader<'_>) -> Result<Value, CallError> {
        let node = self.schemas.structure(id)?;
        self.descend()?;
        // Members of a union that are not active cost a look, and a schema may have many of them.
        self.charge(node.fields.len())?;
        let discriminant = usize::try_from(node.discriminant_offset).unwrap_or(usize::MAX);
        let active = reader.get_data_field::<u16>(discriminant);
        let mut members = Map::new();
        for field in &node.fields {
            if field.discriminant.is_some_and(|discriminant| discriminant != active) {
                continue;
            }
            self.charge(size_of::<(String, Value)>() + field.name.len())?;
            let value = match &field.place {
                FieldPlace::Group(group) => self.structure(*group, reader),
                FieldPlace::Slot(slot) => self.slot(slot, reader),
            };
            members.insert(field.name.clone(), value.map_err(|error| error.in_member(&field.name))?);
        }
        self.depth -= 1;
        Ok(Value::Object(members))
    }

    fn slot(&mut self, slot: &'a Slot, reader: StructReader<'_>) -> Result<Value, CallError> {
        let offset = usize::try_from(slot.offset).unwrap_or(usize::MAX);
        match &slot.kind {
            Type::Void => Ok(Value::Null),
            Type::Scalar(scalar) => {
                let bits = match scalar.width() {
                    1 => u64::from(reader.get_bool_field(offset)),
                    8 => u64::from(reader.get_data_field::<u8>(offset)),
                    16 => u64::from(reader.get_data_field::<u16>(offset)),
                    32 => u64::from(reader.get_data_field::<u32>(offset)),
                    _ => reader.get_data_field::<u64>(offset),
                };
                Ok(scalar.to_json(self.schemas, bits ^ slot.default_bits))
            }
            kind => {
                let pointer = any_pointer::Reader::new(reader.get_pointer_field(offset));
                match &slot.default_pointer {
                    Some(message) if pointer.is_null() && !self.defaults.contains(&std::ptr::from_ref(slot)) => {
                        self.defaults.push(slot);
                        let value = self.message(message, kind);
                        self.defaults.pop();
                        value
                    }
                    _ => self.pointer(pointer, kind),
                }
            }
        }
    }

    /// A default, out of the schema.
    fn message(&mut self, message: &[u8], kind: &'a Type) -> Result<Value, CallError> {
        self.charge(message.len())?;
        let message = serialize::read_message(message, READ_OWN)?;
        self.pointer(message.get_root()?, kind)
    }

    fn pointer(&mut self, reader: any_pointer::Reader<'_>, kind: &'a Type) -> Result<Value, CallError> {
        match kind {
            Type::Text => {
                let text = reader.get_as::<text::Reader<'_>>()?.to_str().map_err(capnp::Error::from)?;
                self.charge(text.len())?;
                Ok(Value::String(text.to_owned()))
            }
            Type::Data => {
                let data = reader.get_as::<data::Reader<'_>>()?;
                self.charge(BASE64.encode_len(data.len()))?;
                Ok(Value::String(BASE64.encode(data)))
            }
            Type::List(element) => self.list(reader, element).map(Value::Array),
            _ if reader.is_null() => Ok(Value::Null),
            Type::Struct(id) => self.structure(*id, structure(reader)?),
            Type::Interface(_) | Type::Capability => Ok(mark("capability", self.schemas.type_text(kind))),
            Type::AnyPointer | Type::Void | Type::Scalar(_) => Ok(mark("opaque", self.schemas.type_text(kind))),
        }
    }

    fn list(&mut self, reader: any_pointer::Reader<'_>, element: &'a Type) -> Result<Vec<Value>, CallError> {
        match element {
            Type::Void => {
                let list = reader.get_as::<primitive_list::Reader<'_, ()>>()?;
                self.elements(list.len(), list.iter(), |_, ()| Ok(Value::Null))
            }
            Type::Scalar(scalar) => match scalar.width() {
                1 => self.scalars::<bool>(reader, *scalar),
                8 => self.scalars::<u8>(reader, *scalar),
                16 => self.scalars::<u16>(reader, *scalar),
                32 => self.scalars::<u32>(reader, *scalar),
                _ => self.scalars::<u64>(reader, *scalar),
            },
            Type::Struct(id) => {
                let list = reader.get_as::<struct_list::Reader<'_, Coat>>()?;
                self.elements(list.len(), list.iter(), |decoder, element| {
                    decoder.structure(*id, element.into_internal_struct_reader())
                })
            }
            _ => {
                let list = reader.get_as::<any_pointer_list::Reader<'_>>()?;
                self.elements(list.len(), list.iter(), |decoder, pointer| decoder.pointer(pointer?, element))
            }
        }
    }

    fn scalars<T>(&mut self, reader: any_pointer::Reader<'_>, scalar: Scalar) -> Result<Vec<Value>, CallError>
    where
        T: PrimitiveElement + Introspect + Into<u64>,
    {
        let list = reader.get_as::<primitive_list::Reader<'_, T>>()?;
        self.elements(list.len(), list.iter(), |decoder, bits| Ok(scalar.to_json(decoder.schemas, bits.into())))
    }

    /// Pays for the whole list before any memory is taken for it.
    fn elements<E>(
        &mut self,
        length: u32,
        elements: impl Iterator<Item = E>,
        mut read: impl FnMut(&mut Self, E) -> Result<Value, CallError>,
    ) -> Result<Vec<Value>, CallError> {
        if length == 0 {
            return Ok(Vec::new());
        }
        self.descend()?;
        self.charge(usize::try_from(length).unwrap_or(usize::MAX).saturating_mul(size_of::<Value>()))?;
        let read_element = |(index, element)| read(self, element).map_err(|error| error.in_element(index));
        let values = elements.enumerate().map(read_element).collect::<Result<_, _>>()?;
        self.depth -= 1;
        Ok(values)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), CallError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(CallError::AnswerTooLarge { limit: self.limit })?;
        Ok(())
    }

    fn descend(&mut self) -> Result<(), CallError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(CallError::AnswerTooDeep { path: String::new() }) } else { Ok(()) }
    }
}

fn mark(what: &str, name: String) -> Value {
    Value::Object(Map::from_iter([(what.to_owned(), Value::String(name))]))
}
