//! A disk whose syncs a test can hold up: what is written meanwhile is not durable yet.

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
};

use checkpoint::{
    Disk,
    wrapped::{Behaviour, Wrapped, WrappedFile},
};

#[derive(Debug, Default)]
pub(crate) struct Switch {
    held: Mutex<bool>,
    changed: Condvar,
}

impl Behaviour for Switch {
    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        let mut held = self.held.lock().unwrap();
        while *held {
            held = self.changed.wait(held).unwrap();
        }
        drop(held);
        file.inner.sync_data()
    }
}

/// Holds up the syncs of a disk.
pub(crate) struct Held(Arc<Switch>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap() = false;
        self.0.changed.notify_all();
    }
}

pub(crate) type HeldDisk = Wrapped<Switch>;

pub(crate) fn held_disk_over(disk: Arc<dyn Disk>) -> Arc<HeldDisk> {
    Wrapped::new(disk, Switch::default())
}

/// No sync returns until the guard is dropped, also by a test that fails: whoever closes a store waits for its
/// last sync.
pub(crate) fn hold(disk: &HeldDisk) -> Held {
    *disk.behaviour().held.lock().unwrap() = true;
    Held(Arc::clone(disk.behaviour()))
}
