//! Mistakes: each has its own code, a message that names the place, a hint, and the exit status of DESIGN
//! §10; with `--json` it is exactly one object on standard error; and nothing is lost by making it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use acceptance::{Home, SilentAddress, World, absent_server, program};
use schemas::{Hints, IdentityKey, Secret, SturdyRef};

/// A counter that is awake and stands at 1, so that every mistake can be seen to have changed nothing.
fn counter(alice: &Home<'_>) -> acceptance::Awake {
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    assert_eq!(alice.json(&["call", "tally", "add"])["total"], 1);
    vat
}

#[track_caller]
fn nothing_changed(alice: &Home<'_>) {
    assert_eq!(alice.json(&["call", "tally", "get"])["total"], 1, "a refused call changes nothing");
}

/// The text with the character at `index` replaced by another one of the alphabet.
fn mistype(text: &str, index: usize) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[index] = if bytes[index] == b'y' { b'b' } else { b'y' };
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_command_line_that_is_not_understood() {
    let world = World::new();
    let alice = world.home("alice");
    for wrong in [
        &["frobnicate"][..],
        &["new"],
        &["new", "tally"],
        &["run", "tally", "--frob"],
        &["revoke", "tally", "first"],
        &["run", "tally", "--listen", "here"],
        &["call", "tally", "add", "--timeout", "0"],
        &["vls"],
        &[],
    ] {
        let failure = alice.fails(wrong, 2, "cli.usage");
        failure.hints("--help");
    }
    assert!(!alice.path("vats").exists(), "nothing was made");
    let help = alice.vat(&["--help"]).ok();
    assert!(help.stdout.contains("Usage") && !help.stdout.contains("location-server"), "{help}");
    assert!(alice.vat(&["--version"]).ok().stdout.starts_with("vat "));

    let mut server = world.command(program("vls-server"));
    server.args(["run", "--json"]);
    world.run(server, "").failed(2, "cli.usage").says(&["--data"]);
    world.no_secret_leaked();
}

#[test]
fn names_that_are_none_are_taken_or_are_not_there() {
    let world = World::new();
    let alice = world.home("alice");
    let vat = counter(&alice);
    let long = "a".repeat(65);
    for name in ["../tally", "", ".hidden", "a b", "-x", long.as_str(), "tally/other"] {
        alice.fails(&["new", "--object", "counter", "--", name], 2, "vat.name_invalid");
    }
    alice
        .fails(&["new", "other", "--object", "toaster"], 2, "vat.unknown_object")
        .says(&["toaster", "counter", "notes"]);
    alice.fails(&["new", "tally", "--object", "notes"], 7, "vat.exists").says(&["tally"]);
    for command in ["run", "status", "share", "grants", "resolve", "call"] {
        alice.fails(&[command, "nobody"], 3, "vat.not_found").says(&["nobody"]);
    }
    alice.fails(&["forget", "nobody"], 3, "vat.not_found").says(&["nobody"]);
    nothing_changed(&alice);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn calls_that_the_object_does_not_take() {
    let world = World::new();
    let alice = world.home("alice");
    let vat = counter(&alice);
    let unknown = alice.fails(&["call", "tally", "ad"], 2, "object.unknown_method");
    unknown.says(&["`ad`", "add", "get"]);
    for (arguments, said) in [
        (&["by=three"][..], "`by`: expected UInt64"),
        (&["by=-1"], "`by`: expected UInt64"),
        (&["by=18446744073709551616"], "`by`: expected UInt64"),
        (&["bye=3"], "`bye`"),
        (&["by=1", "by=2"], "`by`"),
        (&["1", "2"], "name=value"),
        (&[r#"{"by": "#], "JSON"),
        (&[r#"{"by": [3]}"#], "`by`: expected UInt64"),
    ] {
        let command = [&["call", "tally", "add"], arguments].concat();
        let failure = alice.fails(&command, 2, "object.argument");
        failure.says(&[said]);
    }
    let most = format!("by={}", u64::MAX);
    alice.fails(&["call", "tally", "add", &most], 8, "object.overflow");
    nothing_changed(&alice);

    alice.new_vat("pad", "notes");
    let pad = alice.wake("pad");
    alice.fails(&["call", "pad", "get", "name=nothing"], 3, "object.not_found").says(&["nothing"]);
    let long = format!("name={}", "n".repeat(600));
    alice.fails(&["call", "pad", "put", &long, "text=x"], 8, "object.too_large").says(&["512"]);
    assert_eq!(alice.json(&["call", "pad", "list"])["names"].as_array().map(Vec::len), Some(0));
    pad.sleep();
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn references_that_are_mistyped_cut_or_of_nobody() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    let vat = counter(&alice);
    let reference = alice.share("tally", &[]);
    let id = reference.split_once('#').unwrap().0.to_owned();

    // A character of the secret, of the checksum, and of the id.
    for index in [id.len() + 5, reference.len() - 3, "vat://".len() + 7] {
        bob.fails_with_input(&["call", "-", "get"], &mistype(&reference, index), 2, "ref.checksum");
    }
    for cut in [&reference[..reference.len() - 1], &reference[1..], id.as_str(), "vat://", "hello#world"] {
        bob.fails_with_input(&["call", "-", "get"], cut, 2, "ref.malformed");
        bob.fails(&["accept", "pet", cut], 2, "ref.malformed");
    }
    for nothing in ["", "\n"] {
        bob.fails_with_input(&["call", "-", "get"], nothing, 2, "ref.no_input").hints("vat accept NAME -");
    }
    assert!(!bob.path("address-book").exists(), "nothing was accepted");

    // A well-formed reference that was never granted.
    let parsed: SturdyRef = reference.parse().unwrap();
    let guess = SturdyRef { secret: Secret::generate().unwrap(), ..parsed }.expose().to_string();
    world.mint(&guess);
    for caller in [&bob, &alice] {
        caller.fails_with_input(&["call", "-", "add"], &guess, 4, "ref.denied");
    }
    // The id of nobody: servers answer, and know nothing.
    let nobody = IdentityKey::generate().unwrap().id();
    let failure = bob.fails(&["resolve", &format!("vat://{nobody}")], 3, "vls.unknown_vat");
    failure.says(&[server.entry(), &nobody.to_string()]);
    let lost = SturdyRef { id: nobody, secret: Secret::generate().unwrap(), hints: Hints::default() };
    let lost = lost.expose().to_string();
    world.mint(&lost);
    bob.fails_with_input(&["call", "-", "add"], &lost, 3, "vls.unknown_vat");
    for wrong in [mistype(&id, id.len() - 1), id[..id.len() - 1].to_owned()] {
        let done = bob.vat(&["--json", "resolve", &wrong]);
        // A typo in a public address may spell another valid id, which nobody has.
        let code =
            done.stderr.split('"').find(|word| ["ref.id_malformed", "ref.malformed", "vls.unknown_vat"].contains(word));
        assert!(code.is_some(), "{done}");
    }
    nothing_changed(&alice);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn key_files_that_others_could_have_read_are_not_used() {
    let world = World::new();
    let mut server = world.location_server("server");
    let alice = world.home("alice");
    let vat = counter(&alice);
    vat.sleep();
    alice.vat_with_input(&["accept", "pet", "-"], &alice.share("tally", &[])).ok();

    let run = ["run", "tally", "--listen", "127.0.0.1:0"];
    let key = "keys/vats/tally.key";
    for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
        alice.set_mode(key, mode);
        for command in [&run[..], &["status", "tally"], &["share", "tally"]] {
            let failure = alice.fails(command, 4, "key.mode");
            failure.says(&["tally.key", &format!("{mode:04o}")]).hints("chmod 600");
        }
    }
    let doctor = alice.vat(&["--json", "doctor"]).exits(10);
    assert!(doctor.stdout.contains("key.mode"), "{doctor}");
    alice.set_mode(key, 0o600);
    let book = "keys/address-book.key";
    alice.set_mode(book, 0o604);
    alice.fails(&["call", "pet"], 4, "key.mode").says(&["address-book.key"]);
    alice.set_mode(book, 0o600);

    // A key that is gone, and one that belongs to something else.
    let (path, aside) = (alice.path(key), world.path("aside.key"));
    fs::rename(&path, &aside).unwrap();
    alice.fails(&run, 3, "key.missing").says(&["tally.key"]);
    fs::copy(alice.path(book), &path).unwrap();
    alice.fails(&run, 9, "key.wrong").says(&["tally.key"]);
    fs::write(&path, "short").unwrap();
    alice.fails(&run, 9, "key.wrong");
    fs::rename(&aside, &path).unwrap();
    let vat = alice.wake("tally");
    nothing_changed(&alice);
    vat.sleep();

    server.interrupt();
    let identity = server.path("identity.key");
    let refuses = |exit, code| {
        let mut command = server.command();
        command.arg("--json");
        world.run(command, "").failed(exit, code)
    };
    fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    refuses(4, "key.mode").says(&["identity.key", "0640"]).hints("chmod 600");
    fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(&identity, &aside).unwrap();
    refuses(3, "key.missing").says(&["identity.key"]);
    fs::rename(&aside, &identity).unwrap();
    server.restart();
    world.no_secret_leaked();
}

#[test]
fn a_home_folder_that_others_may_enter_is_not_used() {
    let world = World::new();
    let alice = world.home("alice");
    let vat = counter(&alice);
    vat.sleep();
    for mode in [0o755, 0o750, 0o701, 0o770] {
        alice.set_mode("", mode);
        let failure = alice.fails(&["list"], 4, "home.mode");
        failure.says(&["alice", &format!("{mode:04o}")]).hints("chmod 700");
    }
    alice.set_mode("", 0o700);
    let vat = alice.wake("tally");
    nothing_changed(&alice);
    vat.sleep();
    // A home that is no folder.
    let mut command = alice.command(&["--json", "list"]);
    command.env("VAT_HOME", "/dev/null");
    world.run(command, "").failed(1, "home.unusable").says(&["/dev/null"]);
    world.no_secret_leaked();
}

#[test]
fn a_configuration_that_is_wrong_names_line_and_column() {
    let world = World::new();
    let alice = world.home("alice");
    let vat = counter(&alice);
    vat.sleep();
    for (text, place) in [
        ("# mine\ntimeout = 3\nserach_path = []\n", "config.toml:3:1"),
        ("timeout = \"soon\"\n", "config.toml:1:11"),
        ("timeout = 0\n", "config.toml:1:11"),
        ("witness = \"perhaps\"\n", "config.toml:1:11"),
        ("listen = \"here\"\n", "config.toml:1:10"),
        ("timeout = 3\nsearch_path = [\n  \"vls://nobody\",\n]\n", "config.toml:3:3"),
        ("timeout = \n", "config.toml:1:"),
        (
            "name_servers = [\n  \"192.0.2.1:53\", \"192.0.2.2:53\",\n  \"192.0.2.3:53\", \"192.0.2.4:53\",\n]\n",
            "config.toml:3:19",
        ),
    ] {
        alice.write("config.toml", text);
        for command in [&["list"][..], &["config", "show"], &["vls", "add", &absent_server()]] {
            alice.fails(command, 2, "config.invalid").says(&[place]);
        }
        assert_eq!(fs::read_to_string(alice.path("config.toml")).unwrap(), text, "it was not touched");
    }
    // What people write around the settings stays when a command changes one of them.
    let entry = absent_server();
    alice.write("config.toml", "# a remark of mine\ntimeout = 3 # seconds\n");
    alice.add_server(&entry);
    let text = fs::read_to_string(alice.path("config.toml")).unwrap();
    assert!(text.contains("# a remark of mine\ntimeout = 3 # seconds\n") && text.contains(&entry), "{text}");
    alice.vat(&["vls", "remove", &entry]).ok();
    let vat = alice.wake("tally");
    nothing_changed(&alice);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn search_path_entries_that_are_none() {
    let world = World::new();
    let alice = world.home("alice");
    for wrong in ["localhost", "vls://localhost:4433", "vls://@localhost:4433", "tcp://localhost", ""] {
        alice.fails(&["vls", "add", "--", wrong], 2, "vls.entry_malformed");
        alice.fails(&["vls", "test", "--", wrong], 2, "vls.entry_malformed");
    }
    assert!(!alice.path("config.toml").exists(), "nothing was written");
    alice.fails(&["vls", "remove", &absent_server()], 3, "vls.entry_not_found");
    // A server that is not there is said not to be there, after a time limit and not for ever.
    let done = alice.vat(&["--json", "vls", "test", &SilentAddress::bind().entry()]);
    assert!([Some(5), Some(6)].contains(&done.status), "unreachable or too late: {done}");
    // Another server at the address is not the one that was asked for.
    let server = world.location_server("server");
    let other = server
        .entry()
        .replace(&server.entry()["vls://".len()..][..52], &IdentityKey::generate().unwrap().id().to_string());
    alice.fails(&["vls", "test", &other], 9, "session.wrong_peer");
    world.no_secret_leaked();
}

#[test]
fn an_address_that_is_taken_is_not_listened_on() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let taken = SilentAddress::bind();
    alice.fails(&["run", "tally", "--listen", &taken.address()], 7, "net.bind").says(&[&taken.address()]);
    assert_eq!(alice.json(&["status", "tally"])["epoch"], 0, "a vat that could not listen did not begin an epoch");
    let vat = alice.wake("tally");
    vat.sleep();

    let mut server = world.command(program("vls-server"));
    server.args(["--json", "run", "--listen", &taken.address(), "--data"]).arg(world.path("server"));
    world.keep_private(&world.path("server"));
    world.run(server, "").failed(7, "net.bind").says(&[&taken.address()]);
    world.no_secret_leaked();
}

#[test]
fn a_call_to_somebody_who_never_answers_ends() {
    let world = World::new();
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    let vat = counter(&alice);
    let hinted = alice.share("tally", &["--with-hints"]);
    // Stopped, not killed: its socket takes the packets, and nobody answers.
    vat.process.signal(rustix::process::Signal::STOP);
    let began = Instant::now();
    let done = bob.vat_with_input(&["--json", "call", "-", "get", "--timeout", "1"], &hinted);
    done.failed(5, "vls.no_dial").says(&[&vat.address()]);
    assert!(began.elapsed() < Duration::from_secs(5), "the time limit is kept");
    let done = alice.vat(&["--json", "status", "tally"]);
    done.failed(6, "net.timeout").says(&["tally"]);
    vat.process.signal(rustix::process::Signal::CONT);
    nothing_changed(&alice);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_closed_pipe_is_a_failure_and_no_panic() {
    let world = World::new();
    let alice = world.home("alice");
    let mut command = world.command("sh");
    command
        .env("VAT_HOME", alice.path(""))
        .args(["-c", r#"("$0" --json help; echo "$?" >&2) | true"#])
        .arg(program("vat"));
    let done = world.run(command, "").ok();
    let status = done.stderr.lines().next_back().unwrap();
    assert!(["0", "1"].contains(&status), "{done}");
    assert!(!done.stderr.contains("panicked"), "{done}");
    world.no_secret_leaked();
}
