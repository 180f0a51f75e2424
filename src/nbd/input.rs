//! The read-ahead of a connection: one receive call takes in many small requests.

use std::io::IoSliceMut;

/// Bytes received ahead of parsing. Takes in 60 writes of 4 KiB, or an option of
/// [`OPTION_LEN_MAX`](super::handshake::OPTION_LEN_MAX) whole.
pub(super) const READ_AHEAD_LEN: usize = 256 << 10;
/// With less room than this at the end, what is unparsed moves to the front before receiving.
const ROOM_LEN_MIN: usize = 64 << 10;

/// Received bytes that are not yet parsed.
pub(super) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; READ_AHEAD_LEN].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What is there.
    pub(super) fn unparsed(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The next `len` bytes, when all of them are there.
    pub(super) fn next(&mut self, len: usize) -> Option<&[u8]> {
        let end = self.start.checked_add(len).filter(|end| *end <= self.end)?;
        let bytes = &self.buffer[self.start..end];
        self.start = end;
        Some(bytes)
    }

    /// The next bytes, at most `len` of them.
    pub(super) fn next_up_to(&mut self, len: usize) -> &[u8] {
        let end = self.end.min(self.start.saturating_add(len));
        let bytes = &self.buffer[self.start..end];
        self.start = end;
        bytes
    }

    /// Room to receive into; empty only when [`READ_AHEAD_LEN`] bytes are unparsed.
    pub(super) fn room(&mut self) -> IoSliceMut<'_> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.buffer.len() - self.end < ROOM_LEN_MIN {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        IoSliceMut::new(&mut self.buffer[self.end..])
    }

    /// Notes that `len` bytes were received into [`room`](Self::room).
    pub(super) fn received(&mut self, len: usize) {
        self.end += len;
        debug_assert!(self.end <= self.buffer.len(), "no more is received than there is room");
    }
}
