//! Keys of segments, and the types that enforce encrypt-once (docs/FORMAT.md §3):
//!
//! - **R1** a byte range of a segment is sealed once: [`OpenSegmentKey`] hands out each range once,
//!   as a [`SealRange`] that cannot be copied and that sealing consumes.
//! - **R2** no process continues a segment that it did not open itself: an [`OpenSegmentKey`] is made
//!   only from a [`FreshUid`]; from a stored uid one gets a [`SegmentKey`], which only opens.
//! - **R3** a uid never derives from anything the store supplied: a [`FreshUid`] comes only from a
//!   [`UidSource`], whose inputs are the random numbers, the host and the clock of its [`Surroundings`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::derive::VolumeKeys;
use super::engine::AeadKey;
use super::nonce::{Domain, nonce, record_aad};
use super::surroundings::{NoRandomness, Surroundings};
use super::{AuthenticationFailed, TAG_LEN};
use crate::geometry::{Lba, SECTOR_LEN};
use crate::payload::RECORD_LEN;

/// Identity of a segment, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Uid(pub [u8; 16]);

/// A uid that was made just now in this process and has sealed nothing yet.
pub struct FreshUid(Uid);

impl FreshUid {
    /// The identity, for announcing it.
    #[must_use]
    pub fn uid(&self) -> Uid {
        self.0
    }
}

/// Where uids come from: one per session of a volume.
pub struct UidSource {
    surroundings: Surroundings,
    session_id: [u8; 16],
    started: Instant,
    counter: AtomicU64,
}

impl UidSource {
    /// A source with a fresh session id.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new(surroundings: Surroundings) -> Result<Self, NoRandomness> {
        let session_id = surroundings.random()?;
        Ok(Self { surroundings, session_id, started: Instant::now(), counter: AtomicU64::new(0) })
    }

    /// What the session takes from outside.
    #[must_use]
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// The random id of this session.
    #[must_use]
    pub fn session_id(&self) -> [u8; 16] {
        self.session_id
    }

    /// A new uid: HMAC(K_uid, random(32) ‖ session ‖ host ‖ monotonic ns ‖ counter), so that a
    /// repeating random number generator alone does not repeat a uid.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn fresh(&self, keys: &VolumeKeys) -> Result<FreshUid, NoRandomness> {
        let randomness: [u8; 32] = self.surroundings.random()?;
        let nanos = self.started.elapsed().as_nanos().to_le_bytes();
        let counter = self.counter.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let parts = [&randomness, self.session_id.as_slice(), self.surroundings.host_id(), &nanos, &counter];
        Ok(FreshUid(Uid(keys.uid_hash(&parts))))
    }
}

/// The key of one segment. From outside this module it only opens.
pub struct SegmentKey {
    uid: Uid,
    key: AeadKey,
}

impl SegmentKey {
    pub(super) fn new(uid: Uid, key: AeadKey) -> Self {
        Self { uid, key }
    }

    /// Whose key it is.
    #[must_use]
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// Opens the record ([`RECORD_LEN`] bytes) of sector `lba` at `offset` into `sector` (4096 bytes).
    ///
    /// # Errors
    /// [`AuthenticationFailed`] unless exactly this sector was sealed at this place; `sector` is
    /// zeroed then.
    ///
    /// # Panics
    /// When a length is wrong.
    pub fn open_record(
        &self,
        offset: u64,
        lba: Lba,
        record: &[u8],
        sector: &mut [u8],
    ) -> Result<(), AuthenticationFailed> {
        let record: &[u8; RECORD_LEN] = record.try_into().expect("a record has 4112 bytes");
        let (ciphertext, tag) = record.split_at(SECTOR_LEN);
        let tag = tag.try_into().expect("a record ends with its tag");
        self.key.open(nonce(Domain::Record, offset), &record_aad(lba), ciphertext, tag, sector)
    }

    /// Opens a message, ciphertext ‖ tag, sealed at `offset` in `domain`.
    ///
    /// # Errors
    /// [`AuthenticationFailed`], also for anything shorter than a tag.
    pub fn open_message(
        &self,
        domain: Domain,
        offset: u64,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, AuthenticationFailed> {
        let split = sealed.len().checked_sub(TAG_LEN).ok_or(AuthenticationFailed)?;
        let (ciphertext, tag) = sealed.split_at(split);
        let mut plaintext = vec![0; split];
        let tag = tag.try_into().expect("split at the tag");
        self.key.open(nonce(domain, offset), aad, ciphertext, tag, &mut plaintext)?;
        Ok(plaintext)
    }
}

/// The key of a segment that this process opened and still appends to.
pub struct OpenSegmentKey {
    key: Arc<SegmentKey>,
    next: u64,
    end: u64,
}

impl OpenSegmentKey {
    /// Opens a segment of `bytes` bytes under a fresh identity.
    #[must_use]
    pub fn create(keys: &VolumeKeys, kind: u8, uid: FreshUid, bytes: u64) -> Self {
        Self { key: Arc::new(keys.segment_key(kind, uid.0)), next: 0, end: bytes }
    }

    /// Where the next range starts.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.next
    }

    /// Bytes that were not handed out yet.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.end - self.next
    }

    /// Hands out the next `len` bytes, once; `None` when the segment has no such room.
    pub fn reserve(&mut self, len: u64) -> Option<SealRange> {
        if len > self.remaining() {
            return None;
        }
        let range = SealRange { key: self.key.clone(), start: self.next, end: self.next + len };
        self.next = range.end;
        Some(range)
    }

    /// Goes on at the next multiple of `unit`, or at the end; what is left out is never sealed.
    pub fn skip_to_multiple(&mut self, unit: u64) {
        self.next = self.next.next_multiple_of(unit).min(self.end);
    }

    /// The key for reading back what was sealed.
    #[must_use]
    pub fn reader(&self) -> Arc<SegmentKey> {
        self.key.clone()
    }
}

/// The right to seal one byte range of a segment, once. It cannot be copied; sealing consumes it.
pub struct SealRange {
    key: Arc<SegmentKey>,
    start: u64,
    end: u64,
}

impl SealRange {
    /// First byte, from the start of the segment.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.start
    }

    /// Bytes left in the range.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.end - self.start
    }

    /// Takes the first `len` bytes off the range.
    ///
    /// # Panics
    /// When the range is shorter: the caller reserved what it composed.
    #[must_use]
    pub fn split_front(&mut self, len: u64) -> Self {
        assert!(len <= self.remaining(), "a reserved range holds what is composed into it");
        let front = Self { key: self.key.clone(), start: self.start, end: self.start + len };
        self.start = front.end;
        front
    }

    /// Seals consecutive sectors from `first` on, in place: `records` holds a sector and room for
    /// its tag, over and over.
    ///
    /// # Panics
    /// When the range is not exactly as long as the records.
    pub fn seal_records(self, first: Lba, records: &mut [u8]) {
        assert_eq!(self.remaining(), records.len() as u64, "a range is sealed whole");
        let (records, rest) = records.as_chunks_mut::<RECORD_LEN>();
        assert!(rest.is_empty(), "records are sealed whole");
        for (i, record) in (0..).zip(records) {
            let offset = self.start + i * RECORD_LEN as u64;
            let (sector, tag) = record.split_at_mut(SECTOR_LEN);
            let made =
                self.key.key.seal(nonce(Domain::Record, offset), &record_aad(Lba(first.0 + i)), sector);
            tag.copy_from_slice(&made);
        }
    }

    /// Seals one message in place and returns its tag. The range must have room for both.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn seal_message(self, domain: Domain, aad: &[u8], message: &mut [u8]) -> [u8; TAG_LEN] {
        assert!(message.len() + TAG_LEN <= usize::try_from(self.remaining()).unwrap_or(usize::MAX));
        self.key.key.seal(nonce(domain, self.start), aad, message)
    }
}
