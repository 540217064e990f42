//! A server with the key of an honest one that lies to everybody.

use std::{collections::HashMap, rc::Rc, time::Duration};

use schemas::{
    datagram::{Known, LookupAnswer, LookupQuestion, QUESTION_HEAD_BYTES, QUESTION_KIND},
    location_capnp::{answer, location_service},
};
use simulation::finding::plan::{LEASE, Lie};
use tokio::task::spawn_local;
use transport::{Greeting, OutputGate, Session, SessionLimits, SessionOptions, datagrams::Bunch};

use super::world::Process;
use crate::world::pause;

/// How late the late ones are: later than a resolver waits for a cold answer before it dials.
const LATE: Duration = Duration::from_millis(1_200);

struct Liar {
    lie: Lie,
    /// What the honest one had.
    frozen: HashMap<[u8; 32], Vec<u8>>,
    process: Process,
}

pub(crate) async fn serve(process: Process, number: u8, lie: Lie) {
    let frozen = process.world.servers.borrow()[usize::from(number)].frozen.clone();
    let liar = Rc::new(Liar { lie, frozen, process });
    spawn_local(liar.clone().answer_datagrams());
    while let Some(incoming) = liar.process.endpoint.accept().await {
        let liar = liar.clone();
        spawn_local(async move {
            let Ok(connection) = incoming.accept().await else { return };
            let service: location_service::Client = capnp_rpc::new_client(Service(liar));
            let options = SessionOptions {
                greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "a liar".to_owned() },
                bootstrap: Some(service.client),
                gate: OutputGate::always_open(),
                limits: SessionLimits::default(),
            };
            if let Ok(session) = Session::accept(connection, options).await {
                session.closed().await;
            }
        });
    }
}

impl Liar {
    /// What it says of a vat.
    fn packet(&self, id: &[u8]) -> Vec<u8> {
        let had = || self.frozen.get(id).cloned().unwrap_or_default();
        match self.lie {
            Lie::Frozen | Lie::Late => had(),
            Lie::Unknown => Vec::new(),
            Lie::Garbage => {
                let mut packet = had();
                if packet.is_empty() {
                    packet.resize(200, 7);
                }
                let changed = self.process.number() % packet.len() as u64;
                packet[usize::try_from(changed).unwrap()] ^= 1;
                packet
            }
            Lie::Others => {
                let mut others: Vec<_> = self.frozen.iter().filter(|(other, _)| other[..] != *id).collect();
                others.sort();
                let chosen = self.process.number() % others.len().max(1) as u64;
                others.get(usize::try_from(chosen).unwrap()).map(|(_, packet)| packet.to_vec()).unwrap_or_default()
            }
            Lie::Huge => vec![9; 1_300],
        }
    }

    async fn answer_datagrams(self: Rc<Self>) {
        let datagrams = self.process.endpoint.datagrams_beside(QUESTION_KIND, QUESTION_HEAD_BYTES);
        let mut questions = Bunch::default();
        loop {
            datagrams.receive(&mut questions).await;
            if self.lie == Lie::Late {
                pause(LATE).await;
            }
            let mut answers = Bunch::default();
            for asked in questions.iter() {
                let Some(question) = LookupQuestion::read(asked.bytes, asked.length) else { continue };
                let packet = self.packet(&question.id);
                let known = (!packet.is_empty()).then_some(Known { packet: &packet, age: 1, expired: false });
                let time = vls_client::Clock::now(&*self.process.wall_clock()).wall;
                let answer = LookupAnswer { nonce: question.nonce, known, time };
                answers.push(asked.peer, asked.local, |bytes| {
                    answer.write(bytes);
                    if self.lie == Lie::Huge {
                        bytes.extend_from_slice(&packet);
                    }
                });
            }
            datagrams.send(&answers);
        }
    }
}

struct Service(Rc<Liar>);

impl location_service::Server for Service {
    /// Says that it has stored what it has not, or shows what proves nothing.
    async fn register(
        self: Rc<Self>,
        params: location_service::RegisterParams,
        mut results: location_service::RegisterResults,
    ) -> Result<(), capnp::Error> {
        let packet = self.0.packet(params.get()?.get_id()?);
        let mut outcome = results.get().init_outcome();
        match self.0.process.number() % 4 {
            0 => outcome.init_stored().set_seconds(u32::try_from(LEASE.as_secs()).unwrap()),
            1 => outcome.set_stale(&packet),
            2 => outcome.set_conflict(&packet),
            _ => outcome.set_unexpected(&packet),
        }
        Ok(())
    }

    async fn lookup(
        self: Rc<Self>,
        params: location_service::LookupParams,
        mut results: location_service::LookupResults,
    ) -> Result<(), capnp::Error> {
        if self.0.lie == Lie::Late {
            pause(LATE).await;
        }
        let packet = self.0.packet(params.get()?.get_id()?);
        let mut answer: answer::Builder<'_> = results.get().init_answer();
        answer.set_packet(&packet);
        answer.set_age(1);
        Ok(())
    }
}
