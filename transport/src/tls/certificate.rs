//! A self-signed certificate over a vat's key, for TLS clients that know no raw keys.
//!
//! Nobody vouches for anything here: a client trusts this one certificate because it was told to, or pins the key in
//! it. Hence the certificate says as little as a certificate can, the same at every start: its bytes follow from the
//! key alone. It is made by hand, 200 and some bytes of DER (X.690) in the form of RFC 5280, with the algorithm
//! identifiers of RFC 8410:
//!
//! * the name is `capnp`, as subject, as issuer and as the one DNS name. Clients that check a name need one that does
//!   not depend on the address; OCaml's expects this one;
//! * it is valid from 1970 to the end of 9999 ("no well-defined expiration date", RFC 5280 §4.1.2.5): keys are
//!   replaced by making another vat;
//! * it is no authority over others.
//!
//! What a vat's key signs for it begins with the bytes `30 81`, the head of a DER sequence: neither TLS, nor a record,
//! nor any context string begins so.

use std::fmt::Write as _;

use data_encoding::BASE64;
use schemas::{IdentityKey, VatId};
use sha2::{Digest, Sha256};

/// The name in the certificate, which clients have to expect whatever the address is.
pub const CERTIFICATE_NAME: &str = "capnp";

/// A vat's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    id: VatId,
    der: Vec<u8>,
}

impl Certificate {
    pub(crate) fn new(key: &IdentityKey) -> Self {
        let id = key.id();
        let unsigned = unsigned(&id);
        let signature = key.sign_raw(&unsigned);
        let der = sequence(&[&unsigned, &algorithm(), &value(BIT_STRING, &[&[0][..], &signature].concat())]);
        Self { id, der }
    }

    /// The certificate itself.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate as text, as most programs read it from a file.
    #[must_use]
    pub fn pem(&self) -> String {
        let text = BASE64.encode(&self.der);
        let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            // Writing to a string cannot fail.
            let _ = writeln!(pem, "{line}");
            rest = more;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// The fingerprint by which a client can pin the key: [`key_digest`] in base64, after `sha256//` as curl and others
    /// write it.
    #[must_use]
    pub fn key_fingerprint(&self) -> String {
        format!("sha256//{}", BASE64.encode(&key_digest(&self.id)))
    }
}

/// By what the world pins the key of a vat: the SHA-256 of its SubjectPublicKeyInfo. It follows from the id.
#[must_use]
pub fn key_digest(id: &VatId) -> [u8; 32] {
    Sha256::digest(super::subject_public_key_info(id)).into()
}

// ---- DER

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0] EXPLICIT`: the version. `[3] EXPLICIT`: the extensions. `[2]` in a GeneralName: a DNS name.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;

/// 1.3.101.112, Ed25519 (RFC 8410 §3).
const ED25519: [u8; 3] = [0x2b, 0x65, 0x70];
/// 2.5.4.3, commonName.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// 2.5.29.19, basicConstraints.
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];

/// What is signed: TBSCertificate (RFC 5280 §4.1).
fn unsigned(id: &VatId) -> Vec<u8> {
    let name = sequence(&[&value(
        SET,
        &sequence(&[&value(OBJECT_IDENTIFIER, &COMMON_NAME), &value(UTF8_STRING, CERTIFICATE_NAME.as_bytes())]),
    )]);
    // A positive number, different for each key: two certificates of one issuer must not share theirs.
    let serial = [&[1][..], &id.as_bytes()[..15]].concat();
    let validity = sequence(&[&value(UTC_TIME, b"700101000000Z"), &value(GENERALIZED_TIME, b"99991231235959Z")]);
    let names = sequence(&[&value(DNS_NAME, CERTIFICATE_NAME.as_bytes())]);
    let extensions = sequence(&[
        // Critical, and empty: no authority.
        &sequence(&[
            &value(OBJECT_IDENTIFIER, &BASIC_CONSTRAINTS),
            &value(BOOLEAN, &[0xff]),
            &value(OCTET_STRING, &sequence(&[])),
        ]),
        &sequence(&[&value(OBJECT_IDENTIFIER, &SUBJECT_ALT_NAME), &value(OCTET_STRING, &names)]),
    ]);
    sequence(&[
        &value(VERSION, &value(INTEGER, &[2])),
        &value(INTEGER, &serial),
        &algorithm(),
        &name,
        &validity,
        &name,
        super::subject_public_key_info(id).as_ref(),
        &value(EXTENSIONS, &extensions),
    ])
}

/// AlgorithmIdentifier without parameters, as RFC 8410 has it.
fn algorithm() -> Vec<u8> {
    sequence(&[&value(OBJECT_IDENTIFIER, &ED25519)])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(SEQUENCE, &parts.concat())
}

/// A value with its tag and length (X.690 §8.1).
fn value(tag: u8, contents: &[u8]) -> Vec<u8> {
    // Proof of the casts: nothing in a certificate of ours has more than 300 bytes, as a test below sees.
    #[allow(clippy::cast_possible_truncation)]
    let head = match contents.len() {
        length @ 0..=0x7f => vec![tag, length as u8],
        length @ 0x80..=0xff => vec![tag, 0x81, length as u8],
        length => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [&head[..], contents].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_of_a_key_never_changes() {
        // Who pins the certificate has these bytes for ever.
        let certificate = Certificate::new(&IdentityKey::from_seed(&[7; 32]));
        assert_eq!(certificate, Certificate::new(&IdentityKey::from_seed(&[7; 32])));
        assert!(certificate.der().len() < 300, "{}", certificate.der().len());
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(certificate.der()));
        assert_eq!(digest, "e28dcbe3e6572855e6bd619f229866561894c294f765c1068a0db7a3187bb6fa");
    }

    #[test]
    fn what_is_signed_begins_as_nothing_else_that_the_key_signs() {
        for seed in 0..50 {
            let unsigned = unsigned(&IdentityKey::from_seed(&[seed; 32]).id());
            assert_eq!(unsigned[..2], [0x30, 0x81]);
        }
    }

    #[test]
    fn the_certificate_holds_the_key_and_is_signed_by_it() {
        let key = IdentityKey::generate().unwrap();
        let certificate = Certificate::new(&key);
        // Behind the head of the whole.
        let (unsigned, rest) = certificate.der()[4..].split_at(unsigned(&key.id()).len());
        assert_eq!(unsigned, super::unsigned(&key.id()));
        let signature: &[u8; 64] = rest[rest.len() - 64..].try_into().unwrap();
        assert!(key.id().verify_raw(unsigned, signature).is_ok());
        let key_info = super::super::subject_public_key_info(&key.id());
        assert!(unsigned.windows(key_info.len()).any(|window| window == key_info.as_ref()));
    }

    #[test]
    fn text_is_in_lines_of_64_characters() {
        let pem = Certificate::new(&IdentityKey::from_seed(&[7; 32])).pem();
        let lines: Vec<&str> = pem.lines().collect();
        assert_eq!((lines[0], lines[lines.len() - 1]), ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"));
        assert!(lines[1..lines.len() - 2].iter().all(|line| line.len() == 64));
        let whole = BASE64.decode(lines[1..lines.len() - 1].concat().as_bytes()).unwrap();
        assert_eq!(whole, Certificate::new(&IdentityKey::from_seed(&[7; 32])).der());
    }
}
