//! What a location server has seen of a vat from outside, as its owner is shown it: by `vat status` and `vat doctor`.

use schemas::vat_capnp;
use serde_json::{Value, json};

/// What came of it when a location server dialled a vat that is awake.
pub(super) struct Outside {
    /// The entry of the search path that dialled.
    server: String,
    /// Where it dialled.
    address: String,
    /// A stable code and words, if the vat was not reached.
    pub(super) reason: Option<(String, String)>,
}

impl Outside {
    /// `None` if no server has dialled it yet.
    pub(super) fn read(outside: vat_capnp::outside::Reader<'_>) -> capnp::Result<Option<Self>> {
        let [server, address, code, message] =
            [outside.get_server()?, outside.get_address()?, outside.get_code()?, outside.get_message()?];
        if server.is_empty() {
            return Ok(None);
        }
        let reason = if code.is_empty() { None } else { Some((code.to_string()?, message.to_string()?)) };
        Ok(Some(Self { server: server.to_string()?, address: address.to_string()?, reason }))
    }

    /// One line for the owner, without the code.
    pub(super) fn line(&self) -> String {
        let Self { server, address, reason } = self;
        match reason {
            None => format!("reached at {address} by {server}"),
            Some((_, message)) => format!("NOT reached at {address} by {server}: {message}"),
        }
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let (code, message) = self.reason.as_ref().map_or(("", ""), |(code, message)| (code, message));
        json!({
            "server": self.server, "address": self.address, "reached": self.reason.is_none(), "code": code,
            "message": message,
        })
    }
}
