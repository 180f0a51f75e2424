//! What is said to a plug-in and what it may answer: docs/PLUGIN.md, which is normative.
//!
//! One JSON object on one line each way. Bytes are base64 with padding (RFC 4648 §4). Nothing that a plug-in
//! answers is believed for its length or its characters: key ids and versions are printable ASCII, so that
//! they can be shown and compared, and everything is bounded by what a keyslot holds.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::manager::{KEK_URI_MAX, KeyError, SlotType, WrapContext, WrappedKey};
use crate::secret::{SECRET_BYTES_MAX, Secret32};
use crate::{stored, verify};

/// Version of the protocol.
const PROTOCOL: u32 = 1;
/// What a key uri begins with; the key id follows.
const SCHEME: &str = "exec:";
/// Longest key id: the rest of a key uri.
pub(super) const KEY_ID_MAX: usize = KEK_URI_MAX - SCHEME.len();
/// Longest version. Services count, or use uuids.
const VERSION_MAX: usize = 64;
/// Longest wrapped KEK: what fits beside the longest version, rounded down.
const BLOB_MAX: usize = 400;
const _: () = assert!(1 + VERSION_MAX + BLOB_MAX <= stored::DETAILS_MAX);
/// Longest text of a plug-in that is shown, in characters: the trace of an uncaught exception.
const SHOWN_MAX: usize = 4096;
/// Longest status: one line.
const STATUS_MAX: usize = 200;
/// So much of a secret is recognised as one.
const SECRET_PART: usize = 16;
/// Room for the longest question: a secret and a blob in base64, names and figures, all of them escaped.
const QUESTION_BYTES: usize = SECRET_BYTES_MAX * 4 / 3 + 4096;

/// What a plug-in is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verb {
    Wrap,
    Unwrap,
    Rotate,
    Destroy,
    Status,
}

/// A question; what a verb does not have is left out.
#[derive(Serialize)]
pub(super) struct Question<'a> {
    sealbd_plugin: u32,
    pub(super) verb: Verb,
    pub(super) request_id: &'a str,
    pub(super) timeout_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
    #[serde(flatten)]
    context: Option<Context>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kek: Option<&'a str>,
    #[serde(flatten)]
    slot: Option<SlotFields<'a>>,
}

#[derive(Serialize)]
struct Context {
    volume: String,
    epoch: u32,
    suite: u32,
    aad: String,
}

#[derive(Serialize)]
struct SlotFields<'a> {
    key_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    blob: String,
}

impl<'a> Question<'a> {
    pub(super) fn new(verb: Verb, request_id: &'a str, timeout_ms: u64) -> Self {
        Self {
            sealbd_plugin: PROTOCOL,
            verb,
            request_id,
            timeout_ms,
            secret: None,
            key: None,
            context: None,
            kek: None,
            slot: None,
        }
    }

    pub(super) fn about(mut self, context: WrapContext) -> Self {
        let hex: String = context.volume.iter().map(|byte| format!("{byte:02x}")).collect();
        self.context = Some(Context {
            volume: format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]),
            epoch: context.epoch,
            suite: context.suite,
            aad: STANDARD.encode(context.aad()),
        });
        self
    }

    pub(super) fn of_slot(mut self, slot: &'a Slot) -> Self {
        let Slot { key_id, version, blob } = slot;
        self.slot = Some(SlotFields { key_id, version, blob: STANDARD.encode(blob) });
        self
    }

    /// The line to send.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room for all of it at once: a buffer that grows leaves copies behind.
        let mut line = Zeroizing::new(Vec::with_capacity(QUESTION_BYTES));
        serde_json::to_writer(&mut *line, self).expect("text and numbers can be written to memory");
        line.push(b'\n');
        line
    }
}

/// Bytes as the protocol writes them, for secrets.
pub(super) fn secret_text(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(bytes))
}

/// Which key of a plug-in made a keyslot, and what it gave to keep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) key_id: String,
    /// Empty where the plug-in counts none.
    pub(super) version: String,
    pub(super) blob: Vec<u8>,
}

impl Slot {
    /// Refuses what cannot stand in a keyslot.
    fn checked(self) -> Result<Self, String> {
        let Self { key_id, version, blob } = &self;
        if !is_key_id(key_id) {
            return Err(format!("a key id has 1 to {KEY_ID_MAX} printable ASCII characters"));
        }
        if version.len() > VERSION_MAX || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("a version has at most {VERSION_MAX} printable ASCII characters"));
        }
        match blob.len() {
            1..=BLOB_MAX => Ok(self),
            len => Err(format!("the blob is {len} bytes; 1 to {BLOB_MAX} fit into a keyslot")),
        }
    }

    pub(super) fn uri(&self) -> String {
        format!("{SCHEME}{}", self.key_id)
    }

    /// What a keyslot keeps: length of version u8 ‖ version ‖ blob.
    pub(super) fn details(&self) -> Vec<u8> {
        let len = u8::try_from(self.version.len()).expect("a version is at most 64 bytes");
        [&[len], self.version.as_bytes(), &self.blob].concat()
    }

    /// Reads what [`Self::uri`] and [`Self::details`] wrote; nothing of it is authenticated yet.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub(super) fn of(key: &WrappedKey) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed("not what a plug-in's keyslot holds".into());
        verify::is_type(key, SlotType::Exec)?;
        verify::wrapped_len(key)?;
        let key_id = key.kek_uri.strip_prefix(SCHEME).ok_or_else(malformed)?.to_owned();
        let (len, rest) = stored::details(key)?.split_first().ok_or_else(malformed)?;
        let (version, blob) = rest.split_at_checked(usize::from(*len)).ok_or_else(malformed)?;
        let version = String::from_utf8(version.to_vec()).map_err(|_| malformed())?;
        Self { key_id, version, blob: blob.to_vec() }.checked().map_err(|_| malformed())
    }
}

/// Whether that can name a key of a plug-in.
pub(super) fn is_key_id(text: &str) -> bool {
    (1..=KEY_ID_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What a plug-in said.
pub(super) enum Answer<T> {
    Ok(T),
    Refused(Refusal),
}

/// What a plug-in says instead of an answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    kind: RefusalKind,
    #[serde(default)]
    message: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RefusalKind {
    Unreachable,
    Denied,
    Settings,
    Unsupported,
    Malformed,
}

impl Refusal {
    /// As our own error; `told` makes the message fit to be shown.
    pub(super) fn into_error(self, told: impl FnOnce(&str) -> String) -> KeyError {
        let Self { kind, message } = self;
        let message = told(&message);
        match kind {
            RefusalKind::Unreachable => KeyError::Unreachable(message),
            RefusalKind::Denied => KeyError::Denied(message),
            RefusalKind::Settings => KeyError::Settings(message),
            RefusalKind::Unsupported => KeyError::Unsupported(message),
            RefusalKind::Malformed => KeyError::Malformed(message),
        }
    }
}

/// Either of the two, never both.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound = "T: Deserialize<'de>")]
struct Envelope<T> {
    #[serde(default = "Option::default")]
    ok: Option<T>,
    #[serde(default)]
    error: Option<Refusal>,
}

/// Reads the one line that an answer is. Errors say where it went wrong and repeat nothing of it.
pub(super) fn parse<T: Reply>(bytes: &[u8]) -> Result<Answer<T>, String> {
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        None if bytes.is_empty() => return Err("it ended without an answer".into()),
        None => return Err("its answer does not end with a newline".into()),
        Some(at) if at + 1 < bytes.len() => return Err("it answered more than one line".into()),
        Some(at) => bytes[..at].trim_ascii(),
    };
    // The decoder would also take the values of an object's fields as a list.
    if !line.starts_with(b"{") {
        return Err("its answer is not a JSON object".into());
    }
    let envelope: Envelope<T::Wire> = serde_json::from_slice(line).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "has other fields than this verb answers",
            _ => "is not JSON",
        };
        format!("its answer {what} (byte {} of the line)", error.column())
    })?;
    match envelope {
        Envelope { ok: Some(wire), error: None } => T::read(wire).map(Answer::Ok),
        Envelope { ok: None, error: Some(refusal) } => Ok(Answer::Refused(refusal)),
        _ => Err("its answer has not exactly one of ok and error".into()),
    }
}

/// What a verb answers.
pub(super) trait Reply: Sized {
    /// Its fields as they are sent.
    type Wire: DeserializeOwned;

    /// Checks them.
    fn read(wire: Self::Wire) -> Result<Self, String>;
}

/// The answer to rotate and destroy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Done {}

impl Reply for Done {
    type Wire = Self;

    fn read(wire: Self) -> Result<Self, String> {
        Ok(wire)
    }
}

/// The answer to status.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    pub(super) text: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub(super) credential_expires: Option<u32>,
}

impl Reply for Status {
    type Wire = Self;

    fn read(wire: Self) -> Result<Self, String> {
        if wire.text.chars().count() > STATUS_MAX {
            return Err(format!("its status has more than {STATUS_MAX} characters"));
        }
        Ok(wire)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrappedWire {
    key_id: String,
    #[serde(default)]
    version: String,
    blob: String,
}

impl Reply for Slot {
    type Wire = WrappedWire;

    fn read(WrappedWire { key_id, version, blob }: WrappedWire) -> Result<Self, String> {
        let blob = STANDARD.decode(blob).map_err(|_| "the blob is not base64 with padding")?;
        Self { key_id, version, blob }.checked()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnwrappedWire {
    kek: SecretText,
}

/// Text that is wiped on drop.
#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(String);

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Reply for Secret32 {
    type Wire = UnwrappedWire;

    fn read(UnwrappedWire { kek }: UnwrappedWire) -> Result<Self, String> {
        // Room for whatever 44 characters could be.
        let mut bytes = Zeroizing::new([0; 48]);
        let decoded = (kek.0.len() == 44).then(|| STANDARD.decode_slice(&kek.0, &mut *bytes));
        match decoded {
            Some(Ok(32)) => {}
            _ => return Err("its kek is not 32 bytes in base64 with padding".into()),
        }
        let Ok(secret) = Self::fill(|secret| {
            secret.copy_from_slice(&bytes[..32]);
            Ok::<(), std::convert::Infallible>(())
        });
        Ok(secret)
    }
}

/// Text of a plug-in as it may be shown: without anything that moves a terminal's cursor or hides, and
/// without what it was told in confidence. Cut where it is longer than [`SHOWN_MAX`] characters.
pub(super) fn printable(text: &str, secrets: &[&str]) -> String {
    // Also a secret that is cut off at the end.
    let known = |secret: &str| secret.get(..SECRET_PART).unwrap_or(secret).to_owned();
    if secrets.iter().any(|secret| text.contains(&known(secret))) {
        return "(left out, for it holds a secret)".into();
    }
    let shown = |c: char| -> Cow<'static, str> {
        match c {
            ' '..='~' => c.to_string().into(),
            '\n' => " ".into(),
            c => c.escape_debug().to_string().into(),
        }
    };
    text.trim().chars().take(SHOWN_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests;
