//! A store in a file, sparse, or on a block device.
//!
//! Assumes nothing about other processes: an open-file-description lock keeps a second opener out
//! for as long as this one lives, across `fork` and whoever else opens and closes the same file.
//! With [`Caching::Direct`] it bypasses the page cache.
//!
//! Promises the contract of [`SlotStore`]; in particular a read never makes up zeros behind the end
//! of a file that was cut short, and a failed `fdatasync` is final: the kernel marks the pages it
//! could not write as clean, so a second `fdatasync` would succeed without having written anything.

mod direct;
mod pace;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use bytes::Bytes;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::Semaphore;

use self::direct::{Aligned, Direct};
use self::pace::Pace;
use super::{Access, BoxFuture, Capability, Persist, SlotStore, StoreError, whole_blocks};

/// Longest single read or write in bytes: one segment of the default size.
const IO_BYTES_MAX: u32 = 8 << 20;

/// Reads on threads of their own at once: as many as a disk makes use of.
const WAITING_READS_MAX: usize = 32;

/// Longest write done on the caller's thread, in bytes: a chunk of any size. A buffered write is a copy into the page
/// cache, and below this length handing it to another thread costs more than the copy.
const INLINE_WRITE_BYTES_MAX: usize = 2 << 20;

/// Parts that one `pwritev` takes: Linux' `IOV_MAX`.
const PARTS_PER_CALL_MAX: usize = 1024;

/// Writes go through the page cache, which takes any; a sector of the oldest disks.
const WRITE_UNIT: u32 = 512;
/// What the page cache reads, writes and gives back at once.
const PAGE: u32 = 4096;

/// What [`FileStore::create`] does when the file is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Empty it and take it over, unless somebody has it open.
    Replace,
}

/// Whether reads and writes go through the page cache of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// They do.
    Cached,
    /// They bypass it (O_DIRECT).
    Direct,
}

/// A store in a file or on a block device.
pub struct FileStore {
    inner: Arc<Inner>,
}

/// Shared with the threads that do what may block.
struct Inner {
    file: File,
    path: PathBuf,
    /// Grows only.
    size: AtomicU64,
    access: Access,
    /// How it is read and written past the page cache.
    direct: Option<Direct>,
    /// Whether the end must be looked at: a device does not shrink under us.
    regular: bool,
    /// Cleared when the file system turns out not to punch holes.
    punches: AtomicBool,
    /// Cleared when the file system turns out not to know `RWF_NOWAIT`.
    reads_without_waiting: AtomicBool,
    /// Why a sync failed, once one has; it stays. Held while a sync runs: the kernel reports a
    /// failure to one caller only, and a second one must not pass in between.
    sync_failed: Mutex<Option<String>>,
    pace: Pace,
    /// Reads under way on threads of their own.
    waiting_reads: Semaphore,
}

impl FileStore {
    /// Opens a file or block device and locks it: for reading together with other readers, for
    /// writing alone. [`Access::Inspect`] takes no lock.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process holds the lock, or has the device mounted or in
    /// use otherwise; [`StoreError::Open`] when it is not there, may not be opened, cannot be
    /// locked, or is neither file nor block device.
    pub fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        Self::open_with(path, access, Caching::Cached)
    }

    /// The same, with a choice of caching.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`StoreError::NoDirectAccess`] when the file system has no way around its cache.
    pub fn open_with(path: &Path, access: Access, caching: Caching) -> Result<Self, StoreError> {
        let failed = |cause: io::Error| open_failed(path, &cause);
        // Before opening: a FIFO would block, a device might act.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let name = path.display();
            return Err(StoreError::Open(format!("{name} is neither a file nor a block device")));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // On a device O_EXCL asks the kernel to refuse while the device is mounted or mapped.
        let alone = if kind.is_block_device() && access == Access::ReadWrite { libc::O_EXCL } else { 0 };
        let no_way = || StoreError::NoDirectAccess(path.display().to_string());
        let file = match caching {
            Caching::Cached => options.custom_flags(alone).open(path).map_err(failed)?,
            Caching::Direct => options.custom_flags(alone | libc::O_DIRECT).open(path).map_err(|cause| {
                match cause.kind() {
                    io::ErrorKind::InvalidInput => no_way(),
                    _ => failed(cause),
                }
            })?,
        };
        lock(&file, path, access)?;
        let direct = match caching {
            Caching::Cached => None,
            Caching::Direct => Some(Direct::of(&file).ok_or_else(no_way)?),
        };
        Self::of_locked(file, path, access, direct)
    }

    /// Makes a sparse file of `size` bytes with mode 0600 and opens it for writing. When this
    /// returns, the file and its name are on stable storage.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`StoreError::Open`] also when the file exists and `existing` says
    /// to refuse; [`StoreError::NoSpace`] when the file system cannot hold a file of that size.
    /// A file that this call made is removed again.
    pub fn create(path: &Path, size: u64, existing: Existing) -> Result<Self, StoreError> {
        let fresh = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        match fresh {
            Ok(file) => Self::laid_out(file, path, size).inspect_err(|_| {
                // The error that matters is the first one.
                let _ = std::fs::remove_file(path);
            }),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => match existing {
                Existing::Refuse => Err(StoreError::Open(format!("{} already exists", path.display()))),
                Existing::Replace => Self::replaced(path, size),
            },
            Err(cause) => Err(open_failed(path, &cause)),
        }
    }

    fn replaced(path: &Path, size: u64) -> Result<Self, StoreError> {
        // The lock comes first: nothing is lost when somebody has the file open.
        let store = Self::open(path, Access::ReadWrite)?;
        if !store.inner.regular {
            let name = path.display();
            return Err(StoreError::Open(format!("{name} is a device: its size is fixed")));
        }
        let file = store.inner.file.try_clone().map_err(|cause| open_failed(path, &cause))?;
        file.set_len(0).map_err(|cause| StoreError::from_io("empty the file", cause))?;
        Self::laid_out(file, path, size)
    }

    /// Gives an empty file its size and makes it and its name durable.
    fn laid_out(file: File, path: &Path, size: u64) -> Result<Self, StoreError> {
        lock(&file, path, Access::ReadWrite)?;
        file.set_len(size).map_err(|cause| StoreError::from_io("set the size of the file", cause))?;
        file.sync_all().map_err(|cause| StoreError::from_io("sync the new file", cause))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|cause| StoreError::from_io("sync the directory of the new file", cause))?;
        Self::of_locked(file, path, Access::ReadWrite, None)
    }

    fn of_locked(
        mut file: File,
        path: &Path,
        access: Access,
        direct: Option<Direct>,
    ) -> Result<Self, StoreError> {
        let failed = |cause: io::Error| open_failed(path, &cause);
        let regular = file.metadata().map_err(failed)?.is_file();
        // A device has length 0 in its metadata; its end can be sought.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let punches = access == Access::ReadWrite && (!regular || punches_holes(&file, size));
        let inner = Inner {
            file,
            path: path.to_owned(),
            size: AtomicU64::new(size),
            access,
            direct,
            regular,
            punches: AtomicBool::new(punches),
            reads_without_waiting: AtomicBool::new(direct.is_none()),
            sync_failed: Mutex::new(None),
            pace: Pace::new(),
            waiting_reads: Semaphore::new(WAITING_READS_MAX),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs what may block on a thread made for it.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(outcome) => outcome,
            // Only when the runtime is being torn down: the task was never started.
            Err(stopped) => Err(StoreError::Unreachable(format!("the runtime is shutting down: {stopped}"))),
        }
    }
}

impl SlotStore for FileStore {
    fn capability(&self) -> Capability {
        let write_unit = self.inner.direct.map_or(WRITE_UNIT, Direct::unit);
        Capability {
            size: self.inner.size.load(Ordering::Relaxed),
            write_unit,
            // A page of a file that nothing was written to holds zeros without being read; one of a device
            // is read first.
            best_unit: if self.inner.regular { write_unit } else { PAGE },
            io_bytes_max: IO_BYTES_MAX,
            discard: self.inner.punches.load(Ordering::Relaxed),
            read_only: self.inner.access != Access::ReadWrite,
            // A file system notes which blocks of a file hold something.
            prefers_written: self.inner.regular,
        }
    }

    fn describe(&self) -> String {
        self.inner.path.display().to_string()
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        let inner = &self.inner;
        if !inner.reads_without_waiting.load(Ordering::Relaxed) {
            return None;
        }
        self.capability().check_read(offset, buf.len()).ok()?;
        let wanted = buf.len();
        let parts = &mut [IoSliceMut::new(buf)];
        match rustix::io::preadv2(&inner.file, parts, offset, ReadWriteFlags::NOWAIT) {
            Ok(got) if got == wanted => Some(Ok(())),
            Err(Errno::OPNOTSUPP) => {
                inner.reads_without_waiting.store(false, Ordering::Relaxed);
                None
            }
            // Not cached, or only in part, or an error: `read_at` finds out and says so.
            Ok(_) | Err(_) => None,
        }
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            self.capability().check_read(offset, len)?;
            let _room = self.inner.waiting_reads.acquire().await;
            // Taken here: the C library's allocator keeps what was freed for each thread by itself, and those for
            // blocking calls are many.
            let Some(direct) = self.inner.direct else {
                let bytes = Vec::with_capacity(len);
                return self.off_thread(move |inner| inner.read(offset, len, bytes)).await;
            };
            let memory = direct.memory(offset, len);
            self.off_thread(move |inner| direct.read(&inner.file, offset, len, memory)).await
        })
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let len = self.capability().check_write(offset, &parts)?;
            let direct = self.inner.direct.is_some();
            if persist == Persist::Volatile && len <= INLINE_WRITE_BYTES_MAX && !direct {
                return self.inner.write(offset, &parts);
            }
            // Copied here for the same reason as above.
            let parts = if direct { vec![Bytes::from_owner(Aligned::copy_of(&parts))] } else { parts };
            self.off_thread(move |inner| {
                inner.write(offset, &parts)?;
                match persist {
                    Persist::Volatile => Ok(()),
                    // Not RWF_DSYNC: when that fails, one cannot tell a write that was refused (nothing
                    // is lost) from a sync that failed (everything unsynced may be).
                    Persist::Durable => inner.sync(),
                }
            })
            .await
        })
    }

    fn try_sync(&self) -> Option<Result<(), StoreError>> {
        self.inner.try_sync()
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.off_thread(Inner::sync))
    }

    fn extend(&self, size: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.capability().check_writable()?;
            self.off_thread(move |inner| inner.extend(size)).await
        })
    }

    fn extends(&self) -> bool {
        self.inner.regular
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.capability().check_discard(offset, len)?;
            let (offset, len) = whole_blocks(offset, len, PAGE);
            if len == 0 || !self.inner.punches.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.off_thread(move |inner| inner.punch(offset, len)).await
        })
    }
}

impl Inner {
    /// Reads `len` bytes into `bytes`, which is empty and has room for them.
    fn read(&self, offset: u64, len: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            // The capacity may be larger than asked for; what comes too much is cut off below.
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(StoreError::ShortRead { offset, wanted: len, got: bytes.len() }),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(StoreError::from_io("read from the file", errno.into())),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    fn write(&self, offset: u64, parts: &[Bytes]) -> Result<(), StoreError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.write_slices(offset, &mut slices)
    }

    fn write_slices(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> Result<(), StoreError> {
        self.pace.wrote(slices.iter().map(|slice| slice.len()).sum());
        let mut rest = slices;
        let mut at = offset;
        // Empty parts go first, so that a call that writes nothing is an error below.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let now = &rest[..rest.len().min(PARTS_PER_CALL_MAX)];
            match rustix::io::pwritev(&self.file, now, at) {
                Ok(0) => {
                    let source = io::ErrorKind::WriteZero.into();
                    return Err(StoreError::Io { context: "write to the file", source });
                }
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(StoreError::from_io("write to the file", errno.into())),
            }
        }
        Ok(())
    }

    fn try_sync(&self) -> Option<Result<(), StoreError>> {
        if !self.pace.is_short() {
            return None;
        }
        match self.sync_failed.try_lock() {
            Ok(failed) => Some(self.sync_unless(failed)),
            Err(TryLockError::Poisoned(failed)) => Some(self.sync_unless(failed.into_inner())),
            // One is under way.
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.sync_unless(self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sync_unless(&self, mut failed: MutexGuard<'_, Option<String>>) -> Result<(), StoreError> {
        if failed.is_none() {
            *failed = self.sync_once().err();
        }
        match &*failed {
            None => Ok(()),
            Some(cause) => Err(StoreError::SyncFailed(cause.clone())),
        }
    }

    fn sync_once(&self) -> Result<(), String> {
        let (bytes, since) = (self.pace.begin(), Instant::now());
        rustix::fs::fdatasync(&self.file)
            .map_err(|errno| format!("fdatasync: {}", io::Error::from(errno)))?;
        self.pace.end(bytes, since.elapsed());
        if self.regular {
            // Not from the file's status: whoever asks for that makes the kernel give the next write a time of its own,
            // and some file systems write that out with the next sync.
            let size = (&self.file)
                .seek(SeekFrom::End(0))
                .map_err(|cause| format!("look at the end of the file: {cause}"))?;
            let opened = self.size.load(Ordering::Relaxed);
            if size < opened {
                let name = self.path.display();
                return Err(format!("{name} was cut from {opened} to {size} bytes while open"));
            }
        }
        Ok(())
    }

    fn extend(&self, wanted: u64) -> Result<(), StoreError> {
        if wanted <= self.size.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed = |context| move |cause| StoreError::from_io(context, cause);
        // Of a device, what it has become; of a file, what somebody else has made of it counts as well.
        let end = || (&self.file).seek(SeekFrom::End(0)).map_err(failed("look at the end of the file"));
        let mut size = end()?;
        if self.regular && size < wanted {
            self.file.set_len(wanted).map_err(failed("set the size of the file"))?;
            self.file.sync_all().map_err(failed("sync the file"))?;
            size = end()?;
        }
        self.size.fetch_max(size, Ordering::Relaxed);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        loop {
            match rustix::fs::fallocate(&self.file, PUNCH, offset, len) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.punches.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                Err(errno) => return Err(StoreError::from_io("punch a hole in the file", errno.into())),
            }
        }
    }
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Whether the file system punches holes, tried out behind the end, where there is nothing.
fn punches_holes(file: &File, size: u64) -> bool {
    !matches!(rustix::fs::fallocate(file, PUNCH, size, u64::from(PAGE)), Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

/// Takes the lock of the whole file, without waiting.
fn lock(file: &File, path: &Path, access: Access) -> Result<(), StoreError> {
    let kind = match access {
        Access::Inspect => return Ok(()),
        Access::ReadOnly => libc::F_RDLCK,
        Access::ReadWrite => libc::F_WRLCK,
    };
    let whole = libc::flock {
        l_type: libc::c_short::try_from(kind).expect("lock types are small numbers"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            Err(StoreError::Busy(path.display().to_string()))
        }
        Err(errno) => {
            let name = path.display();
            Err(StoreError::Open(format!("{name} cannot be locked: {}", io::Error::from(errno))))
        }
    }
}

fn open_failed(path: &Path, cause: &io::Error) -> StoreError {
    let name = path.display();
    match cause.kind() {
        io::ErrorKind::ResourceBusy => StoreError::Busy(name.to_string()),
        _ => StoreError::Open(format!("{name} cannot be opened: {cause}")),
    }
}

#[cfg(test)]
mod tests;
