//! Reads and writes that bypass the page cache: O_DIRECT (open(2)).
//!
//! Memory, places and lengths are multiples of a unit then, which depends on the device below. What is asked for
//! need not be, so everything goes through memory of our own.

use std::fs::File;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use rustix::io::Errno;

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
            let mut memory = Aligned::zeroed(*unit as usize);
            // A file that is empty or has a hole there answers as well.
            rustix::io::pread(file, &mut memory[..], u64::from(*unit)).is_ok()
        };
        UNITS.into_iter().find(works).map(|unit| Self { unit })
    }

    /// What places and lengths of writes are multiples of.
    pub(super) fn unit(self) -> u32 {
        self.unit
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`StoreError::ShortRead`] where the file ends before, the operating system's.
    pub(super) fn read(
        self,
        file: &File,
        offset: u64,
        len: usize,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<u8>, StoreError> {
        let unit = u64::from(self.unit);
        let before = index(offset % unit);
        let whole = (before + len).next_multiple_of(index(unit));
        let start = offset - offset % unit;
        let mut memory = Aligned::zeroed(whole);
        let mut got = 0;
        while got < before + len {
            match rustix::io::pread(file, &mut memory[got..], start + got as u64) {
                // Only at its end a file gives less than whole units.
                Ok(now) if now == 0 || !(got + now).is_multiple_of(index(unit)) => {
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
        bytes.extend_from_slice(&memory[before..before + len]);
        Ok(bytes)
    }
}

/// Memory that begins at a multiple of [`ALIGN`].
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    /// The parts one behind the other.
    pub(super) fn copy_of(parts: &[Bytes]) -> Self {
        let mut all = Self::zeroed(parts.iter().map(Bytes::len).sum());
        let mut rest = &mut all[..];
        for part in parts {
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            rest = later;
        }
        all
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

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a request fits in memory")
}
