//! When a certificate is valid (RFC 5280, section 4.1.2.5): all that this server wants to know of one beside its key.
//!
//! A certificate is the operator's own, and TLS libraries judge those of others only. So the few fields in front of the
//! validity are passed over by their lengths, and anything that is not as expected is no answer.

use schemas::Timestamp;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, constructed: the version.
const VERSION: u8 = 0xa0;

/// The first and the last moment at which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl Validity {
    /// Of a certificate in DER. `None` if it is not one.
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = value(SEQUENCE, certificate)?;
        let (mut fields, _) = value(SEQUENCE, certificate)?;
        if fields.first() == Some(&VERSION) {
            fields = element(fields)?.2;
        }
        // Serial number, algorithm of the signature, issuer.
        for _ in 0..3 {
            fields = element(fields)?.2;
        }
        let (validity, _) = value(SEQUENCE, fields)?;
        let (not_before, rest) = time(validity)?;
        let (not_after, _) = time(rest)?;
        Some(Self { not_before, not_after })
    }
}

/// Tag, contents, and what follows (X.690, definite lengths only, as DER has them).
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (octets, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((*tag, contents, rest))
}

fn value(wanted: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, contents, rest) = element(bytes)?;
    (tag == wanted).then_some((contents, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, and what follows.
fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (tag, text, rest) = element(bytes)?;
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, digits) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    if digits.len() != 10 || !digits.is_ascii() {
        return None;
    }
    let field = |at: usize| number(&digits[2 * at..2 * at + 2]);
    let (month, day, hour, minute, second) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Before 1970 there were no certificates; what claims to be older is taken for no answer.
    let days = days_since_1970(year, month, day)?;
    Some((Timestamp::from_seconds(days * 86_400 + hour * 3_600 + minute * 60 + second), rest))
}

fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// Counted in years that begin in March, so that the leap day is the last of its year.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, months) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let day_of_year = (153 * months + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    // From the first of March of the year 0 to 1970.
    days.checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn a_certificate_tells_when_it_is_valid_and_nothing_else_does() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates/localhost.pem");
        let certificate = CertificateDer::from_pem_file(file).unwrap();
        // As `openssl x509 -dates` shows it: 22 November 2026 14:34:02 and 29 October 2126 14:34:02.
        let [not_before, not_after] = [1_795_358_042, 4_948_958_042].map(Timestamp::from_seconds);
        assert_eq!(Validity::of(&certificate), Some(Validity { not_before, not_after }));
        for length in 0..certificate.len() {
            // Cut anywhere, it is no certificate any more: the outermost length says so.
            assert_eq!(Validity::of(&certificate[..length]), None);
        }
        for (position, _) in certificate.iter().enumerate() {
            let mut changed = certificate.to_vec();
            changed[position] ^= 0x80;
            // Whatever comes of it, no panic.
            let _ = Validity::of(&changed);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (date, days) in [
            ((1970, 1, 1), Some(0)),
            ((2000, 2, 29), Some(11_016)),
            ((2000, 3, 1), Some(11_017)),
            ((2026, 11, 22), Some(20_779)),
            ((2100, 3, 1), Some(47_541)),
            ((1969, 12, 31), None),
            ((0, 1, 1), None),
        ] {
            assert_eq!(days_since_1970(date.0, date.1, date.2), days, "{date:?}");
        }
    }
}
