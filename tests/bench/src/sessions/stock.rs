//! Baseline: capnp-rpc as it ships, its `twoparty` network on a stream of a bare quinn connection.
//!
//! Both streams are buffered, as its documentation advises; everything else is default, quinn included.

use capnp::message::ReaderOptions;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use futures::io::{BufReader, BufWriter};
use quinn::{Connection, RecvStream, SendStream};
use schemas::objects_capnp::counter;
use tokio::task::spawn_local;

use super::adder;
use crate::{
    Failure,
    bare::{self, BareServer},
    program::{Program, Ready, Stop},
};

/// Starts a server that gives every peer a counter.
pub(super) fn start() -> Result<Program<BareServer>, Failure> {
    Program::start("stock", serve)
}

async fn serve(ready: Ready<BareServer>, stop: Stop) -> Result<(), Failure> {
    let counter = adder::new();
    bare::serve(ready, stop, move |connection| {
        let counter = counter.clone();
        async move {
            let (mut send, mut receive) = connection.accept_bi().await?;
            receive.read_exact(&mut [0]).await?;
            send.write_all(&[0]).await?;
            Ok(RpcSystem::new(network(send, receive, Side::Server), Some(counter)).await?)
        }
    })
    .await
}

fn network(send: SendStream, receive: RecvStream, side: Side) -> Box<VatNetwork<BufReader<RecvStream>>> {
    let (input, output) = (BufReader::new(receive), BufWriter::new(send));
    Box::new(VatNetwork::new(input, output, side, ReaderOptions::new()))
}

/// A connection to such a server, and the counter behind it.
pub(super) struct Caller {
    pub(super) counter: counter::Client,
    /// The stream needs them; nothing else does.
    _connection: Connection,
    _dialler: bare::Dialler,
}

impl Caller {
    /// Connects.
    pub(super) async fn connect(server: &BareServer) -> Result<Self, Failure> {
        let dialler = bare::Dialler::new(server)?;
        let connection = dialler.connect().await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        // A stream exists for the other side when something comes through it.
        send.write_all(&[0]).await?;
        receive.read_exact(&mut [0]).await?;
        let mut system = RpcSystem::new(network(send, receive, Side::Client), None);
        let counter = system.bootstrap(Side::Server);
        // Ends with the connection.
        spawn_local(system);
        Ok(Self { counter, _connection: connection, _dialler: dialler })
    }
}
