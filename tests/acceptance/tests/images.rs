//! Vats as files: exported, imported, backed up, restored, and refused when anything is wrong with them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

use acceptance::{Home, World, limits};
use rustix::process::Signal;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The recipient for which images are sealed that another home shall open.
fn recipient(home: &Home<'_>) -> String {
    home.json(&["key", "recipient"])["recipient"].as_str().unwrap().to_owned()
}

#[test]
fn a_vat_moves_to_another_home_and_is_found_there_under_the_same_reference() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob, carol) = (world.home("alice"), world.home("bob"), world.home("carol"));
    for home in [&alice, &bob, &carol] {
        home.add_server(server.entry());
    }
    let id = alice.new_vat("tally", "counter");
    let awake = alice.wake("tally");
    let reference = alice.share("tally", &[]);
    carol.vat_with_input(&["call", "-", "add", "by=5"], &reference).ok();
    let to = recipient(&bob);
    let early = world.path("early.vatimage");
    alice.json(&["export", "tally", "-o", text(&early), "--to", &to]);
    // It goes on where it is: whoever woke it from here would take what it does from now on away from it.
    bob.fails(&["import", text(&early)], 7, "vat.fenced").hints("--take-over");
    awake.sleep();

    let image = world.path("tally.vatimage");
    let exported = alice.json(&["export", "tally", "-o", text(&image), "--to", &to]);
    assert_eq!((&exported["vat"], &exported["recipient"]), (&id.as_str().into(), &to.as_str().into()));
    // Sealed for Bob: not even its maker opens it.
    alice.fails(&["verify", text(&image)], 9, "key.wrong");
    let verified = bob.json(&["verify", text(&image)]);
    assert_eq!((&verified["vat"], &verified["turn"]), (&exported["vat"], &exported["turn"]));
    let imported = bob.json(&["import", text(&image)]);
    assert_eq!((&imported["name"], &imported["vat"]), (&"tally".into(), &exported["vat"]));
    bob.fails(&["import", text(&image), "again"], 7, "vat.exists");

    let there = bob.wake("tally");
    assert_eq!(carol.vat_with_input(&["call", "-", "get"], &reference).ok().stdout, "total: 5\n");
    // The copy that stayed behind is the older one now.
    alice.fails(&["run", "tally", "--listen", "127.0.0.1:0"], 7, "vat.fenced");
    there.sleep();
    world.no_secret_leaked();
}

/// Keeps vats from getting their places in a home until it is dropped.
fn lock_vats(home: &Home<'_>) -> File {
    home.write("vats.lock", "");
    let file = File::open(home.path("vats.lock")).unwrap();
    file.lock().unwrap();
    file
}

/// The folders in which vats are made that have everything but their place.
fn grown(home: &Home<'_>) -> usize {
    let Ok(folders) = fs::read_dir(home.path("vats")) else { return 0 };
    let folders = folders.map(|entry| entry.unwrap().path());
    folders
        .filter(|path| path.file_name().unwrap().to_str().unwrap().contains(".new.") && path.join("id").exists())
        .count()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limits::READY, "{what}");
        std::thread::sleep(Duration::from_millis(5)); // polls a condition
    }
}

#[test]
fn of_two_imports_of_one_image_at_the_same_moment_one_is_refused() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let image = world.path("tally.vatimage");
    for (number, verb) in [["import"].as_slice(), &["restore", "--take-over"]].into_iter().enumerate() {
        let bob = world.home(&format!("bob-{number}"));
        let to = recipient(&bob);
        let image = image.with_extension(number.to_string());
        alice.json(&["export", "tally", "-o", text(&image), "--to", &to]);
        let held = lock_vats(&bob);
        let imports = ["one", "two"].map(|name| bob.start(&[verb, &[text(&image), name]].concat()));
        // Both have looked and found nothing, and have read all of the image.
        wait_until("two vats wait for their places", || grown(&bob) == 2);
        drop(held);
        let done = imports.map(|mut import| import.wait());
        let refused: Vec<_> = done.iter().filter(|done| done.status != Some(0)).collect();
        assert_eq!(refused.len(), 1, "{} {}", done[0], done[1]);
        assert!(refused[0].stderr.contains("[vat.exists]"), "{}", refused[0]);
        assert_eq!(bob.json(&["list"])["vats"].as_array().unwrap().len(), 1);
        assert_eq!(fs::read_dir(bob.path("vats")).unwrap().count(), 1, "the other one has left nothing");
    }
    world.no_secret_leaked();
}

#[test]
fn a_vat_that_is_awake_is_exported_as_of_a_moment_and_goes_on() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("pad", "notes");
    let awake = alice.wake("pad");
    for name in ["one", "two", "three"] {
        alice.vat(&["call", "pad", "put", &format!("name={name}"), "text=kept"]).ok();
    }
    let image = world.path("pad.vatimage");
    let exported = alice.json(&["export", "pad", "-o", text(&image)]);
    alice.vat(&["call", "pad", "put", "name=four", "text=later"]).ok();
    let verified = alice.json(&["verify", "pad"]);
    assert_eq!(verified["rows"].as_u64().unwrap(), exported["rows"].as_u64().unwrap() + 1);
    // Also what it did a moment ago was read from where it will be read again.
    assert_eq!(verified["turn"].as_u64().unwrap(), exported["turn"].as_u64().unwrap() + 1);
    assert_eq!(alice.json(&["status", "pad"])["folded_turn"], verified["turn"]);
    assert_eq!(alice.json(&["verify", text(&image)])["rows"], exported["rows"]);
    // A file that is there already is nobody's to overwrite.
    alice.fails(&["export", "pad", "-o", text(&image)], 7, "image.exists");
    awake.kill();
    assert_eq!(alice.json(&["verify", text(&image)])["turn"], exported["turn"]);
    world.no_secret_leaked();
}

#[test]
fn an_image_under_a_passphrase_opens_wherever_the_passphrase_is_known() {
    const PASSPHRASE: &str = "seven marbles under the stairs\n";
    let world = World::new();
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.new_vat("tally", "counter");
    let image = world.path("tally.vatimage");
    for awake in [true, false] {
        let vat = awake.then(|| alice.wake("tally"));
        let image = image.with_extension(awake.to_string());
        alice.vat_with_input(&["export", "tally", "-o", text(&image), "--passphrase", "-"], PASSPHRASE).ok();
        drop(vat.map(|vat| vat.sleep()));
        // Not even its maker opens it without.
        alice.fails(&["verify", text(&image)], 9, "key.wrong");
        bob.fails_with_input(&["verify", text(&image), "--passphrase", "-"], "eight marbles\n", 9, "key.wrong");
        bob.vat_with_input(&["verify", text(&image), "--passphrase", "-"], PASSPHRASE).ok();
        let name = format!("copy-{awake}");
        let restore = ["restore", text(&image), "--as-copy", &name, "--passphrase", "-"];
        bob.vat_with_input(&restore, PASSPHRASE).ok();
    }
    world.no_secret_leaked();
}

#[test]
fn a_copy_is_another_vat_and_old_references_do_not_open_it() {
    let world = World::new();
    let alice = world.home("alice");
    let id = alice.new_vat("tally", "counter");
    let reference = alice.share("tally", &[]);
    let awake = alice.wake("tally");
    alice.vat(&["call", "tally", "add", "by=7"]).ok();
    awake.sleep();
    let image = world.path("tally.vatimage");
    alice.json(&["export", "tally", "-o", text(&image)]);
    let copy = alice.json(&["restore", text(&image), "--as-copy", "twin"]);
    assert_eq!(copy["copy_of"].as_str().unwrap(), id);
    assert_ne!(copy["vat"], copy["copy_of"]);
    assert_eq!(alice.json(&["status", "twin"])["grants"], 0);

    let (one, two) = (alice.wake("tally"), alice.wake("twin"));
    alice.vat(&["call", "twin", "add"]).ok();
    assert_eq!(alice.vat(&["call", "twin", "get"]).ok().stdout, "total: 8\n");
    assert_eq!(alice.vat_with_input(&["call", "-", "get"], &reference).ok().stdout, "total: 7\n");
    let (_, secret) = reference.split_once('#').unwrap();
    // Its checksum goes over the id as well, so the secret is refused before anybody is asked.
    let forged = format!("{}#{secret}", copy["vat"].as_str().unwrap());
    alice.fails_with_input(&["call", "-", "get"], &forged, 2, "ref.checksum");
    one.sleep();
    two.sleep();
    world.no_secret_leaked();
}

#[test]
fn going_back_to_a_backup_names_what_is_lost_and_keeps_what_was_there() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    alice.new_vat("tally", "counter");
    let awake = alice.wake("tally");
    let reference = alice.share("tally", &[]);
    bob.vat_with_input(&["call", "-", "add", "by=3"], &reference).ok();
    let image = world.path("tally.vatimage");
    let turn = alice.json(&["export", "tally", "-o", text(&image)])["turn"].as_u64().unwrap();
    bob.vat_with_input(&["call", "-", "add", "by=100"], &reference).ok();
    alice.fails(&["restore", text(&image), "--take-over"], 7, "vat.running");
    awake.sleep();

    let restored = alice.vat(&["restore", text(&image), "--take-over"]).ok();
    let lost = format!("turns {} to {}", turn + 1, turn + 1);
    assert!(restored.stderr.contains(&lost), "{}", restored.stderr);
    let kept = restored.stdout.lines().find_map(|line| line.split_once("can be deleted: ")).unwrap().1;
    assert!(Path::new(kept).join("store").is_dir());
    assert_eq!(restored.to_string().matches(kept).count(), 1, "it is said once");
    let awake = alice.wake("tally");
    assert_eq!(bob.vat_with_input(&["call", "-", "get"], &reference).ok().stdout, "total: 3\n");
    awake.sleep();
    world.no_secret_leaked();
}

#[test]
fn a_key_for_backups_that_others_could_read_stops_the_backups_and_not_the_vat() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    recipient(&alice);
    let folder = world.path("backups");
    fs::create_dir(&folder).unwrap();
    alice.write("config.toml", &format!("[backup]\nfolder = {:?}\nevery = 1\n", text(&folder)));
    alice.set_mode("keys/recipient.key", 0o640);
    let awake = alice.wake("tally");
    assert_eq!(alice.vat(&["call", "tally", "add", "by=2"]).ok().stdout, "total: 2\n");
    let backup = alice.json(&["status", "tally"])["last_backup"].clone();
    assert_eq!((&backup["code"], &backup["file"]), (&"key.mode".into(), &"".into()));
    assert!(backup["message"].as_str().unwrap().contains("recipient.key"), "{backup}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    awake.sleep();
    alice.fails(&["backup", "tally"], 4, "key.mode").hints("chmod 600");
    alice.set_mode("keys/recipient.key", 0o600);
    world.no_secret_leaked();
}

#[test]
fn a_vat_that_is_awake_only_to_be_announced_makes_no_backup() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let image = world.path("tally.vatimage");
    alice.json(&["export", "tally", "-o", text(&image)]);
    let folder = world.path("backups");
    fs::create_dir(&folder).unwrap();
    alice.write("config.toml", &format!("[backup]\nfolder = {:?}\nevery = 1\n", text(&folder)));
    let restored = alice.json(&["restore", text(&image), "--take-over"]);
    assert_eq!(restored["announced"], true);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // One that serves makes it at once.
    let awake = alice.wake("tally");
    wait_until("a backup is made", || fs::read_dir(&folder).unwrap().count() > 0);
    awake.sleep();
    world.no_secret_leaked();
}

#[test]
fn nobody_can_open_the_vat_that_is_here_while_another_one_takes_its_place() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let image = world.path("tally.vatimage");
    alice.json(&["export", "tally", "-o", text(&image)]);
    // What opens a store takes this lock first.
    let lock = || File::open(alice.path("vats/tally/store/lock")).unwrap();
    lock().try_lock().unwrap();
    let held = lock_vats(&alice);
    let mut restore = alice.start(&["restore", text(&image), "--take-over"]);
    wait_until("the new one waits for its place", || grown(&alice) == 1);
    assert!(matches!(lock().try_lock(), Err(TryLockError::WouldBlock)), "nobody may change what is given up");
    drop(held);
    restore.wait().ok();
    lock().try_lock().unwrap();
    world.no_secret_leaked();
}

#[test]
fn what_was_replaced_opens_with_its_own_key_when_its_successor_has_another_one() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let image = world.path("tally.vatimage");
    alice.json(&["export", "tally", "-o", text(&image)]);
    let awake = alice.wake("tally");
    alice.vat(&["call", "tally", "add", "by=7"]).ok();
    awake.sleep();
    let restored = alice.json(&["restore", text(&image), "--take-over"]);
    alice.vat(&["key", "rotate", "tally"]).ok();
    let awake = alice.wake("tally");
    assert_eq!(alice.vat(&["call", "tally", "get"]).ok().stdout, "total: 0\n");
    awake.sleep();

    // Into a home of its own, since it is the same vat.
    let other = world.home("other");
    other.vat(&["list"]).ok();
    for (what, to) in [("kept", "vats/tally"), ("kept_key", "keys/vats/tally.key")] {
        fs::create_dir_all(other.path(to).parent().unwrap()).unwrap();
        fs::rename(restored[what].as_str().unwrap(), other.path(to)).unwrap();
    }
    for folder in ["vats", "keys", "keys/vats"] {
        other.set_mode(folder, 0o700);
    }
    other.vat(&["verify", "tally"]).ok();
    let awake = other.wake("tally");
    assert_eq!(other.vat(&["call", "tally", "get"]).ok().stdout, "total: 7\n");
    awake.sleep();
    world.no_secret_leaked();
}

#[test]
fn an_image_that_was_changed_or_cut_off_says_where_and_leaves_nothing() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let image = world.path("tally.vatimage");
    alice.json(&["export", "tally", "-o", text(&image)]);
    let bytes = fs::read(&image).unwrap();
    let broken = world.path("broken.vatimage");
    let half = &bytes[..bytes.len() - 512];
    let mut changed = bytes.clone();
    let at = bytes.len() - 700;
    changed[at] ^= 1;
    for (bytes, code) in
        [(half, "checkpoint.damaged"), (&changed, "checkpoint.damaged"), (&b"no image"[..], "image.invalid")]
    {
        fs::write(&broken, bytes).unwrap();
        alice.fails(&["verify", text(&broken)], 9, code).says(&["broken.vatimage"]);
        alice.fails(&["restore", text(&broken), "--as-copy", "twin"], 9, code).says(&["broken.vatimage"]);
    }
    alice.fails(&["verify", "not-here"], 3, "checkpoint.missing");
    assert_eq!(alice.json(&["list"])["vats"].as_array().unwrap().len(), 1, "nothing was left behind");
    let left: Vec<_> = fs::read_dir(alice.path("vats")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["tally"]);
    // The name is still free.
    alice.json(&["restore", text(&image), "--as-copy", "twin"]);
    world.no_secret_leaked();
}

#[test]
fn backups_are_made_by_hand_and_by_a_vat_that_is_awake_and_the_oldest_go() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    alice.new_vat("other", "counter");
    alice.fails(&["backup", "tally"], 2, "config.invalid").hints("--folder");
    let folder = world.path("backups");
    alice
        .fails(&["backup", "tally", "--folder", text(&folder)], 3, "checkpoint.missing")
        .says(&["backups is not there"]);
    fs::create_dir(&folder).unwrap();
    let all = alice.json(&["backup", "--all", "--folder", text(&folder)]);
    assert_eq!(all["backups"].as_array().unwrap().len(), 2);
    let by_hand = all["backups"][1]["file"].as_str().unwrap().to_owned();
    assert!(by_hand.contains("tally-"));
    alice.json(&["verify", &by_hand]);
    assert_eq!(alice.json(&["status", "tally"])["last_backup"]["made_at"], serde_json::Value::Null);

    let config = format!("[backup]\nfolder = {:?}\nevery = 1\nkeep = 2\n", text(&folder));
    alice.write("config.toml", &config);
    assert_eq!(alice.json(&["status", "tally"])["last_backup"]["file"], by_hand.as_str());
    let awake = alice.wake("tally");
    let newest = || {
        let status = alice.json(&["status", "tally"]);
        status["last_backup"]["file"].as_str().unwrap().to_owned()
    };
    // Its names have seconds, so three rounds take about three seconds.
    let mut seen = vec![by_hand.clone()];
    while seen.len() < 4 {
        let file = newest();
        if seen.last() != Some(&file) {
            alice.json(&["verify", &file]);
            seen.push(file);
        }
    }
    awake.process.signal(Signal::INT);
    assert!(!Path::new(&by_hand).exists(), "only two are kept");
    let kept = fs::read_dir(&folder)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("tally-"));
    assert!(kept.count() <= 2);
    world.no_secret_leaked();
}
