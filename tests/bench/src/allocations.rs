//! How much memory this program has taken and not given back, counted while somebody wants to know.
//!
//! What the operating system says of a process does not answer that: an allocator keeps what it once had. The only
//! unsafe code of this package is here, since an allocator can be watched from nowhere else; it passes every request on to
//! the system's allocator as it is.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
};

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Off, this costs one load of a flag that nobody changes. On, it would disturb what is measured in time.
static ON: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicI64 = AtomicI64::new(0);

struct Watched;

fn changed(old: usize, new: usize) {
    if ON.load(Relaxed) {
        // No allocation has 2⁶³ bytes.
        BYTES.fetch_add(new.cast_signed() as i64 - old.cast_signed() as i64, Relaxed);
    }
}

// SAFETY: every method gives its arguments to the system's allocator, of which the same is demanded, and gives its
// answer back; counting touches neither and does not allocate.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        changed(0, layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        changed(0, layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        changed(layout.size(), 0);
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        changed(layout.size(), new_size);
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

/// Counts until it is dropped.
pub(crate) struct Counting(());

impl Counting {
    /// Counts from now on, from 0. Only one may count at a time.
    pub(crate) fn start() -> Self {
        BYTES.store(0, Relaxed);
        ON.store(true, Relaxed);
        Self(())
    }

    /// How many bytes the program holds now beyond those at the start, in all threads.
    pub(crate) fn held(&self) -> i64 {
        BYTES.load(Relaxed)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        ON.store(false, Relaxed);
    }
}
