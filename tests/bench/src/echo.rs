//! The bare echo: what a round trip costs with quinn and nothing of ours.
//!
//! One connection with raw public keys on both sides, one bidirectional stream that stays open, as a session
//! has. The client writes a request and reads the answer; the server reads the request and writes the answer.
//! Everything else is quinn's default. Whatever a session costs more than this is the price of Cap'n Proto,
//! the output gate and the objects behind it.

use quinn::{Connection, RecvStream, SendStream};
use tokio::task::spawn_local;

use crate::{
    Failure,
    allocations::watch_this_thread,
    bare::{self, BareServer, Dialler},
    exchange::Exchange,
    program::{Program, Ready, Stop},
};

/// A stream begins with the two sizes, 8 bytes each.
const HEAD_BYTES: usize = 16;

/// Starts an echo server.
pub(crate) fn start() -> Result<Program<BareServer>, Failure> {
    Program::start("echo", async |ready, stop| {
        watch_this_thread();
        serve(ready, stop).await
    })
}

async fn serve(ready: Ready<BareServer>, stop: Stop) -> Result<(), Failure> {
    bare::serve(ready, stop, answer_connection).await
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
    connection: Connection,
}

impl Echo {
    /// Connects, and has the first exchange.
    pub(crate) async fn connect(server: &BareServer, sizes: Exchange) -> Result<Self, Failure> {
        Self::connect_from(&Dialler::new(server)?, sizes).await
    }

    /// The same with a dialler that there is already.
    pub(crate) async fn connect_from(dialler: &Dialler, sizes: Exchange) -> Result<Self, Failure> {
        let connection = dialler.connect().await?;
        let (mut send, receive) = connection.open_bi().await?;
        let head = [sizes.request, sizes.answer].map(|size| (size as u64).to_be_bytes());
        send.write_all(head.as_flattened()).await?;
        let (request, answer) = (vec![0; sizes.request], vec![0; sizes.answer]);
        let mut echo = Self { send, receive, request, answer, connection };
        echo.exchange().await?;
        Ok(echo)
    }

    /// Says goodbye.
    pub(crate) fn close(self) {
        self.connection.close(0_u32.into(), b"");
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
        let mixed = server.greeting().with_key_of(other.greeting());
        let refused = run(Echo::connect(&mixed, Exchange { request: 1, answer: 1 }));
        assert!(refused.is_err());
    }
}
