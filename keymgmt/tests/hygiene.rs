//! Claims about process hygiene. In a process of its own: hardening cannot be undone.

use std::io::Write;
use std::os::fd::AsRawFd;

use keymgmt::hygiene::{LockedMemory, Measure, harden_process};
use keymgmt::secret::Dek;
use keymgmt::source::{NoPrompt, Purpose, SecretReader, SecretSource};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

#[test]
fn a_hardened_process_is_as_the_report_says() {
    let limit = getrlimit(Resource::Memlock).current;
    let report = harden_process();
    assert_eq!(report.not_dumpable, Measure::Holds);
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    assert_eq!(report.no_core, Measure::Holds);
    assert_eq!(getrlimit(Resource::Core).current, Some(0));
    match report.locked_memory {
        LockedMemory::Process | LockedMemory::Refused(_) => assert_eq!(limit, None),
        LockedMemory::SecretsOnly { limit: reported } => assert_eq!(limit, Some(reported)),
    }
    assert!(report.to_string().starts_with("not dumpable, no core files, "), "{report}");

    // A process that is not dumpable may still look at its own descriptors.
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"password").unwrap();
    drop(writer);
    let source = SecretSource::Fd(pipe.as_raw_fd().unsigned_abs());
    let input = SecretReader::new(&mut NoPrompt).read(&source, "passphrase", Purpose::Unlock).unwrap();
    assert_eq!(input.secret.expose(), b"password");

    // The page of a key is locked and left out of dumps: `lo` and `dd` in smaps (proc_pid_smaps(5)).
    let dek = Dek::generate().unwrap();
    let address = std::ptr::from_ref(dek.0.expose()).addr();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let flags = flags_of_mapping(&smaps, address);
    assert!(flags.contains(&"dd"), "left out of core dumps: {flags:?}");
    if keymgmt::secret::unlocked_count() == 0 {
        assert!(flags.contains(&"lo"), "locked: {flags:?}");
    }
}

/// The `VmFlags` of the mapping that holds `address`.
fn flags_of_mapping(smaps: &str, address: usize) -> Vec<&str> {
    let mut within = false;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if within {
                return flags.split_whitespace().collect();
            }
        } else if let Some((from, to)) = mapping_range(line) {
            within = (from..to).contains(&address);
        }
    }
    panic!("no mapping holds the key");
}

fn mapping_range(line: &str) -> Option<(usize, usize)> {
    let (from, to) = line.split_whitespace().next()?.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}
