//! Servers that follow each other, over QUIC on loopback, with a clock turned by hand: what one holds the others find, what
//! is registered at one the others learn, and nobody who lies, hangs or dies among them changes what is true.

mod nodes;

use std::time::Duration;

use rustix::process::Signal;
use schemas::{
    SearchPathEntry, SignedRecord,
    datagram::{LookupAnswer, LookupQuestion},
};
use tokio::{net::UdpSocket, time::timeout};
use vls_server::{Clock, Peer, Reached, SystemClock};

use self::nodes::{Liar, Silent, loopback, nodes};
use crate::{
    finder::{Expect, Finder, Found, Wire},
    http_client::HttpClient,
    local::{START, foreign, key, on_one_thread, record, record_at},
    program::{run, text},
    supervised::Supervised,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// For questions that somebody does not answer at all.
const DEADLINE: Duration = Duration::from_secs(4);
const NOTHING: Found = (Vec::new(), 0, false);

fn next_one(number: usize, count: usize) -> Vec<usize> {
    (number + 1 < count).then_some(number + 1).into_iter().collect()
}

fn found(record: &SignedRecord, age: u32) -> Found {
    (record.packet().to_vec(), age, false)
}

#[test]
fn what_is_registered_at_the_end_of_a_chain_is_found_two_servers_away_and_no_further() {
    on_one_thread(async {
        let ([first, second, _third, last], clock) = nodes::<4>(|n| next_one(n, 4)).await;
        let record = record(&key(1), 1, 0);
        assert_eq!(last.finder(1).await.register(&record).await, Ok(Wire::Stored(3600)));
        clock.wait(Duration::from_secs(60));
        assert_eq!(first.finder(2).await.lookup(record.id().as_bytes()).await, Ok(NOTHING));
        let finder = second.finder(2).await;
        let answers = finder.lookup_many(&[record.id().as_bytes(), key(8).id().as_bytes()]).await;
        assert_eq!(answers, Ok(vec![found(&record, 60), NOTHING]));
        // Now it is one server nearer, and what nobody knew has been forgotten.
        clock.wait(Duration::from_secs(3));
        assert_eq!(first.finder(2).await.lookup(record.id().as_bytes()).await, Ok(found(&record, 63)));
        assert!(first.holds(&record).await, "whoever asks next need not wait");
    });
}

#[test]
fn a_cold_lookup_finds_it_too_and_nobody_waits_for_one_that_waits() {
    on_one_thread(async {
        let ([first, second], _clock) = nodes::<2>(|n| next_one(n, 2)).await;
        let silent = Silent::start();
        let mut first = first;
        first.wait_for_peers(DEADLINE).await;
        first.follow(vec![silent.peer(), second.peer()]).await;
        let (there, here) = (record(&key(1), 1, 0), record(&key(2), 1, 0));
        second.finder(1).await.register(&there).await.unwrap();
        first.finder(2).await.register(&here).await.unwrap();
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        socket.connect(first.server.local_address()).await.unwrap();
        // The first is known to nobody, so it waits for the silent one.
        for (nonce, id) in [key(3).id(), there.id(), here.id()].into_iter().enumerate() {
            let mut question = Vec::new();
            LookupQuestion { nonce: (nonce as u64).to_be_bytes(), id: *id.as_bytes() }.write(&mut question);
            socket.send(&question).await.unwrap();
        }
        let mut order = Vec::new();
        for _ in 0..3 {
            let mut bytes = [0; 2000];
            let length = timeout(PATIENCE, socket.recv(&mut bytes)).await.expect("an answer").unwrap();
            let answer = LookupAnswer::read(&bytes[..length]).unwrap();
            order.push((u64::from_be_bytes(answer.nonce), answer.known.map(|known| known.packet.to_vec())));
        }
        let expected = [(2, Some(here.packet().to_vec())), (1, Some(there.packet().to_vec())), (0, None)];
        assert_eq!(order, expected);
    });
}

#[test]
fn who_asks_over_http_waits_for_what_others_know() {
    on_one_thread(async {
        let ([mut first, second], _clock) = nodes::<2>(|n| next_one(n, 2)).await;
        first.config.http = Some(loopback());
        first.follow(vec![second.peer()]).await;
        let record = record(&key(1), 1, 0);
        second.finder(1).await.register(&record).await.unwrap();
        let mut client = HttpClient::to(first.server.http_address().unwrap()).await;
        let answer = client.get(&format!("/pkarr/{}", record.id())).await;
        assert_eq!((answer.status, &answer.body[..]), (200, record.packet()));
        assert_eq!(client.get(&format!("/pkarr/{}", key(9).id())).await.status, 404);
    });
}

#[test]
fn a_configuration_names_servers_by_their_ids_and_no_more_than_eight() {
    let entry = |n: u32| format!("vls://{}@192.0.2.1:{}", key(n).id(), 4000 + n);
    assert_eq!(entry(1).parse::<Peer>().unwrap().to_string(), entry(1));
    for other in ["https://vls.example.org/", "dns:vls.example.org", "dht:", "vls://nobody@192.0.2.1:4433"] {
        assert!(other.parse::<Peer>().is_err(), "{other}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vls-server.toml");
    for (count, is_taken) in [(8, true), (9, false)] {
        let peers: Vec<String> = (0..count).map(entry).collect();
        let data = folder.path().join("data");
        std::fs::write(&file, format!("data = {data:?}\npeers = {peers:?}\n")).unwrap();
        let shown = run(&["config", "show", "--config", file.to_str().unwrap()]);
        assert_eq!(shown.status.success(), is_taken, "{count}: {shown:?}");
    }
}

#[test]
fn in_a_ring_everything_is_found_everywhere_and_what_nobody_knows_is_known_to_nobody_soon() {
    on_one_thread(async {
        let ([first, second, third], clock) = nodes::<3>(|n| vec![(n + 1) % 3]).await;
        let record = record(&key(1), 1, 0);
        let id = *record.id().as_bytes();
        let finders = [first.finder(2).await, second.finder(2).await, third.finder(2).await];
        // All of them at once: each asks the next one, and none waits for itself.
        let asked = tokio::time::Instant::now();
        let answers = futures::future::join_all(finders.iter().map(|finder| finder.lookup(&id))).await;
        assert_eq!(answers, [Ok(NOTHING), Ok(NOTHING), Ok(NOTHING)]);
        assert!(asked.elapsed() < PATIENCE / 2, "nobody waited for a deadline for long");
        let (mut told, _watch) = finders[0].watch(&id).await.unwrap();
        assert_eq!(told.next().await.0, NOTHING);
        third.finder(1).await.register(&record).await.unwrap();
        // What is under way while the clock is turned would seem to have taken no time.
        assert_eq!(told.next().await.0, found(&record, 0));
        clock.wait(Duration::from_secs(3));
        for finder in &finders {
            assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 3)));
        }
    });
}

#[test]
fn what_is_registered_is_told_to_those_that_are_followed_and_they_tell_nobody() {
    on_one_thread(async {
        let ([first, second, third], _clock) = nodes::<3>(|n| next_one(n, 3)).await;
        let [one, other] = [1, 2].map(|n| record(&key(n), 1, 0));
        // Nobody asks: a watch does not ask on behalf of others either, where there is nobody to ask.
        let (at_second, at_third) = (second.finder(3).await, third.finder(3).await);
        let (mut told, _watch) = at_second.watch(one.id().as_bytes()).await.unwrap();
        assert_eq!(told.next().await.0, NOTHING);
        first.finder(1).await.register(&one).await.unwrap();
        assert_eq!(told.next().await.0, found(&one, 0));
        // What is registered at the second comes to the third, behind whatever the second would have passed on.
        let (mut told, _watch) = at_third.watch(other.id().as_bytes()).await.unwrap();
        assert_eq!(told.next().await.0, NOTHING);
        second.finder(1).await.register(&other).await.unwrap();
        assert_eq!(told.next().await.0, found(&other, 0));
        assert!(!third.holds(&one).await);
    });
}

#[test]
fn a_learned_record_ends_when_it_ends_where_its_vat_registered_and_lives_on_when_it_is_renewed_there() {
    on_one_thread(async {
        let ([first, second], clock) = nodes::<2>(|n| next_one(n, 2)).await;
        let (vat, finder) = (second.finder(1).await, first.finder(2).await);
        let record = record(&key(1), 1, 0);
        vat.register(&record).await.unwrap();
        clock.wait(Duration::from_mins(40));
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 2400)));
        clock.wait(Duration::from_mins(10));
        assert_eq!(vat.renew(record.order()).await, Ok(Wire::Refreshed(3600)));
        // Its old lease is over: it is asked for again, and was seen since.
        clock.wait(Duration::from_mins(20));
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 1200)));
        clock.wait(Duration::from_mins(40));
        let over = Ok((record.packet().to_vec(), 3600, true));
        assert_eq!(vat.lookup(record.id().as_bytes()).await, over);
        assert_eq!(finder.lookup(record.id().as_bytes()).await, over);
    });
}

#[test]
fn who_holds_an_old_epoch_learns_of_the_new_one_when_it_is_asked() {
    on_one_thread(async {
        // The first follows the second, so the second tells it nothing.
        let ([first, second], clock) = nodes::<2>(|n| next_one(n, 2)).await;
        let [old, new] = [1, 2].map(|epoch| record(&key(1), epoch, 0));
        first.finder(1).await.register(&old).await.unwrap();
        let finder = first.finder(2).await;
        let (mut told, _watch) = finder.watch(old.id().as_bytes()).await.unwrap();
        assert_eq!(told.next().await.0, found(&old, 0));
        second.finder(1).await.register(&new).await.unwrap();
        clock.wait(Duration::from_secs(31));
        // It answers at once with what it holds, and looks into it.
        assert_eq!(finder.lookup(old.id().as_bytes()).await, Ok(found(&old, 31)));
        assert_eq!(told.next().await.0, found(&new, 31));
        assert_eq!(finder.lookup(old.id().as_bytes()).await, Ok(found(&new, 31)));
    });
}

#[test]
fn a_peer_that_is_killed_delays_nobody_for_long_and_the_others_are_found_through() {
    on_one_thread(async {
        let ([mut first, second, third], _clock) = nodes::<3>(|n| next_one(n, 3)).await;
        first.follow(vec![second.peer(), third.peer()]).await;
        first.wait_for_peers(DEADLINE).await;
        let [one, two] = [1, 2].map(|n| record(&key(n), 1, 0));
        let vat = third.finder(1).await;
        vat.register(&one).await.unwrap();
        let finder = first.finder(2).await;
        assert_eq!(finder.lookup(one.id().as_bytes()).await, Ok(found(&one, 0)));
        drop(second);
        vat.register(&two).await.unwrap();
        assert_eq!(finder.lookup(two.id().as_bytes()).await, Ok(found(&two, 0)));
        assert_eq!(finder.lookup(key(9).id().as_bytes()).await, Ok(NOTHING));
        // And who stops does not wait for those that it follows.
        timeout(PATIENCE, first.server.stop()).await.unwrap().unwrap();
    });
}

#[test]
fn who_has_not_answered_once_is_waited_for_by_nobody_else_while_others_answer() {
    on_one_thread(async {
        let ([mut first, second], _clock) = nodes::<2>(|n| next_one(n, 2)).await;
        let silent = Silent::start();
        first.follow(vec![silent.peer(), second.peer()]).await;
        let there = record(&key(1), 1, 0);
        second.finder(1).await.register(&there).await.unwrap();
        let finder = first.finder(2).await;
        assert_eq!(finder.lookup(there.id().as_bytes()).await, Ok(found(&there, 0)), "the session stands");
        first.wait_for_peers(Duration::from_secs(1)).await;
        assert_eq!(finder.lookup(key(7).id().as_bytes()).await, Ok(NOTHING));
        // Were it waited for, the finder would have given up before.
        first.wait_for_peers(100 * PATIENCE).await;
        assert_eq!(finder.lookup(key(8).id().as_bytes()).await, Ok(NOTHING));
        let status = first.server.status();
        let reached: Vec<_> = status.peers.iter().map(|peer| (&peer.peer, peer.reached == Reached::Open)).collect();
        assert_eq!(reached, [(&silent.peer(), false), (&second.peer(), true)]);
    });
}

#[test]
fn what_other_programs_have_signed_is_asked_for_and_told_like_records_and_takes_no_records_place() {
    on_one_thread(async {
        let ([first, second, third], _clock) = nodes::<3>(|n| next_one(n, 3)).await;
        let packet = foreign(&key(1), START, "x");
        let found = |packet: &[u8]| Ok((packet.to_vec(), 0, false));
        let (id, vat, watching) = (*packet.id().as_bytes(), second.finder(1).await, third.finder(3).await);
        let (mut told, _watch) = watching.watch(&id).await.unwrap();
        assert_eq!(told.next().await.0, NOTHING);
        vat.register_bytes(&id, packet.packet(), Expect::Anything).await.unwrap();
        assert_eq!(told.next().await.0.0, packet.packet(), "told");
        assert_eq!(first.finder(2).await.lookup(&id).await, found(packet.packet()), "asked for");
        let record = record(&key(1), 1, -100);
        vat.register(&record).await.unwrap();
        assert_eq!(told.next().await.0.0, record.packet());
        let later = foreign(&key(1), START + Duration::from_secs(100), "y");
        watching.register_bytes(&id, later.packet(), Expect::Anything).await.unwrap();
        assert!(third.holds(&record).await);
    });
}

#[test]
fn a_confined_server_takes_up_whom_to_follow_by_their_names_and_says_how_they_are() {
    let (other, mut server) = (Supervised::start(""), Supervised::start(""));
    let SearchPathEntry::Vls { id, port, .. } = other.running.entry() else { unreachable!() };
    let record = record_at(SystemClock.now().wall, &key(1), 1, 0);
    assert_eq!(server.status()["peers"], serde_json::json!([]));
    let entry = format!("vls://{id}@localhost:{port}");
    server.reload(&format!("peers = [{entry:?}]\n"));
    let shown = run(&["--json", "config", "show", "--config", &server.config()]);
    assert!(text(&shown.stdout).contains(&entry), "{shown:?}");
    on_one_thread(async {
        Finder::dial_entry(1, &other.running.line).await.register(&record).await.unwrap();
        let finder = Finder::dial_entry(2, &server.running.line).await;
        // A busy machine may be late; then it is asked again when what nobody knew is forgotten.
        let asked = tokio::time::Instant::now();
        while finder.lookup(record.id().as_bytes()).await.unwrap().0 != record.packet() {
            assert!(asked.elapsed() < PATIENCE, "it is never found");
            tokio::task::yield_now().await;
        }
    });
    let status = server.status();
    assert_eq!((&status["peers"][0]["entry"], &status["peers"][0]["reached"]), (&entry.into(), &"open".into()));
    let human = text(&run(&["status", "--config", &server.config()]).stdout);
    assert!(human.lines().any(|line| line.starts_with("follows") && line.ends_with("(open)")), "{human}");
    server.reload("");
    assert_eq!(server.status()["peers"], serde_json::json!([]));
    server.running.signal(Signal::TERM);
    assert_eq!(server.running.ended().0.code(), Some(0));
}

#[test]
fn no_lie_of_a_peer_gets_in_and_the_honest_one_is_found() {
    on_one_thread(async {
        let honest = record(&key(1), 2, 0);
        let id = *honest.id().as_bytes();
        let forged = {
            let mut packet = record(&key(1), 3, 0).packet().to_vec();
            packet[..64].copy_from_slice(&record(&key(2), 3, 0).packet()[..64]);
            packet
        };
        let days = 24 * 3600;
        let lies = [
            Vec::new(),
            b"nonsense".to_vec(),
            vec![7; 8 << 10],
            vec![7; 64 << 10],
            forged,
            record(&key(2), 9, 0).packet().to_vec(),
            record(&key(1), 9, 301).packet().to_vec(),
            record(&key(1), 9, -11 * days).packet().to_vec(),
            record(&key(1), 1, 0).packet().to_vec(),
        ];
        for lie in lies {
            let length = lie.len();
            let ([mut first, second], _clock) = nodes::<2>(|n| next_one(n, 2)).await;
            let liar = Liar::start(lie);
            first.follow(vec![liar.peer(), second.peer()]).await;
            second.finder(1).await.register(&honest).await.unwrap();
            let finder = first.finder(2).await;
            assert_eq!(finder.lookup(&id).await, Ok(found(&honest, 0)), "a lie of {length} bytes");
            // Alone, it has nothing believed.
            first.follow(vec![liar.peer()]).await;
            assert_eq!(finder.lookup(key(7).id().as_bytes()).await, Ok(NOTHING), "a lie of {length} bytes");
            assert!(liar.asked.get() >= 1);
        }
    });
}

#[test]
fn a_stranger_may_tell_what_vats_have_signed_and_nothing_else_and_not_too_much() {
    on_one_thread(async {
        let ([node], _clock) = nodes::<1>(|_| Vec::new()).await;
        let stranger = node.finder(5).await;
        let (good, late) = (record(&key(1), 1, 0), record(&key(2), 1, 301));
        let tell = |records: Vec<(Vec<u8>, Vec<u8>, u64)>| {
            let mut request = stranger.service.learn_request();
            let mut list = request.get().init_records(u32::try_from(records.len()).unwrap());
            for (index, (id, packet, left)) in (0..).zip(records) {
                let mut known = list.reborrow().get(index);
                known.set_id(&id);
                let mut answer = known.init_answer();
                answer.set_packet(&packet);
                answer.set_left(left);
            }
            request.send().promise
        };
        let told = |record: &SignedRecord, left| (record.id().as_bytes().to_vec(), record.packet().to_vec(), left);
        let records = vec![told(&good, 60_000_000), told(&late, u64::MAX), (vec![1; 31], vec![2; 9], 0)];
        tell(records).await.unwrap();
        assert!(node.holds(&good).await && !node.holds(&late).await);
        let answer = node.server.registry().lookup(good.id().as_bytes()).await.unwrap();
        assert_eq!((answer.left, answer.expired), (Duration::from_secs(60), false));
        let refused = tell(vec![told(&good, 1); 65]).await.err().unwrap().to_string();
        assert!(refused.contains("object.argument"), "{refused}");
    });
}

#[test]
fn a_lease_is_reckoned_from_the_question_so_that_a_slow_answer_makes_none_longer() {
    on_one_thread(async {
        let ([mut node], clock) = nodes::<1>(|_| Vec::new()).await;
        let record = record(&key(1), 1, 0);
        // It claims that the vat was seen just now, and takes ten seconds to say so.
        let takes = Duration::from_secs(10);
        let slow = Liar::start_slow(record.packet().to_vec(), Some((clock.clone(), takes)));
        node.follow(vec![slow.peer()]).await;
        assert_eq!(node.finder(2).await.lookup(record.id().as_bytes()).await, Ok(found(&record, 10)));
        let answer = node.server.registry().lookup(record.id().as_bytes()).await.unwrap();
        assert_eq!((answer.age, answer.left), (takes, Duration::from_secs(3590)));
    });
}

#[test]
fn what_one_network_may_cause_is_bounded_and_what_is_held_is_answered_all_the_same() {
    on_one_thread(async {
        let ([mut node], _clock) = nodes::<1>(|_| Vec::new()).await;
        let liar = Liar::start(Vec::new());
        node.follow(vec![liar.peer()]).await;
        let finder = node.finder(2).await;
        let record = record(&key(1), 1, 0);
        finder.register(&record).await.unwrap();
        let ids: Vec<[u8; 32]> = (100..1_400).map(|n| *key(n).id().as_bytes()).collect();
        for ids in ids.chunks(100) {
            let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
            assert_eq!(finder.lookup_many(&ids).await, Ok(vec![NOTHING; 100]));
        }
        assert_eq!(liar.asked.get(), 1_024, "the burst of one network");
        assert_eq!(finder.lookup(record.id().as_bytes()).await, Ok(found(&record, 0)));
    });
}
