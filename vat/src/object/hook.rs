//! The capability of an object, as the vat hands it out: that of the object's server, with the vat's own knowledge of
//! which object it is.
//!
//! The owner shares an object by giving its capability back ("this one"), so the vat has to recognise its own
//! capabilities when they come in again. Calls are passed on as they are: whatever the server's own capability can do,
//! pipelining and streaming included, this one can.

use std::rc::{Rc, Weak};

use capnp::{
    MessageSize, any_pointer,
    capability::{Promise, Request},
    private::capability::{ClientHook, ParamsHook, ResultsHook},
};

use super::{reference::ObjectId, table::ObjectTable};

/// The capability of one object.
pub(crate) struct ObjectHook(Rc<Inner>);

struct Inner {
    server: Box<dyn ClientHook>,
    table: Weak<ObjectTable>,
}

impl ObjectHook {
    /// Wraps the capability of the object's server, and makes it known to the table.
    pub(crate) fn new(server: Box<dyn ClientHook>, object: ObjectId, table: &Rc<ObjectTable>) -> Self {
        let inner = Rc::new(Inner { server, table: Rc::downgrade(table) });
        table.recognise(Rc::as_ptr(&inner).addr(), object);
        Self(inner)
    }
}

impl Drop for Inner {
    /// Another capability may get the same address as soon as this one has left it, and not before.
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.forget_capability(std::ptr::from_ref(self).addr());
        }
    }
}

impl ClientHook for ObjectHook {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        self.0.server.new_call(interface_id, method_id, size_hint)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), capnp::Error> {
        self.0.server.call(interface_id, method_id, params, results)
    }

    /// Of no connection.
    fn get_brand(&self) -> usize {
        0
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    /// It is no promise, and what it wraps is nobody's business.
    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, capnp::Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), capnp::Error> {
        Promise::ok(())
    }
}
