//! The real location server on a machine that loses its power, and an observer of what it knows.

use std::{path::PathBuf, rc::Rc, time::Duration};

use schemas::Coded;
use simulation::finding::{Machine, What, plan::LEASE};
use tokio::{
    task::{LocalSet, spawn_local},
    time::timeout,
};
use vls_server::{Committer, Journaling, Server, ServerConfig};

use super::{
    liar,
    world::{DRAIN, Mutation, PORT, Process, World, key, until},
};
use crate::world::pause;

/// How often it is looked what a server knows.
const LOOKED_AT_EVERY: Duration = Duration::from_millis(250);

/// How long the disk takes to write and sync: within this, longer each time.
const DISK: (u64, u64) = (1, 20);

/// Small, because nearly nothing is written, and all of it is filled with zeros.
const SEGMENT_BYTES: u64 = 128 << 10;

pub(crate) async fn serve(world: Rc<World>, number: u8) -> turmoil::Result {
    let machine = Machine::Server(number);
    let (start, dead, lie) = {
        let place = &mut world.servers.borrow_mut()[usize::from(number)];
        place.starts += 1;
        (place.starts, place.radio.take(), place.lie)
    };
    if let Some(dead) = dead {
        dead.unplug();
    }
    let process = world.start_process(machine, &key(machine), PORT, start).await;
    world.servers.borrow_mut()[usize::from(number)].radio = Some(process.radio.clone());
    world.wire.occupy(process.place, Some((machine, 0)));
    process.see(What::Woke { epoch: start });
    let local = LocalSet::new();
    match lie {
        Some(lie) => local.run_until(liar::serve(process, number, lie)).await,
        None => {
            local.run_until(serve_honestly(process, number)).await?;
            if timeout(DRAIN, local).await.is_err() {
                world.wire.see(machine, What::Leaked);
            }
        }
    }
    std::future::pending().await
}

async fn serve_honestly(process: Process, number: u8) -> turmoil::Result {
    let world = process.world.clone();
    let disk = world.servers.borrow()[usize::from(number)].disk.clone();
    let mut config = ServerConfig::new(process.place, PathBuf::from("/data"));
    config.disk = disk.expect("a machine has a disk");
    let mut journaling = Journaling::default();
    let after = Duration::from_millis(process.random.borrow_mut().u64(DISK.0..=DISK.1));
    (journaling.committer, journaling.segment_bytes) = (Committer::InPlace { after }, SEGMENT_BYTES);
    config.journaling = journaling;
    config.policy.lease = LEASE;
    if world.mutation == Mutation::Crowded {
        config.policy.max_records = 3;
        // What a real processor computes takes no time here, and how long it does is nobody's decision.
        config.policy.work = None;
    }
    let clock = process.wall_clock();
    let server = Server::start_on(process.endpoint.clone(), config, clock).await.map_err(|error| error.to_string())?;
    world.servers.borrow_mut()[usize::from(number)].running = Some(Rc::new(server));
    let looking = spawn_local(look(world.clone(), number)).abort_handle();
    // Vats ask it until they end.
    until(world.plan.ends_at + world.plan.tick * 2).await;
    looking.abort();
    let running = world.servers.borrow_mut()[usize::from(number)].running.take();
    let server = running.and_then(|running| Rc::try_unwrap(running).ok()).expect("nobody else keeps it");
    server.stop().await.map_err(|error| format!("{}: {error}", error.code()))?;
    Ok(())
}

/// Writes down whatever changes in what the server knows.
async fn look(world: Rc<World>, number: u8) {
    let mut before = vec![(None, None); usize::from(world.plan.vats)];
    loop {
        let now = turmoil::sim_elapsed().expect("on a host");
        for vat in 0..world.plan.vats {
            let Some(known) = world.knows(number, vat) else { continue };
            let (standing, renewed_at) = &mut before[usize::from(vat)];
            if standing.replace(known.standing) != Some(known.standing) {
                world.wire.see(Machine::Server(number), What::Knows { vat, standing: known.standing });
            }
            // What it had before it died, it may date a little differently since.
            let Some(at) = known.age.and_then(|age| now.checked_sub(age)) else { continue };
            if renewed_at.replace(at).is_some_and(|before| before < at) {
                world.wire.see(Machine::Server(number), What::Renewed { vat });
            }
        }
        pause(LOOKED_AT_EVERY).await;
    }
}
