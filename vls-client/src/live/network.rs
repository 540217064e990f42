//! How a live reference comes to a session: a parameter, so that it can be a search path, a socket of this
//! machine, the table of sessions of a vat, or a simulation.

use std::{rc::Rc, sync::Arc};

use futures::{FutureExt, future::LocalBoxFuture};
use schemas::{Hints, VatId};
use transport::{ResumeToken, Session, SessionOptions, Sessions, peers::Direction};

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
    /// Reaches a vat and gives a session with it: a new one, or one that is open anyway. Dropped when it takes too
    /// long.
    ///
    /// The session must be one with a peer that has proven the id, and offer `Vat` as its bootstrap.
    fn connect(&self, attempt: Attempted) -> LocalBoxFuture<'static, Result<Rc<Session>, LiveError>>;
}

/// Finds vats with a [`Resolver`], and dials them.
pub struct Finder {
    resolver: Resolver,
    options: Box<dyn Fn() -> SessionOptions>,
    table: Option<Sessions>,
}

impl Finder {
    /// `options` says what this side brings to each session.
    pub fn new(resolver: Resolver, options: impl Fn() -> SessionOptions + 'static) -> Self {
        Self { resolver, options: Box::new(options), table: None }
    }

    /// Shares sessions with whoever else uses `table`: one that a vat has opened to this side is not dialled again, and
    /// one that is dialled goes into the table. For processes that are dialled too.
    #[must_use]
    pub fn sharing(self, table: Sessions) -> Self {
        Self { table: Some(table), ..self }
    }
}

impl LiveNetwork for Finder {
    fn connect(&self, attempt: Attempted) -> LocalBoxFuture<'static, Result<Rc<Session>, LiveError>> {
        let Attempted { id, hints, lost } = attempt;
        // One that is given up for lost, or is doubted, is what another shall take the place of.
        let is_lost = |session: &Rc<Session>| lost.is_some() && session.resume_token() == lost;
        let open = self.table.as_ref().and_then(|table| table.with(&id)).filter(|open| !is_lost(open));
        if let Some(open) = open {
            return futures::future::ready(Ok(open)).boxed_local();
        }
        let (resolver, options, table) = (self.resolver.clone(), (self.options)(), self.table.clone());
        async move {
            let found = resolver.connect(id, &hints).await;
            let found = found.map_err(|error| LiveError::Resolve(Arc::new(error)))?;
            let session = Session::open_again(found.connection, options, lost).await;
            let failed = |source| LiveError::Session { id, source: Arc::new(source) };
            let Some(table) = table else { return session.map(Rc::new).map_err(failed) };
            let admitted = match session {
                Ok(session) => table
                    .admit(session, Direction::Dialled, found.address)
                    .map_err(|code| LiveError::NotAdmitted { id, code }),
                Err(error) => Err(failed(error)),
            };
            // If it crossed with one that the vat has dialled, that is the one that stays, as either side may say first.
            admitted.or_else(|error| table.with(&id).ok_or(error))
        }
        .boxed_local()
    }
}
