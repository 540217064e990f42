//! The bare echo: what a round trip costs with quinn and nothing of ours.
//!
//! One connection with raw public keys on both sides, one bidirectional stream that stays open, as a session
//! has. The client writes a request and reads the answer; the server reads the request and writes the answer.
//! Everything else is quinn's default. Whatever a session costs more than this is the price of Cap'n Proto,
//! the output gate and the objects behind it.

mod keys;

use std::net::{Ipv4Addr, SocketAddr};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use schemas::IdentityKey;
use tokio::task::spawn_local;

use crate::{
    Failure,
    exchange::Exchange,
    program::{Program, Ready, Stop},
};

/// Where an echo server is, and the key that it proves.
#[derive(Debug, Clone)]
pub(crate) struct EchoServer {
    address: SocketAddr,
    key: keys::PublicKey,
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// A stream begins with the two sizes, 8 bytes each.
const HEAD_BYTES: usize = 16;

/// Starts an echo server.
pub(crate) fn start() -> Result<Program<EchoServer>, Failure> {
    Program::start("echo", serve)
}

async fn serve(ready: Ready<EchoServer>, mut stop: Stop) -> Result<(), Failure> {
    let key = IdentityKey::generate()?;
    let endpoint = Endpoint::server(keys::server(&key)?, ANY_PORT)?;
    ready.serving(EchoServer { address: endpoint.local_addr()?, key: keys::public(&key) });
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(incoming) = endpoint.accept() => {
                // Whoever came will say what went wrong.
                spawn_local(async move { answer_connection(incoming.await?).await });
            }
        }
    }
    Ok(())
}

async fn answer_connection(connection: Connection) -> Result<(), Failure> {
    loop {
        let (send, receive) = connection.accept_bi().await?;
        spawn_local(answer_stream(send, receive));
    }
}

async fn answer_stream(mut send: SendStream, mut receive: RecvStream) -> Result<(), Failure> {
    let mut head = [0; HEAD_BYTES];
    receive.read_exact(&mut head).await?;
    let size = |bytes: &[u8]| Ok::<_, Failure>(usize::try_from(u64::from_be_bytes(bytes.try_into()?))?);
    let mut request = vec![0; size(&head[..8])?];
    let answer = vec![1; size(&head[8..])?];
    loop {
        receive.read_exact(&mut request).await?;
        send.write_all(&answer).await?;
    }
}

/// A warm connection to an echo server.
pub(crate) struct Echo {
    send: SendStream,
    receive: RecvStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// The stream needs them; nothing else does.
    _connection: Connection,
    _endpoint: Endpoint,
}

impl Echo {
    /// Connects, and has the first exchange.
    pub(crate) async fn connect(server: &EchoServer, sizes: Exchange) -> Result<Self, Failure> {
        let mut endpoint = Endpoint::client(ANY_PORT)?;
        endpoint.set_default_client_config(keys::client(&IdentityKey::generate()?, server.key.clone())?);
        let connection = endpoint.connect(server.address, keys::SERVER_NAME)?.await?;
        let (mut send, receive) = connection.open_bi().await?;
        for size in [sizes.request, sizes.answer] {
            send.write_all(&u64::try_from(size)?.to_be_bytes()).await?;
        }
        let (request, answer) = (vec![0; sizes.request], vec![0; sizes.answer]);
        let mut echo = Self { send, receive, request, answer, _connection: connection, _endpoint: endpoint };
        echo.exchange().await?;
        Ok(echo)
    }

    /// One request, one answer.
    pub(crate) async fn exchange(&mut self) -> Result<(), Failure> {
        self.send.write_all(&self.request).await?;
        Ok(self.receive.read_exact(&mut self.answer).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::run;

    #[test]
    fn answers_have_the_size_that_was_asked_for() {
        let server = start().unwrap();
        run(async {
            for sizes in [Exchange { request: 1, answer: 70_000 }, Exchange { request: 70_000, answer: 1 }] {
                let mut echo = Echo::connect(server.greeting(), sizes).await?;
                echo.exchange().await?;
                assert_eq!(echo.answer, vec![1; sizes.answer]);
            }
            Ok(())
        })
        .unwrap();
        server.stop().unwrap();
    }

    #[test]
    fn a_server_with_another_key_is_refused() {
        let (server, other) = (start().unwrap(), start().unwrap());
        let mixed = EchoServer { address: server.greeting().address, key: other.greeting().key.clone() };
        let refused = run(Echo::connect(&mixed, Exchange { request: 1, answer: 1 }));
        assert!(refused.is_err());
    }
}
