//! References as values: what an object keeps in its state to find another one again.
//!
//! A capability is live and dies with its session; a reference is data and lives as long as the row it stands in. It
//! is an ordinary serde value, so it can stand anywhere in a state type: in a field, a list, a map. The vat has to
//! know which objects a row refers to, or it could not tell garbage from what is still needed. It does not ask the
//! author, who could forget one: when a row is stored, [`references_in`] walks through the value with a serializer
//! that keeps the numbers of objects and drops everything else.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize, Serialize, Serializer,
    ser::{
        SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
        SerializeTupleVariant,
    },
};

/// Number of an object inside its vat; also the space that holds its rows. Never used again, whatever becomes of the
/// object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename = "vat::ObjectId")]
pub struct ObjectId(pub(crate) u64);

impl ObjectId {
    /// The number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name under which an [`ObjectId`] enters every serializer. No type of Rust can have it by accident.
const OBJECT_ID: &str = "vat::ObjectId";

/// A reference that an object keeps: in its state, in its entries, anywhere in them.
///
/// [`ObjectTurn::create`](crate::ObjectTurn::create) gives one, [`Handle::open`](crate::Handle::open) makes it a live
/// capability. What a stored reference leads to is not removed; what nothing leads to is garbage, and is.
///
/// It is no right by itself, since it can be read from any bytes: it opens, and can be kept, only for an object that the
/// vat knows to have it. One that is hidden in a byte string is not seen there, and does not count as kept.
///
/// Stored as serde stores an enum, by the position of its variant, which therefore is final.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reference {
    /// An object of the same vat.
    Near(ObjectId),
}

/// The objects of this vat that a value refers to.
pub(crate) fn references_in<T: Serialize>(value: &T) -> Result<BTreeSet<ObjectId>, Unreadable> {
    let mut collector = Collector::default();
    value.serialize(&mut collector)?;
    Ok(collector.found)
}

/// A value that cannot be walked through: its own `Serialize` failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(String);

impl serde::ser::Error for Unreadable {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Walks through a value and keeps the references in it.
#[derive(Default)]
struct Collector {
    found: BTreeSet<ObjectId>,
    /// The next number is that of an object.
    expected: bool,
}

/// Values that can hold no reference.
macro_rules! nothing {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), Unreadable> { Ok(()) })*
    };
}

/// Values that hold others, which are walked through in turn.
macro_rules! inside {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<Self, Unreadable> { Ok(self) })*
    };
}

impl Serializer for &mut Collector {
    type Ok = ();
    type Error = Unreadable;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    nothing! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u128(u128);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    inside! {
        serialize_seq(Option<usize>);
        serialize_tuple(usize);
        serialize_tuple_struct(&'static str, usize);
        serialize_tuple_variant(&'static str, u32, &'static str, usize);
        serialize_map(Option<usize>);
        serialize_struct(&'static str, usize);
        serialize_struct_variant(&'static str, u32, &'static str, usize);
    }

    fn serialize_u64(self, value: u64) -> Result<(), Unreadable> {
        if std::mem::take(&mut self.expected) {
            self.found.insert(ObjectId(value));
        }
        Ok(())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Unreadable> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, name: &'static str, value: &T) -> Result<(), Unreadable> {
        self.expected = name == OBJECT_ID;
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Unreadable> {
        value.serialize(self)
    }

    /// As postcard says of itself: a value must not look different to the two.
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Parts of a value that holds others.
macro_rules! parts {
    ($($part:ident::$method:ident($($key:ty)?);)*) => {
        $(impl $part for &mut Collector {
            type Ok = ();
            type Error = Unreadable;

            fn $method<T: ?Sized + Serialize>(&mut self, $(_: $key,)? value: &T) -> Result<(), Unreadable> {
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Unreadable> {
                Ok(())
            }
        })*
    };
}

parts! {
    SerializeSeq::serialize_element();
    SerializeTuple::serialize_element();
    SerializeTupleStruct::serialize_field();
    SerializeTupleVariant::serialize_field();
    SerializeStruct::serialize_field(&'static str);
    SerializeStructVariant::serialize_field(&'static str);
}

impl SerializeMap for &mut Collector {
    type Ok = ();
    type Error = Unreadable;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Unreadable> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unreadable> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Unreadable> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn near(number: u64) -> Reference {
        Reference::Near(ObjectId(number))
    }

    #[derive(Serialize)]
    struct Newtype(Reference);

    #[derive(Serialize)]
    enum Shape {
        Unit,
        Newtype(Reference),
        Tuple(u64, Reference),
        Struct { beside: u64, inner: Option<Box<Shape>> },
    }

    #[derive(Serialize)]
    struct Everything<'a> {
        plain: u64,
        text: &'a str,
        newtype: Newtype,
        pair: (Reference, u64),
        list: Vec<Option<Reference>>,
        keys: BTreeMap<Reference, u64>,
        values: BTreeMap<u64, Reference>,
        shapes: [Shape; 4],
        bare: ObjectId,
    }

    #[test]
    fn references_are_found_wherever_they_stand_and_plain_numbers_are_not() {
        let value = Everything {
            plain: 100,
            text: "no",
            newtype: Newtype(near(1)),
            pair: (near(2), 101),
            list: vec![None, Some(near(3)), Some(near(3))],
            keys: BTreeMap::from([(near(4), 102)]),
            values: BTreeMap::from([(103, near(5))]),
            shapes: [
                Shape::Unit,
                Shape::Newtype(near(6)),
                Shape::Tuple(104, near(7)),
                Shape::Struct { beside: 105, inner: Some(Box::new(Shape::Newtype(near(8)))) },
            ],
            bare: ObjectId(9),
        };
        let found: Vec<u64> = references_in(&value).unwrap().into_iter().map(ObjectId::number).collect();
        assert_eq!(found, (1..=9).collect::<Vec<_>>());
    }

    #[test]
    fn the_stored_form_of_a_reference_is_its_variant_and_its_number() {
        assert_eq!(postcard::to_stdvec(&near(300)).unwrap(), [0, 0xac, 0x02]);
        assert_eq!(postcard::from_bytes::<Reference>(&[0, 0xac, 0x02]).unwrap(), near(300));
        assert!(postcard::from_bytes::<Reference>(&[9, 1]).is_err());
    }
}
