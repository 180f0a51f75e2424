//! The bytes of a store at one moment: blocks that are shared between images until one of them changes.

use std::sync::Arc;

const BLOCK: usize = 4096;

/// See the module. Cloning costs a pointer per block. Behind the last one that was written there are zeros.
#[derive(Clone, Default)]
pub(crate) struct Image {
    /// `None` is a block of zeros.
    blocks: Vec<Option<Arc<[u8; BLOCK]>>>,
}

impl Image {
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = index(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let skip = at % BLOCK;
            let (now, later) = rest.split_at_mut((BLOCK - skip).min(rest.len()));
            match self.blocks.get(at / BLOCK).unwrap_or(&None) {
                Some(block) => now.copy_from_slice(&block[skip..skip + now.len()]),
                None => now.fill(0),
            }
            at += now.len();
            rest = later;
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = index(offset);
        let mut rest = bytes;
        let blocks = (at + bytes.len()).div_ceil(BLOCK);
        self.blocks.resize(self.blocks.len().max(blocks), None);
        while !rest.is_empty() {
            let skip = at % BLOCK;
            let (now, later) = rest.split_at((BLOCK - skip).min(rest.len()));
            let slot = &mut self.blocks[at / BLOCK];
            if let Ok(whole) = <[u8; BLOCK]>::try_from(now) {
                *slot = Some(Arc::new(whole));
            } else {
                let block = slot.get_or_insert_with(|| Arc::new([0; BLOCK]));
                Arc::make_mut(block)[skip..skip + now.len()].copy_from_slice(now);
            }
            at += now.len();
            rest = later;
        }
    }

    /// Makes whole blocks read as zeros.
    pub(crate) fn clear(&mut self, offset: u64, len: u64) {
        let end = (index(offset + len) / BLOCK).min(self.blocks.len());
        let start = (index(offset) / BLOCK).min(end);
        self.blocks[start..end].fill(None);
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a store of the simulation lies in memory")
}
