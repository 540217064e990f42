//! A vat's TLS port: programs on other machines that have no QUIC.
//!
//! They get what everyone gets who dials, the [`Vat`](schemas::vat_capnp::vat) capability that gives no authority; or
//! the object whose secret they name in their first message, as OCaml's sturdyrefs do.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    rc::Rc,
};

use capnp::capability::{Client, Promise};
use schemas::{ErrorCode, Network, Secret, SturdyRef, VatId, vat_capnp};
use transport::{ForeignOptions, OutputGate, SessionLimits, TlsIncoming, TlsListener};

use super::{LiveTls, RunError};
use crate::{
    core::{Vat, VatError},
    foreign::ForeignClients,
    home::replace_file,
    limits::{ACCEPT_PAUSE, MAX_TLS_CLIENTS, MAX_TLS_CLIENTS_PER_NETWORK, MAX_TLS_HANDSHAKES},
    object::wire_error,
};

/// The TLS port of one vat, and who is connected to it.
pub(super) struct Strangers {
    listener: TlsListener,
    clients: ForeignClients,
    /// Those who still shake hands are counted apart, so that nobody loses a place to one who never gets that far.
    handshakes: ForeignClients,
    /// How many come from the same network.
    networks: Networks,
}

type Networks = Rc<RefCell<HashMap<Network, usize>>>;

impl Strangers {
    pub(super) fn new(listener: TlsListener) -> Self {
        Self {
            listener,
            clients: ForeignClients::new(MAX_TLS_CLIENTS),
            handshakes: ForeignClients::new(MAX_TLS_HANDSHAKES),
            networks: Rc::default(),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.clients.count()
    }

    /// Where it listens, and by what a client can tell that it is this vat. The certificate goes into a file, since
    /// that is how most programs want it.
    pub(super) fn describe(&self, certificate_file: PathBuf) -> Result<LiveTls, RunError> {
        let certificate = self.listener.certificate();
        replace_file(&certificate_file, certificate.pem().as_bytes())?;
        Ok(LiveTls {
            address: self.listener.local_address(),
            key_fingerprint: certificate.key_fingerprint(),
            certificate: certificate_file,
        })
    }

    /// Lets clients in, each in a task of its own, until dropped.
    pub(super) async fn accept(&self, vat: &Rc<Vat>, public: &vat_capnp::vat::Client, gate: &OutputGate) {
        loop {
            match self.listener.accept().await {
                Ok(incoming) => self.admit(incoming, vat, public, gate),
                Err(error) => {
                    // Too many open files, say: asking again at once would only burn the processor.
                    tracing::warn!(%error, "the TLS port failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, incoming: TlsIncoming, vat: &Rc<Vat>, public: &vat_capnp::vat::Client, gate: &OutputGate) {
        // Dropped is hung up on, before anything was spent on its handshake.
        let Some(neighbour) = Neighbour::enter(&self.networks, incoming.remote_address().ip()) else { return };
        let Some(handshake) = self.handshakes.place_or_eviction() else { return };
        let options = ForeignOptions {
            bootstrap: public.clone().client,
            restore: Rc::new({
                let vat = vat.clone();
                move |id| restore(&vat, id)
            }),
            gate: gate.clone(),
            limits: SessionLimits::default(),
        };
        let clients = self.clients.clone();
        tokio::task::spawn_local(async move {
            let stream = incoming.accept().await;
            drop(handshake);
            match stream {
                Ok(stream) => match clients.place_or_eviction() {
                    Some(place) => clients.serve(stream, options, place).await,
                    None => tracing::debug!("a client over TLS was not let in: there is no place"),
                },
                Err(error) => tracing::debug!(%error, "no TLS connection"),
            }
            drop(neighbour);
        });
    }

    /// Lets nobody in any more, answers what was asked, and ends every session.
    pub(super) async fn drain(&self) {
        self.clients.drain(ErrorCode::VatStopping).await;
    }
}

/// Where the certificate of a vat lies, given its socket.
pub(super) fn certificate_file(socket: &Path) -> PathBuf {
    socket.with_extension("pem")
}

/// The object whose secret a client has named. Whatever else the id is, the answer is that of a wrong secret.
fn restore(vat: &Vat, id: &[u8]) -> Promise<Client, capnp::Error> {
    let restored = named_secret(&vat.id(), id).ok_or(VatError::Denied).and_then(|secret| vat.restore(&secret));
    match restored {
        Ok((object, _)) => Promise::ok(Client::new(object)),
        Err(error) => Promise::err(wire_error(&error)),
    }
}

/// The secret in an object id: its 32 bytes, as Data or as a Text with a zero byte behind them, or a whole reference
/// of this vat.
fn named_secret(own: &VatId, id: &[u8]) -> Option<Secret> {
    match id {
        [secret @ .., 0] if secret.len() == 32 => Secret::from_slice(secret).ok(),
        secret if secret.len() == 32 => Secret::from_slice(secret).ok(),
        text => {
            let text = std::str::from_utf8(text.strip_suffix(&[0]).unwrap_or(text)).ok()?;
            let reference = text.parse::<SturdyRef>().ok()?;
            (reference.id == *own).then_some(reference.secret)
        }
    }
}

/// One client of a network, as long as it is there.
struct Neighbour {
    networks: Networks,
    network: Network,
}

impl Neighbour {
    /// `None` if there are too many of that network already.
    fn enter(networks: &Networks, address: IpAddr) -> Option<Self> {
        let network = Network::of(address);
        let mut counts = networks.borrow_mut();
        let count = counts.entry(network).or_default();
        if *count >= MAX_TLS_CLIENTS_PER_NETWORK {
            return None;
        }
        *count += 1;
        Some(Self { networks: networks.clone(), network })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let mut counts = self.networks.borrow_mut();
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::IdentityKey;

    use super::*;

    #[test]
    fn a_secret_is_found_in_every_form_in_which_clients_name_it() {
        let (own, other) = ([1, 2]).map(|seed| IdentityKey::from_seed(&[seed; 32]).id()).into();
        // One that ends with a zero byte, which could be taken for the end of a text.
        let mut bytes = [5; 32];
        bytes[31] = 0;
        let reference = |id| SturdyRef { id, secret: Secret::from_slice(&bytes).unwrap(), hints: Default::default() };
        let text = reference(own).expose();
        let found =
            [bytes.to_vec(), [&bytes[..], &[0]].concat(), text.as_bytes().to_vec(), [text.as_bytes(), &[0]].concat()];
        for id in found {
            assert_eq!(named_secret(&own, &id).map(|secret| *secret.expose()), Some(bytes));
        }
        let elsewhere = reference(other).expose();
        for id in [&bytes[..31], &[1; 33], elsewhere.as_bytes(), &text.as_bytes()[1..], b"\xff", b""] {
            assert_eq!(named_secret(&own, id), None);
        }
    }

    #[test]
    fn clients_of_one_network_are_counted_together_and_no_longer_than_they_are_there() {
        let networks = Networks::default();
        let address = |number: usize| format!("2001:db8:0:0:1::{number:x}").parse().unwrap();
        let inside: Vec<_> = (0..MAX_TLS_CLIENTS_PER_NETWORK)
            .map(|number| Neighbour::enter(&networks, address(number)).unwrap())
            .collect();
        assert!(Neighbour::enter(&networks, address(7)).is_none());
        let other = Neighbour::enter(&networks, "2001:db8:1::1".parse().unwrap());
        assert!(other.is_some());
        drop((inside, other));
        assert!(networks.borrow().is_empty());
    }
}
