//! Finders that search with the real resolver.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, rc::Rc, time::Duration};

use schemas::{
    Coded, Hints, SearchPathEntry, SignedRecord, VatId,
    datagram::{ANSWER_KIND, LookupAnswer, LookupQuestion, MAX_ANSWER_BYTES},
};
use simulation::finding::{
    Found, Machine, What,
    plan::{SERVERS, Search},
};
use tokio::{
    task::{LocalSet, spawn_local},
    time::timeout,
};
use transport::datagrams::Bunch;
use vls_client::{Attempt, Candidate, Resolver, ResolverConfig};

use super::{
    wire::version,
    world::{DRAIN, Mutation, Process, World, id, key, until},
};

pub(crate) async fn search_all(world: Rc<World>) -> turmoil::Result {
    let mut searches: HashMap<u8, Vec<(Duration, Search)>> = HashMap::new();
    for (at, search) in &world.plan.searches {
        searches.entry(search.finder).or_default().push((*at, *search));
    }
    for number in 0..world.plan.finders {
        let (world, own) = (world.clone(), searches.remove(&number).unwrap_or_default());
        spawn_local(async move {
            let machine = Machine::Finder(number);
            let process = world.start_process(machine, &key(machine), 0, 1).await;
            world.wire.occupy(process.place, Some((machine, 0)));
            let local = LocalSet::new();
            local.run_until(search(process, number, own)).await;
            if timeout(DRAIN, local).await.is_err() {
                world.wire.see(machine, What::Leaked);
            }
        });
    }
    std::future::pending().await
}

/// One finder's searches, one after another.
async fn search(process: Process, number: u8, searches: Vec<(Duration, Search)>) {
    let mut config = ResolverConfig::default();
    // Some ask one entry after another, others all at once.
    config.lookup.first_wave = if number.is_multiple_of(3) { 1 } else { usize::from(SERVERS) };
    config.clock = process.wall_clock();
    let mut random = process.random.borrow_mut().fork();
    config.randomness = Rc::new(RefCell::new(move || random.u64(..)));
    let first_wave = config.lookup.first_wave;
    let path = process.world.path(number % SERVERS);
    let resolver = Resolver::new(process.endpoint.clone(), path, None, config);
    for (at, search) in searches {
        until(at).await;
        let id = id(Machine::Vat(search.vat));
        let known = (0..SERVERS).map(|server| {
            let known = process.world.knows(server, search.vat)?;
            Some(process.world.wire.as_usable(process.machine, known.standing, known.packet.as_deref()))
        });
        let known = known.collect();
        let number = process.world.wire.begin_search(number, id);
        process.see(What::Began { search: number, vat: search.vat, first_wave, known });
        let (found, attempts) = if search.connects {
            connect(&process, &resolver, number, search.vat).await
        } else if process.world.mutation == Mutation::Trusting {
            trust(&process, id).await
        } else {
            match resolver.resolve(id, &Hints::default()).await {
                Ok(found) => (record(&found.record), found.attempts),
                Err(error) => (nothing(error.code()), error.attempts().to_vec()),
            }
        };
        process.see(What::Ended { search: number, found, answered: answered(&attempts) });
    }
    drop(resolver);
    process.endpoint.close().await;
}

async fn connect(process: &Process, resolver: &Resolver, number: u32, vat: u8) -> (Found, Vec<Attempt>) {
    let id = id(Machine::Vat(vat));
    match resolver.connect(id, &Hints::default()).await {
        Ok(connected) => {
            let plan = &process.world.plan;
            // A datagram leaves, and comes, at the end of a tick.
            let sender = process.world.wire.sender(connected.address, plan.weather.most_latency + plan.tick * 2);
            let occupant = sender.and_then(|(machine, epoch)| match machine {
                Machine::Vat(vat) => Some((vat, epoch)),
                _ => None,
            });
            process.see(What::Reached { search: number, place: connected.address, occupant });
            connected.connection.close(schemas::ErrorCode::SessionClosed);
            let version = connected.record.as_ref().map(|(record, _)| version(record));
            (Found::Record(version), connected.attempts)
        }
        Err(error) => (nothing(error.code()), error.attempts().to_vec()),
    }
}

/// What a finder does that is made wrong: it asks all servers, listens to all, and uses what came first.
async fn trust(process: &Process, id: VatId) -> (Found, Vec<Attempt>) {
    let answers = process.endpoint.datagrams_beside(ANSWER_KIND, MAX_ANSWER_BYTES);
    let mut question = Bunch::default();
    for entry in process.world.path(0) {
        let SearchPathEntry::Vls { host, port, .. } = entry else { continue };
        let place = (host.parse::<IpAddr>().unwrap(), port).into();
        let nonce = process.number().to_be_bytes();
        question.push(place, None, |bytes| LookupQuestion::new(id, nonce).write(bytes));
    }
    answers.send(&question);
    let (mut first, mut bunch) = (None, Bunch::default());
    while timeout(Duration::from_millis(500), answers.receive(&mut bunch)).await.is_ok() {
        let packets = bunch.iter().filter_map(|datagram| LookupAnswer::read(datagram.bytes)?.known);
        first = first.or(packets.filter_map(|known| SignedRecord::verify(id, known.packet).ok()).next());
    }
    let found = first.map_or_else(|| nothing(schemas::ErrorCode::VlsUnknownVat), |first| record(&first));
    (found, Vec::new())
}

fn record(record: &SignedRecord) -> Found {
    Found::Record(Some(version(record)))
}

fn nothing(code: schemas::ErrorCode) -> Found {
    Found::Nothing { code: code.as_str().to_owned() }
}

/// The servers that answered, as the finder reports.
fn answered(attempts: &[Attempt]) -> Vec<u8> {
    let server = |attempt: &Attempt| match &attempt.candidate {
        Candidate::Entry(SearchPathEntry::Vls { id, .. }) if attempt.outcome.is_answer() => {
            (0..SERVERS).find(|server| super::world::id(Machine::Server(*server)) == *id)
        }
        _ => None,
    };
    attempts.iter().filter_map(server).collect()
}
