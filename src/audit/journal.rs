//! The journal: the same records for systemd-journald, by its native protocol (systemd,
//! "Native Journal Protocol"): one datagram of `NAME=value` lines.
//!
//! A copy, for whoever collects logs by the journal. The chain is in the file alone.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::record::{ChangeKind, Event, Outcome};
use super::who::Who;

/// Marks our records among all others: `journalctl MESSAGE_ID=…`.
pub const MESSAGE_ID: &str = "77d058fbd0b5487b97a411b70719a1ca";
/// A journal that is stuck must not hold up what is recorded.
const SEND_MAX: Duration = Duration::from_secs(1);

/// The socket of a journal.
pub struct Journal<'p> {
    socket: &'p Path,
}

impl<'p> Journal<'p> {
    /// The journal that listens there.
    #[must_use]
    pub fn new(socket: &'p Path) -> Self {
        Self { socket }
    }

    /// Sends a record. Where there is no such socket nobody is told, which is no error.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&self, who: &Who, event: &Event) -> std::io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        match socket.send_to(&datagram(who, event), self.socket) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}

fn datagram(who: &Who, event: &Event) -> Vec<u8> {
    let Event { request, verb, outcome, error, exit, backend, volume, replaces, key, changes } = event;
    let mut fields = Fields(Vec::new());
    fields.put("MESSAGE", &message(event));
    fields.put("MESSAGE_ID", MESSAGE_ID);
    // Of syslog: 4 is a warning, 5 a notice.
    fields.put("PRIORITY", if *outcome == Outcome::Failed { "4" } else { "5" });
    fields.put("SYSLOG_IDENTIFIER", "sealbd");
    fields.put("SEALBD_VERB", verb.as_str());
    fields.put("SEALBD_OUTCOME", outcome.word());
    fields.put("SEALBD_REQUEST", request.as_str());
    fields.put_some("SEALBD_ERROR", error.as_ref());
    fields.put_some("SEALBD_EXIT", exit.as_ref());
    fields.put_some("SEALBD_BACKEND", backend.as_ref());
    fields.put_some("SEALBD_VOLUME", volume.as_ref());
    fields.put_some("SEALBD_REPLACES", replaces.as_ref());
    if let Some(key) = key {
        fields.put("SEALBD_SLOT", &key.slot.to_string());
        fields.put("SEALBD_MANAGER", key.manager.as_str());
        fields.put_some("SEALBD_KEY_ID", key.key_id.as_ref());
        fields.put_some("SEALBD_KEY_VERSION", key.key_version.as_ref());
    }
    // A field may stand several times.
    for change in changes {
        let name = match change.change {
            ChangeKind::Added => "SEALBD_ADDED_SLOT",
            ChangeKind::Removed => "SEALBD_REMOVED_SLOT",
        };
        fields.put(name, &change.key.slot.to_string());
    }
    let Who { host: _, uid, user, login_uid, sudo_uid, peer_uid, pid: _ } = who;
    // Host and process are the journal's to say (_HOSTNAME, _PID): it knows better.
    fields.put("SEALBD_UID", &uid.to_string());
    fields.put_some("SEALBD_USER", user.as_ref());
    fields.put_some("SEALBD_LOGIN_UID", login_uid.as_ref());
    fields.put_some("SEALBD_SUDO_UID", sudo_uid.as_ref());
    fields.put_some("SEALBD_PEER_UID", peer_uid.as_ref());
    fields.0
}

/// One line for people.
fn message(event: &Event) -> String {
    let mut text = format!("{} {}", event.verb, event.outcome.word());
    if let Some(error) = &event.error {
        text.push_str(&format!(" ({error})"));
    }
    if let Some(backend) = &event.backend {
        text.push_str(&format!(" on {backend}"));
    }
    if let Some(volume) = &event.volume {
        text.push_str(&format!(", volume {volume}"));
    }
    text
}

struct Fields(Vec<u8>);

impl Fields {
    /// A value with a line feed in it takes the form with a length: it would be two fields otherwise.
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend((value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }

    fn put_some(&mut self, name: &str, value: Option<&impl ToString>) {
        if let Some(value) = value {
            self.put(name, &value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_two_lines_is_one_field() {
        let mut fields = Fields(Vec::new());
        fields.put("A", "one");
        fields.put("B", "two\nC=three");
        assert_eq!(fields.0, b"A=one\nB\n\x0b\0\0\0\0\0\0\0two\nC=three\n");
    }

    #[test]
    fn a_record_arrives_in_one_datagram_and_no_journal_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut event = Event::new("key-add", "r", Outcome::Failed);
        event.error = Some(super::super::Text::of("no_key_fits"));
        Journal::new(&path).send(&Who::current(), &event).unwrap();

        let journal = UnixDatagram::bind(&path).unwrap();
        Journal::new(&path).send(&Who::current(), &event).unwrap();
        let mut buffer = vec![0; 65536];
        let len = journal.recv(&mut buffer).unwrap();
        let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
        assert!(text.starts_with(&format!(
            "MESSAGE=key-add failed (no_key_fits)\nMESSAGE_ID={MESSAGE_ID}\nPRIORITY=4\nSYSLOG_IDENTIFIER=sealbd\n"
        )));
        assert!(text.contains("\nSEALBD_VERB=key-add\nSEALBD_OUTCOME=failed\n"), "{text}");

        drop(journal);
        let error = Journal::new(&path).send(&Who::current(), &event).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
