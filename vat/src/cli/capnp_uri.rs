//! `capnp://`: a reference in the form that OCaml's Cap'n Proto and its relatives read, for a vat with a TLS port.
//!
//! `capnp://sha-256:<digest>@<host>:<port>/<id>`, both in the URL-safe base64 without padding: the SHA-256 of the key
//! that the server must show, and the id of the object that the client names in its first message, which is here the
//! secret of the grant.

use data_encoding::BASE64URL_NOPAD;
use schemas::{Address, SturdyRef};
use transport::tls::key_digest;
use zeroize::Zeroizing;

/// Where a TLS port is reached.
#[derive(Debug, Clone)]
pub(super) struct Place {
    host: String,
    port: u16,
}

/// `<host>:<port>`, with an IPv6 address in brackets.
pub(super) fn place(text: &str) -> Result<Place, String> {
    // The same that a record can say of a port.
    match format!("quic:{text}").parse() {
        Ok(Address::Quic { host, port }) if host.contains(':') => Ok(Place { host: format!("[{host}]"), port }),
        Ok(Address::Quic { host, port }) => Ok(Place { host, port }),
        _ => Err("this is no <host>:<port>".to_owned()),
    }
}

/// A reference as `capnp://`, by way of the TLS port at `place`.
pub(super) fn capnp_uri(reference: &SturdyRef, Place { host, port }: &Place) -> Zeroizing<String> {
    let digest = BASE64URL_NOPAD.encode(&key_digest(&reference.id));
    let begin = format!("capnp://sha-256:{digest}@{host}:{port}/");
    let secret = reference.secret.expose();
    // Of its full size from the start: growing would leave a copy behind that nobody wipes.
    let length = BASE64URL_NOPAD.encode_len(secret.len());
    let mut encoded = Zeroizing::new(vec![0; length]);
    BASE64URL_NOPAD.encode_mut(secret, &mut encoded);
    let mut text = Zeroizing::new(String::with_capacity(begin.len() + length));
    text.push_str(&begin);
    encoded.iter().for_each(|byte| text.push(char::from(*byte)));
    text
}

#[cfg(test)]
mod tests {
    use schemas::{Hints, IdentityKey, Secret};

    use super::*;

    #[test]
    fn a_reference_has_the_key_the_place_and_the_secret_in_it() {
        let secret = Secret::from_slice(&[0xfb; 32]).unwrap();
        let reference = SturdyRef { id: IdentityKey::from_seed(&[7; 32]).id(), secret, hints: Hints::default() };
        // The digest as `openssl dgst -sha256` has it of the key of this seed.
        let expected = |place: &str| {
            let secret = "-_v7".repeat(10);
            format!("capnp://sha-256:Mkvi3qi8REYbAjPlH6SJAu1rHMZx53Oa8lUeC_5o9U4@{place}/{secret}-_s")
        };
        for text in ["example.org:4434", "192.0.2.1:4434", "[2001:db8::1]:4434"] {
            assert_eq!(*capnp_uri(&reference, &place(text).unwrap()), expected(text));
        }
        for text in ["example.org", "example.org:", ":4434", "a@b:1", "a/b:1", "a b:1", ""] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
