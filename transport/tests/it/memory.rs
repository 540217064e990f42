//! How much memory the calling thread holds: taken by it and not given back by it.
//!
//! Tests run side by side in one process, each on a thread of its own with everything that belongs to it, so only a
//! count per thread tells what one of them has left behind. The only unsafe code of this package is here, since an
//! allocator can be watched from nowhere else; it passes every request on to the system's allocator as it is.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

#[global_allocator]
static ALLOCATOR: Watched = Watched;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

struct Watched;

fn changed(old: usize, new: usize) {
    // Not counted where a thread ends and its locals are gone. No allocation has 2⁶³ bytes.
    let _ = HELD.try_with(|held| held.set(held.get() + new.cast_signed() as i64 - old.cast_signed() as i64));
}

// SAFETY: every method gives its arguments to the system's allocator, of which the same is demanded, and gives its
// answer back; counting touches neither and does not allocate, for the counter is initialised when it is compiled.
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

/// Bytes that this thread holds.
pub(crate) fn held() -> i64 {
    HELD.get()
}
