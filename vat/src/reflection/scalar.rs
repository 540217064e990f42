//! Values of fixed size: between JSON and the bits of a message.
//!
//! All of them travel as up to 64 bits, XORed with the field's default; only the width and the meaning of the
//! bits differ. Integers keep every digit: JSON readers that count in floating point are exact up to 2^53, so
//! larger ones are written as strings, and both forms are read.

use super::{error::Found, schema::SchemaSet};
use serde_json::{Number, Value};

/// 2^53: the largest integer up to which every integer has a floating-point value of its own.
const EXACT: u64 = 1 << 53;

/// A type of fixed size. The names are those of the schema language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float32,
    Float64,
    /// With the id of its description.
    Enum(u64),
}

impl Scalar {
    /// In bits: 1, 8, 16, 32 or 64.
    pub(super) fn width(self) -> u32 {
        match self {
            Self::Bool => 1,
            Self::Int8 | Self::UInt8 => 8,
            Self::Int16 | Self::UInt16 | Self::Enum(_) => 16,
            Self::Int32 | Self::UInt32 | Self::Float32 => 32,
            Self::Int64 | Self::UInt64 | Self::Float64 => 64,
        }
    }

    /// All bits that it has.
    pub(super) fn mask(self) -> u64 {
        u64::MAX >> (64 - self.width())
    }

    pub(super) fn bits_of(self, schemas: &SchemaSet, value: &Value) -> Result<u64, Found> {
        match self {
            Self::Bool => value.as_bool().map(u64::from).ok_or_else(|| found(value)),
            Self::Float32 => float32(value).map(|float| u64::from(float.to_bits())),
            Self::Float64 => float64(value).map(f64::to_bits),
            Self::Enum(id) => match value {
                Value::String(name) => (0u64..)
                    .zip(schemas.enumerants(id))
                    .find_map(|(number, known)| (known == name).then_some(number))
                    .ok_or(Found::Text),
                _ => self.integer_bits(value),
            },
            _ => self.integer_bits(value),
        }
    }

    fn integer_bits(self, value: &Value) -> Result<u64, Found> {
        let integer = integer(value)?;
        let range = if self.is_signed() {
            let half = i128::from(self.mask() >> 1);
            -half - 1..=half
        } else {
            0..=i128::from(self.mask())
        };
        if !range.contains(&integer) {
            return Err(Found::OutOfRange);
        }
        // Within the range of its type it is within that of i64 or of u64.
        let bits = i64::try_from(integer).map(i64::cast_unsigned).or_else(|_| u64::try_from(integer));
        bits.map(|bits| bits & self.mask()).map_err(|_| Found::OutOfRange)
    }

    fn is_signed(self) -> bool {
        matches!(self, Self::Int8 | Self::Int16 | Self::Int32 | Self::Int64)
    }

    pub(super) fn to_json(self, schemas: &SchemaSet, bits: u64) -> Value {
        match self {
            Self::Bool => Value::Bool(bits != 0),
            Self::Float32 => {
                let float = f32::from_bits(low_half(bits));
                // The shortest digits that name this Float32, rather than those of the Float64 next to it.
                let short = float.to_string().parse().unwrap_or(f64::from(float));
                #[allow(clippy::cast_possible_truncation, reason = "checks that nothing is lost")]
                let exact = short as f32 == float;
                float_json(if exact { short } else { f64::from(float) })
            }
            Self::Float64 => float_json(f64::from_bits(bits)),
            Self::Enum(id) => {
                let name = usize::try_from(bits).ok().and_then(|number| schemas.enumerants(id).get(number));
                name.map_or_else(|| Value::from(bits), |name| Value::String(name.clone()))
            }
            _ if self.is_signed() => {
                let unused = 64 - self.width();
                let integer = (bits << unused).cast_signed() >> unused;
                if integer.unsigned_abs() <= EXACT { Value::from(integer) } else { Value::String(integer.to_string()) }
            }
            _ if bits <= EXACT => Value::from(bits),
            _ => Value::String(bits.to_string()),
        }
    }
}

/// What kind of value this is, for an error.
pub(super) fn found(value: &Value) -> Found {
    match value {
        Value::Null => Found::Null,
        Value::Bool(_) => Found::Boolean,
        Value::Number(_) => Found::Number,
        Value::String(_) => Found::Text,
        Value::Array(_) => Found::List,
        Value::Object(_) => Found::Object,
    }
}

fn integer(value: &Value) -> Result<i128, Found> {
    match value {
        Value::String(digits) => digits.parse().map_err(|_| Found::Text),
        Value::Number(number) => {
            if let Some(integer) = number.as_i64() {
                Ok(i128::from(integer))
            } else if let Some(integer) = number.as_u64() {
                Ok(i128::from(integer))
            } else {
                whole(number)
            }
        }
        _ => Err(found(value)),
    }
}

/// `3.0` and `1e6` are integers, written differently; beyond 2^53 it is no longer certain which one was meant.
fn whole(number: &Number) -> Result<i128, Found> {
    let float = number.as_f64().ok_or(Found::Number)?;
    if float.fract() != 0.0 {
        return Err(Found::Number);
    }
    let text = format!("{float:.0}");
    match text.parse::<i64>() {
        Ok(integer) if integer.unsigned_abs() <= EXACT => Ok(i128::from(integer)),
        _ => Err(Found::OutOfRange),
    }
}

fn float64(value: &Value) -> Result<f64, Found> {
    match value {
        Value::Number(number) => number.as_f64().ok_or(Found::Number),
        Value::String(text) => match special(text) {
            Some(float) => Ok(float),
            None => text.parse().ok().filter(|float: &f64| float.is_finite()).ok_or(Found::Text),
        },
        _ => Err(found(value)),
    }
}

fn float32(value: &Value) -> Result<f32, Found> {
    let wide = float64(value)?;
    #[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest is what a Float32 does")]
    let narrow = wide as f32;
    if wide.is_finite() && narrow.is_infinite() { Err(Found::OutOfRange) } else { Ok(narrow) }
}

fn special(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn float_json(float: f64) -> Value {
    Number::from_f64(float).map_or_else(
        || {
            let name = if float.is_nan() {
                "NaN"
            } else if float > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            };
            Value::String(name.to_owned())
        },
        Value::Number,
    )
}

fn low_half(bits: u64) -> u32 {
    let [a, b, c, d, ..] = bits.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
