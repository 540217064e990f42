//! From JSON to a message.

use super::{
    arguments::{not_an_object, unknown},
    error::{ArgumentProblem, CallError, Found, Listed, SchemaError},
    limits::{MAX_ARGUMENT_WORDS, MAX_DEPTH},
    scalar::{Scalar, found},
    schema::{FieldNode, FieldPlace, SchemaSet, Slot, Type},
    words::{Full, Place, Words},
};
use capnp::any_pointer;
use data_encoding::BASE64;
use serde_json::Value;

/// Writes `value` as a struct of type `struct_id`. Members that are absent keep their defaults.
///
/// # Errors
/// [`CallError::Argument`] if the value does not fit the type; [`CallError::Schema`] if the type is not
/// described, or not consistently.
pub fn encode(
    schemas: &SchemaSet,
    struct_id: u64,
    value: &Value,
    out: any_pointer::Builder<'_>,
) -> Result<(), CallError> {
    write(schemas, struct_id, value)?.write_to(out)?;
    Ok(())
}

/// Whether [`encode`] would take the value.
pub(super) fn check(schemas: &SchemaSet, struct_id: u64, value: &Value) -> Result<(), CallError> {
    write(schemas, struct_id, value).map(drop)
}

fn write(schemas: &SchemaSet, struct_id: u64, value: &Value) -> Result<Words, CallError> {
    let mut encoder = Encoder { schemas, words: Words::new(), depth: 0 };
    encoder.new_structure(Words::ROOT, struct_id, value)?;
    Ok(encoder.words)
}

struct Encoder<'a> {
    schemas: &'a SchemaSet,
    words: Words,
    depth: usize,
}

impl Encoder<'_> {
    fn new_structure(&mut self, slot: usize, id: u64, value: &Value) -> Result<(), CallError> {
        let node = self.schemas.structure(id)?;
        let place = self.words.structure(slot, node.data_words, node.pointers)?;
        self.structure(id, place, value)
    }

    /// Fills the struct or group of type `id` at `place`.
    fn structure(&mut self, id: u64, place: Place, value: &Value) -> Result<(), CallError> {
        let node = self.schemas.structure(id)?;
        let Value::Object(members) = value else {
            return Err(not_an_object(self.schemas.name(id), value));
        };
        self.descend()?;
        let mut active: Option<&FieldNode> = None;
        for (name, value) in members {
            let field = node.field(name).ok_or_else(|| unknown(node, name))?;
            if let Some(discriminant) = field.discriminant {
                if let Some(first) = active.replace(field) {
                    let (first, second) = (first.name.clone(), field.name.clone());
                    return Err(ArgumentProblem::TwoUnionMembers { first, second }.here());
                }
                self.words
                    .set(place, 16, node.discriminant_offset, u64::from(discriminant))
                    .ok_or(SchemaError::OutOfBounds { id })?;
            }
            match &field.place {
                FieldPlace::Group(group) => self.structure(*group, place, value),
                FieldPlace::Slot(slot) => self.slot(id, place, slot, value),
            }
            .map_err(|error| error.in_member(&field.name))?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn slot(&mut self, id: u64, place: Place, slot: &Slot, value: &Value) -> Result<(), CallError> {
        match &slot.kind {
            Type::Void => self.void(value),
            Type::Scalar(scalar) => {
                let bits = self.scalar(*scalar, value)? ^ slot.default_bits;
                let set = self.words.set(place, scalar.width(), slot.offset, bits);
                set.ok_or_else(|| SchemaError::OutOfBounds { id }.into())
            }
            kind => {
                let at = Words::pointer(place, slot.offset).ok_or(SchemaError::OutOfBounds { id })?;
                self.pointer(at, kind, value)
            }
        }
    }

    /// Fills the pointer at word `at`. `null` leaves it null, which readers take for the default.
    fn pointer(&mut self, at: usize, kind: &Type, value: &Value) -> Result<(), CallError> {
        match (kind, value) {
            (_, Value::Null) => Ok(()),
            (Type::Text, Value::String(text)) => Ok(self.words.bytes(at, text.as_bytes(), &[0])?),
            (Type::Data, _) => {
                let bytes = data(value).map_err(|found| mismatch(self.schemas, kind, found))?;
                Ok(self.words.bytes(at, &bytes, &[])?)
            }
            (Type::Struct(id), _) => self.new_structure(at, *id, value),
            (Type::List(element), Value::Array(values)) => self.list(at, element, values),
            (Type::Interface(_) | Type::Capability, _) => {
                Err(ArgumentProblem::Capability { interface: self.schemas.type_text(kind) }.here())
            }
            _ => Err(mismatch(self.schemas, kind, found(value))),
        }
    }

    fn list(&mut self, at: usize, element: &Type, values: &[Value]) -> Result<(), CallError> {
        match element {
            Type::Void => {
                self.words.scalars(at, 0, values.len())?;
                self.each(values, |encoder, _, value| encoder.void(value))
            }
            Type::Scalar(scalar) => {
                let list = self.words.scalars(at, scalar.width(), values.len())?;
                self.each(values, |encoder, index, value| {
                    let bits = encoder.scalar(*scalar, value)?;
                    Ok(encoder.words.set_element(list, scalar.width(), index, bits).ok_or(Full)?)
                })
            }
            Type::Struct(id) => {
                let node = self.schemas.structure(*id)?;
                let list = self.words.structures(at, node.data_words, node.pointers, values.len())?;
                self.each(values, |encoder, index, value| encoder.structure(*id, list.element(index), value))
            }
            _ => {
                let first = self.words.pointers(at, values.len())?;
                self.each(values, |encoder, index, value| encoder.pointer(first + index, element, value))
            }
        }
    }

    /// Writes the elements of a list. An empty one is no deeper than a null pointer, as which it may come back.
    fn each(
        &mut self,
        values: &[Value],
        mut write: impl FnMut(&mut Self, usize, &Value) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        if values.is_empty() {
            return Ok(());
        }
        self.descend()?;
        for (index, value) in values.iter().enumerate() {
            write(self, index, value).map_err(|error| error.in_element(index))?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn void(&self, value: &Value) -> Result<(), CallError> {
        if value.is_null() { Ok(()) } else { Err(mismatch(self.schemas, &Type::Void, found(value))) }
    }

    fn scalar(&self, scalar: Scalar, value: &Value) -> Result<u64, CallError> {
        let bits = scalar.bits_of(self.schemas, value);
        bits.map_err(|found| mismatch(self.schemas, &Type::Scalar(scalar), found))
    }

    fn descend(&mut self) -> Result<(), CallError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(ArgumentProblem::TooDeep.here()) } else { Ok(()) }
    }
}

/// Base64, or JsonCodec's list of bytes.
fn data(value: &Value) -> Result<Vec<u8>, Found> {
    match value {
        Value::String(text) => BASE64.decode(text.as_bytes()).map_err(|_| Found::NotBase64),
        Value::Array(bytes) => {
            let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
            bytes.iter().map(byte).collect::<Option<_>>().ok_or(Found::List)
        }
        _ => Err(found(value)),
    }
}

fn mismatch(schemas: &SchemaSet, kind: &Type, found: Found) -> CallError {
    ArgumentProblem::Type { expected: expected(schemas, kind), found }.here()
}

/// A type, with what a user needs to know to write a value of it.
pub(super) fn expected(schemas: &SchemaSet, kind: &Type) -> String {
    let name = schemas.type_text(kind);
    match kind {
        Type::Void => format!("{name} (null)"),
        Type::Data => format!("{name} (base64)"),
        Type::Scalar(Scalar::Bool) => format!("{name} (true or false)"),
        Type::Scalar(Scalar::Enum(id)) => format!("{name} ({})", Listed(schemas.enumerants(*id))),
        Type::AnyPointer => format!("{name}, which cannot be written as text"),
        _ => name,
    }
}

impl From<Full> for CallError {
    fn from(Full: Full) -> Self {
        ArgumentProblem::TooLarge { limit: MAX_ARGUMENT_WORDS * 8 }.here()
    }
}
