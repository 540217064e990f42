//! What must hold of every trace, whatever befell the hosts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use crate::{Event, Host, Outcome, Plan, Trace, What, plan::KEEP_ALIVE};

/// A law that a trace breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Breach {
    /// A call had more than one outcome.
    EndedTwice(u64),
    /// A call was answered after a caller had been told that its session is broken.
    AnsweredAfterTheBreak(u64),
    /// What waited in a session when it broke did not fail at one instant.
    NotTogether(u32),
    /// A session's calls that waited did not fail in the order in which they were made.
    OutOfOrder(u32),
    /// Calls waited in a session when it broke, and its holder was told before them, or never.
    HolderNotTold(u32),
    /// The holders of a session were not told of its end at one instant, each once and in their order.
    ToldOutOfOrder(u32),
    /// A call had no outcome although its caller lived to see the end.
    NeverEnded(u64),
    /// A call was carried out more than once, or without having been made.
    ExecutedWrongly(u64),
    /// The calls on one capability of a session were not carried out in the order in which they were made.
    ExecutedOutOfOrder(u32),
    /// A call on a capability that was known to be broken did not fail at once.
    SlowToFail(u64),
    /// A caller was told that a call succeeded, and the vat does not know of it.
    Forgotten(u64),
    /// The vat's durable state has a call twice.
    CountedTwice(u64),
    /// After the healing a caller got no answer for longer than one keep-alive.
    NotRecovered(Host),
    /// An epoch was used twice.
    EpochReused(u64),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Every law that `trace` breaks. `durable`: the calls in the vat's durable state when the run had ended, in its
/// order.
#[must_use]
pub fn judge(plan: &Plan, trace: &Trace, durable: &[u64]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let calls = Calls::of(trace, &mut breaches);
    calls.judge_breaks(trace, &mut breaches);
    calls.judge_execution(trace, durable, &mut breaches);
    judge_epochs(trace, &mut breaches);
    judge_recovery(plan, trace, &calls, &mut breaches);
    breaches
}

/// Where a call was made.
struct Made {
    session: u32,
    capability: u8,
    position: usize,
    at: Duration,
}

/// The calls of a trace.
struct Calls<'a> {
    /// By call, in the order in which they were made.
    made: BTreeMap<u64, Made>,
    /// By call.
    ended: HashMap<u64, &'a Outcome>,
}

impl<'a> Calls<'a> {
    fn of(trace: &'a Trace, breaches: &mut Vec<Breach>) -> Self {
        let (mut made, mut ended) = (BTreeMap::new(), HashMap::new());
        for (position, event) in trace.events.iter().enumerate() {
            match &event.what {
                What::Called { session, capability, call } => {
                    let (session, capability, at) = (*session, *capability, event.at);
                    made.insert(*call, Made { session, capability, position, at });
                }
                What::Ended { call, outcome, .. } => {
                    breaches.extend(ended.insert(*call, outcome).map(|_| Breach::EndedTwice(*call)));
                }
                _ => {}
            }
        }
        Self { made, ended }
    }

    /// Capabilities of a session break together, in order, after every answer, and the holder is told.
    fn judge_breaks(&self, trace: &Trace, breaches: &mut Vec<Breach>) {
        let mut broken: BTreeMap<u32, Break> = BTreeMap::new();
        let mut told: HashMap<u32, usize> = HashMap::new();
        let mut holders: BTreeMap<u32, Vec<(u8, Duration)>> = BTreeMap::new();
        let mut given_up: HashMap<u32, usize> = HashMap::new();
        for (position, event) in trace.events.iter().enumerate() {
            match &event.what {
                What::Ended { session, call, outcome: Outcome::Broken } => {
                    let state = broken.entry(*session).or_insert_with(|| Break::at(position, event));
                    let known = given_up.get(session).copied().unwrap_or(position).min(state.position);
                    match self.made.get(call) {
                        Some(made) if made.position < known => {
                            state.waiting.push((*call, event.at));
                            state.last_waiting = position;
                        }
                        Some(made) if made.at < event.at => breaches.push(Breach::SlowToFail(*call)),
                        _ => {}
                    }
                }
                What::Ended { session, call, outcome: Outcome::Answered } if broken.contains_key(session) => {
                    breaches.push(Breach::AnsweredAfterTheBreak(*call));
                }
                What::GaveUp { session } => {
                    given_up.insert(*session, position);
                }
                What::Broken { session, holder, .. } => {
                    told.entry(*session).or_insert(position);
                    holders.entry(*session).or_default().push((*holder, event.at));
                    broken.entry(*session).or_insert_with(|| Break::at(position, event));
                }
                _ => {}
            }
        }
        for (session, told) in &holders {
            let at_once = told.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 == pair[1].1);
            if !at_once {
                breaches.push(Breach::ToldOutOfOrder(*session));
            }
        }
        for (session, state) in &broken {
            if state.waiting.iter().any(|(_, at)| *at != state.at) {
                breaches.push(Breach::NotTogether(*session));
            }
            if !state.waiting.is_sorted() {
                breaches.push(Breach::OutOfOrder(*session));
            }
            if told.get(session).is_none_or(|told| *told < state.last_waiting) && !crashed_later(trace, state) {
                breaches.push(Breach::HolderNotTold(*session));
            }
        }
    }

    /// At most once, in order, and nothing that was told is forgotten.
    fn judge_execution(&self, trace: &Trace, durable: &[u64], breaches: &mut Vec<Breach>) {
        let mut executed = HashSet::new();
        let mut newest: HashMap<(u32, u8), u64> = HashMap::new();
        for event in &trace.events {
            let What::Executed { call } = &event.what else { continue };
            let Some(made) = self.made.get(call).filter(|_| executed.insert(*call)) else {
                breaches.push(Breach::ExecutedWrongly(*call));
                continue;
            };
            if newest.insert((made.session, made.capability), *call).is_some_and(|before| before > *call) {
                breaches.push(Breach::ExecutedOutOfOrder(made.session));
            }
        }
        let mut kept = HashSet::new();
        breaches.extend(durable.iter().filter(|call| !kept.insert(**call)).map(|call| Breach::CountedTwice(*call)));
        for (call, made) in &self.made {
            match self.ended.get(call) {
                Some(Outcome::Answered) if !kept.contains(call) => breaches.push(Breach::Forgotten(*call)),
                None if !crashed_after(trace, made.position) => breaches.push(Breach::NeverEnded(*call)),
                _ => {}
            }
        }
    }
}

/// How a session broke.
struct Break {
    at: Duration,
    position: usize,
    host: Host,
    /// The calls that waited, in the order in which they failed, with the time.
    waiting: Vec<(u64, Duration)>,
    last_waiting: usize,
}

impl Break {
    fn at(position: usize, event: &Event) -> Self {
        Self { at: event.at, position, host: event.host, waiting: Vec::new(), last_waiting: position }
    }
}

/// Whether the caller of a broken session died before it could be told.
fn crashed_later(trace: &Trace, state: &Break) -> bool {
    woke_after(trace, state.host, state.position)
}

/// Whether whoever is seen in an event died after it.
fn crashed_after(trace: &Trace, position: usize) -> bool {
    woke_after(trace, trace.events[position].host, position)
}

fn woke_after(trace: &Trace, host: Host, position: usize) -> bool {
    let is_wake = |event: &Event| event.host == host && matches!(event.what, What::Woke { .. });
    trace.events[position..].iter().any(is_wake)
}

/// Each start of a host's program has an epoch higher than all before.
fn judge_epochs(trace: &Trace, breaches: &mut Vec<Breach>) {
    let mut newest: HashMap<Host, u64> = HashMap::new();
    for event in &trace.events {
        if let What::Woke { epoch } = event.what
            && newest.insert(event.host, epoch).is_some_and(|before| before >= epoch)
        {
            breaches.push(Breach::EpochReused(epoch));
        }
    }
}

/// Within one keep-alive after the healing every caller has an answer to a call that it made after it.
fn judge_recovery(plan: &Plan, trace: &Trace, calls: &Calls<'_>, breaches: &mut Vec<Breach>) {
    let mut hosts: Vec<Host> = calls.made.values().map(|made| trace.events[made.position].host).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let deadline = plan.healed_at + KEEP_ALIVE;
    for host in hosts {
        let recovered = trace.events.iter().any(|event| {
            let What::Ended { call, outcome: Outcome::Answered, .. } = &event.what else { return false };
            let is_new = calls.made.get(call).is_some_and(|made| made.at >= plan.healed_at);
            event.host == host && event.at <= deadline && is_new
        });
        if !recovered {
            breaches.push(Breach::NotRecovered(host));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Host = Host::Caller(0);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Session 1 has two answers and breaks with two calls waiting; session 2 goes on after the healing.
    fn lawful() -> (Plan, Trace, Vec<u64>) {
        let plan = Plan { healed_at: seconds(20), ..Plan::quiet(0, Vec::new()) };
        let mut trace = Trace::default();
        let mut see = |at: u64, what| trace.push(seconds(at), CALLER, what);
        see(0, What::Woke { epoch: 1 });
        see(0, What::Began { session: 1, epoch: 1 });
        for call in 1..=4 {
            see(1, What::Called { session: 1, capability: 0, call });
        }
        for call in 1..=3 {
            see(1, What::Executed { call });
        }
        for call in 1..=2 {
            see(2, What::Ended { session: 1, call, outcome: Outcome::Answered });
        }
        for call in 3..=4 {
            see(9, What::Ended { session: 1, call, outcome: Outcome::Broken });
        }
        for holder in 0..2 {
            see(9, What::Broken { session: 1, holder, code: "session.closed".to_owned() });
        }
        see(10, What::Began { session: 2, epoch: 1 });
        let healed_at = 20;
        see(healed_at, What::Called { session: 2, capability: 0, call: 5 });
        see(healed_at, What::Executed { call: 5 });
        see(healed_at + 1, What::Ended { session: 2, call: 5, outcome: Outcome::Answered });
        (plan, trace, vec![1, 2, 3, 5])
    }

    /// What is said of the lawful run after `alter` has made it unlawful.
    fn breaches(alter: impl FnOnce(&mut Vec<Event>, &mut Vec<u64>)) -> Vec<Breach> {
        let (plan, mut trace, mut durable) = lawful();
        alter(&mut trace.events, &mut durable);
        judge(&plan, &trace, &durable)
    }

    fn position(events: &[Event], is: impl Fn(&What) -> bool) -> usize {
        events.iter().position(|event| is(&event.what)).unwrap()
    }

    fn end_of(number: u64) -> impl Fn(&What) -> bool {
        move |what| matches!(what, What::Ended { call, .. } if *call == number)
    }

    #[test]
    fn a_lawful_run_passes() {
        assert_eq!(breaches(|_, _| {}), []);
    }

    #[test]
    fn a_second_answer_is_seen() {
        let found = breaches(|events, _| {
            let first = position(events, end_of(1));
            events.insert(first + 1, events[first].clone());
        });
        assert_eq!(found, [Breach::EndedTwice(1)]);
    }

    #[test]
    fn an_answer_after_the_break_is_seen() {
        let found = breaches(|events, _| {
            let answer = events.remove(position(events, end_of(2)));
            let told = position(events, |what| matches!(what, What::Broken { .. }));
            events.insert(told + 2, Event { at: seconds(9), ..answer });
        });
        assert_eq!(found, [Breach::AnsweredAfterTheBreak(2)]);
    }

    #[test]
    fn a_break_in_two_steps_is_seen() {
        let found = breaches(|events, _| {
            let last = position(events, end_of(4));
            events[last..last + 3].iter_mut().for_each(|event| event.at += Duration::from_millis(1));
        });
        assert_eq!(found, [Breach::NotTogether(1)]);
    }

    #[test]
    fn a_call_on_a_broken_capability_that_fails_late_is_seen() {
        let found = breaches(|events, _| {
            let told = position(events, |what| matches!(what, What::Broken { .. }));
            let see = |at, what| Event { at: seconds(at), host: CALLER, what };
            let end = What::Ended { session: 1, call: 6, outcome: Outcome::Broken };
            events.insert(told + 2, see(10, end));
            events.insert(told + 2, see(9, What::Called { session: 1, capability: 0, call: 6 }));
        });
        assert_eq!(found, [Breach::SlowToFail(6)]);
    }

    #[test]
    fn a_break_out_of_order_is_seen() {
        let found = breaches(|events, _| {
            let third = position(events, end_of(3));
            events.swap(third, third + 1);
        });
        assert_eq!(found, [Breach::OutOfOrder(1)]);
    }

    #[test]
    fn a_holder_that_is_told_too_early_or_never_is_seen() {
        let told = |events: &[Event]| position(events, |what| matches!(what, What::Broken { .. }));
        let early = breaches(|events, _| {
            let told = told(events);
            events.swap(told, told - 1);
        });
        assert!(early.contains(&Breach::HolderNotTold(1)), "{early:?}");
        let never = breaches(|events, _| {
            let told = told(events);
            events.drain(told..told + 2);
        });
        assert_eq!(never, [Breach::HolderNotTold(1)]);
    }

    #[test]
    fn holders_that_are_told_twice_or_out_of_order_or_apart_are_seen() {
        let alterations: [fn(&mut Vec<Event>, usize); 3] = [
            |events, told| events.swap(told, told + 1),
            |events, told| events.insert(told, events[told].clone()),
            |events, told| events[told + 1].at += Duration::from_millis(1),
        ];
        for alter in alterations {
            let found = breaches(|events, _| {
                let told = position(events, |what| matches!(what, What::Broken { .. }));
                alter(events, told);
            });
            assert_eq!(found, [Breach::ToldOutOfOrder(1)]);
        }
    }

    #[test]
    fn a_call_without_an_end_is_seen_unless_its_caller_died() {
        let alter = |events: &mut Vec<Event>| {
            let third = position(events, end_of(3));
            events.remove(third);
        };
        assert_eq!(breaches(|events, _| alter(events)), [Breach::NeverEnded(3)]);
        let died = breaches(|events, _| {
            alter(events);
            let woke = Event { at: seconds(9), host: CALLER, what: What::Woke { epoch: 2 } };
            let began = position(events, |what| matches!(what, What::Began { session: 2, .. }));
            events.insert(began, woke);
        });
        assert_eq!(died, []);
    }

    #[test]
    fn a_call_that_is_carried_out_twice_or_unasked_or_out_of_order_is_seen() {
        let executed = |events: &[Event]| position(events, |what| matches!(what, What::Executed { call: 1 }));
        let twice = breaches(|events, _| {
            let first = executed(events);
            events.insert(first, events[first].clone());
        });
        assert_eq!(twice, [Breach::ExecutedWrongly(1)]);
        let unasked = breaches(|events, _| {
            let first = executed(events);
            events.insert(first, Event { what: What::Executed { call: 77 }, ..events[first].clone() });
        });
        assert_eq!(unasked, [Breach::ExecutedWrongly(77)]);
        let disordered = breaches(|events, _| {
            let first = executed(events);
            events.swap(first, first + 1);
        });
        assert_eq!(disordered, [Breach::ExecutedOutOfOrder(1)]);
    }

    #[test]
    fn a_success_that_the_vat_forgot_or_counted_twice_is_seen() {
        assert_eq!(breaches(|_, durable| durable.retain(|call| *call != 2)), [Breach::Forgotten(2)]);
        assert_eq!(breaches(|_, durable| durable.push(3)), [Breach::CountedTwice(3)]);
    }

    #[test]
    fn a_late_recovery_and_an_epoch_that_is_used_again_are_seen() {
        let late = breaches(|events, _| {
            let last = position(events, end_of(5));
            events[last].at += seconds(60);
        });
        assert_eq!(late, [Breach::NotRecovered(CALLER)]);
        let again = breaches(|events, _| {
            let woke = Event { at: seconds(40), host: CALLER, what: What::Woke { epoch: 1 } };
            events.push(woke);
        });
        assert_eq!(again, [Breach::EpochReused(1)]);
    }
}
