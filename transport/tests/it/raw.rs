//! Peers that speak to the transport byte by byte, and so may say what no honest program says.

use std::{sync::Arc, time::Duration};

use capnp::{
    message::{Builder, Reader, ReaderOptions},
    traits::ImbueMut,
};
use capnp_rpc::rpc_capnp::{call, exception, message, payload, return_};
use quinn::{ApplicationClose, ConnectionError, RecvStream, SendStream};
use schemas::{
    ErrorCode, RemoteError,
    objects_capnp::{counter, notes},
    session_capnp::hello,
    vat_capnp::{owner, vat},
};
use transport::{
    Endpoint, PeerConnection, Session, SessionOptions,
    frames::{Frame, FrameDecoder, FrameLimits},
};

use crate::support::{connect, key};

pub(crate) const COUNTER: u64 = <counter::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(crate) const NOTES: u64 = <notes::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(crate) const OWNER: u64 = <owner::Client as capnp::traits::HasTypeId>::TYPE_ID;
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
        self.call_with(question, target, interface, method, |_| {}).await;
    }

    /// The same, with something else about it.
    pub(crate) async fn call_with(
        &mut self,
        question: u32,
        target: u32,
        interface: u64,
        method: u16,
        alter: impl FnOnce(call::Builder<'_>),
    ) {
        self.send(|message| {
            let mut call = message.init_call();
            call.set_question_id(question);
            call.set_interface_id(interface);
            call.set_method_id(method);
            call.reborrow().init_target().init_promised_answer().set_question_id(target);
            // The parameters of every method here are a struct, and an empty one has all defaults.
            call.reborrow().init_params().init_content().init_as::<hello::Builder<'_>>();
            alter(call);
        })
        .await;
    }

    /// Calls `verify` of the owner's interface, which takes a capability: the peer's own number `hosted`.
    pub(crate) async fn lend(&mut self, question: u32, target: u32, hosted: u32) {
        self.call_with(question, target, OWNER, VERIFY, |call| {
            let mut payload = call.init_params();
            set_capability(payload.reborrow(), 0);
            payload.get_cap_table().unwrap().get(0).set_sender_hosted(hosted);
        })
        .await;
    }

    /// Lets go of an answer, and with it of the capabilities in it or not.
    pub(crate) async fn finish(&mut self, question: u32, release: bool) {
        self.send(|message| {
            let mut finish = message.init_finish();
            finish.set_question_id(question);
            finish.set_release_result_caps(release);
        })
        .await;
    }

    /// Reads on until the answer to `question`, and returns what it is.
    pub(crate) async fn answer_to(&mut self, question: u32) -> Answer {
        loop {
            let message = self.receive().await.expect("an answer");
            if let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() {
                let answer = answer.unwrap();
                if answer.get_answer_id() == question {
                    return Answer::of(answer);
                }
            }
        }
    }

    /// Reads on until we are called, and returns the number of the question.
    pub(crate) async fn called(&mut self) -> u32 {
        let message = self.receive_call().await;
        match message.get_root::<message::Reader<'_>>().unwrap().which() {
            Ok(message::Call(call)) => call.unwrap().get_question_id(),
            _ => unreachable!("only calls are returned"),
        }
    }

    /// The same; the whole call.
    pub(crate) async fn receive_call(&mut self) -> Reader<Frame> {
        loop {
            let message = self.receive().await.expect("a call");
            if let Ok(message::Call(_)) = message.get_root::<message::Reader<'_>>().unwrap().which() {
                return message;
            }
        }
    }

    /// Answers a question of the other side.
    pub(crate) async fn answer(&mut self, question: u32, fill: impl FnOnce(return_::Builder<'_>)) {
        self.send(|message| {
            let mut answer = message.init_return();
            answer.set_answer_id(question);
            answer.set_release_param_caps(false);
            fill(answer);
        })
        .await;
    }
}

/// What a question was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Results, with so many capabilities.
    Results(u32),
    /// An exception of this kind and code.
    Exception(exception::Type, ErrorCode),
    Canceled,
    Elsewhere,
}

impl Answer {
    fn of(answer: return_::Reader<'_>) -> Self {
        match answer.which().unwrap() {
            return_::Results(results) => Self::Results(results.unwrap().get_cap_table().unwrap().len()),
            return_::Exception(error) => {
                let error = error.unwrap();
                let reason = error.get_reason().unwrap().to_string().unwrap();
                let code = RemoteError::parse(&reason).map_or(ErrorCode::Internal, |remote| remote.code);
                Self::Exception(error.get_type().unwrap(), code)
            }
            return_::Canceled(()) => Self::Canceled,
            return_::ResultsSentElsewhere(()) => Self::Elsewhere,
            _ => panic!("an answer that this side never gives"),
        }
    }

    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Exception(_, code) => Some(*code),
            _ => None,
        }
    }
}

/// `verify` of the owner's interface: its parameters are a struct with a capability in its first pointer.
pub(crate) const VERIFY: u16 = 8;

/// Makes the content a struct whose first pointer is the capability `index` of the table, which gets so many entries
/// and one more, each of them none at first.
pub(crate) fn set_capability(mut payload: payload::Builder<'_>, index: u32) {
    let stand_in = || capnp_rpc::new_broken_cap(capnp::Error::failed("a stand-in".to_owned())).hook;
    // Writes a capability pointer to the last entry of the table; the stand-ins themselves are not sent.
    let mut stand_ins = (0..index).map(|_| Some(stand_in())).collect();
    let mut content = payload.reborrow().init_content();
    content.imbue_mut(&mut stand_ins);
    content.init_as::<vat::restore_results::Builder<'_>>().init_capability().set_as_capability(stand_in());
    payload.init_cap_table(index + 1);
}

/// In a message of one segment with a list of `count` pointers of which only the first is set, has the others lead
/// to the same place.
pub(crate) fn repeat_first_pointer(bytes: &mut [u8], count: usize) {
    let word = |bytes: &[u8], index: usize| u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().unwrap());
    let words = bytes.len() / 8;
    // The list is the first run of null pointers that is long enough; the first pointer is before it.
    let nulls = |from: usize| (from..words).take_while(|index| word(bytes, *index) == 0).count();
    let first = (1..words).find(|index| nulls(*index) >= count - 1).unwrap() - 1;
    let pointer = word(bytes, first);
    for index in 1..count {
        // A pointer is relative to its own place: 30 bits with a sign, above the two of its kind.
        let (upper, lower) = (pointer & !0xffff_ffff, u32::try_from(pointer & 0xffff_ffff).unwrap());
        let moved = upper | u64::from(lower.wrapping_sub(4 * u32::try_from(index).unwrap()));
        bytes[8 * (first + index)..8 * (first + index) + 8].copy_from_slice(&moved.to_le_bytes());
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
