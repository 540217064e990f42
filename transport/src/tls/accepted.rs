//! The TLS of an accepted connection: gone when the handshake is over.
//!
//! quinn keeps the whole TLS machine of a connection as long as the connection: its configuration, the buffers of the
//! handshake, and keys for records, which QUIC does not have. That is a tenth of what an idle session costs, for
//! nothing: resumption and 0-RTT are off here, and no server takes a TLS message behind the handshake (RFC 9001 §4.4 and §6
//! forbid authentication after it and key updates by TLS). Needed later are the secrets for QUIC's own key updates, who the peer is, and
//! the [`ResumeToken`](crate::ResumeToken). So the machine is dropped when these are known.
//!
//! What happens in the handshake is rustls's business alone, and packets are protected by its keys; this only carries bytes to
//! and fro, as `quinn_proto::crypto::rustls` does. A side that dialled keeps quinn's own: it must be able to take session
//! tickets, if only to ignore them, and there are few who dial thousands.

use std::{any::Any, io::Cursor, sync::Arc};

use quinn_proto::{
    ConnectionId, Side, TransportError, TransportErrorCode,
    crypto::{
        self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion,
        rustls::{HandshakeData, QuicServerConfig},
    },
    transport_parameters::TransportParameters,
};
use rustls::{
    AlertDescription, ServerConfig,
    pki_types::CertificateDer,
    quic::{Connection, KeyChange, Secrets, ServerConnection, Version},
};

use super::{ALPN, TlsSetupError};
use crate::resume::{self, TOKEN_BYTES};

/// How connections are accepted.
pub(crate) struct AcceptConfig {
    tls: Arc<ServerConfig>,
    /// For what comes before TLS.
    quic: QuicServerConfig,
}

impl AcceptConfig {
    pub(super) fn new(tls: ServerConfig) -> Result<Self, TlsSetupError> {
        let tls = Arc::new(tls);
        // Fails, if it does, for what is in the configuration: better now than when somebody connects.
        ServerConnection::new(tls.clone(), Version::V1, Vec::new())?;
        Ok(Self { quic: QuicServerConfig::try_from(tls.clone())?, tls })
    }

    // Proof: `new` has made one of the same configuration, on which alone it depends.
    #[allow(clippy::expect_used)]
    fn begin(self: Arc<Self>, version: u32, parameters: &TransportParameters) -> Accepted {
        let mut encoded = Vec::new();
        parameters.write(&mut encoded);
        let tls = ServerConnection::new(self.tls.clone(), tls_version(version), encoded);
        let tls = Connection::Server(tls.expect("a configuration that was tried"));
        let stage = Stage::Handshake(Box::new(Handshake { tls, next: None, is_told: false }));
        Accepted { config: self, version, stage }
    }
}

impl crypto::ServerConfig for AcceptConfig {
    fn initial_keys(&self, version: u32, connection: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.quic.initial_keys(version, connection)
    }

    fn retry_tag(&self, version: u32, connection: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quic.retry_tag(version, connection, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, parameters: &TransportParameters) -> Box<dyn crypto::Session> {
        Box::new(self.begin(version, parameters))
    }
}

/// The variant of QUIC's use of TLS. Only asked for versions that quinn knows, and it speaks no other than this and
/// the drafts of it.
fn tls_version(version: u32) -> Version {
    match version {
        0xff00_001d..=0xff00_0020 => Version::V1Draft,
        _ => Version::V1,
    }
}

/// One connection's.
struct Accepted {
    config: Arc<AcceptConfig>,
    version: u32,
    stage: Stage,
}

enum Stage {
    Handshake(Box<Handshake>),
    Over(Box<Over>),
}

struct Handshake {
    tls: Connection,
    /// For the key updates to come, once there are keys.
    next: Option<Secrets>,
    /// Whether quinn knows that there is something to know of the handshake.
    is_told: bool,
}

/// What is left of a handshake.
struct Over {
    next: Secrets,
    peer: Option<Vec<CertificateDer<'static>>>,
    token: Option<[u8; TOKEN_BYTES]>,
}

impl Handshake {
    /// Whether the peer has agreed to a protocol; who does not agree to ours gets no further.
    fn has_protocol(&self) -> bool {
        self.tls.alpn_protocol().is_some()
    }

    fn peer(&self) -> Option<Vec<CertificateDer<'static>>> {
        Some(self.tls.peer_certificates()?.iter().map(|key| key.clone().into_owned()).collect())
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.tls.read_hs(bytes).map_err(|error| match self.tls.alert() {
            Some(alert) => refusal(alert, error.to_string()),
            None => TransportError {
                code: TransportErrorCode::PROTOCOL_VIOLATION,
                frame: None,
                reason: format!("TLS error: {error}"),
            },
        })
    }

    /// What is left when everything was said.
    fn over(&mut self) -> Option<Over> {
        if self.tls.is_handshaking() {
            return None;
        }
        let token = self.tls.export_keying_material([0; TOKEN_BYTES], resume::LABEL, Some(resume::CONTEXT)).ok();
        Some(Over { next: self.next.take()?, peer: self.peer(), token })
    }
}

fn refusal(alert: AlertDescription, reason: String) -> TransportError {
    TransportError { code: TransportErrorCode::crypto(alert.into()), frame: None, reason }
}

impl crypto::Session for Accepted {
    // Proof: quinn has had such keys for this version before it began the session.
    #[allow(clippy::expect_used)]
    fn initial_keys(&self, connection: &ConnectionId, _: Side) -> Keys {
        let keys = crypto::ServerConfig::initial_keys(&*self.config, self.version, connection);
        keys.expect("a version that was accepted")
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let is_known = match &self.stage {
            Stage::Handshake(handshake) => handshake.is_told,
            Stage::Over(_) => true,
        };
        is_known.then(|| Box::new(HandshakeData { protocol: Some(ALPN.to_vec()), server_name: None }) as Box<dyn Any>)
    }

    /// A `Vec<CertificateDer>`, as with quinn's own.
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let peer = match &self.stage {
            Stage::Handshake(handshake) => handshake.peer(),
            Stage::Over(over) => over.peer.clone(),
        };
        peer.map(|peer| Box::new(peer) as Box<dyn Any>)
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        match &self.stage {
            Stage::Handshake(handshake) => handshake.tls.is_handshaking(),
            Stage::Over(_) => false,
        }
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let Stage::Handshake(handshake) = &mut self.stage else {
            return Err(refusal(AlertDescription::UnexpectedMessage, "a message behind the handshake".to_owned()));
        };
        handshake.read(bytes)?;
        let is_news = !handshake.is_told && handshake.has_protocol();
        handshake.is_told |= is_news;
        Ok(is_news)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        // Asked for once, in the middle of the handshake.
        let Stage::Handshake(handshake) = &self.stage else { return Ok(None) };
        let parameters = handshake.tls.quic_transport_parameters();
        Ok(parameters.map(|bytes| TransportParameters::read(Side::Server, &mut Cursor::new(bytes))).transpose()?)
    }

    fn write_handshake(&mut self, bytes: &mut Vec<u8>) -> Option<Keys> {
        let Stage::Handshake(handshake) = &mut self.stage else { return None };
        let keys = match handshake.tls.write_hs(bytes) {
            Some(KeyChange::Handshake { keys }) => keys,
            Some(KeyChange::OneRtt { keys, next }) => {
                handshake.next = Some(next);
                keys
            }
            None => {
                if bytes.is_empty()
                    && let Some(over) = handshake.over()
                {
                    self.stage = Stage::Over(Box::new(over));
                }
                return None;
            }
        };
        Some(Keys {
            header: KeyPair { local: Box::new(keys.local.header), remote: Box::new(keys.remote.header) },
            packet: KeyPair { local: Box::new(keys.local.packet), remote: Box::new(keys.remote.packet) },
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let next = match &mut self.stage {
            Stage::Handshake(handshake) => handshake.next.as_mut()?,
            Stage::Over(over) => &mut over.next,
        };
        let keys = next.next_packet_keys();
        Some(KeyPair { local: Box::new(keys.local), remote: Box::new(keys.remote) })
    }

    /// Only who dials is asked to retry.
    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    /// Of all that could be derived from the keys, only the resume token is.
    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        match &self.stage {
            Stage::Over(over) if (label, context, output.len()) == (resume::LABEL, resume::CONTEXT, TOKEN_BYTES) => {
                output.copy_from_slice(&over.token.ok_or(ExportKeyingMaterialError)?);
                Ok(())
            }
            _ => Err(ExportKeyingMaterialError),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use quinn_proto::crypto::{ClientConfig as _, Session};
    use schemas::IdentityKey;

    use super::*;
    use crate::tls::{TlsIdentity, server_name, vat_id};

    const QUIC_V1: u32 = 1;

    /// Gives `to` all that `from` has to say.
    fn pass_on(from: &mut dyn Session, to: &mut dyn Session) -> Result<(), TransportError> {
        loop {
            let mut bytes = Vec::new();
            let has_keys = from.write_handshake(&mut bytes).is_some();
            if !bytes.is_empty() {
                to.read_handshake(&bytes)?;
            } else if !has_keys {
                return Ok(());
            }
        }
    }

    /// The two ends of a handshake, dialling and accepting, and the key that the dialling one proves.
    fn ends() -> (Box<dyn Session>, Box<Accepted>, IdentityKey) {
        let (dialling, accepting) = (IdentityKey::generate().unwrap(), IdentityKey::generate().unwrap());
        let parameters = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
        let client = TlsIdentity::new(&dialling).client(accepting.id(), Arc::new(OnceLock::new())).unwrap();
        let client = Arc::new(client).start_session(QUIC_V1, &server_name(&accepting.id()), &parameters).ok().unwrap();
        let server = Arc::new(TlsIdentity::new(&accepting).server().unwrap());
        (client, Box::new(server.begin(QUIC_V1, &parameters)), dialling)
    }

    fn shake_hands() -> (Box<dyn Session>, Box<Accepted>, IdentityKey) {
        let (mut client, mut server, key) = ends();
        for _ in 0..2 {
            pass_on(&mut *client, &mut *server).unwrap();
            pass_on(&mut *server, &mut *client).unwrap();
        }
        (client, server, key)
    }

    #[test]
    fn the_tls_machine_is_dropped_with_the_handshake_and_not_before() {
        let (mut client, mut server, _) = ends();
        pass_on(&mut *client, &mut *server).unwrap();
        pass_on(&mut *server, &mut *client).unwrap();
        assert!(
            server.is_handshaking() && matches!(server.stage, Stage::Handshake(_)),
            "the dialler has proven nothing"
        );
        pass_on(&mut *client, &mut *server).unwrap();
        pass_on(&mut *server, &mut *client).unwrap();
        assert!(!server.is_handshaking() && matches!(server.stage, Stage::Over(_)));
    }

    #[test]
    fn what_is_needed_later_is_kept() {
        let (client, server, key) = shake_hands();
        let peer = server.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        assert_eq!(vat_id(&peer[0]), Some(key.id()));
        let data = server.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
        assert_eq!(data.protocol.as_deref(), Some(ALPN));
        let (mut ours, mut theirs) = ([0; TOKEN_BYTES], [1; TOKEN_BYTES]);
        server.export_keying_material(&mut ours, resume::LABEL, resume::CONTEXT).unwrap();
        client.export_keying_material(&mut theirs, resume::LABEL, resume::CONTEXT).unwrap();
        assert_eq!(ours, theirs);
        assert!(server.export_keying_material(&mut ours, b"another label", b"").is_err());
        assert!(server.export_keying_material(&mut [0; 4], resume::LABEL, resume::CONTEXT).is_err());
    }

    #[test]
    fn both_ends_come_to_the_same_keys_at_every_update() {
        let (mut client, mut server, _) = shake_hands();
        const HEADER: &[u8] = b"head";
        let mut last = Vec::new();
        for update in 0..3 {
            let (theirs, ours) = (client.next_1rtt_keys().unwrap(), server.next_1rtt_keys().unwrap());
            for (seal, open) in [(&theirs.local, &ours.remote), (&ours.local, &theirs.remote)] {
                let mut packet = [HEADER, b"content", &[0; 16]].concat();
                seal.encrypt(7, &mut packet, HEADER.len());
                assert_ne!(packet, last, "the keys of update {update} are new ones");
                let mut payload = packet[HEADER.len()..].into();
                open.decrypt(7, HEADER, &mut payload).unwrap();
                assert_eq!(&payload[..], b"content");
                last = packet;
            }
        }
    }

    #[test]
    fn a_tls_message_behind_the_handshake_is_refused() {
        let (_client, mut server, _) = shake_hands();
        // KeyUpdate, which is QUIC's own business (RFC 9001 §6).
        let error = server.read_handshake(&[24, 0, 0, 1, 0]).unwrap_err();
        assert_eq!(error.code, TransportErrorCode::crypto(AlertDescription::UnexpectedMessage.into()));
    }

    #[test]
    fn what_is_no_tls_is_refused_with_an_alert() {
        let (_client, mut server, _) = ends();
        // A Finished where a ClientHello belongs.
        let error = server.read_handshake(&[20, 0, 0, 4, 1, 2, 3, 4]).unwrap_err();
        assert_eq!(u64::from(error.code) & !0xff, 0x100, "{error}");
    }
}
