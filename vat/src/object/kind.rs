//! Kinds: what a program says about the objects that it can make.

use std::rc::Rc;

use capnp::{capability::FromClientHook, private::capability::ClientHook, traits::HasTypeId};

use super::{
    Handle,
    error::ObjectError,
    reference::ObjectId,
    row::{State, StoredType},
    table::{Authority, ObjectTable},
};

/// A kind of object that a program knows how to make: what `vat new --object KIND` names.
#[derive(Clone)]
pub struct Kind {
    name: &'static str,
    summary: &'static str,
    interface_id: u64,
    schema: &'static [u8],
    /// The type of the state, then those of the entries.
    types: Rc<[StoredType]>,
    make: MakeObject,
}

/// Which object is to become live, and by what right.
pub(crate) struct Activation {
    pub(crate) table: Rc<ObjectTable>,
    pub(crate) types: Rc<[StoredType]>,
    pub(crate) object: ObjectId,
    pub(crate) authority: Authority,
}

type MakeObject = Rc<dyn Fn(Activation) -> Result<Box<dyn ClientHook>, ObjectError>>;

impl Kind {
    /// A kind of object with state `S` and the Cap'n Proto client type `C`. A new object begins with the default
    /// state.
    ///
    /// `schema` is the `CodeGeneratorRequest` of its interface (`capnp compile -o-`), from which callers
    /// learn its methods. `object` makes the client of the object that a handle belongs to.
    pub fn new<S, C>(
        name: &'static str,
        summary: &'static str,
        schema: &'static [u8],
        object: impl Fn(Handle<S>) -> C + 'static,
    ) -> Self
    where
        S: State + Default,
        C: FromClientHook + HasTypeId,
    {
        Self {
            name,
            summary,
            interface_id: C::TYPE_ID,
            schema,
            types: Rc::new([StoredType::of::<S>()]),
            make: Rc::new(move |activation| Ok(object(Handle::load(activation)?).into_client_hook())),
        }
    }

    /// Declares that objects of this kind keep entries of type `T`, besides those declared before.
    ///
    /// A turn that stores an entry of a type that was not declared is refused: the vat must know all types that it
    /// holds, to upgrade them and to refuse a checkpoint that has newer ones.
    #[must_use]
    pub fn with_entry<T: State>(mut self) -> Self {
        self.types = self.types.iter().copied().chain([StoredType::of::<T>()]).collect();
        self
    }

    /// The name of the kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One line about it.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// The id of its Cap'n Proto interface.
    #[must_use]
    pub fn interface_id(&self) -> u64 {
        self.interface_id
    }

    /// The `CodeGeneratorRequest` that describes its interface.
    #[must_use]
    pub fn schema(&self) -> &'static [u8] {
        self.schema
    }

    /// The types of rows that its objects store.
    pub(crate) fn types(&self) -> &[StoredType] {
        &self.types
    }

    /// Whether `S` is the type of its state.
    pub(crate) fn has_state<S: State>(&self) -> bool {
        self.types.first().is_some_and(|state| state.name == S::TYPE)
    }

    pub(crate) fn activate(
        &self,
        table: &Rc<ObjectTable>,
        object: ObjectId,
        authority: Authority,
    ) -> Result<Box<dyn ClientHook>, ObjectError> {
        (self.make)(Activation { table: table.clone(), types: self.types.clone(), object, authority })
    }
}
