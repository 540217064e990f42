//! How a live reference comes to a session: a parameter, so that it can be a search path, a socket of this
//! machine, the table of sessions of a vat, or a simulation.

use std::sync::Arc;

use futures::{FutureExt, future::LocalBoxFuture};
use schemas::{Hints, VatId};
use transport::{ResumeToken, Session, SessionOptions};

use super::LiveError;
use crate::Resolver;

/// One attempt to come to a session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempted {
    /// Whom to reach.
    pub id: VatId,
    /// Where it may be, if the reference says so.
    pub hints: Hints,
    /// The last session with it, if that was lost: its peer may not know yet.
    pub lost: Option<ResumeToken>,
}

/// Where sessions come from.
pub trait LiveNetwork {
    /// Reaches a vat and begins a session with it. Dropped when it takes too long.
    ///
    /// The session must be one with a peer that has proven the id, and offer `Vat` as its bootstrap.
    fn connect(&self, attempt: Attempted) -> LocalBoxFuture<'static, Result<Session, LiveError>>;
}

/// Finds vats with a [`Resolver`], and dials them.
pub struct Finder {
    resolver: Resolver,
    options: Box<dyn Fn() -> SessionOptions>,
}

impl Finder {
    /// `options` says what this side brings to each session.
    pub fn new(resolver: Resolver, options: impl Fn() -> SessionOptions + 'static) -> Self {
        Self { resolver, options: Box::new(options) }
    }
}

impl LiveNetwork for Finder {
    fn connect(&self, attempt: Attempted) -> LocalBoxFuture<'static, Result<Session, LiveError>> {
        let (resolver, options) = (self.resolver.clone(), (self.options)());
        async move {
            let Attempted { id, hints, lost } = attempt;
            let found = resolver.connect(id, &hints).await;
            let connection = found.map_err(|error| LiveError::Resolve(Arc::new(error)))?.connection;
            let session = Session::open_again(connection, options, lost).await;
            session.map_err(|source| LiveError::Session { id, source: Arc::new(source) })
        }
        .boxed_local()
    }
}
