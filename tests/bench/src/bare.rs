//! quinn and nothing of ours: endpoints with raw public keys on both sides and default settings.
//!
//! What baselines stand on. Whatever a session costs more than they do is the price of what it adds.

pub(crate) mod keys;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use quinn::{
    Connection, Endpoint,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use schemas::IdentityKey;
use tokio::task::spawn_local;

use crate::{
    Failure,
    program::{Ready, Stop},
};

/// Any port of the loopback address.
pub(crate) const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PROTOCOL: &[u8] = b"bare";

/// Where a server is, and the key that it proves.
#[derive(Debug, Clone)]
pub(crate) struct BareServer {
    address: SocketAddr,
    key: keys::PublicKey,
}

#[cfg(test)]
impl BareServer {
    /// This one, were it to prove the key of `other`.
    pub(crate) fn with_key_of(&self, other: &Self) -> Self {
        Self { address: self.address, key: other.key.clone() }
    }
}

/// Accepts connections until told to stop, each with a task of its own.
pub(crate) async fn serve<F>(
    ready: Ready<BareServer>,
    mut stop: Stop,
    answer: impl Fn(Connection) -> F + Clone + 'static,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + 'static,
{
    let key = IdentityKey::generate()?;
    let crypto = QuicServerConfig::try_from(keys::server(&key, PROTOCOL)?)?;
    let endpoint = Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), ANY_PORT)?;
    ready.serving(BareServer { address: endpoint.local_addr()?, key: keys::public(&key) });
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(incoming) = endpoint.accept() => {
                let answer = answer.clone();
                // Whoever came will say what went wrong.
                spawn_local(async move { answer(incoming.await?).await });
            }
        }
    }
    Ok(())
}

/// One identity that dials one server.
pub(crate) struct Dialler {
    endpoint: Endpoint,
    server: SocketAddr,
}

impl Dialler {
    /// A new one.
    pub(crate) fn new(server: &BareServer) -> Result<Self, Failure> {
        let crypto = keys::client(&IdentityKey::generate()?, server.key.clone(), PROTOCOL)?;
        let mut endpoint = Endpoint::client(ANY_PORT)?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto)?)));
        Ok(Self { endpoint, server: server.address })
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        Ok(self.endpoint.connect(self.server, keys::SERVER_NAME)?.await?)
    }

    /// Waits until all connections are gone.
    pub(crate) async fn idle(&self) {
        self.endpoint.wait_idle().await;
    }
}
