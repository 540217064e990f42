//! A peer whose address changes while calls are under way: a laptop that changes networks, a router that forgets.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
};

use tokio::{net::UdpSocket, sync::Notify, task::spawn_local};
use transport::{Endpoint, Session};

use crate::support::{PATIENCE, add, key, new_counter, options, run, server, serving};

/// A router between one client and one server: what the client sends comes out of a socket of the router's.
pub(crate) struct Router {
    pub(crate) inside: SocketAddr,
    outside: Rc<Cell<u16>>,
    /// Nothing comes through from the server to the client.
    pub(crate) is_cut: Rc<Cell<bool>>,
    change: Rc<Notify>,
}

impl Router {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (inside, mut outside) = (bind().await.unwrap(), bind().await.unwrap());
        let (change, port) = (Rc::new(Notify::new()), Rc::new(Cell::new(outside.local_addr().unwrap().port())));
        let is_cut = Rc::new(Cell::new(false));
        let router = Self {
            inside: inside.local_addr().unwrap(),
            outside: port.clone(),
            is_cut: is_cut.clone(),
            change: change.clone(),
        };
        spawn_local(async move {
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = inside.recv_from(&mut up) => {
                        client = Some(from);
                        outside.send_to(&up[..length], server).await.unwrap();
                    }
                    Ok((length, _)) = outside.recv_from(&mut down) => {
                        if let Some(client) = client.filter(|_| !is_cut.get()) {
                            inside.send_to(&down[..length], client).await.unwrap();
                        }
                    }
                    // Another port from now on; what comes to the old one is lost.
                    () = change.notified() => {
                        outside = bind().await.unwrap();
                        port.set(outside.local_addr().unwrap().port());
                    }
                }
            }
        });
        router
    }

    /// Forgets the client, and gives it another port when it sends again.
    async fn forget(&self) {
        let before = self.outside.get();
        self.change.notify_one();
        while self.outside.get() == before {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn calls_under_way_survive_that_a_router_gives_the_client_another_address() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let router = Router::before(server.local_address()).await;
        let accept = async { server.accept().await.unwrap().accept().await.unwrap() };
        let (dialled, accepted) = tokio::join!(client.dial(server.id(), router.inside, PATIENCE), accept);
        let seen = accepted.clone();
        let (session, _serving) = tokio::try_join!(
            Session::open(dialled.unwrap(), options()),
            Session::accept(accepted, serving(new_counter()))
        )
        .unwrap();
        let counter = session.bootstrap();
        for round in 0..3_u64 {
            assert_eq!(seen.remote_address().port(), router.outside.get());
            // Half of the calls are on their way when the address changes, and go on from the new one.
            let calls = futures::future::join_all((0..100).map(|_| add(&counter, 1)));
            let (answers, ()) = tokio::join!(calls, router.forget());
            let totals: Vec<u64> = answers.into_iter().map(Result::unwrap).collect();
            assert_eq!(totals, (100 * round + 1..=100 * round + 100).collect::<Vec<u64>>(), "each once, in order");
            // One more round trip, and the server knows where its peer is now.
            while seen.remote_address().port() != router.outside.get() {
                add(&counter, 0).await.unwrap();
            }
        }
        assert!(session.end().is_none());
    });
}
