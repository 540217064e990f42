//! Where the corpus begins: real messages, texts and files, and those that are known to have hurt other readers.
//!
//! The same in every run, so that the committed files can be compared with what is made here. Files of the corpus
//! whose names do not occur here were found by the fuzzer.

use std::{collections::BTreeMap, time::Duration};

use capnp::{capability::Client, message::Builder, private::capability::ClientHook, traits::ImbueMut};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, disembargo, exception, message};
use schemas::{
    Address, Hints, IdentityKey, LocationRecord, SearchPathEntry, Secret, SignedRecord, State, SturdyRef, Timestamp,
    objects_capnp, vat_capnp,
};

use crate::{
    reflection::{SCHEMAS, byte_for},
    session::{greeting, preface},
};

/// The identity that records are of.
pub const VAT_SEED: [u8; 32] = [42; 32];

/// For whom the images are sealed.
pub const RECIPIENT_KEY: [u8; 32] = *include_bytes!("../../compat/1/recipient.key");

/// Inputs by target and name.
pub type Corpus = BTreeMap<(&'static str, String), Vec<u8>>;

/// Every seed.
#[must_use]
pub fn all() -> Corpus {
    let mut corpus = Corpus::new();
    let mut add = |target: &'static str, seeds: Vec<(String, Vec<u8>)>| {
        for (name, bytes) in seeds {
            assert!(corpus.insert((target, name), bytes).is_none(), "two seeds of {target} with one name");
        }
    };
    add("answers", answers());
    add("arguments", arguments());
    add("frames", frames());
    add("greetings", greetings());
    add("images", images());
    add("messages", messages());
    add("records", records());
    add("references", references());
    add("schema_sets", schema_sets());
    corpus
}

fn named<const N: usize>(seeds: [(&str, Vec<u8>); N]) -> Vec<(String, Vec<u8>)> {
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

// ---- RPC messages

fn rpc(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message = Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// Asks for the bootstrap capability.
pub(crate) fn bootstrap(question: u32) -> Vec<u8> {
    rpc(|message| message.init_bootstrap().set_question_id(question))
}

/// Restores an object of what question `of` gives.
pub(crate) fn restore(question: u32, of: u32) -> Vec<u8> {
    rpc(|message| {
        let mut call = calling(message, question, vat_interface(), 0);
        call.reborrow().init_target().init_promised_answer().set_question_id(of);
        let mut params: vat_capnp::vat::restore_params::Builder<'_> = call.init_params().init_content().init_as();
        params.set_secret(&[3; 32]);
    })
}

fn vat_interface() -> u64 {
    <vat_capnp::vat::Client as capnp::traits::HasTypeId>::TYPE_ID
}

fn owner_interface() -> u64 {
    <vat_capnp::owner::Client as capnp::traits::HasTypeId>::TYPE_ID
}

fn calling(message: message::Builder<'_>, question: u32, interface: u64, method: u16) -> call::Builder<'_> {
    let mut call = message.init_call();
    call.set_question_id(question);
    call.set_interface_id(interface);
    call.set_method_id(method);
    call
}

/// A call of the object that question 1 restores, with one capability of the kind that `describe` says.
fn owner_call(question: u32, method: u16, describe: impl FnOnce(cap_descriptor::Builder<'_>)) -> Vec<u8> {
    let mut table: Vec<Option<Box<dyn ClientHook>>> = Vec::new();
    let mut message = Builder::new_default();
    let mut call = calling(message.init_root(), question, owner_interface(), method);
    let mut target = call.reborrow().init_target().init_promised_answer();
    target.set_question_id(1);
    target.init_transform(1).get(0).set_get_pointer_field(0);
    let mut params = call.init_params();
    describe(params.reborrow().init_cap_table(1).get(0));
    // Whose capability it is stands in the table above; a pointer to its first entry is what is written here.
    let any: Client = capnp_rpc::new_broken_cap(capnp::Error::failed("nobody's".to_owned()));
    let mut content = params.init_content();
    content.imbue_mut(&mut table);
    match method {
        SHARE => {
            let content: vat_capnp::owner::share_params::Builder<'_> = content.init_as();
            content.init_object().set_as_capability(any.hook);
        }
        VERIFY => {
            let mut content: vat_capnp::owner::verify_params::Builder<'_> = content.init_as();
            content.set_progress(vat_capnp::progress::Client { client: any });
        }
        _ => {}
    }
    capnp::serialize::write_message_to_words(&message)
}

const SHARE: u16 = 1;
const ROOT: u16 = 4;
const VERIFY: u16 = 8;

/// The messages as an input of the target: each with its length in words instead of a segment table.
fn script(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut input = Vec::new();
    for message in messages {
        // A message that was written in one segment has a table of one word.
        let content = &message[8..];
        input.extend(u16::try_from(content.len() / 8).unwrap().to_le_bytes());
        input.extend(content);
    }
    input
}

fn finish(question: u32, release: bool) -> Vec<u8> {
    rpc(|message| {
        let mut finish = message.init_finish();
        finish.set_question_id(question);
        finish.set_release_result_caps(release);
    })
}

fn release(id: u32, count: u32) -> Vec<u8> {
    rpc(|message| {
        let mut release = message.init_release();
        release.set_id(id);
        release.set_reference_count(count);
    })
}

/// Answers a question of ours with a capability that the stranger hosts.
fn give(answer: u32, export: u32) -> Vec<u8> {
    rpc(|message| {
        let mut results = message.init_return();
        results.set_answer_id(answer);
        results.init_results().init_cap_table(1).get(0).set_sender_hosted(export);
    })
}

fn messages() -> Vec<(String, Vec<u8>)> {
    let hosted = |id| owner_call(2, SHARE, move |mut cap| cap.set_sender_hosted(id));
    let promised = owner_call(2, SHARE, |mut cap| cap.set_sender_promise(5));
    let onward = owner_call(3, ROOT, |mut cap| cap.set_none(()));
    let resolve_to_itself = rpc(|message| {
        let mut resolve = message.init_resolve();
        resolve.set_promise_id(5);
        resolve.init_cap().set_sender_promise(5);
    });
    let third_party = owner_call(2, SHARE, |cap| cap.init_third_party_hosted().set_vine_id(9));
    let mine = owner_call(2, SHARE, |mut cap| cap.set_receiver_hosted(0));
    let answered = owner_call(2, SHARE, |cap| {
        let mut answer = cap.init_receiver_answer();
        answer.set_question_id(1);
        answer.init_transform(1).get(0).set_get_pointer_field(0);
    });
    let call_back = owner_call(4, VERIFY, |mut cap| cap.set_sender_hosted(7));
    let failed = rpc(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(2);
        let mut reason = answer.init_exception();
        reason.set_type(exception::Type::Failed);
        reason.set_reason("object.not_found: not here");
    });
    named([
        ("nothing", Vec::new()),
        ("share_and_root", script(&[hosted(7), onward.clone(), finish(2, true), finish(3, true)])),
        ("promise_that_resolves_to_itself", script(&[promised, resolve_to_itself, onward.clone(), onward.clone()])),
        ("third_party", script(&[third_party, onward.clone()])),
        ("receiver_hosted", script(&[mine, onward.clone()])),
        ("receiver_answer", script(&[answered, onward])),
        ("call_back_that_fails", script(&[call_back.clone(), failed])),
        ("call_back_without_answer", script(&[call_back, finish(4, false), finish(4, false)])),
        ("bootstrap_given", script(&[give(0, 0), give(1, 1), release(0, 1)])),
        ("canceled", script(&[canceled(0), canceled(1), canceled(2)])),
        ("answers_of_the_wrong_type", script(&[wrong_type(0), wrong_type(1), wrong_type(2)])),
        ("results_elsewhere", script(&[call_to_itself(), take_from_other(0), take_from_other(9)])),
        ("released_too_often", script(&[release(0, u32::MAX)])),
        ("finished_twice", script(&[finish(0, true), finish(0, true), finish(1, true), finish(99, true)])),
        ("disembargo_of_every_kind", script(&disembargoes())),
        ("messages_of_level_three", script(&level_three())),
        ("unimplemented", script(&[unimplemented_call(), unimplemented_resolve()])),
        ("abort", script(&[abort()])),
        ("question_in_use", script(&[bootstrap(0), bootstrap(1), restore(0, 0)])),
        ("unknown_interface", script(&[unknown_call()])),
        ("deep_transform", script(&[deep_transform()])),
        ("garbage", script(&[vec![0xff; 40], vec![0; 40], vec![1; 136]])),
    ])
}

fn canceled(answer: u32) -> Vec<u8> {
    rpc(|message| {
        let mut answer_message = message.init_return();
        answer_message.set_answer_id(answer);
        answer_message.set_canceled(());
    })
}

/// A text where a capability or a struct with one is expected.
fn wrong_type(answer: u32) -> Vec<u8> {
    rpc(|message| {
        let mut answer_message = message.init_return();
        answer_message.set_answer_id(answer);
        let mut content = answer_message.init_results().init_content();
        content.set_as(capnp::text::Reader::from("no struct")).unwrap();
    })
}

fn call_to_itself() -> Vec<u8> {
    rpc(|message| {
        let mut call = calling(message, 2, vat_interface(), 1);
        call.reborrow().init_target().init_promised_answer().set_question_id(0);
        call.reborrow().init_send_results_to().set_yourself(());
        call.init_params();
    })
}

fn take_from_other(other: u32) -> Vec<u8> {
    rpc(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(1);
        answer.set_take_from_other_question(other);
    })
}

fn disembargoes() -> Vec<Vec<u8>> {
    let with = |fill: fn(disembargo::context::Builder<'_>)| {
        rpc(|message| {
            let mut disembargo = message.init_disembargo();
            disembargo.reborrow().init_target().set_imported_cap(0);
            fill(disembargo.init_context());
        })
    };
    vec![
        with(|mut context| context.set_sender_loopback(3)),
        with(|mut context| context.set_receiver_loopback(3)),
        with(|mut context| context.set_accept(())),
        with(|mut context| context.set_provide(0)),
    ]
}

fn level_three() -> Vec<Vec<u8>> {
    vec![
        rpc(|message| message.init_provide().init_target().set_imported_cap(0)),
        rpc(|message| message.init_accept().set_question_id(8)),
        rpc(|message| message.init_join().init_target().set_imported_cap(0)),
    ]
}

fn unimplemented_call() -> Vec<u8> {
    rpc(|message| {
        let call = calling(message.init_unimplemented(), 1, vat_interface(), 0);
        call.init_params().init_cap_table(1).get(0).set_sender_hosted(0);
    })
}

fn unimplemented_resolve() -> Vec<u8> {
    rpc(|message| {
        let mut resolve = message.init_unimplemented().init_resolve();
        resolve.set_promise_id(1);
        resolve.init_cap().set_sender_hosted(1);
    })
}

fn abort() -> Vec<u8> {
    rpc(|message| message.init_abort().set_reason("session.closed: enough"))
}

fn unknown_call() -> Vec<u8> {
    rpc(|message| {
        let mut call = calling(message, 5, u64::MAX, u16::MAX);
        call.reborrow().init_target().set_imported_cap(0);
        call.init_params();
    })
}

fn deep_transform() -> Vec<u8> {
    rpc(|message| {
        let mut call = calling(message, 5, owner_interface(), 0);
        let mut target = call.reborrow().init_target().init_promised_answer();
        target.set_question_id(1);
        let mut transform = target.init_transform(40);
        for step in 0..40 {
            transform.reborrow().get(step).set_get_pointer_field(u16::MAX);
        }
        call.init_params();
    })
}

// ---- streams

fn frames() -> Vec<(String, Vec<u8>)> {
    let in_pieces = |piece: u8, stream: Vec<u8>| [vec![piece], stream].concat();
    let segments = |first: u32| {
        let mut message = Builder::new(capnp::message::HeapAllocator::new().first_segment_words(first));
        let mut names = message.initn_root::<capnp::text_list::Builder<'_>>(6);
        for index in 0..6 {
            names.set(index, "a name of some length");
        }
        capnp::serialize::write_message_to_words(&message)
    };
    let announced = |segments: u32, words: u32| [segments.to_le_bytes(), words.to_le_bytes()].concat();
    named([
        ("one_segment", in_pieces(255, segments(400))),
        ("many_segments_in_small_pieces", in_pieces(3, segments(1))),
        ("several_messages", in_pieces(16, [segments(400), segments(2), bootstrap(1), segments(1)].concat())),
        ("an_empty_message", in_pieces(8, announced(0, 0))),
        ("empty_segments", in_pieces(8, [announced(2, 0), announced(0, 0)].concat())),
        ("truncated", in_pieces(8, segments(400)[..30].to_vec())),
        ("sixty_four_mebibytes_announced", in_pieces(8, announced(0, 8 << 20))),
        ("four_thousand_million_segments", in_pieces(8, vec![0xff; 8])),
        ("a_segment_that_overflows", in_pieces(8, [announced(1, u32::MAX), announced(u32::MAX, 0)].concat())),
    ])
}

fn greetings() -> Vec<(String, Vec<u8>)> {
    let with = |position: usize, value: u8| {
        let mut bytes = greeting();
        bytes[position] = value;
        bytes
    };
    let announced = [preface(), vec![0, 0, 0, 0, 0, 2, 0, 0]].concat();
    named([
        ("valid", greeting()),
        ("valid_and_a_message", [greeting(), bootstrap(0)].concat()),
        ("empty", Vec::new()),
        ("preface_alone", preface()),
        ("another_protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("another_kind", with(4, 2)),
        ("another_version_of_the_stream", with(6, 9)),
        ("another_version_of_the_session", with(24, 9)),
        ("truncated", greeting()[..40].to_vec()),
        ("too_long", announced),
        ("pointers_astray", with(43, 0x7f)),
    ])
}

// ---- texts, records, files

fn references() -> Vec<(String, Vec<u8>)> {
    let id = IdentityKey::from_seed(&VAT_SEED).id();
    let secret = Secret::from_slice(&[5; 32]).unwrap();
    let entry: SearchPathEntry = format!("vls://{id}@vls.example:4433").parse().unwrap();
    let hints = Hints {
        addresses: vec!["192.0.2.1:4433".to_owned(), "[2001:db8::1]:9".to_owned()],
        search_path: vec![entry.clone()],
        ..Hints::default()
    };
    let bare = SturdyRef { id, secret: secret.clone(), hints: Hints::default() };
    let full = SturdyRef { id, secret, hints };
    let text = |text: String| text.into_bytes();
    named([
        ("id", text(id.to_string())),
        ("address", text(bare.address().to_string())),
        ("address_with_hints", text(full.address().to_string())),
        ("sturdyref", text(bare.expose().to_string())),
        ("sturdyref_with_hints", text(full.expose().to_string())),
        ("entry_vls", text(entry.to_string())),
        ("entry_vls_ipv6", text(format!("vls://{id}@[2001:db8::2]:1"))),
        ("entry_http", text("https://example.org:8443/vats/".to_owned())),
        ("entry_dns", text("dns:example.org".to_owned())),
        ("entry_dht", text("dht:".to_owned())),
        ("address_quic", text("quic:vat.example:4433".to_owned())),
        ("address_quic_ipv6", text("quic:[2001:db8::1]:4433".to_owned())),
        ("address_gateway", text("https://example.org/cgi-bin/vat".to_owned())),
        ("address_relayed", text("vls:".to_owned())),
        ("percent_and_unicode", text(format!("vat://{id}?at=%41%zz&vls=ä&gw=https://a.example/%2f#%00"))),
        ("recipient", text(recipient())),
    ])
}

fn recipient() -> String {
    checkpoint::RecipientKey::from_bytes(&RECIPIENT_KEY).recipient().unwrap().to_string()
}

fn records() -> Vec<(String, Vec<u8>)> {
    let key = IdentityKey::from_seed(&VAT_SEED);
    let timestamp = Timestamp::from_micros(1_760_000_000_000_000);
    let plain = LocationRecord {
        epoch: 3,
        turn: 77,
        chain_head: None,
        state: State::Live,
        expires: timestamp.saturating_add(Duration::from_secs(3600)),
        addresses: Vec::new(),
        search_path: Vec::new(),
        document: None,
    };
    let address = |text: &str| text.parse::<Address>().unwrap();
    let many = (0..16).map(|host| address(&format!("quic:192.0.2.{host}:4433"))).collect();
    let many = LocationRecord { addresses: many, ..plain.clone() };
    let gone = LocationRecord { state: State::Departed, ..plain.clone() };
    let full = LocationRecord {
        chain_head: Some("abc012".to_owned()),
        addresses: vec![address("quic:192.0.2.1:4433"), address("quic:[2001:db8::1]:9"), address("quic:vat.example:1")],
        search_path: vec!["dht:".parse().unwrap(), "dns:example.org".parse().unwrap()],
        document: Some([9; 32]),
        ..plain
    };
    // The signature stays behind: it is checked last, and a fuzzer cannot make one.
    let unsigned =
        |record: &LocationRecord| SignedRecord::sign(&key, record, timestamp).unwrap().packet()[64..].to_vec();
    // Behind the timestamp, the header of the message, and the length of the label.
    let named_otherwise = |label: &[u8; 4]| {
        let mut packet = unsigned(&plain);
        assert_eq!(packet[21..25], *b"_vat");
        packet[21..25].copy_from_slice(label);
        packet
    };
    let full = unsigned(&full);
    named([
        ("plain", unsigned(&plain)),
        ("nothing_of_a_vat", named_otherwise(b"_ssh")),
        ("in_capitals", named_otherwise(b"_VAT")),
        ("departed", unsigned(&gone)),
        ("sixteen_addresses", unsigned(&many)),
        ("truncated", full[..full.len() / 2].to_vec()),
        ("full", full),
        ("a_name_that_points_to_itself", [&[0; 8][..], &[0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xc0, 12]].concat()),
        ("empty", Vec::new()),
    ])
}

fn images() -> Vec<(String, Vec<u8>)> {
    let many = include_bytes!("../../compat/1/many.vatimage");
    let mut flipped = many.to_vec();
    flipped[700] ^= 1;
    named([
        ("counter", include_bytes!("../../compat/1/counter.vatimage").to_vec()),
        ("notes", include_bytes!("../../compat/1/notes.vatimage").to_vec()),
        ("many", many.to_vec()),
        ("many_truncated", many[..1024].to_vec()),
        ("many_flipped", flipped),
    ])
}

// ---- reflection

fn arguments() -> Vec<(String, Vec<u8>)> {
    let lines = |interface, method, text: &str| [vec![byte_for(interface, method)], text.as_bytes().to_vec()].concat();
    named([
        ("one_number", lines("Counter", "add", "by=41")),
        ("the_value_alone", lines("Counter", "add", "18446744073709551615")),
        ("a_json_object", lines("Guestbook", "sign", r#"{"name":"Ada","text":"a \u00e9 \ud83d\ude00 \n"}"#)),
        ("pairs", lines("Guestbook", "sign", "name=Ada\ntext=the first = the best")),
        ("numbers_out_of_range", lines("Guestbook", "list", r#"{"after":-1,"limit":4294967296}"#)),
        ("base64", lines("Vat", "restore", "secret=AAECAwQFBgcICQ==")),
        ("nested_json", lines("Owner", "export", r#"{"path":"/x","holder":{"passphrase":"x"},"progress":null}"#)),
        ("deep_json", lines("Owner", "export", &"[".repeat(300))),
        ("a_union_twice", lines("Owner", "export", r#"{"holder":{"recipient":"a","passphrase":"b"}}"#)),
        ("the_same_name_twice", lines("Notes", "put", "name=a\nname=b")),
        ("an_unknown_name", lines("Notes", "put", "nam=a")),
        ("a_duplicate_in_json", lines("Notes", "put", r#"{"name":"a","name":"b"}"#)),
    ])
}

fn answers() -> Vec<(String, Vec<u8>)> {
    let answer = |interface, method, message: &Builder<capnp::message::HeapAllocator>| {
        // A message that was written in one segment has a table of one word.
        [vec![byte_for(interface, method)], capnp::serialize::write_message_to_words(message)[8..].to_vec()].concat()
    };
    let mut total = Builder::new_default();
    total.init_root::<objects_capnp::counter::add_results::Builder<'_>>().set_total(42);
    let mut list = Builder::new_default();
    let mut entries = list.init_root::<objects_capnp::guestbook::list_results::Builder<'_>>().init_entries(3);
    for index in 0..3 {
        let mut entry = entries.reborrow().get(index);
        entry.set_number(u64::from(index) + 1);
        entry.set_name("Ada");
        entry.set_text("a text");
    }
    let mut status = Builder::new_default();
    let mut filled = status.init_root::<vat_capnp::owner::status_results::Builder<'_>>().init_status();
    filled.set_id(&[1; 32]);
    filled.set_object("counter");
    filled.reborrow().init_addresses(2).set(0, "quic:192.0.2.1:4433");
    filled.init_registrations(2).get(0).set_entry("dht:");
    let mut names = Builder::new_default();
    let mut listed = names.init_root::<objects_capnp::notes::list_results::Builder<'_>>();
    listed.set_more(true);
    listed.init_names(3).set(1, "a name");
    named([
        ("a_number", answer("Counter", "add", &total)),
        ("a_list_of_structs", answer("Guestbook", "list", &list)),
        ("a_status", answer("Owner", "status", &status)),
        ("a_list_of_texts", answer("Notes", "list", &names)),
        ("nothing", vec![byte_for("Counter", "get")]),
        ("another_answer", answer("Guestbook", "list", &status)),
        (
            "a_list_without_size",
            vec![byte_for("Guestbook", "list"), 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0xf8, 0xff, 0xff, 0xff],
        ),
    ])
}

fn schema_sets() -> Vec<(String, Vec<u8>)> {
    let closure = |name: &str| SCHEMAS.closure(SCHEMAS.interface_by_name(name).unwrap().id()).unwrap();
    let counter = closure("Counter");
    named([
        ("guestbook", closure("Guestbook")),
        ("progress", closure("Progress")),
        ("truncated", counter[..counter.len() / 2].to_vec()),
        ("counter", counter),
        ("empty", Vec::new()),
    ])
}
