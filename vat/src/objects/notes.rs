//! Texts kept under names.

use std::rc::Rc;

use schemas::{
    ErrorCode,
    objects_capnp::{content, notes},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{bounded, list_names};
use crate::{
    limits::{CONTENT_PART_BYTES, MAX_KEY_BYTES, MAX_TEXT_BYTES},
    object::{Handle, Kind, ObjectError, State},
};

/// Notes has no state of its own beside its entries.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Shelf;

impl State for Shelf {
    const TYPE: &'static str = "notes.shelf";
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Note(String);

impl State for Note {
    const TYPE: &'static str = "notes.note";
}

struct Notes(Handle<Shelf>);

pub(crate) fn notes() -> Kind {
    Kind::new("notes", "texts kept under names", schemas::SCHEMA_REQUEST, |handle| -> notes::Client {
        capnp_rpc::new_client(Notes(handle))
    })
    .with_entry::<Note>()
}

impl Notes {
    fn find(&self, name: &str) -> Result<Note, ObjectError> {
        self.0.read(|_, entries| {
            entries
                .get::<Note>(name.as_bytes())?
                .ok_or_else(|| ObjectError::NotFound { what: "note", name: name.to_owned() })
        })
    }
}

/// A note as it was when it was asked for. It has no copy of the text: whoever has a reference to the notes may ask for
/// as many of these as a session keeps.
struct NoteContent {
    notes: Rc<Notes>,
    name: String,
    length: u64,
    digest: [u8; 32],
}

impl NoteContent {
    /// The text, as long as it is the same, and the right lasts by which it was asked for.
    fn note(&self) -> capnp::Result<Note> {
        let note = self.notes.find(&self.name)?;
        if note.0.len() as u64 == self.length && Sha256::digest(&note.0)[..] == self.digest {
            return Ok(note);
        }
        let text = format!("the note {:?} has changed since its content was asked for", self.name);
        Err(capnp::Error::failed(ErrorCode::BulkInterrupted.to_wire(&text)))
    }
}

impl content::Server for NoteContent {
    async fn describe(
        self: Rc<Self>,
        _: content::DescribeParams,
        mut results: content::DescribeResults,
    ) -> capnp::Result<()> {
        // As long as the right lasts.
        self.notes.0.read(|_, _| Ok::<_, ObjectError>(()))?;
        let mut results = results.get();
        results.set_length(self.length);
        results.set_digest(&self.digest);
        Ok(())
    }

    async fn read(self: Rc<Self>, params: content::ReadParams, mut results: content::ReadResults) -> capnp::Result<()> {
        let (params, note) = (params.get()?, self.note()?);
        let bytes = note.0.as_bytes();
        let begin = usize::try_from(params.get_offset()).unwrap_or(usize::MAX).min(bytes.len());
        let count = usize::try_from(params.get_count()).unwrap_or(usize::MAX).min(CONTENT_PART_BYTES);
        let part = &bytes[begin..];
        results.get().set_bytes(&part[..count.min(part.len())]);
        Ok(())
    }
}

impl notes::Server for Notes {
    async fn put(self: Rc<Self>, params: notes::PutParams, mut results: notes::PutResults) -> capnp::Result<()> {
        let params = params.get()?;
        let name = bounded("name", params.get_name()?.to_str()?, MAX_KEY_BYTES)?;
        let note = Note(bounded("text", params.get_text()?.to_str()?, MAX_TEXT_BYTES)?);
        let replaced = self.0.turn(|_, turn| {
            let replaced = turn.contains(name.as_bytes())?;
            turn.put(name.as_bytes(), &note)?;
            Ok(replaced)
        })?;
        results.get().set_replaced(replaced);
        Ok(())
    }

    async fn get(self: Rc<Self>, params: notes::GetParams, mut results: notes::GetResults) -> capnp::Result<()> {
        let note = self.find(params.get()?.get_name()?.to_str()?)?;
        results.get().set_text(&note.0);
        Ok(())
    }

    async fn content(
        self: Rc<Self>,
        params: notes::ContentParams,
        mut results: notes::ContentResults,
    ) -> capnp::Result<()> {
        let name = params.get()?.get_name()?.to_str()?.to_owned();
        let note = self.find(&name)?;
        let (length, digest) = (note.0.len() as u64, Sha256::digest(&note.0).into());
        results.get().set_content(capnp_rpc::new_client(NoteContent { notes: self, name, length, digest }));
        Ok(())
    }

    async fn list(self: Rc<Self>, params: notes::ListParams, mut results: notes::ListResults) -> capnp::Result<()> {
        let params = params.get()?;
        let (prefix, after) = (params.get_prefix()?.to_str()?, params.get_after()?.to_str()?);
        let (names, more) = self.0.read(|_, entries| list_names(entries, prefix, after, params.get_limit()))?;
        let mut results = results.get();
        results.set_more(more);
        results.set_names(&names[..])?;
        Ok(())
    }

    async fn remove(
        self: Rc<Self>,
        params: notes::RemoveParams,
        mut results: notes::RemoveResults,
    ) -> capnp::Result<()> {
        let name = params.get()?.get_name()?.to_str()?;
        let removed = self.0.turn(|_, turn| turn.remove(name.as_bytes()))?;
        results.get().set_removed(removed);
        Ok(())
    }
}
