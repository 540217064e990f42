//! What of a DNS message can be walked without a library (RFC 1035, section 4): its records, one behind another.
//!
//! Within the bytes that are there, without following a pointer, and without taking memory, whatever the message
//! claims of itself.

/// A record, without its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its name is not that of the root.
    pub named: bool,
    /// Its type.
    pub kind: u16,
    /// Its class; of EDNS's record, how many bytes who says it takes over UDP (RFC 6891).
    pub class: u16,
    /// In seconds; of EDNS's record, a code, the version and flags.
    pub time_to_live: u32,
    /// What it says.
    pub data: &'a [u8],
    /// What is behind it in the message.
    pub behind: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads the record at the beginning of `message`; `None` if there is none, or not all of it.
    #[must_use]
    pub fn read(message: &'a [u8]) -> Option<Self> {
        let named = *message.first()? != 0;
        let (fixed, rest) = skip_name(message)?.split_first_chunk::<10>()?;
        let number = |index: usize| u16::from_be_bytes([fixed[index], fixed[index + 1]]);
        let (data, behind) = rest.split_at_checked(number(8).into())?;
        let time_to_live = u32::from(number(4)) << 16 | u32::from(number(6));
        Some(Self { named, kind: number(0), class: number(2), time_to_live, data, behind })
    }
}

/// What is behind the name at the beginning of `message`, be it whole or a pointer; `None` if it does not end there.
#[must_use]
pub fn skip_name(mut message: &[u8]) -> Option<&[u8]> {
    loop {
        match *message.first()? {
            0 => return message.get(1..),
            0xC0.. => return message.get(2..),
            length @ 1..=63 => message = message.get(1 + usize::from(length)..)?,
            64..0xC0 => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a.` and a pointer, A, IN, an hour, four bytes, and one more.
    const MESSAGE: [u8; 19] = [1, b'a', 0xC0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1, 9];

    #[test]
    fn a_record_is_read_with_what_is_behind_it() {
        let record = Record { named: true, kind: 1, class: 1, time_to_live: 3600, data: &[192, 0, 2, 1], behind: &[9] };
        assert_eq!(Record::read(&MESSAGE), Some(record));
        assert!(!Record::read(&[&[0], &MESSAGE[4..]].concat()).unwrap().named);
    }

    #[test]
    fn what_is_cut_anywhere_is_none_and_neither_is_a_reserved_label() {
        for length in 0..MESSAGE.len() - 1 {
            assert_eq!(Record::read(&MESSAGE[..length]), None, "{length}");
        }
        assert_eq!(skip_name(&[64, 0]), None);
    }
}
