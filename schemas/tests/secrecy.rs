//! No secret leaves through `Debug`, `Display` or an error of any type (DESIGN §3).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::{Debug, Write};

use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER, HEXUPPER};
use schemas::{Coded, Hints, IdentityKey, Invite, Secret, SturdyRef, SturdyRefError, VatAddress, VatId};
use zeroize::ZeroizeOnDrop;

/// A part of this many bytes or characters of a secret, in whatever notation, is a leak.
const WINDOW: usize = 5;

const SECRET: [u8; 32] = [
    0xd1, 0x3e, 0x97, 0x58, 0xc4, 0x2b, 0xe6, 0x71, 0x9d, 0x0c, 0xb3, 0x5f, 0xa8, 0x64, 0xf2, 0x1a, 0x89, 0xde, 0x37,
    0xcb, 0x70, 0x15, 0xea, 0x4d, 0xf9, 0x26, 0xb8, 0x53, 0x0e, 0x9b, 0x62, 0xc7,
];

fn id() -> VatId {
    IdentityKey::from_seed(&[3; 32]).id()
}

fn reference() -> SturdyRef {
    let hints = Hints { addresses: vec!["192.0.2.1:4433".to_owned()], ..Hints::default() };
    SturdyRef { id: id(), secret: Secret::from_slice(&SECRET).unwrap(), hints }
}

/// Everything that a text must not contain: every window of the secret in every notation.
fn needles(secret: &[u8; 32], text: &str) -> Vec<String> {
    let mut needles = Vec::new();
    for window in secret.windows(WINDOW) {
        let list = |write: fn(&u8) -> String, joint: &str| window.iter().map(write).collect::<Vec<_>>().join(joint);
        needles.extend([HEXLOWER.encode(window), HEXUPPER.encode(window)]);
        needles.push(list(u8::to_string, ", "));
        needles.push(list(u8::to_string, ",\n"));
        needles.push(list(|byte| format!("{byte:#04x}"), ", "));
        needles.push(list(|byte| format!("{byte:02x}"), ":"));
        needles.push(list(|byte| std::ascii::escape_default(*byte).to_string(), ""));
    }
    for encoded in [text.to_owned(), BASE64.encode(secret), BASE32_NOPAD.encode(secret)] {
        // Long enough that an id does not contain one by chance.
        needles.extend(encoded.as_bytes().windows(8).map(|window| String::from_utf8(window.to_vec()).unwrap()));
    }
    needles
}

fn assert_silent(shown: &str, needles: &[String], what: &str) {
    // An alternate `Debug` puts each number on a line of its own.
    let dense: String = shown.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    for needle in needles {
        assert!(!shown.contains(needle) && !dense.contains(needle), "{what} shows {needle:?} in {shown:?}");
    }
}

/// `Debug` in all its forms.
fn debugged(value: &dyn Debug) -> String {
    format!("{value:?}\n{value:#?}\n{value:x?}\n{value:X?}\n{value:#x?}")
}

fn fragment(reference: &SturdyRef) -> String {
    reference.expose().split_once('#').unwrap().1.to_owned()
}

#[test]
fn the_needles_are_found_where_a_secret_is_shown() {
    let needles = needles(&SECRET, &fragment(&reference()));
    for leak in [debugged(&SECRET), HEXLOWER.encode(&SECRET), reference().expose().to_string(), BASE64.encode(&SECRET)]
    {
        let found = std::panic::catch_unwind(|| assert_silent(&leak, &needles, "the leak"));
        assert!(found.is_err(), "a leak was not found: {leak}");
    }
}

#[test]
fn values_that_hold_a_secret_do_not_show_it() {
    let reference = reference();
    let needles = needles(&SECRET, &fragment(&reference));
    let hash = reference.secret.hash();
    let address: VatAddress = reference.address();
    let values: [&dyn Debug; 8] = [
        &reference,
        &reference.secret,
        &hash,
        &address,
        &Some(reference.clone()),
        &reference.expose().parse::<SturdyRef>(),
        &vec![(reference.id, reference.secret.clone())],
        &std::collections::HashSet::from([reference.clone()]),
    ];
    for value in values {
        assert_silent(&debugged(value), &needles, "Debug");
    }
    assert_silent(&format!("{hash} {address}"), &needles, "Display");
}

#[test]
fn a_hash_shows_six_characters() {
    let hash = reference().secret.hash();
    assert_eq!(hash.to_string().len(), 6);
    assert_eq!(format!("{:?}", reference().secret), format!("Secret(hash {hash})"));
    assert_silent(&debugged(&hash), &needles(hash.as_bytes(), "the rest of a hash is not for logs either"), "Debug");
}

#[test]
fn errors_repeat_no_part_of_a_reference() {
    let text = reference().expose();
    let needles = needles(&SECRET, &fragment(&reference()));
    let mut damaged: Vec<String> = (0..=text.len()).map(|length| text[..length].to_owned()).collect();
    damaged.extend((0..=text.len()).map(|start| text[start..].to_owned()));
    for new in ["", "0", "#", "?", "%", "&", "\u{e9}"] {
        damaged.extend((0..text.len()).map(|at| format!("{}{new}{}", &text[..at], &text[at + 1..])));
        damaged.extend((0..text.len()).map(|at| format!("{}{new}{}", &text[..at], &text[at..])));
    }
    // The secret where other things belong.
    let secret = fragment(&reference());
    damaged.extend([&secret, &format!("vat://{secret}"), &format!("vat://{}?at={secret}#", id())].map(String::clone));
    damaged.push(text.replace("at=", &format!("{secret}=")));

    let mut shown = String::new();
    let mut errors = 0;
    let mut show = |error: SturdyRefError| {
        errors += 1;
        writeln!(shown, "{}{error} {} {:?}", debugged(&error), error.code(), error.next()).unwrap();
    };
    for text in &damaged {
        text.parse::<SturdyRef>().err().into_iter().for_each(&mut show);
        text.parse::<VatAddress>().err().into_iter().for_each(&mut show);
    }
    assert!(errors > 2000, "{errors}");
    assert_silent(&shown, &needles, "an error");
    assert!(!shown.contains(&id().to_string()[..8]), "an error repeats the id");
}

#[test]
fn an_identity_key_does_not_show_its_seed() {
    let key = IdentityKey::from_seed(&SECRET);
    assert_silent(&debugged(&key), &needles(&SECRET, "no text form"), "Debug");
    assert!(format!("{key:?}").contains(&key.id().to_string()), "it shows whose it is");
}

#[test]
fn secrets_are_wiped_when_dropped() {
    fn wiped<T: ZeroizeOnDrop>(_: &T) {}
    wiped(&reference().secret);
    wiped(&reference().expose());
    wiped(&Invite::from_slice(&SECRET[..16]).unwrap());
    wiped(&IdentityKey::from_seed(&SECRET));
    wiped(&IdentityKey::from_seed(&SECRET).seed());
}
