//! Peers that speak to the transport byte by byte, and so may say what no honest program says.

use std::{sync::Arc, time::Duration};

use capnp::message::{Builder, Reader, ReaderOptions};
use capnp_rpc::rpc_capnp::message;
use quinn::{ApplicationClose, ConnectionError, RecvStream, SendStream};
use schemas::{
    RemoteError,
    objects_capnp::{counter, notes},
    session_capnp::hello,
    vat_capnp::vat,
};
use transport::{
    Endpoint, PeerConnection, Session, SessionOptions,
    frames::{Frame, FrameDecoder, FrameLimits},
};

use crate::support::{connect, key};

pub(crate) const COUNTER: u64 = <counter::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(crate) const NOTES: u64 = <notes::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(crate) const VAT: u64 = <vat::Client as capnp::traits::HasTypeId>::TYPE_ID;

/// A peer with a key of its own, on a stream of its own, and no manners.
pub(crate) struct RawPeer {
    pub(crate) connection: PeerConnection,
    pub(crate) output: SendStream,
    input: RecvStream,
    decoder: FrameDecoder,
    _endpoint: Endpoint,
}

pub(crate) fn preface(kind: u16, version: u16) -> Vec<u8> {
    [b"vat\0", &kind.to_le_bytes()[..], &version.to_le_bytes()[..]].concat()
}

pub(crate) fn hello_bytes(version: u16, incarnation: &[u8]) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut hello: hello::Builder<'_> = message.init_root();
    hello.set_version(version);
    hello.set_incarnation(incarnation);
    capnp::serialize::write_message_to_words(&message)
}

/// The eight bytes that announce a message of one segment.
pub(crate) fn announce(words: u32) -> Vec<u8> {
    [0_u32.to_le_bytes(), words.to_le_bytes()].concat()
}

impl RawPeer {
    /// Dials `server` and returns both ends before anything was said.
    pub(crate) async fn dial(server: &Endpoint) -> (Self, PeerConnection) {
        let endpoint = Endpoint::client(&key()).unwrap();
        let (connection, accepted) = connect(server, &endpoint).await;
        let (output, input) = connection.quinn().open_bi().await.unwrap();
        let decoder = FrameDecoder::new(FrameLimits { message_bytes: 64 << 20, segments: 512 });
        (Self { connection, output, input, decoder, _endpoint: endpoint }, accepted)
    }

    /// The same with greetings exchanged: the accepted session is running.
    pub(crate) async fn greeted(server: &Endpoint, options: SessionOptions) -> (Self, Session) {
        let (mut peer, accepted) = Self::dial(server).await;
        let greet = async {
            peer.write(&[preface(1, 1), hello_bytes(1, &[3; 16])].concat()).await;
            peer.input.read_exact(&mut [0; 8]).await.unwrap();
            peer.receive_frame().await.unwrap();
        };
        let ((), session) = tokio::join!(greet, Session::accept(accepted, options));
        (peer, session.unwrap())
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.output.write_all(bytes).await.unwrap();
    }

    /// Sends an RPC message.
    pub(crate) async fn send(&mut self, fill: impl FnOnce(message::Builder<'_>)) {
        let mut message = Builder::new_default();
        fill(message.init_root());
        self.write(&capnp::serialize::write_message_to_words(&message)).await;
    }

    /// The next RPC message; `None` when the stream has ended.
    pub(crate) async fn receive(&mut self) -> Option<Reader<Frame>> {
        Some(Reader::new(self.receive_frame().await?, ReaderOptions::new()))
    }

    async fn receive_frame(&mut self) -> Option<Frame> {
        loop {
            let chunk = self.input.read_chunk(self.decoder.needed(), true).await.ok()??;
            if let Some(frame) = self.decoder.push(&mut &chunk.bytes[..]).unwrap() {
                return Some(frame);
            }
        }
    }

    /// Why the other side closed the connection.
    pub(crate) async fn told(&self) -> RemoteError {
        match self.connection.quinn().closed().await {
            ConnectionError::ApplicationClosed(ApplicationClose { reason, error_code }) => {
                let remote = RemoteError::parse(std::str::from_utf8(&reason).unwrap()).expect("a code and a message");
                assert_eq!(error_code.into_inner(), u64::from(remote.code.exit() as u8));
                remote
            }
            other => panic!("{other}"),
        }
    }

    /// Asks for the bootstrap capability, as question `question`.
    pub(crate) async fn bootstrap(&mut self, question: u32) {
        self.send(|message| message.init_bootstrap().set_question_id(question)).await;
    }

    /// Calls method `method` of the capability that question `target` is answered with, before it is.
    pub(crate) async fn call(&mut self, question: u32, target: u32, interface: u64, method: u16) {
        self.send(|message| {
            let mut call = message.init_call();
            call.set_question_id(question);
            call.set_interface_id(interface);
            call.set_method_id(method);
            call.reborrow().init_target().init_promised_answer().set_question_id(target);
            // The parameters of every method here are a struct, and an empty one has all defaults.
            call.init_params().init_content().init_as::<hello::Builder<'_>>();
        })
        .await;
    }
}

/// A quinn endpoint without any of our code, on a free port of the loopback.
pub(crate) fn bare_endpoint(server: Option<rustls::ServerConfig>) -> quinn::Endpoint {
    let address = "127.0.0.1:0".parse().unwrap();
    match server {
        None => quinn::Endpoint::client(address).unwrap(),
        Some(config) => {
            let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
            quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), address).unwrap()
        }
    }
}

pub(crate) const SHORT: Duration = Duration::from_millis(200);
