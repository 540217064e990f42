//! A location server asked by programs that know nothing of vats: `curl` and `dig`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use acceptance::{Done, Running, World, program};
use schemas::{IdentityKey, LocationRecord, SignedRecord, State, Timestamp};
use serde_json::Value;

const ZONE: &str = "vls.example.org";

struct Server {
    process: Running,
    entry: String,
    http: String,
    /// Address and port, as `dig` takes them.
    dns: (String, String),
}

fn start(world: &World, more: &[&str]) -> Server {
    let mut command = world.command(program("vls-server"));
    command.args(["--json", "run", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--dns", "127.0.0.1:0"]);
    command.args(["--dns-origin", ZONE, "--data"]).arg(world.path("server")).args(more);
    let process = world.start(command);
    let line: Value = serde_json::from_str(&process.first_line().expect("its addresses")).unwrap();
    let text = |key: &str| line[key].as_str().unwrap_or_else(|| panic!("{key} in {line}")).to_owned();
    let (address, port) = text("dns").split_once(':').map(|(a, p)| (a.to_owned(), p.to_owned())).unwrap();
    Server { process, entry: text("entry"), http: text("http"), dns: (address, port) }
}

fn run(world: &World, program: &str, arguments: &[&str]) -> Done {
    let mut command = world.command(program);
    command.args(arguments);
    world.run(command, "")
}

fn curl(world: &World, arguments: &[&str]) -> String {
    run(world, "curl", &[&["--silent", "--show-error", "--max-time", "30"], arguments].concat()).ok().stdout
}

fn dig(world: &World, server: &Server, arguments: &[&str]) -> String {
    let at = format!("@{}", server.dns.0);
    run(world, "dig", &[&["-p", &server.dns.1, &at, "+time=20", "+tries=2"], arguments].concat()).ok().stdout
}

/// A record of this moment, in a file, as its vat would send it.
fn signed(world: &World, key: &IdentityKey, epoch: u64) -> (SignedRecord, String) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = Timestamp::from_micros(u64::try_from(now.as_micros()).unwrap());
    let record = LocationRecord {
        epoch,
        turn: 1,
        chain_head: None,
        state: State::Live,
        expires: now + Duration::from_hours(1),
        addresses: vec!["quic:192.0.2.1:4433".parse().unwrap()],
        search_path: Vec::new(),
        document: None,
    };
    let record = SignedRecord::sign(key, &record, now).unwrap();
    let file = world.path(&format!("packet-{epoch}"));
    fs::write(&file, record.packet()).unwrap();
    (record, file.display().to_string())
}

const STATUS: [&str; 4] = ["--output", "/dev/null", "--write-out", "%{http_code}"];

#[test]
fn curl_writes_and_reads_a_record_that_survives_a_kill_and_dig_finds_it() {
    let world = World::new();
    let server = start(&world, &[]);
    let key = IdentityKey::generate().unwrap();
    let (first, file) = signed(&world, &key, 1);
    let url = format!("http://{}/pkarr/{}", server.http, first.id());
    let put = |url: &str, file: &str, more: &[&str]| curl(&world, &[&STATUS, more, &["-T", file, url]].concat());
    assert_eq!(curl(&world, &[&STATUS[..], &[&url]].concat()), "404");
    assert_eq!(put(&url, &file, &["--header", "If-None-Match: *"]), "204");
    assert_eq!(put(&url, &file, &[]), "204", "the same again is success");
    server.process.kill();

    let server = start(&world, &[]);
    let url = format!("http://{}/pkarr/{}", server.http, first.id());
    let (found, tag) = (world.path("found"), world.path("tag").display().to_string());
    curl(&world, &["--output", found.to_str().unwrap(), "--etag-save", &tag, &url]);
    assert_eq!(fs::read(&found).unwrap(), first.packet(), "what was acknowledged is there");
    assert_eq!(curl(&world, &[&STATUS[..], &["--etag-compare", &tag, &url]].concat()), "304");

    let name = format!("_vat.{}.{ZONE}", first.id());
    for how in ["+notcp", "+tcp"] {
        let found = dig(&world, &server, &["TXT", &name, "+short", how]);
        assert!(found.lines().any(|line| line == "\"a=quic:192.0.2.1:4433\""), "{how}: {found}");
    }
    let https = ["-p", server.http.rsplit_once(':').unwrap().1, "+http-plain", "@127.0.0.1", "TXT", &name, "+short"];
    assert!(run(&world, "dig", &https).ok().stdout.contains("\"e=1\""));
    assert!(dig(&world, &server, &["A", &name]).contains("status: NOERROR, "), "NODATA");
    assert!(dig(&world, &server, &["TXT", &format!("www.{ZONE}")]).contains("status: NXDOMAIN, "));
    assert!(dig(&world, &server, &["TXT", "example.com"]).contains("status: REFUSED, "));
    assert!(
        dig(&world, &server, &["SOA", ZONE, "+short"]).starts_with("vls.example.org. hostmaster.vls.example.org. ")
    );
    assert!(dig(&world, &server, &["AXFR", ZONE]).contains("Transfer failed"));

    // The tag that curl has kept is good for one swap.
    let (second, file) = signed(&world, &key, 2);
    let swap = format!("If-Match: {}", fs::read_to_string(&tag).unwrap().trim());
    assert_eq!(put(&url, &file, &["--header", &swap]), "204");
    let (_, file) = signed(&world, &key, 3);
    assert_eq!(put(&url, &file, &["--header", &swap]), "412");
    let (_, file) = signed(&world, &IdentityKey::generate().unwrap(), 4);
    let elsewhere = url.replace(&key.id().to_string(), &IdentityKey::generate().unwrap().id().to_string());
    assert_eq!(put(&elsewhere, &file, &[]), "400", "of another vat");
    let refusal = curl(&world, &["-T", &file, &elsewhere]);
    assert!(refusal.starts_with("record.") && refusal.contains(": "), "{refusal}");
    curl(&world, &["--output", found.to_str().unwrap(), &url]);
    assert_eq!(fs::read(&found).unwrap(), second.packet());
    let length = ["--output", "/dev/null", "--write-out", "%{http_code} %header{content-length}"];
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for more in [&[][..], &["--head"]] {
            let told = |url: &str| curl(&world, &[&length, &[version][..], more, &[url]].concat());
            assert_eq!(told(&url), format!("200 {}", second.packet().len()));
            let missing = told(&elsewhere);
            assert!(missing.strip_prefix("404 ").is_some_and(|length| length > "0"), "{missing}");
        }
        let known = ["--etag-compare", &tag, version];
        let told = curl(&world, &[&length, &["--etag-save", &tag, version][..], &[&url]].concat());
        assert_eq!(told, format!("200 {}", second.packet().len()));
        assert_eq!(curl(&world, &[&length, &known[..], &[&url]].concat()), "304 ");
    }
    assert!(curl(&world, &[&format!("http://{}/metrics", server.http)]).contains("vls_records 1\n"));
    server.process.interrupt().ok();
    world.no_secret_leaked();
}

#[test]
fn a_vat_that_registers_over_quic_is_found_over_http_and_dns() {
    let world = World::new();
    let server = start(&world, &[]);
    let alice = world.home("alice");
    alice.add_server(&server.entry);
    let address = alice.new_vat("tally", "counter");
    let id = address.strip_prefix("vat://").expect("the address of a vat");
    let _awake = alice.wake("tally");
    let found = world.path("found");
    curl(&world, &["--fail", "--output", found.to_str().unwrap(), &format!("http://{}/{id}", server.http)]);
    let record = SignedRecord::verify(id.parse().unwrap(), &fs::read(&found).unwrap()).unwrap();
    assert_eq!(record.record().state, State::Live);
    let strings = dig(&world, &server, &["TXT", &format!("_VAT.{id}.VLS.example.org"), "+short"]);
    assert!(strings.lines().any(|line| line == "\"st=live\""), "{strings}");
    let page = curl(&world, &[&format!("http://{}/", server.http)]);
    assert!(page.starts_with("<!doctype html>") && !page.contains(id), "{page}");
    world.no_secret_leaked();
}

#[test]
fn curl_trusts_the_certificate_that_was_given_and_no_other_is_shown() {
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vls-server/tests/certificates");
    let file = |name: &str| certificates.join(name).canonicalize().unwrap().display().to_string();
    let world = World::new();
    let server = start(&world, &["--http-cert", &file("localhost.pem"), "--http-key", &file("localhost.key")]);
    let port = server.http.rsplit_once(':').unwrap().1;
    let url = format!("https://localhost:{port}/healthz");
    for version in ["--http1.1", "--http2"] {
        let told = ["--ipv4", "--cacert", &file("localhost.pem"), version, "--write-out", "%{http_version}", &url];
        let (answer, spoken) = (curl(&world, &told), if version == "--http2" { "2" } else { "1.1" });
        assert_eq!(answer, format!("ok\n{spoken}"));
    }
    run(&world, "curl", &["--silent", "--ipv4", "--cacert", &file("other.pem"), &url]).exits(60);
    let mut wrong = world.command(program("vls-server"));
    wrong.args(["--json", "run", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
    wrong.arg(world.path("another")).args(["--http-cert", &file("localhost.pem"), "--http-key", &file("other.key")]);
    world.run(wrong, "").failed(1, "server.certificate");
    world.no_secret_leaked();
}
