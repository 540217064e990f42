//! Baseline: tonic, gRPC over TLS, both ends.
//!
//! The counter of [`adder`](super::adder) as a gRPC method. The TLS is rustls with the same raw keys and the same
//! provider as everywhere here, and the messages are those that Protocol Buffers would make of a message with one
//! number, written by hand: the baseline needs no `protoc`, and is the faster for it. The server admits as many calls at
//! once as there are callers; all else is default.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Buf, BufMut};
use futures::stream;
use hyper_util::rt::TokioIo;
use schemas::IdentityKey;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tonic::{
    Request, Response, Status, client,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    server,
    transport::{Channel, Endpoint, Server, server::Connected},
};
use tower::service_fn;

use crate::{
    Failure,
    bare::{ANY_PORT, keys},
    program::{Program, Ready, Stop},
};

const PROTOCOL: &[u8] = b"h2";
const METHOD: &str = "/bench.Counter/Add";
/// More calls at once than any figure has.
const CALLS_AT_ONCE: u32 = 4096;

/// Where a server is, and the key that it proves.
#[derive(Debug, Clone)]
pub(super) struct GrpcServer {
    address: SocketAddr,
    key: keys::PublicKey,
}

/// Starts a server with a counter.
pub(super) fn start() -> Result<Program<GrpcServer>, Failure> {
    Program::start("grpc", serve)
}

async fn serve(ready: Ready<GrpcServer>, stop: Stop) -> Result<(), Failure> {
    let key = IdentityKey::generate()?;
    let tls = TlsAcceptor::from(Arc::new(keys::server(&key, PROTOCOL)?));
    let listener = TcpListener::bind(ANY_PORT).await?;
    ready.serving(GrpcServer { address: listener.local_addr()?, key: keys::public(&key) });
    let incoming = stream::unfold((listener, tls), async |(listener, tls)| {
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(Encrypted(tls.accept(stream).await?))
        };
        Some((accepted.await, (listener, tls)))
    });
    let total = Arc::new(AtomicU64::new(0));
    let service = service_fn(move |request| {
        let total = total.clone();
        async move { Ok::<_, Infallible>(server::Grpc::new(NumberCodec).unary(Add(total), request).await) }
    });
    let stopped = async {
        // Dropped or sent: both mean the end.
        let _ = stop.await;
    };
    let server = Server::builder().max_concurrent_streams(CALLS_AT_ONCE);
    tokio::select! {
        served = server.serve_with_incoming_shutdown(service, incoming, std::future::pending()) => Ok(served?),
        () = stopped => Ok(()),
    }
}

/// The method.
struct Add(Arc<AtomicU64>);

impl server::UnaryService<u64> for Add {
    type Response = u64;
    type Future = std::future::Ready<Result<Response<u64>, Status>>;

    fn call(&mut self, request: Request<u64>) -> Self::Future {
        let by = request.into_inner();
        std::future::ready(Ok(Response::new(self.0.fetch_add(by, Relaxed).wrapping_add(by))))
    }
}

/// A connection to such a server. Clones share it.
#[derive(Clone)]
pub(super) struct Caller(client::Grpc<Channel>);

impl Caller {
    /// Connects.
    pub(super) async fn connect(server: &GrpcServer) -> Result<Self, Failure> {
        let tls = keys::client(&IdentityKey::generate()?, server.key.clone(), PROTOCOL)?;
        let (tls, address) = (TlsConnector::from(Arc::new(tls)), server.address);
        let connector = service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = keys::SERVER_NAME.try_into().map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        Ok(Self(client::Grpc::new(endpoint.connect_with_connector(connector).await?)))
    }

    /// One call.
    pub(super) async fn add(&self) -> Result<(), Failure> {
        let mut client = self.0.clone();
        client.ready().await?;
        let total = client.unary(Request::new(1), PathAndQuery::from_static(METHOD), NumberCodec).await?;
        match total.into_inner() {
            0 => Err("the counter does not count".into()),
            _ => Ok(()),
        }
    }
}

/// A message with one number in field 1.
#[derive(Debug, Clone, Copy)]
struct NumberCodec;

/// Field 1, a varint (Protocol Buffers' encoding).
const KEY: u8 = 1 << 3;

impl Codec for NumberCodec {
    type Encode = u64;
    type Decode = u64;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for NumberCodec {
    type Item = u64;
    type Error = Status;

    fn encode(&mut self, mut number: u64, output: &mut EncodeBuf<'_>) -> Result<(), Status> {
        output.put_u8(KEY);
        while number > 0x7f {
            output.put_u8(number.to_le_bytes()[0] & 0x7f | 0x80);
            number >>= 7;
        }
        output.put_u8(number.to_le_bytes()[0]);
        Ok(())
    }
}

impl Decoder for NumberCodec {
    type Item = u64;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<u64>, Status> {
        let mut bytes = input.copy_to_bytes(input.remaining()).into_iter();
        if bytes.next() != Some(KEY) {
            return Err(Status::internal("not a number"));
        }
        let add = |number, (index, byte): (u32, u8)| number | u64::from(byte & 0x7f).wrapping_shl(7 * index);
        Ok(Some((0..).zip(bytes).fold(0, add)))
    }
}

/// tonic asks what is known of a connection, and implements the question for this stream only together with its own TLS.
struct Encrypted(TlsStream<TcpStream>);

impl Connected for Encrypted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
