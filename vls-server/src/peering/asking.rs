//! Which peers a question goes to, and when enough has been heard.

use std::{collections::HashMap, time::Duration};

use super::{PeerNumber, Question, Share, recent::Recent};
use crate::limits;

/// The questions that are under way, and what is known of the peers.
#[derive(Debug)]
pub(crate) struct Asking {
    /// For how long a question of a finder is asked.
    deadline: Duration,
    /// Until when each peer is asked last.
    last_until: Vec<Duration>,
    flights: HashMap<Question, Flight>,
    recent: Recent,
    /// What was looked up in the DHT.
    looked_up: Recent,
    /// Lookups there that are under way.
    lookups: usize,
}

/// A question that is under way.
#[derive(Debug)]
struct Flight {
    /// To be asked at once, and when that has led to nothing.
    first: Vec<PeerNumber>,
    last: Vec<PeerNumber>,
    /// Those who were asked and have not been heard.
    unheard: Vec<PeerNumber>,
    /// Those among them for whom nobody waits.
    unawaited: Vec<PeerNumber>,
    /// Whether peers are asked at all.
    asks_peers: bool,
    dht: Lookup,
    has_found: bool,
}

/// How far the lookup in the DHT is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// There is none.
    Spared,
    /// It comes when peers have led to nothing.
    Waiting,
    UnderWay,
    Over,
}

impl Flight {
    fn awaits_a_peer(&self) -> bool {
        self.unheard.iter().any(|unheard| !self.unawaited.contains(unheard))
    }
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Nobody is to be asked: what is held is the answer.
    Nobody,
    /// The same question is under way.
    Joined,
    /// It is to be carried out by who asked, by way of [`Asking::step`].
    Started,
}

/// What a peer's answer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A record whose lease has not ended.
    Live,
    /// Nothing that is of use.
    Nothing,
    /// Something that it ought to have known to be wrong.
    Lie,
    /// It did not answer in time, or is not to be reached.
    Failure,
}

/// What to do next for a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Whom to ask.
    pub(crate) ask: Vec<PeerNumber>,
    /// To look it up in the DHT as well.
    pub(crate) look_up: bool,
    /// When to come again although nobody has answered, in time since the question began.
    pub(crate) wake: Duration,
    /// Who waits needs to wait no longer.
    pub(crate) is_answered: bool,
    /// Nothing more will be heard.
    pub(crate) is_over: bool,
}

impl Asking {
    /// With so many peers, which are asked for `deadline` before a finder is answered.
    pub(crate) fn new(peers: usize, deadline: Duration) -> Self {
        let [recent, looked_up] = [(); 2].map(|()| Recent::new(limits::RECENT_QUESTIONS));
        let last_until = vec![Duration::ZERO; peers];
        Self { deadline, last_until, flights: HashMap::new(), recent, looked_up, lookups: 0 }
    }

    /// Goes by another deadline from now on.
    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Somebody asks for what is not held. `asker` is not asked. The DHT is, if `has_dht`, for who asks this server himself.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        question: Question,
        asker: Option<PeerNumber>,
        share: Share,
        has_dht: bool,
    ) -> Begun {
        if question.hops >= limits::MOST_HOPS {
            return Begun::Nobody;
        }
        if self.flights.contains_key(&question) {
            return Begun::Joined;
        }
        let asks_peers = !self.recent.covers(question, now);
        let others = (0..self.last_until.len()).filter(|peer| asks_peers && Some(*peer) != asker);
        let (first, last): (Vec<_>, Vec<_>) = others.partition(|peer| self.last_until[*peer] <= now);
        let asks_peers = !first.is_empty() || !last.is_empty();
        let looks_up =
            has_dht && question.hops == 0 && self.lookups < share.lookups() && !self.looked_up.covers(question, now);
        if self.flights.len() >= share.questions() || !asks_peers && !looks_up {
            return Begun::Nobody;
        }
        // Where nobody is better, those are waited for who are asked last.
        let unawaited = if first.is_empty() { Vec::new() } else { last.clone() };
        let dht = if looks_up { Lookup::Waiting } else { Lookup::Spared };
        self.lookups += usize::from(looks_up);
        let flight = Flight { first, last, unheard: Vec::new(), unawaited, asks_peers, dht, has_found: false };
        self.flights.insert(question, flight);
        Begun::Started
    }

    /// Keeps it from the DHT, as if that were not there.
    pub(crate) fn spare_dht(&mut self, question: Question) {
        if let Some(flight) = self.flights.get_mut(&question)
            && flight.dht != Lookup::Spared
        {
            flight.dht = Lookup::Spared;
            self.lookups -= 1;
        }
    }

    /// What to do next, `elapsed` after the question began.
    pub(crate) fn step(&mut self, question: Question, elapsed: Duration) -> Step {
        let deadline = self.deadline(question.hops);
        let Some(flight) = self.flights.get_mut(&question) else {
            return Step { ask: Vec::new(), look_up: false, wake: deadline, is_answered: true, is_over: true };
        };
        let (is_late, second) = (elapsed >= deadline, deadline / limits::SECOND_WAVE_PART);
        let mut ask = std::mem::take(&mut flight.first);
        let goes_on = ask.is_empty() && !flight.has_found && (elapsed >= second || !flight.awaits_a_peer());
        if goes_on {
            ask = std::mem::take(&mut flight.last);
        }
        let look_up = goes_on && !is_late && flight.dht == Lookup::Waiting;
        if look_up {
            flight.dht = Lookup::UnderWay;
        }
        if is_late {
            ask.clear();
        }
        flight.unheard.extend(&ask);
        let looks_up = flight.dht == Lookup::UnderWay && elapsed < limits::DHT_DEADLINE;
        let is_to_look_up = flight.dht == Lookup::Waiting && !flight.has_found && !is_late;
        let is_over = (is_late || flight.unheard.is_empty()) && !looks_up && !is_to_look_up;
        let has_more = !flight.last.is_empty() || is_to_look_up;
        let wake = match () {
            () if is_late => limits::DHT_DEADLINE,
            () if has_more && !flight.has_found => second,
            () => deadline,
        };
        let is_awaited = flight.awaits_a_peer() || looks_up || is_to_look_up;
        let is_answered = is_over || is_late || flight.has_found || !is_awaited;
        Step { ask, look_up, wake, is_answered, is_over }
    }

    /// The DHT has been heard.
    pub(crate) fn heard_dht(&mut self, question: Question, heard: Heard) {
        if let Some(flight) = self.flights.get_mut(&question) {
            flight.dht = Lookup::Over;
            flight.has_found |= heard == Heard::Live;
        }
    }

    /// One of those who were asked has been heard.
    pub(crate) fn heard(&mut self, now: Duration, question: Question, peer: PeerNumber, heard: Heard) {
        self.ask_last(now, peer, heard);
        if let Some(flight) = self.flights.get_mut(&question) {
            flight.unheard.retain(|unheard| *unheard != peer);
            flight.has_found |= heard == Heard::Live;
        }
    }

    fn ask_last(&mut self, now: Duration, peer: PeerNumber, heard: Heard) {
        let penalty = match heard {
            Heard::Live | Heard::Nothing => return,
            Heard::Failure => limits::FAILED_PEER,
            Heard::Lie => limits::LYING_PEER,
        };
        if let Some(until) = self.last_until.get_mut(peer) {
            *until = (*until).max(now + penalty);
        }
    }

    /// Takes back what was begun, as if nobody had asked.
    pub(crate) fn take_back(&mut self, question: Question) {
        let flight = self.flights.remove(&question);
        self.lookups -= usize::from(flight.is_some_and(|flight| flight.dht != Lookup::Spared));
    }

    /// Ends a question; those who were not heard did not answer in time.
    pub(crate) fn end(&mut self, now: Duration, question: Question) {
        let Some(flight) = self.flights.remove(&question) else { return };
        let again = |unknown| now + if flight.has_found { limits::CONFIRMED } else { unknown };
        if flight.asks_peers {
            self.recent.note(question, again(limits::UNKNOWN));
        }
        if matches!(flight.dht, Lookup::UnderWay | Lookup::Over) {
            self.looked_up.note(question, again(limits::DHT_UNKNOWN));
        }
        self.lookups -= usize::from(flight.dht != Lookup::Spared);
        for peer in flight.unheard {
            self.ask_last(now, peer, Heard::Failure);
        }
    }

    /// For how long a question is asked: what has come further must be answered earlier, or nobody would hear it.
    fn deadline(&self, hops: u8) -> Duration {
        self.deadline / (u32::from(hops) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: Duration = Duration::from_secs(1000);

    fn question(n: u8, hops: u8) -> Question {
        Question { id: [n; 32], hops }
    }

    /// Begins a question and says whom it goes to first.
    fn begin(asking: &mut Asking, now: Duration, question: Question) -> Vec<PeerNumber> {
        assert_eq!(asking.begin(now, question, None, Share::Whole, false), Begun::Started);
        asking.step(question, Duration::ZERO).ask
    }

    #[test]
    fn all_are_asked_at_once_and_the_first_live_record_answers_while_the_others_are_still_heard() {
        let mut asking = Asking::new(3, SECOND);
        let question = question(1, 0);
        assert_eq!(begin(&mut asking, NOW, question), [0, 1, 2]);
        asking.heard(NOW, question, 1, Heard::Nothing);
        let step = asking.step(question, SECOND / 10);
        assert!(step.ask.is_empty() && !step.is_answered && !step.is_over);
        asking.heard(NOW, question, 2, Heard::Live);
        let step = asking.step(question, SECOND / 10);
        assert!(step.is_answered && !step.is_over, "a higher record may still come");
        asking.heard(NOW, question, 0, Heard::Nothing);
        assert!(asking.step(question, SECOND / 10).is_over);
    }

    #[test]
    fn a_question_goes_no_further_than_it_may_and_not_back_to_who_asked() {
        let mut asking = Asking::new(2, SECOND);
        assert_eq!(asking.begin(NOW, question(1, limits::MOST_HOPS), None, Share::Whole, false), Begun::Nobody);
        assert_eq!(asking.begin(NOW, question(1, 255), None, Share::Whole, false), Begun::Nobody);
        let near = question(1, limits::MOST_HOPS - 1);
        assert_eq!(asking.begin(NOW, near, Some(1), Share::Whole, false), Begun::Started);
        assert_eq!(asking.step(near, Duration::ZERO).ask, [0]);
        // Who is followed by nobody but the asker has nobody to ask.
        assert_eq!(Asking::new(1, SECOND).begin(NOW, near, Some(0), Share::Whole, false), Begun::Nobody);
    }

    #[test]
    fn the_same_question_is_asked_once_and_questions_wait_only_for_such_as_have_come_as_far() {
        let mut asking = Asking::new(1, SECOND);
        assert_eq!(asking.begin(NOW, question(1, 0), None, Share::Whole, false), Begun::Started);
        assert_eq!(asking.begin(NOW, question(1, 0), None, Share::Whole, false), Begun::Joined);
        // That of the peer: were it to wait for the first, and the peer's for ours, both would wait for ever.
        assert_eq!(asking.begin(NOW, question(1, 1), None, Share::Whole, false), Begun::Started);
    }

    #[test]
    fn what_nobody_knows_is_asked_again_after_a_few_seconds_and_what_was_found_later() {
        for (heard, again) in [(Heard::Nothing, limits::UNKNOWN), (Heard::Live, limits::CONFIRMED)] {
            let mut asking = Asking::new(1, SECOND);
            let question = question(1, 0);
            begin(&mut asking, NOW, question);
            asking.heard(NOW, question, 0, heard);
            asking.end(NOW, question);
            let before = NOW + again - Duration::from_micros(1);
            assert_eq!(asking.begin(before, question, None, Share::Whole, false), Begun::Nobody);
            assert_eq!(asking.begin(NOW + again, question, None, Share::Whole, false), Begun::Started);
        }
    }

    #[test]
    fn who_lies_or_fails_is_asked_last_for_a_while() {
        for (heard, penalty) in [(Heard::Lie, limits::LYING_PEER), (Heard::Failure, limits::FAILED_PEER)] {
            let mut asking = Asking::new(2, SECOND);
            begin(&mut asking, NOW, question(1, 0));
            asking.heard(NOW, question(1, 0), 0, heard);
            assert_eq!(begin(&mut asking, NOW, question(2, 0)), [1]);
            // It comes after the others, when these know nothing, and nobody waits for it,
            asking.heard(NOW, question(2, 0), 1, Heard::Nothing);
            let step = asking.step(question(2, 0), SECOND / 100);
            assert!(step.ask == [0] && step.is_answered && !step.is_over, "{step:?}");
            // or are slow,
            assert_eq!(begin(&mut asking, NOW, question(3, 0)), [1]);
            let early = asking.step(question(3, 0), SECOND / 100);
            assert!(early.ask.is_empty() && early.wake < asking.deadline(0));
            assert_eq!(asking.step(question(3, 0), early.wake).ask, [0]);
            // and not at all when one of them has found it.
            begin(&mut asking, NOW, question(4, 0));
            asking.heard(NOW, question(4, 0), 1, Heard::Live);
            assert!(asking.step(question(4, 0), SECOND).is_over);
            assert_eq!(begin(&mut asking, NOW + penalty, question(5, 0)), [0, 1]);
        }
    }

    #[test]
    fn a_question_ends_at_its_deadline_and_one_that_has_come_further_earlier() {
        let mut asking = Asking::new(1, SECOND);
        for hops in 0..limits::MOST_HOPS {
            let question = question(1 + hops, hops);
            assert_eq!(asking.begin(NOW, question, None, Share::Whole, false), Begun::Started);
            // The second time it is one that did not answer in time, which is asked last; here there is no other.
            assert_eq!(asking.step(question, Duration::ZERO).ask, [0]);
            let wake = asking.step(question, Duration::ZERO).wake;
            assert_eq!(wake, asking.deadline(hops));
            assert!(asking.step(question, wake).is_over);
            asking.end(NOW, question);
            assert!(asking.deadline(hops + 1) < wake);
        }
    }

    #[test]
    fn no_more_questions_are_under_way_than_there_is_room_for_and_fewer_for_who_may_be_invented() {
        let mut asking = Asking::new(1, SECOND);
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            Question { id, hops: 0 }
        };
        for n in 0..limits::PEER_QUESTIONS {
            let begun = |share| if share { Begun::Started } else { Begun::Nobody };
            assert_eq!(
                asking.begin(NOW, id(1_000 + n), None, Share::Part, false),
                begun(n < limits::PEER_QUESTIONS_BESIDE)
            );
            asking.take_back(id(1_000 + n));
            assert_eq!(asking.begin(NOW, id(n), None, Share::Whole, false), Begun::Started);
        }
        assert_eq!(asking.begin(NOW, id(9_999), None, Share::Whole, false), Begun::Nobody);
        asking.end(NOW, id(1));
        assert_eq!(asking.begin(NOW, id(9_999), None, Share::Whole, false), Begun::Started);
    }

    #[test]
    fn the_dht_is_asked_when_peers_have_led_to_nothing_and_goes_on_when_nobody_waits_any_more() {
        let question = question(1, 0);
        // They know nothing, or are slow.
        for is_slow in [false, true] {
            let mut asking = Asking::new(1, SECOND);
            assert_eq!(asking.begin(NOW, question, None, Share::Whole, true), Begun::Started);
            let first = asking.step(question, Duration::ZERO);
            assert!(first.ask == [0] && !first.look_up && first.wake == SECOND / limits::SECOND_WAVE_PART);
            if !is_slow {
                asking.heard(NOW, question, 0, Heard::Nothing);
            }
            let second = asking.step(question, if is_slow { first.wake } else { Duration::ZERO });
            assert!(second.look_up && !second.is_answered && second.wake == SECOND, "{second:?}");
            let late = asking.step(question, SECOND);
            assert!(!late.look_up && late.is_answered && !late.is_over && late.wake == limits::DHT_DEADLINE);
            asking.heard_dht(question, Heard::Live);
            assert!(asking.step(question, 2 * SECOND).is_over);
            asking.end(NOW, question);
            assert_eq!(asking.lookups, 0);
        }
        // Not at all when one has found it.
        let mut asking = Asking::new(1, SECOND);
        assert_eq!(asking.begin(NOW, question, None, Share::Whole, true), Begun::Started);
        asking.step(question, Duration::ZERO);
        asking.heard(NOW, question, 0, Heard::Live);
        let step = asking.step(question, Duration::ZERO);
        assert!(!step.look_up && step.is_answered && step.is_over, "{step:?}");
    }

    #[test]
    fn the_dht_alone_is_asked_at_once_for_who_asks_here_and_given_up_in_the_end() {
        let mut asking = Asking::new(0, SECOND);
        assert_eq!(asking.begin(NOW, question(1, 1), None, Share::Whole, true), Begun::Nobody);
        let question = question(1, 0);
        assert_eq!(asking.begin(NOW, question, None, Share::Whole, true), Begun::Started);
        assert!(asking.step(question, Duration::ZERO).look_up);
        assert!(asking.step(question, limits::DHT_DEADLINE).is_over);
        asking.end(NOW, question);
        let again = NOW + limits::DHT_UNKNOWN;
        assert_eq!(asking.begin(again - SECOND / 1000, question, None, Share::Whole, true), Begun::Nobody);
        assert_eq!(asking.begin(again, question, None, Share::Whole, true), Begun::Started);
        assert!(asking.step(question, Duration::ZERO).look_up);
        asking.spare_dht(question);
        let step = asking.step(question, Duration::ZERO);
        assert!(step.is_over && !step.look_up, "nobody else is to be asked: {step:?}");
        asking.end(again, question);
        assert_eq!(asking.lookups, 0);
        assert_eq!(asking.begin(again, question, None, Share::Whole, true), Begun::Started, "it was as if not asked");
    }

    #[test]
    fn so_many_lookups_are_under_way_and_what_comes_then_asks_peers_alone() {
        let mut asking = Asking::new(1, SECOND);
        for n in 0..u8::try_from(limits::DHT_LOOKUPS).unwrap() {
            let is_beside = usize::from(n) < limits::DHT_LOOKUPS_BESIDE;
            let beside = question(100 + n, 0);
            assert_eq!(asking.begin(NOW, beside, None, Share::Part, true), Begun::Started);
            assert_eq!(asking.flights[&beside].dht == Lookup::Waiting, is_beside);
            asking.take_back(beside);
            assert_eq!(asking.begin(NOW, question(n, 0), None, Share::Whole, true), Begun::Started);
        }
        assert_eq!(asking.begin(NOW, question(99, 0), None, Share::Whole, true), Begun::Started);
        assert_eq!(asking.flights[&question(99, 0)].dht, Lookup::Spared);
    }

    /// Servers that follow each other in every possible way, each with a state machine of its own, and a finder that asks
    /// one of them for what nobody knows: the questions that this causes are counted.
    #[test]
    fn in_no_circle_does_a_question_go_on_for_ever() {
        const SERVERS: usize = 4;
        let pairs = (0..SERVERS).flat_map(|a| (0..SERVERS).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let pairs: Vec<_> = pairs.collect();
        for follows in 0..1_u32 << pairs.len() {
            let peers: Vec<Vec<usize>> = (0..SERVERS)
                .map(|server| {
                    let followed =
                        pairs.iter().enumerate().filter(|(bit, (a, _))| follows >> bit & 1 == 1 && *a == server);
                    followed.map(|(_, (_, b))| *b).collect()
                })
                .collect();
            let mut servers: Vec<Asking> = peers.iter().map(|peers| Asking::new(peers.len(), SECOND)).collect();
            let mut asked = 0;
            let mut open = vec![(0, None, 0_u8)];
            while let Some((server, asker, hops)) = open.pop() {
                let question = question(1, hops);
                let number = asker.and_then(|asker| peers[server].iter().position(|peer| *peer == asker));
                if servers[server].begin(NOW, question, number, Share::Whole, false) == Begun::Started {
                    let to = servers[server].step(question, Duration::ZERO).ask;
                    asked += to.len();
                    open.extend(to.into_iter().map(|to| (peers[server][to], Some(server), hops + 1)));
                }
            }
            // Three from the first, two from each of those: none is asked by more than each of the others once per hop.
            assert!(asked <= 9, "{asked} questions, following {peers:?}");
        }
    }
}
