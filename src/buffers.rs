//! Memory of long requests, used again.
//!
//! The allocator takes a block of a megabyte from the kernel and gives it back with every request: the kernel
//! then zeroes each of its pages when it is first touched, which costs as much as sealing the data does. A few
//! megabytes are kept here instead. Short requests stay with the allocator, which is good at those.
//!
//! What a buffer held before is still in it: whoever takes one fills all of it before anybody sees it.

use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;

/// Shorter buffers are not kept, in bytes.
const KEPT_LEN_MIN: usize = 64 << 10;
/// Bytes kept in all: the requests of a client that keeps seven of a megabyte under way.
pub const KEPT_BYTES_MAX: usize = 8 << 20;
/// A kept buffer is less than this many times as long as what it is used for.
const WASTE_MAX: usize = 4;

static KEPT: Mutex<Vec<BytesMut>> = Mutex::new(Vec::new());

/// A buffer of `len` bytes with any content.
#[must_use]
pub fn take(len: usize) -> BytesMut {
    let kept = if len < KEPT_LEN_MIN { None } else { best_fit(len) };
    let Some(mut buffer) = kept else {
        let mut buffer = BytesMut::zeroed(capacity(len));
        buffer.truncate(len);
        return buffer;
    };
    // Only what a shorter request has left out before is written here.
    buffer.resize(len, 0);
    buffer
}

/// Gives a buffer back that nobody will look at any more. Those given first make room for it: they are of the lengths
/// that clients no longer ask for.
pub fn give(buffer: BytesMut) {
    if !is_kept(&buffer) || buffer.capacity() > KEPT_BYTES_MAX {
        return;
    }
    let mut kept = lock();
    let mut bytes = kept.iter().map(BytesMut::capacity).sum::<usize>() + buffer.capacity();
    let mut gone = Vec::new();
    while bytes > KEPT_BYTES_MAX {
        let first = kept.remove(0);
        bytes -= first.capacity();
        gone.push(first);
    }
    kept.push(buffer);
    drop(kept);
    // Given back to the kernel while nobody waits.
    drop(gone);
}

/// How long a new buffer is made for a request of `len` bytes: a write's holds a tag of 16 bytes behind every sector, and
/// what a read of as many sectors leaves behind is to serve it.
fn capacity(len: usize) -> usize {
    if len < KEPT_LEN_MIN { len } else { len + len.div_ceil(256) }
}

/// Whether [`give`] keeps a buffer, if it has room for it.
#[must_use]
pub fn is_kept(buffer: &BytesMut) -> bool {
    has_kept_len(buffer.capacity())
}

/// The same by its length in bytes.
#[must_use]
pub fn has_kept_len(len: usize) -> bool {
    len >= KEPT_LEN_MIN
}

fn best_fit(len: usize) -> Option<BytesMut> {
    let mut kept = lock();
    let fits = |buffer: &BytesMut| buffer.capacity() >= len && buffer.capacity() < len * WASTE_MAX;
    let fitting = kept.iter().enumerate().filter(|(_, buffer)| fits(buffer));
    // The last one given: it may still be in a cache.
    let (best, _) = fitting.rev().min_by_key(|(_, buffer)| buffer.capacity())?;
    Some(kept.remove(best))
}

fn lock() -> std::sync::MutexGuard<'static, Vec<BytesMut>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pool is one for the process, and so is this test.
    #[test]
    fn long_buffers_are_used_again_and_short_ones_are_not() {
        let mut long = take(1 << 20);
        long.fill(7);
        let place = long.as_ptr();
        give(long);
        let short = take(4112);
        assert!(short.iter().all(|byte| *byte == 0), "from the allocator");
        give(short);
        let waste = take(KEPT_LEN_MIN);
        assert_ne!(waste.as_ptr(), place, "a long buffer is not for short requests");
        // Sectors that are moved, 64 at a time, would hold on to the memory of four times as many.
        assert_ne!(take(64 * (4096 + 16)).as_ptr(), place);
        let again = take((1 << 20) - 5);
        assert_eq!((again.len(), again.as_ptr()), ((1 << 20) - 5, place));
        give(again);
        let longer = take(1 << 20);
        assert_eq!((longer.len(), longer.as_ptr()), (1 << 20, place));
        give(longer);
        let written = take(256 * (4096 + 16));
        assert_eq!(written.as_ptr(), place, "what was read into serves a write");
        give(written);
        for _ in 0..40 {
            give(BytesMut::zeroed(1 << 20));
        }
        assert!(lock().iter().map(BytesMut::capacity).sum::<usize>() <= KEPT_BYTES_MAX);
        assert!(lock().iter().all(|buffer| buffer.as_ptr() != place), "the first makes room");
        give(BytesMut::zeroed(KEPT_BYTES_MAX + 1));
        assert!(!lock().is_empty(), "what is never kept pushes nothing out");
        lock().clear();
    }
}
