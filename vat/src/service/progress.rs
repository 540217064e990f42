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
    time::{Instant, sleep_until, timeout},
};

use crate::{
    limits::{HEARTBEAT_INTERVAL, PROGRESS_INTERVAL, STALL_DEADLINE},
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
/// for it. `progress` is told how far it is, one word at a time, and that it goes on while it is no further.
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
        // Told also when there is nothing new: who waits gives up on a vat that is silent, not on a slow disk.
        while !matches!(timeout(HEARTBEAT_INTERVAL, advanced.changed()).await, Ok(Err(_))) {
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

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::mpsc};

    use checkpoint::{Protection, StoreOptions, simulated::SimulatedDisk};
    use tokio::{task::LocalSet, time::advance};

    use super::*;

    fn store() -> Arc<Store> {
        let disk = SimulatedDisk::new();
        let made = Store::create(disk, Path::new("/store"), &[7; 32], &Protection::Plain, StoreOptions::default());
        Arc::new(made.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_sync_that_takes_minutes_does_not_give_up() {
        let (release, released) = mpsc::channel::<()>();
        let (advances, progress) = ProgressService::listen();
        let work = on_a_thread(store(), progress, move |_, progress| {
            progress(Census { rows: 1, bytes: 1 });
            // Nothing to tell from here on, as in a sync.
            let _ = released.recv();
            Ok("done")
        });
        let mut told = 0;
        LocalSet::new()
            .run_until(async {
                let waiting = while_advancing(work, advances, |_| told += 1);
                tokio::pin!(waiting);
                // Time stands still but for this, as long as the thread is at work.
                for _ in 0..10 * STALL_DEADLINE.as_secs() {
                    tokio::select! {
                        biased;
                        ended = &mut waiting => panic!("it gave up, or the work ended: {ended:?}"),
                        () = advance(std::time::Duration::from_secs(1)) => {}
                    }
                }
                release.send(()).unwrap();
                assert_eq!(waiting.await.unwrap(), "done");
            })
            .await;
        assert!(told > 10, "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_vat_that_is_silent_gives_up() {
        let (advances, _progress) = ProgressService::listen();
        let begun = Instant::now();
        let waited = while_advancing(pending::<capnp::Result<()>>(), advances, |_| {}).await;
        assert!(waited.unwrap_err().to_string().contains("net.timeout"));
        assert_eq!(begun.elapsed(), STALL_DEADLINE);
    }
}
