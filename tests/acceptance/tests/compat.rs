//! What the first released version wrote is opened by this one (`tests/compat`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use acceptance::{Home, World};

const VERSION: &str = "1";
const RECIPIENT_KEY: &str = "recipient.key";

/// A kind of object, what was done with it before its image was written, and a question with its answer since then.
type Remembered = (&'static str, &'static [&'static [&'static str]], &'static [&'static str], &'static str);

const OBJECTS: [Remembered; 4] = [
    ("counter", &[&["add", "by=41"], &["add"]], &["get"], "total: 42\n"),
    (
        "guestbook",
        &[&["sign", "name=Ada", "text=the first"], &["sign", "name=Grace", "text=the second"]],
        &["list", "after=1", "limit=10"],
        "Grace",
    ),
    (
        "notes",
        &[&["put", "name=a", "text=one"], &["put", "name=b", "text=two"], &["remove", "name=a"]],
        &["get", "name=b"],
        "two",
    ),
    ("directory", &[], &["list"], ""),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat").join(VERSION)
}

fn image(folder: &Path, kind: &str) -> String {
    folder.join(format!("{kind}.vatimage")).to_str().unwrap().to_owned()
}

#[test]
fn images_of_the_first_format_are_opened_and_their_objects_remember() {
    let world = World::new();
    let home = world.home("heir");
    fs::create_dir_all(home.path("keys")).unwrap();
    for folder in ["", "keys"] {
        fs::set_permissions(home.path(folder), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let key = home.path("keys").join(RECIPIENT_KEY);
    fs::copy(folder().join(RECIPIENT_KEY), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    for (kind, _, question, answer) in OBJECTS {
        home.vat(&["verify", &image(&folder(), kind)]).ok();
        home.vat(&["restore", &image(&folder(), kind), "--as-copy", &format!("a-{kind}")]).ok();
        home.vat(&["import", &image(&folder(), kind), kind]).ok();
        for name in [kind.to_owned(), format!("a-{kind}")] {
            let awake = home.wake(&name);
            let asked: Vec<&str> = ["call", &name].into_iter().chain(question.iter().copied()).collect();
            let said = home.vat(&asked).ok().stdout;
            assert!(said.contains(answer), "{name}: {said}");
            awake.sleep();
        }
    }
    world.no_secret_leaked();
}

#[test]
#[ignore = "writes the files of a new format, once"]
fn write() {
    fs::create_dir(folder()).unwrap();
    let world = World::new();
    let home: Home<'_> = world.home("founder");
    for (kind, calls, ..) in OBJECTS {
        home.new_vat(kind, kind);
        let awake = home.wake(kind);
        for call in calls {
            let typed: Vec<&str> = ["call", kind].into_iter().chain(call.iter().copied()).collect();
            home.vat(&typed).ok();
        }
        awake.sleep();
        home.vat(&["export", kind, "-o", &image(&folder(), kind)]).ok();
    }
    fs::copy(home.path("keys").join(RECIPIENT_KEY), folder().join(RECIPIENT_KEY)).unwrap();
    world.no_secret_leaked();
}
