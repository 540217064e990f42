//! `examples/poll`: an object of one's own comes with the whole command line, and everybody can call it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use acceptance::World;
use serde_json::json;

#[test]
fn an_object_of_ones_own_comes_with_the_command_line() {
    let world = World::new();
    let server = world.location_server("server");
    let alice = world.home("alice").with_program("poll");
    alice.add_server(server.entry());
    alice.new_vat("lunch", "poll");
    let vat = alice.wake("lunch");
    assert_eq!(alice.vat(&["call", "lunch", "vote", "choice=soup"]).ok().stdout, "votes: 1\n");
    assert_eq!(alice.json(&["call", "lunch", "vote", "soup"]), json!({"votes": 2}));
    assert_eq!(alice.json(&["call", "lunch", "vote", "choice=salad"]), json!({"votes": 1}));
    vat.kill();
    let vat = alice.wake("lunch");
    let standing = json!({"choices": [{"name": "salad", "votes": 1}, {"name": "soup", "votes": 2}]});
    assert_eq!(alice.json(&["call", "lunch", "standing"]), standing);
    assert_eq!(alice.json(&["status", "lunch"])["object"], "poll");
    for question in ["where", "when", "where"] {
        let asked = alice.json(&["call", "lunch", "followUp", &format!("question={question}")]);
        assert_eq!(asked, json!({"poll": {"capability": "Poll"}}));
    }
    assert_eq!(alice.json(&["status", "lunch"])["objects"], 3, "one more for each question");
    vat.sleep();
    // The built-in objects are there as well, and a wrong kind names them all.
    alice.new_vat("tally", "counter");
    alice.fails(&["new", "other", "--object", "toaster"], 2, "vat.unknown_object").says(&["poll", "counter"]);
    world.no_secret_leaked();
}

#[test]
fn the_stock_program_calls_an_object_that_it_was_not_built_with() {
    let world = World::new();
    let server = world.location_server("server");
    let (alice, bob) = (world.home("alice").with_program("poll"), world.home("bob"));
    alice.add_server(server.entry());
    bob.add_server(server.entry());
    alice.new_vat("lunch", "poll");
    let vat = alice.wake("lunch");
    bob.vat_with_input(&["accept", "lunch", "-"], &alice.share("lunch", &[])).ok();

    let methods = bob.vat(&["call", "lunch"]).ok();
    for part in ["Poll", "vote", "choice", "Text", "standing", "List(Choice)"] {
        assert!(methods.stdout.contains(part), "{part}: {methods}");
    }
    assert_eq!(bob.vat(&["call", "lunch", "vote", "choice=soup"]).ok().stdout, "votes: 1\n");
    assert_eq!(bob.json(&["call", "lunch", "standing"]), json!({"choices": [{"name": "soup", "votes": 1}]}));
    bob.fails(&["call", "lunch", "vot", "choice=soup"], 2, "object.unknown_method").says(&["vote"]);
    bob.fails(&["call", "lunch", "vote", "choise=soup"], 2, "object.argument").says(&["choice"]);
    vat.sleep();
    world.no_secret_leaked();
}

#[test]
fn the_stock_program_does_not_wake_an_object_that_it_was_not_built_with() {
    let world = World::new();
    let home = world.home("alice");
    let poll = home.with_program("poll");
    poll.new_vat("lunch", "poll");
    home.fails(&["run", "lunch", "--listen", "127.0.0.1:0"], 2, "vat.unknown_object").says(&["poll"]);
    // It was not harmed.
    let vat = poll.wake("lunch");
    assert_eq!((vat.epoch(), poll.vat(&["call", "lunch", "vote", "soup"]).ok().stdout.as_str()), (1, "votes: 1\n"));
    vat.sleep();
    world.no_secret_leaked();
}
