//! Capabilities of the peer that this side holds.

use std::{
    cell::Cell,
    collections::HashMap,
    rc::{Rc, Weak},
};

use capnp::{
    Error, MessageSize, any_pointer,
    capability::{Promise, Request},
    private::capability::{ClientHook, ParamsHook, ResultsHook},
};

use super::{
    question::{Route, forward, new_request},
    state::State,
    stream::Stream,
};

/// The table.
#[derive(Default)]
pub(super) struct Imports {
    by_id: HashMap<u32, Weak<Import>>,
    by_pointer: HashMap<usize, u32>,
}

impl Imports {
    /// The id of the import that goes by `pointer` among capnp's hooks.
    pub(super) fn id_of(&self, pointer: usize) -> Option<u32> {
        self.by_pointer.get(&pointer).copied()
    }
}

/// A capability of the peer. When the last handle goes, the peer is told.
pub(super) struct Import {
    pub(super) state: Rc<State>,
    pub(super) id: u32,
    /// How many times the peer has given it to us: as often it wants it back.
    received: Cell<u32>,
    pub(super) stream: Stream,
}

impl Import {
    /// The peer gives us its capability `id`, perhaps once more.
    pub(super) fn receive(state: &Rc<State>, id: u32) -> Box<dyn ClientHook> {
        let known = state.imports.borrow().by_id.get(&id).and_then(Weak::upgrade);
        let import = known.unwrap_or_else(|| {
            let import = Rc::new(Self { state: state.clone(), id, received: Cell::new(0), stream: Stream::default() });
            let mut imports = state.imports.borrow_mut();
            imports.by_id.insert(id, Rc::downgrade(&import));
            imports.by_pointer.insert(Rc::as_ptr(&import).addr(), id);
            import
        });
        import.received.set(import.received.get().saturating_add(1));
        Box::new(Imported(import))
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        {
            let mut imports = self.state.imports.borrow_mut();
            imports.by_id.remove(&self.id);
            imports.by_pointer.remove(&std::ptr::from_ref(self).addr());
            if imports.by_id.is_empty() {
                // Idle sessions hold no table.
                *imports = Imports::default();
            }
        }
        let (id, count) = (self.id, self.received.get());
        // Cannot fail: the message has room for its root.
        let _ = self.state.tell(|root| {
            let mut release = root.init_release();
            release.set_id(id);
            release.set_reference_count(count);
            Ok(())
        });
    }
}

/// A handle to an import.
struct Imported(Rc<Import>);

impl ClientHook for Imported {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        _size_hint: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        new_request(Route::Import(self.0.clone()), interface_id, method_id)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        forward(self, interface_id, method_id, params.as_ref(), results)
    }

    fn get_brand(&self) -> usize {
        self.0.state.brand()
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        Promise::ok(())
    }
}
