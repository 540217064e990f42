//! `vat demo`: the first thing that a newcomer types.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use acceptance::World;

#[test]
fn the_demo_shows_every_step_and_ends_well() {
    let world = World::new();
    let newcomer = world.home("newcomer");
    let done = newcomer.vat(&["demo"]).ok();
    for (number, step) in (1..).zip([
        "location server",
        "search path",
        "grants it to Bob",
        "nothing but the reference",
        "SIGKILL",
        "still knows",
        "location server gets SIGKILL",
        "Nothing on the disk",
        "Ctrl-C",
    ]) {
        let begin = format!("{number}. ");
        let said = done.stdout.lines().any(|line| line.starts_with(&begin) && line.contains(step));
        assert!(said, "step {number} tells of {step:?}: {done}");
    }
    for shown in ["vls://", "vat://", "add by=39: the counter stands at 42", "the counter stands at 43", "vls.no_dial"]
    {
        assert!(done.stdout.contains(shown), "{shown}: {done}");
    }
    assert_eq!(done.stderr, "", "{done}");
    assert!(!newcomer.path("").exists(), "the demo does not touch anybody's vats");
    let left = std::fs::read_dir(world.path("tmp")).unwrap().count();
    assert_eq!(left, 0, "the demo clears away what it made");
    world.no_secret_leaked();
}

#[test]
fn the_demo_for_programs_prints_one_object() {
    let world = World::new();
    let told = world.home("newcomer").json(&["demo"]);
    assert_eq!((&told["ok"], &told["total"]), (&true.into(), &43.into()), "{told}");
    world.no_secret_leaked();
}
