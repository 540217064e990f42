//! A list that anyone with a reference may add to, and nobody may change.

use std::rc::Rc;

use schemas::objects_capnp::guestbook;
use serde::{Deserialize, Serialize};

use super::bounded;
use crate::{
    limits::{MAX_LIST_BYTES, MAX_LIST_ENTRIES, MAX_SIGNER_BYTES, MAX_TEXT_BYTES},
    object::{Handle, Kind, State},
};

/// How many entries there are; the entries stand beside it, each under its number.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Length(u64);

impl State for Length {
    const TYPE: &'static str = "guestbook.length";
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Entry {
    time: u64,
    name: String,
    text: String,
}

impl State for Entry {
    const TYPE: &'static str = "guestbook.entry";
}

struct Guestbook(Handle<Length>);

pub(crate) fn guestbook() -> Kind {
    Kind::new("guestbook", "a list that anyone may sign", schemas::SCHEMA_REQUEST, |handle| -> guestbook::Client {
        capnp_rpc::new_client(Guestbook(handle))
    })
    .with_entry::<Entry>()
}

impl guestbook::Server for Guestbook {
    async fn sign(
        self: Rc<Self>,
        params: guestbook::SignParams,
        mut results: guestbook::SignResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let name = bounded("name", params.get_name()?.to_str()?, MAX_SIGNER_BYTES)?;
        let text = bounded("text", params.get_text()?.to_str()?, MAX_TEXT_BYTES)?;
        let number = self.0.turn(|length, turn| {
            length.0 += 1;
            let entry = Entry { time: turn.time().as_seconds(), name, text };
            turn.put(&length.0.to_be_bytes(), &entry)?;
            Ok(length.0)
        })?;
        results.get().set_number(number);
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        params: guestbook::ListParams,
        mut results: guestbook::ListResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let limit = (params.get_limit() as usize).min(MAX_LIST_ENTRIES);
        let after = params.get_after();
        let (page, more) = self.0.read(|length, entries| {
            let mut page = Vec::new();
            let mut bytes = 0;
            for number in after.saturating_add(1)..=length.0 {
                let Some(entry) = entries.get::<Entry>(&number.to_be_bytes())? else { continue };
                bytes += entry.name.len() + entry.text.len();
                // At least one entry is given, however long: the reader always gets further.
                if page.len() == limit || (bytes > MAX_LIST_BYTES && !page.is_empty()) {
                    return Ok((page, true));
                }
                page.push((number, entry));
            }
            Ok((page, false))
        })?;
        let mut results = results.get();
        results.set_more(more);
        let mut list = results.init_entries(page.len().try_into().map_err(|_| capnp::Error::failed("page".into()))?);
        for (index, (number, entry)) in (0..).zip(page) {
            let mut out = list.reborrow().get(index);
            out.set_number(number);
            out.set_time(entry.time);
            out.set_name(&entry.name);
            out.set_text(&entry.text);
        }
        Ok(())
    }
}
