//! Sparse bytes: a map of 4 KiB pages in which a missing page is all zero, so that a store of
//! 4 TiB costs what was written to it. Pages are shared between copies until one changes.

use std::collections::BTreeMap;
use std::sync::Arc;

const PAGE_LEN: usize = 4096;
const PAGE_BYTES: u64 = PAGE_LEN as u64;

/// Bytes by offset. Its user knows the size and checks ranges against it.
#[derive(Clone, Default)]
pub(super) struct Pages(BTreeMap<u64, Arc<[u8; PAGE_LEN]>>);

impl Pages {
    /// Fills `buf` from `offset` on.
    pub(super) fn read(&self, offset: u64, mut buf: &mut [u8]) {
        for run in page_runs(offset, buf.len() as u64) {
            let (now, later) = buf.split_at_mut(run.len);
            match self.0.get(&run.page) {
                Some(page) => now.copy_from_slice(&page[run.start..run.start + run.len]),
                None => now.fill(0),
            }
            buf = later;
        }
    }

    /// Puts `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        for run in page_runs(offset, bytes.len() as u64) {
            let (now, later) = bytes.split_at(run.len);
            self.page_mut(run.page)[run.start..run.start + run.len].copy_from_slice(now);
            bytes = later;
        }
    }

    /// Makes `len` bytes from `offset` on zero and frees the pages that lie wholly inside.
    pub(super) fn clear(&mut self, offset: u64, len: u64) {
        let first_whole = offset.div_ceil(PAGE_BYTES);
        let end_whole = ((offset + len) / PAGE_BYTES).max(first_whole);
        let inside: Vec<u64> = self.0.range(first_whole..end_whole).map(|(page, _)| *page).collect();
        for page in inside {
            self.0.remove(&page);
        }
        let head_len = len.min(first_whole * PAGE_BYTES - offset);
        let tail_start = (offset + head_len).max(end_whole * PAGE_BYTES);
        self.zero_present(offset, head_len);
        self.zero_present(tail_start, (offset + len).saturating_sub(tail_start));
    }

    /// Takes over from `other` every page that `len` bytes from `offset` on touch. No byte is copied.
    pub(super) fn share(&mut self, other: &Self, offset: u64, len: u64) {
        let touched = offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES);
        let mine: Vec<u64> = self.0.range(touched.clone()).map(|(page, _)| *page).collect();
        for page in mine {
            self.0.remove(&page);
        }
        self.0.extend(other.0.range(touched).map(|(page, bytes)| (*page, Arc::clone(bytes))));
    }

    /// Bytes of memory that the pages take.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.0.len() as u64 * PAGE_BYTES
    }

    fn zero_present(&mut self, offset: u64, len: u64) {
        for run in page_runs(offset, len) {
            if let Some(page) = self.0.get_mut(&run.page) {
                Arc::make_mut(page)[run.start..run.start + run.len].fill(0);
            }
        }
    }

    fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE_LEN] {
        Arc::make_mut(self.0.entry(page).or_insert_with(|| Arc::new([0; PAGE_LEN])))
    }
}

/// The part of a byte range that lies in one page.
struct Run {
    page: u64,
    start: usize,
    len: usize,
}

fn page_runs(offset: u64, len: u64) -> impl Iterator<Item = Run> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let run_end = end.min((page + 1) * PAGE_BYTES);
        let in_page = |bytes: u64| usize::try_from(bytes).expect("at most one page");
        let run = Run { page, start: in_page(at % PAGE_BYTES), len: in_page(run_end - at) };
        at = run_end;
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cleared_range_is_zero_and_its_neighbours_are_not() {
        for (offset, len) in
            [(0, 4096), (1, 10), (4000, 9000), (4096, 8192), (5000, 0), (4095, 2), (100, 8092)]
        {
            let mut pages = Pages::default();
            pages.write(0, &[7; 20000]);
            pages.clear(offset, len);
            let mut bytes = vec![1; 20000];
            pages.read(0, &mut bytes);
            for (at, byte) in bytes.iter().enumerate() {
                let cleared = (offset..offset + len).contains(&(at as u64));
                assert_eq!(*byte, if cleared { 0 } else { 7 }, "byte {at} after clear {offset}+{len}");
            }
        }
    }

    #[test]
    fn clearing_whole_pages_gives_their_memory_back() {
        let mut pages = Pages::default();
        pages.write(4096, &[1; 8192]);
        assert_eq!(pages.resident_bytes(), 8192);
        pages.clear(4096, 4096);
        assert_eq!(pages.resident_bytes(), 4096);
    }

    #[test]
    fn copies_do_not_see_each_others_writes() {
        let mut pages = Pages::default();
        pages.write(0, b"old");
        let copy = pages.clone();
        pages.write(0, b"new");
        let mut bytes = [0; 3];
        copy.read(0, &mut bytes);
        assert_eq!(&bytes, b"old");
    }
}
