//! The committed test vectors: every byte of a frame, a row, a keyslots file and an image, as an independent
//! implementation writes them (`tests/vectors/generate.py`). They keep the formats final.

use std::{collections::BTreeMap, path::Path};

use schemas::Timestamp;

use crate::{
    frame::{self, HEADER_LENGTH, Header, Kind},
    image::{Census, ImageHead, ImageReader},
    keys::{Keys, Root, SecretBytes},
    keyslots::{Keyslots, PassphraseCost},
    payload::{self, Bytes, Row},
    protection::Protection,
    secrets::{Passphrase, RecipientKey},
    simulated::SimulatedDisk,
};

struct Vector<'a> {
    kind: &'a str,
    fields: BTreeMap<&'a str, &'a str>,
}

impl Vector<'_> {
    fn bytes(&self, field: &str) -> Vec<u8> {
        let digits = self.fields[field];
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        self.bytes(field).try_into().unwrap()
    }

    fn number(&self, field: &str) -> u64 {
        self.fields[field].parse().unwrap()
    }

    fn root(&self) -> Root {
        if self.fields["root"].is_empty() { Root::Plain } else { Root::Sealed(SecretBytes::new(self.array("root"))) }
    }

    fn keys(&self) -> Keys {
        Keys::new(self.root(), self.array("store"), self.array("vat"))
    }
}

fn vectors(kind: &str) -> Vec<Vector<'static>> {
    let mut vectors: Vec<Vector<'static>> = Vec::new();
    for line in include_str!("../tests/vectors/vectors.txt").lines() {
        if let Some(kind) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            vectors.push(Vector { kind, fields: BTreeMap::new() });
        } else if let (Some(vector), Some((name, value))) = (vectors.last_mut(), line.split_once(" =")) {
            vector.fields.insert(name, value.trim());
        }
    }
    vectors.retain(|vector| vector.kind == kind);
    vectors
}

#[test]
fn frames() {
    let vectors = vectors("frame");
    assert_eq!(vectors.len(), 10);
    for vector in vectors {
        let keys = vector.keys();
        let header = Header {
            kind: match vector.number("kind") {
                1 => Kind::Genesis,
                2 => Kind::Epoch,
                3 => Kind::Turns,
                other => panic!("the vectors have no kind {other}"),
            },
            group: vector.number("group"),
            preceding: 0,
            following: 0,
            sequence: vector.number("sequence"),
            epoch: vector.number("epoch"),
            incarnation: vector.array("incarnation"),
        };
        let payload = vector.bytes("payload");
        let mut sealed = vec![0; HEADER_LENGTH];
        sealed.extend_from_slice(&payload);
        let tag = frame::seal(&keys, &header, &vector.array("previous"), &vector.array("salt"), &mut sealed);
        assert!(sealed == vector.bytes("frame"));

        let authentic = frame::parse(&keys, &sealed).ok().unwrap();
        assert_eq!(authentic.header, header);
        let (opened, found) = authentic.open(&vector.array("previous").into(), &mut sealed).unwrap();
        assert_eq!((&opened[..payload.len()], found), (payload.as_slice(), tag));
        match header.kind {
            Kind::Genesis => assert!(payload::decode::<payload::Genesis>(opened).is_some()),
            Kind::Epoch => assert!(payload::decode::<payload::Epoch>(opened).is_some()),
            Kind::Turns => assert!(payload::decode::<payload::Turns<'_>>(opened).is_some()),
            Kind::Image | Kind::ImageRows | Kind::ImageEnd => panic!("these stand in whole images"),
        }
    }
}

#[test]
fn rows() {
    let vectors = vectors("row");
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let keys = vector.keys();
        let (space, name, value) = (vector.number("space"), vector.bytes("name"), vector.bytes("value"));
        let key = keys.row_key(space, &name);
        assert_eq!(key.to_vec(), vector.bytes("key"));
        let mut plain = Vec::new();
        payload::append(&mut plain, &Row { space, name: Bytes(&name), value: Bytes(&value) });
        plain.resize(frame::pad(plain.len().next_multiple_of(64)), 0);
        let mut sealed = keys.seal_row(&key, &vector.array("salt"), &plain);
        assert!(sealed == vector.bytes("sealed"));
        assert_eq!(keys.row_digest(&key, &sealed), vector.array("digest"));
        assert_eq!(keys.tally_key(space), vector.array("tally_key"));

        let row: Row<'_> = payload::decode(keys.open_row(&key, &mut sealed).unwrap()).unwrap();
        assert_eq!((row.space, row.name.0, row.value.0), (space, name.as_slice(), value.as_slice()));
    }
}

#[test]
fn keyslots() {
    let vectors = vectors("keyslots");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let (store, key_file) = (vector.array("store"), SecretBytes::new(vector.array("key_file")));
        let written = match vector.root() {
            Root::Plain => Keyslots::plain(store),
            Root::Sealed(root) => {
                let mut keyslots = Keyslots::sealed(store, &root);
                keyslots.add_key(&root, &key_file, &vector.array("salt"));
                keyslots
            }
        };
        assert_eq!(written.encode(), vector.bytes("keyslots"));
        let read = Keyslots::decode(Path::new("keyslots"), &vector.bytes("keyslots")).unwrap();
        assert_eq!(read.opened_by(&key_file).len(), usize::from(vector.root().is_sealed()));
    }
}

#[test]
fn passphrase_keyslots() {
    let vectors = vectors("passphrase_keyslots");
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let passphrase = Passphrase::new(vector.fields["passphrase"].to_owned().into()).unwrap();
        let (store, root, salt) = (vector.array("store"), SecretBytes::new(vector.array("root")), vector.array("salt"));
        let [memory_kib, passes, lanes] =
            ["memory_kib", "passes", "lanes"].map(|field| vector.number(field).try_into().unwrap());
        let mut written = Keyslots::sealed(store, &root);
        written.add_passphrase(&root, &passphrase, PassphraseCost { memory_kib, passes, lanes }, &salt).unwrap();
        assert_eq!(written.encode(), vector.bytes("keyslots"));
        assert_eq!(root_of(&vector, &Protection::Passphrase(passphrase)), root);
    }
}

/// HPKE makes a new key for each encapsulation, so that what is written differs each time; what an independent
/// implementation wrote opens.
#[test]
fn recipient_keyslots() {
    let vectors = vectors("recipient_keyslots");
    assert_eq!(vectors.len(), 1);
    for vector in vectors {
        let (key, root) = (RecipientKey::from_bytes(&vector.array("recipient_key")), vector.array("root"));
        assert_eq!(key.recipient().unwrap().as_bytes(), &vector.array("recipient"));
        assert_eq!(root_of(&vector, &Protection::Recipient(key.clone())), SecretBytes::new(root));
        let read = Keyslots::decode(Path::new("keyslots"), &vector.bytes("keyslots")).unwrap();
        let (id, _) = read.slots().next().unwrap();
        assert_eq!(read.recipient(id, &SecretBytes::new(root)), Some(key.recipient().unwrap()));
    }
}

fn root_of(vector: &Vector<'_>, protection: &Protection) -> SecretBytes {
    let read = Keyslots::decode(Path::new("keyslots"), &vector.bytes("keyslots")).unwrap();
    match read.unlock(SimulatedDisk::new().as_ref(), Path::new("/s"), protection).unwrap().root {
        Root::Sealed(root) => root,
        Root::Plain => panic!("plain"),
    }
}

#[test]
fn images() {
    let vectors = vectors("image");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let bytes = vector.bytes("image");
        let mut image = ImageReader::begin(Box::new(&bytes[..]), Path::new("image"), |keyslots| {
            assert_eq!(keyslots.store, vector.array("store"));
            Ok(vector.root())
        })
        .unwrap();
        let expected = ImageHead {
            vat: vector.array("vat"),
            turn: vector.number("turn"),
            epoch: vector.number("epoch"),
            incarnation: vector.array("incarnation"),
            created: Timestamp::from_micros(vector.number("created")),
            label: String::from_utf8(vector.bytes("label")).unwrap(),
        };
        assert_eq!(*image.head(), expected);
        let mut rows = Vec::new();
        while let Some((key, value)) = image.next_row().unwrap() {
            rows.push((key.space, key.name, value));
        }
        let all: Vec<u8> = (0..=255).collect();
        let expected =
            [(7, b"name".to_vec(), b"value".to_vec()), (7, Vec::new(), vec![0; 700]), (1 << 40, all, Vec::new())];
        assert_eq!(rows, expected);
        let census = Census { rows: vector.number("rows"), bytes: vector.number("bytes") };
        assert_eq!(image.progress(), (bytes.len() as u64, census));
    }
}
