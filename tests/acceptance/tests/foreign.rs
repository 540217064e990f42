//! Programs in other languages, with the Cap'n Proto of their own world: Python with pycapnp from PyPI, and C++ with
//! the system's libraries.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use acceptance::{Awake, Foreign, Home, LocationServer, Running, World, limits};

/// Alice's counter, directory and poll, awake, and a home of Bob's that finds them through a location server.
struct Scene<'w> {
    world: &'w World,
    alice: Home<'w>,
    bob: Home<'w>,
    vats: Vec<Awake>,
    _server: LocationServer<'w>,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World) -> Self {
        Self::with(world, &[])
    }

    /// The same, with more options for the counter's vat.
    fn with(world: &'w World, options: &[&str]) -> Self {
        let server = world.location_server("server");
        let (alice, bob) = (world.home("alice").with_program("poll"), world.home("bob"));
        alice.add_server(server.entry());
        bob.add_server(server.entry());
        let vats = [("tally", "counter"), ("home", "directory"), ("lunch", "poll")].map(|(name, kind)| {
            alice.new_vat(name, kind);
            alice.wake_with(name, if name == "tally" { options } else { &[] })
        });
        Self { world, alice, bob, vats: vats.into(), _server: server }
    }

    /// What the clients read: the references of the three, and one that was revoked.
    fn references(&self) -> String {
        let revoked = self.alice.share("tally", &["--label", "revoked"]);
        let grants = self.alice.json(&["grants", "tally"]);
        let number = grants["grants"].as_array().unwrap().last().unwrap()["number"].to_string();
        self.alice.vat(&["revoke", "tally", &number]).ok();
        let others = ["tally", "home", "lunch"].map(|name| self.alice.share(name, &[]));
        format!("{}\n{revoked}\n", others.join("\n"))
    }

    /// A bridge of Bob's.
    fn bridge(&self) -> (Running, PathBuf) {
        let path = self.world.path("bridge");
        let place = format!("unix:{}", path.display());
        let bridge = self.bob.start(&["--json", "bridge", "--listen", &place]);
        let line = bridge.wait_for("that it is ready", |_| true);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), serde_json::json!({"listen": place}));
        (bridge, path)
    }

    fn sleep(self) {
        for vat in self.vats {
            vat.sleep();
        }
        self.world.no_secret_leaked();
    }
}

fn python(world: &World, arguments: &[&str]) -> Command {
    let foreign = Foreign::prepared();
    let mut command = world.command(foreign.python());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/client.py"));
    command.arg(foreign.schemas()).args(arguments);
    command
}

fn cpp(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.command(Foreign::prepared().client());
    command.args(arguments);
    command
}

/// What both programs do with objects: pipelining, order, callbacks and errors.
const OBJECTS: &str = "\
    pipelined: 5\n\
    a hundred calls: in order\n\
    made and called: 7\n\
    heard: salad 1, soup 2 (2)\n\
    heard until it refused: salad 1, then the call failed\n\
    too much: object.overflow\n\
    revoked: ref.denied\n\
    mistyped: ref.malformed\n\
    guessed: ref.denied\n";

#[test]
fn a_program_in_python_reaches_vats_through_the_bridge() {
    let world = World::new();
    let scene = Scene::new(&world);
    let (bridge, path) = scene.bridge();
    let done = world.run(python(&world, &["bridge", path.to_str().unwrap()]), &scene.references());
    assert_eq!(done.clone().ok().stdout, OBJECTS, "{done}");
    bridge.interrupt().ok();
    scene.sleep();
}

#[test]
fn a_program_in_cpp_reaches_vats_through_the_bridge() {
    let world = World::new();
    let scene = Scene::new(&world);
    let (bridge, path) = scene.bridge();
    let place = format!("unix:{}", path.display());
    let done = world.run(cpp(&world, &["bridge", &place]), &scene.references());
    // It can also name an object in its first message, as OCaml's sturdyrefs do.
    let by_id = "by its id: 2\nby a revoked id: ref.denied\n";
    assert_eq!(done.clone().ok().stdout, format!("{OBJECTS}{by_id}"), "{done}");
    bridge.interrupt().ok();
    scene.sleep();
}

/// A client that does one thing after the other, as it is told.
struct Obedient {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Obedient {
    fn start(world: &World, bridge: &Path, reference: &str) -> Self {
        let mut command = python(world, &["obey", bridge.to_str().unwrap()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut client = Self { child, orders, answers };
        writeln!(client.orders, "{reference}").unwrap();
        client
    }

    /// Its answer to an order.
    fn told(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().strip_prefix(&format!("{order}: ")).unwrap_or(&answer).to_owned()
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn programs_share_one_session_with_a_vat_and_the_next_connect_dials_again() {
    let world = World::new();
    let mut scene = Scene::new(&world);
    let (bridge, path) = scene.bridge();
    let reference = scene.alice.share("tally", &[]);
    let (mut one, mut other) = (Obedient::start(&world, &path, &reference), Obedient::start(&world, &path, &reference));
    for client in [&mut one, &mut other] {
        assert_eq!(client.told("connect"), "done");
    }
    assert_eq!((one.told("add"), other.told("add"), one.told("connect")), ("1".into(), "2".into(), "done".into()));
    // The session of the bridge, and that of this command.
    assert_eq!(scene.alice.json(&["status", "tally"])["sessions"], 2);

    scene.vats.remove(0).sleep();
    scene.vats.insert(0, scene.alice.wake("tally"));
    // What was obtained in the old session is over, and says so; nothing was repeated.
    assert_eq!(other.told("add"), "DISCONNECTED vat.stopping");
    assert_eq!(other.told("connect"), "done");
    assert_eq!(other.told("add"), "3");
    // The other one hears of it when it calls, and does the same.
    assert_eq!(one.told("add"), "DISCONNECTED vat.stopping");
    assert_eq!((one.told("connect"), one.told("add")), ("done".into(), "4".into()));

    // A session ends with the last program that asked for it.
    drop((one, other));
    let command = || scene.alice.json(&["status", "tally"])["sessions"].as_u64();
    let begun = std::time::Instant::now();
    while command() != Some(1) {
        assert!(begun.elapsed() < limits::READY, "the session of the bridge goes on");
    }
    bridge.interrupt().ok();
    scene.sleep();
}

/// What both programs do through a TLS port, and what each does beside that.
fn through_tls(beside: &str) -> String {
    format!("pipelined: 5\na hundred calls: in order\nrevoked: ref.denied\n{beside}")
}

const TLS: [&str; 2] = ["--listen-tls", "127.0.0.1:0"];

/// Where the counter's vat listens, and its certificate.
fn tls_of(scene: &Scene<'_>) -> (String, String) {
    let tls = &scene.vats[0].live["tls"];
    let text = |key: &str| tls[key].as_str().unwrap_or_else(|| panic!("no {key}: {tls}")).to_owned();
    assert!(text("key").starts_with("sha256//"));
    (text("address"), text("certificate"))
}

#[test]
fn a_program_in_python_reaches_a_vat_through_its_tls_port() {
    let world = World::new();
    let scene = Scene::with(&world, &TLS);
    let (address, certificate) = tls_of(&scene);
    let (host, port) = address.split_once(':').unwrap();
    let references = scene.references();
    let run = |certificate: &str| world.run(python(&world, &["tls", host, port, certificate]), &references);
    // Connections on which nothing is said, more than there may be: they keep nobody out.
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let done = run(&certificate);
    assert_eq!(done.clone().ok().stdout, through_tls("guessed: ref.denied\n"), "{done}");
    drop(silent);

    // Whoever has another key is not taken for the vat.
    let other = scene.alice.path("other.pem");
    let pem = fs::read_to_string(&certificate).unwrap();
    let place = pem.find("MC").unwrap() + 100;
    let changed = if pem.as_bytes()[place] == b'A' { "B" } else { "A" };
    scene.alice.write("other.pem", &format!("{}{changed}{}", &pem[..place], &pem[place + 1..]));
    let refused = run(other.to_str().unwrap());
    assert!(refused.status != Some(0) && refused.stderr.contains("SSL"), "{refused}");
    scene.sleep();
}

#[test]
fn a_program_in_cpp_reaches_a_vat_through_its_tls_port_and_names_objects_in_its_first_message() {
    let world = World::new();
    let scene = Scene::with(&world, &TLS);
    let (address, certificate) = tls_of(&scene);
    let named = scene.alice.share_as_capnp("tally", &address);
    // The same key as elsewhere, in another alphabet.
    let key = scene.vats[0].live["tls"]["key"].as_str().unwrap().replace('+', "-").replace('/', "_");
    let expected = format!("capnp://sha-256:{}@{address}/", key.trim_start_matches("sha256__").trim_end_matches('='));
    assert!(named.starts_with(&expected));
    let input = format!("{}{named}\n", scene.references());
    let done = world.run(cpp(&world, &["tls", &address, &certificate]), &input);
    let beside = "of another vat: ref.denied\nas OCaml names it: 2\n";
    assert_eq!(done.clone().ok().stdout, through_tls(beside), "{done}");
    scene.sleep();
}

#[test]
fn a_vat_has_no_tls_port_unless_its_owner_asks_and_the_same_certificate_whenever_it_has_one() {
    let world = World::new();
    let alice = world.home("alice");
    alice.new_vat("tally", "counter");
    let vat = alice.wake("tally");
    assert_eq!(vat.live["tls"], serde_json::Value::Null);
    vat.sleep();
    alice.write("config.toml", "listen_tls = \"127.0.0.1:0\"\n");
    let certificates = [0, 1].map(|_| {
        let vat = alice.wake("tally");
        let certificate = fs::read(vat.live["tls"]["certificate"].as_str().unwrap()).unwrap();
        // The record says nothing of it.
        assert!(
            vat.live["addresses"]
                .as_array()
                .unwrap()
                .iter()
                .all(|address| address.as_str().unwrap().starts_with("quic:"))
        );
        vat.sleep();
        certificate
    });
    assert_eq!(certificates[0], certificates[1]);
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let run = ["run", "tally", "--listen", "127.0.0.1:0", "--listen-tls", &taken];
    alice.fails(&run, 7, "net.bind").says(&[&taken, "TCP"]);
    drop(holder);
    world.no_secret_leaked();
}

#[test]
fn a_bridge_is_for_its_owner_alone_and_leaves_nothing_behind() {
    let world = World::new();
    let bob = world.home("bob");
    let path = world.path("bridge");
    let place = format!("unix:{}", path.display());
    let bridge = bob.start(&["bridge", "--listen", &place]);
    assert_eq!(bridge.first_line(), Some(place.clone()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    bob.fails(&["bridge", "--listen", &place], 7, "net.bind").says(&[path.to_str().unwrap()]);
    for nowhere in ["tcp:127.0.0.1:4433", "unix:", path.to_str().unwrap()] {
        bob.fails(&["bridge", "--listen", nowhere], 2, "cli.usage").says(&["unix:PATH"]);
    }
    bridge.interrupt().ok();
    assert!(!path.exists());
    world.no_secret_leaked();
}

/// Programs that do nothing but say that they were asked, in place of those that `prepare` needs.
const STAND_INS: [(&str, &str); 3] = [
    ("capnp", ""),
    ("g++", r#"while [ $# -gt 1 ]; do [ "$1" != -o ] || touch "$2"; shift; done"#),
    (
        "python3",
        r#"here=$(dirname "$0")
        case "$1" in
            -V) cat "$here/version" ;;
            -m) mkdir -p "$3/bin"; printf '#!/bin/sh\necho once >>"%s/installed"\n' "$here" >"$3/bin/pip"
                chmod +x "$3/bin/pip" ;;
        esac"#,
    ),
];

#[test]
fn the_python_of_these_tests_is_prepared_anew_when_the_system_has_another_one() {
    let world = World::new();
    let programs = world.path("programs");
    fs::create_dir(&programs).unwrap();
    for (name, script) in STAND_INS {
        let program = programs.join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let installed = |version: &str| {
        fs::write(programs.join("version"), version).unwrap();
        let mut prepare = Command::new("bash");
        prepare.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/prepare")).arg(world.path("prepared"));
        let done = prepare.env("PATH", &search).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::read_to_string(programs.join("installed")).unwrap().lines().count()
    };
    assert_eq!(["3.11.7", "3.11.7", "3.12.0", "3.12.0"].map(installed), [1, 1, 2, 2]);
    world.no_secret_leaked();
}
