//! Long work for the owner, on a thread of its own, with word of how far it is.

use std::{
    cell::Cell,
    future::{pending, poll_fn},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use checkpoint::{Census, Store, StoreError};
use schemas::{ErrorCode, vat_capnp};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::{
    limits::{PROGRESS_INTERVAL, STALL_DEADLINE},
    object::wire_error,
};

/// Receives word of how far a piece of work is.
pub(crate) struct ProgressService {
    advances: Advances,
}

/// The last word, and how to wait for the next.
#[derive(Clone, Default)]
pub(crate) struct Advances {
    last: Rc<Cell<Option<Census>>>,
    changed: Rc<Notify>,
}

impl ProgressService {
    pub(crate) fn listen() -> (Advances, vat_capnp::progress::Client) {
        let advances = Advances::default();
        let service = Self { advances: advances.clone() };
        (advances, capnp_rpc::new_client(service))
    }
}

impl vat_capnp::progress::Server for ProgressService {
    async fn advanced(
        self: Rc<Self>,
        params: vat_capnp::progress::AdvancedParams,
        _: vat_capnp::progress::AdvancedResults,
    ) -> capnp::Result<()> {
        let amount = params.get()?.get_amount()?;
        self.advances.last.set(Some(Census { rows: amount.get_rows(), bytes: amount.get_bytes() }));
        self.advances.changed.notify_one();
        Ok(())
    }
}

/// Waits for an answer as long as there is word that the work goes on, and passes the word on.
///
/// # Errors
/// The peer's; `net.timeout` when nothing was heard for [`STALL_DEADLINE`].
pub(crate) async fn while_advancing<T>(
    answer: impl Future<Output = capnp::Result<T>>,
    advances: Advances,
    mut show: impl FnMut(Census),
) -> capnp::Result<T> {
    tokio::pin!(answer);
    let mut deadline = Instant::now() + STALL_DEADLINE;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = advances.changed.notified() => {
                deadline = Instant::now() + STALL_DEADLINE;
                advances.last.get().into_iter().for_each(&mut show);
            }
            () = sleep_until(deadline) => {
                let text = format!("nothing was heard of the work for {} s", STALL_DEADLINE.as_secs());
                return Err(capnp::Error::failed(ErrorCode::NetTimeout.to_wire(&text)));
            }
        }
    }
}

/// Does something with the whole checkpoint on a thread of its own: neither the vat's turns nor its commits wait
/// for it. `progress` is told how far it is, one word at a time.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    store: Arc<Store>,
    progress: vat_capnp::progress::Client,
    work: impl FnOnce(&Store, &mut dyn FnMut(Census)) -> Result<T, StoreError> + Send + 'static,
) -> capnp::Result<T> {
    let (advance, mut advanced) = watch::channel(Census::default());
    let mut told = std::time::Instant::now();
    let tell = move |census| {
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = std::time::Instant::now();
            advance.send_replace(census);
        }
    };
    let work = tokio::task::spawn_blocking(move || work(&store, &mut { tell }));
    let tell = async {
        while advanced.changed().await.is_ok() {
            let census = *advanced.borrow_and_update();
            let mut request = progress.advanced_request();
            let mut amount = request.get().init_amount();
            amount.set_rows(census.rows);
            amount.set_bytes(census.bytes);
            // Who no longer listens is not told any more; the work goes on.
            if request.send().promise.await.is_err() {
                break;
            }
        }
        pending::<()>().await;
    };
    tokio::pin!(work, tell);
    let done = poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => {
            let _ = tell.as_mut().poll(context);
            Poll::Pending
        }
    });
    let done = done.await.map_err(|error| capnp::Error::failed(format!("the work was given up: {error}")))?;
    done.map_err(|error| wire_error(&error))
}
