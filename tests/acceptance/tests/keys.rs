//! `vat key`: who can open a vat's checkpoint is changed while the vat is awake, and a lost key file is no lost
//! vat if somebody was let in before.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
};

use acceptance::{Home, World};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

const PASSPHRASE: &str = "seven marbles under the stairs";

fn key_file(home: &Home<'_>) -> std::path::PathBuf {
    home.path("keys/vats/tally.key")
}

fn slots(home: &Home<'_>) -> Vec<Value> {
    home.json(&["key", "show", "tally"])["slots"].as_array().unwrap().clone()
}

/// The id that a command with `--json` answers.
fn slot(answer: &Value) -> String {
    answer["slot"].as_str().unwrap().to_owned()
}

/// What opens a vat that sleeps.
const OPEN: [&str; 2] = ["grants", "tally"];

fn total(home: &Home<'_>) -> Value {
    home.json(&["call", "tally", "get"])["total"].clone()
}

fn add_passphrase(home: &Home<'_>, passphrase: &str) -> String {
    let added =
        home.vat_with_input(&["--json", "key", "add", "tally", "--passphrase", "-"], &format!("{passphrase}\n"));
    slot(&added.ok().json())
}

#[test]
fn a_key_file_is_replaced_while_the_vat_is_awake() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    let old = fs::read(key_file(&alice)).unwrap();
    let before = slots(&alice);
    assert_eq!(before.len(), 1);
    assert_eq!((&before[0]["kind"], &before[0]["own"]), (&"key".into(), &true.into()));

    for round in 1..=3 {
        alice.json(&["call", "tally", "add"]);
        let new = slot(&alice.json(&["key", "rotate", "tally"]));
        let after = slots(&alice);
        assert_eq!(after.len(), 1);
        assert_eq!((&after[0]["slot"], &after[0]["own"]), (&new.into(), &true.into()));
        assert_ne!(after[0]["slot"], before[0]["slot"]);
        assert_eq!(total(&alice), round, "the one that is awake goes on");
    }
    // It wakes with the new key, also after a SIGKILL, and not with the old one.
    vat.kill();
    let new = fs::read(key_file(&alice)).unwrap();
    assert_ne!(new, old);
    fs::write(key_file(&alice), old).unwrap();
    alice.fails(&["run", "tally", "--listen", "127.0.0.1:0"], 9, "key.wrong");
    alice.fails(&["key", "show", "tally"], 9, "key.wrong");
    fs::write(key_file(&alice), new).unwrap();
    let vat = alice.wake("tally");
    assert_eq!(total(&alice), 3);
    vat.sleep();
    // Asleep it is the same.
    alice.vat(&["key", "rotate", "tally"]).ok();
    let vat = alice.wake("tally");
    assert_eq!(total(&alice), 3);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn commands_that_open_a_sleeping_vat_never_meet_a_wrong_key_during_a_rotation() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    std::thread::scope(|scope| {
        let rotations = scope.spawn(|| {
            (0..8).for_each(|_| {
                alice.vat(&["key", "rotate", "tally"]).ok();
            })
        });
        let mut opened = 0;
        while !rotations.is_finished() {
            alice.vat(&OPEN).ok();
            opened += 1;
        }
        rotations.join().unwrap();
        assert!(opened > 0);
    });
    world.no_secret_leaked();
}

#[test]
fn a_passphrase_opens_a_vat_whose_key_file_is_lost() {
    let world = World::new();
    world.keep_secret(PASSPHRASE);
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    alice.json(&["call", "tally", "add"]);
    vat.sleep();
    let recover = ["key", "recover", "tally", "--passphrase", "-"];
    // There is nothing to recover, and nobody was let in yet.
    alice.fails_with_input(&recover, PASSPHRASE, 4, "key.in_use");
    let added = add_passphrase(&alice, PASSPHRASE);
    let listed = slots(&alice);
    assert_eq!((&listed[1]["slot"], &listed[1]["kind"]), (&added.into(), &"passphrase".into()));

    fs::remove_file(key_file(&alice)).unwrap();
    alice.fails(&OPEN, 3, "key.missing").hints("vat key recover");
    let wrong = PASSPHRASE.replace("marbles", "Marbles");
    world.keep_secret(&wrong);
    alice.fails_with_input(&recover, &wrong, 9, "key.wrong").says(&["this passphrase does not unlock"]);
    alice.fails(&["key", "recover", "tally"], 3, "key.missing").hints("--passphrase");
    assert!(!key_file(&alice).exists(), "what failed leaves no key file behind");
    // Line ends of another system do not count.
    alice.vat_with_input(&recover, &format!("{PASSPHRASE}\r\nanother line")).ok();
    let vat = alice.wake("tally");
    assert_eq!(total(&alice), 1);
    vat.sleep();
    let listed = slots(&alice);
    assert_eq!(listed.len(), 3, "that of the lost key is still there");
    let own: Vec<_> = listed.iter().map(|slot| slot["own"].as_bool().unwrap()).collect();
    assert_eq!(own, [false, false, true]);
    for lost in &listed[..2] {
        alice.vat(&["key", "remove", "tally", lost["slot"].as_str().unwrap()]).ok();
    }
    fs::remove_file(key_file(&alice)).unwrap();
    alice.fails_with_input(&recover, PASSPHRASE, 9, "key.wrong").says(&["cannot be unlocked with a passphrase"]);
    world.no_secret_leaked();
}

#[test]
fn another_home_is_let_in_by_its_recipient_and_shut_out_again() {
    let world = World::new();
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    alice.json(&["call", "tally", "add"]);
    let done = bob.vat(&["key", "recipient"]).ok();
    let recipient = done.stdout.lines().next_back().unwrap().to_owned();
    assert!(recipient.starts_with("vatkey:"), "{done}");
    assert_eq!(bob.json(&["key", "recipient"])["recipient"], recipient.as_str(), "it is made once");
    let added = slot(&alice.json(&["key", "add", "tally", "--recipient", &recipient]));
    assert_eq!(slots(&alice)[1]["recipient"], recipient.as_str());
    vat.sleep();

    // Alice's machine is gone; Bob has a copy of the vat's folder and his own key.
    bob.vat(&["list"]).ok();
    let copy = |to: &str| {
        let _ = fs::remove_dir_all(bob.path("vats"));
        let _ = fs::remove_dir_all(bob.path("keys/vats"));
        fs::create_dir_all(bob.path("vats")).unwrap();
        bob.set_mode("vats", 0o700);
        let from = alice.path("vats/tally");
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(bob.path(to)).status().unwrap();
        assert!(status.success());
    };
    copy("vats/tally");
    bob.fails(&OPEN, 3, "key.missing");
    bob.vat(&["key", "recover", "tally"]).ok();
    let vat = bob.wake("tally");
    assert_eq!(total(&bob), 1);
    vat.sleep();

    alice.vat(&["key", "remove", "tally", &added]).ok();
    assert_eq!(slots(&alice).len(), 1);
    copy("vats/tally");
    let refused = bob.fails(&["key", "recover", "tally"], 9, "key.wrong");
    refused.says(&["cannot be unlocked with a recipient, only with: key"]);
    // Nor with the key of somebody else.
    let carol = slot(&alice.json(&["key", "add", "tally", "--recipient", &other_recipient(&world)]));
    copy("vats/tally");
    bob.fails(&["key", "recover", "tally"], 9, "key.wrong").says(&["is not sealed for"]);
    alice.vat(&["key", "remove", "tally", &carol]).ok();
    world.no_secret_leaked();
}

fn other_recipient(world: &World) -> String {
    world.home("carol").json(&["key", "recipient"])["recipient"].as_str().unwrap().to_owned()
}

#[test]
fn mistakes_with_keys_change_nothing_and_say_what_to_do() {
    let world = World::new();
    world.keep_secret(PASSPHRASE);
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let own = slots(&alice)[0]["slot"].as_str().unwrap().to_owned();
    let keyslots = || fs::read(alice.path("vats/tally/store/keyslots")).unwrap();
    let before = keyslots();

    for command in ["show", "rotate", "recover"] {
        alice.fails(&["key", command, "nobody"], 3, "vat.not_found").says(&["nobody"]);
    }
    alice.fails(&["key", "remove", "tally", &own], 4, "key.in_use").hints("vat key rotate tally");
    alice.fails(&["key", "remove", "tally", "0123456789"], 3, "key.unknown_slot").hints("vat key show tally");
    alice.fails(&["key", "remove", "tally", "first"], 3, "key.unknown_slot").hints("vat key show tally");
    for wrong in [&["key"][..], &["key", "add", "tally"], &["key", "add", "tally", "--recipient", "x", "--passphrase"]]
    {
        alice.fails(wrong, 2, "cli.usage");
    }
    let recipient = other_recipient(&world);
    let mistyped = recipient.replace(&recipient[20..21], if &recipient[20..21] == "y" { "b" } else { "y" });
    for wrong in ["vat://tally", &recipient[7..], &recipient[..40], &mistyped] {
        alice.fails(&["key", "add", "tally", "--recipient", wrong], 2, "key.recipient").hints("recipient");
    }
    // Without a terminal, too short, and where others can read it: it is not repeated.
    alice.fails(&["key", "add", "tally", "--passphrase"], 2, "key.passphrase").hints("--passphrase -");
    for short in ["", "\n", "seven\n", "       \n"] {
        alice.fails_with_input(&["key", "add", "tally", "--passphrase", "-"], short, 2, "key.passphrase");
    }
    let long = "x".repeat(1025);
    alice.fails_with_input(&["key", "add", "tally", "--passphrase", "-"], &long, 2, "key.passphrase");
    alice.fails(&["key", "add", "tally", "--passphrase", PASSPHRASE], 2, "key.passphrase").says(&["command line"]);
    assert_eq!(keyslots(), before);

    let key = fs::read(key_file(&alice)).unwrap();
    fs::write(key_file(&alice), &key[1..]).unwrap();
    alice.fails(&["key", "rotate", "tally"], 9, "key.wrong").says(&["31 bytes"]);
    fs::write(key_file(&alice), &key).unwrap();
    alice.set_mode("keys/vats/tally.key", 0o640);
    alice.fails(&["key", "rotate", "tally"], 4, "key.mode").hints("chmod 600");
    alice.set_mode("keys/vats/tally.key", 0o600);
    assert_eq!(keyslots(), before);
    world.no_secret_leaked();
}

#[test]
fn a_vat_is_opened_with_a_credential_of_the_service_manager_and_leaves_no_key_on_the_disk() {
    let world = World::new();
    let shell = world.home("alice");
    let credentials = world.path("credentials");
    fs::create_dir(&credentials).unwrap();
    let credential = credentials.join("tally-key");
    fs::write(&credential, [5; 32]).unwrap();
    let mode = |mode| fs::set_permissions(&credential, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o400);
    let service = shell.with_credentials(credentials);
    shell.write("config.toml", "[credentials]\ntally = \"tally-key\"\n");
    assert_eq!(shell.json(&["config", "show"])["credentials.tally"]["value"], "tally-key");

    let new = ["new", "tally", "--object", "counter"];
    shell.fails(&new, 3, "key.missing").says(&["tally-key", "CREDENTIALS_DIRECTORY"]).hints("LoadCredentialEncrypted");
    service.new_vat("tally", "counter");
    shell.fails(&["run", "tally"], 3, "key.missing").says(&["tally-key"]);
    let vat = service.wake("tally");
    // Whoever is at its socket needs no key.
    shell.json(&["call", "tally", "add"]);
    assert_eq!(total(&shell), 1);
    vat.sleep();
    assert!(!key_file(&shell).exists());
    // It misses a location server, and no key file.
    let doctor = shell.vat(&["--json", "doctor"]).exits(10).json();
    let finding =
        doctor["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "vat tally").unwrap();
    assert_eq!(finding["ok"], true);

    let shown = service.json(&["key", "show", "tally"]);
    assert_eq!((&shown["credential"], &shown["key_file"]), (&"tally-key".into(), &Value::Null));
    assert!(service.vat(&["key", "show", "tally"]).ok().stdout.contains("this vat's own: the credential tally-key"));
    service.fails(&["key", "rotate", "tally"], 4, "key.in_use").hints("vat key add tally --key-file");
    service.fails(&["key", "recover", "tally"], 2, "config.invalid").hints("[credentials]");
    shell.fails(&OPEN, 3, "key.missing");
    mode(0o644);
    service.fails(&OPEN, 4, "key.mode");
    mode(0o400);

    // A backup goes back into a vat that is opened in the same way.
    let image = world.path("tally.vatimage");
    service.vat(&["export", "tally", "-o", image.to_str().unwrap()]).ok();
    let restored = service.json(&["restore", image.to_str().unwrap(), "--take-over"]);
    assert_eq!(restored["kept_key"], Value::Null);
    assert!(!key_file(&shell).exists());

    // Another credential in its place.
    let next = world.path("next-key");
    let old = slots(&service)[0]["slot"].as_str().unwrap().to_owned();
    service.vat(&["key", "add", "tally", "--key-file", next.to_str().unwrap()]).ok();
    fs::rename(&next, &credential).unwrap();
    service.vat(&["key", "remove", "tally", &old]).ok();
    let vat = service.wake("tally");
    assert_eq!(total(&shell), 1);
    vat.sleep();
    fs::remove_file(&credential).unwrap();
    service.fails(&["run", "tally"], 3, "key.missing").hints("LoadCredential=tally-key");
    for wrong in ["tally = \"../key\"", "tally = \"\"", "\"../tally\" = \"key\"", "tally = 3"] {
        shell.write("config.toml", &format!("[credentials]\n{wrong}\n"));
        shell.fails(&["list"], 2, "config.invalid").says(&["config.toml:2:"]);
    }
    world.no_secret_leaked();
}

#[test]
fn another_key_file_opens_a_vat_until_it_is_taken_away() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let spare = world.path("spare.key");
    let added = slot(&alice.json(&["key", "add", "tally", "--key-file", spare.to_str().unwrap()]));
    assert_eq!(fs::metadata(&spare).unwrap().permissions().mode() & 0o777, 0o600);
    // In the place of the one that is lost.
    fs::copy(&spare, key_file(&alice)).unwrap();
    alice.vat(&OPEN).ok();
    alice.fails(&["key", "remove", "tally", &added], 4, "key.in_use");
    let lost = slots(&alice)[0]["slot"].as_str().unwrap().to_owned();
    alice.vat(&["key", "remove", "tally", &lost]).ok();
    alice.vat(&OPEN).ok();
    world.no_secret_leaked();
}

/// Standard error up to and with this text, which ends no line.
fn read_until(child: &mut Child, text: &str) {
    let stderr = child.stderr.as_mut().unwrap();
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(text.as_bytes()) {
        let read = stderr.read(&mut byte).unwrap();
        assert_eq!(read, 1, "it ended without {text:?}: {}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
}

/// Types these lines at a terminal, each when it is asked for; returns whether the command succeeded, and what the
/// terminal showed of what was typed.
fn type_at_terminal(home: &Home<'_>, arguments: &[&str], lines: &[(&str, &str)]) -> (bool, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let keyboard = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut terminal = File::from(terminal);
    let mut child = {
        let mut command = home.command(arguments);
        command.stdin(keyboard).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    for (prompt, line) in lines {
        read_until(&mut child, prompt);
        terminal.write_all(line.as_bytes()).unwrap();
    }
    let succeeded = child.wait().unwrap().success();
    let mut shown = Vec::new();
    // When nobody has the other end any more, Linux says EIO after the last byte.
    let _ = terminal.read_to_end(&mut shown);
    (succeeded, String::from_utf8(shown).unwrap())
}

#[test]
fn a_passphrase_that_is_typed_is_asked_for_twice_and_never_shown() {
    let world = World::new();
    world.keep_secret(PASSPHRASE);
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let add = ["key", "add", "tally", "--passphrase"];
    let (new, again) = ("New passphrase (it is not shown): ", "The same again: ");
    let line = format!("{PASSPHRASE}\n");
    let (succeeded, shown) = type_at_terminal(&alice, &add, &[(new, &line), (again, "something else\n")]);
    assert!(!succeeded && slots(&alice).len() == 1, "two different ones are none");
    assert!(shown.chars().all(char::is_whitespace), "{shown:?}");
    let (succeeded, shown) = type_at_terminal(&alice, &add, &[(new, "\u{3}\n")]);
    assert!(!succeeded && slots(&alice).len() == 1, "Ctrl-C ends it");
    assert!(shown.chars().all(char::is_whitespace), "{shown:?}");

    let (succeeded, shown) = type_at_terminal(&alice, &add, &[(new, &line), (again, &line)]);
    assert!(succeeded && slots(&alice).len() == 2);
    assert!(shown.chars().all(char::is_whitespace), "{shown:?}");
    fs::remove_file(key_file(&alice)).unwrap();
    let recover = ["key", "recover", "tally", "--passphrase"];
    let (succeeded, shown) = type_at_terminal(&alice, &recover, &[("Passphrase (it is not shown): ", &line)]);
    assert!(succeeded && shown.chars().all(char::is_whitespace), "{shown:?}");
    alice.vat(&OPEN).ok();
    world.no_secret_leaked();
}
