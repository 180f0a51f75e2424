//! The volume header: two copies of 64 KiB, at 0 and at 1 MiB (docs/FORMAT.md §4).
//!
//! Reading has two steps with a type each: [`UnverifiedHeader`] passed the checksum and names its
//! features, but anybody may have written it; [`Header`] was authenticated with a key that one of
//! its own keyslots yielded. Nothing of an unverified header is acted upon but its keyslots.

use super::codec::{FormatError, Put, Reader, mac_eq};
use super::keyslot::{KEYSLOT_COUNT, KEYSLOT_LEN, Keyslot};
use crate::cipher::{SUITE_AES_256_GCM_HKDF_SHA256, VolumeKeys};
use crate::geometry::{SECTOR_BYTES, SECTOR_LEN};

/// Longest label of a volume, in bytes.
pub const LABEL_LEN: usize = 64;
/// Bytes of one copy.
pub const HEADER_LEN: usize = 64 * 1024;
/// Where the two copies lie.
pub const HEADER_OFFSETS: [u64; 2] = [0, 1 << 20];
/// Where the root ring lies in volumes made by this program.
pub const RING_OFFSET: u64 = HEADER_OFFSETS[1] + HEADER_LEN as u64;
/// Blocks of the root ring.
pub const RING_SLOTS: u32 = 8;
/// Where the first slot lies in volumes made by this program: behind the ring and the lease block.
pub const DATA_START: u64 = 2 << 20;

/// Smallest and largest segment.
pub const SEGMENT_BYTES_MIN: u32 = 2 << 20;
/// See [`SEGMENT_BYTES_MIN`]. An offset in a segment, in units of 16 bytes, has 22 bits (§7).
pub const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// Largest export: 8192 root pointers of 512 GiB.
pub const EXPORT_BYTES_MAX: u64 = 8192 << 39;

const STRUCTURE: &str = "header";
const MAGIC: &[u8; 8] = b"SEALBDV1";
const VERSION_MAJOR: u16 = 1;
const VERSION_MINOR: u16 = 0;
const INCOMPAT_KNOWN: u64 = 0;
const RO_COMPAT_KNOWN: u64 = 0;
const MAC_OFFSET: usize = 4032;
const CRC_OFFSET: usize = 4092;
const KEYSLOTS_OFFSET: usize = 4096;

/// What a volume is: its identity, geometry and keyslots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Identity of the volume.
    pub volume: [u8; 16],
    /// Number of this header; every change makes a higher one.
    pub generation: u64,
    /// Features that older programs may ignore.
    pub compat: u64,
    /// Features that older programs may ignore while reading only.
    pub ro_compat: u64,
    /// Unit that writes to the store are aligned to: 512 or 4096.
    pub align: u32,
    /// Bytes of a segment, a power of two.
    pub segment_bytes: u32,
    /// Bytes that clients see.
    pub export_bytes: u64,
    /// Segments that fit on the store.
    pub slots: u64,
    /// First byte of slot 0.
    pub data_start: u64,
    /// Epoch that new segments are sealed under.
    pub active_epoch: u32,
    /// Blocks of the root ring.
    pub ring_slots: u32,
    /// First byte of the root ring.
    pub ring_offset: u64,
    /// When the data key of the active epoch was made, seconds since 1970; 0 when that is not known.
    pub dek_created: u64,
    /// Salt of the key derivation.
    pub salt: [u8; 32],
    /// Free text for people, UTF-8, padded with zeros.
    pub label: [u8; LABEL_LEN],
    /// The keyslots.
    pub keyslots: [Option<Keyslot>; KEYSLOT_COUNT],
}

/// A header copy whose checksum fits. Not to be trusted.
#[derive(Debug)]
pub struct UnverifiedHeader {
    header: Header,
    bytes: Vec<u8>,
}

impl UnverifiedHeader {
    /// Reads one copy ([`HEADER_LEN`] bytes).
    ///
    /// # Errors
    /// [`FormatError::Magic`] when this is no sealbd volume, [`FormatError::Checksum`] when the copy
    /// is torn, and every unknown version, feature and suite by name.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(STRUCTURE, bytes);
        reader.magic(MAGIC)?;
        if bytes.len() != HEADER_LEN {
            return Err(FormatError::Truncated(STRUCTURE));
        }
        let crc = u32::from_le_bytes(bytes[CRC_OFFSET..][..4].try_into().expect("four bytes"));
        if crc != checksum(bytes) {
            return Err(FormatError::Checksum(STRUCTURE));
        }
        let major = reader.u16()?;
        if major != VERSION_MAJOR {
            let (found, supported) = (u32::from(major), u32::from(VERSION_MAJOR));
            return Err(FormatError::Version { structure: STRUCTURE, found, supported });
        }
        let minor = reader.u16()?;
        if minor != VERSION_MINOR {
            let (found, supported) = (u32::from(minor), u32::from(VERSION_MINOR));
            return Err(FormatError::Version { structure: "header (minor)", found, supported });
        }
        let len = reader.u32()?;
        if len as usize != HEADER_LEN {
            return Err(reader.field("length", u64::from(len)));
        }
        let volume = reader.array()?;
        let generation = reader.u64()?;
        let compat = reader.u64()?;
        let ro_compat = reader.u64()?;
        let incompat = reader.u64()?;
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(FormatError::Incompatible(incompat & !INCOMPAT_KNOWN));
        }
        let suite = reader.u32()?;
        if suite != SUITE_AES_256_GCM_HKDF_SHA256 {
            return Err(FormatError::Suite(suite));
        }
        let sector = reader.u32()?;
        if u64::from(sector) != SECTOR_BYTES {
            return Err(reader.field("sector size", u64::from(sector)));
        }
        let align = reader.u32()?;
        let segment_bytes = reader.u32()?;
        let export_bytes = reader.u64()?;
        let slots = reader.u64()?;
        let data_start = reader.u64()?;
        let active_epoch = reader.u32()?;
        let ring_slots = reader.u32()?;
        let ring_offset = reader.u64()?;
        let dek_created = reader.u64()?;
        let salt = reader.array()?;
        let label = reader.array()?;
        reader.zeros(MAC_OFFSET - 224)?;
        reader.bytes(32)?; // authenticated by `verify`
        reader.zeros(CRC_OFFSET - MAC_OFFSET - 32)?;
        reader.bytes(4)?;
        let mut keyslots = [const { None }; KEYSLOT_COUNT];
        for slot in &mut keyslots {
            *slot = Keyslot::decode(&reader.array::<KEYSLOT_LEN>()?)?;
        }
        reader.end_padded()?;
        let header = Header {
            volume,
            generation,
            compat,
            ro_compat,
            align,
            segment_bytes,
            export_bytes,
            slots,
            data_start,
            active_epoch,
            ring_slots,
            ring_offset,
            dek_created,
            salt,
            label,
            keyslots,
        };
        header.check_geometry()?;
        Ok(Self { header, bytes: bytes.to_vec() })
    }

    /// The number that the copy claims.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// The header as claimed, for showing and for trying its keyslots.
    #[must_use]
    pub fn claimed(&self) -> &Header {
        &self.header
    }

    /// The copy, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Authenticates the copy with keys that one of its keyslots yielded.
    ///
    /// # Errors
    /// [`FormatError::Authentication`].
    pub fn verify(self, keys: &VolumeKeys) -> Result<Header, FormatError> {
        let mut image = self.bytes;
        let stored: [u8; 32] = image[MAC_OFFSET..][..32].try_into().expect("32 bytes");
        clear_authentication(&mut image);
        if !mac_eq(&keys.header_mac(&image), &stored) {
            return Err(FormatError::Authentication(STRUCTURE));
        }
        Ok(self.header)
    }
}

impl Header {
    /// The authenticated bytes of one copy.
    #[must_use]
    pub fn encode(&self, keys: &VolumeKeys) -> Vec<u8> {
        let Self {
            volume,
            generation,
            compat,
            ro_compat,
            align,
            segment_bytes,
            export_bytes,
            slots,
            data_start,
            active_epoch,
            ring_slots,
            ring_offset,
            dek_created,
            salt,
            label,
            keyslots,
        } = self;
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.put(MAGIC);
        out.put_u16(VERSION_MAJOR);
        out.put_u16(VERSION_MINOR);
        out.put_count(HEADER_LEN);
        out.put(volume);
        out.put_u64(*generation);
        out.put_u64(*compat);
        out.put_u64(*ro_compat);
        out.put_u64(INCOMPAT_KNOWN);
        out.put_u32(SUITE_AES_256_GCM_HKDF_SHA256);
        out.put_count(SECTOR_LEN);
        out.put_u32(*align);
        out.put_u32(*segment_bytes);
        out.put_u64(*export_bytes);
        out.put_u64(*slots);
        out.put_u64(*data_start);
        out.put_u32(*active_epoch);
        out.put_u32(*ring_slots);
        out.put_u64(*ring_offset);
        out.put_u64(*dek_created);
        out.put(salt);
        out.put(label);
        out.pad_to(KEYSLOTS_OFFSET);
        for slot in keyslots {
            out.put(&Keyslot::encode(slot.as_ref()));
        }
        out.pad_to(HEADER_LEN);
        let mac = keys.header_mac(&out);
        out[MAC_OFFSET..][..32].copy_from_slice(&mac);
        let crc = checksum(&out);
        out[CRC_OFFSET..][..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Whether this program may write to the volume.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN == 0
    }

    /// First byte of a slot.
    #[must_use]
    pub fn slot_offset(&self, slot: u64) -> u64 {
        self.data_start + slot * u64::from(self.segment_bytes)
    }

    /// The slot that starts at `phys`, if one does.
    #[must_use]
    pub fn slot_at(&self, phys: u64) -> Option<u64> {
        let from_start = phys.checked_sub(self.data_start)?;
        let slot = from_start / u64::from(self.segment_bytes);
        (from_start % u64::from(self.segment_bytes) == 0 && slot < self.slots).then_some(slot)
    }

    /// Bytes that the store must have.
    #[must_use]
    pub fn store_bytes(&self) -> u64 {
        self.slot_offset(self.slots)
    }

    /// The label as text.
    #[must_use]
    pub fn label_text(&self) -> String {
        let end = self.label.iter().position(|b| *b == 0).unwrap_or(self.label.len());
        String::from_utf8_lossy(&self.label[..end]).into_owned()
    }

    /// Refuses numbers that later arithmetic could not stand.
    fn check_geometry(&self) -> Result<(), FormatError> {
        let field = |field, found| Err(FormatError::Field { structure: STRUCTURE, field, found });
        let segment = u64::from(self.segment_bytes);
        if !matches!(self.align, 512 | 4096) {
            return field("align", self.align.into());
        }
        if !self.segment_bytes.is_power_of_two()
            || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
        {
            return field("segment size", segment);
        }
        if self.export_bytes == 0
            || self.export_bytes > EXPORT_BYTES_MAX
            || !self.export_bytes.is_multiple_of(SECTOR_BYTES)
        {
            return field("export size", self.export_bytes);
        }
        let end = self.slots.checked_mul(segment).and_then(|len| len.checked_add(self.data_start));
        if self.slots == 0 || self.slots > u64::from(u32::MAX) || end.is_none_or(|end| end > i64::MAX as u64)
        {
            return field("slot count", self.slots);
        }
        if !(2..=1024).contains(&self.ring_slots) {
            return field("ring slots", self.ring_slots.into());
        }
        let ring_end = self.ring_offset.checked_add((u64::from(self.ring_slots) + 1) * SECTOR_BYTES);
        let behind_headers = self.ring_offset >= HEADER_OFFSETS[1] + HEADER_LEN as u64;
        if !behind_headers || !self.ring_offset.is_multiple_of(SECTOR_BYTES) {
            return field("ring offset", self.ring_offset);
        }
        if ring_end.is_none_or(|end| end > self.data_start) || !self.data_start.is_multiple_of(SECTOR_BYTES) {
            return field("data start", self.data_start);
        }
        if self.active_epoch == 0 || self.active_epoch > u32::from(u16::MAX) {
            return field("active epoch", self.active_epoch.into());
        }
        Ok(())
    }
}

/// CRC-32C of a copy with its own field zero: finds torn writes, proves nothing.
fn checksum(image: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&image[..CRC_OFFSET]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &image[CRC_OFFSET + 4..])
}

fn clear_authentication(image: &mut [u8]) {
    image[MAC_OFFSET..][..32].fill(0);
    image[CRC_OFFSET..][..4].fill(0);
}
