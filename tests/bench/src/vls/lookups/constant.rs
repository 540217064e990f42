//! hyper, and nothing behind it: every request is answered with the same bytes.

use std::{convert::Infallible, net::Ipv4Addr};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::spawn_local};

use super::process::until_unwanted;
use crate::{Failure, program::run, vls::records::PACKET_BYTES};

/// Its name among the servers of this program.
pub(super) const KIND: &str = "constant";

/// Serves until nobody wants it.
pub(super) fn serve() -> Result<(), Failure> {
    run(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        super::server::say(&listener.local_addr()?.to_string())?;
        // A relay's body is its packet without the key.
        let body = Bytes::from(vec![b'x'; PACKET_BYTES]);
        let serving = async {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let body = body.clone();
                let answer = service_fn(move |_| {
                    let body = Full::new(body.clone());
                    async { Ok::<_, Infallible>(Response::new(body)) }
                });
                spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        };
        tokio::select! {
            outcome = serving => outcome,
            unwanted = tokio::task::spawn_blocking(until_unwanted) => unwanted?,
        }
    })
}
