//! How much memory this program has taken and not given back, counted while somebody wants to know.
//!
//! What the operating system says of a process does not answer that: an allocator keeps what it once had. The only
//! unsafe code of this package is here, since an allocator can be watched from nowhere else; it passes every request on to
//! the system's allocator as it is.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicI64, AtomicU8, Ordering::Relaxed},
};

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Off, this costs one load of a flag that nobody changes. On, it would disturb what is measured in time.
static COUNTED: AtomicU8 = AtomicU8::new(NOBODY);
static BYTES: AtomicI64 = AtomicI64::new(0);
static MOST: AtomicI64 = AtomicI64::new(0);
static ALLOCATIONS: AtomicI64 = AtomicI64::new(0);

/// Whose memory is counted.
const NOBODY: u8 = 0;
const EVERYBODY: u8 = 1;
const WATCHED: u8 = 2;
const ONE: u8 = 3;

thread_local! {
    /// Whether this thread is among the watched. Needs no memory of its own, and nothing to be done at the thread's end.
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
    /// The same of whether this thread is the one.
    static IS_THE_ONE: Cell<bool> = const { Cell::new(false) };
}

struct Watched;

fn is_counted() -> bool {
    match COUNTED.load(Relaxed) {
        NOBODY => false,
        EVERYBODY => true,
        WATCHED => IS_WATCHED.get(),
        _ => IS_THE_ONE.get(),
    }
}

fn changed(old: usize, new: usize) {
    if is_counted() {
        // No allocation has 2⁶³ bytes.
        let more = new.cast_signed() as i64 - old.cast_signed() as i64;
        let held = BYTES.fetch_add(more, Relaxed) + more;
        if more > 0 {
            MOST.fetch_max(held, Relaxed);
        }
        if new > 0 {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
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
        Self::of(EVERYBODY)
    }

    /// The same for what [watched](watch_this_thread) threads take and give back, and nobody else. What they take must
    /// not be given back by others, nor the other way round.
    pub(crate) fn start_with_the_watched() -> Self {
        Self::of(WATCHED)
    }

    /// The same for what this thread takes and gives back, and nobody else. It counts until the count is dropped, here.
    pub(crate) fn start_with_this_thread() -> Self {
        IS_THE_ONE.set(true);
        Self::of(ONE)
    }

    fn of(whom: u8) -> Self {
        BYTES.store(0, Relaxed);
        MOST.store(0, Relaxed);
        ALLOCATIONS.store(0, Relaxed);
        COUNTED.store(whom, Relaxed);
        Self(())
    }

    /// How many bytes those who are counted hold now beyond those at the start.
    pub(crate) fn held(&self) -> i64 {
        BYTES.load(Relaxed)
    }

    /// The most that they have held at any moment since.
    pub(crate) fn most(&self) -> i64 {
        MOST.load(Relaxed)
    }

    /// How many times memory was asked for since then, or a piece of it made larger or smaller.
    pub(crate) fn allocations(&self) -> i64 {
        ALLOCATIONS.load(Relaxed)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        COUNTED.store(NOBODY, Relaxed);
        IS_THE_ONE.set(false);
    }
}

/// This thread is one whose memory can be counted by itself.
pub(crate) fn watch_this_thread() {
    IS_WATCHED.set(true);
}
