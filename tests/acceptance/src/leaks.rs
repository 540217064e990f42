//! The search for secrets in everything that was written (DESIGN §3), and for files that others may use.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use memchr::memmem::Finder;
use schemas::SturdyRef;

use crate::limits::SEARCHED_FILE_BYTES;

/// Bytes of a secret that are looked for at a time: a mistyped or cut reference in a message gives the rest
/// away, and eight bytes do not come together by chance.
const PIECE_BYTES: usize = 8;

/// The same for a fragment, which has five bits in a character.
const PIECE_CHARACTERS: usize = 12;

/// Characters of a fragment that depend on the secret alone: the rest is the checksum.
const SECRET_CHARACTERS: usize = 51;

/// Characters of a whole fragment.
const FRAGMENT_CHARACTERS: usize = 58;

/// One form of one secret.
struct Needle {
    what: String,
    finder: Finder<'static>,
    /// A key may be in key files: in its own, and in that of a copy of the home.
    is_key: bool,
}

impl Needle {
    fn new(what: impl Into<String>, bytes: impl AsRef<[u8]>) -> Self {
        Self { what: what.into(), finder: Finder::new(bytes.as_ref()).into_owned(), is_key: false }
    }
}

/// Something that must not be.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) what: String,
}

/// Searches all files below `folder` for the secrets of `minted`, for passphrases and for the keys in `private`
/// folders, and the private folders for anything that others may use.
pub(crate) fn search(folder: &Path, minted: &[String], passphrases: &[String], private: &[PathBuf]) -> Vec<Found> {
    let mut needles: Vec<Needle> = minted.iter().flat_map(|reference| forms_of_reference(reference)).collect();
    needles.extend(passphrases.iter().map(|passphrase| Needle::new("a passphrase", passphrase)));
    let mut found = Vec::new();
    for folder in private.iter().filter(|folder| folder.exists()) {
        walk(folder, &mut |path, metadata| {
            let mode = metadata.permissions().mode() & 0o7777;
            if mode & 0o077 != 0 && !metadata.is_symlink() {
                found.push(Found { path: path.to_owned(), what: format!("is open to others: mode {mode:04o}") });
            }
            if metadata.is_file() && is_key_file(path) {
                needles.extend(forms_of_key(path));
            }
        });
    }
    walk(folder, &mut |path, metadata| {
        if metadata.is_file() {
            found.extend(search_file(path, metadata.len(), &needles));
        }
    });
    found
}

fn search_file(path: &Path, length: u64, needles: &[Needle]) -> Vec<Found> {
    assert!(length <= SEARCHED_FILE_BYTES, "{} is too large to be searched: {length} bytes", path.display());
    // A running program may remove a file of its own at any moment; then nobody can read it any more.
    let Ok(contents) = fs::read(path) else { return Vec::new() };
    let needles = needles.iter().filter(|needle| !(needle.is_key && is_key_file(path)));
    let minted = needles.filter_map(|needle| Some((needle.what.as_str(), needle.finder.find(&contents)?)));
    let others = memchr::memchr_iter(b'#', &contents).filter(|at| is_fragment(&contents, *at));
    // One line per file says enough.
    let found = minted.chain(others.map(|at| ("a whole reference", at))).next();
    found
        .map(|(what, at)| Found { path: path.to_owned(), what: format!("holds {what} at byte {at}") })
        .into_iter()
        .collect()
}

fn is_key_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}

/// The forms in which a sturdyref's secret could have been written.
fn forms_of_reference(reference: &str) -> Vec<Needle> {
    let parsed: SturdyRef = reference.parse().expect("only sturdyrefs are minted");
    let (_, fragment) = reference.split_once('#').expect("a sturdyref has a fragment");
    let what = format!("the secret of {}", parsed.id);
    let mut needles = forms_of_bytes(&what, parsed.secret.expose());
    let pieces = fragment.as_bytes()[..SECRET_CHARACTERS].chunks_exact(PIECE_CHARACTERS);
    needles.extend(pieces.map(|piece| Needle::new(format!("{what} as in the reference"), piece)));
    needles
}

/// The forms in which a key could have been written anywhere but in a key file.
fn forms_of_key(path: &Path) -> Vec<Needle> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes.len() >= 32, "{} is too short for a key", path.display());
    let mut needles = forms_of_bytes(&format!("the key {}", path.display()), &bytes);
    needles.iter_mut().for_each(|needle| needle.is_key = true);
    needles
}

/// Pieces of the bytes: raw, in hexadecimal, and as Rust and others print a list of bytes.
fn forms_of_bytes(what: &str, bytes: &[u8]) -> Vec<Needle> {
    let forms = |piece: &[u8]| {
        let hexadecimal: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        let list: Vec<String> = piece.iter().map(ToString::to_string).collect();
        [
            Needle::new(format!("{what} as raw bytes"), piece),
            Needle::new(format!("{what} in hexadecimal"), hexadecimal.to_uppercase()),
            Needle::new(format!("{what} in hexadecimal"), hexadecimal),
            Needle::new(format!("{what} as a list"), list.join(", ")),
            Needle::new(format!("{what} as a list"), list.join(",")),
        ]
    };
    bytes.chunks_exact(PIECE_BYTES).flat_map(forms).collect()
}

/// Whether something of the form of a reference's secret part begins at this `#`, whoever minted it.
fn is_fragment(contents: &[u8], at: usize) -> bool {
    let alphabet = b"ybndrfg8ejkmcpqxot1uwisza345h769";
    let fragment = contents.get(at + 1..at + 1 + FRAGMENT_CHARACTERS);
    fragment.is_some_and(|fragment| fragment.iter().all(|byte| alphabet.contains(byte)))
}

/// Calls `visit` for everything below a folder and the folder itself.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    // What a running program removes meanwhile is gone.
    let Ok(metadata) = path.symlink_metadata() else { return };
    visit(path, &metadata);
    if metadata.is_dir() {
        let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        entries.flatten().for_each(|entry| walk(&entry.path(), visit));
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Hints, IdentityKey, Secret};

    use super::*;

    fn reference() -> (String, [u8; 32]) {
        let secret = Secret::generate().unwrap();
        let bytes = *secret.expose();
        let id = IdentityKey::generate().unwrap().id();
        (SturdyRef { id, secret, hints: Hints::default() }.expose().to_string(), bytes)
    }

    fn finds(minted: &[String], contents: &[u8], private: bool) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some").join("log");
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::write(&file, contents).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let private = if private { vec![folder.path().join("some")] } else { Vec::new() };
        !search(folder.path(), minted, &["the passphrase".to_owned()], &private).is_empty()
    }

    #[test]
    fn every_form_of_a_planted_secret_is_found() {
        let (text, bytes) = reference();
        let minted = [text.clone()];
        let fragment = text.split_once('#').unwrap().1;
        let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for planted in [
            text.as_bytes(),
            fragment.as_bytes(),
            format!("{}x{}", &fragment[..30], &fragment[31..]).as_bytes(),
            &fragment.as_bytes()[1..26],
            &bytes[13..],
            &bytes[..],
            hexadecimal.as_bytes(),
            hexadecimal.to_uppercase().as_bytes(),
            format!("{bytes:?}").as_bytes(),
            b"the passphrase",
        ] {
            let log = [b"some words, ", planted, b", more words\n"].concat();
            assert!(finds(&minted, &log, false), "not found: {}", String::from_utf8_lossy(&log));
        }
    }

    #[test]
    fn a_hash_an_id_and_another_secret_are_no_leak() {
        let (text, _) = reference();
        let parsed: SturdyRef = text.parse().unwrap();
        let other = reference().0.replace('#', " ");
        let log = format!("{} {} {other} #{} #2", parsed.id, parsed.secret.hash(), parsed.id);
        assert!(!finds(&[text], log.as_bytes(), false));
    }

    #[test]
    fn a_reference_of_which_the_test_knows_nothing_is_found() {
        assert!(finds(&[], format!("see {}.", reference().0).as_bytes(), false));
    }

    #[test]
    fn a_folder_that_others_may_enter_is_found() {
        assert!(finds(&[], b"", true), "the folder was made with the usual mode");
    }

    #[test]
    fn a_key_is_found_outside_key_files_only() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let key = folder.path().join("identity.key");
        fs::write(&key, reference().1).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let private = [folder.path().to_owned()];
        assert!(search(folder.path(), &[], &[], &private).is_empty());
        let copy = folder.path().join("copy");
        fs::copy(&key, &copy).unwrap();
        let found = search(folder.path(), &[], &[], &private);
        assert!(found.iter().any(|found| found.path == copy), "{found:?}");
    }
}
