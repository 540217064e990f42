//! Servers that follow each other on loopback, and such as lie or say nothing.

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use checkpoint::simulated::SimulatedDisk;
use schemas::{SignedRecord, VatId, location_capnp::location_service};
use tokio::task::spawn_local;
use transport::{Endpoint, EndpointConfig, Greeting, OutputGate, Session, SessionLimits, SessionOptions};
use vls_server::{Peer, Server, ServerConfig};

use super::PATIENCE;
use crate::{
    finder::Finder,
    local::{HandClock, key},
};

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn at(id: VatId, address: SocketAddr) -> Peer {
    format!("vls://{id}@{address}").parse().unwrap()
}

/// A server whose peers can be named later, when they have ports.
pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) config: ServerConfig,
}

impl Node {
    pub(crate) async fn start(clock: &Rc<HandClock>) -> Self {
        let mut config = ServerConfig::new(loopback(), "/data".into());
        config.disk = SimulatedDisk::new();
        // Nobody is to be late because the machine is busy.
        config.peers_deadline = PATIENCE / 2;
        Self { server: Server::start(config.clone(), clock.clone()).await.unwrap(), config }
    }

    pub(crate) fn peer(&self) -> Peer {
        at(self.server.id(), self.server.local_address())
    }

    pub(crate) async fn follow(&mut self, peers: Vec<Peer>) {
        self.config.peers = peers;
        self.reload().await;
    }

    /// Waits for those that it follows for no longer than this.
    pub(crate) async fn wait_for_peers(&mut self, deadline: Duration) {
        self.config.peers_deadline = deadline;
        self.reload().await;
    }

    async fn reload(&mut self) {
        assert_eq!(self.server.reload(&self.config).await.unwrap(), Vec::<&str>::new());
    }

    pub(crate) async fn finder(&self, n: u32) -> Finder {
        Finder::dial(n, self.server.id(), self.server.local_address()).await
    }

    /// What it holds, whatever others hold.
    pub(crate) async fn holds(&self, record: &SignedRecord) -> bool {
        let answer = self.server.registry().lookup(record.id().as_bytes()).await.unwrap();
        answer.packet.as_deref() == Some(record.packet())
    }
}

/// So many servers; each follows those that `follows` says of its number.
pub(crate) async fn nodes<const COUNT: usize>(follows: impl Fn(usize) -> Vec<usize>) -> ([Node; COUNT], Rc<HandClock>) {
    let clock = HandClock::new();
    let mut nodes = Vec::new();
    for _ in 0..COUNT {
        nodes.push(Node::start(&clock).await);
    }
    let peers: Vec<Peer> = nodes.iter().map(Node::peer).collect();
    for (number, node) in nodes.iter_mut().enumerate() {
        node.follow(follows(number).into_iter().map(|other| peers[other].clone()).collect()).await;
    }
    (nodes.try_into().unwrap_or_else(|_| unreachable!()), clock)
}

/// A server that says one thing, whatever it is asked for.
pub(crate) struct Liar {
    endpoint: Endpoint,
    pub(crate) asked: Rc<Cell<usize>>,
}

struct Lying {
    packet: Vec<u8>,
    asked: Rc<Cell<usize>>,
    /// How long it takes to answer, and by which clock.
    slow: Option<(Rc<HandClock>, Duration)>,
}

impl location_service::Server for Lying {
    async fn lookup(
        self: capnp::capability::Rc<Self>,
        _: location_service::LookupParams,
        mut results: location_service::LookupResults,
    ) -> Result<(), capnp::Error> {
        self.asked.set(self.asked.get() + 1);
        if let Some((clock, takes)) = &self.slow {
            clock.wait(*takes);
        }
        let mut answer = results.get().init_answer();
        answer.set_packet(&self.packet);
        answer.set_left(u64::MAX);
        answer.set_elapsed(0);
        Ok(())
    }
}

impl Liar {
    pub(crate) fn start(packet: Vec<u8>) -> Self {
        Self::start_slow(packet, None)
    }

    pub(crate) fn start_slow(packet: Vec<u8>, slow: Option<(Rc<HandClock>, Duration)>) -> Self {
        let endpoint = Endpoint::bind(&key(66), loopback(), EndpointConfig::default()).unwrap();
        let (listening, asked) = (endpoint.clone(), Rc::new(Cell::new(0)));
        let counter = Rc::clone(&asked);
        spawn_local(async move {
            while let Some(incoming) = listening.accept().await {
                let lying = Lying { packet: packet.clone(), asked: Rc::clone(&counter), slow: slow.clone() };
                let service: location_service::Client = capnp_rpc::new_client(lying);
                spawn_local(async move {
                    let options = SessionOptions {
                        greeting: Greeting { epoch: 0, incarnation: [6; 16], program: "a liar".to_owned() },
                        bootstrap: Some(service.client),
                        gate: OutputGate::always_open(),
                        limits: SessionLimits::default(),
                    };
                    if let Ok(connection) = incoming.accept().await
                        && let Ok(session) = Session::accept(connection, options).await
                    {
                        session.closed().await;
                    }
                });
            }
        });
        Self { endpoint, asked }
    }

    pub(crate) fn peer(&self) -> Peer {
        at(self.endpoint.id(), self.endpoint.local_address())
    }
}

/// A port behind which nobody answers.
pub(crate) struct Silent(std::net::UdpSocket);

impl Silent {
    pub(crate) fn start() -> Self {
        Self(std::net::UdpSocket::bind(loopback()).unwrap())
    }

    pub(crate) fn peer(&self) -> Peer {
        at(key(77).id(), self.0.local_addr().unwrap())
    }
}
