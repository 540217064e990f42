//! What tells a peer which of its sessions we have lost: a token that both ends of a session have, and use once.
//!
//! Live capabilities are fail-stop (DESIGN §6), so there is nothing in a session that could be resumed: who comes
//! back has new capabilities, restored from sturdyrefs. What does have to be said is that the old session is
//! over. A peer that lost its connection knows that, and the other side will not for another
//! [`IDLE_TIMEOUT`](crate::limits::IDLE_TIMEOUT). Without a word of it a second session looks like one that was
//! dialled from both ends at once, of which one has to go.
//!
//! The token is derived from the keys of the old connection (RFC 8446, section 7.5), so it costs no byte and no
//! random number to agree on, is known to its two ends only, and belongs to that session and to no other. It is
//! no proof of identity, which is the business of the channel: it only ever concerns sessions of the peer that
//! has proven the same key. So a token that is wrong, old, used or missing harms nobody and is ignored.

use std::fmt;

/// Bytes of a token.
pub(crate) const TOKEN_BYTES: usize = 16;

/// Separates these bytes from everything else that is derived from a connection's keys.
pub(crate) const LABEL: &[u8] = b"EXPORTER-vat-resume-1";

/// There is one for each connection.
pub(crate) const CONTEXT: &[u8] = b"";

/// Names one session, to its two ends only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResumeToken([u8; TOKEN_BYTES]);

impl ResumeToken {
    /// The token of the session that runs over `connection`. `None` if its keys give none.
    pub(crate) fn of(connection: &quinn::Connection) -> Option<Self> {
        let mut token = [0; TOKEN_BYTES];
        connection.export_keying_material(&mut token, LABEL, CONTEXT).ok().map(|()| Self(token))
    }

    /// A token that was sent; `None` for bytes that are none.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(…)")
    }
}
