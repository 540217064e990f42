//! How many bytes a call and its answer are, so that a baseline can exchange as many.

use capnp::{any_pointer, message, serialize::compute_serialized_size_in_words};
use capnp_rpc::rpc_capnp;

const WORD_BYTES: usize = 8;

/// The sizes of one request and one answer, in bytes of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// What the caller sends.
    pub(crate) request: usize,
    /// What it gets.
    pub(crate) answer: usize,
}

impl Exchange {
    /// Of a Cap'n Proto call without capabilities: `Call` and, sent with the next call, `Finish`; `Return`.
    pub(crate) fn of_call(
        params: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
        results: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
    ) -> capnp::Result<Self> {
        let call = bytes(|message| {
            let mut call = message.init_call();
            call.reborrow().init_target().set_imported_cap(0);
            params(call.init_params().get_content())
        })?;
        let finish = bytes(|message| {
            message.init_finish();
            Ok(())
        })?;
        let answer = bytes(|message| results(message.init_return().init_results().get_content()))?;
        Ok(Self { request: call + finish, answer })
    }
}

fn bytes(fill: impl FnOnce(rpc_capnp::message::Builder<'_>) -> capnp::Result<()>) -> capnp::Result<usize> {
    let mut message = message::Builder::new_default();
    fill(message.init_root())?;
    Ok(compute_serialized_size_in_words(&message) * WORD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_in_whole_words() {
        let exchange = |length: usize| {
            let text =
                |mut content: any_pointer::Builder<'_>| content.set_as::<capnp::data::Owned>(&vec![7; length][..]);
            Exchange::of_call(text, |_| Ok(())).unwrap()
        };
        assert_eq!(exchange(9).request, exchange(16).request);
        assert_eq!(exchange(17).request, exchange(16).request + 8);
        assert_eq!(exchange(9).answer, exchange(1000).answer);
    }
}
