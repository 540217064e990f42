//! A vat's TLS port: programs on other machines that have no QUIC.
//!
//! They get what everyone gets who dials, the [`Vat`](schemas::vat_capnp::vat) capability that gives no authority; or
//! the object whose secret they name in their first message, as OCaml's sturdyrefs do.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use capnp::capability::{Client, Promise};
use schemas::{ErrorCode, Secret, SturdyRef, VatId, vat_capnp};
use transport::{ForeignOptions, OutputGate, SessionLimits, Sessions, TlsIncoming, TlsListener, peers::PeerLimits};

use super::{LiveTls, RunError};
use crate::{
    core::{Vat, VatError},
    home::replace_file,
    limits::{
        ACCEPT_PAUSE, CLOSE_DEADLINE, DRAIN_DEADLINE, MAX_TLS_CLIENTS, MAX_TLS_CLIENTS_PER_NETWORK, MAX_TLS_HANDSHAKES,
        MAX_TLS_HANDSHAKES_PER_NETWORK,
    },
    object::wire_error,
};

/// The TLS port of one vat, and who is connected to it.
pub(super) struct Strangers {
    listener: TlsListener,
    /// A table of their own: they take no place from peers that prove who they are.
    table: Sessions,
}

impl Strangers {
    pub(super) fn new(ours: VatId, listener: TlsListener) -> Self {
        let mut limits = PeerLimits::default();
        limits.sessions = MAX_TLS_CLIENTS;
        limits.sessions_per_network = MAX_TLS_CLIENTS_PER_NETWORK;
        limits.handshakes = MAX_TLS_HANDSHAKES;
        limits.handshakes_per_network = MAX_TLS_HANDSHAKES_PER_NETWORK;
        Self { listener, table: Sessions::new(ours, limits) }
    }

    pub(super) fn count(&self) -> usize {
        self.table.count()
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
        let Some(handshake) = self.table.begin_tls(incoming) else { return };
        let options = ForeignOptions {
            bootstrap: public.clone().client,
            restore: Rc::new({
                let vat = vat.clone();
                move |id| restore(&vat, id)
            }),
            gate: gate.clone(),
            limits: SessionLimits::default(),
        };
        tokio::task::spawn_local(async move {
            if let Err(error) = handshake.finish(options).await {
                tracing::debug!(%error, "no session over TLS");
            }
        });
    }

    /// Lets nobody in any more, answers what was asked, and ends every session.
    pub(super) async fn drain(&self) {
        self.table.drain(ErrorCode::VatStopping, DRAIN_DEADLINE, CLOSE_DEADLINE).await;
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
}
