//! What frames and rows contain, in postcard form (<https://postcard.jamesmunns.com/wire-format>). Final.
//!
//! A turns frame carries a sequence of turns `{turn, changes: [{space, name, value?}]}`. Its bytes are written
//! piecewise by the thread that submits ([`append_turn`]), so that a turn is copied once and the committer
//! only puts the count in front. They are written by hand, because all that comes by waits for it and a serializer copies
//! each number as a string of bytes; a test shows that the pieces are the postcard form of [`Turns`].

use std::fmt;

use postcard::ser_flavors::Flavor;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

use crate::{frame::is_zero, limits::MAX_TURN_BYTES, store::TurnDelta};

/// Bytes that are borrowed from the frame that they stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Bytes<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("borrowed bytes")
            }

            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Bytes<'de>, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_bytes(Borrowed)
    }
}

/// The payload of the first frame of a store.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Genesis {
    /// The vat that the store belongs to.
    pub(crate) vat: [u8; 32],
}

/// The payload of the frame that begins an epoch; the epoch itself and its incarnation are in the header.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    /// The epoch that ended.
    pub(crate) previous: u64,
    /// The last turn before.
    pub(crate) turn: u64,
}

/// The payload of a frame of turns.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turns<'a> {
    #[serde(borrow)]
    pub(crate) turns: Vec<Turn<'a>>,
}

/// One turn.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn<'a> {
    pub(crate) turn: u64,
    #[serde(borrow)]
    pub(crate) changes: Vec<TurnChange<'a>>,
}

/// One row that a turn has set or removed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TurnChange<'a> {
    pub(crate) space: u64,
    #[serde(borrow)]
    pub(crate) name: Bytes<'a>,
    #[serde(borrow)]
    pub(crate) value: Option<Bytes<'a>>,
}

/// A row of the base, inside its seal. It repeats its key, which the base only has in derived form.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row<'a> {
    pub(crate) space: u64,
    #[serde(borrow)]
    pub(crate) name: Bytes<'a>,
    #[serde(borrow)]
    pub(crate) value: Bytes<'a>,
}

/// Appends one turn to a sequence of them; says how long it would be if that is more than a turn may take,
/// and leaves `buffer` as it was then.
pub(crate) fn append_turn(buffer: &mut Vec<u8>, delta: &TurnDelta) -> Result<(), usize> {
    // The lengths alone, before a byte is copied: the rest is at most a few dozen bytes for each change.
    let least = delta.changes.iter().map(|change| change.key.name.len() + change.value.as_ref().map_or(0, Vec::len));
    let least = least.fold(0, usize::saturating_add);
    if least > MAX_TURN_BYTES {
        return Err(least);
    }
    let before = buffer.len();
    append_number(buffer, delta.turn);
    append_number(buffer, delta.changes.len() as u64);
    for change in &delta.changes {
        append_number(buffer, change.key.space);
        append_bytes(buffer, &change.key.name);
        match &change.value {
            None => buffer.push(0),
            Some(value) => {
                buffer.push(1);
                append_bytes(buffer, value);
            }
        }
    }
    let length = buffer.len() - before;
    if length > MAX_TURN_BYTES {
        buffer.truncate(before);
        return Err(length);
    }
    Ok(())
}

fn append_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    append_number(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
}

/// Seven bits at a time, the lowest first; the highest bit says that there are more.
fn append_number(buffer: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        buffer.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    buffer.push(number.to_le_bytes()[0]);
}

/// Appends a payload, or a piece of one.
pub(crate) fn append<T: Serialize>(buffer: &mut Vec<u8>, value: &T) {
    // Proof: appending to memory cannot fail, and postcard refuses only sequences of unknown length.
    #[allow(clippy::expect_used)]
    postcard::serialize_with_flavor(value, Appending(buffer)).expect("a type of known length, into memory");
}

/// Reads a payload and its padding, which must be zeros: there is one spelling of every payload.
pub(crate) fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Option<T> {
    let (value, padding) = postcard::take_from_bytes(payload).ok()?;
    is_zero(padding).then_some(value)
}

struct Appending<'a>(&'a mut Vec<u8>);

impl Flavor for Appending<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Change, RowKey};

    fn deltas() -> impl Strategy<Value = Vec<TurnDelta>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300);
        let change = (any::<u64>(), bytes(), prop::option::of(bytes()))
            .prop_map(|(space, name, value)| Change { key: RowKey { space, name }, value });
        prop::collection::vec(
            (any::<u64>(), prop::collection::vec(change, 0..6)).prop_map(|(turn, changes)| TurnDelta { turn, changes }),
            0..5,
        )
    }

    fn borrowed(deltas: &[TurnDelta]) -> Turns<'_> {
        let turns = deltas.iter().map(|delta| Turn {
            turn: delta.turn,
            changes: delta
                .changes
                .iter()
                .map(|change| TurnChange {
                    space: change.key.space,
                    name: Bytes(&change.key.name),
                    value: change.value.as_deref().map(Bytes),
                })
                .collect(),
        });
        Turns { turns: turns.collect() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn turns_written_in_pieces_are_the_postcard_form_and_read_back(deltas in deltas(), padding in 0..600usize) {
            let mut pieces = Vec::new();
            append(&mut pieces, &deltas.len());
            for delta in &deltas {
                append_turn(&mut pieces, delta).unwrap();
            }
            prop_assert_eq!(&pieces, &postcard::to_stdvec(&borrowed(&deltas)).unwrap());

            pieces.resize(pieces.len() + padding, 0);
            prop_assert_eq!(decode::<Turns<'_>>(&pieces), Some(borrowed(&deltas)));
            pieces.push(1);
            prop_assert_eq!(decode::<Turns<'_>>(&pieces), None);
        }
    }

    #[test]
    fn a_turn_over_the_limit_is_refused_and_leaves_no_trace() {
        let delta = |length| TurnDelta {
            turn: 1,
            changes: vec![Change { key: RowKey { space: 1, name: vec![7] }, value: Some(vec![1; length]) }],
        };
        let mut buffer = vec![9];
        assert!(append_turn(&mut buffer, &delta(MAX_TURN_BYTES + 1)).is_err());
        assert!(append_turn(&mut buffer, &delta(MAX_TURN_BYTES)).is_err(), "the frame around the value counts too");
        assert_eq!(buffer, [9]);
        assert!(append_turn(&mut buffer, &delta(MAX_TURN_BYTES - 16)).is_ok());
    }
}
