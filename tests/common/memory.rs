//! What a process has in memory, as root may read it.

use std::os::unix::fs::FileExt;

use rustix::process::Pid;

/// What a process has in memory, its code and files left out: lines of its maps with their bytes. Pages that were
/// never touched are left out.
pub(crate) fn memory_of(pid: Pid) -> Vec<(String, Vec<u8>)> {
    let name = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
    let maps = std::fs::read_to_string(name("maps")).expect("root reads it");
    let memory = std::fs::File::open(name("mem")).expect("root reads it");
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        let mut part = vec![0; usize::try_from(number(to) - number(from)).expect("it fits")];
        // Some ranges cannot be read, like those of the kernel.
        if memory.read_exact_at(&mut part, number(from)).is_ok() {
            // Most of it was never touched.
            let used = part.chunks(4096).filter(|page| page.iter().any(|byte| *byte != 0));
            all.push((line.to_owned(), used.flatten().copied().collect()));
        }
    }
    all
}
