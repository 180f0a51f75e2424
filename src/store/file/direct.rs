//! Reads and writes that bypass the page cache: O_DIRECT (open(2)).
//!
//! Memory, places and lengths are multiples of a unit then, which depends on the device below. What is asked for
//! need not be, so everything goes through memory of our own.

use std::fs::File;
use std::ops::{Deref, DerefMut};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use crate::buffers;
use crate::store::StoreError;

/// Units that devices have, the smallest first.
const UNITS: [u32; 2] = [512, 4096];
/// What memory is aligned to: enough for either unit.
const ALIGN: usize = 4096;

/// How a file that was opened with O_DIRECT is read and written.
#[derive(Clone, Copy)]
pub(super) struct Direct {
    unit: u32,
}

impl Direct {
    /// Finds out the unit by reading; `None` when neither will do.
    pub(super) fn of(file: &File) -> Option<Self> {
        let works = |unit: &u32| {
            let mut memory = Aligned::unfilled(*unit as usize);
            // A file that is empty or has a hole there answers as well.
            rustix::io::pread(file, &mut memory[..], u64::from(*unit)).is_ok()
        };
        UNITS.into_iter().find(works).map(|unit| Self { unit })
    }

    /// What places and lengths of writes are multiples of.
    pub(super) fn unit(self) -> u32 {
        self.unit
    }

    /// Memory for a read of `len` bytes at `offset`.
    pub(super) fn memory(self, offset: u64, len: usize) -> Vec<u8> {
        vec![0; self.whole(offset, len) + ALIGN]
    }

    /// Reads `len` bytes at `offset` by way of their [`memory`](Self::memory), which is what is given back.
    ///
    /// # Errors
    /// [`StoreError::ShortRead`] where the file ends before, the operating system's.
    pub(super) fn read(
        self,
        file: &File,
        offset: u64,
        len: usize,
        mut memory: Vec<u8>,
    ) -> Result<Vec<u8>, StoreError> {
        let unit = self.unit as usize;
        let before = self.before(offset);
        let at = memory.as_ptr().align_offset(ALIGN);
        let target = &mut memory[at..][..self.whole(offset, len)];
        let start = offset - before as u64;
        let mut got = 0;
        while got < before + len {
            match rustix::io::pread(file, &mut target[got..], start + got as u64) {
                // Only at its end a file gives less than whole units.
                Ok(now) if now == 0 || !(got + now).is_multiple_of(unit) => {
                    got += now;
                    break;
                }
                Ok(now) => got += now,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(StoreError::from_io("read from the file", errno.into())),
            }
        }
        if got < before + len {
            return Err(StoreError::ShortRead { offset, wanted: len, got: got.saturating_sub(before) });
        }
        memory.copy_within(at + before..at + before + len, 0);
        memory.truncate(len);
        Ok(memory)
    }

    /// Length of the whole units that hold `len` bytes at `offset`.
    fn whole(self, offset: u64, len: usize) -> usize {
        (self.before(offset) + len).next_multiple_of(self.unit as usize)
    }

    /// Bytes between the unit's boundary before `offset` and it.
    fn before(self, offset: u64) -> usize {
        usize::try_from(offset % u64::from(self.unit)).expect("less than a unit")
    }
}

/// Memory that begins at a multiple of [`ALIGN`].
pub(super) struct Aligned {
    memory: BytesMut,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes with any content.
    fn unfilled(len: usize) -> Self {
        let memory = buffers::take(len + ALIGN);
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    /// The parts one behind the other.
    pub(super) fn copy_of(parts: &[Bytes]) -> Self {
        let mut all = Self::unfilled(parts.iter().map(Bytes::len).sum());
        let mut rest = &mut all[..];
        for part in parts {
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            rest = later;
        }
        all
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.memory));
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}
