//! One of the sixteen keyslots of a header: 2 KiB (docs/FORMAT.md §4).

use keymgmt::manager::{KEK_URI_MAX, PRIVATE_MAX, SlotType, WRAPPED_MAX, WrappedKey};

use super::codec::{FormatError, Put, Reader};

/// Keyslots of a volume.
pub const KEYSLOT_COUNT: usize = 16;
/// Bytes of one keyslot.
pub const KEYSLOT_LEN: usize = 2048;

const STRUCTURE: &str = "keyslot";

/// What may be done with the key in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum KeyslotState {
    /// Seals and opens.
    Active = 1,
    /// Opens sectors of an older epoch while a volume is re-encrypted.
    DecryptOnly = 2,
    /// Was destroyed on purpose; kept so that its absence is not mistaken for damage.
    Destroyed = 3,
}

/// A keyslot in use. A free one is `None`, 2048 zero bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyslot {
    /// What may be done with it.
    pub state: KeyslotState,
    /// Version of the DEK inside.
    pub epoch: u32,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Slots with a lower number are tried first.
    pub priority: u16,
    /// The wrapped DEK.
    pub key: WrappedKey,
    /// Proof of the right key (docs/FORMAT.md §2).
    pub commit: [u8; 32],
}

impl Keyslot {
    /// The 2048 bytes of a slot.
    ///
    /// # Panics
    /// When a part is longer than its place; managers keep to the maxima of [`keymgmt::manager`].
    #[must_use]
    pub fn encode(slot: Option<&Self>) -> Vec<u8> {
        let mut out = Vec::with_capacity(KEYSLOT_LEN);
        if let Some(Self { state, epoch, created, priority, key, commit }) = slot {
            let WrappedKey { slot_type, kek_uri, wrapped, private } = key;
            out.put_u8(*state as u8);
            out.put_u8(slot_type.number());
            out.put_u16(0); // flags
            out.put_u32(*epoch);
            out.put_u64(*created);
            out.put_u16(len_u16(kek_uri.len()));
            out.put_u16(len_u16(wrapped.len()));
            out.put_u16(len_u16(private.len()));
            out.put_u16(*priority);
            out.put(kek_uri.as_bytes());
            out.pad_to(24 + KEK_URI_MAX);
            out.put(wrapped);
            out.pad_to(24 + KEK_URI_MAX + WRAPPED_MAX);
            out.put(commit);
            out.put(private);
        }
        out.pad_to(KEYSLOT_LEN);
        out
    }

    /// Reads the 2048 bytes of a slot; `None` when it is free.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8; KEYSLOT_LEN]) -> Result<Option<Self>, FormatError> {
        let mut reader = Reader::new(STRUCTURE, bytes);
        let state = match reader.u8()? {
            0 => {
                reader.end_padded()?;
                return Ok(None);
            }
            1 => KeyslotState::Active,
            2 => KeyslotState::DecryptOnly,
            3 => KeyslotState::Destroyed,
            other => return Err(reader.field("state", u64::from(other))),
        };
        let slot_type = SlotType::from_u8(reader.u8()?);
        reader.zeros(2)?;
        let epoch = reader.u32()?;
        let created = reader.u64()?;
        let uri_len = bounded(&mut reader, "kek_uri length", KEK_URI_MAX)?;
        let wrapped_len = bounded(&mut reader, "wrapped length", WRAPPED_MAX)?;
        let private_len = bounded(&mut reader, "private length", PRIVATE_MAX)?;
        let priority = reader.u16()?;
        let uri = reader.bytes(uri_len)?;
        let kek_uri = str::from_utf8(uri).map_err(|_| reader.field("kek_uri", 0))?.to_owned();
        reader.zeros(KEK_URI_MAX - uri_len)?;
        let wrapped = reader.bytes(wrapped_len)?.to_vec();
        reader.zeros(WRAPPED_MAX - wrapped_len)?;
        let commit = reader.array()?;
        let private = reader.bytes(private_len)?.to_vec();
        reader.end_padded()?;
        let key = WrappedKey { slot_type, kek_uri, wrapped, private };
        Ok(Some(Self { state, epoch, created, priority, key, commit }))
    }
}

fn len_u16(len: usize) -> u16 {
    u16::try_from(len).expect("parts of a keyslot are at most 1024 bytes")
}

fn bounded(reader: &mut Reader<'_>, field: &'static str, max: usize) -> Result<usize, FormatError> {
    let found = reader.u16()?;
    if usize::from(found) > max { Err(reader.field(field, u64::from(found))) } else { Ok(found.into()) }
}
