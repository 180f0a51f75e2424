//! Appending: one lock, one write, one flush per record, whoever else appends at the same time.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::file::{open_end, open_locked};
use super::record::{Event, Outcome, Record};
use super::settings::Settings;
use super::tail::End;
use super::who::Who;
use super::{AuditError, Journal};

/// Where records go. Holds no file open: a log may be rotated away at any time.
pub struct Log {
    settings: Settings,
    /// Asked for with the first record: most commands leave none.
    who: OnceLock<Who>,
}

impl Log {
    /// A log for what this process does.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, who: OnceLock::new() }
    }

    /// The same log for what this process does on behalf of somebody.
    #[must_use]
    pub fn acting_for(&self, who: Who) -> Self {
        Self { settings: self.settings.clone(), who: OnceLock::from(who) }
    }

    /// Where it is, and whether somebody asked for it to be there.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Tells the journal, where there is one. It is told whatever becomes of the record in the file.
    ///
    /// # Errors
    /// The socket's.
    pub fn tell_journal(&self, event: &Event) -> std::io::Result<()> {
        self.settings.journal.as_deref().map_or(Ok(()), |socket| Journal::new(socket).send(self.who(), event))
    }

    /// Appends a record; it is durable on return. Blocks for a flush of the file, and for as long as others
    /// append: ten seconds at most.
    ///
    /// # Errors
    /// [`AuditError`]; the log is then as it was, or has a torn end that the next record tells of.
    pub fn append(&self, event: Event) -> Result<(), AuditError> {
        let path = &self.settings.path;
        if !self.settings.is_configured {
            make_directory(path)?;
        }
        let failed = AuditError::io(path);
        let mut file = open_locked(path)?;
        let len = file.metadata().map_err(&failed)?.len();
        let end = match len {
            0 => end_of_rotated(path)?,
            _ => end_of(&file, len, path)?,
        };
        let written = file.write_all(&self.compose(end, event)).and_then(|()| file.sync_data());
        written.map_err(|cause| {
            // What was written of it must not be taken for a crash. Where this is refused, it is one.
            let _ = file.set_len(len);
            failed(cause)
        })
    }

    fn who(&self) -> &Who {
        self.who.get_or_init(Who::current)
    }

    /// What is to be written behind such an end: a line feed where one is missing, a record that tells of what
    /// is none, the record.
    fn compose(&self, end: End, event: Event) -> Vec<u8> {
        let mut bytes = if end.wants_line_feed { b"\n".to_vec() } else { Vec::new() };
        let (mut seq, mut prev) = (end.seq.saturating_add(1), end.hash);
        if end.torn.is_some() {
            let told = Event {
                verb: event.verb.clone(),
                request: event.request.clone(),
                ..Event::new("", "", Outcome::Recovered)
            };
            let line = Record::now(seq, self.who().clone(), told, end.torn, prev).encode();
            (seq, prev) = (seq.saturating_add(1), super::Hash::of_line(&line));
            bytes.extend(line);
        }
        bytes.extend(Record::now(seq, self.who().clone(), event, None, prev).encode());
        bytes
    }
}

/// Makes the directory of the default place. One that was asked for is not made: a slip of the pen would be.
fn make_directory(path: &Path) -> Result<(), AuditError> {
    match path.parent() {
        Some(parent) if !parent.is_dir() => {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(AuditError::io(parent))
        }
        _ => Ok(()),
    }
}

fn end_of(file: &File, len: u64, path: &Path) -> Result<End, AuditError> {
    let end = End::of_file(file, len).map_err(AuditError::io(path))?;
    end.map_err(|why| AuditError::not_a_log(path, why))
}

/// A log that was just begun goes on where the one that was rotated away ends: `PATH.1`, as logrotate names it
/// before it packs it. Without one, a new chain begins.
fn end_of_rotated(path: &Path) -> Result<End, AuditError> {
    let rotated = PathBuf::from([path.as_os_str(), ".1".as_ref()].into_iter().collect::<OsString>());
    let Some(file) = open_end(&rotated)? else { return Ok(End::NEW) };
    let len = file.metadata().map_err(AuditError::io(&rotated))?.len();
    let End { seq, hash, .. } = end_of(&file, len, &rotated)?;
    Ok(End { seq, hash, ..End::NEW })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{Broken, Fault, Hash, Summary, verify_files};

    /// A log of its own, and what is in it.
    struct Desk {
        dir: tempfile::TempDir,
    }

    impl Desk {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("audit.jsonl")
        }

        fn append(&self, count: u64) {
            let settings = Settings { path: self.path(), is_configured: true, journal: None };
            let log = Log::new(settings);
            (0..count).for_each(|_| log.append(event()).unwrap());
        }

        fn append_fails(&self) -> String {
            let settings = Settings { path: self.path(), is_configured: true, journal: None };
            Log::new(settings).append(event()).unwrap_err().to_string()
        }

        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(std::fs::read(self.path()).unwrap()).unwrap();
            text.split_inclusive('\n').map(str::to_owned).collect()
        }

        fn put(&self, lines: &[String]) {
            std::fs::write(self.path(), lines.concat()).unwrap();
        }

        fn verify(&self, to: Option<Hash>) -> Result<Summary, Broken> {
            verify_files(&[self.path()], None, to).unwrap().map_err(|(path, broken)| {
                assert_eq!(path, self.path());
                broken
            })
        }
    }

    fn event() -> Event {
        Event::new("check", "9f4e", Outcome::Done)
    }

    /// Changes the lines of a log of five records; where and why it breaks.
    fn damaged(change: impl FnOnce(&mut Vec<String>)) -> (u64, Fault) {
        let desk = Desk::new();
        desk.append(5);
        let mut lines = desk.lines();
        change(&mut lines);
        desk.put(&lines);
        let Broken { line, fault } = desk.verify(None).unwrap_err();
        (line, fault)
    }

    fn hash(line: &str) -> Hash {
        Hash::of_line(line.as_bytes())
    }

    #[test]
    fn records_are_numbered_and_chained_from_nothing() {
        let desk = Desk::new();
        desk.append(5);
        let lines = desk.lines();
        let records: Vec<Record> =
            lines.iter().map(|line| Record::decode(line.as_bytes()).unwrap()).collect();
        assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(records[0].prev, Hash::NONE);
        assert_eq!(records[4].prev, hash(&lines[3]));
        let summary = desk.verify(Some(hash(&lines[2]))).unwrap();
        assert_eq!((summary.records, summary.last_seq, summary.recovered), (5, 5, 0));
        assert_eq!((summary.from, summary.last), (Hash::NONE, hash(&lines[4])));
        let mode = std::fs::metadata(desk.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_changed_byte_breaks_the_chain_at_the_next_line() {
        let mut kept = String::new();
        let (line, fault) = damaged(|lines| {
            kept.clone_from(&lines[1]);
            lines[1] = lines[1].replacen("\"done\"", "\"failed\"", 1);
        });
        assert_eq!(line, 3);
        let Fault::Prev { expected, found } = fault else { panic!("{fault}") };
        assert_eq!((found, expected), (hash(&kept), hash(&kept.replacen("\"done\"", "\"failed\"", 1))));
        // One that leaves no record is told where it is.
        let (line, fault) = damaged(|lines| lines[1] = lines[1].replacen(':', " ", 1));
        assert_eq!((line, fault.to_string().as_str()), (2, "is not a record"));
    }

    #[test]
    fn every_flipped_byte_of_any_but_the_last_line_is_found() {
        let desk = Desk::new();
        desk.append(3);
        let lines = desk.lines();
        let whole = lines.concat().into_bytes();
        for at in 0..whole.len() - lines[2].len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(desk.path(), bytes).unwrap();
            desk.verify(None).unwrap_err();
        }
    }

    #[test]
    fn a_line_that_is_removed_moved_or_put_in_breaks_the_chain() {
        let prev_fault = |(line, fault): (u64, Fault)| {
            assert!(matches!(fault, Fault::Prev { .. }), "{fault}");
            line
        };
        assert_eq!(prev_fault(damaged(|lines| drop(lines.remove(2)))), 3);
        assert_eq!(prev_fault(damaged(|lines| lines.swap(1, 2))), 2);
        assert_eq!(prev_fault(damaged(|lines| lines.insert(2, lines[1].clone()))), 3);
        // Chained to the line before, as who knows the form would do it: the one behind it tells.
        let made = |lines: &mut Vec<String>| {
            let record = Record::now(3, Who::current(), event(), None, hash(&lines[1]));
            lines.insert(2, String::from_utf8(record.encode()).unwrap());
        };
        assert_eq!(prev_fault(damaged(made)), 4);
        assert_eq!(damaged(|lines| lines.insert(2, "\n".into())).0, 3);
        // With the right hash and a wrong number.
        let numbered = |lines: &mut Vec<String>| {
            let record = Record::now(7, Who::current(), event(), None, hash(&lines[4]));
            lines.push(String::from_utf8(record.encode()).unwrap());
        };
        assert_eq!(damaged(numbered), (6, Fault::Number { expected: 6, found: 7 }));
        // A beginning that is not one.
        let first = |lines: &mut Vec<String>| {
            lines[0] = lines[0].replacen("\"prev\":\"00", "\"prev\":\"ff", 1);
        };
        assert_eq!(prev_fault(damaged(first)), 1);
    }

    #[test]
    fn an_end_that_was_cut_off_is_found_with_a_hash_that_was_kept() {
        let desk = Desk::new();
        desk.append(5);
        let lines = desk.lines();
        let kept = hash(&lines[4]);
        desk.put(&lines[..3]);
        assert_eq!(desk.verify(None).unwrap().records, 3, "nothing in the file tells");
        let broken = desk.verify(Some(kept)).unwrap_err();
        assert_eq!(broken, Broken { line: 3, fault: Fault::NotReached(kept) });
        // So is a log that was written anew.
        std::fs::remove_file(desk.path()).unwrap();
        desk.append(9);
        assert_eq!(desk.verify(Some(kept)).unwrap_err().fault, Fault::NotReached(kept));
    }

    #[test]
    fn a_torn_end_stays_visible_and_the_chain_goes_on_behind_it() {
        let desk = Desk::new();
        desk.append(2);
        let whole = desk.lines();
        for torn in
            ["{\"schema\":1,\"seq\":3,\"ti", "{\"schema\":1,\"seq\":3,\"ti\n{\"sch", "\0\0\0\0", "x\n"]
        {
            desk.put(&whole);
            let text = [whole.concat().as_str(), torn].concat();
            std::fs::write(desk.path(), &text).unwrap();
            assert_eq!(desk.verify(None).unwrap_err(), Broken { line: 3, fault: Fault::Unfinished });
            desk.append(2);
            let now = std::fs::read_to_string(desk.path()).unwrap();
            assert!(now.starts_with(&text), "nothing is taken away");
            let summary = desk.verify(Some(hash(&whole[1]))).unwrap();
            assert_eq!((summary.records, summary.last_seq, summary.recovered), (5, 5, 1), "{torn:?}");
            // The record before and the torn bytes are bound, too.
            for (from, to) in [("\"seq\":2", "\"seq\":9"), (torn, &torn.replace(['t', '\0', 'x'], "y"))] {
                std::fs::write(desk.path(), now.replacen(from, to, 1)).unwrap();
                desk.verify(None).unwrap_err();
            }
        }
    }

    #[test]
    fn a_record_that_lacks_its_line_feed_alone_is_whole() {
        let desk = Desk::new();
        desk.append(2);
        let text = desk.lines().concat();
        std::fs::write(desk.path(), text.trim_end()).unwrap();
        assert_eq!(desk.verify(None).unwrap().records, 2);
        desk.append(1);
        assert!(desk.lines().concat().starts_with(&text));
        assert_eq!(desk.verify(None).unwrap().recovered, 0);
    }

    #[test]
    fn a_log_that_is_rotated_goes_on_in_the_new_file() {
        let desk = Desk::new();
        desk.append(3);
        let rotated = desk.dir.path().join("audit.jsonl.1");
        std::fs::rename(desk.path(), &rotated).unwrap();
        desk.append(2);
        let last_of_rotated = hash(std::fs::read_to_string(&rotated).unwrap().lines().last().unwrap());
        let summary = desk.verify(Some(last_of_rotated)).unwrap();
        assert_eq!((summary.first_seq, summary.from, summary.last_seq), (4, last_of_rotated, 5));
        let both = [rotated.clone(), desk.path()];
        assert_eq!(verify_files(&both, None, None).unwrap().unwrap().records, 5);
        // logrotate's `create`: the new file is there and empty.
        std::fs::rename(desk.path(), &rotated).unwrap();
        File::create(desk.path()).unwrap();
        desk.append(1);
        assert_eq!(desk.verify(None).unwrap().first_seq, 6);
        // Files in the wrong order, or one left out, do not pass for a chain.
        let (path, broken) = verify_files(&[desk.path(), rotated], None, None).unwrap().unwrap_err();
        assert_eq!((path.extension(), broken.line), (Some("1".as_ref()), 1));
        let from = Some(last_of_rotated);
        assert_eq!(verify_files(&[desk.path()], from, None).unwrap().unwrap_err().1.line, 1);
    }

    proptest! {
        /// Appending and verifying look at the end of a file each in their own way.
        #[test]
        fn behind_any_end_that_is_continued_the_chain_is_whole(
            lines in 0..3u64,
            pieces in vec(prop_oneof![
                Just(b"\n".to_vec()),
                Just(b"{\"schema\":1,\"seq\":".to_vec()),
                any::<[u8; 3]>().prop_map(Vec::from),
                (0..700usize).prop_map(|len| {
                    let line = Record::now(9, Who::current(), event(), None, Hash::NONE).encode();
                    line[..len.min(line.len() - 2)].to_vec()
                }),
            ], 0..5),
        ) {
            let desk = Desk::new();
            desk.append(lines);
            let before = if lines == 0 { Vec::new() } else { std::fs::read(desk.path()).unwrap() };
            let torn = [before, pieces.concat()].concat();
            std::fs::write(desk.path(), &torn).unwrap();
            std::fs::set_permissions(desk.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
            let log = Log::new(Settings { path: desk.path(), is_configured: true, journal: None });
            if log.append(event()).is_ok() {
                log.append(event()).unwrap();
                let summary = desk.verify(None).map_err(|broken| TestCaseError::fail(broken.to_string()))?;
                prop_assert_eq!(summary.last_seq, lines + 2 + summary.recovered);
                prop_assert!(std::fs::read(desk.path()).unwrap().starts_with(&torn));
            } else {
                prop_assert_eq!(lines, 0, "a log with a record in it is continued");
            }
        }
    }

    #[test]
    fn what_is_no_log_of_ours_is_left_alone() {
        let refused = |make: &dyn Fn(&Path), why: &str| {
            let desk = Desk::new();
            make(&desk.path());
            let before = std::fs::read(desk.path()).ok();
            let told = desk.append_fails();
            assert!(told.contains(why), "{told}");
            assert_eq!(std::fs::read(desk.path()).ok(), before);
        };
        refused(&|path| std::fs::write(path, "ssh-ed25519 AAAA me@host\n").unwrap(), "no record in its last");
        refused(&|path| std::fs::create_dir(path).unwrap(), "Is a directory");
        refused(&|path| symlink("/nowhere", path).unwrap(), "symbolic link");
        let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        refused(&socket, "No such device");
        let open = |path: &Path| {
            File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o622)).unwrap();
        };
        refused(&open, "others may write to it");
    }
}
