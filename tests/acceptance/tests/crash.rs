//! No acknowledged call is lost and none is counted twice, however often the vat is killed.
//!
//! The calls come from this process, over several sessions with many calls under way each, so that SIGKILL
//! hits groups of turns while they are written. The check runs here, outside the vat's process: every call adds
//! another amount, and every answer says the total after its call, so each answered call occupies an interval of
//! the number line, which nobody else may touch. Besides, somebody who changes nothing looks on, and asks for the total all
//! the time: what they have seen, the vat must never have forgotten.
//!
//! `VAT_TEST_SEED` repeats the choices of a failed run; `VAT_TEST_QUICK=1` does fewer rounds. The test that kills a vat
//! for a whole minute is run with `cargo test -p acceptance --test crash -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use acceptance::{Awake, Home, Random, World};
use schemas::{IdentityKey, SturdyRef, objects_capnp::counter, vat_capnp};
use tokio::{
    sync::{Notify, oneshot},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};
use transport::{Endpoint, Greeting, OutputGate, Session, SessionLimits, SessionOptions};

const ROUNDS: u64 = 50;
const QUICK_ROUNDS: u64 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// Answered calls per round, on average.
const CALLS: u64 = 20;

const SESSIONS: usize = 3;
const CALLS_UNDER_WAY: usize = 8;
/// Amounts are so large that no two sums of some of them are equal by chance.
const LARGEST: u64 = 1 << 40;

/// The longest random wait before a kill: a few commits of a usual disk.
const LATEST_KILL: Duration = Duration::from_millis(4);
/// The same for a vat that is waking.
const LATEST_WAKING_KILL: Duration = Duration::from_millis(120);
/// How long answers are read that the vat had sent before it died. More would only find more of them.
const LAST_ANSWERS: Duration = Duration::from_millis(5);
/// A safety net: a vat that lives answers, and one that was killed is gone.
const LIMIT: Duration = Duration::from_secs(60);

/// One call that was sent.
#[derive(Debug, Clone, Copy)]
struct Call {
    amount: u64,
    /// The total after it, if it was answered.
    answer: Option<u64>,
}

/// The calls of one round, per session in the order in which they were sent.
#[derive(Debug, Clone, Default)]
struct Round {
    /// The total before the first call.
    begin: u64,
    /// How often somebody else asked for the total, and the highest one that they were told.
    looks: u64,
    seen: u64,
    /// They were told of less than before.
    went_back: bool,
    sessions: [Vec<Call>; SESSIONS],
}

impl Round {
    fn calls(&self) -> impl Iterator<Item = &Call> {
        self.sessions.iter().flatten()
    }

    fn answered(&self) -> u64 {
        self.calls().filter(|call| call.answer.is_some()).count() as u64
    }

    /// Checks the total that the vat had when it was awake again. Returns how many calls were carried out
    /// although their answer was never heard.
    fn check(&self, end: u64) -> Result<usize, String> {
        let mut intervals: Vec<(u64, u64)> =
            self.calls().filter_map(|call| call.answer.map(|total| (total.wrapping_sub(call.amount), total))).collect();
        intervals.sort_unstable();
        let mut from = self.begin;
        for (before, after) in &intervals {
            if *before < from || after < before {
                return Err(format!("an answered call says {before} -> {after}, but {from} was reached before it"));
            }
            from = *after;
        }
        if self.went_back {
            return Err("somebody was told of a total, and then of a lower one".to_owned());
        }
        if self.seen > end {
            return Err(format!("somebody was told of {} and the total is now {end}: it was forgotten", self.seen));
        }
        if from > end {
            return Err(format!("the total was acknowledged as {from} and is now {end}: an answered call is lost"));
        }
        // Calls of one session are carried out in the order in which they were sent, so those without an answer
        // that were carried out come first among their like.
        let answered: u64 = intervals.iter().map(|(before, after)| after - before).sum();
        let unheard: Vec<Vec<u64>> = self.sessions.iter().map(|calls| sums_of_unanswered(calls)).collect();
        let mut ways = vec![(0, 0)];
        for sums in &unheard {
            ways = ways
                .iter()
                .flat_map(|(count, sum)| sums.iter().enumerate().map(move |(more, add)| (count + more, sum + add)))
                .collect();
        }
        let found = ways.iter().find(|(_, sum)| self.begin + answered + sum == end);
        found.map(|(count, _)| *count).ok_or_else(|| {
            format!(
                "the total went from {} to {end}; answered calls make {answered}, and no beginning of the others \
                 makes the rest",
                self.begin
            )
        })
    }
}

/// What the first 0, 1, 2, … calls without an answer add up to.
fn sums_of_unanswered(calls: &[Call]) -> Vec<u64> {
    let amounts = calls.iter().filter(|call| call.answer.is_none()).map(|call| call.amount);
    [0].into_iter()
        .chain(amounts.scan(0, |sum, amount| {
            *sum += amount;
            Some(*sum)
        }))
        .collect()
}

/// What all callers of a round share.
struct Shared {
    round: RefCell<Round>,
    random: RefCell<Random>,
    /// Answered calls after which the vat is killed.
    enough: u64,
    reached: Notify,
}

#[test]
fn no_acknowledged_call_is_lost_and_none_is_counted_twice() {
    let rounds = if std::env::var_os("VAT_TEST_QUICK").is_some() { QUICK_ROUNDS } else { ROUNDS };
    let counts = kill_again_and_again(Length::Rounds(rounds));
    assert!(counts.answered >= rounds * CALLS && counts.looks > rounds);
}

#[test]
#[ignore = "takes a minute"]
fn for_a_minute_of_kills_nothing_that_was_observed_is_forgotten() {
    let counts = kill_again_and_again(Length::Time(MINUTE));
    assert!(counts.answered > ROUNDS * CALLS && counts.looks > ROUNDS);
}

/// How long a vat is killed again and again.
#[derive(Clone, Copy)]
enum Length {
    Rounds(u64),
    Time(Duration),
}

impl Length {
    fn is_over(self, rounds: u64, begun: Instant) -> bool {
        match self {
            Self::Rounds(all) => rounds == all,
            Self::Time(time) => begun.elapsed() >= time,
        }
    }

    /// How many calls shall be answered in this round, where so many were answered before it.
    fn calls(self, number: u64, answered: u64, random: &mut Random) -> u64 {
        match self {
            Self::Time(_) => random.below(2 * CALLS + 1),
            Self::Rounds(all) => {
                let left = (all * CALLS).saturating_sub(answered);
                if number == all { left } else { random.below(2 * left / (all - number + 1) + 1) }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    /// Calls that were answered.
    answered: u64,
    /// Calls that were carried out although nobody heard their answer.
    unheard: usize,
    /// Answers to somebody who only looks.
    looks: u64,
}

/// Kills a vat that is called and looked at, and checks after each time that it has kept every promise.
#[allow(clippy::print_stdout)] // Part of tests, of which the seed has to be known.
fn kill_again_and_again(length: Length) -> Counts {
    let world = World::new();
    let server = world.location_server("server");
    let alice = world.home("alice");
    alice.add_server(server.entry());
    alice.new_vat("tally", "counter");
    let reference: SturdyRef = alice.share("tally", &[]).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    let mut random = Random::from_environment();
    println!("VAT_TEST_SEED={}", random.seed());
    let (mut previous, mut counts, mut epoch, begun) = (None::<Round>, Counts::default(), 0, Instant::now());
    while !length.is_over(counts.rounds, begun) {
        counts.rounds += 1;
        if random.below(4) == 0 {
            kill_while_it_wakes(&alice, &mut random);
        }
        let vat = alice.wake("tally");
        assert!(vat.epoch() > epoch, "each start is a higher epoch");
        epoch = vat.epoch();
        let enough = length.calls(counts.rounds, counts.answered, &mut random);
        let round = LocalSet::new().block_on(&runtime, play(&reference, vat, enough, &mut random));
        if let Some(previous) = previous {
            counts.unheard += check(&previous, round.begin, counts.rounds - 1, &random);
        }
        counts.answered += round.answered();
        counts.looks += round.looks;
        previous = Some(round);
    }
    let vat = alice.wake("tally");
    let total = alice.json(&["call", "tally", "get"])["total"].clone();
    // Beyond 2^53, where not every reader of JSON is exact, it is a text.
    let total = total.as_u64().or_else(|| total.as_str()?.parse().ok()).unwrap();
    counts.unheard += check(&previous.unwrap(), total, counts.rounds, &random);
    vat.sleep();
    println!("{counts:?} in {} s", begun.elapsed().as_secs());
    world.no_secret_leaked();
    counts
}

#[track_caller]
fn check(round: &Round, end: u64, number: u64, random: &Random) -> usize {
    round.check(end).unwrap_or_else(|problem| {
        panic!("round {number}, VAT_TEST_SEED={}: {problem}\n{:#?}", random.seed(), round.sessions)
    })
}

fn kill_while_it_wakes(alice: &Home<'_>, random: &mut Random) {
    let process = alice.start(&["--json", "run", "tally", "--listen", "127.0.0.1:0"]);
    let delay = random_time(random, LATEST_WAKING_KILL);
    thread::sleep(delay); // a random moment
    process.kill();
}

fn random_time(random: &mut Random, latest: Duration) -> Duration {
    Duration::from_micros(random.below(u64::try_from(latest.as_micros()).unwrap()))
}

/// Calls a vat until it has answered often enough, kills it in the middle of more, and returns what was heard.
async fn play(reference: &SturdyRef, vat: Awake, enough: u64, random: &mut Random) -> Round {
    let address: SocketAddr = vat.address().parse().unwrap();
    let delay = random_time(random, LATEST_KILL);
    let endpoint = Endpoint::client(&IdentityKey::generate().unwrap()).unwrap();
    let mut sessions = Vec::new();
    for _ in 0..=SESSIONS {
        sessions.push(timeout(LIMIT, connect(&endpoint, reference, address)).await.expect("a session"));
    }
    let begin = timeout(LIMIT, sessions[0].1.get_request().send().promise).await.expect("an answer").unwrap();
    let begin = begin.get().unwrap().get_total();
    let shared = Rc::new(Shared {
        round: RefCell::new(Round { begin, ..Round::default() }),
        random: RefCell::new(random.clone()),
        enough,
        reached: Notify::new(),
    });
    if enough == 0 {
        shared.reached.notify_one();
    }
    let (_, looked_at) = &sessions[SESSIONS];
    spawn_local(look(shared.clone(), looked_at.clone()));
    for (number, (_, counter)) in sessions[..SESSIONS].iter().enumerate() {
        for _ in 0..CALLS_UNDER_WAY {
            spawn_local(call(shared.clone(), number, counter.clone()));
        }
    }
    timeout(LIMIT, shared.reached.notified()).await.expect("enough answers");
    let (killed, gone) = oneshot::channel();
    thread::spawn(move || {
        thread::sleep(delay); // a random moment
        vat.kill();
        killed.send(()).expect("the test waits for it");
    });
    timeout(LIMIT, gone).await.expect("a killed process ends").expect("the vat was still alive");
    sleep(LAST_ANSWERS).await;
    random.clone_from(&shared.random.borrow());
    shared.round.borrow().clone()
}

/// One caller: a call after the other, until the session breaks.
async fn call(shared: Rc<Shared>, session: usize, counter: counter::Client) {
    loop {
        let amount = 1 + shared.random.borrow_mut().below(LARGEST);
        let mut request = counter.add_request();
        request.get().set_by(amount);
        let answer = request.send().promise;
        let number = {
            let calls = &mut shared.round.borrow_mut().sessions[session];
            calls.push(Call { amount, answer: None });
            calls.len() - 1
        };
        let Ok(answer) = answer.await else { return };
        let total = answer.get().unwrap().get_total();
        shared.round.borrow_mut().sessions[session][number].answer = Some(total);
        if shared.round.borrow().answered() == shared.enough {
            shared.reached.notify_one();
        }
    }
}

/// Somebody who changes nothing, over a session of their own: asks for the total until that breaks.
async fn look(shared: Rc<Shared>, counter: counter::Client) {
    while let Ok(answer) = counter.get_request().send().promise.await {
        let total = answer.get().unwrap().get_total();
        let mut round = shared.round.borrow_mut();
        round.looks += 1;
        round.went_back |= total < round.seen;
        round.seen = total;
    }
}

async fn connect(endpoint: &Endpoint, reference: &SturdyRef, address: SocketAddr) -> (Session, counter::Client) {
    let connection = endpoint.dial(reference.id, address, LIMIT).await.unwrap();
    let options = SessionOptions {
        greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "acceptance".to_owned() },
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    };
    let session = Session::open(connection, options).await.unwrap();
    let vat: vat_capnp::vat::Client = session.bootstrap();
    let mut request = vat.restore_request();
    request.get().set_secret(reference.secret.expose());
    let restored = request.send().promise.await.unwrap();
    let counter = restored.get().unwrap().get_capability().get_as_capability().unwrap();
    (session, counter)
}

#[test]
fn the_check_itself_finds_what_must_not_be() {
    let call = |amount, answer| Call { amount, answer };
    let round =
        |calls: &[Call]| Round { begin: 10, sessions: [calls.to_vec(), Vec::new(), Vec::new()], ..Round::default() };
    let good = round(&[call(5, Some(15)), call(7, Some(22)), call(100, None), call(1000, None)]);
    assert_eq!(good.check(22), Ok(0));
    assert_eq!(good.check(122), Ok(1));
    assert_eq!(good.check(1122), Ok(2));
    assert!(good.check(15).is_err(), "an answered call is lost");
    let seen = Round { seen: 123, ..good.clone() };
    assert!(seen.check(122).is_err() && seen.check(1122).is_ok(), "what somebody was told of is forgotten");
    assert!(good.check(27).is_err(), "an answered call counts twice");
    assert!(good.check(222).is_err(), "an unanswered call counts twice");
    assert!(good.check(1022).is_err(), "a later call was carried out and an earlier one was not");
    assert!(round(&[call(5, Some(15)), call(5, Some(15))]).check(20).is_err(), "two answers for one interval");
    assert!(round(&[call(5, Some(12))]).check(15).is_err(), "the total went back before the round");
}
